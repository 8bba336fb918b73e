from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collector.collector import Collector, coverage, make_collect, make_count
from collector.feeder import Feeder
from collector.rollout import ActionChunk, RolloutState, make_start, make_unroll
from shared.checkpoint import load, save
from shared.config import Experiment
from shared.errors import EnvironmentBroken, RunFailed
from shared.metrics import Reporter, Row
from shared.networks import make_actor
from shared.params import ParamStore, Policy
from shared.plan import Plan, make_plan
from shared.policy import StochasticPolicy
from shared.replay.codec import INT_COLUMNS, Columns, pack
from shared.replay.windows import VOID_EPISODE, is_void
from shared.types import Array, Params

N, T = 6, 5


class CollectorRun(NamedTuple):
    """Whole run of a collector. `other_columns`: first unroll of another collector."""

    plan: Plan
    inserted: list[Columns]
    rows: list[Row]
    visits: np.ndarray
    other_columns: Columns


EXPERIMENT = Experiment.model_validate(
    {
        "env": "counting",
        "collector": {"depth": 4, "width": 8, "environments": N, "unroll_length": T, "actors": 2},
        "algorithm": {"batch_size": 4, "windows_per_update": 4, "minibatches_per_update": 2},
        "replay": {"steps_per_environment": 200, "prefill_steps": 1},
        "budget": {"env_steps": 10 * 2 * N * T},
    }
)


def make_collector(env: Any, index: int, experiment: Experiment = EXPERIMENT) -> Collector:
    actor = make_actor(experiment.collector, env.spec, experiment.algorithm.chunk)
    return Collector(experiment, make_plan(experiment, env.spec), env, index, StochasticPolicy(actor))


def actor_params(env: Any, experiment: Experiment = EXPERIMENT) -> Params:
    actor = make_actor(experiment.collector, env.spec, experiment.algorithm.chunk)
    return jax.jit(actor.init)(jax.random.key(0), np.zeros(env.spec.state_size), np.zeros(env.spec.goal_size))


def run_collector(counting: Any, room: bool) -> CollectorRun:
    """Runs a collector until its budget is spent. After every second insert, a new policy is published."""
    experiment = EXPERIMENT
    env, store, reporter, inserted = counting(), ParamStore(), Reporter(), []
    plan = make_plan(experiment, env.spec)
    params = actor_params(env)
    store.publish(Policy(0, params))

    def insert(number: int, columns: Columns) -> None:
        assert number == len(inserted)
        inserted.append(columns)
        if len(inserted) % 2 == 0:
            store.publish(Policy(len(inserted), params))

    collector = make_collector(env, index=0)
    collector.run(store.newest, insert, lambda: room, reporter, should_stop=lambda: False)
    other = make_collector(env, index=1).collect(Policy(0, params)).columns
    return CollectorRun(plan, inserted, reporter.drain().rows, collector.position.visits, other)


@pytest.fixture(scope="module")
def run(counting: Any) -> CollectorRun:
    return run_collector(counting, room=False)


def test_a_collector_inserts_every_unroll_of_its_budget(run: CollectorRun) -> None:
    assert len(run.inserted) == run.plan.unrolls == 10
    for columns in run.inserted:
        assert columns.floats.shape == (N, T, 3 + 2 + 2)
        assert columns.ints.shape == (N, T, INT_COLUMNS)
        assert isinstance(columns.floats, np.ndarray)
    steps = np.concatenate([columns.ints[..., 1] for columns in run.inserted], axis=1)
    np.testing.assert_array_equal(steps, np.tile(np.arange(10 * T), (N, 1)))  # axis 1 is time


def test_a_collector_acts_with_the_newest_policy(run: CollectorRun) -> None:
    versions = [set(columns.ints[..., 2].ravel()) for columns in run.inserted]
    assert versions == [{0}, {0}, {2}, {2}, {4}, {4}, {6}, {6}, {8}, {8}]
    assert [row["policy_version"] for row in run.rows] == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]
    assert [row["policy_lag"] for row in run.rows] == [0, 2] * 5


