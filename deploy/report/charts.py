"""Charts of a report as data, drawn by plotly for the page (`figures.py`) and by matplotlib for files (`files.py`)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from deploy.report import text
from deploy.report.contents import Curve, EnvironmentReport, Goals
from deploy.report.statistics import Values

MAX_POINTS = 500  # of a line, about as many as a chart has pixels
ACTIVE_COLOUR = "#8a8f98"
INK = "#1f2430"
_OBJECTIVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4c566a")
"""Colours that remain different to most colour-blind readers (Okabe and Ito, 2008), and a grey."""


class HeatCell(NamedTuple):
    """A value, the text in its cell, and the text beside the mouse."""

    value: float
    text: str
    hover: str


MISSING = HeatCell(math.nan, "missing", "missing")


class Heatmap(NamedTuple):
    """Cells by collector depth (`rows`) and learner depth (`columns`); `colours` is the name of their scale."""

    rows: Sequence[int]
    columns: Sequence[int]
    cells: list[list[HeatCell]]
    colours: str
    limits: tuple[float, float]


class Line(NamedTuple):
    """A line of a chart. `ends`: the interval around it, at each of its points; `markers` shows these points."""

    name: str
    x: Values
    y: Values
    colour: str
    ends: tuple[Values, Values] | None = None
    dashed: bool = False
    markers: bool = True


def thinned(line: Line) -> Line:
    """Returns `line` with at most `MAX_POINTS` points.

    Kept are its ends, and the extremes of `y` and of the interval in each of equally long parts.
    """
    if len(line.x) <= MAX_POINTS:
        return line
    low, high = line.ends or (line.y, line.y)
    extremes = (line.y, -line.y, low, -high)
    parts = np.array_split(np.arange(len(line.x)), (MAX_POINTS - 2) // len(extremes))
    lowest = {int(part[values[part].argmin()]) for part in parts for values in extremes}
    kept = sorted({0, len(line.x) - 1} | lowest)
    return line._replace(x=line.x[kept], y=line.y[kept], ends=(low[kept], high[kept]) if line.ends else None)


def depth_colours(depths: Sequence[int]) -> dict[int, str]:
    """Returns one scale from shallow to deep, dark enough on white at both ends."""
    places = np.linspace(0.12, 0.82, len(depths)) if len(depths) != 1 else [0.45]
    return {depth: to_hex(colormaps["viridis"](place)) for depth, place in zip(depths, places, strict=True)}


def objective_colours(report: EnvironmentReport) -> dict[str, str]:
    """Returns a colour for each objective that any learner has."""
    names = dict.fromkeys([*report.objectives, *(row.objective for row in report.costs)])
    return dict(zip(names, cycle(_OBJECTIVE_COLOURS), strict=False))


def time_at_goal(report: EnvironmentReport, seeds: int, brief: bool = False) -> Heatmap:
    """Returns the matrix; a cell with fewer than `seeds` says so. `brief`: texts have no interval."""
    cells = {}
    for cell in report.cells:
        final = cell.time_at_goal
        shown = text.lines(
            text.number(final.value) + (text.MARKED if cell.marks else ""),
            "" if brief else text.interval(final.interval),
            f"{len(cell.seeds)} of {seeds} seeds" if len(cell.seeds) < seeds else "",
        )
        hover = text.lines(
            f"collector depth {cell.collector_depth}, learner depth {cell.learner_depth}",
            f"time at goal {text.with_interval(final)} of {report.episode_length} steps",
            f"success {text.with_interval(cell.success_rate)}",
            f"mean over training {text.with_interval(cell.area)}",
            f"seeds {', '.join(map(str, cell.seeds))}",
            *cell.marks,
        )
        cells[cell.collector_depth, cell.learner_depth] = HeatCell(final.value, shown, hover)
    return _heatmap(report, cells, signed=False)


def differences(report: EnvironmentReport, brief: bool = False) -> Heatmap:
    """Returns the matrix minus its shallowest learner depth. `brief`: texts have no interval."""
    cells = {}
    for each in report.differences:
        final, area = each.time_at_goal, each.area
        hover = text.lines(
            f"collector depth {each.collector_depth}: learner depth {each.deeper} minus {each.shallower}",
            f"at the end {text.difference(final)}, higher in {text.wins(final)}",
            f"mean over training {text.difference(area)}, higher in {text.wins(area)}",
        )
        shown = text.lines(text.signed(final.mean), "" if brief else text.interval(final.interval))
        cells[each.collector_depth, each.deeper] = HeatCell(final.mean, shown, hover)
    return _heatmap(report, cells, signed=True)


def _heatmap(report: EnvironmentReport, cells: Mapping[tuple[int, int], HeatCell], signed: bool) -> Heatmap:
    rows, columns = report.collector_depths, report.learner_depths[1:] if signed else report.learner_depths
    largest = max([1e-9, *(abs(cell.value) for cell in cells.values())])
    colours, lowest = ("RdBu", -largest) if signed else ("viridis", 0)
    grid = [[cells.get((row, column), MISSING) for column in columns] for row in rows]
    return Heatmap(rows, columns, grid, colours, (lowest, largest))


def depth_curves(report: EnvironmentReport) -> dict[str, list[Line]]:
    """Returns title -> lines: time at goal by learner depth for each objective, a chart for each collector depth."""
    colours = objective_colours(report)
    charts = {}
    for collector_depth in report.collector_depths:
        lines = []
        for objective in report.objectives:
            cells = [
                cell for cell in report.cells if (cell.collector_depth, cell.objective) == (collector_depth, objective)
            ]
            finals = [cell.time_at_goal for cell in cells]
            intervals = [
                (each.interval.low, each.interval.high) if each.interval else (math.nan,) * 2 for each in finals
            ]
            low, high = np.reshape(intervals, (-1, 2)).T
            x, y = np.array([cell.learner_depth for cell in cells]), np.array([each.value for each in finals])
            lines.append(Line(objective, x, y, colours[objective], (low, high)))
        charts[f"collector depth {collector_depth}"] = [line for line in lines if len(line.x)]
    return {title: lines for title, lines in charts.items() if lines}


class GoalMap(NamedTuple):
    """Success by goal at a place of the matrix, on the map of a maze.

    `success` `[rows, columns]`: NaN where no goal lies. `episodes` `[rows, columns]`. `walls` `[rows, columns]` bool.
    """

    learner: str
    success: Values
    episodes: Values
    walls: Values


def goal_maps(report: EnvironmentReport) -> dict[str, list[GoalMap]]:
    """Returns title -> maps: a row of maps for each objective and collector depth, deep collectors first."""
    walls = report.behaviour.walls
    if walls is None:
        return {}
    return {
        title: [_goal_map(each, walls) for each in goals]
        for title, goals in _goals_by_collector(report, deep_first=True)
    }


def goal_bands(report: EnvironmentReport) -> tuple[dict[str, list[Line]], dict[int, str]]:
    """Returns title -> lines: success in percent by band of distance, and the name of each band; empty in mazes."""
    if report.behaviour.walls is not None or not report.behaviour.goals:
        return {}, {}
    goals = report.behaviour.goals
    names = {place[1]: name for each in goals for place, name in zip(each.places, each.names, strict=True)}
    colours = depth_colours(sorted({each.learner_depth for each in goals if not each.active}))
    lines = {
        title: [
            Line(
                _learner_name(each),
                np.array([place[1] for place in each.places], float),
                100 * each.success,
                ACTIVE_COLOUR if each.active else colours[each.learner_depth],
                dashed=each.active,
            )
            for each in held
        ]
        for title, held in _goals_by_collector(report, deep_first=False)
    }
    return lines, dict(sorted(names.items()))


def _goals_by_collector(report: EnvironmentReport, deep_first: bool) -> Iterator[tuple[str, list[Goals]]]:
    """Yields a title, and the goals of an objective's learners and of the collector learner at a collector depth."""
    for objective in report.objectives:
        for depth in sorted(report.collector_depths, reverse=deep_first):
            held = [
                each
                for each in report.behaviour.goals
                if each.collector_depth == depth and (each.active or each.objective == objective)
            ]
            if held:
                yield f"{objective}, collector depth {depth}" if report.several else f"collector depth {depth}", held


