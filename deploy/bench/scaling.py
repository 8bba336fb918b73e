"""Load that one replay server carries: simulated collectors and learners on this machine against a real server."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import psutil

from deploy.bench.harness import replay_server, to_stderr
from deploy.bench.scaling_measure import DETAILS, FIGURES, measure, most_megabytes
from deploy.bench.scaling_roles import Setting, SimulatedRoles
from deploy.replay.server.process import TableSpec
from shared.config_file import parse_experiment
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.plan import Plan, make_plan
from shared.replay.errors import ReplayError

MOST_ROLES = 64  # of each kind; a larger run has another bottleneck than the simulated part
STEPS_STORED = 10_000  # of each environment, as a run stores by default; more if the first batch needs more


def bench_scaling(
    collectors: Sequence[int],
    learners: Sequence[int],
    *,
    seconds: float = 4.0,
    environments: int = 16,
    state_size: int = 29,
    action_size: int = 8,
    goal_size: int = 2,
    episode_length: int = 1000,
    unroll_length: int = 62,
    windows_per_update: int = 64,
    samples_per_insert: float = 1.0,
    say: Callable[[str], None] = to_stderr,
) -> dict[str, Any]:
    """Returns a row for each pair of a number in `collectors` and a number in `learners`, both 1 to 64.

    Every collector and every learner is a process. A collector sends random rows of `environments` environments, which
    do not compress, through the real `Inserter`. A learner drops the windows that the real `Sampler` decodes from its
    table. Tables, limiters and windows are those of a lockstep run of these sizes (`make_plan`). The figures are of the
    replay path alone: no environment is stepped and no network trained. All processes share this machine's cores.
    Default sizes are the ant's. A row is measured for `seconds`, once every learner has had a batch and the limiter
    holds a side back.

    `rows`: `roles`, collectors x learners, the row's name; `env_steps_per_second`, of all collectors, from the windows
    that the server took (mean of the tables); `windows_per_second`, of all learners; `megabytes_in`, `megabytes_out`,
    1e6 bytes of rows before compression a second; `server_cpu`, `collectors_cpu`, `learners_cpu` and `other_cpu` (all
    other processes), in cores; `server_megabytes`, resident; `saturated`: see `saturated`; `error`: the reason if a
    row could not be measured, its figures are None then.

    `details`, one for each row: `environments` of all collectors; `seconds` measured; `busiest_client_cpu`;
    `clients_megabytes`, shared pages divided among their users; `inserts_waited`, `samples_waited`: share of the time
    in which a table's inserts waited for samples, and its samples for inserts, means of the tables; `settled`: the
    limiter held a side back before the measurement; `samples_ahead`: least and greatest of samples -
    samples_per_insert * (inserts - prefill) of a table, at the end, bounded by `error_buffer`; `received_windows`,
    `received_bytes`: decoded by the learners from start to end; `load_average` of one minute.

    Raises ConfigError for sizes that do not fit together or into this machine's memory, and ProvisionError.
    """
    positive = {"seconds": seconds, "environments": environments, "state_size": state_size, "action_size": action_size}
    positive |= {"goal_size": goal_size, "episode_length": episode_length, "unroll_length": unroll_length}
    positive |= {"windows_per_update": windows_per_update, "samples_per_insert": samples_per_insert}
    for name, number in positive.items():
        if not 0 < number < math.inf:
            raise ConfigError(f"{name}: {number:g} is not a positive number")
    for name, counts in (("collectors", collectors), ("learners", learners)):
        if not counts:
            raise ConfigError(f"{name}: name one or more numbers")
        for count in counts:
            if not 1 <= count <= MOST_ROLES:
                raise ConfigError(f"{name}: {count} is not within 1..{MOST_ROLES}")
    goal_indices = tuple(range(goal_size))
    spec = EnvSpec(state_size, goal_size, action_size, goal_indices, episode_length, goal_radius=1.0, num_cells=1)
    settings = []
    free = psutil.virtual_memory().available / 1e6
    for num_collectors, num_learners in product(collectors, learners):
        plan = _plan(spec, num_collectors, environments, unroll_length, windows_per_update, samples_per_insert)
        setting = Setting(num_collectors, num_learners, environments, spec.row_floats, plan)
        settings.append(setting)
        if (most := most_megabytes(setting, seconds)) > free:
            raise ConfigError(
                f"collectors: {setting.collectors} with {setting.learners} learners may take"
                f" {most:,.0f} MB and {free:,.0f} are free; use fewer, or fewer environments or seconds"
            )
    rows, details = [], []
    for setting in settings:
        name = f"{setting.collectors} x {setting.learners}"
        roles = {"roles": name, "collectors": setting.collectors, "learners": setting.learners}
        figures, error = _figures(setting, seconds, say)
        rows.append(roles | {name: figures[name] for name in FIGURES} | {"error": error})
        details.append(roles | {name: figures[name] for name in DETAILS} | {"load_average": os.getloadavg()[0]})
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


def _plan(
    spec: EnvSpec, collectors: int, environments: int, unroll_length: int, windows: int, samples_per_insert: float
) -> Plan:
    """Returns a run's plan. Its update has one tiny minibatch, which fits any sizes: no gradient step is made."""
    chunks = math.ceil((spec.episode_length + unroll_length - 1) / unroll_length)
    due = collectors * environments * samples_per_insert  # for each unroll
    unrolls_before_training = chunks + 3 + math.ceil((2 * windows + 2) / due)
    stored = max(STEPS_STORED, unrolls_before_training * unroll_length)
    values = {
        "env": "bench",
        "collector": {"actors": collectors, "environments": environments, "unroll_length": unroll_length},
        "algorithm": {"windows_per_update": windows, "minibatches_per_update": 1, "batch_size": 2},
        "replay": {"samples_per_insert": samples_per_insert, "steps_per_environment": stored},
        "budget": {"env_steps": 10**12},
    }
    return make_plan(parse_experiment(values), spec)


def _figures(setting: Setting, seconds: float, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """Returns the figures of a server and its roles, or Nones and the error."""
    plan = setting.plan
    limits = (plan.max_windows, plan.prefill_windows, plan.samples_per_insert, plan.error_buffer)
    try:
        with (
            replay_server([TableSpec(table, *limits) for table in setting.tables]) as (server, address, folder),
            SimulatedRoles(setting, address, folder) as roles,
        ):
            return measure(roles, psutil.Process(server.pid), seconds, say), ""
    except ReplayError as error:
        return dict.fromkeys((*FIGURES, *DETAILS)), str(error)


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
