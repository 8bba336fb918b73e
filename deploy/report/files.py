"""The report's files: PNG and SVG drawn by matplotlib, the tables as CSV, everything as JSON."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from deploy.report import text
from deploy.report.contents import Curve, EnvironmentReport, Report
from deploy.report.drawing import ACTIVE_COLOUR, INK, depth_colours, grid, panels
from deploy.report.read import Values
from deploy.report.statistics import Band

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter


def write_files(report: Report, folder: Path) -> list[Path]:
    """Everything under `folder`; returns what was written. Raises OSError when the disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [_write_json(report, folder / "report.json")]
    written += _write_tables(report, folder)
    for environment in report.envs:
        if environment.curves:
            written += _draw(environment, len(report.seeds), folder)
    return written


def plain(value: Any) -> Any:
    """`value` in JSON's own types; what is no finite number becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(report: Report, path: Path) -> Path:
    path.write_text(json.dumps(plain(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _write_tables(report: Report, folder: Path) -> list[Path]:
    tables: dict[str, list[tuple[str, Any]]] = {
        "cells": [(each.env, cell) for each in report.envs for cell in each.cells],
        "active": [(each.env, cell) for each in report.envs for cell in each.active],
        "comparisons": [(each.env, row) for each in report.envs for row in each.neighbours],
        "differences": [(each.env, row) for each in report.envs for row in each.differences],
        "gains": [(each.env, row) for each in report.envs for row in each.gains],
        "critical_depths": [(each.env, row) for each in report.envs for row in each.critical],
        "coverage": [(each.env, row) for each in report.envs for row in each.explored],
        "costs": [(each.env, row) for each in report.envs for row in each.costs],
        "fairness": [(each.env, row) for each in report.envs for row in each.fairness],
    }
    flat = {name: [{"env": env, **_flatten(asdict(row))} for env, row in rows] for name, rows in tables.items()}
    flat["curves"] = [row for each in report.envs for curve in each.curves for row in _points(each.env, curve)]
    return [_write_table(folder / f"{name}.csv", rows) for name, rows in flat.items() if rows]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"area": {"value": 1, "interval": None}}` -> `{"area_value": 1, "area_low": None, "area_high": None}`.

    Series are left out; they have a table of their own.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key == "interval":
            flat |= {f"{prefix}{end}": value[end] if value else None for end in ("low", "high")}
        elif isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}_")
        elif isinstance(value, (list, tuple)):
            flat[f"{prefix}{key}"] = "; ".join(map(str, value))
        elif not isinstance(value, np.ndarray):
            flat[f"{prefix}{key}"] = value
    return flat


def _points(env: str, curve: Curve) -> Iterable[dict[str, Any]]:
    band = curve.by_steps
    for step, centre, low, high in zip(curve.steps, band.centre, band.low, band.high, strict=True):
        yield {
            "env": env,
            "collector_depth": curve.collector_depth,
            "learner_depth": curve.learner_depth,
            "active": curve.active,
            "env_steps": int(step),
            "time_at_goal": centre,
            "low": None if np.isnan(low) else low,
            "high": None if np.isnan(high) else high,
            "seeds": len(curve.seeds),
        }


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def _draw(report: EnvironmentReport, seeds: int, folder: Path) -> list[Path]:
    drawn = {"curves": _curves(report), "exploration_and_cost": _bars(report)}
    if report.cells:
        drawn["matrix"] = _matrix(report, seeds)
    written = []
    for name, figure in drawn.items():
        for suffix in ("png", "svg"):
            path = folder / f"{report.env.replace(':', '.')}-{name}.{suffix}"
            figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
            written.append(path)
        pyplot.close(figure)
    return written


def _matrix(report: EnvironmentReport, seeds: int) -> Figure:
    """Time at goal, and deep minus shallow."""
    columns, deeper, rows = report.learner_depths, report.learner_depths[1:], report.collector_depths
    widths = [len(columns), max(len(deeper), 1)][: 2 if deeper else 1]
    figure, axes = pyplot.subplots(
        1,
        len(widths),
        figsize=(2.2 + 1.5 * sum(widths), 1.6 + 0.9 * len(rows)),
        width_ratios=widths,
        squeeze=False,
        layout="constrained",
    )
    cells = {(cell.collector_depth, cell.learner_depth): cell for cell in report.cells}
    values = {place: cell.time_at_goal.value for place, cell in cells.items()}
    texts = {place: text.cell_text(cell, seeds, brief=False) for place, cell in cells.items()}
    _heatmap(axes[0, 0], rows, columns, values, texts, "viridis", (0, max(*values.values(), 1e-9)))
    axes[0, 0].set_title("time at goal", fontsize=10)
    if deeper:
        compared = {(each.collector_depth, each.deeper): each for each in report.differences}
        changes = {place: each.time_at_goal.mean for place, each in compared.items()}
        largest = max([1e-9, *map(abs, changes.values())])
        texts = {place: text.difference_text(each, brief=False) for place, each in compared.items()}
        _heatmap(axes[0, 1], rows, deeper, changes, texts, "RdBu", (-largest, largest))
        axes[0, 1].set_title(f"minus that of depth {columns[0]}", fontsize=10)
    return figure


def _heatmap(
    axis: Axes,
    rows: Sequence[int],
    columns: Sequence[int],
    values: dict[tuple[int, int], float],
    texts: dict[tuple[int, int], str],
    colours: str,
    limits: tuple[float, float],
) -> None:
    table = np.array(grid(rows, columns, values), np.float64)
    image = axis.imshow(table, cmap=colours, vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            place = (row, column)
            colour = _readable(image.to_rgba(table[y, x])) if place in values else ACTIVE_COLOUR
            written = texts.get(place, "missing").replace("<br>", "\n")
            axis.text(x, y, written, ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(columns)), [str(depth) for depth in columns])
    axis.set_yticks(range(len(rows)), [str(depth) for depth in rows])
    axis.set_xlabel("learner depth")
    axis.set_ylabel("collector depth")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _readable(background: Any) -> str:
    """Ink or white, whichever stands out: perceived lightness of red, green and blue."""
    red, green, blue, *_ = background
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _curves(report: EnvironmentReport) -> Figure:
    """By environment steps above, by wall clock below; a column for each panel."""
    drawn = panels(report, report.curves)
    figure, axes = pyplot.subplots(
        2, len(drawn), figsize=(1 + 3.4 * len(drawn), 5.6), sharey=True, squeeze=False, layout="constrained"
    )
    for (above, below), (title, curves, colours) in zip(axes.T, drawn, strict=True):
        for curve in curves:
            _line(above, curve, curve.steps, curve.by_steps, colours[curve])
            if curve.by_seconds is not None:
                _line(below, curve, curve.seconds / 60, curve.by_seconds, colours[curve])
        above.set(title=title, xlabel="environment steps")
        above.xaxis.set_major_formatter(EngFormatter(sep=""))  # 150k: whole numbers run into each other
        below.set(xlabel="wall clock in minutes")
        above.title.set_fontsize(10)
        above.legend(frameon=False, fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("time at goal")
    for axis in axes.flat:
        _tidy(axis)
    return figure


def _line(axis: Axes, curve: Curve, x: Values, band: Band, colour: str) -> None:
    style = "--" if curve.active else "-"
    axis.plot(x, band.centre, style, color=colour, label=text.curve_name(curve), marker="o", markersize=3)
    axis.fill_between(x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)


def _bars(report: EnvironmentReport) -> Figure:
    """Coverage by environment steps; parameters and speed by depth."""
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    colours = depth_colours(report.collector_depths)
    for each in report.explored:
        style = {"color": colours[each.collector_depth], "label": f"collector depth {each.collector_depth}"}
        axes[0].plot(each.steps, 100 * each.by_steps.centre, **style)
    axes[0].set(xlabel="environment steps", ylabel="cells visited, %", ylim=(0, 105))
    axes[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[0].legend(frameon=False, fontsize=8)
    depths = [str(cost.learner_depth) for cost in report.costs]
    axes[1].bar(depths, [cost.parameters for cost in report.costs], width=0.6)
    axes[1].set(xlabel="depth", ylabel="parameters")
    axes[2].bar(depths, [cost.gradient_steps_per_second.value for cost in report.costs], width=0.6)
    axes[2].set(xlabel="depth", ylabel="gradient steps per second")
    for axis in axes:
        _tidy(axis)
    return figure


def _tidy(axis: Axes) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
