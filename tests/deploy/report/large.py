"""Writes the folder of a large matrix as its finished runs leave it, with numbers that are drawn.

    python -m tests.deploy.report.large DIR [--collectors 4 --learners 5 --seeds 5 --env-steps 1e8]

The experiment is `collector_learner_ant_big_maze.yaml` with other depths and seeds; all counts come from its plan.
Names and form of the metrics, and the intervals of the rows, are those of a distributed run of `ant_big_maze` with
4,000 environment steps, and of the same run in one process:

- collector: a row for each unroll, with the visits of all cells so far.
- learner: a row for each update.
- evaluator: a row for each learner and evaluation, with the columns of its episodes as lists.
- replay: a row every 2 s of wall clock; in one process a row for each unroll.
- snapshots: a row for each snapshot.

`RunRecord`, `summarise` and `write_episodes` write all files. Checkpoints, TensorBoard's files and the picture of the
learning curves are left out: the report reads none of them but checkpoints, and these for the gallery alone.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from collector.behaviour import Episodes, as_lists, summarise
from collector.collector import coverage
from deploy.matrix.expand import MatrixConfig, MatrixRun, expand, write_matrix
from deploy.run import summary
from deploy.run.episodes import write_episodes
from deploy.run.memory_watch import EVERY_S as MEMORY_EVERY_S
from deploy.run.record import MEMORY, RunRecord
from deploy.run.run_dir import read_status
from shared.envs.base import GoalEnv
from shared.envs.geodesic import shortest_paths
from shared.envs.registry import make_envs
from shared.files import write_json
from shared.plan import Plan, make_plan
from shared.position import Position
from shared.replay.windows import WindowCount
from shared.roles import EVALUATOR, learner_role, source_roles

EXPERIMENT = Path(__file__).parents[3] / "deploy" / "experiments" / "collector_learner_ant_big_maze.yaml"
MEGABYTES = ("driver", "replay", "services", "helpers", "collector-0", "evaluator", "learner-active", "total")
ENV_STEPS_PER_S = 2_300.0  # 1e8 steps take 12 hours
COUNTS_EVERY_S = 2.0
LEARNER: Mapping[str, float] = {
    "actor/energy": -4.2,
    "actor/entropy": 1.3,
    "actor/gradient_norm": 30.0,
    "actor/loss": 4.4,
    "alpha/log_alpha": -0.5,
    "alpha/loss": 2.0,
    "critic/accuracy": 0.1,
    "critic/gradient_norm": 2.5,
    "critic/logsumexp": -0.3,
    "critic/loss": 4.0,
    "critic/negative": -6.0,
    "critic/positive": -4.0,
    "data/version": 3.0,
    "guard/skipped": 0.0,
    "update_seconds": 8.0,
    "wait/replay server": 0.0,
    "wait/replay starved": 0.1,
    "wait/publish": 0.0005,
    "wait/keeping its state": 0.00002,
}
"""Typical values of the metrics of a learner."""
COLLECTOR: Mapping[str, float] = {
    "collector/at_goal": 0.1,
    "collector/broken": 0.0,
    "collector/distance": 9.0,
    "collector/episodes_ended": 32.0,
    "wait/replay server": 0.0,
    "wait/replay refill": 0.0,
    "wait/weights": 0.01,
    "wait/replay full": 0.9,
}
"""Typical values of the metrics of a collector."""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--collectors", type=int, default=4, help="number of collector depths: 4, 8, 16, ...")
    parser.add_argument("--learners", type=int, default=5, help="number of learner depths: 4, 8, 16, ...")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--env-steps", type=float, default=1e8, help="environment steps of each run")
    options = parser.parse_args(arguments)
    write_large(options.folder, options.collectors, options.learners, options.seeds, int(options.env_steps))


def write_large(folder: Path, collectors: int, learners: int, seeds: int, env_steps: int) -> None:
    """Writes the matrix to a new `folder`; the first three counts are those of depths and seeds."""
    values = yaml.safe_load(EXPERIMENT.read_text(encoding="utf-8"))
    values["collector_depths"], values["learner_depths"] = (
        [4 * 2**i for i in range(n)] for n in (collectors, learners)
    )
    values["evaluation_envs"] = {env: names[0] for env, names in values["evaluation_envs"].items()}
    values |= {"seeds": list(range(seeds)), "experiment": values["experiment"] | {"budget": {"env_steps": env_steps}}}
    matrix = MatrixConfig.model_validate(values)
    folder.mkdir(parents=True)
    write_matrix(matrix, folder / "matrix.yaml")
    runs = expand(matrix)
    if len(runs) == 1:
        _write_run(folder, runs[0])
    else:
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
            list(processes.map(_write_run, repeat(folder), runs))


def _write_run(folder: Path, run: MatrixRun) -> None:
    run_dir, envs = folder / run.name, make_envs(run.experiment)
    plan = make_plan(run.experiment, envs.training.spec)
    record = RunRecord(run_dir, run.experiment, plan)
    seconds = plan.env_steps / ENV_STEPS_PER_S
    record.started = time.time() - seconds
    rng = np.random.default_rng([run.collector_depth, run.experiment.seed])
    _collect(record, rng, envs.training.spec.num_cells, run.collector_depth)
    for name in run.experiment.all_learners:
        for row in _learner_rows(rng, plan):
            record.add(learner_role(name), {"time": record.started + row["seconds"] * row["updates"], **row})
    for row in _evaluations(rng, run, plan, envs.evaluation):
        record.add(EVALUATOR, {"time": record.started + seconds * row["updates"] / plan.updates, **row})
    for updates in plan.snapshot_updates:
        costs = {"bytes": 40_000_000, "pause_seconds": 0.05, "background_seconds": 0.4}
        place = {"env_steps": plan.env_steps_at(updates), "updates": updates}
        record.note("snapshots", {"time": record.started + seconds * updates / plan.updates, **place, **costs})
    for after in np.arange(0.0, seconds, MEMORY_EVERY_S):
        row = {"time": record.started + after, "env_steps": round(ENV_STEPS_PER_S * after)}
        record.note(MEMORY, row | dict.fromkeys(MEGABYTES, 300.0))
    record.status("running")  # the rates of the summary need the start of the run
    made = summary.summarise(record, envs.training.spec)
    write_episodes(run_dir)
    record.status("done")
    write_json(run_dir / "status.json", read_status(run_dir) | {"seconds": seconds})
    write_json(run_dir / "summary.json", made)
    record.close()
    shutil.rmtree(run_dir / "tensorboard")


def _collect(record: RunRecord, rng: np.random.Generator, cells: int, depth: int) -> None:
    """Writes the rows of the collector, and those of replay meanwhile. Deeper collectors get farther."""
    plan, (role,), learners = record.plan, source_roles(record.experiment), record.experiment.all_learners
    unroll_steps = plan.environments * plan.unroll_length
    unroll_s = unroll_steps / ENV_STEPS_PER_S
    reach = np.linspace(2, cells * (0.3 + 0.1 * np.log2(depth)), plan.unrolls)[:, None]
    density = np.exp(-np.arange(cells) / reach) * (np.arange(cells) < reach)
    visits = np.cumsum(density / density.sum(axis=1, keepdims=True) * unroll_steps, axis=0).astype(int)
    for index, drawn in enumerate(_noisy(rng, COLLECTOR, plan.unrolls)):
        unrolls, windows = index + 1, plan.windows_after(index + 1)
        end, version = record.started + unroll_s * unrolls, plan.updates_after(windows)
        made = {"windows": windows, "unrolls": unrolls, "env_steps": unrolls * unroll_steps}
        seen = {"visits": visits[index].tolist(), **coverage(visits[index]), "policy_version": version, "policy_lag": 1}
        queues = {"queue/states": 1, "queue/unconfirmed": 0}
        record.add(role, {"time": end, "seconds": unroll_s, "index": index, **drawn, **made, **seen, **queues})
        run = np.full(plan.environments, unrolls)
        record.move(role, Position(WindowCount(index, run, windows), unrolls, visits[index]))
        table = {"windows": windows, "inserted": windows, "sampled": version * plan.windows_per_update}
        counts = {f"{name}/{key}": value for name in learners for key, value in table.items()}
        for when in np.arange(end - unroll_s, end, COUNTS_EVERY_S).tolist():
            record.add_counts({"time": when, "incarnation": 1, "already_inserted": 0, **counts})


def _learner_rows(rng: np.random.Generator, plan: Plan) -> Iterator[dict[str, Any]]:
    seconds = plan.env_steps / ENV_STEPS_PER_S / plan.updates
    for updates, drawn in enumerate(_noisy(rng, LEARNER, plan.updates), 1):
        gradient_steps, env_steps = updates * plan.minibatches_per_update, plan.env_steps_at(updates)
        counts = {"updates": updates, "gradient_steps": gradient_steps, "env_steps": env_steps}
        ratios = {"samples_per_insert": 1.0, "utd": gradient_steps / env_steps, "sample_age": rng.normal(3000, 100)}
        queues = {"queue/states": 1, "queue/batches": 0}
        yield {"seconds": seconds, "index": updates, **drawn, **counts, **ratios, **queues}


def _evaluations(rng: np.random.Generator, run: MatrixRun, plan: Plan, env: GoalEnv) -> Iterator[dict[str, Any]]:
    """Yields the rows of the evaluator. Starts and goals are those of all learners at that update and seed."""
    luck = dict(zip(run.experiment.all_learners, 0.05 * rng.normal(size=len(run.experiment.all_learners)), strict=True))
    maze = env.maze
    for updates in plan.evaluation_updates:
        share = updates / plan.updates
        goals = np.random.default_rng([run.experiment.seed, updates])
        ends = [_near(goals, cells, run.experiment.evaluation.episodes) for cells in (maze.starts, maze.goals)]
        for name in run.experiment.all_learners:
            depth = np.log2(run.experiment.learner(name).depth * run.collector_depth) / 20
            skill = (depth + luck[name]) * share**0.6 + 0.2 * share + 0.02 * rng.normal()
            episodes = _episodes(rng, env, *ends, skill)
            place = {"learner": name, "updates": updates, "env_steps": plan.env_steps_at(updates)}
            waits = {"dropped": 0, "wait/policies": 0.9 + 0.05 * rng.random(), "queue/policies": 0}
            results = {**summarise(env.spec, episodes), "episodes": as_lists(episodes)}
            yield {"seconds": 30.0, "index": updates, **place, **results, **waits}


def _near(rng: np.random.Generator, cells: np.ndarray, count: int) -> np.ndarray:
    """Returns `[count, 2]`: points within 10 cm of centres of `cells` `[n, 2]`."""
    return rng.choice(cells, count) + rng.uniform(-0.1, 0.1, (count, 2)).astype(np.float32)


def _episodes(rng: np.random.Generator, env: GoalEnv, starts: np.ndarray, goals: np.ndarray, skill: float) -> Episodes:
    """Returns the columns of `measure_episodes` for E episodes from `starts` to `goals`, both `[E, 2]`.

    Near goals are reached first; `skill` in 0..1 says how far away goals are that half of the episodes reach.
    """
    count, length = len(starts), env.spec.episode_length
    path = shortest_paths(env.maze).lengths(starts, goals)
    reached = rng.random(count) < 1 / (1 + np.exp(10 * (path / 60 - skill)))
    first = np.clip(path * 12 + rng.normal(0, 40, count), 20, length - 1).astype(int)
    time_at_goal = np.where(reached, (length - first) * rng.uniform(0.6, 1, count), 0).astype(int)
    detour = rng.uniform(1, 1.6, count)
    return {
        "start": starts,
        "goal": goals,
        "steps": np.full(count, length),
        "time_at_goal": time_at_goal,
        "time_at_goal_easy": np.minimum(time_at_goal + 30 * reached, length),
        "final_distance": np.where(reached, rng.uniform(0, 0.5, count), rng.uniform(0.5, 1, count) * path),
        "broken": np.zeros(count, bool),
        "shortest_path": path,
        "behaviour/first_reach": np.where(reached, first, np.nan),
        "behaviour/path_length": path * detour,
        "behaviour/detour": np.where(reached, detour, np.nan),
        "behaviour/stuck": rng.integers(0, 200, count) * ~reached,
        "behaviour/contacts": rng.uniform(2, 4, count),
        "behaviour/height": rng.uniform(0.35, 0.5, count),
        "behaviour/over_walls": np.zeros(count, int),
        "behaviour/speed": rng.uniform(0.5, 1.5, count) * (0.5 + skill),
        "behaviour/upright": rng.integers(900, length + 1, count),
        "behaviour/wall_contact": rng.integers(0, 300, count),
    }


def _noisy(rng: np.random.Generator, typical: Mapping[str, float], count: int) -> Iterator[dict[str, float]]:
    """Yields `count` rows in which each metric walks at random around its typical value, in float32."""
    noise = rng.normal(size=(count, len(typical)))
    walk = 1 + 0.1 * noise + 0.3 * np.cumsum(noise, axis=0) / np.sqrt(count)
    values = np.float32(walk * np.array([*typical.values()]))
    return (dict(zip(typical, row, strict=True)) for row in values.astype(float).tolist())


if __name__ == "__main__":
    main(sys.argv[1:])
