"""The report as one HTML page that needs no network: it contains once those parts of plotly's script that it needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.graph_objects import Figure

from collector.behaviour import PREFIX
from deploy.report import charts, text
from deploy.report.contents import EnvironmentReport, Report
from deploy.report.figures import figures, profile_figures
from shared.files import replace_file
from shared.metrics_catalogue import Metric, find_metric

if TYPE_CHECKING:
    from deploy.report.gallery.markup import View

SCRIPT = Path(__file__).with_name("plotly.min.js")
"""Charts along two axes, a third of plotly's whole script; `make plotly` brings the version of the Python package."""
_SETTINGS = {"responsive": True, "displaylogo": False, "displayModeBar": False}
_DIV = {"config": _SETTINGS, "include_plotlyjs": False, "full_html": False}
_MEASURES = (
    ("time at goal", "evaluator", "time_at_goal"),
    ("success rate", "evaluator", "success_rate"),
    ("cells visited", "collector", "coverage"),
    ("entropy of visits", "collector", "coverage_entropy"),
    ("gradient steps", "learner", "gradient_steps"),
    ("samples/insert", "learner", "samples_per_insert"),
    ("sample age", "learner", "sample_age"),
)
"""Title on the page, kind of metrics file, and name of each metric that the page defines."""


def write_page(report: Report, path: Path, views: Sequence["View"] = ()) -> Path:
    """Replaces `path` by the page, with the galleries `views`, and returns it. Raises OSError when the disk is full."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.loader = PackageLoader("deploy.report", "")
    page = environment.get_template("page.html.j2").render(
        text=text,
        report=report,
        charts_of=charts,
        environments=[(each, _figures(each, len(report.seeds))) for each in report.envs],
        galleries=[(view, view.render()) for view in views],
        player=_player() if views else "",
        profiles=[_div(each, f"profiles-{index}") for index, each in enumerate(profile_figures(report.aggregates))],
        plotly=Markup(SCRIPT.read_text(encoding="utf-8")),
        matrix_yaml=yaml.safe_dump(report.matrix, sort_keys=False),
        elsewhere={
            each.env: [other for other in report.envs if other.trained_in == each.env and not other.headline]
            for each in report.envs
        },
        marked=[row for each in report.envs if each.headline for row in each.fairness if row.mark],
        several=any(each.several for each in report.envs),
        varied=any(each.varied for each in report.envs),
        measures=_measures(report),
    )
    replace_file(path, page, sync=False)
    return path


def _player() -> Markup:
    from deploy.report.gallery.markup import player  # here, because it imports what draws and films episodes

    return player()


def _measures(report: Report) -> dict[str, Metric]:
    """Returns the metrics of the page by what the page calls them."""
    measures = dict.fromkeys(name for each in report.envs for name in each.behaviour.measures)
    behaviours = [(name.replace("_", " "), "evaluator", PREFIX + name) for name in measures]
    found = {title: find_metric(kind, name) for title, kind, name in (*_MEASURES, *behaviours)}
    return {title: metric for title, metric in found.items() if metric is not None}


def _div(figure: Figure, name: str) -> Markup:
    return Markup(figure.to_html(div_id=name, **_DIV))


def _figures(report: EnvironmentReport, seeds: int) -> dict[str, list[Markup]]:
    """Returns the figures of each section as `div`s, named after environment and section, such as `ant-matrix-0`."""
    return {
        section: [_div(figure, f"{report.env}-{section}-{index}") for index, figure in enumerate(made)]
        for section, made in figures(report, seeds).items()
    }
