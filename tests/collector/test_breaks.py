from typing import Any

import jax
import numpy as np
import pytest

from collector.breaks import Break, BreakWatch, explain, find_first, lost_windows
from collector.rollout import Unroll, first_not_finite
from shared.config import Experiment
from shared.envs.base import EnvSpec
from shared.errors import EnvironmentBroken
from shared.plan import Plan, make_plan
from shared.position import start_position
from shared.replay.codec import INT_COLUMNS
from shared.replay.windows import VOID_EPISODE
from shared.types import Rows

SPEC = EnvSpec(3, 2, 2, goal_indices=(0, 2), episode_length=7, goal_radius=0.5, num_cells=5)
N, T, K = 4, 5, 3
RESET, STEP = "make its reset return finite numbers", "make its step return finite numbers"


def unroll_of(shape: tuple[int, ...], **values: np.ndarray) -> Unroll:
    """Returns an unroll of finite steps; each is the first of its episode. `values` replaces columns."""
    sizes = {"state": (3,), "action": (2,), "goal": (2,), "distance": ()}
    columns: dict[str, Any] = {name: np.ones((*shape, *size), np.float32) for name, size in sizes.items()}
    counts = np.zeros(shape, np.int32)
    columns |= {"episode_step": counts, "broken": counts > 0, "entry": counts + 6} | values
    final = np.zeros((*shape, 2), np.float32)
    rows = Rows(columns.pop("state"), columns.pop("action"), counts, counts, counts, end=counts, final=final)
    return Unroll(rows, done=counts > 0, measures={}, **columns)


@pytest.mark.parametrize(
    ("part", "index", "entry", "where", "remedy"),
    [
        ("state", 1, 0, "state[1] is not finite after a reset (", RESET),
        ("goal", 0, 0, "goal[0] is not finite after a reset (", RESET),
        (None, 0, 1, "action[1] is not finite at step 6 of an episode (", "algorithm.actor_learning_rate"),
        (None, 0, 2, "state[0] is not finite after step 6 of an episode (", STEP),
        (None, 0, 4, "state[2] is not finite after step 6 of an episode (", STEP),
        (None, 0, 5, "distance is not finite after step 6 of an episode (", "make its distance return a finite number"),
    ],
)
def test_a_broken_step_is_named_by_its_first_number_that_is_not_finite(
    part: str | None, index: int, entry: int, where: str, remedy: str
) -> None:
    """A start that is not finite may break any of the step's numbers."""
    step = {"episode_step": np.array([[5]]), "broken": np.array([[True]]), "entry": np.array([[entry]])}
    unroll = unroll_of((1, 1), **step)
    if part is not None:
        (unroll.goal if part == "goal" else unroll.rows.state)[0, 0, index:] = np.nan
    line = explain("env: lab:Slope", SPEC, find_first(unroll, unroll.broken), "collector-0", "nothing is learned")
    assert line.startswith(f"env: lab:Slope: {where}environment 0 of collector-0); nothing is learned; ")
    assert remedy in line


def test_the_first_number_that_is_not_finite() -> None:
    numbers = np.array([[1, 2, 3], [np.nan, 2, np.inf], [1, -np.inf, 3], [1, 2, np.nan]])
    assert first_not_finite(numbers).tolist() == [3, 0, 1, 2]


def test_the_first_broken_step_comes_before_all_others_in_time() -> None:
    broken = np.zeros((T, N), bool)
    broken[3, 0] = broken[2, 1] = broken[2, 3] = True
    unroll = unroll_of((T, N), episode_step=np.arange(T * N).reshape(T, N))
    assert jax.device_get(find_first(unroll, broken)) == Break(1, 2 * N + 1 + 1, 3 + 2 + 6)


def plan_of(unrolls: int) -> Plan:
    experiment = Experiment.model_validate(
        {
            "env": "slope",
            "collector": {"depth": 4, "width": 8, "environments": N, "unroll_length": T},
            "algorithm": {"batch_size": 2, "windows_per_update": 2, "minibatches_per_update": 1},
            "replay": {"prefill_steps": 1},
            "budget": {"env_steps": unrolls * N * T},
        }
    )
    plan = make_plan(experiment, SPEC)
    assert (plan.unrolls, plan.chunks_per_window) == (unrolls, K)
    return plan