def test_with_room_in_replay_the_next_unroll_begins_before_the_insert(counting: Any, run: CollectorRun) -> None:
    """The next unroll uses the newest policy at its beginning. Steps and environments are the same as without room."""
    with_room = run_collector(counting, room=True)
    versions = [set(columns.ints[..., 2].ravel()) for columns in with_room.inserted]
    assert versions == [{0}, {0}, {0}, {2}, {2}, {4}, {4}, {6}, {6}, {8}]
    assert [row["policy_lag"] for row in with_room.rows] == [0] + [2] * 9
    for one, other in zip(with_room.inserted, run.inserted, strict=True):  # all versions have the same parameters
        np.testing.assert_array_equal(one.floats, other.floats)
        np.testing.assert_array_equal(one.ints[..., :2], other.ints[..., :2])
    np.testing.assert_array_equal(with_room.visits, run.visits)


def test_visits_count_the_cells_of_all_states(run: CollectorRun) -> None:
    cells = np.minimum(np.concatenate([columns.floats[..., 0] for columns in run.inserted]), 4).astype(int)
    expected = np.bincount(cells.ravel(), minlength=5)
    np.testing.assert_array_equal(run.visits, expected)
    assert run.rows[-1]["visits"] == expected.tolist()
    assert run.visits.sum() == run.rows[-1]["env_steps"] == 10 * N * T


def test_rows_report_progress_and_distances(run: CollectorRun) -> None:
    assert [row["unrolls"] for row in run.rows] == list(range(1, 11))
    episodes = np.concatenate([columns.ints[..., 0] for columns in run.inserted], axis=1)
    ended = sum(row["collector/episodes_ended"] for row in run.rows)
    assert episodes[:, -1].sum() <= ended <= episodes[:, -1].sum() + N  # up to N episodes end with the last step
    assert all(0 < row["collector/at_goal"] < 1 for row in run.rows)
    assert all(0 < row["collector/distance"] < 5 for row in run.rows)
    assert {"wait/replay full", "wait/weights"} <= run.rows[-1].keys()


def test_collectors_draw_different_starts_and_goals(run: CollectorRun) -> None:
    assert (run.other_columns.ints[..., 1] == run.inserted[0].ints[..., 1]).all()
    assert (run.other_columns.floats[:, 0, 1:5] != run.inserted[0].floats[:, 0, 1:5]).all()  # tags and actions


def test_a_collector_of_a_broken_environment_ends_within_its_budget(breaking: Any) -> None:
    env, reporter, inserted = breaking(breaks_at=1, share=2.0, coordinates=(False, False, True)), Reporter(), []
    collector, params = make_collector(env, index=1), actor_params(env)
    with pytest.raises(EnvironmentBroken) as error:
        collector.run(
            lambda version: Policy(0, params) if version < 0 else None,
            lambda number, columns: inserted.append(number),
            lambda: True,
            reporter,
            should_stop=lambda: len(inserted) > 20,
        )
    assert str(error.value).startswith(
        "env: counting: state[2] is not finite after step 1 of an episode (environment 0 of collector-1); such steps "
        "have cost 24 windows, and the run makes up for 18 at most; make its step return finite numbers"
    )
    rows = reporter.drain().rows
    assert len(rows) == len(inserted) == 6  # of 10 unrolls
    assert [row["collector/broken"] for row in rows] == [N * T] * 6
    assert not any({"collector/distance", "collector/at_goal"} & row.keys() for row in rows)  # nothing was measured
    assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))


