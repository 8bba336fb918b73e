"""Figures of a report for papers, drawn by matplotlib; `figures.py` draws the same charts for the page."""

from collections.abc import Iterable, Iterator

import matplotlib
import numpy as np

from deploy.report import charts, profiles
from deploy.report.aggregate import Aggregates
from deploy.report.charts import ACTIVE_COLOUR, INK, Heatmap, Line
from deploy.report.contents import EnvironmentReport, Report

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

_MAX_COLUMNS = 4  # of a figure with charts of several objectives
_BAR_WIDTH = 0.6


def make_figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Yields all figures, each after its name as a file."""
    for environment in report.envs:
        if environment.curves:
            yield from _figures(environment, len(report.seeds)).items()
    if report.aggregates.algorithms:
        yield "profiles", _profiles(report.aggregates)


def _figures(report: EnvironmentReport, seeds: int) -> dict[str, Figure]:
    """Returns the figures of one environment by their names as files."""
    drawn = {"curves": _curves(report)}
    if report.headline:  # the collectors and their costs are the same in every environment of the evaluation
        drawn["exploration_and_cost"] = _coverage_and_costs(report)
    if report.several and report.cells:
        drawn["depth_curves"] = _depth_curves(report)
    for figure in drawn.values():
        _open_axes(figure)
    if goals := _goals(report):
        drawn["goals"] = goals
    if report.cells and not report.several:
        drawn["matrix"] = _matrix(report, seeds)
    return {f"{report.env.replace(':', '.')}-{name}": figure for name, figure in drawn.items()}


def _open_axes(figure: Figure) -> None:
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)


def _matrix(report: EnvironmentReport, seeds: int) -> Figure:
    """Draws time at goal, and with several learner depths what depth adds to it."""
    heatmaps = {"time at goal": charts.time_at_goal(report, seeds)}
    if len(report.learner_depths) > 1:
        heatmaps[f"minus that of depth {report.learner_depths[0]}"] = charts.differences(report)
    widths = [len(chart.columns) for chart in heatmaps.values()]
    size = 2.2 + 1.5 * sum(widths), 1.6 + 0.9 * len(report.collector_depths)
    figure = pyplot.figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for axis, (title, chart) in zip(axes, heatmaps.items(), strict=True):
        _heatmap(axis, chart)
        axis.set_title(title, fontsize=10)
    return figure


def _heatmap(axis: Axes, chart: Heatmap) -> None:
    low, high = chart.limits
    values = np.array([[cell.value for cell in row] for row in chart.cells])
    image = axis.imshow(values, cmap=chart.colours, vmin=low, vmax=high, origin="lower", aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        lightness = np.dot(image.to_rgba(value)[:3], (0.299, 0.587, 0.114))  # as it is perceived
        colour = ACTIVE_COLOUR if np.isnan(value) else INK if lightness > 0.5 else "white"
        shown = chart.cells[y][x].text.replace("<br>", "\n")
        axis.text(x, y, shown, ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(chart.columns)), map(str, chart.columns))
    axis.set_yticks(range(len(chart.rows)), map(str, chart.rows))
    axis.set(xlabel="learner depth", ylabel="collector depth")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _depth_curves(report: EnvironmentReport) -> Figure:
    """Draws time at goal by learner depth for each objective, a panel for each collector depth."""
    drawn = charts.depth_curves(report)
    figure, axes = pyplot.subplots(
        1, len(drawn), figsize=(1 + 4 * len(drawn), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, lines) in zip(axes[0], drawn.items(), strict=True):
        _plot(axis, lines)
        axis.set_xscale("log", base=2)
        axis.set_xticks(report.learner_depths, map(str, report.learner_depths))
        axis.minorticks_off()
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="learner depth")
        axis.legend(frameon=False, fontsize=8)
    axes[0, 0].set(ylabel="time at goal", ylim=(0, None))  # after all panels are drawn, whose y is shared
    return figure


def _goals(report: EnvironmentReport) -> Figure | None:
    """Draws success by goal: maps of a maze, or lines over bands of distance; None without episodes."""
    maps = charts.goal_maps(report)
    if not maps:
        return _goal_bands(report)
    columns = max(map(len, maps.values()))
    figure, axes = pyplot.subplots(
        len(maps), columns, figsize=(1 + 1.9 * columns, 0.4 + 2.1 * len(maps)), squeeze=False, layout="constrained"
    )
    image = None
    for row, (title, held) in zip(axes, maps.items(), strict=True):
        row[0].set_ylabel(title, fontsize=8)
        for axis in row[len(held) :]:
            axis.remove()
        for axis, each in zip(row, held, strict=False):
            axis.imshow(np.where(each.walls, 1.0, np.nan), cmap="Greys", vmin=0, vmax=2)
            image = axis.imshow(each.success, cmap="viridis", vmin=0, vmax=1)
            axis.set_title(each.learner, fontsize=8)
            axis.set(xticks=[], yticks=[])
    if image is not None:
        figure.colorbar(image, ax=figure.axes, label="goals reached", shrink=0.7)
    return figure


def _goal_bands(report: EnvironmentReport) -> Figure | None:
    drawn, names = charts.goal_bands(report)
    if not drawn:
        return None
    figure, axes = pyplot.subplots(
        1, len(drawn), figsize=(1 + 4 * len(drawn), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, lines) in zip(axes[0], drawn.items(), strict=True):
        _plot(axis, [line._replace(ends=None) for line in lines])
        axis.set_xticks([*names], [*names.values()])
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="shortest path to the goal")
        axis.legend(frameon=False, fontsize=8)
    axes[0, 0].set(ylabel="goals reached, %", ylim=(0, 105))
    return figure


def _curves(report: EnvironmentReport) -> Figure:
    """Draws two panels for each chart: by environment steps above, by wall clock below."""
    by_steps, by_seconds = (charts.learning_curves(report, by_steps) for by_steps in (True, False))
    columns = min(len(by_steps), _MAX_COLUMNS) if report.several else len(by_steps)
    rows = -(-len(by_steps) // columns)
    size = 1 + 3.4 * columns, 5.6 * rows
    figure, axes = pyplot.subplots(2 * rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    pairs = [(axes[2 * row, column], axes[2 * row + 1, column]) for row in range(rows) for column in range(columns)]
    for axis in (axis for pair in pairs[len(by_steps) :] for axis in pair):
        axis.remove()
    for (above, below), (title, lines) in zip(pairs, by_steps.items(), strict=False):
        _plot(above, lines)
        _plot(below, by_seconds.get(title, []))
        above.set_title(title, fontsize=10)
        _label_steps(above)
        below.set(xlabel="wall clock in minutes")
    pyplot.setp(axes[:, 0], ylabel="time at goal")
    return figure


def _profiles(aggregates: Aggregates) -> Figure:
    drawn = profiles.profiles(aggregates)
    columns = min(len(drawn), _MAX_COLUMNS)
    rows = -(-len(drawn) // columns)
    size = 1 + 3.4 * columns, 3.2 * rows
    figure, axes = pyplot.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis in axes.flat[len(drawn) :]:
        axis.remove()
    for axis, (title, lines) in zip(axes.flat, drawn.items(), strict=False):
        _plot(axis, lines)
        axis.set_title(title, fontsize=10)
        axis.set(xlabel=profiles.X_LABEL)
        axis.legend(frameon=False, fontsize=8)
    pyplot.setp(axes[:, 0], ylabel=profiles.Y_LABEL)
    _open_axes(figure)
    return figure


def _coverage_and_costs(report: EnvironmentReport) -> Figure:
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    _plot(axes[0], charts.coverage(report))
    axes[0].set(ylabel="cells visited, %", ylim=(0, 105))
    _label_steps(axes[0])
    depths, colours = charts.cost_depths(report), charts.objective_colours(report)
    for axis, (title, series) in zip(axes[1:], charts.costs(report).items(), strict=True):
        width = _BAR_WIDTH / len(series)
        for index, (objective, values) in enumerate(series.items()):
            places = np.arange(len(depths)) + (index + 0.5) * width - _BAR_WIDTH / 2
            axis.bar(places, values, width, label=objective, color=colours[objective] if report.mixed else None)
        axis.set_xticks(range(len(depths)), map(str, depths))
        axis.set(xlabel="depth", ylabel=title)
        if report.mixed:
            axis.legend(frameon=False, fontsize=8)
    return figure


def _plot(axis: Axes, lines: Iterable[Line]) -> None:
    for line in lines:
        style, marker = "--" if line.dashed else "-", "o" if line.ends and line.markers else ""
        axis.plot(line.x, line.y, style, color=line.colour, label=line.name, marker=marker, markersize=3)
        if line.ends:
            axis.fill_between(line.x, *line.ends, color=line.colour, alpha=0.18, linewidth=0)


def _label_steps(axis: Axes) -> None:
    """Labels x and the lines. Thousands are written as 150k: whole numbers would overlap."""
    axis.set_xlabel("environment steps")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axis.lines:
        axis.legend(frameon=False, fontsize=8)
