"""Import rules of the design: the modules that each part of the tree may import."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = {"collector", "learner", "shared", "deploy"}
ALLOWED = {
    "shared": {"shared"},
    "collector": {"collector", "shared"},
    "learner": {"learner", "shared"},
    "deploy": PARTS,
}
DEPLOY_MAY_IMPORT = {  # for each package of deploy: the other packages of deploy that it may import
    "scheduling": set(),
    "recovery": set(),
    "telemetry": {"scheduling"},
    "render": set(),
    "importing": set(),
    "replay": {"scheduling"},
    "run": {"recovery", "replay", "scheduling", "telemetry"},
    "matrix": {"run", "recovery", "scheduling"},
    "report": {"matrix", "render", "run"},
    "bench": {"matrix", "run", "replay", "scheduling"},
    "experiments": {"matrix", "run"},
    "cli": {
        *("matrix", "report", "render", "bench", "run", "recovery", "replay", "scheduling", "telemetry"),
        *("experiments", "importing"),
    },
}
FOR_ALL_PACKAGES = {"layout", "mode"}  # modules of deploy that every package may import
REVERB_FILES = {ROOT / "deploy/replay/server/serve.py", ROOT / "deploy/replay/server/stock_client.py"}
FILES = sorted(path for package in PARTS for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Returns all modules that a file imports, also inside functions and `if TYPE_CHECKING`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what is imported"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_imports_are_found_in_all_parts_and_inside_functions() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == PARTS
    assert "jax" in top_level(ROOT / "learner/update.py")
    assert "matplotlib" in top_level(ROOT / "deploy/run/summary.py")  # inside a function


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_part_may_import(path: Path) -> None:
    relative = path.relative_to(ROOT)
    names = top_level(path)
    assert names & PARTS <= ALLOWED[relative.parts[0]]
    if "ray" in names:
        assert relative.parts[0] == "deploy"
    if names & {"grpc", "grpc_status", "grpc_health"}:
        assert relative.parts[:2] == ("shared", "replay")
    if names & {"reverb", "tensorflow"}:
        assert path in REVERB_FILES
    if "wandb" in names:
        assert path == ROOT / "deploy/telemetry/wandb_mirror.py"
    assert "tests" not in names


@pytest.mark.parametrize("package", DEPLOY_MAY_IMPORT)
def test_a_package_of_deploy_imports_only_the_packages_that_it_may_import(package: str) -> None:
    for path in (ROOT / "deploy" / package).rglob("*.py"):
        packages = {name.split(".")[1] for name in imported(path) if name.startswith("deploy.")}
        assert packages - FOR_ALL_PACKAGES <= DEPLOY_MAY_IMPORT[package] | {package}, path


def test_the_packages_of_deploy_have_no_import_cycle() -> None:
    assert list(graphlib.TopologicalSorter(DEPLOY_MAY_IMPORT).static_order())[-1] == "cli"


def test_every_package_of_deploy_names_the_file_to_begin_with() -> None:
    folders = {path.parent for path in FILES if path.relative_to(ROOT).parts[0] == "deploy"}
    assert {folder.name for folder in folders if folder.parent.name == "deploy"} == set(DEPLOY_MAY_IMPORT)
    for folder in folders:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert text is not None, folder
        assert "egin with" in text, folder


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.processes
def test_in_process_runs_need_neither_ray_nor_reverb_nor_grpc_nor_uv_nor_wandb() -> None:
    modules = [module(path) for path in FILES if path.relative_to(ROOT).parts[0] in ("collector", "learner")]
    modules += ["deploy.cli.main", "deploy.cli.console", "deploy.run.in_process", "deploy.run.summary"]
    modules += ["deploy.bench.update", "deploy.bench.rollout"]
    probe = (
        "import importlib, sys\n"
        "for name in ('ray', 'reverb', 'tensorflow', 'grpc', 'uv', 'wandb'): sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
