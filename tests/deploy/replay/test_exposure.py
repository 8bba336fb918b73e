"""Public addresses at which a server answers, in network namespaces of their own; and modes of run directories."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from deploy.cli.main import run_command
from deploy.cli.options import folder_mode
from deploy.replay.exposure import exposed, firewall_line, public_addresses, warning
from deploy.run.run_dir import prepare_run_dir
from shared.errors import ConfigError
from shared.files import make_folder

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "deploy" / "experiments" / "point_u_maze.yaml")

LISTEN = """
import socket
from deploy.replay.exposure import exposed, public_addresses, warning

def listening(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), family=family, dualstack_ipv6=address == "::")
    return server, server.getsockname()[1]
"""


def in_namespace(addresses: Sequence[str], script: str) -> str:
    """Returns the output of `script` in a namespace whose only interface is loopback, with `addresses` added."""
    if missing := _no_namespaces():
        pytest.skip(missing)
    added = " && ".join(f"ip addr add {address} dev lo" for address in addresses)
    setup = f'ip link set lo up && {added or "true"} && exec "$@"'
    command = ["unshare", "-n", "sh", "-ec", setup, "sh", sys.executable, "-c", LISTEN + script]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@cache
def _no_namespaces() -> str:
    """Returns the reason why network namespaces are not available; empty if they are."""
    if os.getuid() != 0 or not (shutil.which("unshare") and shutil.which("ip")):
        return "needs root, unshare and ip for a network namespace"
    made = subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0
    return "" if made else "this machine makes no network namespaces"


PRIVATE = ["10.1.2.3/32", "172.16.0.1/32", "192.168.1.1/32", "100.64.0.1/32", "169.254.1.1/32", "fd00::1/128"]
PUBLIC = ["8.8.8.8/32", "1.0.0.1/32", "2600::1/128"]


@pytest.mark.processes
def test_private_addresses_are_not_public() -> None:
    printed = in_namespace(PRIVATE, "server, port = listening('::'); print(public_addresses(), warning(port))")
    assert printed == "[] None"


@pytest.mark.processes
def test_public_addresses_are_found_among_others_and_a_server_on_every_interface_is_exposed() -> None:
    script = """
print(*public_addresses())
server, port = listening("::")
print(*exposed(port))
print(port)
print(warning(port))
server.close()
print(exposed(port), warning(port))
"""
    public, addresses, port, said, closed = in_namespace([*PRIVATE, *PUBLIC], script).splitlines()
    assert public == addresses == "1.0.0.1 2600::1 8.8.8.8"
    assert f"without authentication, at 1.0.0.1:{port}, [2600::1]:{port}, 8.8.8.8:{port}; " in said
    assert said.endswith(
        f": iptables -I INPUT ! -i lo -d 1.0.0.1,8.8.8.8 -p tcp --dport {port} -j DROP"
        f" && ip6tables -I INPUT ! -i lo -d 2600::1 -p tcp --dport {port} -j DROP"
    )
    assert closed == "[] None"


@pytest.mark.processes
def test_only_addresses_that_accept_connections_are_exposed() -> None:
    reached = {"0.0.0.0": ["8.8.8.8"], "127.0.0.1": [], "8.8.8.8": ["8.8.8.8"]}
    script = f"import json; servers = [listening(address) for address in {[*reached]}]; "
    script += "print(json.dumps([exposed(port) for _, port in servers]))"
    assert json.loads(in_namespace(["8.8.8.8/32", "2600::1/128"], script)) == [*reached.values()]


@pytest.mark.processes
def test_a_port_that_drops_packets_delays_nothing() -> None:
    if not shutil.which("iptables"):
        pytest.skip("needs iptables")
    script = """
import subprocess, time
server, port = listening("::")
rule = ["INPUT", "-d", "8.8.8.8", "-p", "tcp", "--dport", str(port), "-j", "DROP"]
if subprocess.run(["iptables", "-I", *rule], capture_output=True).returncode:
    print("no iptables")
else:
    started = time.monotonic()
    print(exposed(port), time.monotonic() - started < 3)
"""
    printed = in_namespace(["8.8.8.8/32"], script)
    if printed == "no iptables":
        pytest.skip("this machine's kernel has no iptables")
    assert printed == "[] True"


@pytest.mark.processes
def test_firewall_lines_close_only_the_public_address() -> None:
    """Runs the command of the warning, then the command of the documentation, and connects after each.

    The server, with a public and a private address, and its client have a network namespace each.
    """
    documented = re.search("^iptables -I .*7777.*$", (ROOT / "docs" / "deploy.md").read_text(), re.MULTILINE)
    assert documented
    if not shutil.which("iptables"):
        pytest.skip("needs iptables")
    script = """
