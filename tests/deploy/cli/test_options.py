"""Mistakes in a command line: one line with the possible values and the command that prints help."""

import sys

import pytest

from deploy.cli.main import run_command
from deploy.cli.options import parse_options

COMMANDS = "run, matrix, report, eval, render, import, experiments, envs, bench"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("", f"Expected one of {{{COMMANDS}}}; `fathom --help` says more"),
        ("rnu plain", f"Unrecognized options: rnu, plain; Available subcommands: {COMMANDS}; `fathom --help` says "),
        ("run", "Missing from fathom run: PATH The experiment's YAML file, or the name of a shipped one; `fathom e"),
        ("report", "Missing from fathom report: PATH Folder that `fathom matrix` filled; `fathom report --help` s"),
        ("matrix plain --parallel two", "--parallel: no type matching {None}|INT could be instantiated from ['two']; "),
        ("run plain --total-env-steps", "Missing value for argument '--total-env-steps'. Expected 1 values; `fathom"),
        ("run plain --collector.depth", "Missing value for argument '--collector.depth'. Expected 1 values; `fathom"),
        ("render --format gif", "invalid choice 'gif' for argument '--format'. Expected one of ('png', 'mp4', 'ht"),
        ("render --env-options.bodies 99", "--env-options.bodies: input should be less than or equal to 16; `fathom"),
        ("render x --env-options.bodies 2", "--env-options: goes together with --env; a run has its own"),
        ("render --env ant --random --env-options.bodies 2", "env_options.bodies: this environment has no such option"),
    ],
)
def test_a_mistake_in_a_command_line_is_one_line(command: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(command.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"fathom: {line}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("command", ["--help", "report --help"])
def test_help_goes_to_standard_output(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(command.split())
    assert not ended.value.code
    printed = capsys.readouterr()
    assert "--help" in printed.out
    assert printed.err == ""


def test_warnings_of_a_command_line_without_mistakes_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_options(lambda: sys.stderr.write("a warning")) == len("a warning")
    assert capsys.readouterr().err == "a warning"
