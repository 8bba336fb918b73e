"""The page's figures, drawn by plotly; `files.py` draws the same for print."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from deploy.report import text
from deploy.report.contents import Cell, Comparison, Curve, EnvironmentReport
from deploy.report.drawing import ACTIVE_COLOUR, INK, depth_colours, grid, panels
from deploy.report.statistics import Band

_GRID = "#e6e8ec"
_MOST_WITH_INTERVALS = 4  # columns; of more, a phone's cell has room for the value alone


def figures(report: EnvironmentReport, seeds: int) -> dict[str, list[go.Figure]]:
    """Every figure of one environment by the section it belongs to; sections without results are empty."""
    return {
        "matrix": [_matrix(report, seeds)] if report.cells else [],
        "difference": [_difference(report)] if report.differences else [],
        "by_steps": _curves(report, by_steps=True),
        "by_seconds": _curves(report, by_steps=False),
        "coverage": [_coverage(report)] if report.explored else [],
        "cost": _costs(report) if report.costs else [],
    }


def _matrix(report: EnvironmentReport, seeds: int) -> go.Figure:
    brief = len(report.learner_depths) > _MOST_WITH_INTERVALS
    cells = {(cell.collector_depth, cell.learner_depth): cell for cell in report.cells}
    values = {place: cell.time_at_goal.value for place, cell in cells.items()}
    return _heatmap(
        report.collector_depths,
        report.learner_depths,
        values,
        {place: text.cell_text(cell, seeds, brief) for place, cell in cells.items()},
        {place: _describe(cell, report) for place, cell in cells.items()},
        colorscale="Viridis",
        zmin=0,
        zmax=max(*values.values(), 1e-9),
        colorbar_title="steps",
    )


def _describe(cell: Cell, report: EnvironmentReport) -> str:
    lines = [
        f"collector depth {cell.collector_depth}, learner depth {cell.learner_depth}",
        f"time at goal {text.with_interval(cell.time_at_goal)} of {report.episode_length} steps",
        f"success {text.with_interval(cell.success_rate)}",
        f"mean over training {text.with_interval(cell.area)}",
        f"seeds {', '.join(map(str, cell.seeds))}",
        *cell.marks,
    ]
    return "<br>".join(lines)


def _difference(report: EnvironmentReport) -> go.Figure:
    deeper = report.learner_depths[1:]
    brief = len(deeper) > _MOST_WITH_INTERVALS
    cells = {(each.collector_depth, each.deeper): each for each in report.differences}
    values = {place: each.time_at_goal.mean for place, each in cells.items()}
    largest = max(max(abs(value) for value in values.values()), 1e-9)
    return _heatmap(
        report.collector_depths,
        deeper,
        values,
        {place: text.difference_text(each, brief) for place, each in cells.items()},
        {place: _describe_difference(each) for place, each in cells.items()},
        colorscale="RdBu",
        zmin=-largest,
        zmax=largest,
        colorbar_title="steps",
    )


def _describe_difference(each: Comparison) -> str:
    return (
        f"collector depth {each.collector_depth}: learner depth {each.deeper} minus {each.shallower}<br>"
        f"at the end {text.difference(each.time_at_goal)}, higher in {text.wins(each.time_at_goal)}<br>"
        f"mean over training {text.difference(each.area)}, higher in {text.wins(each.area)}"
    )


def _heatmap(
    rows: Sequence[int],
    columns: Sequence[int],
    values: dict[tuple[int, int], float],
    texts: dict[tuple[int, int], str],
    hovers: dict[tuple[int, int], str],
    **scale: Any,
) -> go.Figure:
    title = scale.pop("colorbar_title")
    figure = go.Figure(
        go.Heatmap(
            x=[str(depth) for depth in columns],
            y=[str(depth) for depth in rows],
            z=grid(rows, columns, values),
            text=[[texts.get((row, column), "") for column in columns] for row in rows],
            texttemplate="%{text}",
            hovertext=[[hovers.get((row, column), "missing") for column in columns] for row in rows],
            hoverinfo="text",
            xgap=3,
            ygap=3,
            colorbar={"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0},
            **scale,
        )
    )
    _missing(figure, rows, columns, values)
    _lay_out(figure, "learner depth", "collector depth", height=110 + 76 * len(rows))
    figure.update_xaxes(type="category", showgrid=False, showline=False, ticks="")
    figure.update_yaxes(type="category", showgrid=False, showline=False, ticks="", rangemode="normal")
    return figure


def _missing(
    figure: go.Figure, rows: Sequence[int], columns: Sequence[int], values: dict[tuple[int, int], float]
) -> None:
    """Plotly writes nothing into a cell without a value; a reader must see that one is due."""
    for row in rows:
        for column in columns:
            if (row, column) not in values:
                figure.add_annotation(
                    x=str(column), y=str(row), text="missing", showarrow=False, font={"color": ACTIVE_COLOUR}
                )


def _curves(report: EnvironmentReport, by_steps: bool) -> list[go.Figure]:
    """One figure for each collector depth, and one of all collector learners; all of one height."""
    shown = [curve for curve in report.curves if by_steps or curve.by_seconds is not None]
    tops = [np.nanmax([band.centre, band.high]) for curve in shown if (band := _band(curve, by_steps))]
    made = []
    for title, curves, colours in panels(report, shown):
        figure = go.Figure()
        for curve in curves:
            _add_band(figure, curve, by_steps, colours[curve])
        x = "environment steps" if by_steps else "wall clock in minutes"
        _lay_out(figure, x, "time at goal", height=340, title=title)
        figure.update_yaxes(range=[0, 1.05 * max(*tops, 1e-9)])
        made.append(figure)
    return made


def _band(curve: Curve, by_steps: bool) -> Band | None:
    return curve.by_steps if by_steps else curve.by_seconds


def _add_band(figure: go.Figure, curve: Curve, by_steps: bool, colour: str) -> None:
    band = _band(curve, by_steps)
    assert band is not None
    x = curve.steps if by_steps else curve.seconds / 60
    name = text.curve_name(curve)
    if not np.isnan(band.low).any():
        figure.add_trace(
            go.Scatter(
                x=np.concatenate([x, x[::-1]]).tolist(),
                y=np.concatenate([band.high, band.low[::-1]]).tolist(),
                fill="toself",
                fillcolor=colour,
                opacity=0.18,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=name,
                mode="lines",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=x.tolist(),
            y=band.centre.tolist(),
            name=name,
            legendgroup=name,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": "dash" if curve.active else "solid"},
            marker={"size": 5},
            hovertemplate=f"{name}: %{{y:.1f}}<extra></extra>",
        )
    )


def _coverage(report: EnvironmentReport) -> go.Figure:
    figure = go.Figure()
    colours = depth_colours(report.collector_depths)
    for each in report.explored:
        figure.add_trace(
            go.Scatter(
                x=each.steps.tolist(),
                y=(100 * each.by_steps.centre).tolist(),
                name=f"collector depth {each.collector_depth}",
                mode="lines",
                line={"color": colours[each.collector_depth], "width": 2},
                hovertemplate="%{y:.0f} %<extra></extra>",
            )
        )
    _lay_out(figure, "environment steps", "cells visited, %", height=340)
    figure.update_yaxes(range=[0, 105])
    return figure


def _costs(report: EnvironmentReport) -> list[go.Figure]:
    depths = [str(cost.learner_depth) for cost in report.costs]
    shown: list[tuple[str, list[float]]] = [
        ("parameters", [cost.parameters for cost in report.costs]),
        ("gradient steps per second", [cost.gradient_steps_per_second.value for cost in report.costs]),
    ]
    made = []
    for title, values in shown:
        figure = go.Figure(
            go.Bar(
                x=depths,
                y=values,
                text=[text.number(value) for value in values],
                marker={"color": "#3b6ea8"},
                hoverinfo="skip",
                width=0.6,
            )
        )
        _lay_out(figure, "depth", title, height=300)
        figure.update_xaxes(type="category")
        figure.update_yaxes(rangemode="tozero")
        made.append(figure)
    return made


def _lay_out(figure: go.Figure, x: str, y: str, height: int, title: str = "") -> None:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 62, "r": 14, "t": 40 if title else 14, "b": 52},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        title={"text": title, "font": {"size": 14}, "x": 0.5, "xanchor": "center"} if title else None,
        legend={"orientation": "h", "y": -0.24, "x": 0, "title": None},
        hovermode="x unified" if title else "closest",
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    figure.update_xaxes(title={"text": x, "standoff": 8}, gridcolor=_GRID, zeroline=False, automargin=True)
    figure.update_yaxes(title={"text": y, "standoff": 8}, gridcolor=_GRID, zeroline=False, automargin=True)
