from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collector.collector import Collector, coverage, make_collect, make_count
from collector.rollout import RolloutState, make_start, make_unroll
from shared.config import Experiment
from shared.metrics import Reporter, Row
from shared.networks import init_params, make_networks
from shared.params import ParamStore, Policy
from shared.plan import Plan, make_plan
from shared.replay.codec import Columns, pack
from shared.replay.windows import VOID_EPISODE, is_void
from shared.types import Array, Params

N, T = 6, 5


class Ran(NamedTuple):
    plan: Plan
    inserted: list[Columns]
    rows: list[Row]
    visits: np.ndarray
    other: Columns


def run(counting: Any, room: bool) -> Ran:
    """A collector's whole run; every second insert a new policy is published. And another collector's first unroll."""
    experiment = Experiment.model_validate(
        {
            "env": "counting",
            "collector": {"depth": 4, "width": 8, "environments": N, "unroll_length": T, "actors": 2},
            "algorithm": {"batch_size": 4, "windows_per_update": 4, "minibatches_per_update": 2},
            "replay": {"steps_per_environment": 200, "prefill_steps": 1},
            "budget": {"env_steps": 10 * 2 * N * T},
        }
    )
    env, store, reporter, inserted = counting(), ParamStore(), Reporter(), []
    plan = make_plan(experiment, env.spec)
    params = init_params(make_networks(experiment.collector, env.spec), env.spec, jax.random.key(0)).actor
    store.publish(Policy(0, params))

    def insert(number: int, columns: Columns) -> None:
        assert number == len(inserted)
        inserted.append(columns)
        if len(inserted) % 2 == 0:
            store.publish(Policy(len(inserted), params))

    collector = Collector(experiment, plan, env, index=0)
    collector.run(store.newest, insert, lambda: room, reporter, should_stop=lambda: False)
    other = Collector(experiment, plan, env, index=1).collect(Policy(0, params)).columns
    return Ran(plan, inserted, reporter.drain().rows, collector.position.visits, other)


@pytest.fixture(scope="module")
def ran(counting: Any) -> Ran:
    return run(counting, room=False)


def test_a_collector_spends_its_budget_in_chunks(ran: Ran) -> None:
    assert len(ran.inserted) == ran.plan.unrolls == 10
    for columns in ran.inserted:
        assert columns.floats.shape == (N, T, 3 + 2)
        assert columns.ints.shape == (N, T, 3)
        assert isinstance(columns.floats, np.ndarray)
    steps = np.concatenate([columns.ints[..., 1] for columns in ran.inserted], axis=1)
    np.testing.assert_array_equal(steps, np.tile(np.arange(10 * T), (N, 1)))  # time is the second axis, and goes on


def test_a_collector_acts_with_the_newest_policy(ran: Ran) -> None:
    versions = [set(columns.ints[..., 2].ravel()) for columns in ran.inserted]
    assert versions == [{0}, {0}, {2}, {2}, {4}, {4}, {6}, {6}, {8}, {8}]
    assert [row["policy_version"] for row in ran.rows] == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]
    assert [row["policy_lag"] for row in ran.rows] == [0, 2] * 5


def test_where_there_is_room_the_next_unroll_is_begun_before_the_insert(counting: Any, ran: Ran) -> None:
    """With the policy that was the newest then; steps and environments go on as ever."""
    ahead = run(counting, room=True)
    versions = [set(columns.ints[..., 2].ravel()) for columns in ahead.inserted]
    assert versions == [{0}, {0}, {0}, {2}, {2}, {4}, {4}, {6}, {6}, {8}]
    assert [row["policy_lag"] for row in ahead.rows] == [0] + [2] * 9
    for ours, theirs in zip(ahead.inserted, ran.inserted, strict=True):  # all policies are the same
        np.testing.assert_array_equal(ours.floats, theirs.floats)
        np.testing.assert_array_equal(ours.ints[..., :2], theirs.ints[..., :2])
    np.testing.assert_array_equal(ahead.visits, ran.visits)


def test_visits_count_the_states_cells(ran: Ran) -> None:
    cells = np.minimum(np.concatenate([columns.floats[..., 0] for columns in ran.inserted]), 4).astype(int)
    expected = np.bincount(cells.ravel(), minlength=5)
    np.testing.assert_array_equal(ran.visits, expected)
    assert ran.rows[-1]["visits"] == expected.tolist()
    assert ran.visits.sum() == ran.rows[-1]["env_steps"] == 10 * N * T


