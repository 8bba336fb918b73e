"""Loader for YAML that people write. It refuses what PyYAML's safe loader ignores, guesses or expands."""

from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

MOST_VALUES = 10_000  # with every alias written out
MOST_LEVELS = 40  # well below the limit of Python's own recursion
_UNREADABLE = (ValueError, LookupError, AttributeError, TypeError, OverflowError)  # !!bool x, 2024-13-45, 10**5000


def load(text: str) -> Any:
    """Returns the one value in `text`. Raises yaml.YAMLError; see `explain`.

    Unlike `yaml.safe_load` it refuses duplicate keys, integers beyond 64 bits, aliases within their own anchor, and
    more values or levels than a file written by hand has.
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

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._level += 1
        mark, before = self.peek_event().start_mark, self._num_values
        if self._level > MOST_LEVELS:
            raise ConstructorError(None, None, f"more than {MOST_LEVELS} levels", mark)
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
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
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise ConstructorError(None, None, f"{text} cannot be read as {kind}", node.start_mark) from error
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConstructorError(None, None, "a whole number beyond 64 bits", node.start_mark)
        return value


for _tag in ("set", "omap", "pairs", "binary"):  # no key has such a value, and a set has no order
    _Strict.add_constructor(f"tag:yaml.org,2002:{_tag}", _Strict.construct_undefined)  # type: ignore[type-var]
