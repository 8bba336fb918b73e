"""Fork server: Python programs as forks of a process that has imported what they need.

The imports of JAX and of the roles cost each process more than a second, and 200 MB; a fork costs milliseconds, and
shares that memory until it writes to it. The server is itself a fork of the command that opens it, from before the
command has threads that compute. Programs reach it by `fork_client.py`, which stands in the place of Python for Ray's
workers and for the runs of a matrix. Without a server, or after its death, the same programs import for themselves.

Ray itself must not be imported before a fork: it reads variables once that tell one worker from another.
"""

import atexit
import ctypes
import fcntl
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deploy.scheduling import fork_client
from deploy.scheduling.fork_client import NUMBER_BYTES, PASSED_ON, as_bytes, from_bytes

PYTHON = "FATHOM_PYTHON"  # the variable that names the program in Python's place, while there is a server
REQUEST_S = 10.0  # longest time of a request, which is sent at once
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_F_SETSIG = 10  # of <fcntl.h>
_TRUE = ("1", "true", "t", "yes", "y", "on")


def python_program() -> str:
    """Returns the program that runs Python programs: forks of the server, if there is one, else Python itself."""
    return os.environ.get(PYTHON, sys.executable)


@contextmanager
def fork_server(modules: Sequence[str]) -> Iterator[None]:
    """Serves forks of this process, which imports `modules` first, to all processes that are started in the block.

    Does nothing where a server is there already, where this process has threads, which no fork would have, and on
    systems other than Linux.
    """
    if PYTHON in os.environ or sys.platform != "linux":
        yield
        return
    for module in modules:
        importlib.import_module(module)
    if threading.active_count() > 1 or _jax_computes():
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="fathom-forks-"))
    path, program = folder / "socket", folder / "python"
    program.write_text(_CLIENT.format(*map(shlex.quote, (sys.executable, fork_client.__file__, str(path)))))
    program.chmod(0o700)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(128)
            server = _fork(lambda: _Server(listener).serve())
        os.environ[PYTHON] = str(program)
        try:
            yield
        finally:
            del os.environ[PYTHON]
            os.kill(server, signal.SIGKILL)  # its forks end with it
            os.waitpid(server, 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_CLIENT = """\
#!/bin/sh
exec {0} -IS {1} {2} {0} "$@"
"""


@contextmanager
def as_python() -> Iterator[None]:
    """Makes libraries that start Python by `sys.executable` in the block start `python_program` in its place."""
    executable, sys.executable = sys.executable, python_program()
    try:
        yield
    finally:
        sys.executable = executable


def _jax_computes() -> bool:
    """True once JAX has threads in this process."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()


def _fork(main: Callable[[], object]) -> int:
    """Runs `main` in a child, which is killed if this process dies. Returns the child's process id."""
    parent = os.getpid()
    if child := os.fork():
        return child
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(status)
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
        atexit._clear()  # what the parent will do at its end is not the child's business
        os.setsid()
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as Python does at the end of a program
        traceback.print_exc()
    finally:
        with suppress(Exception):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status)


class _Server:
    """The server's loop; one process, one thread."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._children: dict[int, tuple[int, socket.socket]] = {}  # by a descriptor of the process
        self._environ = dict(os.environ)

    def serve(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._listener.fileno():
                    with suppress(OSError, ValueError):  # of a client that died
                        self._accept()
                else:
                    self._reap(descriptor)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.settimeout(REQUEST_S)
        size, files, _, _ = socket.recv_fds(client, NUMBER_BYTES, 4)
        try:
            message = bytearray()
            while len(message) < from_bytes(size):
                message += client.recv(1 << 20) or _raise(ConnectionError())
            pid = _fork(lambda: self._become(json.loads(message), files))
            descriptor = os.pidfd_open(pid)
            self._children[descriptor] = pid, client
            self._poll.register(descriptor, select.POLLIN)
            client.send(as_bytes(pid))
        finally:
            for file in files:
                os.close(file)

    def _reap(self, descriptor: int) -> None:
        pid, client = self._children.pop(descriptor)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        with client, suppress(OSError):  # the client may be gone
            client.send(as_bytes(os.waitstatus_to_exitcode(status)))

    def _become(self, request: dict[str, Any], files: list[int]) -> None:
        """Makes this fork the process that Python would have started."""
        lifeline = files.pop()
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
        if select.select([lifeline], [], [], 0)[0]:
            os._exit(1)  # the client has died meanwhile
        for target, file in enumerate(files):
            os.dup2(file, target)
        self._close()
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0, closefd=False), _writer(1), _writer(2)
        os.environ.clear()
        os.environ.update(request["environ"])
        with suppress(OSError):
            os.chdir(request["folder"])
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_IGN if number in request["ignored"] else signal.SIG_DFL)
        if signal.SIGINT not in request["ignored"]:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        read_variables(self._environ)
        _run(request["arguments"])

    def _close(self) -> None:
        """Closes what belongs to the server alone."""
        self._listener.close()
        for descriptor, (_, client) in self._children.items():
            os.close(descriptor)
            client.close()


def _raise(error: Exception) -> Any:
    raise error


def _writer(descriptor: int) -> Any:
    buffering = 1 if os.isatty(descriptor) else -1
    return os.fdopen(descriptor, "w", buffering, errors="backslashreplace", closefd=False)


def read_variables(before: Mapping[str, str]) -> None:
    """Gives JAX, which reads variables when it is imported, those that differ from `before`."""
    if "jax" not in sys.modules:
        return
    import jax

    changed = {name.lower(): text for name, text in os.environ.items() if text != before.get(name)}
    for option in changed.keys() & jax.config.values.keys():
        kind, text = type(jax.config.values[option]), changed[option]
        jax.config.update(
            option, text.lower() in _TRUE if kind is bool else kind(text) if kind in (int, float) else text
        )


def _run(arguments: Sequence[str]) -> None:
    """Runs a script with its arguments as Python does."""
    first = next(index for index, argument in enumerate(arguments) if not argument.startswith("-"))
    options, (script, *_) = arguments[:first], arguments[first:]
    sys.argv = list(arguments[first:])
    if "-P" not in options:
        sys.path.insert(0, os.path.dirname(script))
    if os.path.basename(script) == "setup_worker.py":
        _stay_for_the_worker()
    runpy.run_path(script, run_name="__main__")


def _stay_for_the_worker() -> None:
    """Lets Ray's set-up of a worker go on in this process with the worker's own script, instead of a new Python."""
    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray.core.generated.common_pb2 import Language

    start_anew = RuntimeEnvContext.exec_worker

    def exec_worker(context: Any, arguments: list[str], language: Any) -> None:
        plain = context.py_executable == sys.executable and not context.command_prefix
        if not plain or context.override_worker_entrypoint or language != Language.PYTHON:
            return start_anew(context, arguments, language)
        before = dict(os.environ)
        os.environ.update(context.env_vars)
        read_variables(before)
        return _run(arguments)

    RuntimeEnvContext.exec_worker = exec_worker