def _goal_map(goals: Goals, walls: Values) -> GoalMap:
    success, episodes = np.full(walls.shape, np.nan), np.zeros(walls.shape)
    for place, share, count in zip(goals.places, goals.success, goals.episodes, strict=True):
        if all(0 <= at < size for at, size in zip(place, walls.shape, strict=True)):
            success[place], episodes[place] = share, count
    return GoalMap(_learner_name(goals), success, episodes, walls)


def _learner_name(goals: Goals) -> str:
    return "collector learner" if goals.active else f"learner {goals.learner_depth}"


def success_colour(share: float) -> str:
    """Returns the colour of a goal that is reached in this share of episodes."""
    return to_hex(colormaps["viridis"](share))


def learning_curves(report: EnvironmentReport, by_steps: bool) -> dict[str, list[Line]]:
    """Returns title -> lines: a chart for each collector depth; with several depths also one of all collector learners.

    With several objectives there is a chart for each objective and collector depth. `by_steps`: environment steps along
    x, otherwise minutes of wall clock.
    """
    curves = [curve for curve in report.curves if by_steps or curve.by_seconds]
    active = [curve for curve in curves if curve.active]
    colours = depth_colours(sorted({curve.learner_depth for curve in report.curves if not curve.active}))
    charts = {}
    for objective in report.objectives if colours else ():
        for depth in report.collector_depths:
            charts[f"{objective}, collector depth {depth}" if report.several else f"collector depth {depth}"] = [
                _line(curve, by_steps, ACTIVE_COLOUR if curve.active else colours[curve.learner_depth])
                for curve in curves
                if curve.collector_depth == depth and (curve.active or curve.objective == objective)
            ]
    if len(active) > 1 or not colours:
        colours = depth_colours([curve.learner_depth for curve in active])
        lines = [_line(curve, by_steps, colours[curve.learner_depth]) for curve in active]
        charts["collector learners: ordinary training"] = lines
    return {title: lines for title, lines in charts.items() if lines}


