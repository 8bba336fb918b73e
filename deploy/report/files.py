"""Files of the report: PNG and SVG drawn by matplotlib, the tables as CSV, the whole report as JSON."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from deploy.report import charts
from deploy.report.charts import ACTIVE_COLOUR, INK, Heatmap, Line
from deploy.report.contents import Curve, EnvironmentReport, Report
from shared.files import replace_file, to_json

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

_MAX_COLUMNS = 4  # of a figure with charts of several objectives
_BAR_WIDTH = 0.6
_TABLES = (
    *("cells", "active", "neighbours", "differences", "gains", "objective_gains", "gain_differences"),
    *("critical", "explored", "costs", "fairness"),
)
_FILE_NAMES = {"neighbours": "comparisons", "critical": "critical_depths", "explored": "coverage"}


def write_files(report: Report, folder: Path) -> list[Path]:
    """Writes all files under `folder` and returns them. Raises OSError when the disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    replace_file(path, to_json(asdict(report), indent=1) + "\n", sync=False)
    written = [path, *_write_tables(report, folder)]
    for environment in report.envs:
        if environment.curves:
            written += _draw(environment, len(report.seeds), folder)
    return written


def _write_tables(report: Report, folder: Path) -> list[Path]:
    tables = {
        _FILE_NAMES.get(name, name): [
            {"env": each.env, **_flatten(asdict(row))} for each in report.envs for row in getattr(each, name)
        ]
        for name in _TABLES
    }
    tables["curves"] = [row for each in report.envs for curve in each.curves for row in _points(each.env, curve)]
    written = []
    for name, rows in tables.items():
        if rows:
            written.append(folder / f"{name}.csv")
            text = io.StringIO(newline="")
            csv.writer(text).writerows([rows[0], *(map(_known, row.values()) for row in rows)])
            replace_file(written[-1], text.getvalue(), sync=False)
    return written


def _known(value: Any) -> Any:
    """Returns None, an empty cell, for NaN."""
    return None if isinstance(value, float) and np.isnan(value) else value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns `{"area": {"value": 1, "interval": None}}` into `{"area_value": 1, "area_low": None, "area_high": None}`.

    Leaves out series: they have a table of their own.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key == "interval":
            flat |= {f"{prefix}{end}": value[end] if value else None for end in ("low", "high")}
        elif isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}_")
        elif isinstance(value, tuple):
            flat[f"{prefix}{key}"] = "; ".join(map(str, value))
        elif not isinstance(value, np.ndarray):
            flat[f"{prefix}{key}"] = value
    return flat


def _points(env: str, curve: Curve) -> Iterable[dict[str, Any]]:
    band = curve.by_steps
    for step, centre, low, high in zip(curve.steps, band.centre, band.low, band.high, strict=True):
        yield {
            "env": env,
            "objective": curve.objective,
            "collector_depth": curve.collector_depth,
            "learner_depth": curve.learner_depth,
            "active": curve.active,
            "env_steps": int(step),
            "time_at_goal": centre,
            "low": low,
            "high": high,
            "seeds": len(curve.seeds),
        }


def _draw(report: EnvironmentReport, seeds: int, folder: Path) -> list[Path]:
    drawn = {"curves": _curves(report), "exploration_and_cost": _coverage_and_costs(report)}
    if report.several and report.cells:
        drawn["depth_curves"] = _depth_curves(report)
    for axis in (axis for figure in drawn.values() for axis in figure.axes):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if report.cells and not report.several:
        drawn["matrix"] = _matrix(report, seeds)
    written = []
    for name, figure in drawn.items():
        for suffix in ("png", "svg"):
            path = folder / f"{report.env.replace(':', '.')}-{name}.{suffix}"
            picture, metadata = io.BytesIO(), {"Date": None} if suffix == "svg" else None
            figure.savefig(picture, format=suffix, dpi=150, metadata=metadata)
            replace_file(path, picture.getvalue(), sync=False)
            written.append(path)
        pyplot.close(figure)
    return written


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
        style, marker = "--" if line.dashed else "-", "o" if line.ends else ""
        axis.plot(line.x, line.y, style, color=line.colour, label=line.name, marker=marker, markersize=3)
        if line.ends:
            axis.fill_between(line.x, *line.ends, color=line.colour, alpha=0.18, linewidth=0)


def _label_steps(axis: Axes) -> None:
    """Labels x and the lines. Thousands are written as 150k: whole numbers would overlap."""
    axis.set_xlabel("environment steps")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axis.lines:
        axis.legend(frameon=False, fontsize=8)
