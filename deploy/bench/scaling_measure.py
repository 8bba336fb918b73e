"""Rates, cores, memory and waits of one replay server and its simulated clients."""

import operator
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import psutil

from deploy.bench.scaling_roles import START_S, WARM_S, Setting, SimulatedRoles
from shared.plan import Plan
from shared.replay.errors import ReplayTimeout
from shared.replay.info import server_info

SETTLE_S = 20.0  # after the first batches, until the limiter holds a side back
ANSWER_S = 20.0  # for an answer of the server, which may have to wait for a core
FULL = 0.9  # share of the time from which on a core, or all of them, count as full
HELD = 0.9  # share of the error buffer from which on the limiter holds a side back
ROLE_MEGABYTES = 40  # of one simulated role without its batches; this and the next two were measured
SLICE_BYTES = 100  # of the server's memory, for each entry, chunk and column
MOST_ENTRIES = 100_000  # in all tables together, in a second
FIGURES = (
    *("env_steps_per_second", "windows_per_second", "megabytes_in", "megabytes_out"),
    *("server_cpu", "collectors_cpu", "learners_cpu", "other_cpu", "server_megabytes", "saturated"),
)
DETAILS = (
    *("environments", "seconds", "busiest_client_cpu", "clients_megabytes", "inserts_waited", "samples_waited"),
    *("settled", "samples_ahead", "error_buffer", "received_windows", "received_bytes"),
)


def most_megabytes(setting: Setting, seconds: float) -> float:
    """Returns an upper bound on the memory of server and clients in a measurement of `seconds`."""
    plan, learners = setting.plan, setting.learners
    stored = plan.environments * plan.stored_unrolls * plan.unroll_length * setting.row_bytes
    first = learners * (plan.prefill_windows + plan.error_buffer / plan.samples_per_insert)
    entries = min(learners * plan.max_windows, first + MOST_ENTRIES * (seconds + SETTLE_S))
    slices = 2 * plan.chunks_per_window  # two columns
    batches = learners * plan.windows_per_update * setting.window_bytes
    roles = ROLE_MEGABYTES * (setting.collectors + learners)
    return (stored + entries * slices * SLICE_BYTES + 2 * batches) / 1e6 + roles


class _Counts(NamedTuple):
    """Counts up to one moment; those of the server are sums over its tables."""

    asked_s: float  # time of the server's counts
    inserted: int
    sampled: int
    inserts_waited_ms: int
    samples_waited_ms: int
    looked_s: float  # time of the CPU's counts
    machine_cpu_s: float
    server_cpu_s: float
    roles_cpu_s: np.ndarray  # collectors first


