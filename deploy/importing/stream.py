"""Trajectories as a complete recorded stream, and an experiment that trains on it.

Whole trajectories are laid one after the other in N environments, in the order of the file: each goes to the
environment that has the fewest steps so far. Trajectories of one length are dealt out in turn. A trajectory is an
episode, and was truncated. Every environment ends with the last whole unroll of the shortest one; later steps are
dropped.
"""

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.config import EnvOptions
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.plan import chunks_per_window
from shared.replay.codec import Columns, pack
from shared.stream.format import StreamDescription
from shared.stream.write import StreamWriter, write_manifest
from shared.types import CONTINUES, TRUNCATED, Rows

MOST_ENVIRONMENTS = 64
EPISODES_EACH = 10  # of an environment, so that few steps lie near its ends, where fewer windows begin and end
UNROLL_LENGTH = 50  # divides the lengths of all of OGBench's trajectories
SPARE_WINDOWS = 8  # of each environment: with fewer, a run might end before its first update
_BATCH = 512
_MOST_WINDOWS_PER_UPDATE = 64


class Trajectories(NamedTuple):
    """Trajectories one after the other, in M rows with a state each.

    `states` `[M, S]` float32, `actions` `[M, A]` float32. `first` `[J]`: row of each trajectory's first state. `steps`
    `[J]`: number of its steps, at least 1; its last state is `steps` rows later, and the action there leads nowhere.
    """

    states: np.ndarray
    actions: np.ndarray
    first: np.ndarray
    steps: np.ndarray

    @property
    def num_steps(self) -> int:
        return int(self.steps.sum())


class Layout(NamedTuple):
    """Places of J trajectories in a stream.

    `members`: for each of N environments, the numbers of its trajectories, in order. `unrolls`: number of unrolls of
    `unroll_length` steps that every environment fills.
    """

    members: tuple[np.ndarray, ...]
    unrolls: int
    unroll_length: int

    @property
    def num_steps(self) -> int:
        return len(self.members) * self.unrolls * self.unroll_length


def lay_out(steps: np.ndarray, environments: int, unroll_length: int) -> Layout:
    """Returns the places of trajectories of `steps` `[J]` steps."""
    members: list[list[int]] = [[] for _ in range(environments)]
    filled = [(0, index) for index in range(environments)]  # equal entries are a heap
    for number, length in enumerate(steps.tolist()):
        rows, index = filled[0]
        members[index].append(number)
        heapq.heapreplace(filled, (rows + length, index))
    shortest = filled[0][0]
    return Layout(tuple(np.array(each, int) for each in members), shortest // unroll_length, unroll_length)


def choose_layout(
    steps: np.ndarray, episode_length: int, environments: int | None = None, unroll_length: int | None = None
) -> Layout:
    """Returns a layout that a run can train on.

    Args:
        steps: `[J]`, steps of each trajectory.
        episode_length: W, the environment's; a window of replay has as many rows.
        environments: N; none: at most 64, and so few that each has ten episode lengths of steps. Between half that
            number and all of it, the one with which the fewest steps are dropped; of several, the largest.
        unroll_length: T; none: 50, or the episode's length if that is less.

    Raises:
        ConfigError: the steps of an environment are too few for windows.
    """
    length = unroll_length or min(UNROLL_LENGTH, episode_length)
    needed = chunks_per_window(episode_length, length) - 1 + SPARE_WINDOWS
    if environments and environments > len(steps):
        raise ConfigError(
            f"--environments: {environments} are more than the file's {len(steps)} trajectories; use fewer"
        )
    most = min(MOST_ENVIRONMENTS, max(int(steps.sum()) // (EPISODES_EACH * max(episode_length, length)), 1))
    counts = [environments] if environments else range(-(-most // 2), most + 1)
    layouts = [lay_out(steps, count, length) for count in counts]
    fit = [layout for layout in layouts if layout.unrolls >= needed]
    if not fit:
        held, field = max(layout.unrolls for layout in layouts) * length, "environments" if environments else "env"
        raise ConfigError(
            f"--{field}: {held} steps in the shortest of {len(layouts[0].members)} environments are too few, windows "
            f"of {episode_length} steps need {needed * length}; use fewer --environments, a shorter --unroll-length or "
            "--env-options.episode-length, or a file with more trajectories"
        )
    return max(fit, key=lambda layout: (layout.num_steps, len(layout.members)))


def make_unrolls(data: Trajectories, layout: Layout, goal_indices: Sequence[int]) -> Iterator[Columns]:
    """Yields the stream's unrolls, Columns `[N, T, ...]`, the oldest first. Holds one at a time."""
    stops = [np.cumsum(data.steps[members]) for members in layout.members]
    for number in range(layout.unrolls):
        steps = np.arange(number * layout.unroll_length, (number + 1) * layout.unroll_length)
        chunks = [_find_rows(data, *each, steps) for each in zip(layout.members, stops, strict=True)]
        row, episode, is_last = (np.stack(each) for each in zip(*chunks, strict=True))
        final = np.zeros((*row.shape, len(goal_indices)), np.float32)
        final[is_last] = data.states[row[is_last] + 1][:, list(goal_indices)]
        rows = Rows(
            state=data.states[row],
            action=data.actions[row],
            episode=episode,
            step=np.broadcast_to(steps, row.shape),
            version=np.zeros_like(row),
            end=np.where(is_last, TRUNCATED, CONTINUES),
            final=final,
        )
        yield pack(rows)


def _find_rows(
    data: Trajectories, members: np.ndarray, stops: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the row in `data` of each of an environment's `steps` `[T]`, its episode, and if it is the last of that.

    `members` `[E]`: the environment's trajectories; `stops` `[E]`: its steps up to the end of each.
    """
    episode = np.searchsorted(stops, steps, side="right")
    trajectory, left = members[episode], stops[episode] - steps
    return data.first[trajectory] + data.steps[trajectory] - left, episode, left == 1


def make_experiment(env_id: str, options: EnvOptions, spec: EnvSpec, layout: Layout, stream: Path) -> dict[str, Any]:
    """Returns the values of an experiment that trains on all of the folder `stream`."""
    environments, length, episode_length = len(layout.members), layout.unroll_length, spec.episode_length
    steps = layout.unrolls * length
    windows = environments * (layout.unrolls - chunks_per_window(episode_length, length) + 1)
    per_update = max(2, min(_MOST_WINDOWS_PER_UPDATE, windows // 16))
    rows = per_update * (episode_length - 1)
    batch = max(2, min(_BATCH, rows // 2))
    changed = options.model_dump(exclude_defaults=True)
    return {
        "env": env_id,
        **({"env_options": changed} if changed else {}),
        "stream": str(stream),
        "collector": {"environments": environments, "unroll_length": length},
        "learners": {"contrastive": {"depth": 4}, "cloning": {"depth": 4, "algorithm": {"objective": "cloning"}}},
        "algorithm": {
            "batch_size": batch,
            "windows_per_update": per_update,
            "minibatches_per_update": rows // batch,
        },
        "replay": {"steps_per_environment": steps, "prefill_steps": min(1000, steps // 4)},
        "budget": {"env_steps": steps * environments},
    }


def write(folder: Path, data: Trajectories, layout: Layout, description: StreamDescription, spec: EnvSpec) -> None:
    """Writes the complete stream into `folder`. Raises OSError."""
    writer = StreamWriter(folder, 0, description)
    for number, columns in enumerate(make_unrolls(data, layout, spec.goal_indices)):
        writer.write(columns, number)
    write_manifest(folder, description, [writer.close()])
