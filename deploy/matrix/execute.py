"""Execution of a matrix: each run is a `fathom run` in a process of its own, and runs that are done are skipped."""

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from deploy.matrix.capacity import Capacity, may_start, open_capacity
from deploy.matrix.expand import MatrixConfig, MatrixRun, write_matrix
from deploy.matrix.folder import MATRIX, Agenda, progress
from deploy.run.child import Child, all_ended, end_runs, log_file, start_run, why_failed
from deploy.scheduling.reaper import guarded
from shared.errors import ConfigError
from shared.files import OWNER_ONLY, make_folder

POLL_S = 0.2
PROGRESS_EVERY_S, LOOK_EVERY_S = 30.0, 2.0
ORPHAN_S = 2.0  # for a run whose cluster is dead, and whose calls of Ray wait for a minute
MORE_CLUSTERS = 2  # after the death of the first one
CLUSTER_LOST = "failed (the Ray cluster that the runs share died)"


def execute(
    matrix: MatrixConfig,
    agenda: Agenda,
    out: Path,
    parallel: int | None,
    in_process: bool,
    say: Callable[[str], None],
    dir_mode: int = OWNER_ONLY,
) -> dict[str, str]:
    """Executes the runs in `out` that wait; a failed run does not stop the others.

    Runs execute at once as far as `may_start` allows. After the death of the Ray cluster that they share, they go on
    in another one. No process is left behind, also after an interrupt.
    Returns why each run that is not done then was kept or failed, by name.
    Raises ConfigError before any run starts: `out` cannot be written, or Ray is too small for a run.
    """
    for line in agenda.lines:
        say(line)
    runs = _Runs(agenda, out, parallel, in_process, say, dir_mode)
    with guarded():
        with open_capacity([*runs.waiting.values()], parallel, in_process) as capacity:
            try:
                make_folder(out, dir_mode)
                write_matrix(matrix, out / MATRIX)
            except OSError as error:
                raise ConfigError(f"--out: {out} cannot be written ({error.strerror}); name another folder") from error
            runs.execute(capacity)
        for _ in range(MORE_CLUSTERS):
            if runs.waiting:
                say("the Ray cluster that the runs share died; they go on in another one")
                try:
                    with open_capacity([*runs.waiting.values()], parallel, in_process) as capacity:
                        runs.execute(capacity)
                except ConfigError as error:
                    say(f"there is no other cluster: {error}")
    for name in runs.waiting:
        runs.failures[name] = CLUSTER_LOST
        say(f"{name}: {CLUSTER_LOST}")
    return runs.failures


class _Runs:
    """The runs of a matrix that wait, with the failures of others, by name."""

    def __init__(
        self,
        agenda: Agenda,
        out: Path,
        parallel: int | None,
        in_process: bool,
        say: Callable[[str], None],
        dir_mode: int,
    ) -> None:
        self.failures, self.waiting = dict(agenda.kept), dict(agenda.waiting)
        self._runs, self._replaced = dict(agenda.waiting), set(agenda.replaced)
        self._out, self._parallel, self._in_process, self._dir_mode = out, parallel, in_process, dir_mode
        self._say = say
        self._looked = self._reported = time.monotonic()
        self._phases: dict[str, str] = {}  # said last

    def execute(self, capacity: Capacity) -> None:
        """Executes the runs that wait. If the cluster dies, those that are not done by then wait again."""
        with all_ended() as children:
            while (self.waiting or children) and not capacity.lost:
                self._start_some(capacity, children)
                for name, child in list(children.items()):
                    status = child.process.poll()
                    if status is not None and not (status and capacity.is_dying()):
                        del children[name]
                        self._finish(name, child)
                self._report(children)
                time.sleep(POLL_S)
            self.waiting = {name: self._runs[name] for name in children} | self.waiting
            end_runs((child.process for child in children.values()), ORPHAN_S)

    def _report(self, children: Iterable[str]) -> None:
        """Says what the runs are doing: every new phase within two seconds, and how far they are now and then."""
        if (now := time.monotonic()) - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        repeat = now - self._reported > PROGRESS_EVERY_S
        for name in children:
            text = progress(self._out / name)
            phase = text.partition(",")[0]  # of "running, 20 %"
            if repeat or phase != self._phases.get(name, "not started"):
                self._phases[name], self._reported = phase, now
                self._say(f"{name}: {text}")

    def _start_some(self, capacity: Capacity, children: dict[str, Child]) -> None:
        """Starts the runs that may execute beside those that do."""
        for name, run in list(self.waiting.items()):
            running = [capacity.demands[other] for other in children]
            if run.fed_by in {*self.waiting, *children}:
                continue  # the stream is not complete
            if may_start(capacity.demands[name], running, capacity.nodes, self._parallel):
                del self.waiting[name]
                self._say(f"{name}: started" + " on a recorded stream" * run.fed)
                children[name] = Child(self._start(run, capacity.environ), time.monotonic())

    def _start(self, run: MatrixRun, environ: Mapping[str, str]) -> subprocess.Popen:
        """Starts `fathom run`, which replaces an older run only the first time."""
        option = "--overwrite" if run.name in self._replaced else "--resume-anyway"
        self._replaced.discard(run.name)
        options = [option, "--dir-mode", f"{self._dir_mode:04o}", *["--in-process"] * self._in_process]
        group = os.environ.get("WANDB_RUN_GROUP", self._out.name)
        return start_run(run.experiment, self._out / run.name, options, {"WANDB_RUN_GROUP": group, **environ})

    def _finish(self, name: str, child: Child) -> None:
        if reason := why_failed(self._out / name, child.process.returncode):
            self.failures[name] = f"failed ({reason}; see {log_file(self._out / name)})"
        self._say(f"{name}: {self.failures.get(name, 'done')} after {time.monotonic() - child.started:.0f} s")
