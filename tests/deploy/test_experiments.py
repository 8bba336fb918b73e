"""Shipped experiments and matrices: all can be planned, and the paper's have its sizes."""

from pathlib import Path

import pytest
import yaml

import deploy
from deploy.matrix.estimate import estimate_matrix
from deploy.matrix.expand import load_matrix
from deploy.run.setup import make_envs_and_plan
from shared.config_file import load_experiment

SHIPPED = sorted((Path(deploy.__file__).parent / "experiments").rglob("*.yaml"))
PAPER = {
    *("ant_u4_maze", "ant_u5_maze", "ant_big_maze", "ant_hardest_maze"),
    *("humanoid", "humanoid_u_maze", "humanoid_big_maze"),
    *("arm_push_easy", "arm_push_hard", "arm_binpick_hard"),
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_can_be_planned(path: Path) -> None:
    if "envs" in yaml.safe_load(path.read_text()):
        matrix = load_matrix(path)  # checks the configuration of every run
        ends = matrix.collector_depths[0], matrix.collector_depths[-1]
        few = matrix.model_copy(update={"collector_depths": tuple(dict.fromkeys(ends)), "seeds": matrix.seeds[:1]})
        assert estimate_matrix(few)["totals"]["gradient_steps"] > 0
    else:
        assert make_envs_and_plan(load_experiment(path))[1].updates > 0


def test_experiments_of_the_paper_have_its_environments_and_depths() -> None:
    shipped = {path.stem: path for path in SHIPPED}
    sweep = load_matrix(shipped["depth_sweep"])
    assert (set(sweep.envs), len(sweep.envs)) == (PAPER, 10)
    assert (sweep.collector_depths, sweep.learner_depths) == ((4, 8, 16, 32, 64), ())
    crossed = load_matrix(shipped["ant_big_maze_matrix"])
    assert (crossed.envs, crossed.seeds) == (("ant_big_maze",), (0, 1, 2))
    assert crossed.collector_depths == crossed.learner_depths == (4, 64)
    limit = load_experiment(shipped["humanoid_u_maze_1024"])
    assert (limit.env, limit.collector.depth, limit.collector.actor_depth) == ("humanoid_u_maze", 1024, None)
