"""Bytes that an environment step takes on its way, of rows that an environment really made. Ray is not needed."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from collector.collector import Collector
from deploy.bench.entries import UNROLL, chunk_bytes, item_bytes
from shared.config_file import parse_experiment
from shared.envs.base import GoalEnv
from shared.networks import init_params, make_networks
from shared.params import Policy
from shared.plan import make_plan
from shared.replay.codec import INT_COLUMNS
from shared.stream.format import describe
from shared.stream.write import StreamWriter

ENVIRONMENTS = 16


def bench_row_bytes(envs: Mapping[str, GoalEnv], unrolls: int = 20) -> dict[str, Any]:
    """A row for each environment: bytes per environment step, of `unrolls` unrolls of 16 environments x 62 steps.

    `raw`: 4 (S + A) + 12. `wire`: as a chunk in a message to or from the server, keys and snappy included.
    `item`: what a window adds for each table, 62 steps' share of it. `sampled`: what one learner gets, for
    `samples_per_insert` 1: a window's chunks and its item, for every 62 steps. `recorded`, `tail`: in the stream's
    files, where all is kept (zstd) and where it is replay's backup (lz4). The policy is untrained, of depth 4.
    """
    return {"rows": [_row(env_id, env, unrolls) for env_id, env in envs.items()]}


def _row(env_id: str, env: GoalEnv, unrolls: int) -> dict[str, Any]:
    experiment = parse_experiment(
        {
            "env": env_id,
            "collector": {"width": 64, "environments": ENVIRONMENTS, "unroll_length": UNROLL},
            "algorithm": {"windows_per_update": 1, "minibatches_per_update": 1, "batch_size": 2},
        }
    )
    plan = make_plan(experiment, env.spec)
    actor = init_params(make_networks(experiment.collector, env.spec), env.spec, jax.random.key(0)).actor
    collector = Collector(experiment, plan, env, index=0)
    description = describe(experiment, plan, env.spec)
    wire_bytes = 0
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        recorded = StreamWriter(Path(folder) / "recorded", 0, description)
        tail = StreamWriter(Path(folder) / "tail", 0, description, keep_unrolls=unrolls)
        for number in range(unrolls):
            columns = collector.collect(Policy(0, actor)).columns
            recorded.write(columns, number)
            tail.write(columns, number)
            wire_bytes += chunk_bytes(columns, number * UNROLL)
        steps = unrolls * ENVIRONMENTS * UNROLL
        files = {"recorded": recorded.close().bytes, "tail": tail.close().bytes}
    spec, item = env.spec, item_bytes(plan.chunks_per_window)
    return {
        "env": env_id,
        "state": spec.state_size,
        "action": spec.action_size,
        "chunks_per_window": plan.chunks_per_window,
        "raw": 4 * (spec.state_size + spec.action_size + INT_COLUMNS),
        "wire": wire_bytes / steps,
        "item": item / UNROLL,
        "sampled": plan.chunks_per_window * wire_bytes / steps + item / UNROLL,
        **{name: size / steps for name, size in files.items()},
    }
