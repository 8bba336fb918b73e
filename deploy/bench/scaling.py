"""How far one replay server carries: simulated collectors and learners against a real one, on this machine."""

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.bench.scaling_roles import Roles, ask
from deploy.replay_server.provision import reverb_python
from deploy.replay_server.server import ReplayServer, TableSpec
from shared.config import ConfigError, parse_experiment
from shared.envs.base import EnvSpec
from shared.plan import Plan, make_plan
from shared.replay.codec import INT_COLUMNS
from shared.replay.errors import ReplayError, ReplayTimeout
from shared.replay.info import ServerInfo, server_info

MOST_ROLES = 64  # of each kind; a run with more has another bottleneck than what is simulated here
START_S = 60.0  # for all roles to connect
WARM_S = 90.0  # until every learner has had a batch
SETTLE_S = 20.0  # on top, until the limiter holds somebody back
ANSWER_S = 20.0  # of the roles' parent and of the server, which may have to wait for a core
POLL_S = 0.25
END_S = 5.0
FULL = 0.9  # a core, or all of them, that is busy for this share of the time is full
HELD = 0.9  # of the error buffer
STEPS_STORED = 10_000  # of each environment, a run's default; more where the first batch needs more
ROLE_MEGABYTES = 40  # of one simulated role besides its batches; this and the next two were measured
SLICE_BYTES = 100  # of an entry in a table in the server's memory, for each chunk and column of its window
MOST_ENTRIES = 60_000  # that all tables together took in a second
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
class _Setting:
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


