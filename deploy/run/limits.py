"""Limits on the time that a role may work, derived from the size of its calls and from measured ones.

A fixed limit does not fit: an update is one call of hundreds of gradient steps, which takes a second at depth 4, and
more than an hour at depth 1024 on a CPU.
"""

import os
import shutil

from learner.objectives.registry import make_objectives
from shared.config import Experiment
from shared.envs.base import EnvSpec
from shared.metrics import Report
from shared.plan import Plan

COMPILE_S = 1800.0
SLOWER = 3.0  # a call that takes this many times as long as the longest one before is a hang
# FLOP/s of one GPU, and of one core: more than any reaches today, and less than any falls to on a shared machine.
FASTEST_GPU, FASTEST_CORE = 1e15, 2e11
SLOWEST_GPU, SLOWEST_CORE = 1e12, 5e9


def work_limit_s(report: Report, progress_s: float, first_call_s: float) -> float:
    """Returns how long a role may work, without a wait and without completing a call, before it counts as hung.

    Args:
        report: the role's newest report.
        progress_s: `supervision.progress_seconds`, the least limit.
        first_call_s: limit of the first call, which compiles; no call is measured yet.
    """
    return max(progress_s, SLOWER * report.longest_work_seconds) if report.calls else first_call_s


def first_call_s(experiment: Experiment, plan: Plan, spec: EnvSpec) -> float:
    """Returns the limit of a first call: ample time to compile, however busy the machine is, and the slowest update."""
    slowest = max(_update_seconds(experiment, plan, spec, SLOWEST_GPU, SLOWEST_CORE).values())
    return COMPILE_S + slowest


def find_short_limits(experiment: Experiment, plan: Plan, spec: EnvSpec) -> list[str]:
    """Returns a line for each configured limit that an update is certain to exceed on this machine."""
    least = _update_seconds(experiment, plan, spec, FASTEST_GPU, FASTEST_CORE)
    name = max(least, key=lambda name: least[name])
    limits = {
        "supervision.progress_seconds": experiment.supervision.progress_seconds,
        "replay.timeout_seconds": experiment.replay.timeout_seconds,
    }
    return [
        f"{key}: {limit:g} s is less than an update of learner {name}, which takes at least {least[name]:,.0f} s here; "
        f"{SLOWER:g} times the longest measured update counts instead"
        for key, limit in limits.items()
        if limit < least[name]
    ]


def _update_seconds(
    experiment: Experiment, plan: Plan, spec: EnvSpec, gpu_flops: float, core_flops: float
) -> dict[str, float]:
    """Returns the seconds of every learner's update at the given FLOP/s of a GPU and of a core."""
    found = {}
    for name, objective in make_objectives(experiment, spec).items():
        config = experiment.learner(name)
        flops = plan.minibatches_per_update * objective.step_flops(plan.batch_size)
        cores = config.resources.threads or os.cpu_count() or 1
        on_gpu = config.resources.gpus != 0 and _may_have_gpu()
        found[name] = flops / (gpu_flops * max(config.resources.gpus or 1, 1) if on_gpu else core_flops * cores)
    return found


def _may_have_gpu() -> bool:
    return "RAY_ADDRESS" in os.environ or shutil.which("nvidia-smi") is not None
