"""Figures of the page, drawn by plotly; `files.py` draws the same charts by matplotlib."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from deploy.report import charts, profiles, text
from deploy.report.aggregate import Aggregates
from deploy.report.charts import INK, Heatmap, Line
from deploy.report.contents import EnvironmentReport

_GRID = "#e6e8ec"
_BARS = {"marker_color": "#3b6ea8", "width": 0.6}
_CELLS = {"texttemplate": "%{text}", "hoverinfo": "text", "xgap": 3, "ygap": 3}
_COLOUR_BAR = {"title": {"text": "steps", "side": "right"}, "thickness": 12, "outlinewidth": 0}
_BAND = {"mode": "lines", "fill": "toself", "opacity": 0.18, "line_width": 0, "hoverinfo": "skip", "showlegend": False}
_MAX_COLUMNS_WITH_INTERVALS = 4  # with more, a cell on a phone has room for the value alone


def figures(report: EnvironmentReport, seeds: int) -> dict[str, list[go.Figure]]:
    """Returns the figures of one environment by section of the page; a section without results is empty."""
    brief_matrix = len(report.learner_depths) > _MAX_COLUMNS_WITH_INTERVALS
    brief_difference = len(report.learner_depths) - 1 > _MAX_COLUMNS_WITH_INTERVALS
    coverage = charts.coverage(report)
    one = not report.several
    return {
        "depth": _depth_curves(report) if report.several else [],
        "matrix": [_heatmap(charts.time_at_goal(report, seeds, brief_matrix))] if one and report.cells else [],
        "difference": [_heatmap(charts.differences(report, brief_difference))] if one and report.differences else [],
        "goals": _goal_bands(report),
        "by_steps": _curves(report, by_steps=True),
        "by_seconds": _curves(report, by_steps=False),
        "coverage": [_chart(coverage, "environment steps", "cells visited, %", 105, unit=" %")] if coverage else [],
        "cost": _costs(report) if report.costs else [],
    }


def profile_figures(aggregates: Aggregates) -> list[go.Figure]:
    drawn = profiles.profiles(aggregates)
    return [_chart(lines, profiles.X_LABEL, profiles.Y_LABEL, 102, title, " %") for title, lines in drawn.items()]


def _heatmap(chart: Heatmap) -> go.Figure:
    figure = go.Figure(
        go.Heatmap(
            x=[str(depth) for depth in chart.columns],
            y=[str(depth) for depth in chart.rows],
            z=[[cell.value for cell in row] for row in chart.cells],
            text=[[cell.text for cell in row] for row in chart.cells],
            hovertext=[[cell.hover for cell in row] for row in chart.cells],
            colorbar=_COLOUR_BAR,
            colorscale=chart.colours,
            zmin=chart.limits[0],
            zmax=chart.limits[1],
            **_CELLS,
        )
    )
    _lay_out(figure, "learner depth", "collector depth", height=110 + 76 * len(chart.rows))
    figure.update_xaxes(type="category", showgrid=False, showline=False, ticks="")
    figure.update_yaxes(type="category", showgrid=False, showline=False, ticks="", rangemode="normal")
    return figure


def _curves(report: EnvironmentReport, by_steps: bool) -> list[go.Figure]:
    """Returns one figure for each chart, all with the same range of y."""
    drawn = charts.learning_curves(report, by_steps)
    x = "environment steps" if by_steps else "wall clock in minutes"
    return [_chart(lines, x, "time at goal", _top(drawn), title) for title, lines in drawn.items()]


def _depth_curves(report: EnvironmentReport) -> list[go.Figure]:
    """Returns one figure for each collector depth. A step along x doubles the depth."""
    drawn = charts.depth_curves(report)
    made = []
    for title, lines in drawn.items():
        figure = _chart(lines, "learner depth", "time at goal", _top(drawn), title)
        ticks = {"tickvals": report.learner_depths, "ticktext": [str(depth) for depth in report.learner_depths]}
        figure.update_xaxes(type="log", **ticks, tickmode="array")
        made.append(figure)
    return made


def _goal_bands(report: EnvironmentReport) -> list[go.Figure]:
    """Returns one figure for each collector depth, and with several objectives for each of them."""
    drawn, names = charts.goal_bands(report)
    made = []
    for title, lines in drawn.items():
        figure = _chart(lines, "shortest path to the goal, in its units", "goals reached, %", 105, title, unit=" %")
        figure.update_traces(mode="lines+markers")
        figure.update_xaxes(tickvals=[*names], ticktext=[*names.values()], tickmode="array")
        made.append(figure)
    return made


def _top(drawn: Mapping[str, Sequence[Line]]) -> float:
    """Returns the upper end of y for charts that are compared."""
    tops = [np.nanmax([line.y, line.ends[1]]) for lines in drawn.values() for line in lines if line.ends]
    return 1.05 * max([1e-9, *tops])


def _chart(lines: Sequence[Line], x_label: str, y_label: str, top: float, title: str = "", unit: str = "") -> go.Figure:
    figure = go.Figure()
    for line in lines:
        if line.ends and not np.isnan(line.ends).any():
            x, y = [*line.x, *line.x[::-1]], [*line.ends[1], *line.ends[0][::-1]]
            figure.add_scatter(x=x, y=y, fillcolor=line.colour, legendgroup=line.name, **_BAND)
        figure.add_scatter(
            x=line.x.tolist(),
            y=line.y.tolist(),
            name=line.name,
            legendgroup=line.name,
            mode="lines+markers" if line.ends and line.markers else "lines",
            line={"color": line.colour, "width": 2, "dash": "dash" if line.dashed else "solid"},
            marker={"size": 5},
            hovertemplate=f"{line.name}: %{{y:.1f}}{unit}<extra></extra>",
        )
    _lay_out(figure, x_label, y_label, height=340, title=title)
    figure.update_yaxes(range=[0, top])
    return figure


def _costs(report: EnvironmentReport) -> list[go.Figure]:
    depths = [str(depth) for depth in charts.cost_depths(report)]
    colours = charts.objective_colours(report)
    made = []
    for title, series in charts.costs(report).items():
        figure = go.Figure()
        for objective, values in series.items():
            bars = {"name": objective, "marker_color": colours[objective]} if report.mixed else _BARS
            figure.add_bar(x=depths, y=values, text=[text.number(value) for value in values], hoverinfo="skip", **bars)
        _lay_out(figure, "depth", title, height=340 if report.mixed else 300)
        figure.update_xaxes(type="category")
        figure.update_yaxes(rangemode="tozero")
        made.append(figure)
    return made


def _lay_out(figure: go.Figure, x_label: str, y_label: str, height: int, title: str = "") -> None:
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
    for label, update in ((x_label, figure.update_xaxes), (y_label, figure.update_yaxes)):
        update(title={"text": label, "standoff": 8}, gridcolor=_GRID, zeroline=False, automargin=True)