class Loop:
    """The loop of a collector without environments: `make` unrolls whose void chunks are given."""

    def __init__(self, unrolls: int) -> None:
        self.watch = BreakWatch("lab:Slope", SPEC, plan_of(unrolls), N, "collector-0")
        self.position = start_position(N, cells=5)
        self.next_number = 0

    def make(self, void: list[int], ended: int = 0) -> None:
        """Makes an unroll in which the environments `void` broke, at the first step of an episode."""
        ints = np.zeros((N, T, INT_COLUMNS), np.int32)
        ints[void, :, 0] = VOID_EPISODE
        self.position = self.position.after(self.next_number, ints, np.zeros(5), K)
        self.next_number += 1
        self.watch.check(len(void), ended, Break(void[0], 1, 7) if void else None, self.position)

    def restart(self) -> None:
        self.next_number += 1
        self.watch = BreakWatch("lab:Slope", SPEC, plan_of(1000), N, "collector-0")


def test_an_environment_that_mostly_breaks_ends_the_run_after_ten_unrolls() -> None:
    loop = Loop(unrolls=1000)
    for _ in range(9):
        loop.make([1, 2, 3])
    with pytest.raises(EnvironmentBroken) as error:
        loop.make([1, 2, 3])
    assert str(error.value) == (
        "env: lab:Slope: state[0] is not finite after step 1 of an episode (environment 1 of collector-0); 30 of the "
        "newest 40 chunks hold such a step and are left out; make its step return finite numbers; with simulated "
        "physics, try a smaller env_options.physics_dt"
    )


def test_breaks_may_cost_a_tenth_of_the_budget_but_no_more() -> None:
    loop = Loop(unrolls=1000)
    spare = 1000 // 10 * N
    for _ in range(K - 1 + spare):  # no window ends in the first unrolls; from then on, one is lost in each
        loop.make([0])
    assert lost_windows(loop.position, N, K) == spare
    with pytest.raises(EnvironmentBroken, match="such steps have cost 401 windows, and the run makes up for 400 at mo"):
        loop.make([0])


def test_a_short_run_makes_up_for_as_many_unrolls_as_a_window_has() -> None:
    loop = Loop(unrolls=9)
    for _ in range(2 * K - 1):
        loop.make([0, 1, 2, 3])
    with pytest.raises(EnvironmentBroken, match=f"have cost {(K + 1) * N} windows, and the run makes up for {K * N} "):
        loop.make([0, 1, 2, 3])


def test_windows_lost_to_restarts_do_not_count() -> None:
    loop = Loop(unrolls=1000)
    for _ in range(200):  # restarts would cost more than the run makes up for
        for _ in range(K):
            loop.make([])
        loop.restart()
    assert lost_windows(loop.position, N, K) == 0
    loop.make([])
    loop.make([0])
    loop.make([])
    assert lost_windows(loop.position, N, K) == 1


def test_lost_windows_are_those_that_void_chunks_kept_from_being_made() -> None:
    loop, rng = Loop(unrolls=1000), np.random.default_rng(0)
    void = rng.random((60, N)) < 0.05
    for unroll in void:
        loop.make(np.flatnonzero(unroll).tolist())
    windows = np.lib.stride_tricks.sliding_window_view(void, K, axis=0)
    assert lost_windows(loop.position, N, K) == windows.any(axis=-1).sum() > 0


@pytest.mark.parametrize("unrolls", [6, 1000])
def test_episodes_of_one_step_end_the_run(unrolls: int) -> None:
    """Rows of such episodes have no later row, so that hindsight would make each row its own goal."""
    loop, judged = Loop(unrolls), min(unrolls, 10)
    loop.make([], ended=N * T - 1)
    for _ in range(judged - 1):
        loop.make([], ended=N * T)
    match = f"env: lab:Slope: all {judged * N * T} episodes of the newest {judged} unrolls of collector-0 ended with"
    with pytest.raises(EnvironmentBroken, match=match):
        loop.make([], ended=N * T)


def test_a_healthy_environment_is_left_alone() -> None:
    loop = Loop(unrolls=20)
    for number in range(20):
        loop.make([0] * (number == 10), ended=N * T - 1)
    assert lost_windows(loop.position, N, K) == K
