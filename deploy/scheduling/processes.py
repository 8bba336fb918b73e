"""Ending Ray's processes for good, a stopped or stuck one too, wherever in the cluster it runs."""

import contextlib
import os
import signal
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

STACKS_S = 1.0  # for the stacks to be written


class Process:
    """What every actor says of its process."""

    def where(self) -> tuple[int, str]:
        """Its number, and the node that it runs on."""
        return os.getpid(), ray.get_runtime_context().get_node_id()


def end_actor(actor: Any, pid: int | None = None, node: str = "", dump: bool = False) -> None:
    """Kills `actor`, for good; see `end_at`."""
    if pid is not None:
        end_at(pid, node, dump)
    ray.kill(actor)


def end_at(pid: int, node: str, dump: bool) -> None:
    """Kills a process by its number: Ray asks processes to end, and a stopped one does not hear it.

    `dump`: it writes its stacks first.
    """
    if node == ray.get_runtime_context().get_node_id():
        end_process(pid, dump)
        return
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.remote(end_process).options(num_cpus=0, scheduling_strategy=there).remote(pid, dump)


def end_process(pid: int, dump: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        if dump:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(STACKS_S)
        os.kill(pid, signal.SIGKILL)
