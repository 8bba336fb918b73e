"""A matrix whose runs take a few seconds each, and changes of what its runs have written."""

from pathlib import Path
from typing import Any

from tests.deploy.cases import small

MATRIX: dict[str, Any] = {
    "envs": ["point_u_maze"],
    "collector_depths": [4],
    "learner_depths": [4, 8],
    "seeds": [0, 1],
    "experiment": {key: value for key, value in small(budget={"env_steps": 400}).items() if key != "env"},
}


def replace_in_config(run_dir: Path, old: str, new: str) -> None:
    """Replaces a text, which must occur, in a run's config.yaml."""
    path = run_dir / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
