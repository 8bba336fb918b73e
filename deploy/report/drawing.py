"""What the page's figures and the files' share: colours, and cells as a grid."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from deploy.report.contents import Curve, EnvironmentReport

ACTIVE_COLOUR = "#8a8f98"
INK = "#1f2430"


def depth_colours(depths: Sequence[int]) -> dict[int, str]:
    """Shallow to deep as one scale, dark enough on white at both ends."""
    places = np.linspace(0.12, 0.82, len(depths)) if len(depths) > 1 else np.full(len(depths), 0.45)
    return {depth: to_hex(colormaps["viridis"](place)) for depth, place in zip(depths, places, strict=True)}


class Panel(NamedTuple):
    """Curves that are drawn into one figure, and their colours."""

    title: str
    curves: list[Curve]
    colours: dict[Curve, str]


def panels(report: EnvironmentReport, curves: Sequence[Curve]) -> list[Panel]:
    """One for each collector depth with its learners; where there are several depths, one of the collector learners."""
    by_depth = depth_colours(sorted({curve.learner_depth for curve in report.curves if not curve.active}))
    made = []
    for depth in report.collector_depths if by_depth else ():
        mine = [curve for curve in curves if curve.collector_depth == depth]
        colours = {curve: ACTIVE_COLOUR if curve.active else by_depth[curve.learner_depth] for curve in mine}
        made.append(Panel(f"collector depth {depth}", sorted(mine, key=lambda each: each.active), colours))
    active = [curve for curve in curves if curve.active]
    if len(active) > 1 or not by_depth:
        by_depth = depth_colours([curve.learner_depth for curve in active])
        colours = {curve: by_depth[curve.learner_depth] for curve in active}
        made.append(Panel("collector learners: ordinary training", active, colours))
    return [panel for panel in made if panel.curves]


def grid(rows: Sequence[int], columns: Sequence[int], values: dict[tuple[int, int], float]) -> list[list[float | None]]:
    """`values` by (row, column), as a heatmap takes them; None where there is none yet."""
    return [[values.get((row, column)) for column in columns] for row in rows]
