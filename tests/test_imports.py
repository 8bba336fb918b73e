"""The import rule of the design: what each part of the tree may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"collector", "learner", "shared", "deploy"}
ALLOWED = {"shared": {"shared"}, "collector": {"collector", "shared"}, "learner": {"learner", "shared"}, "deploy": OURS}
REVERB = {ROOT / "deploy/replay_server/serve.py", ROOT / "deploy/replay_server/stock_client.py"}
FILES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every top-level name that a file imports, also inside functions and `if TYPE_CHECKING`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what is imported"
            names.add(str(node.module))
    return {name.split(".")[0] for name in names}


def test_the_tree_is_read() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == OURS
    assert "jax" in imported(ROOT / "learner/update.py")
    assert "matplotlib" in imported(ROOT / "deploy/summary.py")  # inside a function


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_import_rule(path: Path) -> None:
    relative = path.relative_to(ROOT)
    names = imported(path)
    assert names & OURS <= ALLOWED[relative.parts[0]]
    if "ray" in names:
        assert relative.parts[0] == "deploy"
    if names & {"grpc", "grpc_status", "grpc_health"}:
        assert relative.parts[:2] == ("shared", "replay")
    if names & {"reverb", "tensorflow"}:
        assert path in REVERB
    if "wandb" in names:
        assert path == ROOT / "deploy/wandb_log.py"
    assert "tests" not in names


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.processes
def test_one_process_needs_neither_ray_nor_reverb_nor_grpc_nor_wandb() -> None:
    modules = [module(path) for path in FILES if path.relative_to(ROOT).parts[0] in ("collector", "learner")]
    modules += ["deploy.cli", "deploy.console", "deploy.in_process", "deploy.summary"]
    modules += ["deploy.bench.update", "deploy.bench.rollout"]
    probe = (
        "import importlib, sys\n"
        "for name in ('ray', 'reverb', 'tensorflow', 'grpc', 'wandb'): sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    ran = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
