"""Loader for YAML that people write. It refuses what PyYAML's safe loader ignores, guesses or expands.

Numbers are decimal, as in YAML 1.2, with single underscores between digits if they help a reader: `10_000_000`, `1e8`.
PyYAML reads YAML 1.1, where `010` is 8, `1:40` is 100 and `yes` is true; such values are refused.
"""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

MOST_VALUES = 10_000  # with every alias written out
MOST_LEVELS = 40  # well below the limit of Python's own recursion
_TAG = "tag:yaml.org,2002:"
_DIGITS = "[0-9]+(_[0-9]+)*"
_WHOLE = "(0|[1-9][0-9]*(_[0-9]+)*)"
DECIMAL = re.compile(rf"[-+]?({_WHOLE}(\.({_DIGITS})?)?|\.{_DIGITS})([eE][-+]?[0-9]+)?")
"""A number as text."""
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BOOLEAN = re.compile("true|True|TRUE|false|False|FALSE")
_UNREADABLE = (ValueError, LookupError, AttributeError, TypeError, OverflowError)  # !!bool x, 2024-13-45, 10**5000


class OtherNotation(ConstructorError):
    """A plain text that YAML 1.1 reads as a number, a truth value or a date, and that nobody expects to be one."""


def load(text: str) -> Any:
    """Returns the one value in `text`. Raises yaml.YAMLError; see `explain`.

    Unlike `yaml.safe_load` it refuses numbers that are not decimal, truth values other than true and false, dates,
    duplicate keys, integers beyond 64 bits, aliases within their own anchor, and more values or levels than a file
    written by hand has.
    """
    loader = _Strict(text)
    try:
        return loader.get_single_data()
    except _UNREADABLE as error:  # an escaped character beyond Unicode
        raise ConstructorError(None, None, str(error), loader.get_mark()) from error
    finally:
        loader.dispose()


def explain(error: yaml.YAMLError) -> tuple[str, int | None]:
    """Returns the mistake in one line, and its line in the text, counted from 1."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"character #x{error.character:04x} cannot be part of a text", None
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return " ".join(problem.split()), mark.line + 1 if mark else None


class _Strict(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = self._num_values = 0
        self._sizes: dict[Node | None, int] = {}  # values in each node, every alias written out
        self._path: list[str] = []  # keys and indices that lead to the present node

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._level += 1
        mark, before = self.peek_event().start_mark, self._num_values
        if self._level > MOST_LEVELS:
            raise ConstructorError(None, None, f"more than {MOST_LEVELS} levels", mark)
        is_alias = self.check_event(yaml.AliasEvent)
        self._path.append(index.value if isinstance(index, ScalarNode) else "" if index is None else str(index))
        node = super().compose_node(parent, index)
        if isinstance(node, ScalarNode) and (problem := _other_notation(node)):
            field = ".".join(filter(None, self._path))
            raise OtherNotation(None, None, f"{field:.60}: {problem}" if field else problem, mark)
        self._path.pop()
        if is_alias and node not in self._sizes:
            raise ConstructorError(None, None, "an alias of what it is in", mark)
        self._num_values += self._sizes[node] if is_alias else 1
        self._sizes[node] = self._num_values - before
        self._level -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode):
                if (key.tag, key.value) in seen:
                    raise ConstructorError(None, None, f"the key {key.value!r:.60} is there twice", key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def construct_document(self, node: Node) -> Any:
        if self._num_values > MOST_VALUES:
            raise ConstructorError(None, None, f"more than {MOST_VALUES} values, aliases written out", node.start_mark)
        return super().construct_document(node)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except _UNREADABLE as error:
            text = f"{node.value!r:.60}" if isinstance(node, ScalarNode) else "this"
            kind = node.tag.removeprefix(_TAG)
            raise ConstructorError(None, None, f"{text} cannot be read as {kind}", node.start_mark) from error
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConstructorError(None, None, "a whole number beyond 64 bits", node.start_mark)
        return value


def _other_notation(node: ScalarNode) -> str:
    """Returns the reason against a value that only YAML 1.1 reads as its type; empty for all others."""
    text, kind, quote = f"{node.value!r:.60}", node.tag.removeprefix(_TAG), "or put a text in quotes"
    if kind in ("int", "float") and not (DECIMAL.fullmatch(node.value) or _NOT_FINITE.fullmatch(node.value)):
        return f"{text} is not a decimal number; write it as in 1000, 1_000 or 1e3, without leading zeros, {quote}"
    if kind == "bool" and not _BOOLEAN.fullmatch(node.value):
        return f"{text} is neither true nor false; write one of these, {quote}"
    return f"{text} would be a date; put it in quotes" if kind == "timestamp" else ""


for _tag in ("set", "omap", "pairs", "binary"):  # no key has such a value, and a set has no order
    _Strict.add_constructor(f"{_TAG}{_tag}", _Strict.construct_undefined)  # type: ignore[type-var]