def test_a_feeder_whose_stream_ends_too_early_says_so(counting: Any) -> None:
    """Nearly all chunks are void, so that the stream's unrolls make too few windows."""
    env = counting()
    experiment = EXPERIMENT.model_copy(update={"stream": "/data/stream"})
    ints = np.zeros((N, T, INT_COLUMNS), np.int32)
    ints[1:, :, 0] = VOID_EPISODE
    unrolls = iter([(number, Columns(np.zeros((N, T, 7), np.float32), ints)) for number in range(12)])
    feeder, fed = Feeder(experiment, make_plan(experiment, env.spec), env, unrolls), []
    with pytest.raises(RunFailed) as error:
        feeder.run(lambda number, columns: fed.append(number), Reporter(), should_stop=lambda: False)
    assert str(error.value) == (
        "stream: /data/stream ends after 12 unrolls and 10 windows of a shard, 48 windows were expected; lower "
        "budget.env_steps, or record it again"
    )
    assert fed == list(range(12))


def test_coverage_by_hand() -> None:
    assert coverage(np.array([0, 0, 0, 0])) == {"coverage": 0, "coverage_entropy": 0}
    assert coverage(np.array([7, 0, 0, 0])) == {"coverage": 0.25, "coverage_entropy": 0}
    assert coverage(np.array([5, 5, 5, 5])) == pytest.approx({"coverage": 1, "coverage_entropy": 1})
    assert coverage(np.array([9, 9, 0, 0])) == pytest.approx({"coverage": 0.5, "coverage_entropy": 0.5})
    half_and_quarters = 0.5 * np.log(2) + 2 * 0.25 * np.log(4)
    assert coverage(np.array([2, 1, 1, 0])) == pytest.approx(
        {"coverage": 0.75, "coverage_entropy": half_and_quarters / np.log(4)}
    )
    assert coverage(np.array([3]))["coverage"] == 1


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_resumed_collector_continues_to_the_bit(chunk: int, counting: Any, tmp_path: Path) -> None:
    """With three actions at once, a snapshot after an unroll of five steps is taken in the middle of chunks."""
    algorithm = EXPERIMENT.algorithm.model_copy(update={"chunk": chunk})
    experiment = EXPERIMENT.model_copy(update={"algorithm": algorithm})
    env = counting() if chunk == 1 else counting(limits=(2, 100))
    collector, policy = make_collector(env, 0, experiment), Policy(4, actor_params(env, experiment))
    collector.collect(policy)
    state, position = collector.state, collector.position
    save(tmp_path / "state", state)
    if chunk > 1:
        assert isinstance(state.rollout.chunk, ActionChunk)
        assert len(np.unique(state.rollout.chunk.next)) > 1
    expected = [collector.collect(policy).columns for _ in range(2)]
    resumed = make_collector(env, 0, experiment)
    resumed.resume(load(tmp_path / "state", jax.eval_shape(lambda: resumed.state)), position)
    for columns in expected:
        jax.tree.map(np.testing.assert_array_equal, resumed.collect(policy).columns, columns)
    assert resumed._collect._cache_size() == 1  # restored arrays are like computed ones


def constant_policy(params: Params, state: Array, goal: Array, key: Array) -> jax.Array:
    return 0.5 + jnp.zeros((len(state), 2))


class BrokenUnrolls(NamedTuple):
    """Five unrolls of 3 steps of 16 environments, some of which break at step 4 of an episode.

    `columns`, `visits` and `metrics` are results of `make_collect`; `plain`, `broken` and `distance` are results of
    `make_unroll` from the same states. Arrays are `[5, N, T, ...]`, visits `[5, num_cells]`, metrics `[5]`.
    """

    columns: Columns
    plain: Columns
    broken: np.ndarray
    distance: np.ndarray
    visits: np.ndarray
    metrics: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def unrolls(breaking: Any) -> BrokenUnrolls:
    env = breaking(goals=(2.0, 3.0))
    collect, unroll = make_collect(env, constant_policy, 3), make_unroll(env, constant_policy, 3)

    def step(state: RolloutState, number: Array) -> tuple[RolloutState, BrokenUnrolls]:
        key = jax.random.key(number)
        plain = unroll({}, number, state, key)[1]
        state, made = collect({}, number, state, key)
        rows, broken, distance = jax.tree.map(
            lambda x: jnp.swapaxes(x, 0, 1), (pack(plain.rows), plain.broken, plain.distance)
        )
        return state, BrokenUnrolls(made.columns, rows, broken, distance, made.visits, made.metrics)

    def five_unrolls(key: Array) -> BrokenUnrolls:
        return jax.lax.scan(step, make_start(env, 16)(key), jnp.arange(5))[1]

    return jax.device_get(jax.jit(five_unrolls)(jax.random.key(0)))


