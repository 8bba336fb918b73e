"""The learner: samples windows from replay and makes one jitted update after the other."""

import time
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learner.acting import policy_params
from learner.devices import Layout, check_divides, make_layout
from learner.guard import Guard
from learner.objectives.base import Objective
from learner.objectives.registry import make_objective
from learner.state import LearnerState, init_state
from learner.update import make_update_step, make_update_steps
from shared.config import Experiment
from shared.envs.base import EnvSpec
from shared.metrics import Reporter
from shared.params import Policy
from shared.plan import Plan
from shared.programs import keep_program
from shared.replay.codec import INT_COLUMNS, Columns
from shared.types import Metrics

_KEY_DOMAIN = 3  # separates learners' keys from those of collectors and evaluator

Update = Callable[[Columns], Metrics]


class _Kind(NamedTuple):
    """Everything that an update is compiled for. Learners of one kind differ by their states alone."""

    objective: Objective
    plan: Plan
    layout: Layout


@lru_cache
def _jitted_update(kind: _Kind) -> jax.stages.Wrapped:
    objective, plan, (replicated, split) = kind
    update_step = make_update_step(objective, plan, split)
    if _is_alone(kind):
        update_step = keep_program(update_step, objective, plan)
    return jax.jit(
        update_step, donate_argnums=0, in_shardings=(replicated, split), out_shardings=(replicated, replicated)
    )


@lru_cache
def _jitted_updates(kind: _Kind) -> jax.stages.Wrapped:
    update_steps = make_update_steps(make_update_step(kind.objective, kind.plan))
    return jax.jit(keep_program(update_steps, kind.objective, kind.plan), donate_argnums=0)


@lru_cache
def _jitted_init(objective: Objective) -> jax.stages.Wrapped:
    def init(key: jax.Array) -> LearnerState:
        return init_state(objective, key)

    return jax.jit(keep_program(init, objective))


def _is_alone(kind: _Kind) -> bool:
    """True if the update is for the default device alone."""
    return [*kind.layout.split.mesh.devices.flat] == jax.devices()[:1]


