"""The fork server of runs, with the modules that their processes import."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from importlib.util import find_spec

from deploy.scheduling.fork_server import fork_server
from shared.config import Experiment
from shared.envs.registry import find_module

_MODULES = (  # without Ray, which every fork must import for itself
    "collector.evaluator",
    "deploy.recovery.restart_states",
    "deploy.run.sources",
    "learner.learner",
    "shared.replay.reconnecting",
)

_OF_RAY = ("jsonschema", "psutil", "requests")  # what Ray imports of others: two thirds of its import


def serve_forks(experiments: Iterable[Experiment]) -> AbstractContextManager[None]:
    """Serves forks that have imported what the roles of `experiments` need; see `fork_server`."""
    names = {name for each in experiments for name in (each.env, *each.evaluation.envs)}
    of_ray = _OF_RAY if find_spec("ray") else ()
    return fork_server([*_MODULES, *of_ray, *(module for name in sorted(names) if (module := find_module(name)))])
