"""The `fathom` command. Parses, checks, hands over; every mistake of the user's ends here, in one line."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional, arg, subcommand

from deploy import commands, trained
from deploy.access import folder_mode
from deploy.bench.options import Bench, run_bench
from deploy.mode import choose_mode
from shared.config import ConfigError

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Run:
    """One collector network and all its learners.

    Every key of the experiment is an option too, such as `--learners.deep.depth 64`;
    `fathom run EXPERIMENT.yaml --help` lists them.
    """

    experiment: Positional[Path]
    """The experiment's YAML file."""
    run_dir: Path | None = None
    """Where results go; none: a new folder under runs/."""
    in_process: bool = False
    """Everything in this process, synchronous and deterministic, without Ray and Reverb."""
    together: bool = False
    """In one process on one device: learners of equal networks update as one computation. Measure first whether it
    pays: `fathom bench update --seeds`."""
    overwrite: bool = False
    """Replace an older run in the same folder."""
    resume: bool = False
    """Go on with the run in --run-dir from its newest snapshot; begin where there is none."""
    resume_anyway: bool = False
    """The same, with keys changed that change no result, such as resources."""
    total_env_steps: int | None = None
    """Short for --budget.env-steps."""
    dir_mode: str = "0700"
    """Who may look into a new run directory, as chmod's octal number; 0750: your group, too."""


@dataclass(frozen=True)
class Matrix:
    """Every run of a matrix of collector depths and learner depths; runs that are done are skipped."""

    matrix: Positional[Path]
    """The matrix's YAML file."""
    out: Path | None = None
    """Where results go; none: a folder under runs/ with the file's name."""
    parallel: int | None = None
    """At most so many runs at once; none: as many as Ray has room for, or one where they ask for no resources."""
    in_process: bool = False
    """Each run in one process, without Ray and Reverb."""
    dir_mode: str = "0700"
    """Who may look into new folders, as chmod's octal number; 0750: your group, too."""
    dry_run: bool = False
    """Print what it will cost, and start nothing."""
    json: bool = False
    """Print the dry run as one JSON object."""


@dataclass(frozen=True)
class Report:
    """One page, figures and tables of a matrix, whole or half done."""

    matrix_dir: Positional[Path]
    """The folder that `fathom matrix` filled."""


@dataclass(frozen=True)
class Eval:
    """Evaluate a trained policy of a run."""

    run_dir: Positional[Path]
    learner: str = "active"
    """Which learner."""
    episodes: int | None = None
    """Fresh episodes; none: as many as in the run."""
    seed: int = 0
    """Chooses starts and goals."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Render:
    """Draw an episode of a trained policy, or of random actions: a contact sheet, a film, or a 3-D page."""

    run_dir: Positional[Path | None] = None
    """A run, whose evaluation environment is drawn; none: say --env and --random."""
    learner: str = "active"
    """Which learner of the run."""
    env: str | None = None
    """An environment without a run."""
    random: bool = False
    """Random actions."""
    format: Literal["png", "mp4", "html"] = "png"
    out: Path | None = None
    """The file to write; none: RUN_DIR/videos/LEARNER.FORMAT, or ENV.FORMAT here."""
    seed: int = 0
    """Chooses start and goal."""
    steps: int | None = None
    """At most this many environment steps; none: the whole episode."""


@dataclass(frozen=True)
class Envs:
    """List the environments with their sizes."""

    json: bool = False
    """Print one JSON list."""
    markdown: bool = False
    """Print the documentation's page."""


@dataclass(frozen=True)
class BenchCommand:
    """Measure the speed of one part, or of a whole run."""

    what: Annotated[Bench, arg(name="")]


Command = (
    Annotated[Run, subcommand("run")]
    | Annotated[Matrix, subcommand("matrix")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Render, subcommand("render")]
    | Annotated[Envs, subcommand("envs")]
    | Annotated[BenchCommand, subcommand("bench")]
)


def main() -> None:
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Runs one `fathom` command line and returns its exit status."""
    console = Console(stderr=True, soft_wrap=True)
    try:
        return _dispatch(list(arguments))
    except ConfigError as error:
        for line in str(error).splitlines():
            console.print(f"fathom: {line}", style="red", highlight=False, markup=False)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        console.print("fathom: interrupted", style="yellow")
        return EXIT_INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    command, rest = _parse(arguments)
    match command:
        case Run(path, run_dir, in_process, together, overwrite, resume, resume_anyway, total_env_steps, dir_mode):
            if total_env_steps is not None:
                rest = [*rest, "--budget.env-steps", str(total_env_steps)]
            mode = choose_mode(in_process, together)
            return commands.run(path, rest, run_dir, mode, overwrite, resume, resume_anyway, folder_mode(dir_mode))
        case Matrix(path, out, parallel, in_process, dir_mode, dry_run, json):
            if dry_run:
                return commands.plan_matrix(path, as_json=json)
            return commands.matrix(path, out, parallel, in_process, folder_mode(dir_mode))
        case Report(directory):
            return commands.report(directory)
        case Eval(run_dir, learner, episodes, seed, json):
            return trained.evaluate(run_dir, learner, episodes, seed, as_json=json)
        case Render(run_dir, learner, env, random, picture, out, seed, steps):
            return trained.render(run_dir, learner, env, random, picture, out, seed, steps)
        case Envs(json, markdown):
            return commands.envs(as_json=json, as_markdown=markdown)
        case BenchCommand(what):
            return run_bench(what)
    raise AssertionError(f"no such command: {command}")


def _parse(arguments: list[str]) -> tuple[Run | Matrix | Report | Eval | Render | Envs | BenchCommand, list[str]]:
    """The command, and for `run` what is left over: the experiment's own options."""
    if arguments[:1] == ["run"]:
        wants_help = bool({"-h", "--help"} & set(arguments))
        named = [argument for argument in arguments[1:] if argument.endswith((".yaml", ".yml"))]
        if not wants_help or named:
            plain = [argument for argument in arguments[1:] if argument not in ("-h", "--help")]
            run, rest = tyro.cli(Run, args=plain, return_unknown_args=True, prog="fathom run")
            return run, rest + (["--help"] if wants_help else [])
    return tyro.cli(Command, args=arguments, prog="fathom"), []


if __name__ == "__main__":
    main()
