"""Position of a source of unrolls: all that a restarted collector or feeder needs to resume, apart from its stream."""

from typing import Any, NamedTuple

import numpy as np

from shared.replay.windows import WindowCount, no_windows
from shared.types import Array


class Position(NamedTuple):
    """Progress of one source over all its incarnations.

    `unrolls` is the number of unrolls made; it may be less than `windows.number + 1`, because each new incarnation
    skips a number. `visits` `[num_cells]` counts the environment steps in each cell of goal space.
    """

    windows: WindowCount
    unrolls: int
    visits: np.ndarray

    def after(self, number: int, ints: Array, visits: Array, chunks_per_window: int) -> "Position":
        """Returns the position after unroll `number` with `ints` `[N, T, 4]` and its `visits` `[num_cells]`."""
        windows = self.windows.after(number, ints, chunks_per_window)
        return Position(windows, self.unrolls + 1, self.visits + np.asarray(visits))

    def as_json(self) -> dict[str, Any]:
        return {
            "number": self.windows.number,
            "run": self.windows.run.tolist(),
            "made": self.windows.made,
            "unrolls": self.unrolls,
            "visits": self.visits.tolist(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Position":
        """Inverse of `as_json`. Raises KeyError."""
        windows = WindowCount(values["number"], np.array(values["run"]), values["made"])
        return cls(windows, values["unrolls"], np.array(values["visits"]))


def start_position(environments: int, cells: int) -> Position:
    """The position before the first unroll of `environments` environments whose goal space has `cells` cells."""
    return Position(no_windows(environments), 0, np.zeros(cells, np.int64))
