"""Values are printed as they are: no markup, no emoji, no line break, and no name that is cut short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from deploy.cli import output
from deploy.cli.output import complain, print_rows, say, show

NAME = "runs/[bold]a[/b] :boom: " + "long/" * 60 + "'7'"


def test_names_with_markup_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"results: {NAME}")
    complain(NAME)
    assert capsys.readouterr() == (f"results: {NAME}\n", f"fathom: {NAME}\n")
    show({"[/b]": ":boom:"}, as_json=False)
    print_rows([{"[red]name": "[x]", "value": 0.5}])
    printed = capsys.readouterr().out
    for text in ("[/b]", ":boom:", "[red]name", "[x]"):
        assert text in printed


def test_a_complaint_is_one_line_whatever_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    complain("a\nb\x1b[31m: no such file")
    assert capsys.readouterr().err == "fathom: a\\nb\\x1b[31m: no such file\n"


@pytest.mark.processes
def test_a_command_continues_without_a_reader_of_its_output(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = "import sys; from deploy.cli.output import *; say('a'); show({'b': 1}, True); open(sys.argv[1], 'x')"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "end")], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (tmp_path / "end").exists()


def test_names_that_do_not_fit_are_folded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "make_console", lambda: Console(width=40))
    print_rows([{"name": f"{'a-long-name-' * 4}{end}", "value": "1" * 20} for end in ("one", "two")])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "one" in printed
    assert "two" in printed
