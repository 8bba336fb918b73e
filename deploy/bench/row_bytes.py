"""Bytes of an environment step in messages and files, measured on an environment's own rows. Ray is not needed."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collector.collector import Collector
from deploy.bench.entries import UNROLL, chunk_bytes, item_bytes
from deploy.bench.rollout import collector_experiment, random_policy_params
from learner.acting import collecting_policy
from shared.envs.base import GoalEnv
from shared.params import Policy
from shared.plan import make_plan
from shared.replay.codec import INT_COLUMNS
from shared.stream.format import describe
from shared.stream.write import StreamWriter

ENVIRONMENTS = 16


def bench_row_bytes(envs: Mapping[str, GoalEnv], unrolls: int = 20) -> dict[str, Any]:
    """Returns a row for each environment: bytes per environment step of `unrolls` unrolls, 16 environments x 62 steps.

    `raw`: 4 (S + A + G) + 16. `wire`: in a chunk's message to or from the server, with keys. `item`: added by a
    window for each table, divided by its newest 62 steps. `sampled`: received by one learner at `samples_per_insert`
    1, which is a window's chunks and its item for every 62 steps. `recorded`, `tail`: in the stream's files, as a
    recording (zstd) and as replay's backup (uncompressed). The policy is untrained, of depth 4.
    """
    return {"rows": [_row(env_id, env, unrolls) for env_id, env in envs.items()]}


def _row(env_id: str, env: GoalEnv, unrolls: int) -> dict[str, Any]:
    experiment = collector_experiment(env_id, width=64, environments=ENVIRONMENTS, unroll_length=UNROLL)
    spec, plan = env.spec, make_plan(experiment, env.spec)
    policy = Policy(0, random_policy_params(experiment, spec))
    collector = Collector(experiment, plan, env, index=0, policy=collecting_policy(experiment, spec))
    description = describe(experiment, plan, spec)
    wire_bytes = 0
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        recorded = StreamWriter(Path(folder) / "recorded", 0, description)
        tail = StreamWriter(Path(folder) / "tail", 0, description, keep_unrolls=unrolls)
        for number in range(unrolls):
            columns = collector.collect(policy).columns
            recorded.write(columns, number)
            tail.write(columns, number)
            wire_bytes += chunk_bytes(columns, number * UNROLL)
        recorded_bytes, tail_bytes = recorded.close().bytes, tail.close().bytes
    steps = unrolls * ENVIRONMENTS * UNROLL
    item = item_bytes(plan.chunks_per_window) / UNROLL
    return {
        "env": env_id,
        "state": spec.state_size,
        "action": spec.action_size,
        "chunks_per_window": plan.chunks_per_window,
        "raw": 4 * (spec.row_floats + INT_COLUMNS),
        "wire": wire_bytes / steps,
        "item": item,
        "sampled": plan.chunks_per_window * wire_bytes / steps + item,
        "recorded": recorded_bytes / steps,
        "tail": tail_bytes / steps,
    }
