"""Files of the report: figures as PNG, SVG and PDF, tables as CSV, the whole report as JSON."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

from deploy.report.contents import Report
from deploy.report.drawings import make_figures
from deploy.report.tables import Rows, make_tables
from shared.files import replace_file, to_json

_FORMATS: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Suffix and metadata of each picture; equal results give equal files."""


def write_files(report: Report, folder: Path) -> list[Path]:
    """Writes all files under `folder` and returns them. Raises OSError when the disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    replace_file(path, to_json(asdict(report), indent=1) + "\n", sync=False)
    return [path, *_write_tables(make_tables(report), folder), *save_figures(make_figures(report), folder)]


def _write_tables(tables: Mapping[str, Rows], folder: Path) -> list[Path]:
    """Writes the tables that have rows, and returns their files."""
    written = []
    for name, rows in tables.items():
        if rows:
            written.append(folder / f"{name}.csv")
            text = io.StringIO(newline="")
            csv.writer(text).writerows([rows[0], *(row.values() for row in rows)])
            replace_file(written[-1], text.getvalue(), sync=False)
    return written


def save_figures(figures: Iterable[tuple[str, Figure]], folder: Path) -> list[Path]:
    """Writes each figure in all formats, with the same layout, closes it, and returns the files.

    PDF has TrueType fonts (42), as journals ask for; the salt gives the elements of SVG equal names each time. Raises
    OSError when the disk is full.
    """
    written = []
    for name, figure in figures:
        for suffix, metadata in _FORMATS.items():
            picture = io.BytesIO()
            with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "fathom"}):
                figure.savefig(picture, format=suffix, dpi=150, metadata=metadata)
            figure.set_layout_engine("none")  # it has its layout now, and finding it takes longer than drawing
            written.append(folder / f"{name}.{suffix}")
            replace_file(written[-1], picture.getvalue(), sync=False)
        pyplot.close(figure)
    return written
