"""What one server and its simulated clients do while they are watched: rates, cores, memory, who waits."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from deploy.bench.scaling_roles import Parent, Roles
from deploy.replay.server.process import ReplayServer
from shared.plan import Plan
from shared.replay.codec import INT_COLUMNS
from shared.replay.errors import ReplayTimeout
from shared.replay.info import ServerInfo, server_info

START_S = 60.0  # for all roles to connect
WARM_S = 90.0  # until every learner has had a batch
SETTLE_S = 20.0  # on top, until the limiter holds somebody back
ANSWER_S = 20.0  # of the server, which may have to wait for a core
POLL_S = 0.25
FULL = 0.9  # a core, or all of them, that is busy for this share of the time is full
HELD = 0.9  # of the error buffer
ROLE_MEGABYTES = 40  # of one simulated role besides its batches; this and the next two were measured
SLICE_BYTES = 100  # of an entry in a table in the server's memory, for each chunk and column of its window
MOST_ENTRIES = 100_000  # that all tables together took in a second
FIGURES = (
    "env_steps_per_second",
    "windows_per_second",
    "megabytes_in",
    "megabytes_out",
    "server_cpu",
    "collectors_cpu",
    "learners_cpu",
    "other_cpu",
    "server_megabytes",
    "saturated",
)
DETAILS = (
    "environments",
    "seconds",
    "busiest_client_cpu",
    "clients_megabytes",
    "inserts_waited",
    "samples_waited",
    "settled",
    "samples_ahead",
    "error_buffer",
    "received_windows",
    "received_bytes",
)


@dataclass(frozen=True)
class Setting:
    """One server and its clients."""

    collectors: int
    learners: int
    environments: int  # of each collector
    num_floats: int
    plan: Plan

    @property
    def row_bytes(self) -> int:
        return 4 * (self.num_floats + INT_COLUMNS)

    @property
    def window_bytes(self) -> int:
        return self.plan.window_rows * self.row_bytes

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(f"scaling/{number}" for number in range(self.learners))

    def most_megabytes(self, seconds: float) -> float:
        """What server and clients hold at most while they are measured for `seconds`."""
        plan = self.plan
        stored = plan.environments * plan.stored_unrolls * plan.unroll_length * self.row_bytes
        first = self.learners * (plan.prefill_windows + plan.error_buffer / plan.samples_per_insert)
        entries = min(self.learners * plan.max_windows, first + MOST_ENTRIES * (seconds + SETTLE_S))
        slices = 2 * plan.chunks_per_window  # two columns
        batches = self.learners * plan.windows_per_update * self.window_bytes
        roles = ROLE_MEGABYTES * (self.collectors + self.learners)
        return (stored + entries * slices * SLICE_BYTES + 2 * batches) / 1e6 + roles


@dataclass(frozen=True)
class _Moment:
    """What was counted up to now. CPU times in seconds."""

    seconds: float
    inserted: dict[str, int]  # by table
    sampled: dict[str, int]
    inserts_waited_ms: int  # over all tables
    samples_waited_ms: int
    cpu_at: float
    server_cpu: float
    role_cpu: list[float]  # collectors first
    machine_cpu: float


def measure(
    setting: Setting, seconds: float, address: str, server: ReplayServer, parent: Parent, say: Callable[[str], None]
) -> dict[str, Any]:
    """`FIGURES` and `DETAILS` of `seconds`, as `bench_scaling` describes them; starts the roles.

    Raises `ReplayError` where a role or the server fails, psutil's errors where one dies while it is looked at.
    """
    plan = setting.plan
    roles = Roles(
        address=address,
        tables=setting.tables,
        collectors=setting.collectors,
        environments=setting.environments,
        unroll_length=plan.unroll_length,
        chunks_per_window=plan.chunks_per_window,
        num_floats=setting.num_floats,
        windows_per_update=plan.windows_per_update,
        timeout_s=START_S + WARM_S,
    )
    pids = parent.ask("start", roles)["pids"]
    processes = [psutil.Process(pid) for pid in pids]
    served = psutil.Process(server.pid)
    _wait(START_S, "for all roles to connect", lambda: parent.ask("state")["ready"] == len(pids))
    parent.ask("go")
    _wait(WARM_S, "for every learner's first batch", lambda: all(parent.ask("state")["counts"][setting.collectors :]))
    try:
        _wait(SETTLE_S, "for the limiter", lambda: _held(plan, server_info(address, ANSWER_S)))
        settled = True
    except ReplayTimeout:
        settled = False
    say(f"measuring {setting.collectors} collectors, {setting.learners} learners")
    before = _moment(address, served, processes)
    time.sleep(seconds)
    after = _moment(address, served, processes)
    state = parent.ask("state")
    return {
        "environments": plan.environments,
        **_rates(setting, before, after),
        "server_megabytes": served.memory_info().rss / 1e6,
        "clients_megabytes": sum(process.memory_full_info().pss for process in processes) / 1e6,
        "settled": settled,
        "samples_ahead": _samples_ahead(plan, after),
        "error_buffer": plan.error_buffer,
        "received_windows": state["windows"],
        "received_bytes": state["bytes"],
    }


def saturated(
    cores: int,
    server_cpu: float,
    clients_cpu: float,
    busiest_client_cpu: float,
    other_cpu: float,
    inserts_waited: float,
    samples_waited: float,
) -> str:
    """What was full first: "server CPU" or "client CPU", "limiter", or "nothing".

    CPU in cores. Where all cores are busy it is the side that takes more of them. Where cores are left, it is a
    client whose one process fills a core, most of which Python's lock lets only one thread of it use. Else, where
    tables waited most of the time, one side waits for the other's round trips.
    """
    if server_cpu + clients_cpu + other_cpu >= FULL * cores:
        return "server CPU" if server_cpu > clients_cpu else "client CPU"
    if busiest_client_cpu >= FULL:
        return "client CPU"
    return "limiter" if max(inserts_waited, samples_waited) >= 0.5 else "nothing"


def _wait(timeout_s: float, what: str, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise ReplayTimeout(f"waited {timeout_s:g} s {what}")
        time.sleep(POLL_S)


def _held(plan: Plan, info: ServerInfo) -> bool:
    """One table at least is as far ahead or behind as its limiter lets it: from here on one side paces the other."""
    ahead = [plan.samples_per_insert * (t.inserted - plan.prefill_windows) - t.sampled for t in info.tables.values()]
    return max(map(abs, ahead)) >= HELD * plan.error_buffer


def _moment(address: str, server: psutil.Process, roles: Sequence[psutil.Process]) -> _Moment:
    asked = time.perf_counter()
    tables = server_info(address, ANSWER_S).tables
    answered = time.perf_counter()
    busy = psutil.cpu_times()
    return _Moment(
        seconds=(asked + answered) / 2,
        inserted={name: table.inserted for name, table in tables.items()},
        sampled={name: table.sampled for name, table in tables.items()},
        inserts_waited_ms=sum(table.waiting_for_sampling_ms for table in tables.values()),
        samples_waited_ms=sum(table.waiting_for_inserts_ms for table in tables.values()),
        cpu_at=answered,
        machine_cpu=sum(busy) - busy.idle - getattr(busy, "iowait", 0.0),
        server_cpu=_cpu_seconds(server),
        role_cpu=[_cpu_seconds(role) for role in roles],
    )


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _rates(setting: Setting, before: _Moment, after: _Moment) -> dict[str, Any]:
    passed, cpu_passed = after.seconds - before.seconds, after.cpu_at - before.cpu_at
    # Of all tables: the limiters keep them together in the long run, but requests are served a batch at a time.
    inserted = (sum(after.inserted.values()) - sum(before.inserted.values())) / setting.learners
    windows = sum(after.sampled.values()) - sum(before.sampled.values())
    env_steps = inserted * setting.plan.unroll_length / passed
    roles = [(a - b) / cpu_passed for a, b in zip(after.role_cpu, before.role_cpu, strict=True)]
    server = (after.server_cpu - before.server_cpu) / cpu_passed
    other = max((after.machine_cpu - before.machine_cpu) / cpu_passed - server - sum(roles), 0.0)
    table_ms = 1000 * passed * setting.learners
    # Reverb counts a wait when it ends, and it may have begun before we looked.
    inserts_waited = min((after.inserts_waited_ms - before.inserts_waited_ms) / table_ms, 1.0)
    samples_waited = min((after.samples_waited_ms - before.samples_waited_ms) / table_ms, 1.0)
    return {
        "seconds": passed,
        "env_steps_per_second": env_steps,
        "windows_per_second": windows / passed,
        "megabytes_in": env_steps * setting.row_bytes / 1e6,
        "megabytes_out": windows / passed * setting.window_bytes / 1e6,
        "server_cpu": server,
        "collectors_cpu": sum(roles[: setting.collectors]),
        "learners_cpu": sum(roles[setting.collectors :]),
        "busiest_client_cpu": max(roles),
        "other_cpu": other,
        "inserts_waited": inserts_waited,
        "samples_waited": samples_waited,
        "saturated": saturated(
            psutil.cpu_count() or 1, server, sum(roles), max(roles), other, inserts_waited, samples_waited
        ),
    }


def _samples_ahead(plan: Plan, moment: _Moment) -> tuple[float, float]:
    ahead = [
        sampled - plan.samples_per_insert * (moment.inserted[table] - plan.prefill_windows)
        for table, sampled in moment.sampled.items()
    ]
    return min(ahead), max(ahead)
