"""The `fathom` command: parses its arguments and calls the sub-command, which is a module beside this one.

A mistake of the user ends here, as one line and exit status 2.
"""

from collections.abc import Callable, Sequence
from signal import SIGINT
from typing import Any

import tyro

from deploy.cli.bench import Bench
from deploy.cli.envs import Envs
from deploy.cli.eval import Eval
from deploy.cli.experiments import Experiments, is_named
from deploy.cli.import_ import Import
from deploy.cli.matrix import Matrix
from deploy.cli.options import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, parse_options
from deploy.cli.output import complain
from deploy.cli.render import Render
from deploy.cli.report import Report
from deploy.cli.run import Run
from deploy.run.interrupt import Interrupted
from shared.errors import ConfigError, RunFailed

COMMANDS = (Run, Matrix, Report, Eval, Render, Import, Experiments, Envs, Bench)
SUBCOMMANDS: dict[str, Callable[..., Any]] = {command.__name__.lower(): command for command in COMMANDS}
HELP = {"-h", "--help"}


def run_command(arguments: Sequence[str]) -> int:
    """Runs one `fathom` command line and returns its exit status."""
    wants_help = not HELP.isdisjoint(arguments)
    names_experiment = any(is_named(argument) for argument in arguments[1:])
    try:
        # Keys of an experiment are options of `fathom run`, too. Only with an experiment, help can list them.
        if arguments[:1] == ["run"] and (names_experiment or not wants_help):
            plain = [argument for argument in arguments[1:] if argument not in HELP]
            run, overrides = parse_options(
                lambda: tyro.cli(Run, args=plain, return_unknown_args=True, prog="fathom run")
            )
            return run.execute(overrides + ["--help"] * wants_help)
        command = parse_options(
            lambda: tyro.extras.subcommand_cli_from_dict(SUBCOMMANDS, args=arguments, prog="fathom")
        )
        return command.execute()
    except ConfigError as error:
        for line in str(error).splitlines():
            complain(line)
        return EXIT_BAD_INPUT
    except RunFailed as error:  # of a command without a run, such as `fathom eval`
        complain(str(error))
        return EXIT_FAILED
    except Interrupted as interrupted:
        complain("interrupted" if interrupted.number == SIGINT else str(interrupted), style="yellow")
        return interrupted.exit_status
    except KeyboardInterrupt:
        complain("interrupted", style="yellow")
        return EXIT_INTERRUPTED