def test_rows_say_how_it_went(ran: Ran) -> None:
    assert [row["unrolls"] for row in ran.rows] == list(range(1, 11))
    episodes = np.concatenate([columns.ints[..., 0] for columns in ran.inserted], axis=1)
    ended = sum(row["collector/episodes_ended"] for row in ran.rows)
    assert episodes[:, -1].sum() <= ended <= episodes[:, -1].sum() + N  # those that end with the last step
    assert all(0 < row["collector/at_goal"] < 1 for row in ran.rows)
    assert all(0 < row["collector/distance"] < 5 for row in ran.rows)
    assert {"wait/replay full", "wait/weights"} <= ran.rows[-1].keys()


def test_collectors_differ(ran: Ran) -> None:
    assert (ran.other.ints[..., 1] == ran.inserted[0].ints[..., 1]).all()
    assert (ran.other.floats[:, 0, 1:] != ran.inserted[0].floats[:, 0, 1:]).all()


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


def still(params: Params, state: Array, goal: Array, key: Array) -> jax.Array:
    return 0.5 + jnp.zeros((len(state), 2))


class Broken(NamedTuple):
    """Unrolls of 3 steps of 16 environments, some of which break with step 4 of an episode; and what was unrolled."""

    columns: Columns
    plain: Columns
    broken: np.ndarray
    distance: np.ndarray
    visits: np.ndarray
    metrics: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def broken(breaking: Any) -> Broken:
    """Five of them; the arrays are `[5, N, T, ...]`, the visits `[5, num_cells]`."""
    env = breaking(goals=(2.0, 3.0))
    collect, unroll = make_collect(env, still, 3), make_unroll(env, still, 3)

    def step(state: RolloutState, number: Array) -> tuple[RolloutState, Broken]:
        key = jax.random.key(number)
        plain = unroll({}, number, state, key)[1]
        state, columns, visits, metrics = collect({}, number, state, key)
        rows, ended, distance = jax.tree.map(
            lambda x: jnp.swapaxes(x, 0, 1), (pack(plain.rows), plain.broken, plain.distance)
        )
        return state, Broken(columns, rows, ended, distance, visits, metrics)

    def five(key: Array) -> Broken:
        return jax.lax.scan(step, make_start(env, 16)(key), jnp.arange(5))[1]

    return jax.device_get(jax.jit(five)(jax.random.key(0)))


def test_chunks_in_which_an_environment_broke_are_void_and_no_others(broken: Broken) -> None:
    void = broken.broken.any(axis=2)
    assert not void[0].any()  # steps 1 to 3
    assert 0 < void[1].sum() < 16  # steps 4 to 6
    np.testing.assert_array_equal([is_void(ints) for ints in broken.columns.ints], void)
    assert (broken.columns.floats[void] == 0).all()
    assert (broken.columns.ints[..., 0][void] == VOID_EPISODE).all()
    np.testing.assert_array_equal(broken.columns.ints[..., 1:], broken.plain.ints[..., 1:])  # steps and versions
    for ours, plain in zip(broken.columns, broken.plain, strict=True):
        np.testing.assert_array_equal(ours[~void], plain[~void])
        assert np.isfinite(ours).all()
    again = void[:-1] & ~void[1:]
    assert again.any()
    assert (broken.columns.floats[1:][again][..., 1] != 0).all()  # the next chunk of such an environment is whole


def test_void_chunks_count_no_visits(broken: Broken, counting: Any) -> None:
    void = broken.broken.any(axis=2)
    assert void.any()
    for number in range(5):
        cells = np.minimum(broken.plain.floats[number, ~void[number]][..., 0], 4).astype(int)
        np.testing.assert_array_equal(broken.visits[number], np.bincount(cells.ravel(), minlength=5))
    floats, count = broken.plain.floats[1], jax.jit(make_count(counting()))
    assert count(floats, broken.plain.ints[1]).sum() == 16 * 3
    assert count(floats, broken.columns.ints[1]).sum() == 3 * (~void[1]).sum()


def test_metrics_count_what_broke_and_leave_it_out(broken: Broken) -> None:
    metrics = broken.metrics
    np.testing.assert_array_equal(metrics["collector/broken"], broken.broken.sum(axis=(1, 2)))
    assert metrics["collector/broken"][0] == 0 < metrics["collector/broken"][1]
    for number in range(5):
        distance = broken.distance[number][~broken.broken[number]]
        assert metrics["collector/distance"][number] == pytest.approx(distance.mean(), rel=1e-5)
        assert metrics["collector/at_goal"][number] == pytest.approx((distance < 0.5).mean(), rel=1e-5)
