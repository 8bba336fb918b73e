"""docker-compose.yml from `up` to `down`, with podman, without Docker and GPUs."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.telemetry.gauges import LABELS

pytestmark = pytest.mark.deploy

# Debian's podman-compose 1.0.3 knows no profiles.
PODMAN_COMPOSE = [Path(sys.executable).with_name("uv"), "tool", "run", "podman-compose==1.6.0"]
COMMON = {"head", "experiment", "tensorboard", "prometheus"}  # in both profiles; Grafana has no stand-in
BIND = "127.0.0.31"  # unlikely to be used by other programs
PAGES = (8265, 6006)
UNPUBLISHED = (6379, 8080, 9090, 10001, 52365)
MAY_BE_MISSING = {"time_at_goal", "success_rate"}  # a short run may end before Prometheus scrapes an evaluation
UP_S, RUN_S, DOWN_S = 600, 600, 400


def compose(checkout: Path, *arguments: str, profile: str | None = "cpu", timeout: float = 60) -> str:
    """Runs podman-compose. The environment sets the profile; --profile would be added to the profile in .env."""
    environ = {"FATHOM_EXPERIMENT": "deploy/experiments/small.yaml", "FATHOM_BIND": BIND}
    environ |= {"COMPOSE_PROFILES": profile} if profile else {}
    command = [str(part) for part in (*PODMAN_COMPOSE, *arguments)]
    return _run("env", *(f"{name}={value}" for name, value in environ.items()), *command, cwd=checkout, timeout=timeout)


def _run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    return done.stdout


def test_the_file_is_valid_and_the_gpu_profile_is_the_default(checkout: Path) -> None:
    for profile in ("gpu", "cpu"):
        _run("docker-compose", "--profile", profile, "config", "--quiet", cwd=checkout)
    services = {
        profile: set(compose(checkout, "config", "--services", profile=profile).split()) for profile in (None, "cpu")
    }
    assert services[None] == COMMON | {"grafana", "gpu-worker"}
    assert services["cpu"] == COMMON | {"grafana", "cpu-worker"}


@pytest.fixture(scope="module")
def finished(checkout: Path, image: str, prometheus: None) -> Iterator[Path]:
    """A checkout after `up`: its experiment is done, and all other services still run."""
    try:
        _up(checkout)
        assert _run("podman", "wait", _container(checkout, "experiment"), timeout=RUN_S).strip() == "0", _log(checkout)
        yield checkout
    finally:
        compose(checkout, "down", "--volumes", timeout=DOWN_S)


def _up(checkout: Path) -> None:
    compose(checkout, "up", "-d", *COMMON, "cpu-worker", timeout=UP_S)


def _container(checkout: Path, service: str) -> str:
    return f"{checkout.name}_{service}_1"


def _log(checkout: Path) -> str:
    done = subprocess.run(["podman", "logs", _container(checkout, "experiment")], capture_output=True, text=True)
    return (done.stdout + done.stderr)[-3000:]


def test_results_are_in_runs_and_belong_to_the_owner_of_the_checkout(finished: Path) -> None:
    results = finished / "runs/small"
    for seed in (0, 1):
        assert json.loads((results / f"point_u_maze-c4-s{seed}/status.json").read_text())["state"] == "done"
    assert (results / "report.html").exists()
    owners = {path.stat().st_uid for path in (finished / "runs").rglob("*")}
    assert owners == {finished.stat().st_uid}


def test_only_the_owner_may_read_the_token(finished: Path) -> None:
    token = finished / ".fathom/ray-token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.stat().st_uid == finished.stat().st_uid
    assert re.fullmatch(r"[0-9a-f]{64}", token.read_text())


def test_only_pages_are_reachable(finished: Path) -> None:
    for port in PAGES:
        with urllib.request.urlopen(f"http://{BIND}:{port}/", timeout=20) as answer:
            assert answer.status == 200
    for port in UNPUBLISHED:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((BIND, port), 2).close()


def test_ray_requires_the_token(finished: Path) -> None:
    jobs = f"http://{BIND}:8265/api/jobs/"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(jobs, timeout=20)
    assert refused.value.code == 401
    token = (finished / ".fathom/ray-token").read_text()
    request = urllib.request.Request(jobs, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert [job["status"] for job in json.load(answer)] == ["SUCCEEDED"]


def test_tensorboard_finds_the_runs(finished: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://{BIND}:6006/data/runs", timeout=20) as answer:
            runs = json.load(answer)
        if any(run.startswith("small/point_u_maze-c4-s1") for run in runs):
            return
        time.sleep(2)
    pytest.fail(f"TensorBoard shows {runs}")


def test_prometheus_has_the_metrics_of_the_dashboard(finished: Path) -> None:
    dashboard = json.loads((finished / "deploy/docker/grafana/dashboards/fathom.json").read_text())
    text = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    shown = set(re.findall(r"\bray_[a-z_]+", text))
    stored = set(_ask_prometheus(finished, "label/__name__/values"))
    optional = {f"ray_fathom_{name}" for name in MAY_BE_MISSING}
    gpus = {name for name in shown if "gpu" in name or "gram" in name}  # this machine has no GPU
    assert shown - optional - gpus <= stored, sorted(name for name in stored if "fathom" in name or "object" in name)
    assert {f"ray_fathom_{name}" for name in LABELS} <= shown
    targets = _ask_prometheus(finished, "targets")["activeTargets"]
    assert [target["health"] for target in targets] == ["up", "up"]  # the head and the worker


def _ask_prometheus(checkout: Path, query: str) -> Any:
    """Asks from within the network, because Prometheus is not published."""
    code = f"import urllib.request as u; print(u.urlopen('http://prometheus:9090/api/v1/{query}').read().decode())"
    return json.loads(_run("podman", "exec", _container(checkout, "head"), "python3", "-c", code))["data"]


def test_down_leaves_nothing_and_up_resumes(finished: Path) -> None:
    compose(finished, "down", timeout=DOWN_S)
    left = _run("podman", "ps", "--all", "--format", "{{.Names}}").split()
    assert not [name for name in left if name.startswith(f"{finished.name}_")]
    assert f"{finished.name}_default" not in _run("podman", "network", "ls", "--format", "{{.Name}}").split()
    written = (finished / "runs/small/point_u_maze-c4-s0/summary.json").stat().st_mtime
    _up(finished)
    _run("podman", "wait", _container(finished, "experiment"), timeout=RUN_S)
    assert "point_u_maze-c4-s1: done before" in _log(finished)
    assert (finished / "runs/small/point_u_maze-c4-s0/summary.json").stat().st_mtime == written