def test_only_chunks_with_a_broken_step_are_void(unrolls: BrokenUnrolls) -> None:
    void = unrolls.broken.any(axis=2)
    assert not void[0].any()  # steps 1 to 3
    assert 0 < void[1].sum() < 16  # steps 4 to 6
    np.testing.assert_array_equal([is_void(ints) for ints in unrolls.columns.ints], void)
    assert (unrolls.columns.floats[void] == 0).all()
    assert (unrolls.columns.ints[..., 0][void] == VOID_EPISODE).all()
    np.testing.assert_array_equal(unrolls.columns.ints[..., 1:], unrolls.plain.ints[..., 1:])  # all but the episode
    for column, plain in zip(unrolls.columns, unrolls.plain, strict=True):
        np.testing.assert_array_equal(column[~void], plain[~void])
        assert np.isfinite(column).all()
    recovered = void[:-1] & ~void[1:]
    assert recovered.any()
    assert (unrolls.columns.floats[1:][recovered][..., 1] != 0).all()  # a chunk after a void chunk has its data


def _collect(collector: Collector, params: Params, unrolls: int) -> None:
    for _ in range(unrolls):
        collector.collect(Policy(0, params))


@pytest.mark.parametrize("shift", [-1, 1])  # from 0 to 4
def test_a_cell_that_does_not_exist_ends_the_run(shift: int, counting: Any) -> None:
    class Shifted(counting):
        def cell(self, goal: Array) -> Array:
            return super().cell(goal) + shift

    env = Shifted()
    collector, params = make_collector(env, index=0), actor_params(env)
    message = r"^env: counting: its cell returned a number outside of 0 to 4 for \d+ of 30 steps of an unroll of collec"
    with pytest.raises(EnvironmentBroken, match=message):
        _collect(collector, params, unrolls=3)


def test_void_chunks_count_no_visits(unrolls: BrokenUnrolls, counting: Any) -> None:
    void = unrolls.broken.any(axis=2)
    assert void.any()
    for number in range(5):
        cells = np.minimum(unrolls.plain.floats[number, ~void[number]][..., 0], 4).astype(int)
        np.testing.assert_array_equal(unrolls.visits[number], np.bincount(cells.ravel(), minlength=5))
    floats, count = unrolls.plain.floats[1], jax.jit(make_count(counting()))
    assert count(floats, unrolls.plain.ints[1]).sum() == 16 * 3
    assert count(floats, unrolls.columns.ints[1]).sum() == 3 * (~void[1]).sum()


def test_metrics_count_broken_steps_but_average_over_the_others(unrolls: BrokenUnrolls) -> None:
    metrics = unrolls.metrics
    np.testing.assert_array_equal(metrics["collector/broken"], unrolls.broken.sum(axis=(1, 2)))
    assert metrics["collector/broken"][0] == 0 < metrics["collector/broken"][1]
    for number in range(5):
        distance = unrolls.distance[number][~unrolls.broken[number]]
        assert metrics["collector/distance"][number] == pytest.approx(distance.mean(), rel=1e-5)
        assert metrics["collector/at_goal"][number] == pytest.approx((distance < 0.5).mean(), rel=1e-5)
