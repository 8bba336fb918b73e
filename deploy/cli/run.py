"""`fathom run`: one collector network and all its learners."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from deploy.cli.options import EXIT_FAILED, folder_mode, interrupt_on_signals
from deploy.cli.output import complain, make_console, say
from deploy.cli.overrides import override
from deploy.mode import Mode, choose_mode
from shared.config import Experiment
from shared.config_file import load_experiment
from shared.errors import ConfigError


@dataclass(frozen=True)
class Run:
    """One collector network and all its learners.

    Every key of the experiment is an option too, such as `--learners.deep.depth 64`;
    `fathom run EXPERIMENT.yaml --help` lists them.
    """

    experiment: Positional[Path]
    """The experiment's YAML file."""
    run_dir: Path | None = None
    """Folder for the results; none: a new folder under runs/."""
    in_process: bool = False
    """Run everything in this process, synchronous and deterministic, without Ray and Reverb."""
    together: bool = False
    """In one process on one device: learners of equal networks update as one computation. `fathom bench update --seeds`
    measures whether that is faster."""
    overwrite: bool = False
    """Replace an older run in the same folder."""
    resume: bool = False
    """Resume the run in --run-dir from its newest snapshot; begin where there is none."""
    resume_anyway: bool = False
    """The same, although keys have changed that change no result, such as resources."""
    total_env_steps: int | None = None
    """Short for --budget.env-steps."""
    dir_mode: str = "0700"
    """Mode of a new run directory, as chmod's octal number: 0700 for you alone, 0750 for your group, too."""

    def execute(self, overrides: Sequence[str] = ()) -> int:
        """Checks everything that can be checked, then runs. `overrides`: options that are keys of the experiment.

        Raises ConfigError before anything is started.
        """
        mode = choose_mode(self.in_process, self.together)
        resume, overwrite, dir_mode = self.resume or self.resume_anyway, self.overwrite, folder_mode(self.dir_mode)
        if resume and (overwrite or self.run_dir is None):
            raise ConfigError("--resume: resumes the run in --run-dir; name it, and leave out --overwrite")
        experiment = self._experiment(overrides)
        from deploy.run.setup import check_stream, make_envs_and_plan, prepare_jax

        prepare_jax(cpu_only=mode is Mode.DISTRIBUTED)
        if mode is Mode.TOGETHER:
            _check_one_device()
        from deploy.recovery.resume import check_same, find, restore
        from deploy.run.record import RunRecord
        from deploy.run.run_dir import check_space, prepare_run_dir, read_status, run_lock
        from deploy.telemetry.wandb_mirror import check_installed

        check_installed(experiment)
        envs, plan = make_envs_and_plan(experiment)
        if experiment.stream:
            experiment = experiment.model_copy(update={"stream": check_stream(experiment, plan, envs)})
        name = f"{self.experiment.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        run_dir = (self.run_dir or Path("runs") / name).absolute()
        with run_lock(run_dir):
            snapshot = None
            if resume and (run_dir / "config.yaml").exists():
                check_same(load_experiment(run_dir / "config.yaml"), experiment, self.resume_anyway)
                if read_status(run_dir).get("state") == "done":
                    make_console().print(f"{run_dir}: already done", highlight=False)
                    return 0
                snapshot = find(run_dir, mode, complain)
                overwrite = True
            if snapshot:
                restore(run_dir, experiment, snapshot)
            else:
                prepare_run_dir(run_dir, overwrite, dir_mode)
            check_space(run_dir, experiment, plan, envs.training.spec)
            return _execute(RunRecord(run_dir, experiment, plan, snapshot), envs, mode)

    def _experiment(self, overrides: Sequence[str]) -> Experiment:
        experiment = load_experiment(self.experiment)
        if self.total_env_steps is not None:
            overrides = [*overrides, "--budget.env-steps", str(self.total_env_steps)]
        return override(experiment, overrides, self.experiment) if overrides else experiment


def _check_one_device() -> None:
    import jax

    if (devices := jax.local_device_count()) > 1:
        raise ConfigError(
            f"--together: learners update together on one device, here are {devices}; show one (CUDA_VISIBLE_DEVICES=0)"
        )


def _execute(record: Any, envs: Any, mode: Mode) -> int:
    """Runs until the budget is spent; however the run ends, status.json and one line say why."""
    from deploy.run.setup import explain_failure
    from deploy.telemetry.wandb_mirror import Mirror

    mirror = Mirror(record.run_dir, say, complain) if record.experiment.wandb.project else None
    interrupt_on_signals()
    try:
        _supervised(record, envs, mode)
        return 0
    except KeyboardInterrupt:
        record.status("interrupted", "stopped by the user")
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the user gets one line
        reason = explain_failure(error, record.run_dir)
        record.status("failed", reason)
        complain(reason)
        return EXIT_FAILED
    finally:
        record.close()
        if mirror:  # after the last status, which it reports
            mirror.close()


def _supervised(record: Any, envs: Any, mode: Mode) -> None:
    from deploy.cli.console import RunConsole
    from deploy.run.summary import plot, summarise, table
    from shared.files import write_json

    output = make_console()
    record.status("running")
    with RunConsole(record, output) as console:
        _start(record, envs, mode, console.say, console.update)
    summary = summarise(record, envs.training.spec)
    write_json(record.run_dir / "summary.json", summary)
    plot(record, record.run_dir / "learning_curve.png")
    record.status("done")
    output.print(table(summary))
    output.print(f"results: {record.run_dir}", highlight=False)


def _start(record: Any, envs: Any, mode: Mode, say: Callable[[str], None], on_progress: Callable[..., None]) -> None:
    if mode is Mode.DISTRIBUTED:
        from deploy.run.launch import Launch

        Launch(record, envs.training.spec, say).run(on_progress)
    else:
        from deploy.run.in_process import InProcessRun

        InProcessRun(record, envs, say, mode).run(on_progress)