def measure(
    roles: SimulatedRoles, server: psutil.Process, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Returns `FIGURES` and `DETAILS` of `seconds`, as `bench_scaling` describes them.

    Raises ReplayError if a role or the server fails, and psutil's errors if a process ends while it is measured.
    """
    setting, address, progress = roles.setting, roles.address, roles.progress
    plan = setting.plan
    roles.wait(START_S, "for all roles to connect", lambda: progress["pid"].all())
    roles.wait(WARM_S, "for every learner's first batch", lambda: progress["windows"][setting.collectors :].all())
    try:
        # A table is as far ahead or behind as its limiter allows: from then on one side paces the other.
        least = HELD * plan.error_buffer
        roles.wait(SETTLE_S, "for the limiter", lambda: max(map(abs, _samples_ahead(plan, address))) >= least)
        settled = True
    except ReplayTimeout:
        settled = False
    clients = [psutil.Process(pid) for pid in progress["pid"].tolist()]
    say(f"measuring {setting.collectors} collectors, {setting.learners} learners")
    before = _count(address, server, clients)
    time.sleep(seconds)
    after = _count(address, server, clients)
    roles.check()
    passed = _Counts(*map(operator.sub, after, before))
    ahead = _samples_ahead(plan, address)
    received = np.array(progress)  # once: learners still decode batches
    # Means over all tables: the limiters keep them together in the long run, but serve requests a batch at a time.
    env_steps = passed.inserted / setting.learners * plan.unroll_length / passed.asked_s
    windows = passed.sampled / passed.asked_s
    tables_ms = 1000 * passed.asked_s * setting.learners
    server_cpu = passed.server_cpu_s / passed.looked_s
    roles_cpu = (passed.roles_cpu_s / passed.looked_s).tolist()
    rates = {
        "env_steps_per_second": env_steps,
        "windows_per_second": windows,
        "megabytes_in": env_steps * setting.row_bytes / 1e6,
        "megabytes_out": windows * setting.window_bytes / 1e6,
        "server_cpu": server_cpu,
        "collectors_cpu": sum(roles_cpu[: setting.collectors]),
        "learners_cpu": sum(roles_cpu[setting.collectors :]),
        "busiest_client_cpu": max(roles_cpu),
        "other_cpu": max(passed.machine_cpu_s / passed.looked_s - server_cpu - sum(roles_cpu), 0.0),
        # Reverb counts a wait at its end, so a wait may have begun before the first count.
        "inserts_waited": min(passed.inserts_waited_ms / tables_ms, 1.0),
        "samples_waited": min(passed.samples_waited_ms / tables_ms, 1.0),
    }
    return rates | {
        "saturated": saturated(psutil.cpu_count() or 1, rates),
        "environments": plan.environments,
        "seconds": passed.asked_s,
        "server_megabytes": server.memory_info().rss / 1e6,
        "clients_megabytes": sum(client.memory_full_info().pss for client in clients) / 1e6,
        "settled": settled,
        "samples_ahead": (min(ahead), max(ahead)),
        "error_buffer": plan.error_buffer,
        "received_windows": int(received["windows"].sum()),
        "received_bytes": int(received["bytes"].sum()),
    }


def saturated(cores: int, figures: Mapping[str, float]) -> str:
    """Returns what was full first: "server CPU", "client CPU", "limiter" or "nothing".

    If all cores are busy: the side that uses more of them. Otherwise "client CPU" if one client's process fills a
    core, since Python's lock gives most of a process to one thread at a time. Otherwise "limiter" if tables waited
    most of the time: one side waits for the other's round trips.
    """
    server, clients = figures["server_cpu"], figures["collectors_cpu"] + figures["learners_cpu"]
    if server + clients + figures["other_cpu"] >= FULL * cores:
        return "server CPU" if server > clients else "client CPU"
    if figures["busiest_client_cpu"] >= FULL:
        return "client CPU"
    return "limiter" if max(figures["inserts_waited"], figures["samples_waited"]) >= 0.5 else "nothing"


def _samples_ahead(plan: Plan, address: str) -> list[float]:
    """Returns for each table its samples beyond those that its inserts pay for; negative if it is behind."""
    tables = server_info(address, ANSWER_S).tables.values()
    return [table.sampled - plan.samples_per_insert * (table.inserted - plan.prefill_windows) for table in tables]


def _count(address: str, server: psutil.Process, clients: list[psutil.Process]) -> _Counts:
    asked = time.perf_counter()
    tables = server_info(address, ANSWER_S).tables.values()
    answered = time.perf_counter()
    busy = psutil.cpu_times()
    return _Counts(
        asked_s=(asked + answered) / 2,
        inserted=sum(table.inserted for table in tables),
        sampled=sum(table.sampled for table in tables),
        inserts_waited_ms=sum(table.waiting_for_sampling_ms for table in tables),
        samples_waited_ms=sum(table.waiting_for_inserts_ms for table in tables),
        looked_s=answered,
        machine_cpu_s=sum(busy) - busy.idle - getattr(busy, "iowait", 0.0),
        server_cpu_s=sum(server.cpu_times()[:2]),  # user and system
        roles_cpu_s=np.array([sum(client.cpu_times()[:2]) for client in clients]),
    )
