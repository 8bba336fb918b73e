"""Numbers as text: as many digits as a reader needs, and the interval where there is one."""

import math

from deploy.report.statistics import Difference, Estimate, Interval

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


def lines(*parts: str) -> str:
    """Joins the parts that are not empty by `<br>`."""
    return "<br>".join(filter(None, parts))
