"""`fathom envs`: every environment as a table, and as the page `docs/environments.md`."""

import json
from dataclasses import dataclass
from typing import Any

from deploy.cli.output import print_rows
from shared.config import EnvOptions
from shared.envs.registry import ENTRY_POINTS, env_entries, make_env

_FAMILIES = {  # by the module that makes them: the heading, what is true of all of them, and their picture
    "point_maze": (
        "Points in mazes",
        "Plain JAX, millions of steps a second: the default on a CPU. A point with velocity is pushed along x and y "
        "and slides along walls. Lengths are in cells.",
    ),
    "classic": (
        "Reacher, pusher, half-cheetah",
        "Brax's own bodies; the marker that stands for the goal in brax's models is left out. Unlike the references, "
        "the reacher steps 5 ms of spring physics, not 10 (with which today's brax flies apart), its tip's velocity is "
        "the true one, and the pusher's goals lie at the height of its object, not 5 cm below.",
    ),
    "ant": (
        "Ant",
        "Brax's ant, which ends an episode when its torso leaves heights of 0.2 to 1 m. In mazes a cell is 4 m wide, "
        "walls are 2 m high, and torso, hips and feet touch them. `_eval` layouts are for evaluation of what was "
        "trained on the maze of the same name. `ant_<u|u2|u3|u4|u5>_maze_gen_<hops>` trains on short hops along the "
        "corridor: `gen_1f3f` means 1 or 3 cells; any such name works, the table has some.",
    ),
    "humanoid": (
        "Humanoid",
        "Brax's humanoid, which ends an episode when its torso leaves heights of 1 to 2 m. In mazes a cell is 2 m wide "
        "and walls are 1 m high. The state leaves out the commanded goal, which the reference's 268 numbers hold; "
        "`env_options: {reference_state: true}` brings it back for comparison.",
    ),
    "arm": (
        "Arm",
        "A Franka Panda of primitives with position servos, in MJX. The last action closes the fingers. Episodes never "
        "end early. Grasping succeeds when the fingertips' middle is at the cube and their distance is its width; the "
        "goal follows the cube. Kinematics and inertias are those of MuJoCo Menagerie's model (Apache-2.0, Franka "
        "Robotics).",
    ),
}
_OPTIONS = "\n".join(f"| `{name}` | {field.description} |" for name, field in EnvOptions.model_fields.items())
_INTRODUCTION = f"""# Environments

Made by `make docs` from the registry; `fathom envs` prints the same table. Any id goes into an experiment's `env`, or
into `evaluation.env` if its sizes are equal:

```yaml
env: ant_u4_maze
env_options: {{backend: spring, episode_length: 1000}}
evaluation: {{env: ant_u4_maze_eval}}
```

Every reset draws a new start and a new goal. A policy sees the state and the goal; the state never holds the goal, and
the goal is no body in the physics. An episode is truncated after its length; that it terminates by itself is said
below. **Time at goal** counts the steps within the radius; where the table has an easy and a hard radius, it is
reported for those, too. State coverage counts quarters of maze cells, or the cells of a fixed histogram of goal space.

| key of `env_options` | |
|---|---|
{_OPTIONS}

Numbers are those of the paper's code as it really runs (*1000 Layer Networks for Self-Supervised RL*, arXiv 2503.14858;
**bold** ids are its ten tasks) and of JaxGCRL. `fathom render --env ID --random` draws any of them. To bring your own,
see [own_environment.md](own_environment.md); ids of the entry point group `{ENTRY_POINTS}` appear in `fathom envs`.
"""


@dataclass(frozen=True)
class Envs:
    """List the environments with their sizes."""

    json: bool = False
    """Print one JSON list."""
    markdown: bool = False
    """Print the documentation's page."""

    def execute(self) -> int:
        if self.markdown:
            print(page(), end="")
            return 0
        rows = list_envs()
        if self.json:
            print(json.dumps(rows))
            return 0
        print_rows([{**row, "paper": "yes" if row["paper"] else ""} for row in rows])
        return 0


def list_envs() -> list[dict[str, Any]]:
    """One row for each environment, in the registry's order."""
    rows = []
    for entry in env_entries():
        spec = make_env(entry.env_id).spec
        sizes = {"state": spec.state_size, "goal": spec.goal_size, "action": spec.action_size}
        facts = {"episode": spec.episode_length, "backend": spec.backend, "radius": spec.goal_radius}
        rows.append({"env": entry.env_id, **sizes, **facts, "paper": entry.paper, "description": entry.description})
    return rows


def page() -> str:
    """`docs/environments.md`: our own environments by family, whatever else is installed."""
    sections = [_INTRODUCTION]
    for family, (heading, text) in _FAMILIES.items():
        entries = [entry for entry in env_entries() if entry.module == f"shared.envs.{family}"]
        rows = [_row(entry.env_id, entry.paper, entry.description) for entry in entries]
        sections.append(
            f"## {heading}\n\n![{heading}](environments/{family}.png)\n\n{text}\n\n"
            "| id | state | goal | action | steps | physics | radius (easy, hard) | |\n"
            "|---|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "\n".join(sections)


def _row(env_id: str, paper: bool, description: str) -> str:
    spec = make_env(env_id).spec
    others = [f"{radius:g}" for radius in (spec.easy_radius, spec.hard_radius) if radius is not None]
    radius = f"{spec.goal_radius:g}" + (f" ({', '.join(others)})" if others else "")
    name = f"**`{env_id}`**" if paper else f"`{env_id}`"
    sizes = f"{spec.state_size} | {spec.goal_size} | {spec.action_size} | {spec.episode_length}"
    return f"| {name} | {sizes} | {spec.backend} | {radius} | {description} |"
