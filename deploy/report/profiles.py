"""Charts of performance profiles as data; `figures.py` and `files.py` draw them."""

from deploy.report.aggregate import THRESHOLDS, Aggregate, Aggregates
from deploy.report.charts import Line, depth_colours

X_LABEL, Y_LABEL = "score τ", "runs with a score above τ, %"


def profiles(aggregates: Aggregates) -> dict[str, list[Line]]:
    """Returns title -> lines in percent: a chart for each objective and collector depth, one of collector learners."""
    charts: dict[str, list[Aggregate]] = {}
    for each in aggregates.algorithms:
        title = f"collector depth {each.collector_depth}"
        if aggregates.mixed:
            title = f"{each.objective}, {title}"
        charts.setdefault("collector learners: ordinary training" if each.active else title, []).append(each)
    return {title: _lines(algorithms, aggregates) for title, algorithms in charts.items()}


def _lines(algorithms: list[Aggregate], aggregates: Aggregates) -> list[Line]:
    colours = depth_colours(sorted({each.learner_depth for each in aggregates.algorithms}))
    return [
        Line(
            f"depth {each.learner_depth}",
            THRESHOLDS,
            100 * each.profile.centre,
            colours[each.learner_depth],
            (100 * each.profile.low, 100 * each.profile.high),
            markers=False,
        )
        for each in algorithms
    ]
