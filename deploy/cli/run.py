"""`fathom run`: one collector network and all its learners."""

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from deploy.cli.experiments import find_file
from deploy.cli.options import EXIT_FAILED, folder_mode
from deploy.cli.output import complain, make_console, say
from deploy.cli.overrides import override
from deploy.mode import Mode, check_mode, choose_mode, make_deterministic
from deploy.run.forks import serve_forks
from deploy.run.interrupt import Interrupted, Interruption
from deploy.telemetry.wandb_mirror import check_installed
from shared.config import Experiment
from shared.config_file import load_experiment
from shared.errors import ConfigError
from shared.files import OWNER_ONLY

RUNS = Path("runs")  # results without a --run-dir


@dataclass(frozen=True)
class Run:
    """One collector network and all its learners.

    Every key of the experiment is an option too, such as `--learners.deep.depth 64`;
    `fathom run EXPERIMENT --help` lists them.
    """

    experiment: Positional[Path]
    """The experiment's YAML file, or the name of a shipped one; `fathom experiments` lists these."""
    run_dir: Path | None = None
    """Folder for the results; none: a new folder under runs/."""
    in_process: bool = False
    """Run everything in this process, synchronous and deterministic, without Ray and Reverb."""
    together: bool = False
    """In one process on one device: learners of equal networks update as one computation. `fathom bench update --seeds`
    measures whether that is faster."""
    deterministic: bool = False
    """Equal numbers in every run on GPUs, too, with --in-process: XLA leaves out sums in a random order, and chooses no
    program by its speed. Costs speed there; CPUs are deterministic without it."""
    overwrite: bool = False
    """Replace an older run in the same folder."""
    resume: bool = False
    """Resume the run in --run-dir from its newest snapshot; begin where there is none."""
    resume_anyway: bool = False
    """The same, although keys have changed that change no result, such as resources."""
    total_env_steps: Annotated[str | None, arg(metavar="{None}|INT")] = None
    """Short for --budget.env-steps."""
    dir_mode: str = "0700"
    """Mode of a new run directory, as chmod's octal number: 0700 for you alone, 0750 for your group, too."""

    def execute(self, overrides: Sequence[str] = ()) -> int:
        """Checks everything that can be checked, then runs. `overrides`: options that are keys of the experiment.

        Raises ConfigError before anything is started.
        """
        mode = choose_mode(self.in_process, self.together)
        if self.deterministic:
            make_deterministic(mode)
        resume, overwrite, dir_mode = self.resume or self.resume_anyway, self.overwrite, folder_mode(self.dir_mode)
        if resume and (overwrite or self.run_dir is None):
            raise ConfigError("--resume: resumes the run in --run-dir; name it, and leave out --overwrite")
        path = find_file(self.experiment, "experiment")
        experiment = self._load(path, overrides)
        check_mode(experiment, mode)
        check_installed(experiment)
        with serve_forks([experiment]) if mode is Mode.DISTRIBUTED else nullcontext():
            return self._begin(path, experiment, mode, resume, overwrite, dir_mode)

    def _begin(
        self, path: Path, experiment: Experiment, mode: Mode, resume: bool, overwrite: bool, dir_mode: int
    ) -> int:
        from deploy.run.setup import check_stream, make_envs_and_plan, prepare_jax

        prepare_jax(cpu_only=mode is Mode.DISTRIBUTED)
        if mode is Mode.TOGETHER:
            _check_one_device()
        from deploy.recovery.resume import check_same, find, restore
        from deploy.run.record import RunRecord
        from deploy.run.run_dir import check_space, lock_folder, prepare_run_dir, read_status

        envs, plan = make_envs_and_plan(experiment)
        if experiment.stream:
            experiment = experiment.model_copy(update={"stream": check_stream(experiment, plan, envs)})
        run_dir = (self.run_dir or _new_run_dir(path.stem, dir_mode)).absolute()
        with lock_folder(run_dir.resolve(), "--run-dir"):
            snapshot = None
            if resume and (run_dir / "config.yaml").exists():
                done = read_status(run_dir).get("state") == "done"
                check_same(load_experiment(run_dir / "config.yaml"), experiment, self.resume_anyway or done)
                if done:
                    say(f"{run_dir}: already done")
                    return 0
                snapshot = find(run_dir, mode, complain)
                overwrite = True
            if snapshot:
                restore(run_dir, experiment, snapshot)
            else:
                prepare_run_dir(run_dir, overwrite, dir_mode)
            check_space(run_dir, experiment, plan, envs.training.spec)
            return _execute(RunRecord(run_dir, experiment, plan, snapshot), envs, mode)

    def _load(self, path: Path, overrides: Sequence[str]) -> Experiment:
        experiment = load_experiment(path)
        if self.total_env_steps is not None:
            overrides = [*overrides, "--budget.env-steps", self.total_env_steps]
        return override(experiment, overrides, self.experiment) if overrides else experiment


