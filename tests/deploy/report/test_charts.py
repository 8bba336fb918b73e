"""Points of a chart's lines."""

import numpy as np
import pytest

from deploy.report.charts import MAX_POINTS, Line, thinned


def line(count: int, with_interval: bool) -> Line:
    """Returns a noisy line of `count` points with single peaks in `y` and in its interval."""
    rng = np.random.default_rng(0)
    y = np.cumsum(rng.normal(size=count))
    low, high = y - rng.uniform(size=count), y + rng.uniform(size=count)
    y[count // 3], low[count // 5], high[count // 7] = 1e3, -1e4, 1e4
    return Line("depth 4", np.arange(count) * 10.0, y, "#000000", (low, high) if with_interval else None)


@pytest.mark.parametrize("with_interval", [False, True])
@pytest.mark.parametrize("count", [MAX_POINTS + 1, 3_130])
def test_a_thinned_line_keeps_its_ends_and_its_extremes(count: int, with_interval: bool) -> None:
    whole = line(count, with_interval)
    made = thinned(whole)
    assert 100 < len(made.x) <= MAX_POINTS
    assert np.all(np.diff(made.x) > 0)
    at = np.searchsorted(whole.x, made.x)
    np.testing.assert_array_equal(made.y, whole.y[at])  # points of the line, none in between
    assert (at[0], at[-1]) == (0, count - 1)
    assert (made.y.min(), made.y.max()) == (whole.y.min(), whole.y.max())
    assert np.diff(made.x).max() < whole.x[-1] / 50  # along the whole line
    if with_interval:
        assert made.ends
        assert whole.ends
        assert (made.ends[0].min(), made.ends[1].max()) == (-1e4, 1e4)
        np.testing.assert_array_equal(made.ends, np.array(whole.ends)[:, at])
    else:
        assert made.ends is None


def test_a_line_that_fits_is_drawn_whole() -> None:
    whole = line(MAX_POINTS, with_interval=True)
    assert thinned(whole) is whole