import os, subprocess, sys, time

def run(*command):
    if subprocess.run(command, capture_output=True).returncode:
        print("cannot " + " ".join(command))
        sys.exit()

other = subprocess.Popen(["unshare", "-n", "sleep", "60"])
while os.readlink(f"/proc/{other.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
    time.sleep(0.01)
try:
    inside = ["nsenter", "-n", "-t", str(other.pid)]
    run("ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(other.pid))
    run("ip", "addr", "add", "8.8.8.8/24", "dev", "here")
    run("ip", "addr", "add", "10.0.0.1/24", "dev", "here")
    run("ip", "link", "set", "here", "up")
    run(*inside, "ip", "addr", "add", "8.8.8.9/24", "dev", "there")
    run(*inside, "ip", "addr", "add", "10.0.0.2/24", "dev", "there")
    run(*inside, "ip", "link", "set", "there", "up")
    server, port = listening("0.0.0.0")

    def reached():
        connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)"
        command = [*inside, sys.executable, "-c", connect]
        for address in ("8.8.8.8", "10.0.0.1"):
            yield subprocess.run([*command, address, str(port)], capture_output=True).returncode == 0

    print(list(reached()))
    for line in (warning(port).partition("close it: ")[2], DOCUMENTED.replace("7777", str(port))):
        run("sh", "-c", line)
        print(list(reached()), exposed(port))
        run("iptables", "-F")
finally:
    other.kill()
"""
    printed = in_namespace([], f"DOCUMENTED = {documented[0]!r}\n" + script)
    if "cannot" in printed:
        pytest.skip(f"this machine {printed}")
    assert printed.splitlines() == ["[True, True]", *["[False, True] ['8.8.8.8']"] * 2]


def test_a_local_server_is_not_exposed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert exposed(port) == []
        assert warning(port) is None
    assert isinstance(public_addresses(), list)


def test_each_address_family_has_its_own_command() -> None:
    assert firewall_line(["8.8.8.8"], 7) == "iptables -I INPUT ! -i lo -d 8.8.8.8 -p tcp --dport 7 -j DROP"
    assert firewall_line(["2600::1"], 7) == "ip6tables -I INPUT ! -i lo -d 2600::1 -p tcp --dport 7 -j DROP"


# --- folders ---


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_new_folder_has_its_mode_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    folder = tmp_path / "parent" / "run"
    make_folder(folder, 0o750)
    assert mode(folder) == 0o750
    assert mode(folder.parent) == 0o777 & ~umask


def test_a_run_directory_is_closed_to_others_by_default(tmp_path: Path) -> None:
    assert mode(prepare_run_dir(tmp_path / "run", overwrite=False)) == 0o700
    assert mode(prepare_run_dir(tmp_path / "shared", overwrite=False, mode=0o755)) == 0o755


def test_an_existing_folder_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    assert mode(prepare_run_dir(tmp_path / "run", overwrite=False)) == 0o755
    (tmp_path / "run" / "config.yaml").touch()
    assert mode(prepare_run_dir(tmp_path / "run", overwrite=True)) == 0o700  # removed, and made anew


@pytest.mark.parametrize(("text", "value"), [("0700", 0o700), ("750", 0o750), ("2770", 0o2770), ("0777", 0o777)])
def test_a_mode_is_octal(text: str, value: int) -> None:
    assert folder_mode(text) == value


@pytest.mark.parametrize(
    "text", ["", "0", "70", "0800", "0o700", "u=rwx", "0600", "07000", "-700", "0700 ", "4755", "７５０"]
)
def test_an_invalid_mode_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--dir-mode: .* is not the mode of a folder .*, such as 0750$"):
        folder_mode(text)


@pytest.mark.parametrize("command", [["run", DEMO, "--run-dir"], ["matrix", DEMO, "--out"]], ids=["run", "matrix"])
def test_commands_refuse_a_wrong_mode(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*command, str(tmp_path / "out"), "--dir-mode", "75"]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("fathom: --dir-mode: '75' is not the mode of a folder")
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.processes
@pytest.mark.parametrize(("options", "wanted"), [([], 0o700), (["--dir-mode", "0750"], 0o750)])
def test_the_command_creates_its_folder_with_the_mode(
    options: list[str], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FATHOM_REVERB_PYTHON", str(tmp_path / "no-python"))  # it ends before anything starts
    assert run_command(["run", DEMO, "--run-dir", str(tmp_path / "run"), *options]) == 1
    assert mode(tmp_path / "run") == wanted
