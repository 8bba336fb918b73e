"""`fathom matrix` as a child process of a benchmark."""

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from deploy.matrix.expand import MatrixConfig, write_matrix
from deploy.run.child import start_command
from deploy.scheduling.packages import module_command


def start_matrix(
    matrix: MatrixConfig, out: Path, options: Iterable[str], environ: Mapping[str, str]
) -> subprocess.Popen:
    """Starts a matrix in a session of its own; its file lies beside `out`, its output in `log_file`.

    Args:
        options: further options of `fathom matrix`.
        environ: environment variables that are added to this process's, or replace them.
    """
    path = out.with_name(f"{out.name}-matrix.yaml")
    write_matrix(matrix, path)
    command = module_command("deploy.cli", "matrix", str(path), "--out", str(out), *options)
    return start_command(command, out, environ)
