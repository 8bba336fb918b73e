"""Numbers as a reader wants them: as many digits as the figure has, an interval where there is one."""

import math

from deploy.report.contents import Cell, Comparison, Curve
from deploy.report.statistics import Difference, Estimate, Interval

MARKED = "†"


def number(value: float) -> str:
    """Three digits, or all before the point; counts as they are."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def interval(ends: Interval | None) -> str:
    return f"[{number(ends.low)}, {number(ends.high)}]" if ends else ""


def with_interval(estimate: Estimate) -> str:
    return f"{number(estimate.value)} {interval(estimate.interval)}".strip()


def difference(each: Difference) -> str:
    return f"{signed(each.mean)} {interval(each.interval)}".strip()


def wins(each: Difference) -> str:
    """In how many seeds ours was the higher one."""
    ties = f", {each.ties} equal" if each.ties else ""
    return f"{each.wins} of {each.seeds}{ties}"


def seed_count(count: int, of: int) -> str:
    """How many seeds a figure rests on."""
    missing = f" of {of}" if count < of else ""
    return f"{count}{missing} seed{'s' if max(count, of) > 1 else ''}"


def cell_text(cell: Cell, seeds: int, brief: bool) -> str:
    """What stands in a cell of the matrix."""
    lines = [number(cell.time_at_goal.value) + (MARKED if cell.marks else "")]
    if not brief and cell.time_at_goal.interval:
        lines.append(interval(cell.time_at_goal.interval))
    if len(cell.seeds) < seeds:
        lines.append(seed_count(len(cell.seeds), seeds))
    return "<br>".join(lines)


def difference_text(comparison: Comparison, brief: bool) -> str:
    lines = [signed(comparison.time_at_goal.mean)]
    if not brief and comparison.time_at_goal.interval:
        lines.append(interval(comparison.time_at_goal.interval))
    return "<br>".join(lines)


def curve_name(curve: Curve) -> str:
    return f"active {curve.learner_depth}" if curve.active else f"depth {curve.learner_depth}"
