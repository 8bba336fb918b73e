"""`fathom report`: report.html and report/ in a matrix's folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from deploy.cli.options import EXIT_FAILED
from deploy.cli.output import complain, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from deploy.report.gallery.markup import View


@dataclass(frozen=True)
class Report:
    """Write one page, figures and tables of a matrix, whole or half done."""

    matrix_dir: Positional[Path]
    """Folder that `fathom matrix` filled."""
    behaviours: bool = True
    """Play episodes of the final policies for the page's galleries; without them the page takes seconds."""

    def execute(self) -> int:
        from deploy.report.analyse import make_report
        from deploy.report.exports import write_marl_eval
        from deploy.report.files import save_figures, write_files
        from deploy.report.page import write_page
        from deploy.report.read import read_matrix
        from deploy.report.text import answers

        folder, beside = self.matrix_dir, self.matrix_dir / "report"
        record, page = read_matrix(folder), folder / "report.html"
        views: list[View] = []
        pictures: Iterable[tuple[str, Figure]] = ()
        try:
            if self.behaviours:
                from deploy.report.gallery.make import make_views, path_figures

                views = make_views(record, page, beside, say)
                pictures = path_figures(views)
            report = make_report(record)
            write_page(report, page, views)
            files = write_files(report, beside)
            files += [*save_figures(pictures, beside), *write_marl_eval(record, beside)]
        except OSError as error:
            complain(f"{error.filename or folder}: {error.strerror}; make room, or copy the runs to another disk")
            return EXIT_FAILED
        lines = [": ".join(filter(None, (each.run, each.part, each.reason))) for each in report.missing]
        lines += [f"{each.title}: {sentence}" for each in report.envs for sentence in answers(each)]
        lines.append(f"{report.done} of {report.runs} runs: {page}, and {len(files)} files in {beside}")
        for line in lines:
            say(line)
        return 0
