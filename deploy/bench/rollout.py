"""Environment steps per second: bare, with a policy, and of a whole collector. Ray is not needed."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collector.collector import Collector
from collector.rollout import make_start, make_unroll
from shared.config import Experiment
from shared.config_file import parse_experiment
from shared.envs.base import EnvState, GoalEnv
from shared.networks import init_params, make_networks
from shared.params import Policy
from shared.plan import make_plan
from shared.policy import random_policy, stochastic_policy

_UNROLL_LENGTH = 62
_UNROLLS_IN_A_TURN = 12  # of a collector, which works at two unrolls at once and has two messages on their way

Calls = dict[str, Callable[[int], Any]]  # each makes so many unrolls
Seconds = dict[str, list[float]]


def bench_rollout(
    env_id: str, env: GoalEnv, num_envs: int, depth: int, width: int, with_replay: bool, repeats: int
) -> dict[str, Any]:
    """Environment steps per second over unrolls of 62 steps; medians of `repeats`, interleaved.

    bare: a jitted loop with random actions over the physics alone, brax's pipeline; of plain JAX
    environments, over their step. rollout: the same with states, goals, resets and recorded rows.
    policy: that with a network of `depth` and `width`. collector: that, written ahead and inserted into a
    replay server on this machine; None unless `with_replay`. overhead_ratio: bare over rollout, collector_ratio:
    collector over policy; both the median of the `repeats` pairs. compile_seconds: tracing and compiling the
    rollout. A turn is one unroll, with replay twelve.
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
    key = jax.random.key(0)
    policy = _policy(experiment, env)
    state = jax.jit(make_start(env, num_envs))(key)
    bare = jax.jit(_make_bare(env, num_envs))
    start = time.perf_counter()
    random = jax.jit(make_unroll(env, random_policy(env.spec.action_size), _UNROLL_LENGTH))
    rollout = random.lower(policy.params, np.int32(0), state, key).compile()
    compile_seconds = time.perf_counter() - start
    calls: Calls = {
        "bare": _again(lambda: bare(state.env, key)),
        "rollout": _again(lambda: rollout(policy.params, np.int32(0), state, key)),
        "policy": _unroll_with_policy(experiment, env, policy),
    }
    with contextlib.ExitStack() as stack:
        if with_replay:
            calls["collector"] = stack.enter_context(_collector(experiment, env, policy))
        seconds = _measure(calls, repeats, _UNROLLS_IN_A_TURN if with_replay else 1)
    return {
        "env": env_id,
        "num_envs": num_envs,
        "depth": depth,
        "width": width,
        "compile_seconds": compile_seconds,
        "collector_steps_per_second": None,
        **_rates(seconds, num_envs * _UNROLL_LENGTH),
        "overhead_ratio": _ratio(seconds["rollout"], seconds["bare"]),
        "collector_ratio": _ratio(seconds["policy"], seconds["collector"]) if with_replay else None,
    }


def bench_collector(experiment: Experiment, env: GoalEnv, repeats: int) -> dict[str, float]:
    """The experiment's collector, inserting into a server that limits nobody, over the rollout with its policy.

    `policy_steps_per_second`, `collector_steps_per_second`, `collector_ratio`: as in `bench_rollout`.
    """
    policy = _policy(experiment, env)
    with _collector(experiment, env, policy) as collect:
        calls: Calls = {"policy": _unroll_with_policy(experiment, env, policy), "collector": collect}
        seconds = _measure(calls, repeats, _UNROLLS_IN_A_TURN)
    steps = experiment.collector.environments * experiment.collector.unroll_length
    return {**_rates(seconds, steps), "collector_ratio": _ratio(seconds["policy"], seconds["collector"])}


def _policy(experiment: Experiment, env: GoalEnv) -> Policy:
    networks = make_networks(experiment.collector, env.spec)
    return Policy(0, init_params(networks, env.spec, jax.random.key(0)).actor)


def _again(call: Callable[[], Any]) -> Callable[[int], None]:
    def calls(unrolls: int) -> None:
        for _ in range(unrolls):
            jax.block_until_ready(call())

    return calls


def _unroll_with_policy(experiment: Experiment, env: GoalEnv, policy: Policy) -> Callable[[int], None]:
    """The rollout with the network, and nothing else: what a collector is measured against."""
    config, key = experiment.collector, jax.random.key(0)
    actor = stochastic_policy(make_networks(config, env.spec).actor)
    unroll = jax.jit(make_unroll(env, actor, config.unroll_length, experiment.env_options.fixed_goals))
    state = jax.jit(make_start(env, config.environments))(key)
    params = jax.device_put(policy.params)
    return _again(lambda: unroll(params, np.int32(0), state, key))


def _measure(calls: Calls, repeats: int, unrolls: int) -> Seconds:
    """Seconds of an unroll of each call, in turns of `unrolls`, so that a slow moment of the machine meets all."""
    seconds: Seconds = {name: [] for name in calls}
    for call in calls.values():
        call(1)
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call(unrolls)
            seconds[name].append((time.perf_counter() - start) / unrolls)
    return seconds


def _rates(seconds: Seconds, steps: int) -> dict[str, float]:
    return {f"{name}_steps_per_second": steps / statistics.median(taken) for name, taken in seconds.items()}


def _ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


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


@contextlib.contextmanager
def _collector(experiment: Experiment, env: GoalEnv, policy: Policy) -> Iterator[Callable[[int], None]]:
    """A collector that writes ahead and inserts into a server of its own, which limits nobody."""
    from deploy.replay.server.process import ReplayServer, TableSpec
    from deploy.replay.server.provision import reverb_python
    from shared.replay.insert import Inserter
    from shared.stream.format import describe
    from shared.stream.write import StreamWriter

    plan = make_plan(experiment, env.spec)
    collector = Collector(experiment, plan, env, index=0)
    description = describe(experiment, plan, env.spec)
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder, contextlib.ExitStack() as stack:
        server = ReplayServer(reverb_python(lambda text: None), Path(folder) / "server.log")
        stack.callback(server.stop)
        address = server.start([TableSpec("bench", max_size=plan.max_windows, min_size_to_sample=1)])
        writer = StreamWriter(Path(folder) / "stream", 0, description, keep_unrolls=plan.stored_unrolls)
        stack.callback(writer.close)
        inserter = Inserter(address, ["bench"], plan.chunks_per_window, experiment.collector.environments)
        stack.callback(inserter.close)

        policy = Policy(policy.version, jax.device_put(policy.params))

        def collect(unrolls: int) -> None:  # as `Collector.run` does, which knows no end in the middle of its budget
            collector.begin(policy)
            for left in reversed(range(unrolls)):
                collected = collector.finish()
                ahead = left > 0 and inserter.room
                if ahead:
                    collector.begin(policy)
                writer.write(collected.columns, collected.number)
                inserter.insert(collected.columns, collected.number)
                if left > 0 and not ahead:
                    collector.begin(policy)

        collect(plan.chunks_per_window)  # until every unroll makes windows, as in a run
        yield collect
