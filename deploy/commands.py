"""What `fathom run`, `matrix`, `report` and `envs` do. Heavy imports come late: `envs` needs neither Ray nor Reverb."""

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deploy.access import OWNER_ONLY
from deploy.mode import Mode
from deploy.output import complain, make_console, print_rows
from deploy.overrides import override
from shared.config import ConfigError, Experiment, load_experiment
from shared.envs.base import GoalEnv
from shared.envs.registry import Envs, make_env, make_envs
from shared.plan import Plan, make_plan

EXIT_FAILED = 1

Start = Callable[[Any, Envs, Callable[[str], None], Callable[..., None]], None]  # of a run: record, envs, say, progress


def run(
    experiment_path: Path,
    overrides: Sequence[str],
    run_dir: Path | None,
    mode: Mode,
    overwrite: bool,
    resume: bool = False,
    resume_anyway: bool = False,
    dir_mode: int = OWNER_ONLY,
) -> int:
    """Checks everything that can be checked, then runs. Raises ConfigError before anything is started."""
    resume = resume or resume_anyway
    if resume and (overwrite or run_dir is None):
        raise ConfigError("--resume: goes on with the run in --run-dir; name it, and leave out --overwrite")
    experiment = load_experiment(experiment_path)
    if overrides:
        experiment = override(experiment, overrides, experiment_path)
    prepare_jax(cpu_only=mode is Mode.DISTRIBUTED)
    if mode is Mode.TOGETHER:
        _check_one_device()
    from deploy.record import RunRecord, check_space, prepare_run_dir, read_status, run_lock
    from deploy.resume import check_same, find, restore
    from deploy.wandb_log import check_installed

    check_installed(experiment)
    envs, plan = make_envs_and_plan(experiment)
    if experiment.stream:
        experiment = experiment.model_copy(update={"stream": check_stream(experiment, plan, envs)})
    name = f"{experiment_path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = (run_dir or Path("runs") / name).absolute()
    with run_lock(run_dir):
        snapshot = None
        if resume and (run_dir / "config.yaml").exists():
            check_same(load_experiment(run_dir / "config.yaml"), experiment, resume_anyway)
            if read_status(run_dir).get("state") == "done":
                make_console().print(f"{run_dir}: done before", highlight=False)
                return 0
            snapshot = find(run_dir, mode, complain)
            overwrite = True
        if snapshot:
            restore(run_dir, experiment, snapshot)
        else:
            prepare_run_dir(run_dir, overwrite, dir_mode)
        check_space(run_dir, experiment, plan, envs.training.spec)
        start = _start_distributed if mode is Mode.DISTRIBUTED else partial(_start_in_process, mode)
        return _recorded(RunRecord(run_dir, experiment, plan, snapshot), envs, start)


def _check_one_device() -> None:
    import jax

    if (devices := jax.local_device_count()) > 1:
        raise ConfigError(
            f"--together: learners update together on one device, here are {devices}; show one (CUDA_VISIBLE_DEVICES=0)"
        )


def _start_in_process(
    mode: Mode, record: Any, envs: Envs, say: Callable[[str], None], progress: Callable[..., None]
) -> None:
    from deploy.in_process import InProcessRun

    InProcessRun(record, envs, say, mode).run(progress)


def _start_distributed(record: Any, envs: Envs, say: Callable[[str], None], progress: Callable[..., None]) -> None:
    from deploy.launch import Launch

    Launch(record, envs.training.spec, say).run(progress)


def _recorded(record: Any, envs: Envs, start: Start) -> int:
    for ending in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, also where a shell made us ignore it; docker stop
        signal.signal(ending, _interrupt)
    try:
        return _supervised(record, envs, start)
    except KeyboardInterrupt:
        record.status("interrupted", "stopped by the user")
        raise
    except Exception as error:  # noqa: BLE001 - however it ends, status.json and one line say why
        reason = explain_failure(error, record.run_dir)
        record.status("failed", reason)
        complain(reason)
        return EXIT_FAILED
    finally:
        record.close()


def _supervised(record: Any, envs: Envs, start: Start) -> int:
    from deploy.console import RunConsole
    from deploy.record import write_json
    from deploy.summary import plot, summarise, table

    output = make_console()
    record.status("running")
    with RunConsole(record, output) as console:
        start(record, envs, console.say, console.update)
    summary = summarise(record, envs.training.spec)
    write_json(record.run_dir / "summary.json", summary)
    plot(record, record.run_dir / "learning_curve.png")
    record.status("done")
    output.print(table(summary))
    output.print(f"results: {record.run_dir}", highlight=False)
    return 0


