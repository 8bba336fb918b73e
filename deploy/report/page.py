"""The report as one HTML page that needs no network: it contains plotly's script once."""

from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from deploy.report import text
from deploy.report.contents import EnvironmentReport, Report
from deploy.report.figures import figures
from shared.files import replace_file
from shared.metrics_catalogue import Metric, find_metric

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


def write_page(report: Report, path: Path) -> Path:
    """Replaces `path` by the page in one step and returns it. Raises OSError when the disk is full."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.loader = PackageLoader("deploy.report", "")
    page = environment.get_template("page.html.j2").render(
        text=text,
        report=report,
        environments=[(each, _figures(each, len(report.seeds))) for each in report.envs],
        plotly=Markup(get_plotlyjs()),
        matrix_yaml=yaml.safe_dump(report.matrix, sort_keys=False),
        marked=[row for each in report.envs for row in each.fairness if row.mark],
        several=any(each.several for each in report.envs),
        varied=any(each.varied for each in report.envs),
        measures=_measures(),
    )
    replace_file(path, page, sync=False)
    return path


def _measures() -> dict[str, Metric]:
    """Returns the metrics of the page by what the page calls them."""
    found = {title: find_metric(kind, name) for title, kind, name in _MEASURES}
    return {title: metric for title, metric in found.items() if metric is not None}


def _figures(report: EnvironmentReport, seeds: int) -> dict[str, list[Markup]]:
    """Returns the figures of each section as `div`s, named after environment and section, such as `ant-matrix-0`."""
    return {
        section: [
            Markup(figure.to_html(div_id=f"{report.env}-{section}-{index}", **_DIV))
            for index, figure in enumerate(made)
        ]
        for section, made in figures(report, seeds).items()
    }
