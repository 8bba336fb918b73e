"""Stands in the place of Python: runs a Python program in a fork of the fork server, or else becomes Python itself.

As a script: `fork_client.py SOCKET PYTHON ARGUMENT...`, without site packages, because it must start at once. Whoever
started this process may treat it as the program: it passes signals on and ends as the program ends, and the program
ends with it.
"""

import json
import os
import signal
import socket
import sys

FORKED = ("setup_worker.py", "default_worker.py", "packages.py")
"""Programs that a fork can run: Ray's workers and this project's own. Ray's agents look at their parent."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
NUMBER_BYTES = 8  # of the length in front of a request, of a process id, and of an exit status
START_S = 20.0  # longest time in which a server answers; a fork that comes later ends at once, its lifeline is closed


def main(path: str, python: str, *arguments: str) -> None:
    program = next((argument for argument in arguments if not argument.startswith("-")), "")
    if os.path.basename(program) in FORKED:
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.settimeout(START_S)
                server.connect(path)
                _end(_run(server, arguments))
        except OSError:  # there is no server: Python itself does it, only later
            pass
    os.execv(python, [python, *arguments])


def _run(server: socket.socket, arguments: tuple[str, ...]) -> int:
    """Returns the program's exit status, or the negative number of the signal that ended it.

    Raises OSError if the program was not started.
    """
    lifeline, _ = os.pipe()  # the program is killed when the end that is held here closes
    ignored = [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]
    request = {"arguments": arguments, "environ": dict(os.environ), "folder": os.getcwd(), "ignored": ignored}
    message = json.dumps(request).encode()
    socket.send_fds(server, [as_bytes(len(message))], [0, 1, 2, lifeline])
    server.sendall(message)
    os.close(lifeline)
    pid = _receive(server)
    if pid is None:
        raise ConnectionError
    server.settimeout(None)  # until the program ends
    for number in PASSED_ON:
        if number not in ignored:
            signal.signal(number, lambda number, _: os.kill(pid, number))
    status = _receive(server)
    return -signal.SIGKILL if status is None else status  # the server's death kills its forks


def as_bytes(number: int) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "big", signed=True)


def from_bytes(content: bytes) -> int:
    return int.from_bytes(content, "big", signed=True)


def _receive(server: socket.socket) -> int | None:
    """Returns the server's next number; None if it died."""
    content = server.recv(NUMBER_BYTES, socket.MSG_WAITALL)
    return from_bytes(content) if len(content) == NUMBER_BYTES else None


def _end(status: int) -> None:
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
