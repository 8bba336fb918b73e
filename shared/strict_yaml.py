"""YAML as a person meant it: what safe loading would swallow, guess at or choke on is an error with its line."""

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOST_BYTES = 2**18  # of a file: PyYAML reads some 100 kB a second
MOST_VALUES = 10_000  # once every alias is written out
MOST_LEVELS = 40  # well below where Python's own recursion ends
_UNREADABLE = (ValueError, LookupError, AttributeError, TypeError, OverflowError)  # !!bool x, 2024-13-45, 10**5000


def load(text: str) -> Any:
    """The one value in `text`. Raises yaml.YAMLError; see `explain`.

    Unlike `yaml.safe_load` it refuses keys that are there twice, whole numbers beyond 64 bits, aliases of what they
    are in, and more values or levels than any file of a person's has.
    """
    loader = _Strict(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except _UNREADABLE as error:  # an escaped character beyond Unicode
        raise ConstructorError(None, None, str(error), loader.get_mark()) from error
    finally:
        loader.dispose()


def read_text(path: Path) -> str:
    """A file of at most `MOST_BYTES`, which never reads on from what has no end.

    Raises OSError, UnicodeDecodeError, or yaml.YAMLError where it is larger.
    """
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise yaml.YAMLError(f"more than {MOST_BYTES // 1024} kB")
    return content.decode("utf-8")


def explain(error: yaml.YAMLError) -> tuple[str, int | None]:
    """What is wrong, in one line, and the line of the text where, counted from 1."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"character #x{error.character:04x} cannot be part of a text", None
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return " ".join(problem.split()), mark.line + 1 if mark else None


class _Strict(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._level += 1
        if self._level > MOST_LEVELS:
            raise ConstructorError(None, None, f"more than {MOST_LEVELS} levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
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

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except _UNREADABLE as error:
            text = f"{node.value!r:.60}" if isinstance(node, ScalarNode) else "this"
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise ConstructorError(None, None, f"{text} cannot be read as {kind}", node.start_mark) from error

    def construct_yaml_int(self, node: ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:
            raise ConstructorError(None, None, "a whole number beyond 64 bits", node.start_mark)
        return value


_Strict.add_constructor("tag:yaml.org,2002:int", _Strict.construct_yaml_int)
for _tag in ("set", "omap", "pairs", "binary"):  # no value of ours is one, and a set has no order
    _Strict.add_constructor(f"tag:yaml.org,2002:{_tag}", _Strict.construct_undefined)  # type: ignore[type-var]


def _check_size(node: Node) -> None:
    """Raises ConstructorError where the values, each alias written out, are too many or hold themselves."""
    if _size(node, {}, set()) > MOST_VALUES:
        raise ConstructorError(None, None, f"more than {MOST_VALUES} values, aliases written out", node.start_mark)


def _size(node: Node, sizes: dict[int, int], within: set[int]) -> int:
    if id(node) in within:
        raise ConstructorError(None, None, "an alias of what it is in", node.start_mark)
    if id(node) not in sizes:
        within.add(id(node))
        sizes[id(node)] = 1 + sum(_size(child, sizes, within) for child in _children(node))
        within.remove(id(node))
    return sizes[id(node)]


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, SequenceNode) else []
