"""The learner: windows from replay, one jitted update after the other."""

import time
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from learner.devices import Layout, check_divides, make_layout
from learner.guard import Guard
from learner.state import LearnerState, init_state, make_optimisers
from learner.update import UpdateStep, UpdateSteps, make_update_step, make_update_steps
from shared.config import AlgorithmConfig, Experiment
from shared.envs.base import EnvSpec
from shared.metrics import Reporter
from shared.networks import Networks, make_networks
from shared.params import Policy
from shared.plan import Plan
from shared.replay.codec import Columns
from shared.types import Array, Metrics

_KEY_DOMAIN = 3  # apart from the collectors' and the evaluator's keys


class _Kind(NamedTuple):
    """What an update is compiled for. Learners of one kind differ by their states alone."""

    networks: Networks
    algorithm: AlgorithmConfig
    plan: Plan
    spec: EnvSpec
    layout: Layout


@lru_cache
def _jitted_update(kind: _Kind) -> UpdateStep:
    """Learners of one kind are compiled once."""
    networks, algorithm, plan, spec, (replicated, split) = kind
    update_step = make_update_step(networks, make_optimisers(algorithm), algorithm, plan, spec, split)
    return jax.jit(
        update_step, donate_argnums=0, in_shardings=(replicated, split), out_shardings=(replicated, replicated)
    )


@lru_cache
def _jitted_updates(kind: _Kind) -> UpdateSteps:
    networks, algorithm, plan, spec, _ = kind
    update_step = make_update_step(networks, make_optimisers(algorithm), algorithm, plan, spec)
    return jax.jit(make_update_steps(update_step), donate_argnums=0)


@lru_cache
def _jitted_init(networks: Networks, algorithm: AlgorithmConfig, spec: EnvSpec) -> Callable[[Array], LearnerState]:
    return jax.jit(partial(init_state, networks, make_optimisers(algorithm), spec))


class Learner:
    """Trains one network. Knows neither Ray nor Reverb. All learners, active or passive, are this class."""

    def __init__(
        self,
        experiment: Experiment,
        plan: Plan,
        spec: EnvSpec,
        name: str,
        reports: Path | None = None,
        devices: tuple[jax.Device, ...] | None = None,
    ) -> None:
        """`reports`: the folder for what is kept of gradient steps that are not finite; none: nothing is.

        `devices`: on which it trains; none: on all of this process. Raises ValueError where minibatches cannot be
        shared out among them.
        """
        self.name = name
        self._plan = plan
        self._layout = make_layout(devices)
        check_divides(self._layout, plan)
        self.state = jax.device_put(self.initial_state(experiment, spec, name), self._layout.replicated)
        networks = make_networks(experiment.learner(name), spec)
        self.kind = _Kind(networks, experiment.algorithm, plan, spec, self._layout)
        self._guard = Guard(experiment.algorithm, plan, spec, name, reports)
        self.updates = 0

    @staticmethod
    def initial_state(experiment: Experiment, spec: EnvSpec, name: str) -> LearnerState:
        """The learner called `name` before its first update."""
        config = experiment.learner(name)
        key = jax.random.fold_in(jax.random.key(experiment.seed), _KEY_DOMAIN)
        # By name, not by position: a learner added to an experiment changes no other.
        key = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), config.seed)
        return _jitted_init(make_networks(config, spec), experiment.algorithm, spec)(key)

    def update(self, windows: Columns) -> Metrics:
        """One update on Columns `[windows_per_update, K * T, ...]`; waits until it is done, and times it.

        Raises NonFiniteError where too few of its gradient steps are finite to go on; the state is then what
        those made of it.
        """
        start, key = time.perf_counter(), self._key()
        self.state, metrics = _jitted_update(self.kind)(self.state, windows)
        return self._after(metrics, windows, key, start)

    @staticmethod
    def update_together(learners: Sequence["Learner"], windows: Sequence[Columns]) -> list[Metrics]:
        """`update` of learners of one `kind` on one device, each on its own windows, as one computation.

        Equal to theirs one by one but for rounding.
        """
        start, keys = time.perf_counter(), [learner._key() for learner in learners]
        states = tuple(learner.state for learner in learners)
        states, metrics = _jitted_updates(learners[0].kind)(states, tuple(windows))
        for learner, state in zip(learners, states, strict=True):
            learner.state = state
        return [
            learner._after(row, each, key, start)
            for learner, row, each, key in zip(learners, metrics, windows, keys, strict=True)
        ]

    def _key(self) -> np.ndarray:
        return np.array(jax.random.key_data(self.state.key))  # a copy: the update takes the device's buffer

    def _after(self, metrics: Metrics, windows: Columns, key: np.ndarray, start: float) -> Metrics:
        self.updates += 1
        metrics = self._guard.check(self.updates, metrics, windows, key)
        row = {name: float(value) for name, value in metrics.items()}
        return row | {"update_seconds": time.perf_counter() - start}

    def resume(self, state: LearnerState) -> None:
        """From a state that was kept."""
        self.state, self.updates = jax.device_put(state, self._layout.replicated), int(state.updates)

    def policy(self) -> Policy:
        """The actor as it stands, on the host: the next update takes the device's buffers."""
        return Policy(self.updates, jax.device_get(self.state.actor))

    def counts(self, windows_inserted: int, env_steps: int) -> Metrics:
        """How far this learner is, against what was `windows_inserted` into its table and stepped."""
        plan = self._plan
        eligible = windows_inserted - plan.prefill_windows
        gradient_steps = self.updates * plan.minibatches_per_update
        return {
            "updates": self.updates,
            "gradient_steps": gradient_steps,
            "env_steps": env_steps,
            "samples_per_insert": self.updates * plan.windows_per_update / eligible if eligible > 0 else 0.0,
            "utd": gradient_steps / env_steps if env_steps else 0.0,
        }

    def run(
        self,
        sample: Callable[[], Columns],
        windows_inserted: Callable[[], int],
        publish: Callable[[Policy], None],
        snapshot: Callable[[Policy], None],
        keep: Callable[[], object],
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        """Trains until the updates owed are made or `should_stop()`.

        `sample` blocks until replay gives windows; `publish` gets every policy, `snapshot` those to evaluate;
        `keep` may keep the state after each update.
        """
        publish(self.policy())
        if self.updates in self._plan.evaluation_updates:
            snapshot(self.policy())
        while self.updates < self._plan.updates and not should_stop():
            with reporter.waiting("replay starved"):
                windows = sample()
            inserted = windows_inserted()
            metrics = self.update(windows)
            policy = self.policy()
            with reporter.waiting("publish"):
                publish(policy)
                if self.updates in self._plan.evaluation_updates:
                    snapshot(policy)
            with reporter.waiting("keeping its state"):
                keep()
            reporter.row(self.describe(metrics, inserted), index=self.updates)

    def describe(self, metrics: Metrics, windows_inserted: int) -> Metrics:
        """One row: `metrics` of the last update, how far the learner is, and how old its data were."""
        plan = self._plan
        unrolls = windows_inserted / plan.environments + plan.chunks_per_window - 1
        newest_step = unrolls * plan.unroll_length - 1
        row = metrics | self.counts(windows_inserted, round((newest_step + 1) * plan.environments))
        row["sample_age"] = newest_step - row.pop("data/last_step")
        return row
