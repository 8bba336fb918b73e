"""The search for tasks on which depth helps: trains every candidate of the files beside this one, and keeps the curves.

    python -m deploy.experiments.search.run [--out FOLDER] [--results FOLDER] [--parallel RUNS] [--only PART]

A matrix stands for all its runs, an experiment for one run of its seed, or of each of `SEEDS`. The evaluations of a
finished run go to a table for each file. A run whose evaluations are there is skipped, a half-done one resumes. At the
end, the means of each table are printed as Markdown.
"""

import argparse
import csv
import io
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from deploy.matrix.execute import POLL_S
from deploy.matrix.expand import expand, load_matrix
from deploy.run.child import Child, all_ended, log_file, start_run
from deploy.run.interrupt import Interrupted, Interruption
from deploy.run.run_dir import read_status
from deploy.run.summary import HEADLINE_EVALUATIONS
from shared.config import Experiment
from shared.config_file import load_experiment
from shared.files import replace_file
from shared.metrics import read_scalars
from shared.roles import EVALUATOR

FOLDER = Path(__file__).parent
RESULTS = Path("docs/results/search")
SEEDS = (0, 1, 2)  # of the files that are experiments and name none
COLUMNS = (
    *("run", "env", "bodies", "width", "collector_depth", "seed", "learner"),
    *("gradient_steps", "env_steps", "time_at_goal", "success_rate"),
)


Row = dict[str, Any]


def planned(path: Path) -> Iterator[tuple[str, Experiment]]:
    """Yields the runs of a file by name."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "envs" in values:
        for run in expand(load_matrix(path)):
            yield run.name, run.experiment
    else:
        experiment = load_experiment(path)
        for seed in [values["seed"]] if "seed" in values else SEEDS:
            yield f"{path.stem}-s{seed}", experiment.model_copy(update={"seed": seed})


def read_table(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def evaluations(name: str, experiment: Experiment, run_dir: Path) -> list[Row]:
    """Returns a row for each evaluation of a finished run."""
    of_run = {
        "run": name,
        "env": experiment.env,
        "bodies": experiment.env_options.bodies,
        "width": experiment.collector.width,
        "collector_depth": experiment.collector.depth,
        "seed": experiment.seed,
    }
    steps_per_update = experiment.algorithm.minibatches_per_update
    return [
        of_run
        | {name: row[name] for name in ("learner", "env_steps")}
        | {"gradient_steps": row["updates"] * steps_per_update}
        | {name: round(row[name], 4) for name in ("time_at_goal", "success_rate")}
        for row in read_scalars(run_dir, EVALUATOR)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/search"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--parallel", type=int, default=2, help="runs at once")
    parser.add_argument("--only", default="", help="only runs in whose name, FILE/RUN, this part occurs")
    options = parser.parse_args()
    Interruption().install()
    waiting = {
        f"{path.stem}/{name}": experiment
        for path in sorted(FOLDER.glob("*.yaml"))
        for held in [{row["run"] for row in read_table(options.results / f"{path.stem}.csv")}]
        for name, experiment in planned(path)
        if options.only in f"{path.stem}/{name}" and name not in held
    }
    failed = train(waiting, options.out, options.results, options.parallel)
    for path in sorted(options.results.glob("*.csv")):
        print(f"\n{path}", *means(read_table(path)), sep="\n")
    return 1 if failed else 0


def train(runs: Mapping[str, Experiment], out: Path, results: Path, parallel: int) -> list[str]:
    """Trains runs by `FILE/RUN`, `parallel` at once, and writes each one's rows when it is done; returns the others."""
    waiting, failed = dict(runs), []
    with all_ended() as children:
        while waiting or children:
            while waiting and len(children) < parallel:
                key = next(iter(waiting))
                (out / key).parent.mkdir(parents=True, exist_ok=True)
                process = start_run(waiting.pop(key), out / key, ["--in-process", "--resume"], {})
                children[key] = Child(process, time.monotonic())
            for key in [key for key, child in children.items() if child.process.poll() is not None]:
                del children[key]
                if read_status(out / key).get("state") == "done":
                    table = results / f"{Path(key).parent}.csv"
                    rows = [*read_table(table), *evaluations(Path(key).name, runs[key], out / key)]
                    write_table(table, sorted(rows, key=lambda row: row["run"]))
                    print(f"{key}: done", flush=True)
                else:
                    failed.append(key)
                    print(f"{key}: not done, see {log_file(out / key)}", flush=True)
            time.sleep(POLL_S)
    return failed


def means(rows: Sequence[Row]) -> list[str]:
    """Returns lines of Markdown: a row for each task and width, with the time at goal of each learner.

    It is the mean over seeds of the mean of the last evaluations up to the one that all learners have made.
    """
    learners = [*dict.fromkeys(row["learner"] for row in rows)]
    curves: dict[tuple[str, ...], dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        curves[row["env"], row["bodies"], row["width"]][row["seed"], row["learner"]].append(row)
    lines = [["task", "bodies", "width", "seeds", "gradient steps", *learners]]
    lines.append(["---"] * len(lines[0]))
    for (env, bodies, width), of_task in curves.items():
        end = min(map(len, of_task.values()))
        last = {
            key: np.mean([float(row["time_at_goal"]) for row in curve[end - HEADLINE_EVALUATIONS : end]])
            for key, curve in of_task.items()
        }
        seeds = [*dict.fromkeys(seed for seed, _ in of_task)]
        steps = int(next(iter(of_task.values()))[end - 1]["gradient_steps"])
        cells = [f"{np.mean([last[seed, name] for seed in seeds]):.0f}" for name in learners]
        lines.append([f"`{env}`", bodies, width, ", ".join(seeds), f"{steps:,}", *cells])
    return [f"| {' | '.join(line)} |" for line in lines]


def write_table(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, table.getvalue())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
