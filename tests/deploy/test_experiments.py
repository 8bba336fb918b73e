"""Shipped experiments and matrices: all can be planned, and the paper's have its sizes."""

from pathlib import Path

import pytest
import yaml

import deploy
from deploy.matrix.estimate import estimate_matrix
from deploy.matrix.expand import expand, load_matrix
from deploy.recovery.resume import changed_results
from deploy.run.setup import make_envs_and_plan
from shared.config import Experiment
from shared.config_file import load_experiment

SHIPPED = sorted((Path(deploy.__file__).parent / "experiments").rglob("*.yaml"))
TWINS = [path for path in SHIPPED if path.stem.endswith("_ref")]
LONGER = {"ant_hardest_maze": 2, "humanoid_u_maze": 2, "ant_u5_maze": 4, "humanoid_big_maze": 4}
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
    assert (sweep.collector_depths, sweep.learner_depths, len(sweep.seeds)) == ((4, 8, 16, 32, 64), (), 5)
    budgets = {run.experiment.env: run.experiment.budget.env_steps / 1e8 for run in expand(sweep)}
    assert budgets == dict.fromkeys(PAPER, 1) | LONGER
    for env in ("humanoid", "ant_big_maze", "arm_push_easy"):
        crossed = load_matrix(shipped[f"collector_learner_{env}"])
        assert (crossed.envs, len(crossed.seeds)) == ((env,), 5)
        assert crossed.collector_depths == crossed.learner_depths == (32, 4)
        assert expand(crossed)[0].experiment.budget.env_steps == 1e8
    limit = load_experiment(shipped["humanoid_u_maze_1024"])
    assert (limit.env, limit.collector.depth, limit.collector.actor_depth) == ("humanoid_u_maze", 1024, None)


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_a_twin_differs_by_what_else_the_reference_does(twin: Path) -> None:
    """Runs of the same names have the same keys but for sampling, batches, goals, precision and humanoids' states."""
    name = twin.stem.removesuffix("_ref").removesuffix("_humanoids")
    theirs, ours = (_experiments(path) for path in (twin, twin.with_stem(name)))
    assert theirs
    for run, experiment in theirs.items():
        changed = {change.key for change in changed_results(ours[run], experiment)}
        expected = {"env_options.fixed_goals", "replay.sampling", "collector.precision"}
        expected |= {f"learners.{learner}.precision" for learner in experiment.learners}
        expected |= {"env_options.reference_state"} if "humanoid" in experiment.env else set()
        expected |= {"replay.same_batches"} if experiment.learners else set()
        assert changed == expected
    if name == "depth_sweep":
        others = twin.with_stem("depth_sweep_humanoids_ref")
        assert {*_experiments(twin), *_experiments(others)} <= ours.keys()
        assert len(_experiments(others)) + len(_experiments(twin.with_stem("depth_sweep_ref"))) == len(ours)


def _experiments(path: Path) -> dict[str, Experiment]:
    """Returns the experiments of a file by the names of their runs."""
    if "envs" in yaml.safe_load(path.read_text()):
        return {run.name: run.experiment for run in expand(load_matrix(path))}
    return {"": load_experiment(path)}
