"""Packing of rows into columns, and the ring of windows of in-process runs."""

from collections import deque
from typing import NamedTuple

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from shared.config import Experiment
from shared.envs.base import EnvSpec
from shared.plan import Plan, make_plan
from shared.replay.codec import INT_COLUMNS, Columns, add_ends, pack, unpack
from shared.replay.ring import WindowRing
from shared.replay.windows import VOID_EPISODE
from shared.types import CONTINUES, TRUNCATED, Rows

N, T, K = 4, 5, 3  # environments, unroll length, chunks of a window
ROW = 5  # floats of a step


@pytest.fixture(scope="module")
def plan() -> Plan:
    experiment = Experiment.model_validate(
        {
            "env": "counting",
            "collector": {"environments": N, "unroll_length": T},
            "algorithm": {"batch_size": 2, "windows_per_update": 2, "minibatches_per_update": 1},
            "replay": {"steps_per_environment": 43, "prefill_steps": 1},
            "budget": {"env_steps": 1000},
        }
    )
    spec = EnvSpec(
        state_size=3, goal_size=2, action_size=2, goal_indices=(0, 1), episode_length=10, goal_radius=0.5, num_cells=1
    )
    plan = make_plan(experiment, spec)
    # 43 steps of an environment hold 8 whole chunks, and 6 windows of 3 chunks each.
    assert (plan.chunks_per_window, plan.stored_unrolls, plan.max_windows) == (K, 8, N * 6)
    return plan


