"""Comparison of objectives: what depth gains with each of them on the same streams. Pure functions.

C: collector depths, L: learner depths, S: seeds, all ascending. An array by these axes is NaN where a trial is missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from deploy.report import contents
from deploy.report.statistics import Values, estimate, paired_difference, paired_known

_Ends = tuple[Values, Values]  # `[S]` time at goal of the shallowest and of the deepest learners


def objective_gains(
    finals: Mapping[str, Values], collector_depths: Sequence[int], learner_depths: Sequence[int]
) -> tuple[contents.ObjectiveGain, ...]:
    """Returns the gain of depth with each objective; `finals`: objective -> time at goal `[C, L, S]`."""
    return tuple(
        contents.ObjectiveGain(
            objective=objective,
            collector_depth=held,
            shallower=learner_depths[0],
            deeper=learner_depths[-1],
            at_shallower=estimate(shallow[common]),
            at_deeper=estimate(deep[common]),
            difference=paired_difference(deep[common], shallow[common]),
        )
        for held, ends in _by_collector(finals, collector_depths, learner_depths)
        for objective, (shallow, deep) in ends.items()
        if (common := ~np.isnan(deep - shallow)).any()
    )


def gain_differences(
    finals: Mapping[str, Values], collector_depths: Sequence[int], learner_depths: Sequence[int]
) -> tuple[contents.GainDifference, ...]:
    """Returns the difference of these gains for each two objectives, over the seeds that have all four learners."""
    return tuple(
        contents.GainDifference(later, earlier, held, difference)
        for held, ends in _by_collector(finals, collector_depths, learner_depths)
        for earlier, later in combinations(ends, 2)
        if (difference := paired_known(*(ends[each][1] - ends[each][0] for each in (later, earlier))))
    )


def _by_collector(
    finals: Mapping[str, Values], collector_depths: Sequence[int], learner_depths: Sequence[int]
) -> Iterator[tuple[int | None, dict[str, _Ends]]]:
    """Yields the ends of each objective's depth curve by collector depth, and with several also their mean, as None.

    Nothing is yielded for a single objective, or for a single learner depth.
    """
    if len(finals) < 2 or len(learner_depths) < 2:
        return
    ends = {objective: (final[:, 0], final[:, -1]) for objective, final in finals.items()}
    for row, depth in enumerate(collector_depths):
        yield depth, {objective: (shallow[row], deep[row]) for objective, (shallow, deep) in ends.items()}
    if len(collector_depths) > 1:
        yield (
            None,
            {objective: (shallow.mean(axis=0), deep.mean(axis=0)) for objective, (shallow, deep) in ends.items()},
        )
