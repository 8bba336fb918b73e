"""`fathom report`: report.html and report/ in a matrix's folder."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deploy.cli.options import EXIT_FAILED
from deploy.cli.output import complain, say


@dataclass(frozen=True)
class Report:
    """Write one page, figures and tables of a matrix, whole or half done."""

    matrix_dir: Positional[Path]
    """Folder that `fathom matrix` filled."""

    def execute(self) -> int:
        from deploy.report.analyse import make_report
        from deploy.report.files import write_files
        from deploy.report.page import write_page
        from deploy.report.read import read_matrix

        folder = self.matrix_dir
        report = make_report(read_matrix(folder))
        try:
            page = write_page(report, folder / "report.html")
            files = write_files(report, folder / "report")
        except OSError as error:
            complain(f"{error.filename or folder}: {error.strerror}; make room, or copy the runs to another disk")
            return EXIT_FAILED
        lines = [": ".join(filter(None, (each.run, each.part, each.reason))) for each in report.missing]
        lines.append(f"{report.done} of {report.runs} runs: {page}, and {len(files)} files in {folder / 'report'}")
        for line in lines:
            say(line)
        return 0