def unroll(index: int) -> Columns:
    """Returns unroll `index` of all environments; each row holds its environment and its step."""
    environment, row = np.indices((N, T))
    step = index * T + row
    floats = np.stack([environment, step, 0 * step, step / 7, -step], axis=-1).astype(np.float32)
    end = np.where(step % 10 == 9, TRUNCATED, CONTINUES)
    return Columns(floats, np.stack([step // 10, step, 0 * step + index, end], axis=-1).astype(np.int32))


def filled(plan: Plan, unrolls: int) -> WindowRing:
    ring = WindowRing(plan, sources=1, row_size=ROW)
    for number in range(unrolls):
        ring.insert(0, number, unroll(number))
    return ring


def starts(ring: WindowRing, samples: int = 2000) -> np.ndarray:
    """Returns environments and first steps of sampled windows, `[samples, 2]`; checks that steps are consecutive."""
    windows = jax.device_get(ring.sample(samples, np.random.default_rng(0)))
    assert windows.floats.shape == (samples, K * T, ROW)
    assert windows.ints.shape == (samples, K * T, INT_COLUMNS)
    environment, step = windows.floats[..., 0], windows.ints[..., 1]
    assert (environment == environment[:, :1]).all()
    np.testing.assert_array_equal(step, step[:, :1] + np.arange(K * T))
    np.testing.assert_array_equal(windows.floats[..., 1], step)  # `floats` and `ints` are of the same rows
    np.testing.assert_array_equal(windows.ints[..., 2], step // T)
    np.testing.assert_array_equal(windows.ints[..., 3] == TRUNCATED, step % 10 == 9)
    return np.stack([environment[:, 0], step[:, 0]], axis=1).astype(int)


def test_every_environment_gives_equally_many_windows(plan: Plan) -> None:
    """Each one's windows are drawn alike, with those that collectors skipped left out."""
    ring = filled(plan, 8)
    ring.insert(0, 9, unroll(9))  # unroll 8 is missing, so that one window fewer is complete
    windows = jax.device_get(ring.sample(3000 * N, np.random.default_rng(0), every_environment=True))
    environment, first = windows.floats[:, 0, 0].astype(int), windows.ints[:, 0, 1]
    assert np.bincount(environment).tolist() == N * [3000]
    for each in range(N):
        begins, counts = np.unique(first[environment == each], return_counts=True)
        assert begins.tolist() == [T * unroll for unroll in range(1, 6)]
        assert counts == pytest.approx(3000 / 5, rel=0.15)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_rows_come_back_bit_equal(leading: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    state, action, final = (rng.normal(size=(*leading, size)).astype(np.float32) for size in (3, 2, 4))
    ints = (rng.integers(-(2**31), 2**31, size=leading).astype(np.int32) for _ in range(4))
    rows = Rows(state, action, *ints, final)
    columns = pack(rows)
    assert (columns.floats.shape, columns.ints.shape) == ((*leading, 3 + 2 + 4), (*leading, INT_COLUMNS))
    assert (columns.floats.dtype, columns.ints.dtype) == (np.float32, np.int32)
    back = unpack(columns, state_size=3, action_size=2)
    assert isinstance(back, Rows)
    jax.tree.map(np.testing.assert_array_equal, back, rows)


def test_rows_without_ends_become_rows_whose_ends_are_unknown() -> None:
    rng = np.random.default_rng(0)
    floats, ints = rng.normal(size=(2, 6, 5)).astype(np.float32), rng.integers(9, size=(2, 6, 3), dtype=np.int32)
    columns = add_ends(Columns(floats, ints), goal_size=4)
    assert (columns.floats.dtype, columns.ints.dtype) == (np.float32, np.int32)
    rows = unpack(columns, state_size=3, action_size=2)
    np.testing.assert_array_equal(np.concatenate([rows.state, rows.action], axis=-1), floats)
    np.testing.assert_array_equal(np.stack([rows.episode, rows.step, rows.version], axis=-1), ints)
    assert rows.final.shape == (2, 6, 4)
    assert not np.any(rows.final)
    assert (np.asarray(rows.end) == CONTINUES).all()


def test_sampling_fails_before_the_first_window(plan: Plan) -> None:
    ring = filled(plan, K - 1)
    with pytest.raises(ValueError, match="replay holds 2 unrolls, a window needs 3; insert more first"):
        ring.sample(1, np.random.default_rng(0))
    ring.insert(0, K - 1, unroll(K - 1))
    assert {tuple(start) for start in starts(ring)} == {(environment, 0) for environment in range(N)}


@pytest.mark.parametrize("unrolls", [3, 5, 8, 9, 20])
def test_windows_equal_those_of_a_first_in_first_out_table(plan: Plan, unrolls: int) -> None:
    table: deque[tuple[int, int]] = deque(maxlen=plan.max_windows)
    for newest in range(K - 1, unrolls):
        for environment in range(N):
            table.append((environment, (newest - K + 1) * T))
    ring = filled(plan, unrolls)
    sampled, counts = np.unique(starts(ring), axis=0, return_counts=True)
    assert {tuple(start) for start in sampled} == set(table)  # every start in the table occurs, and no other
    expected = 2000 / len(table)
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)  # windows are drawn uniformly


def test_equal_generators_give_equal_samples(plan: Plan) -> None:
    ring = filled(plan, 6)
    first, again, other = (ring.sample(20, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.ints, again.ints)
    assert (first.ints != other.ints).any()


def test_no_window_spans_a_gap_or_a_void_chunk(plan: Plan) -> None:
    ring = WindowRing(plan, sources=1, row_size=ROW)
    for number in (0, 1, 2, 4, 5, 6, 7):  # unroll 3 is missing, as after a restart of the source
        columns = unroll(number)
        if number == 5:
            columns.ints[1, :, 0] = VOID_EPISODE
        ring.insert(0, number, columns)
    sampled = {(int(environment), int(step) // T) for environment, step in starts(ring)}
    assert sampled == {(e, first) for e in range(N) for first in (0, 4, 5)} - {(1, 4), (1, 5)}


def test_all_sources_are_sampled(plan: Plan) -> None:
    ring = WindowRing(plan, sources=2, row_size=ROW)
    half = N // 2
    for number in range(5):
        columns = unroll(number)
        ring.insert(0, number, Columns(columns.floats[:half], columns.ints[:half]))
        if number < 4:  # source 0 is one unroll ahead
            ring.insert(1, number, Columns(columns.floats[half:], columns.ints[half:]))
    sampled = {(int(environment), int(step) // T) for environment, step in starts(ring)}
    assert sampled == {(e, first) for e in range(N) for first in range(3 if e < half else 2)}


def test_memory_follows_from_the_plan_and_does_not_grow(plan: Plan) -> None:
    before = sum(array.nbytes for array in jax.live_arrays())
    ring = WindowRing(plan, sources=2, row_size=ROW)
    size = 4 * (ROW + INT_COLUMNS) * N * T * plan.stored_unrolls
    half = N // 2
    for number in range(3 * plan.stored_unrolls):
        columns = unroll(number)
        ring.insert(number % 2, number, Columns(columns.floats[:half], columns.ints[:half]))
        assert sum(column.nbytes for column in ring._columns) == size
        assert sum(array.nbytes for array in jax.live_arrays()) <= before + size


class ReferenceRing:
    """Reference for the ring: unrolls in queues, windows concatenated one by one."""

    def __init__(self, stored_unrolls: int, chunks_per_window: int, sources: int) -> None:
        self._chunks = chunks_per_window
        self._unrolls: list[deque[tuple[int, Columns]]] = [deque(maxlen=stored_unrolls) for _ in range(sources)]

    def insert(self, source: int, number: int, columns: Columns) -> None:
        self._unrolls[source].append((number, columns))

    def windows(self) -> list[Columns]:
        """Returns every window, ordered by source, then by unroll from the oldest, then by environment."""
        found = []
        for unrolls in self._unrolls:
            for last in range(self._chunks - 1, len(unrolls)):
                numbers, columns = zip(*list(unrolls)[last - self._chunks + 1 : last + 1], strict=True)
                if numbers[-1] - numbers[0] != self._chunks - 1:
                    continue
                for environment in range(len(columns[0].ints)):
                    chunks = [Columns(each.floats[environment], each.ints[environment]) for each in columns]
                    if all((chunk.ints[:, 0] != VOID_EPISODE).all() for chunk in chunks):
                        found.append(Columns(*map(np.concatenate, zip(*chunks, strict=True))))
        return found


class Shape(NamedTuple):
    sources: int
    environments: int
    unroll_length: int
    chunks_per_window: int
    spare_unrolls: int
    row_size: int


# Each shape is compiled, so there are few. Every field is 1 in some shapes and larger in others.
SHAPES = [
    Shape(1, 1, 1, 1, 1, 1),
    Shape(3, 1, 2, 4, 1, 3),
    Shape(1, 4, 3, 1, 5, 2),
    Shape(2, 3, 1, 2, 3, 1),
    Shape(2, 2, 3, 3, 4, 3),
    Shape(3, 4, 2, 2, 2, 1),
]


@settings(max_examples=40, derandomize=True, deadline=None)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
def test_the_ring_equals_the_reference_ring(plan: Plan, shape: Shape, seed: int) -> None:
    """Covers skipped numbers, void chunks, a full ring and sources of different progress."""
    sources, environments, steps, chunks, spare, row_size = shape
    changes = {
        "environments": sources * environments,
        "unroll_length": steps,
        "chunks_per_window": chunks,
        "max_windows": sources * environments * spare,
    }
    plan = plan.model_copy(update=changes)
    ring = WindowRing(plan, sources, row_size)
    reference = ReferenceRing(chunks - 1 + spare, chunks, sources)
    rng = np.random.default_rng(seed)
    numbers = np.full(sources, -1)
    for _ in range(sources * 3 * plan.stored_unrolls):
        source = rng.integers(sources)
        numbers[source] += 1 + (rng.random() < 0.1)
        floats = rng.normal(size=(environments, steps, row_size)).astype(np.float32)
        ints = rng.integers(2**31, size=(environments, steps, INT_COLUMNS), dtype=np.int32)
        ints[rng.random(environments) < 0.05, :, 0] = VOID_EPISODE
        columns = Columns(floats, ints)
        ring.insert(source, int(numbers[source]), columns)
        reference.insert(source, int(numbers[source]), columns)
        windows = reference.windows()
        if not windows:
            with pytest.raises(ValueError, match="insert more first"):
                ring.sample(1, np.random.default_rng(seed))
            continue
        sampled = ring.sample(7, np.random.default_rng(seed))
        expected = [windows[choice] for choice in np.random.default_rng(seed).integers(len(windows), size=7)]
        for column, expected_column in zip(sampled, zip(*expected, strict=True), strict=True):
            np.testing.assert_array_equal(column, np.stack(expected_column))
