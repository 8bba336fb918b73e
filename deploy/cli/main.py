"""The `fathom` command: parses its arguments and calls the sub-command. Each sub-command is a module beside this one.

Every mistake of the user ends here, as one line and exit status 2.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import subcommand

from deploy.cli.bench import Bench
from deploy.cli.envs import Envs
from deploy.cli.eval import Eval
from deploy.cli.matrix import Matrix
from deploy.cli.options import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from deploy.cli.render import Render
from deploy.cli.report import Report
from deploy.cli.run import Run
from shared.errors import ConfigError

Command = (
    Annotated[Run, subcommand("run")]
    | Annotated[Matrix, subcommand("matrix")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Render, subcommand("render")]
    | Annotated[Envs, subcommand("envs")]
    | Annotated[Bench, subcommand("bench")]
)


def main() -> None:
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Runs one `fathom` command line and returns its exit status."""
    console = Console(stderr=True, soft_wrap=True)
    try:
        if _is_run(arguments):
            return _run(arguments[1:])
        return tyro.cli(Command, args=arguments, prog="fathom").execute()
    except ConfigError as error:
        for line in str(error).splitlines():
            console.print(f"fathom: {line}", style="red", highlight=False, markup=False)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        console.print("fathom: interrupted", style="yellow")
        return EXIT_INTERRUPTED


def _is_run(arguments: Sequence[str]) -> bool:
    """True where the keys of an experiment are options, too: in `fathom run`, unless only its own help is wanted."""
    names_experiment = any(argument.endswith((".yaml", ".yml")) for argument in arguments)
    return arguments[:1] == ["run"] and (names_experiment or not _wants_help(arguments))


def _run(arguments: Sequence[str]) -> int:
    plain = [argument for argument in arguments if argument not in ("-h", "--help")]
    run, overrides = tyro.cli(Run, args=plain, return_unknown_args=True, prog="fathom run")
    return run.execute(overrides + (["--help"] if _wants_help(arguments) else []))


def _wants_help(arguments: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(arguments))


if __name__ == "__main__":
    main()