def _line(curve: Curve, by_steps: bool, colour: str) -> Line:
    name = f"active {curve.learner_depth}" if curve.active else f"depth {curve.learner_depth}"
    x, band = (curve.steps, curve.by_steps) if by_steps else (curve.seconds / 60, curve.by_seconds)
    assert band
    return thinned(Line(name, x, band.centre, colour, (band.low, band.high), dashed=curve.active))


def coverage(report: EnvironmentReport) -> list[Line]:
    """Returns the share of cells visited, in percent, by environment steps."""
    colours = depth_colours(report.collector_depths)
    lines = []
    for each in report.explored:
        depth = each.collector_depth
        lines.append(Line(f"collector depth {depth}", each.steps, 100 * each.by_steps.centre, colours[depth]))
    return lines


def cost_depths(report: EnvironmentReport) -> list[int]:
    return sorted({cost.learner_depth for cost in report.costs})


def costs(report: EnvironmentReport) -> dict[str, dict[str, list[float]]]:
    """Returns two bar charts: title -> objective -> value at each of `cost_depths`, NaN where there is no learner."""
    depths = cost_depths(report)
    parameters: dict[str, list[float]] = {each.objective: [math.nan] * len(depths) for each in report.costs}
    rates: dict[str, list[float]] = {each.objective: [math.nan] * len(depths) for each in report.costs}
    for cost in report.costs:
        index = depths.index(cost.learner_depth)
        parameters[cost.objective][index] = cost.parameters
        rates[cost.objective][index] = cost.gradient_steps_per_second.value
    return {"parameters": parameters, "gradient steps per second": rates}
