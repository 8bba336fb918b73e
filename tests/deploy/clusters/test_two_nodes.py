"""Two Ray nodes in network namespaces of their own, so that loopback addresses do not connect them."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.deploy

BIN = Path(sys.executable).parent
MARK = "FATHOM_TEST_NODES"  # in the environment of all processes that are started here
HEAD, WORKER = "10.231.0.1", "10.231.0.2"
PORT = 6379
ACTING = ("collector-0", "evaluator")
LEARNING = ("learner-active", "learner-deep", "ReplayServerActor", "ParamStoreActor")
EXPERIMENT = """
env: point_u_maze
placement: spread
collector: {depth: 4, width: 16, environments: 32, unroll_length: 50}
learners: {deep: {depth: 8, width: 16}}
algorithm: {batch_size: 64, windows_per_update: 16, minibatches_per_update: 8}
replay: {steps_per_environment: 2000, prefill_steps: 250}
evaluation: {episodes: 16, count: 2}
budget: {env_steps: 60_000}
"""
LIST_ACTORS = """
import json, ray
from ray.util.state import list_actors
ray.init(address="auto", log_to_driver=False, logging_level="CRITICAL")
nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
print(json.dumps({each.name: nodes[each.node_id] for each in list_actors() if each.state == "ALIVE"}))
"""


class Nodes:
    """A head and a worker. The worker cannot see the folder `hidden`."""

    def __init__(self, folder: Path) -> None:
        self._mark = secrets.token_hex(4)
        self._spaces = [f"fathom-{self._mark}-{side}" for side in ("head", "worker")]
        self.hidden = folder / "hidden"
        self.hidden.mkdir()
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        self.environ = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": f"{HEAD}:{PORT}",
            MARK: self._mark,
        }
        self._connect()
        start = ["ray", "start", "--block", "--num-cpus=2", "--object-store-memory=200000000", "--disable-usage-stats"]
        self._start(0, [*start, "--head", f"--node-ip-address={HEAD}", f"--port={PORT}"])
        self._wait(1)
        hide = f"mount -t tmpfs none {self.hidden} && exec "
        join = [*start, f"--address={HEAD}:{PORT}", f"--node-ip-address={WORKER}"]
        self._start(1, ["sh", "-c", hide + " ".join(join)])
        self._wait(2)

    def _connect(self) -> None:
        ends = [f"f{self._mark}{side}" for side in "hw"]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for space, end, address in zip(self._spaces, ends, (HEAD, WORKER), strict=True):
            _ip("netns", "add", space)
            _ip("link", "set", end, "netns", space)
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", end)
            for device in ("lo", end):
                _ip("-n", space, "link", "set", device, "up")

    def _start(self, side: int, command: list[str]) -> None:
        environ = {name: value for name, value in self.environ.items() if name != "RAY_ADDRESS"}
        inside = ["ip", "netns", "exec", self._spaces[side], *command]
        subprocess.Popen(inside, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a command on the head's node."""
        inside = ["ip", "netns", "exec", self._spaces[0], *command]
        return subprocess.run(inside, env=self.environ, capture_output=True, text=True, timeout=timeout)

    def _wait(self, count: int) -> None:
        alive = "import ray; ray.init(address='auto'); print(sum(node['Alive'] for node in ray.nodes()))"
        deadline = time.monotonic() + 90
        while self.run(sys.executable, "-c", alive).stdout.strip() != str(count):
            assert time.monotonic() < deadline
            time.sleep(1)

    def stop(self) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    process.kill()
        for space in self._spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    started = Nodes.__new__(Nodes)
    try:
        started.__init__(tmp_path_factory.mktemp("nodes"))  # type: ignore[misc]
        yield started
    finally:
        started.stop()


@pytest.mark.timeout(400)
def test_collectors_on_one_node_and_learners_on_the_other(nodes: Nodes, tmp_path: Path) -> None:
    experiment, run_dir = tmp_path / "experiment.yaml", tmp_path / "run"
    experiment.write_text(EXPERIMENT)
    command = ["fathom", "run", str(experiment), "--run-dir", str(run_dir)]
    space = ["ip", "netns", "exec", nodes._spaces[0]]
    run = subprocess.Popen([*space, *command], env=nodes.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    node_of: dict[str, str] = {}
    deadline = time.monotonic() + 200
    while not set(LEARNING) | set(ACTING) <= set(node_of):
        assert time.monotonic() < deadline
        assert run.poll() is None, run.communicate()
        answer = nodes.run(sys.executable, "-c", LIST_ACTORS).stdout.strip()
        node_of = json.loads(answer) if answer else {}
    printed = run.communicate(timeout=200)[0].decode()
    assert run.returncode == 0, printed
    learning, acting = ({node_of[name] for name in names} for names in (LEARNING, ACTING))
    assert len(learning) == len(acting) == 1
    assert learning | acting == {HEAD, WORKER}
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["learners"]["deep"]["gradient_steps"] > 0


def test_an_error_names_a_folder_that_is_not_shared(nodes: Nodes, tmp_path: Path) -> None:
    experiment, run_dir = tmp_path / "experiment.yaml", nodes.hidden / "run"
    experiment.write_text(EXPERIMENT + "record: true\n")  # either the collector or the learners run on the worker
    refused = nodes.run("fathom", "run", str(experiment), "--run-dir", str(run_dir), timeout=200)
    assert refused.returncode == 1
    words = " ".join(refused.stderr.split())
    assert f"'s node does not see {run_dir}; name a folder that all nodes share" in words
