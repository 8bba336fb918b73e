"""Numbers as text: as many digits as a reader needs, and the interval where there is one."""

import math

from deploy.report.contents import EnvironmentReport
from deploy.report.statistics import MOST_SEEDS, Difference, Estimate, Interval

MARKED = "†"
UNKNOWN = "–"


def number(value: float) -> str:
    """Returns three digits, or all digits before the point; an int as it is; `UNKNOWN` for NaN."""
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return UNKNOWN
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


def rounded(value: float, digits: int) -> str:
    """Returns `digits` digits behind the point; `UNKNOWN` for NaN."""
    return UNKNOWN if math.isnan(value) else f"{value:.{digits}f}"


def millions(env_steps: float) -> str:
    """Returns environment steps in millions."""
    return f"{number(env_steps / 1e6)} M"


def signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def interval(ends: Interval | None) -> str:
    return f"[{number(ends.low)}, {number(ends.high)}]" if ends else ""


def with_interval(estimate: Estimate) -> str:
    return f"{number(estimate.value)} {interval(estimate.interval)}".strip()


def difference(each: Difference) -> str:
    return f"{signed(each.mean)} {interval(each.interval)}".strip()


def wins(each: Difference) -> str:
    """Returns in how many seeds ours is the higher one."""
    ties = f", {each.ties} equal" if each.ties else ""
    return f"{each.wins} of {each.seeds}{ties}"


def answers(report: EnvironmentReport) -> list[str]:
    """Returns a sentence for each collector depth: what the deepest learners gain over the shallowest on its streams.

    With several objectives there is none; tables compare these.
    """
    if report.several or not report.learner_depths:
        return []
    deepest = report.learner_depths[-1]
    return [
        f"On streams of collectors of depth {each.collector_depth}, learners of depth {each.deeper} minus learners of "
        f"depth {each.shallower}: {difference(each.time_at_goal)} steps at goal, higher in "
        f"{wins(each.time_at_goal)} seeds. {verdict(each.time_at_goal)}"
        for each in report.differences
        if each.deeper == deepest
    ]


def verdict(each: Difference) -> str:
    """Returns a sentence: whether the interval tells a difference from zero, and how many seeds it would take."""
    if each.interval is None:
        return "One seed has no interval."
    holds_zero = each.interval.low <= 0 <= each.interval.high
    where = "holds zero" if holds_zero else f"lies {'above' if each.interval.low > 0 else 'below'} zero"
    if each.needed and each.needed <= each.seeds:
        return f"The interval {where}."
    more = "to tell it from zero takes" if holds_zero else "by Student's, which is wider, that takes"
    wanted = f"about {each.needed}" if each.needed else f"more than {MOST_SEEDS:,}"
    return f"The interval {where}; {more} {wanted} seeds at this mean and spread."


def lines(*parts: str) -> str:
    """Joins the parts that are not empty by `<br>`."""
    return "<br>".join(filter(None, parts))