class Learner:
    """Trains one network; all learners, active or passive, are this class. It imports neither Ray nor Reverb."""

    def __init__(
        self,
        experiment: Experiment,
        plan: Plan,
        spec: EnvSpec,
        name: str,
        reports: Path | None = None,
        devices: tuple[jax.Device, ...] | None = None,
    ) -> None:
        """Initialises the learner called `name`.

        Args:
            spec: sizes of the environment.
            name: a key of `experiment.all_learners`.
            reports: folder for reports of gradient steps that are not finite; none: no reports.
            devices: devices to train on; none: all devices of this process.

        Raises:
            ValueError: minibatches cannot be divided evenly among the devices.
        """
        self.name = name
        self._plan = plan
        self._best_of = experiment.collector.best_of, experiment.evaluation.best_of
        self._layout = make_layout(devices)
        check_divides(self._layout, plan)
        self.state = jax.device_put(self.initial_state(experiment, spec, name), self._layout.replicated)
        objective = make_objective(experiment, name, spec)
        self.kind = _Kind(objective, plan, self._layout)
        self._guard = Guard(objective, plan, name, reports)
        self.updates = 0

    @staticmethod
    def initial_state(experiment: Experiment, spec: EnvSpec, name: str) -> LearnerState:
        """Returns the state of the learner called `name` before its first update."""
        config = experiment.learner(name)
        shared = key = jax.random.fold_in(jax.random.key(experiment.seed), _KEY_DOMAIN)
        # By name, not by position: a learner added to an experiment changes no other.
        key = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), config.seed)
        state = _jitted_init(make_objective(experiment, name, spec))(key)
        # Every update draws its goals, its order and its noise by this key.
        return state._replace(key=jax.random.fold_in(shared, 0)) if experiment.replay.same_batches else state

    def prepare(self) -> None:
        """Compiles the update, which its first call would do otherwise."""
        _jitted_update(self.kind).lower(self.state, self._windows).compile()

    @staticmethod
    def prepare_together(learners: Sequence["Learner"]) -> None:
        """Compiles the joint update of several learners; see `update_together`."""
        states = tuple(learner.state for learner in learners)
        _jitted_updates(learners[0].kind).lower(states, tuple(learner._windows for learner in learners)).compile()

    @property
    def _windows(self) -> Columns:
        """The windows of one update, as `_place` returns them, without content."""
        objective, plan, layout = self.kind
        rows, row_floats = (plan.windows_per_update, plan.window_rows), objective.spec.row_floats
        shapes = jax.eval_shape(
            lambda: Columns(jnp.zeros((*rows, row_floats)), jnp.zeros((*rows, INT_COLUMNS), jnp.int32))
        )
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.split), shapes)

    def _place(self, windows: Columns) -> Columns:
        """Returns windows where the update takes them; elsewhere, it would be compiled again for their place."""
        return jax.device_put(windows, self._layout.split)

    def update(self, windows: Columns) -> Metrics:
        """Makes one update on Columns `[windows_per_update, K * T, ...]`, waits until it is done, and times it.

        Raises:
            NonFiniteError: too few of the update's gradient steps are finite. The state has the finite steps only.
        """
        start, key = time.perf_counter(), self._key()
        self.state, metrics = _jitted_update(self.kind)(self.state, self._place(windows))
        return self._finish_update(metrics, windows, key, start)

    @staticmethod
    def update_together(learners: Sequence["Learner"], windows: Sequence[Columns]) -> list[Metrics]:
        """Performs one `update` of each of several learners as one joint computation, each on its own windows.

        All learners are of one `kind` and on one device. Results equal separate updates up to rounding.
        """
        start, keys = time.perf_counter(), [learner._key() for learner in learners]
        states = tuple(learner.state for learner in learners)
        placed = tuple(learner._place(each) for learner, each in zip(learners, windows, strict=True))
        states, metrics = _jitted_updates(learners[0].kind)(states, placed)
        for learner, state in zip(learners, states, strict=True):
            learner.state = state
        return [
            learner._finish_update(row, each, key, start)
            for learner, row, each, key in zip(learners, metrics, windows, keys, strict=True)
        ]

    def _key(self) -> np.ndarray:
        return np.array(jax.random.key_data(self.state.key))  # a copy: the update takes the device's buffer

    def _finish_update(self, metrics: Metrics, windows: Columns, key: np.ndarray, start: float) -> Metrics:
        self.updates += 1
        metrics = self._guard.check(self.updates, metrics, windows, key)
        row = {name: float(value) for name, value in metrics.items()}
        return row | {"update_seconds": time.perf_counter() - start}

    def resume(self, state: LearnerState) -> None:
        """Continues from `state`, with its number of updates."""
        self.state, self.updates = jax.device_put(state, self._layout.replicated), int(state.updates)

    def run(
        self,
        sample: Callable[[], Columns],
        windows_inserted: Callable[[], int],
        publish: Callable[[Policy], None] | None,
        submit: Callable[[Policy], None],
        save: Callable[[], object],
        reporter: Reporter,
        should_stop: Callable[[], bool],
        update: Update | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Trains until all updates of the plan are made or `should_stop()`.

        The update is compiled while replay fills. The first policy is submitted after the first update, since compiling
        its evaluation delays whatever else compiles or computes on the same cores.

        Args:
            sample: returns the windows of one update; blocks until replay has them.
            windows_inserted: returns the number of windows inserted into this learner's table so far.
            publish: gets every policy; none for a passive learner.
            submit: gets the policies that the plan wants evaluated.
            save: may save the state; called after each update.
            reporter: gets one row per update.
            should_stop: asked before each update.
            update: makes one update on windows; none: `self.update`.
            prepare: compiles `update`; none: `self.prepare`.
        """
        update, prepare = update or self.update, prepare or self.prepare
        unevaluated = self._hand_out(publish)
        if self.updates < self._plan.updates and not should_stop():
            prepare()
        while self.updates < self._plan.updates and not should_stop():
            with reporter.waiting("replay starved"):
                windows = sample()
            inserted = windows_inserted()
            metrics = update(windows)
            with reporter.waiting("publish"):
                unevaluated += self._hand_out(publish)
                _submit_all(unevaluated, submit)
            with reporter.waiting("keeping its state"):
                save()
            reporter.row(self.describe(metrics, inserted), index=self.updates)
        _submit_all(unevaluated, submit)  # of a learner that resumes after its last update

    def _hand_out(self, publish: Callable[[Policy], None] | None) -> list[Policy]:
        """Publishes the policy. Returns the policy to submit if the plan wants it evaluated."""
        is_evaluated = self.updates in self._plan.evaluation_updates
        if publish is None and not is_evaluated:
            return []
        collecting, evaluation = self._best_of
        ranks = (publish is not None and collecting > 1) or (is_evaluated and evaluation > 1)
        # Copied to the host: the next update takes the device's buffers.
        actor, critic = jax.device_get((self.state.actor, self.state.critic if ranks else ()))
        if publish is not None:
            publish(Policy(self.updates, policy_params(actor, critic, collecting)))
        return [Policy(self.updates, policy_params(actor, critic, evaluation))] if is_evaluated else []

    def describe(self, metrics: Metrics, windows_inserted: int) -> Metrics:
        """Returns one row: the last update's `metrics`, the learner's counts, and the age of its data.

        `windows_inserted` is the number of windows in this learner's table when the update was sampled.
        """
        plan = self._plan
        unrolls = windows_inserted / plan.environments + plan.chunks_per_window - 1
        newest_step = unrolls * plan.unroll_length - 1
        env_steps = round((newest_step + 1) * plan.environments)
        eligible = windows_inserted - plan.prefill_windows
        gradient_steps = self.updates * plan.minibatches_per_update
        row = metrics | {
            "updates": self.updates,
            "gradient_steps": gradient_steps,
            "env_steps": env_steps,
            "samples_per_insert": self.updates * plan.windows_per_update / eligible if eligible > 0 else 0.0,
            "utd": gradient_steps / env_steps if env_steps else 0.0,
        }
        row["sample_age"] = newest_step - row.pop("data/last_step")
        return row


def _submit_all(policies: list[Policy], submit: Callable[[Policy], None]) -> None:
    while policies:
        submit(policies.pop(0))