def matrix(path: Path, out: Path | None, parallel: int | None, in_process: bool, dir_mode: int = OWNER_ONLY) -> int:
    """Every run of a matrix that is not done, then its summary; the exit status says whether all are done."""
    from deploy.matrix.config import expand, load_matrix
    from deploy.matrix.execute import execute
    from deploy.matrix.folder import check_out
    from deploy.matrix.plan import plan_matrix
    from deploy.matrix.results import collect_results, write_results
    from deploy.wandb_log import check_installed

    config = load_matrix(path)
    check_installed(expand(config)[0].experiment)
    if parallel is not None and parallel < 1:
        raise ConfigError(f"--parallel: {parallel} is not positive")
    prepare_jax(cpu_only=True)  # the runs' GPUs are theirs
    plan_matrix(config)  # what cannot be run is said before anything starts
    out = (out or Path("runs") / path.stem).absolute()
    check_out(out, config)
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, _interrupt)
    console = make_console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    outcomes = execute(config, out, parallel, in_process, say, dir_mode)
    results = collect_results(out, config)
    write_results(out, results)
    if results["cells"]:
        print_rows(results["cells"])
    failed = [outcome.run.name for outcome in outcomes if outcome.reason]
    if failed:
        complain(f"{len(failed)} of {len(outcomes)} runs failed: {', '.join(failed)}")
    console.print(f"results: {out}", highlight=False)
    return EXIT_FAILED if failed else 0


def plan_matrix(path: Path, as_json: bool) -> int:
    from deploy.matrix.config import load_matrix
    from deploy.matrix.plan import plan_matrix as plan
    from deploy.matrix.plan import table, total

    prepare_jax(cpu_only=True)
    planned = plan(load_matrix(path))
    if as_json:
        print(json.dumps(planned))
        return 0
    console = make_console()
    console.print(table(planned))
    console.print("\n" + total(planned), highlight=False)
    return 0


def report(directory: Path) -> int:
    """report.html and report/ in a matrix's folder, whole or half done."""
    from deploy.report.analyse import make_report
    from deploy.report.files import write_files
    from deploy.report.page import write_page
    from deploy.report.read import read_matrix

    made = make_report(read_matrix(directory))
    try:
        files = [write_page(made, directory / "report.html"), *write_files(made, directory / "report")]
    except OSError as error:
        complain(f"{error.filename or directory}: {error.strerror}; make room, or copy the runs to where there is some")
        return EXIT_FAILED
    console = make_console()
    for run in made.unfinished:
        console.print(f"{run.run}: {run.state}", highlight=False)
    console.print(
        f"{made.done} of {made.runs} runs: {files[0]}, and {len(files) - 1} files in {directory / 'report'}",
        highlight=False,
    )
    return 0


def envs(as_json: bool, as_markdown: bool) -> int:
    from deploy.environments import list_envs, page

    if as_markdown:
        print(page(), end="")
        return 0
    rows = list_envs()
    if as_json:
        print(json.dumps(rows))
        return 0
    print_rows([{**row, "paper": "yes" if row["paper"] else ""} for row in rows])
    return 0


def named_env(env_id: str) -> GoalEnv:
    """The environment of an `--env` option."""
    try:
        return make_env(env_id)
    except ValueError as error:
        raise ConfigError(f"--env: {error}") from error


def make_envs_and_plan(experiment: Experiment) -> tuple[Envs, Plan]:
    envs = make_envs(experiment)
    return envs, make_plan(experiment, envs.training.spec)


def check_stream(experiment: Experiment, plan: Plan, envs: Envs) -> str:
    """The absolute path of the stream that the experiment names. Raises ConfigError unless it is whole and fits."""
    from shared.stream.format import describe
    from shared.stream.read import open_stream

    stream = open_stream(Path(str(experiment.stream)).absolute())
    stream.check_fits(describe(experiment, plan, envs.training.spec))
    return str(stream.directory)


def prepare_jax(cpu_only: bool) -> None:
    """Before JAX computes: the driver takes no GPU, and what was compiled once is not compiled again."""
    import jax

    cache = Path(os.environ.get("FATHOM_CACHE") or "~/.cache/fathom").expanduser() / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    if cpu_only:
        jax.config.update("jax_platforms", "cpu")


def explain_failure(error: Exception, run_dir: Path) -> str:
    """One line for the user. What is nobody's known mistake leaves its traceback in the run's logs."""
    from deploy.record import RunFailed

    if isinstance(error, RunFailed):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or run_dir}: {error.strerror}; make room or name another --run-dir, then run again"
    log = run_dir / "logs" / "driver.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"{type(error).__name__}: {' '.join(str(error).split())} (details: {log})"


def _interrupt(signal_number: int, frame: Any) -> None:
    """Ends a run in order; see `_supervised`'s caller."""
    raise KeyboardInterrupt
