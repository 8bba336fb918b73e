"""Termination of Ray's processes, also of stopped or stuck ones, on any node of the cluster."""

import contextlib
import os
import signal
import time
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

STACKS_S = 1.0  # for the stacks to be written


class Process:
    """Base of all actors."""

    def where(self) -> tuple[int, str]:
        """Returns the number of the actor's process and the id of its node."""
        return os.getpid(), ray.get_runtime_context().get_node_id()


def end_actor(actor: Any, pid: int | None = None, node: str = "", dump: bool = False) -> None:
    """Kills `actor`, so that Ray does not restart it. Kills its process by `end_at` if `pid` is known."""
    if pid is not None:
        end_at(pid, node, dump)
    ray.kill(actor)


def end_at(pid: int, node: str, dump: bool) -> None:
    """Kills process `pid` of any `node`, also a stopped one, which Ray could only ask to end.

    `dump`: the process writes its stacks first.
    """
    if node == ray.get_runtime_context().get_node_id():
        _end_process(pid, dump)
    else:
        on_node = NodeAffinitySchedulingStrategy(node, soft=False)
        ray.remote(_end_process).options(num_cpus=0, scheduling_strategy=on_node).remote(pid, dump)


def _end_process(pid: int, dump: bool) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if not any("ray::" in part for part in process.cmdline()):
            return  # the actor has ended, and its number is in use again
        if dump:
            process.send_signal(signal.SIGUSR1)
            time.sleep(STACKS_S)
        process.kill()
