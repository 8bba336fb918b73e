"""Packs the finished runs of a matrix for a repository: what a report needs, in a hundredth of a run's size.

    python -m deploy.experiments.pack OUT FOLDER

Writes FOLDER/RUN.tar.xz for each run in OUT that is done and not packed yet. Streams, checkpoints and snapshots stay
out, and so do metrics that no report reads. Unpacked in a folder beside OUT's matrix.yaml, they give the same page by
`fathom report`, but for the gallery, which plays checkpoints; `fathom matrix` goes on with the runs that are not done.
"""

import io
import json
import math
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from collector.evaluator import holds_episodes
from deploy.run.run_dir import read_status
from shared.files import replace_file
from shared.metrics import Row, read_metrics
from shared.roles import EVALUATOR

_WHOLE = "status.json", "summary.json", "episodes.arrow"
_OF_LEARNERS = {"time", "updates", "index"}  # for the wall clock


def contents(run_dir: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the files of a packed run by their paths in the run's folder."""
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    config.get("provenance", {}).pop("command", None)  # it names folders of one machine
    yield "config.yaml", yaml.safe_dump(config, sort_keys=False).encode()
    for name in _WHOLE:
        yield name, (run_dir / name).read_bytes()
    for path in sorted((run_dir / "metrics").glob("*.jsonl")):
        role = path.stem
        rows = read_metrics(run_dir, role)
        if role == str(EVALUATOR):
            rows = [{key: value for key, value in row.items() if not holds_episodes(key)} for row in rows]
        elif role.startswith("learner-"):
            rows = [{key: value for key, value in row.items() if key in _OF_LEARNERS} for row in rows]
        elif not role.startswith("collector-"):
            continue
        yield f"metrics/{path.name}", "".join(f"{json.dumps(_without_nan(row))}\n" for row in rows).encode()


def _without_nan(row: Row) -> Row:
    """Returns a row with null for NaN, as metrics files have it."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def pack(out: Path, folder: Path) -> list[Path]:
    """Packs the runs in `out` that are done and not yet in `folder`; returns the new files."""
    folder.mkdir(parents=True, exist_ok=True)
    new = []
    for run_dir in sorted(path.parent for path in out.glob("*/config.yaml")):
        packed = folder / f"{run_dir.name}.tar.xz"
        if packed.exists() or read_status(run_dir).get("state") != "done":
            continue
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w:xz") as archive:
            for name, content in contents(run_dir):
                entry = tarfile.TarInfo(f"{run_dir.name}/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        replace_file(packed, whole.getvalue())
        new.append(packed)
    return new


if __name__ == "__main__":
    for path in pack(Path(sys.argv[1]), Path(sys.argv[2])):
        print(path)
