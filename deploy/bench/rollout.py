"""Environment steps per second: bare, with a policy, and of a whole collector. Ray is not needed."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collector.collector import Collector
from collector.rollout import in_full, make_start, make_unroll
from deploy.bench.harness import replay_server, take_turns
from learner.acting import collecting_policy, policy_params
from learner.objectives.registry import make_objective
from shared.config import ACTIVE, EnvOptions, Experiment
from shared.config_file import parse_experiment
from shared.envs.base import EnvSpec, EnvState, GoalEnv
from shared.params import Policy
from shared.plan import make_plan
from shared.policy import random_policy
from shared.types import Array, Params

_UNROLL_LENGTH = 62
_COLLECTOR_UNROLLS = 12  # in a turn: a collector works at two unrolls at once and has two messages in flight

Loop = Callable[[int], Any]  # makes a number of unrolls


def bench_rollout(
    env_id: str,
    env_options: EnvOptions,
    env: GoalEnv,
    num_envs: int,
    depth: int,
    width: int,
    with_replay: bool,
    repeats: int,
) -> dict[str, Any]:
    """Returns environment steps per second over unrolls of 62 steps: medians of `repeats`, taken in turns.

    bare: a jitted loop with random actions over the physics alone (brax's pipeline), or over the step of plain JAX
    environments. rollout: the same with states, goals, resets and recorded rows. policy: a rollout with a network of
    `depth` and `width`. collector: a rollout with the policy, written to a stream and inserted into a replay server on
    this machine; None unless `with_replay`. overhead_ratio: bare to rollout; collector_ratio: collector to policy;
    both are the median of the `repeats` pairs. compile_seconds: tracing and compiling the rollout. A turn is one
    unroll, with replay twelve.
    """
    experiment = collector_experiment(
        env_id, env_options, depth=depth, width=width, environments=num_envs, unroll_length=_UNROLL_LENGTH
    )
    key = jax.random.key(0)
    params = random_policy_params(experiment, env.spec)
    state = jax.jit(make_start(env, num_envs))(key)
    bare = jax.jit(_make_bare(env, num_envs))
    start = time.perf_counter()
    random = jax.jit(make_unroll(env, random_policy(env.spec.action_size), _UNROLL_LENGTH))
    rollout = random.lower(params, np.int32(0), state, key).compile()
    compile_seconds = time.perf_counter() - start
    loops: dict[str, Loop] = {
        "bare": _repeated(bare, state.env, key),
        "rollout": _repeated(rollout, params, np.int32(0), state, key),
        "policy": _policy_loop(experiment, env, params),
    }
    with ExitStack() as stack:
        if with_replay:
            loops["collector"] = stack.enter_context(_collector_loop(experiment, env, params))
        figures = _measure(loops, repeats, _COLLECTOR_UNROLLS if with_replay else 1, num_envs * _UNROLL_LENGTH)
    return {
        "env": env_id,
        "env_options": ", ".join(
            f"{name}: {value}" for name, value in env_options.model_dump(exclude_defaults=True).items()
        ),
        "num_envs": num_envs,
        "depth": depth,
        "width": width,
        "compile_seconds": compile_seconds,
        "collector_steps_per_second": None,
        "collector_ratio": None,
        **figures,
    }


def bench_collector(experiment: Experiment, env: GoalEnv, repeats: int) -> dict[str, float]:
    """Returns the speed of the experiment's collector, with a server that limits nothing, and of its policy's rollout.

    `policy_steps_per_second`, `collector_steps_per_second`, `collector_ratio`: as in `bench_rollout`.
    """
    params = random_policy_params(experiment, env.spec)
    with _collector_loop(experiment, env, params) as collect:
        loops: dict[str, Loop] = {"policy": _policy_loop(experiment, env, params), "collector": collect}
        steps = experiment.collector.environments * experiment.collector.unroll_length
        return _measure(loops, repeats, _COLLECTOR_UNROLLS, steps)


def collector_experiment(env_id: str, env_options: EnvOptions | None = None, **collector: int) -> Experiment:
    """Returns an experiment for its collector alone: a learner's update has one tiny minibatch."""
    algorithm = {"windows_per_update": 1, "minibatches_per_update": 1, "batch_size": 2}
    values = {"env": env_id, "env_options": env_options or EnvOptions(), "collector": collector, "algorithm": algorithm}
    return parse_experiment(values)


def random_policy_params(experiment: Experiment, spec: EnvSpec) -> Params:
    """Returns random parameters of the collectors' policy, on the device."""
    objective, best_of = make_objective(experiment, ACTIVE, spec), experiment.collector.best_of

    @jax.jit
    def init(key: Array) -> Params:
        return policy_params(*objective.init(key), best_of)  # XLA leaves out a critic that is not returned

    return jax.block_until_ready(init(jax.random.key(0)))


def _repeated(call: Callable[..., Any], *arguments: Any) -> Loop:
    def loop(unrolls: int) -> None:
        for _ in range(unrolls):
            jax.block_until_ready(call(*arguments))

    return loop


def _policy_loop(experiment: Experiment, env: GoalEnv, params: Params) -> Loop:
    """Returns the rollout with the network and nothing else, to which a collector is compared."""
    config, key = experiment.collector, jax.random.key(0)
    policy, chunk = collecting_policy(experiment, env.spec), experiment.algorithm_of(ACTIVE).chunk
    unroll = jax.jit(make_unroll(env, policy, config.unroll_length, experiment.env_options.fixed_goals))
    state = jax.jit(make_start(env, config.environments, chunk))(key)
    return _repeated(unroll, params, np.int32(0), state, key)


def _measure(loops: dict[str, Loop], repeats: int, unrolls: int, steps: int) -> dict[str, float]:
    """Returns each loop's environment steps a second, and ratios, in turns of `unrolls` unrolls of `steps` steps."""

    def seconds_per_unroll(loop: Loop) -> float:
        start = time.perf_counter()
        loop(unrolls)
        return (time.perf_counter() - start) / unrolls

    for loop in loops.values():
        loop(1)  # compiles
    seconds = take_turns({name: partial(seconds_per_unroll, loop) for name, loop in loops.items()}, repeats)
    figures = {f"{name}_steps_per_second": steps / statistics.median(taken) for name, taken in seconds.items()}
    for ratio, fast, slow in (("overhead_ratio", "bare", "rollout"), ("collector_ratio", "collector", "policy")):
        if fast in seconds:
            pairs = zip(seconds[slow], seconds[fast], strict=True)
            figures[ratio] = statistics.median(one / other for one, other in pairs)
    return figures


def _make_bare(env: GoalEnv, num_envs: int) -> Callable[[EnvState, jax.Array], EnvState]:
    """Returns a loop over the environment's physics alone, or over its step if the environment has no `physics`."""
    physics: Any = getattr(env, "physics", None)

    def physics_step(state: EnvState, action: jax.Array) -> EnvState:
        control = env.control(state.physics, action)  # type: ignore[attr-defined]
        return state._replace(physics=physics.step(state.physics, control))

    env_step = jax.vmap(in_full(env.step if physics is None else physics_step))

    def step(state: EnvState, key: jax.Array) -> tuple[EnvState, None]:
        return env_step(state, jax.random.uniform(key, (num_envs, env.spec.action_size), jnp.float32, -1, 1)), None

    return lambda state, key: jax.lax.scan(step, state, jax.random.split(key, _UNROLL_LENGTH))[0]


@contextmanager
def _collector_loop(experiment: Experiment, env: GoalEnv, params: Params) -> Iterator[Loop]:
    """A collector that writes a stream and inserts into a server of its own, which limits nothing."""
    from deploy.replay.server.process import TableSpec
    from shared.replay.insert import Inserter
    from shared.stream.format import describe
    from shared.stream.write import StreamWriter

    plan = make_plan(experiment, env.spec)
    collector = Collector(experiment, plan, env, index=0, policy=collecting_policy(experiment, env.spec))
    policy = Policy(0, params)
    table = TableSpec("bench", max_size=plan.max_windows, min_size_to_sample=1)
    with ExitStack() as stack:
        _, address, folder = stack.enter_context(replay_server([table]))
        description = describe(experiment, plan, env.spec)
        writer = StreamWriter(folder / "stream", 0, description, keep_unrolls=plan.stored_unrolls)
        stack.callback(writer.close)
        inserter = Inserter(address, [table.name], plan.chunks_per_window, experiment.collector.environments)
        stack.callback(inserter.close)

        def collect(unrolls: int) -> None:
            """Collects as `Collector.run` does, which cannot end before its budget."""
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

        collect(plan.chunks_per_window)  # from then on every unroll completes windows
        yield collect