def _new_run_dir(stem: str, mode: int) -> Path:
    """Creates a folder under runs/ named by `stem` and the time; a number is added if another run has that name.

    Raises ConfigError if it cannot be created.
    """
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = RUNS / name, 1
    try:
        RUNS.mkdir(exist_ok=True)
        while not _create(folder, mode):
            number += 1
            folder = RUNS / f"{name}-{number}"
    except OSError as error:
        raise ConfigError(f"{RUNS}/: cannot be written ({error.strerror}); name a folder by --run-dir") from error
    return folder


def _create(folder: Path, mode: int) -> bool:
    """Creates `folder`; false if it exists. Of several processes at once, one succeeds. Raises OSError."""
    try:
        folder.mkdir(OWNER_ONLY)
    except FileExistsError:
        return False
    with suppress(PermissionError):  # some file systems have no modes
        folder.chmod(mode)
    return True


def _check_one_device() -> None:
    import jax

    if (devices := jax.local_device_count()) > 1:
        raise ConfigError(
            f"--together: learners update together on one device, here are {devices}; show one (CUDA_VISIBLE_DEVICES=0)"
        )


def _execute(record: Any, envs: Any, mode: Mode) -> int:
    """Runs until the budget is spent; however the run ends, status.json and one line say why."""
    from deploy.run.setup import explain_failure
    from deploy.run.summary import describe_costs, describe_elsewhere, table
    from deploy.telemetry.wandb_mirror import Mirror

    mirror = Mirror(record.run_dir, say, complain) if record.experiment.wandb.project else None
    interruption = Interruption()
    interruption.install()
    try:
        summary = _supervised(record, envs, mode, interruption)
    except Interrupted as error:
        with suppress(OSError):  # a full disk must not hide the signal
            record.status("interrupted", str(error))
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the user gets one line
        reason = explain_failure(error, record.run_dir)
        complain(reason)
        with suppress(OSError):  # a full disk, which the line names
            record.status("failed", reason)
        return EXIT_FAILED
    finally:
        with suppress(OSError):
            record.close()
        if mirror:  # after the last status, which it reports
            mirror.close()
    make_console().print(table(summary))
    for line in [*describe_elsewhere(summary), describe_costs(summary)]:
        say(line)
    say(f"results: {record.run_dir}")
    return 0


def _supervised(record: Any, envs: Any, mode: Mode, interruption: Interruption) -> dict[str, Any]:
    """Runs until the budget is spent and writes the results. Returns the summary."""
    from deploy.cli.console import RunConsole
    from deploy.run.episodes import write_episodes
    from deploy.run.summary import plot, summarise
    from shared.files import write_json

    record.status("running")
    with RunConsole(record, make_console()) as console:
        if mode is Mode.DISTRIBUTED:
            from deploy.run.launch import Launch

            Launch(record, envs.training.spec, console.say, interruption).run(console.update)
        else:
            from deploy.run.in_process import InProcessRun

            InProcessRun(record, envs, console.say, mode, interruption).run(console.update)
    summary = summarise(record, envs.training.spec)
    plot(record, record.run_dir / "learning_curve.png")
    write_episodes(record.run_dir)
    write_json(record.run_dir / "summary.json", summary)  # a run with a summary is done
    record.status("done")
    record.remove_backups()
    return summary
