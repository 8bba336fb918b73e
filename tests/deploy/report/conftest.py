"""A matrix's folder as its runs write it, with numbers chosen by hand."""

import copy
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.matrix.expand import MatrixConfig, MatrixRun, expand, write_matrix
from deploy.run.episodes import write_episodes
from deploy.run.provenance import write_config
from shared.config import ACTIVE
from shared.envs.registry import make_envs
from shared.files import write_json
from shared.metrics import MetricsWriter, read_metrics
from shared.plan import make_plan
from shared.roles import EVALUATOR, learner_role, source_roles
from tests.deploy.matrix import cases

MATRIX: dict[str, Any] = cases.MATRIX | {"collector_depths": [4, 16], "learner_depths": [4, 16], "seeds": [0, 1, 2]}
# Time at goal at the end, by (collector depth, learner depth), seed 0; each further seed has one step more.
FINAL = {(4, 4): 4.0, (4, 16): 5.0, (16, 4): 6.0, (16, 16): 12.0}
OBJECTIVES = {"contrastive": {}, "survival": {"chunk": 2}}
SECONDS = 60.0

WriteRuns = Callable[..., Path]


@pytest.fixture(scope="session")
def all_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix's folder with all runs done; `write_runs` copies it."""
    return _write_matrix(tmp_path_factory.mktemp("runs") / "matrix", MATRIX)


@pytest.fixture(scope="session")
def objectives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix's folder with two objectives and two seeds, all done; see `_final`."""
    changes = {"objectives": OBJECTIVES, "seeds": [0, 1]}
    return _write_matrix(tmp_path_factory.mktemp("objectives") / "matrix", MATRIX | changes)


@pytest.fixture
def variants(tmp_path: Path) -> Path:
    """A matrix's folder with an objective and a variant of it, and one seed, all done."""
    objectives = {"contrastive": {}, "chunks": {"objective": "contrastive", "chunk": 2}}
    return _write_matrix(tmp_path / "matrix", MATRIX | {"objectives": objectives, "seeds": [0]})


@pytest.fixture
def write_runs(all_runs: Path, tmp_path: Path) -> WriteRuns:
    """Returns `write_runs(skip=(), changes={})`, which writes a matrix's folder and returns its path.

    `skip`: runs that are left out. `changes`: (run, learner) -> new values in the learner's summary.
    """

    def write(skip: tuple[str, ...] = (), changes: dict[tuple[str, str], Any] | None = None) -> Path:
        folder = tmp_path / "matrix"
        shutil.copytree(all_runs, folder, ignore=shutil.ignore_patterns(*skip))
        for (run, learner), change in (changes or {}).items():
            summary = json.loads((folder / run / "summary.json").read_text())
            summary["learners"][learner] |= change
            write_json(folder / run / "summary.json", summary)
        return folder

    return write


@pytest.fixture
def two_collectors(tmp_path: Path) -> Path:
    """A matrix's folder with two seeds of two collectors. One collector was restarted and made two unrolls more."""
    collector = MATRIX["experiment"]["collector"] | {"actors": 2}
    experiment = MATRIX["experiment"] | {"collector": collector}
    changes = {"collector_depths": [4], "seeds": [0, 1], "experiment": experiment}
    folder = _write_matrix(tmp_path / "matrix", MATRIX | changes)
    run_dir = folder / "point_u_maze-c4-s0"
    last = read_metrics(run_dir, "collector-1")[-1]
    writer = MetricsWriter(run_dir)
    for count in (1, 2):
        more = {"time": last["time"] + 100 + count, "env_steps": last["env_steps"] + 20 * count}
        writer.write("collector-1", last | more)
    writer.close()
    status = json.loads((run_dir / "status.json").read_text())
    write_json(run_dir / "status.json", status | {"env_steps": status["env_steps"] + 40})
    return folder


def _write_matrix(folder: Path, values: dict[str, Any]) -> Path:
    matrix = MatrixConfig.model_validate(copy.deepcopy(values))
    folder.mkdir()
    write_matrix(matrix, folder / "matrix.yaml")
    for run in expand(matrix):
        _write_run(folder / run.name, run)
    return folder


def _write_run(folder: Path, run: MatrixRun) -> None:
    experiment = run.experiment
    folder.mkdir()
    write_config(folder, experiment)
    spec = make_envs(experiment).training.spec
    plan = make_plan(experiment, spec)
    started = time.time() - 100
    status = {"state": "done", "reason": "", "started": started, "seconds": 2 * SECONDS}
    status |= {"env_steps": plan.env_steps, "updates_planned": plan.updates}
    write_json(folder / "status.json", status)
    writer = MetricsWriter(folder)
    learners = {}
    for name, config in experiment.all_learners.items():
        final = 1.0 if name == ACTIVE else _final(run, name)
        for updates in plan.evaluation_updates:
            share = 0.0 if updates == 0 else 1.25 if updates == plan.updates else 0.75  # 1 in the mean of the last two
            evaluated = {"learner": name, "updates": updates, "env_steps": plan.env_steps_at(updates)}
            results = {"time_at_goal": final * share, "success_rate": final * share / 20}
            behaviour = {"behaviour/path_length": float(config.depth), "episodes": _episodes(config.depth)}
            writer.write(EVALUATOR, {"time": started + 99, **evaluated, **results, **behaviour})
        for updates in range(1, plan.updates + 1):
            row = {"time": started + SECONDS * updates / plan.updates, "updates": updates}
            writer.write(learner_role(name), row)
        learners[name] = {
            "depth": config.depth,
            "critic_layers": config.depth,
            "gradient_steps": plan.gradient_steps,
            "samples_per_insert": 1.0,
            "sample_age": 100.0,
            "parameters": 1000 * config.depth,
            "gradient_steps_per_second": 400 / config.depth,
            "time_at_goal": final,
            "success_rate": final / 20,
        }
    for role in source_roles(experiment):
        for unroll in range(1, plan.unrolls + 1):
            visited = min(unroll, run.collector_depth)  # one cell more with each unroll, up to the depth
            visits = [unroll * (cell < visited) for cell in range(20)]
            writer.write(role, {"time": started + unroll, "env_steps": unroll * 20, "visits": visits})
    writer.close()
    write_episodes(folder)
    collector = {"coverage": run.collector_depth / 20, "coverage_entropy": 0.5, "env_steps_per_second": 1000.0}
    write_json(
        folder / "summary.json",
        {"env": experiment.env, "plan": plan.model_dump(), "learners": learners, "collector": collector},
    )


def _episodes(depth: int) -> dict[str, list[Any]]:
    """Returns two episodes to each of two goals; only depths from 16 on reach the second goal, behind the wall."""
    far = 5 if depth >= 16 else 0
    return {
        "start": [[1.0, 1.0]] * 4,
        "goal": [[1.0, 3.0], [1.2, 2.9], [3.0, 1.0], [3.1, 1.2]],
        "steps": [20] * 4,
        "time_at_goal": [5, 4, far, far],
        "final_distance": [0.1] * 4,
        "broken": [False] * 4,
        "shortest_path": [2.0, 1.9, 4.2, 4.0],
        "behaviour/path_length": [float(depth)] * 4,
    }


def _final(run: MatrixRun, name: str) -> float:
    """Returns the time at goal of a passive learner, mean over its last evaluations.

    Survival's is larger by half with each seed.
    """
    held = FINAL[run.collector_depth, run.experiment.learner(name).depth]
    seed = run.experiment.seed
    return held + seed if run.experiment.algorithm_of(name).objective == "contrastive" else held * (1 + seed / 2)