def bench_scaling(
    collectors: Sequence[int],
    learners: Sequence[int],
    *,
    seconds: float | None = None,
    environments: int | None = None,
    state_size: int = 29,
    action_size: int = 8,
    episode_length: int = 1000,
    unroll_length: int = 62,
    windows_per_update: int = 64,
    samples_per_insert: float = 1.0,
    quick: bool = False,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> dict[str, Any]:
    """One row for each number of `collectors` with each number of `learners`, 1 to 64 of both.

    Every collector and learner is a process of its own: a collector sends `environments` (default 16) environments'
    random rows through the real `Inserter`, a learner decodes what the real `Sampler` gets from its table and throws
    it away. Tables, limiters and windows are a lockstep run's with these sizes (`make_plan`). Nothing steps, nothing
    trains, all shares this machine's cores: the figures are of the replay path alone. Defaults are the ant's sizes;
    random rows do not compress. `seconds` (default 4): measured of each row, once every learner has had a batch and
    the limiter holds somebody back. `quick`: one second, 8 environments.

    In `rows`: `roles`, collectors x learners, which names the row; `env_steps_per_second`, of all collectors, in
    windows that the server took (mean of the tables); `windows_per_second`, of all learners; `megabytes_in`,
    `megabytes_out`, of rows before compression, 1e6 bytes a second; `server_cpu`, `collectors_cpu`, `learners_cpu` and
    `other_cpu`, of all that is not ours, in cores; `server_megabytes` resident; `saturated`: see `saturated`. `error`:
    why a row could not be measured, its figures then None.

    In `details`, one for each row: `environments` of all collectors; `seconds` measured; `busiest_client_cpu`;
    `clients_megabytes`, pages that several share shared out; `inserts_waited`, `samples_waited`: share of the time in
    which a table's inserts waited for samples, and the other way round, mean of the tables; `settled`: the limiter
    held somebody back before it was measured; `samples_ahead`: the least and the most of samples -
    samples_per_insert * (inserts - prefill) of a table, at the end, which `error_buffer` bounds; `received_windows`,
    `received_bytes`: decoded by the learners from start to end; `load_average` of one minute.

    Raises `ConfigError` for sizes that do not fit together or into this machine's memory, `ProvisionError`.
    """
    seconds = (1.0 if quick else 4.0) if seconds is None else seconds
    environments = (8 if quick else 16) if environments is None else environments
    _check(seconds=seconds, environments=environments, state_size=state_size, action_size=action_size)
    _check(episode_length=episode_length, unroll_length=unroll_length, windows_per_update=windows_per_update)
    _check(samples_per_insert=samples_per_insert)
    for name, counts in (("collectors", collectors), ("learners", learners)):
        if not counts:
            raise ConfigError(f"{name}: name one or more numbers")
        for count in counts:
            if not 1 <= count <= MOST_ROLES:
                raise ConfigError(f"{name}: {count} is not within 1..{MOST_ROLES}")
    spec = EnvSpec(
        state_size=state_size,
        goal_size=1,
        action_size=action_size,
        goal_indices=(0,),
        episode_length=episode_length,
        goal_radius=1.0,
        num_cells=1,
    )
    settings = [
        _Setting(
            collectors=c,
            learners=n,
            environments=environments,
            num_floats=state_size + action_size,
            plan=_plan(spec, c, environments, unroll_length, windows_per_update, samples_per_insert),
        )
        for c in collectors
        for n in learners
    ]
    free = psutil.virtual_memory().available / 1e6
    for setting in settings:
        if (most := setting.most_megabytes(seconds)) > free:
            raise ConfigError(
                f"collectors: {setting.collectors} with {setting.learners} learners may take"
                f" {most:,.0f} MB and {free:,.0f} are free; use fewer, or fewer environments or seconds"
            )
    python = reverb_python(say)
    rows, details = [], []
    for setting in settings:
        roles = {
            "roles": f"{setting.collectors} x {setting.learners}",
            "collectors": setting.collectors,
            "learners": setting.learners,
        }
        figures, error = _figures(setting, seconds, python, say)
        rows.append({**roles, **{name: figures[name] for name in FIGURES}, "error": error})
        details.append({**roles, **{name: figures[name] for name in DETAILS}, "load_average": os.getloadavg()[0]})
        say(_line(rows[-1]))
    return {
        "cores": psutil.cpu_count(),
        "row_bytes": settings[0].row_bytes,
        "window_rows": settings[0].plan.window_rows,
        "window_bytes": settings[0].window_bytes,
        "environments_per_collector": environments,
        "unroll_length": unroll_length,
        "windows_per_update": windows_per_update,
        "samples_per_insert": samples_per_insert,
        "rows": rows,
        "details": details,
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


class _Parent:
    """The process that forks the roles (`scaling_roles.py`); in a session of its own, so that Ctrl-C is ours alone."""

    def __init__(self, folder: Path) -> None:
        with (folder / "roles.log").open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "deploy.bench.scaling_roles"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._log = folder / "roles.log"
        self._unread = b""

    def __enter__(self) -> "_Parent":
        try:
            self._answer(START_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Its input closes, and it ends its roles and itself; if it does not, it is killed, and they are with it."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(END_S)
        self._child.stdout.close()

    def ask(self, do: str, roles: Roles | None = None) -> dict[str, Any]:
        """See `scaling_roles.ask`. Raises `ReplayError`, when a role failed, too."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(ask(do, roles))
            self._child.stdin.flush()
        except BrokenPipeError:  # the missing answer says so
            pass
        answer = self._answer(ANSWER_S)
        if answer.get("error"):
            raise ReplayError(f"a simulated role failed: {answer['error']}")
        return answer

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._child.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(self._child.stdout.fileno(), 65536) if ready else b""
            if not more:
                text = " ".join(self._log.read_bytes().decode(errors="replace").split())[-500:]
                raise ReplayError(f"the simulated roles' process {'ended' if ready else 'did not answer'}: {text}")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)


def _check(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise ConfigError(f"{name}: {number:g} is not a positive number")


def _plan(
    spec: EnvSpec, collectors: int, environments: int, unroll_length: int, windows: int, samples_per_insert: float
) -> Plan:
    """A run's, with an update that is small enough to fit any sizes: no gradient step is taken."""
    chunks = math.ceil((spec.episode_length + unroll_length - 1) / unroll_length)
    due = collectors * environments * samples_per_insert  # for each unroll
    unrolls_before_training = chunks + 3 + math.ceil((2 * windows + 2) / due)
    values = {
        "env": "bench",
        "collector": {"actors": collectors, "environments": environments, "unroll_length": unroll_length},
        "algorithm": {"windows_per_update": windows, "minibatches_per_update": 1, "batch_size": 2},
        "replay": {
            "samples_per_insert": samples_per_insert,
            "steps_per_environment": max(STEPS_STORED, unrolls_before_training * unroll_length),
        },
        "budget": {"env_steps": 10**12},
    }
    return make_plan(parse_experiment(values), spec)


def _figures(setting: _Setting, seconds: float, python: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """What was measured with a server of its own, or Nones and why it could not be."""
    plan = setting.plan
    tables = [
        TableSpec(name, plan.max_windows, plan.prefill_windows, plan.samples_per_insert, plan.error_buffer)
        for name in setting.tables
    ]
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        server = ReplayServer(python, Path(folder) / "server.log")
        try:
            address = server.start(tables)
            with _Parent(Path(folder)) as parent:
                return _measure(setting, seconds, address, server, parent, say), ""
        except (ReplayError, psutil.Error) as error:  # the latter of a process that died while it was looked at
            return dict.fromkeys((*FIGURES, *DETAILS)), str(server.exit_reason() or error)
        finally:
            server.stop()


def _measure(
    setting: _Setting, seconds: float, address: str, server: ReplayServer, parent: _Parent, say: Callable[[str], None]
) -> dict[str, Any]:
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


def _rates(setting: _Setting, before: _Moment, after: _Moment) -> dict[str, Any]:
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


def _line(row: Mapping[str, Any]) -> str:
    what = f"{row['collectors']} collectors, {row['learners']} learners"
    if row["error"]:
        return f"{what}: {row['error']}"
    return (
        f"{what}: {row['env_steps_per_second']:,.0f} steps/s in, {row['windows_per_second']:,.0f} windows/s and"
        f" {row['megabytes_out']:,.0f} MB/s out; cores: server {row['server_cpu']:.2f}, collectors"
        f" {row['collectors_cpu']:.2f}, learners {row['learners_cpu']:.2f}, others {row['other_cpu']:.2f};"
        f" {row['saturated']}"
    )
