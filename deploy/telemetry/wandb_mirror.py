"""Mirror of a run's metrics at Weights & Biases: a process of its own follows the metrics files and logs their rows.

wandb hooks into the interpreter that imports it, may ask for a key, and waits without end for a network or a service
that does not answer. None of this reaches the run, because the run only writes its metrics files as always.
"""

import contextlib
import faulthandler
import importlib.util
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from deploy.scheduling.packages import module_command
from shared.config import Experiment
from shared.errors import ConfigError
from shared.files import write_json
from shared.metrics import Row, curves, parse_rows, scalars

START_S = 60.0  # longest wait for the address of the run's page
FINISH_S = 30.0  # longest upload after the run's end
MARGIN_S = 10.0
POLL_S = 1.0
LOGGED = "wandb.json"  # in the run directory
DEFAULTS = {  # wandb's settings; the user's environment takes precedence
    "WANDB_INIT_TIMEOUT": "20",  # seconds; then offline
    "WANDB_QUIET": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_GIT": "true",  # config.yaml holds the revision
    "WANDB_DISABLE_CODE": "true",
    "WANDB__DISABLE_STATS": "true",
    "WANDB_ERROR_REPORTING": "false",
}


def check_installed(experiment: Experiment) -> None:
    """Raises ConfigError if the experiment needs wandb and wandb cannot be imported."""
    if experiment.wandb.project is None:
        return
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # wandb itself makes folders called wandb, which are no packages
        raise ConfigError("wandb.project: wandb is not installed; pip install 'fathom-rl[wandb]', or leave it out")


class Mirror:
    """The mirroring process, as the driver sees it. A failure is one line for the user and does not stop the run."""

    def __init__(self, run_dir: Path, say: Callable[[str], None], complain: Callable[[str], None]) -> None:
        """Starts the process. `say` receives the address of the run's page, `complain` a failure."""
        self._run_dir, self._complain = run_dir, complain
        self._log = run_dir / "logs" / "wandb.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                module_command("deploy.telemetry.wandb_mirror", str(run_dir)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=DEFAULTS | os.environ,
                start_new_session=True,  # Ctrl-C reaches the driver, which ends this process in order
            )
        assert self._process.stdout is not None
        answered = select.select([self._process.stdout], [], [], START_S)[0]
        place = self._process.stdout.readline().decode().strip() if answered else ""
        say(f"wandb: {place or f'no answer; see {self._log}'}")

    def close(self) -> None:
        """Waits a bounded time until everything is sent, and leaves no process behind."""
        mirror = psutil.Process(self._process.pid)
        family = [mirror, *mirror.children(recursive=True)]
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            status: int | None = self._process.wait(FINISH_S + 2 * MARGIN_S)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()
        if status != 0:
            sync = f"`wandb sync {self._run_dir}/wandb/*run-*`"
            self._complain(f"not all metrics reached wandb; {sync} sends the rest (details: {self._log})")


def main(run_dir: Path) -> None:
    """Logs all rows of `run_dir`, also those to come, until standard input closes because the driver has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # wandb's web page may send one, which must not stop the run
    # The driver reads one line only: the output of libraries goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ended = threading.Event()
    threading.Thread(target=_await_end, args=(ended,), daemon=True).start()
    logged = _read_logged(run_dir)
    run, place = _start(run_dir, logged)
    print(place, file=answers, flush=True)
    started: set[str] = set()
    for rows in followed(run_dir / "metrics", ended, logged.read):
        for role, row in rows:
            name = curves(role, row)
            step = f"{name}/env_steps"
            if name not in started:
                run.define_metric(f"{name}/*", step_metric=step)
                started.add(name)
            values = {f"{name}/{metric}": value for metric, value in scalars(row).items()}
            run.log({"_timestamp": row["time"], step: row.get("env_steps", 0), **values})
        if rows or not (run_dir / LOGGED).exists():
            write_json(run_dir / LOGGED, logged._asdict(), sync=False)
    status = run_dir / "status.json"
    done = status.exists() and json.loads(status.read_text(encoding="utf-8"))["state"] == "done"
    run.finish(exit_code=0 if done else 1)


class _Logged(NamedTuple):
    """The run at wandb, and the bytes of each metrics file that it has: a resumed run goes on there."""

    id: str
    read: dict[str, int]


def _read_logged(run_dir: Path) -> _Logged:
    try:
        return _Logged(**json.loads((run_dir / LOGGED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # the first incarnation of the run
        return _Logged(secrets.token_hex(8), {})


def _await_end(ended: threading.Event) -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: the read ends at the close
    faulthandler.dump_traceback_later(FINISH_S + MARGIN_S, exit=True)
    ended.set()


def _start(run_dir: Path, logged: _Logged) -> tuple[Any, str]:
    """Starts wandb's run, or continues it after an earlier incarnation; offline if wandb cannot be reached.

    Returns the run and a line on its place.
    """
    import wandb

    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    init = partial(
        wandb.init,
        project=config["wandb"]["project"],
        entity=config["wandb"]["entity"],
        id=logged.id,
        name=run_dir.name,
        dir=str(run_dir),
        tags=[config["env"]],
        config=config,
        settings=wandb.Settings(finish_timeout=FINISH_S, finish_timeout_raises=True),
    )
    try:
        run, reason = init(resume="allow" if logged.read else None), ""
    except wandb.Error as error:  # no key, a bad one, or no network
        wandb.teardown()  # its service still holds the run's id
        run, reason = init(mode="offline"), f" ({str(error).splitlines()[0]})"
    if not run.offline:
        return run, run.url or "disabled"
    return run, f"offline{reason}; `wandb sync {Path(run.dir).parent}` sends it later"


def followed(metrics: Path, ended: threading.Event, read: dict[str, int]) -> Iterator[list[tuple[str, Row]]]:
    """Yields the rows that were added to the metrics files, each with its role's name, about once a second.

    Rows that a resumed run has marked as undone are left out, unless an earlier process has read them.

    Args:
        metrics: the folder of the metrics files.
        ended: set when no more rows come; the files are then read once more.
        read: bytes of each file that are read, by its name; updated before each list.
    """
    last = False
    while not last:
        last = ended.wait(POLL_S)  # the files are read afterwards, when they are complete
        rows: list[tuple[str, Row]] = []
        for path in sorted(metrics.glob("*.jsonl")):
            with open(path, "rb") as file:
                file.seek(read.get(path.name, 0))
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            read[path.name] = read.get(path.name, 0) + len(whole)
            rows += [(path.stem, row) for row in parse_rows(whole)]
        yield rows


if __name__ == "__main__":
    main(Path(sys.argv[1]))
