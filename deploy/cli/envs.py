"""`fathom envs`: all environments as a table, and as the page `docs/environments.md`."""

from dataclasses import dataclass
from typing import Any

from deploy.cli.output import print_rows, say
from shared.config import EnvOptions
from shared.envs.registry import ENTRY_POINTS, EnvEntry, env_entries, make_env
from shared.files import to_json

_FAMILIES = {  # heading and introduction of each family, by the module that makes its environments
    "point_maze": (
        "Points in mazes",
        "Plain JAX, millions of steps a second: the default on a CPU. Actions push a point with velocity along x and "
        "y; it slides along walls. Lengths are in cells. `point_labyrinth_<size>_s<seed>` generates a maze with one "
        "path between any two cells; any odd size from 5 to 31 and any seed work, and the table lists some. Starts "
        "lie in one corner, with `_any_start` anywhere. Episodes last 10 steps for each cell of the longest way, and "
        "200 at least; a cell takes 4 steps at top speed. `env_options: {bodies: 2}` puts two points, which do not "
        "collide, into the same maze. Sizes double, and the goal is joint: it is reached when the root mean square of "
        "the points' distances to their own goals is below 0.25, so the radius grows with the root of the number of "
        "points. State coverage then counts the maze cells of the first two points together.\n\n"
        "![Hardest maze](environments/point_hardest_maze.png)\n\n"
        "![Labyrinth](environments/point_labyrinth.png)",
    ),
    "classic": (
        "Reacher, pusher, half-cheetah",
        "Brax's own bodies, without the marker that shows the goal in brax's models. Three things differ from the "
        "references. The reacher steps 5 ms of spring physics, because today's brax flies apart with 10 ms. The "
        "velocity of its tip is the true one. The pusher's goals lie at the height of its object, not 5 cm below.",
    ),
    "ant": (
        "Ant",
        "Brax's ant. An episode ends when the torso leaves heights of 0.2 to 1 m. In mazes a cell is 4 m wide, walls "
        "are 2 m high, and torso, hips and feet touch them. `_eval` layouts evaluate policies that were trained on the "
        "maze of the same name. `ant_<u|u2|u3|u4|u5>_maze_gen_<hops>` trains on short hops along the corridor: "
        "`gen_1f3f` means 1 or 3 cells. Any such name works; the table lists some.",
    ),
    "humanoid": (
        "Humanoid",
        "Brax's humanoid. An episode ends when the torso leaves heights of 1 to 2 m. In mazes a cell is 2 m wide and "
        "walls are 1 m high. The reference's state of 268 numbers holds the commanded goal; this state leaves the goal "
        "out. `env_options: {reference_state: true}` brings the reference's state back for comparison.",
    ),
    "arm": (
        "Arm",
        "A Franka Panda of primitives with position servos, in MJX. The last action closes the fingers. Episodes never "
        "end early. A grasp succeeds when the midpoint of the fingertips is at the cube and their distance is the "
        "cube's width; the goal follows the cube. Kinematics and inertias are those of MuJoCo Menagerie's model "
        "(Apache-2.0, Franka Robotics).",
    ),
}
_OPTIONS = "\n".join(f"| `{name}` | {field.description} |" for name, field in EnvOptions.model_fields.items())
_INTRODUCTION = f"""# Environments

Made by `make docs` from the registry; `fathom envs` prints the same table. Any id fits an experiment's `env`. It also
fits `evaluation.envs` if its sizes equal those of `env`:

```yaml
env: ant_u4_maze
env_options: {{backend: spring, episode_length: 1000}}
evaluation: {{envs: [ant_u4_maze_eval, ant_u4_maze]}}
```

Every reset draws a new start and a new goal. A policy sees the state and the goal; the state never holds the goal, and
the goal is no body in the physics. Every episode is truncated after its length; the sections below say which episodes
end earlier. **Time at goal** counts the steps within the radius. If the table has an easy and a hard radius, time at
goal is reported for those, too. State coverage counts quarters of maze cells, or the cells of a fixed histogram of goal
space.

| key of `env_options` | |
|---|---|
{_OPTIONS}

Numbers are those of JaxGCRL and of the paper's code as it really runs (*1000 Layer Networks for Self-Supervised RL*,
arXiv 2503.14858; **bold** ids are its ten tasks). `fathom render --env ID --random` draws any of them. To bring your
own environment, see [own_environment.md](own_environment.md); `fathom envs` also lists ids of the entry point group
`{ENTRY_POINTS}`.
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
        elif self.json:
            say(to_json(list_envs()))
        else:
            print_rows([{**row, "paper": "yes" if row["paper"] else ""} for row in list_envs()])
        return 0


def list_envs() -> list[dict[str, Any]]:
    """Returns one row for each environment, in the registry's order."""
    rows = []
    for entry in env_entries():
        spec = make_env(entry.env_id).spec
        sizes = {"state": spec.state_size, "goal": spec.goal_size, "action": spec.action_size}
        facts = {"episode": spec.episode_length, "backend": spec.backend, "radius": spec.goal_radius}
        rows.append({"env": entry.env_id, **sizes, **facts, "paper": entry.paper, "description": entry.description})
    return rows


def page() -> str:
    """Returns the text of `docs/environments.md`: the built-in environments by family, whatever else is installed."""
    sections = [_INTRODUCTION]
    for family, (heading, text) in _FAMILIES.items():
        rows = [_row(entry) for entry in env_entries() if entry.module == f"shared.envs.{family}"]
        sections.append(
            f"## {heading}\n\n![{heading}](environments/{family}.png)\n\n{text}\n\n"
            "| id | state | goal | action | steps | physics | radius (easy, hard) | |\n"
            "|---|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "\n".join(sections)


def _row(entry: EnvEntry) -> str:
    spec = make_env(entry.env_id).spec
    others = [f"{radius:g}" for radius in (spec.easy_radius, spec.hard_radius) if radius is not None]
    radius = f"{spec.goal_radius:g}" + (f" ({', '.join(others)})" if others else "")
    name = f"**`{entry.env_id}`**" if entry.paper else f"`{entry.env_id}`"
    sizes = f"{spec.state_size} | {spec.goal_size} | {spec.action_size} | {spec.episode_length}"
    return f"| {name} | {sizes} | {spec.backend} | {radius} | {entry.description} |"
