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
SIZE_BYTES = 8  # of a message's length, in front of it
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
    socket.send_fds(server, [len(message).to_bytes(SIZE_BYTES, "big")], [0, 1, 2, lifeline])
    server.sendall(message)
    os.close(lifeline)
    started = server.recv(SIZE_BYTES)
    if not started:
        raise ConnectionError
    pid = int(started)
    server.settimeout(None)  # until the program ends
    for number in PASSED_ON:
        if number not in ignored:
            signal.signal(number, lambda number, _: os.kill(pid, number))
    return int(server.recv(SIZE_BYTES) or -signal.SIGKILL)  # the server's death kills its forks


def _end(status: int) -> None:
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
