"""Pictures of episodes, as `fathom render` writes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from deploy.render.episode import Episode, Recorder
from deploy.render.gl import choose_gl
from shared.envs.base import GoalEnv
from shared.errors import ConfigError
from shared.policy import PolicyFunction
from shared.types import Params

Picture = Literal["html", "mp4", "png"]
Writer = Callable[[Any, Sequence[Episode], Path, str], None]  # (env, episodes, out, title)


def render(
    env: GoalEnv,
    policy: PolicyFunction,
    params: Params,
    out: Path,
    picture: Picture,
    seed: int,
    say: Callable[[str], None],
    title: str = "",
    steps: int | None = None,
    chunk: int = 1,
) -> None:
    """Plays one episode of a body, or several of anything else, and draws them to the file `out`.

    `picture`: html is a page with the scene to turn around in, which needs no network; mp4 is a film in real time; png
    shows eight moments, or paths through goal space. `seed` chooses start, goal and samples, `steps` limits an
    episode, `title` heads a png and names a page. `policy` decides `chunk` actions at once.

    Raises ConfigError, before anything is played, where `env` cannot be drawn so, and where png or mp4 find no OpenGL.
    Raises OSError where `out` cannot be written.
    """
    write, num_episodes = _writer(env, picture)
    out.parent.mkdir(parents=True, exist_ok=True)
    start_key, key = jax.random.split(jax.random.key(seed))
    starts = jax.random.split(start_key, num_episodes)
    episodes = Recorder(env).play(policy, params, starts, key, steps, chunk)
    for distances in (episode.distances for episode in episodes):
        at_goal = int((distances < env.spec.goal_radius).sum())
        say(f"an episode of {len(distances)} steps, {at_goal} at the goal; smallest distance {distances.min():.2f}")
    say(f"drawing {out}")
    write(env, episodes, out, f"{title} · success radius {env.spec.goal_radius:g}")


def _writer(env: GoalEnv, picture: Picture) -> tuple[Writer, int]:
    """Returns the writer of `picture`, and how many episodes it draws. Raises ConfigError where there is none."""
    from shared.envs.brax_env import BraxEnv

    if not isinstance(env, BraxEnv):
        from deploy.render import paths, plane

        if not paths.can_draw(env):
            name = type(env).__name__
            raise ConfigError(
                f"{name} cannot be drawn: no subclass of BraxEnv, and goals of one coordinate have no path"
            )
        if picture not in plane.WRITERS:
            raise ConfigError("paths have no 3-D page; use --format png or mp4")
        return plane.WRITERS[picture], plane.EPISODES
    if picture != "html":
        choose_gl()  # before anything is compiled
    from deploy.render import body

    return body.WRITERS[picture], body.EPISODES
