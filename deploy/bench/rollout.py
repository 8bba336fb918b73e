"""Environment steps per second: bare, with a policy, and of a whole collector. Ray is not needed."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collector.collector import Collector
from collector.rollout import make_start, make_unroll
from shared.config import Experiment, parse_experiment
from shared.envs.base import EnvState, GoalEnv
from shared.networks import init_params, make_networks
from shared.params import Policy
from shared.plan import make_plan
from shared.policy import random_policy, stochastic_policy

_UNROLL_LENGTH = 62


def bench_rollout(
    env_id: str, env: GoalEnv, num_envs: int, depth: int, width: int, with_replay: bool, repeats: int
) -> dict[str, Any]:
    """Environment steps per second over unrolls of 62 steps; medians of `repeats`, interleaved.

    bare: a jitted loop with random actions over the physics alone, brax's pipeline; of plain JAX
    environments, over their step. rollout: the same with states, goals, resets and recorded rows.
    policy: that with a network of `depth` and `width`. collector: that and the insert into a replay server
    on this machine; None unless `with_replay`. overhead_ratio: bare over rollout, the median of the
    `repeats` pairs. compile_seconds: tracing and compiling the rollout.
    """
    experiment = parse_experiment(
        {
            "env": env_id,
            "collector": {
                "depth": depth,
                "width": width,
                "environments": num_envs,
                "unroll_length": _UNROLL_LENGTH,
            },
            "algorithm": {"windows_per_update": 1, "minibatches_per_update": 1, "batch_size": 2},
        }
    )
    networks = make_networks(experiment.collector, env.spec)
    key = jax.random.key(0)
    params = init_params(networks, env.spec, key).actor
    state = jax.jit(make_start(env, num_envs))(key)
    bare = jax.jit(_make_bare(env, num_envs))
    start = time.perf_counter()
    random = jax.jit(make_unroll(env, random_policy(env.spec.action_size), _UNROLL_LENGTH))
    rollout = random.lower(params, np.int32(0), state, key).compile()
    compile_seconds = time.perf_counter() - start
    unroll = jax.jit(make_unroll(env, stochastic_policy(networks.actor), _UNROLL_LENGTH))
    calls: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(state.env, key),
        "rollout": lambda: rollout(params, np.int32(0), state, key),
        "policy": lambda: unroll(params, np.int32(0), state, key),
    }
    result: dict[str, Any] = {"env": env_id, "num_envs": num_envs, "compile_seconds": compile_seconds}
    if with_replay:
        with tempfile.TemporaryDirectory() as folder:
            collect, close = _start_collector(experiment, env, Policy(0, params), Path(folder))
            try:
                return result | _measure(calls | {"collector": collect}, num_envs, repeats)
            finally:
                close()
    return result | _measure(calls, num_envs, repeats)


def _measure(calls: dict[str, Callable[[], Any]], num_envs: int, repeats: int) -> dict[str, float | None]:
    """Steps per second of each call, in turns, so that a slow moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    rates: dict[str, float | None] = {"collector_steps_per_second": None}
    for name, taken in seconds.items():
        rates[f"{name}_steps_per_second"] = num_envs * _UNROLL_LENGTH / statistics.median(taken)
    pairs = zip(seconds["rollout"], seconds["bare"], strict=True)
    return rates | {"overhead_ratio": statistics.median(rollout / bare for rollout, bare in pairs)}


def _make_bare(env: GoalEnv, num_envs: int) -> Callable[[EnvState, jax.Array], EnvState]:
    def bare(state: EnvState, key: jax.Array) -> EnvState:
        def step(state: EnvState, key: jax.Array) -> tuple[EnvState, None]:
            action = jax.random.uniform(key, (num_envs, env.spec.action_size), jnp.float32, -1, 1)
            return jax.vmap(_physics_step(env))(state, action), None

        return jax.lax.scan(step, state, jax.random.split(key, _UNROLL_LENGTH))[0]

    return bare


def _physics_step(env: GoalEnv) -> Callable[[EnvState, jax.Array], EnvState]:
    """The environment's step without states and goals, where its physics can be had alone."""
    physics = getattr(env, "physics", None)
    if physics is None:
        return env.step

    def step(state: EnvState, action: jax.Array) -> EnvState:
        return state._replace(physics=physics.step(state.physics, env.control(state.physics, action)))  # type: ignore[attr-defined]

    return step


def _start_collector(
    experiment: Experiment, env: GoalEnv, policy: Policy, folder: Path
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A collector that writes ahead and inserts into a server of its own: what to call for one unroll, and to end."""
    from deploy.replay_server.provision import reverb_python
    from deploy.replay_server.server import ReplayServer, TableSpec
    from shared.replay.insert import Inserter
    from shared.stream.format import describe
    from shared.stream.write import StreamWriter

    plan = make_plan(experiment, env.spec)
    collector = Collector(experiment, plan, env, index=0)
    server = ReplayServer(reverb_python(lambda text: None), folder / "server.log")
    address = server.start([TableSpec("bench", max_size=plan.max_windows, min_size_to_sample=1)])
    inserter = Inserter(address, ["bench"], plan.chunks_per_window, experiment.collector.environments)

    description = describe(experiment, plan, env.spec)
    writer = StreamWriter(folder / "stream", 0, description, keep_unrolls=plan.stored_unrolls)

    def collect() -> None:
        collected = collector.collect(policy)
        writer.write(collected.columns, collected.number)
        inserter.insert(collected.columns, collected.number)

    def close() -> None:
        inserter.close()
        writer.close()
        server.stop()

    for _ in range(plan.chunks_per_window):  # until every unroll makes windows, as in a run
        collect()
    return collect, close
