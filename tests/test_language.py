"""Language of the product: first words of docstrings, and lengths of files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for package in ("shared", "collector", "learner", "deploy") for path in (ROOT / package).rglob("*.py")
)
BANNED = {"Who", "What", "Of", "Those", "That", "Where", "Whose", "Whether", "Which", "How", "Why", "With", "Without"}


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line and text of all docstrings: of module, classes and functions, and of texts below assignments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value.strip()


def test_all_kinds_of_docstrings_are_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""A module."""\nX = 1\n"""A value."""\nclass C:\n    """Who?"""\n    def f(self):\n        """Of it."""\n'
    )
    assert [text for _, text in docstrings(path)] == ["A module.", "A value.", "Who?", "Of it."]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_begins_with_a_banned_word(path: Path) -> None:
    wrong = [(line, text.splitlines()[0]) for line, text in docstrings(path) if re.split(r"\W", text)[0] in BANNED]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
