"""`fathom report`: report.html and report/ in a matrix's folder."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deploy.cli.options import EXIT_FAILED
from deploy.cli.output import complain, make_console


@dataclass(frozen=True)
class Report:
    """One page, figures and tables of a matrix, whole or half done."""

    matrix_dir: Positional[Path]
    """The folder that `fathom matrix` filled."""

    def execute(self) -> int:
        from deploy.report.analyse import make_report
        from deploy.report.files import write_files
        from deploy.report.page import write_page
        from deploy.report.read import read_matrix

        folder = self.matrix_dir
        made = make_report(read_matrix(folder))
        try:
            files = [write_page(made, folder / "report.html"), *write_files(made, folder / "report")]
        except OSError as error:
            complain(
                f"{error.filename or folder}: {error.strerror}; make room, or copy the runs to where there is some"
            )
            return EXIT_FAILED
        console = make_console()
        for run in made.unfinished:
            console.print(f"{run.run}: {run.state}", highlight=False)
        console.print(
            f"{made.done} of {made.runs} runs: {files[0]}, and {len(files) - 1} files in {folder / 'report'}",
            highlight=False,
        )
        return 0
