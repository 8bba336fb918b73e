"""Letters of shapes, and the structures that all code shares.

Letters in docstrings: B batch or windows per update, T unroll length, N environments, K chunks per window,
W window length (= episode length), S state size, G goal size, A action size, D width, E representation size.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
Params = Any
Metrics = dict[str, Any]


CONTINUES, TERMINATED, TRUNCATED = 0, 1, 2  # `Rows.end`


class Rows(NamedTuple):
    """Data of a collector, one row for each environment step; leading axes are the caller's.

    `state` `[..., S]` before the action, `action` `[..., A]` in [-1, 1], `episode` `[...]` int32 (number of the
    environment's episode), `step` `[...]` int32 (number of the environment's step in the whole run), `version` `[...]`
    int32 (version of the policy that acted), `end` `[...]` int32: TERMINATED if the episode ended by itself with this
    step, TRUNCATED if the step was the last that an episode may have, else CONTINUES. `final` `[..., G]`: the point of
    goal space in which the episode ended, in the row of its last step; 0 in all other rows.
    """

    state: Array
    action: Array
    episode: Array
    step: Array
    version: Array
    end: Array
    final: Array
