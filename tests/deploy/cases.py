"""A small experiment, and the changes by which test files make it theirs."""

from typing import Any

SMALL: dict[str, Any] = {
    "env": "point_u_maze",
    "env_options": {"episode_length": 20},
    "collector": {"width": 8, "environments": 4, "unroll_length": 5},
    "algorithm": {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 4},
    "replay": {"steps_per_environment": 400, "prefill_steps": 40},
    "evaluation": {"episodes": 8, "count": 2},
    "budget": {"env_steps": 560},
}
PASSIVE: dict[str, Any] = {"passive": {"width": 8}}
"""A passive learner like the collector learner, so that both compile once."""


def small(**changes: Any) -> dict[str, Any]:
    """Returns `SMALL` with `changes`: a section keeps its other keys, and a value replaces the old one."""
    merged = {key: SMALL.get(key, {}) | new if isinstance(new, dict) else new for key, new in changes.items()}
    return SMALL | merged
