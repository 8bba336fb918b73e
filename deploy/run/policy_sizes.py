"""Room for policies in Ray's object store."""

from learner.acting import policy_bytes
from learner.objectives.registry import make_objectives
from shared.config import ACTIVE, Experiment
from shared.envs.base import EnvSpec

POLICIES_WAITING, LEAST_QUEUE_BYTES = 8, 2**26
_LEAST_STORE_BYTES = 2**28


def max_waiting_bytes(experiment: Experiment, spec: EnvSpec) -> int:
    """Returns the bound of the evaluation queue: eight policies of the largest network, or 64 MB of smaller ones."""
    return max(POLICIES_WAITING * max(_evaluated_bytes(experiment, spec).values()), LEAST_QUEUE_BYTES)


def object_store_bytes(experiment: Experiment, spec: EnvSpec) -> int:
    """Returns the size of Ray's object store, at least 256 MB.

    It holds the policies that wait for the evaluator; of each learner, one on its way there and the last one, which is
    never dropped; and the published policies of the collector learner, old and new.
    """
    sizes = _evaluated_bytes(experiment, spec)
    if ACTIVE in sizes:
        objective = make_objectives(experiment, spec)[ACTIVE]
        sizes[ACTIVE] = max(sizes[ACTIVE], policy_bytes(objective, experiment.collector.best_of))
    needed = max_waiting_bytes(experiment, spec) + 4 * max(sizes.values()) + 2 * sum(sizes.values())
    return max(_LEAST_STORE_BYTES, needed)


def _evaluated_bytes(experiment: Experiment, spec: EnvSpec) -> dict[str, int]:
    """Returns the size of every learner's policy in an evaluation, by the learner's name."""
    best_of = experiment.evaluation.best_of
    return {name: policy_bytes(each, best_of) for name, each in make_objectives(experiment, spec).items()}
