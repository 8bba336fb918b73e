"""The report as one HTML page that needs no network: plotly's script is in it, once."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from deploy.report import text
from deploy.report.contents import Report
from deploy.report.figures import figures

_SETTINGS = {"responsive": True, "displaylogo": False, "displayModeBar": False}


def write_page(report: Report, path: Path) -> Path:
    """Replaces `path` in one step. Raises OSError when the disk is full."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(render_page(report), encoding="utf-8")
    return beside.replace(path)


def render_page(report: Report) -> str:
    """The whole page. Raises nothing for what is missing: the page says it."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {
        "number": text.number,
        "signed": text.signed,
        "interval": text.interval,
        "estimate": text.with_interval,
        "difference": text.difference,
        "wins": text.wins,
    }
    template = environment.from_string((files("deploy.report") / "page.html.j2").read_text(encoding="utf-8"))
    drawn = [(each, _divs(each.env, figures(each, len(report.seeds)))) for each in report.envs]
    return template.render(
        report=report,
        environments=drawn,
        plotly=Markup(get_plotlyjs()),
        matrix_yaml=yaml.safe_dump(report.matrix, sort_keys=False),
        marked=[row for each in report.envs for row in each.fairness if row.mark],
    )


def _divs(env: str, sections: dict[str, list[go.Figure]]) -> dict[str, list[Markup]]:
    """Each figure as a `div` named after its environment and section, such as `ant-matrix-0`."""
    return {
        section: [_div(figure, f"{env}-{section}-{index}") for index, figure in enumerate(made)]
        for section, made in sections.items()
    }


def _div(figure: go.Figure, name: str) -> Markup:
    options: dict[str, Any] = {"full_html": False, "include_plotlyjs": False, "config": _SETTINGS}
    return Markup(figure.to_html(div_id=name, **options))
