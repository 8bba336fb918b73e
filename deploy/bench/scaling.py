"""How far one replay server carries: simulated collectors and learners against a real one, on this machine."""

import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from deploy.bench.scaling_measure import DETAILS, FIGURES, Setting, measure
from deploy.bench.scaling_roles import Parent
from deploy.replay.server.process import ReplayServer, TableSpec
from deploy.replay.server.provision import reverb_python
from shared.config_file import parse_experiment
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.plan import Plan, make_plan
from shared.replay.errors import ReplayError

MOST_ROLES = 64  # of each kind; a run with more has another bottleneck than what is simulated here
STEPS_STORED = 10_000  # of each environment, a run's default; more where the first batch needs more


def bench_scaling(
    collectors: Sequence[int],
    learners: Sequence[int],
    *,
    seconds: float = 4.0,
    environments: int = 16,
    state_size: int = 29,
    action_size: int = 8,
    episode_length: int = 1000,
    unroll_length: int = 62,
    windows_per_update: int = 64,
    samples_per_insert: float = 1.0,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> dict[str, Any]:
    """One row for each number of `collectors` with each number of `learners`, 1 to 64 of both.

    Every collector and learner is a process of its own: a collector sends `environments` environments'
    random rows through the real `Inserter`, a learner decodes what the real `Sampler` gets from its table and throws
    it away. Tables, limiters and windows are a lockstep run's with these sizes (`make_plan`). Nothing steps, nothing
    trains, all shares this machine's cores: the figures are of the replay path alone. Defaults are the ant's sizes;
    random rows do not compress. `seconds`: measured of each row, once every learner has had a batch and the limiter
    holds somebody back.

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
        Setting(
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


def _figures(setting: Setting, seconds: float, python: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
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
            with Parent(Path(folder)) as parent:
                return measure(setting, seconds, address, server, parent, say), ""
        except (ReplayError, psutil.Error) as error:  # the latter of a process that died while it was looked at
            return dict.fromkeys((*FIGURES, *DETAILS)), str(server.exit_reason() or error)
        finally:
            server.stop()


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
