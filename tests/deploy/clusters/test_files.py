"""The cluster files against their schemas, and the Slurm script with stand-ins for Slurm's commands."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import psutil
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[3]
FILES = ROOT / "deploy" / "clusters"
KUBERNETES = "1.33"


def loaded(name: str) -> Any:
    return yaml.safe_load((FILES / name).read_text())


def test_the_ray_launcher_accepts_its_file() -> None:
    config = prepare_config(loaded("ray_cluster.yaml"))
    validate_config(config)
    assert config["max_workers"] == len(config["provider"]["worker_ips"])


def test_the_pods_of_the_ray_job_are_valid() -> None:
    job = loaded("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        labels = group["template"]["metadata"]
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"], "metadata": {"name": "ray", **labels}}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]} == volumes


def test_the_network_policy_selects_the_pods_of_the_ray_job() -> None:
    policy, job = loaded("network_policy.yaml"), loaded("rayjob.yaml")
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    selector = policy["spec"]["podSelector"]
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"] == selector["matchLabels"]
    between_pods, dashboard = policy["spec"]["ingress"]
    assert between_pods == {"from": [{"podSelector": selector}]}  # on every port
    submitter, operator = dashboard["from"]
    assert submitter["podSelector"]["matchLabels"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert operator["namespaceSelector"] == {}  # one entry with the pod's label; two entries would admit all pods
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert dashboard["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert policy["spec"]["policyTypes"] == ["Ingress"]


def test_files_named_in_the_cluster_files_exist() -> None:
    for name, key in (("rayjob.yaml", "matrix "), ("slurm.sh", "{1:-"), ("runtime_env.yaml", "deploy.cli matrix ")):
        text = (FILES / name).read_text()
        path = text.partition(key)[2].partition(".yaml")[0] + ".yaml"
        assert (ROOT / path).is_file(), f"{name}: {path}"
    assert (ROOT / loaded("runtime_env.yaml")["uv"]).is_file()


MATRIX = """
envs: [point_u_maze]
collector_depths: [4]
learner_depths: [4]
experiment:
  env_options: {episode_length: 20}
  collector: {width: 8, environments: 4, unroll_length: 5}
  algorithm: {batch_size: 16, windows_per_update: 8, minibatches_per_update: 4}
  replay: {steps_per_environment: 400, prefill_steps: 40}
  evaluation: {episodes: 8, count: 2}
  budget: {env_steps: 400}
"""
STAND_INS = {
    "scontrol": "if [[ $1 == show ]]; then printf 'localhost\\nlocalhost\\n'; else echo scontrol $@ >> $COMMANDS; fi",
    # Arguments that begin with -- are Slurm's options, the others are the command. `srun` records the command.
    "srun": 'while [[ $1 == --* ]]; do shift; done; echo "$@" >> "$COMMANDS"; exec "$@"',
}


class Job:
    """The Slurm script with stand-ins for Slurm's commands, in a process of its own."""

    def __init__(self, folder: Path, matrix: str) -> None:
        bin_dir = folder / "bin"
        bin_dir.mkdir()
        for name, body in STAND_INS.items():
            (bin_dir / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (bin_dir / name).chmod(0o755)
        (folder / "tiny.yaml").write_text(matrix)
        self.runs = folder / "runs" / "tiny"
        self.commands = folder / "commands"
        environ = {
            "PATH": f"{bin_dir}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COMMANDS": str(self.commands),
            "HOME": str(Path.home()),
            "SLURM_JOB_NODELIST": "localhost,localhost",
            "SLURM_JOB_ID": str(os.getpid()),
            "PYTHONPATH": str(ROOT),
        }
        self.log = folder / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["bash", str(FILES / "slurm.sh"), str(folder / "tiny.yaml")],
                cwd=folder,
                env=environ,
                stdout=log,
                stderr=log,
            )

    def end(self) -> int:
        """Returns the exit status, once no process is left."""
        status = self.process.wait(230)
        assert psutil.wait_procs(started_with("COMMANDS", str(self.commands)), timeout=20)[1] == []
        return status


@pytest.mark.deploy
def test_the_slurm_script_starts_a_cluster_and_leaves_no_process(tmp_path: Path) -> None:
    job = Job(tmp_path, MATRIX)
    assert job.end() == 0, job.log.read_text()
    assert job.commands.read_text().count("ray start --block") == 2
    assert "requeue" not in job.commands.read_text()
    assert (job.runs / "summary.csv").is_file()


@pytest.mark.deploy
def test_the_slurm_script_requeues_a_job_that_is_warned(tmp_path: Path) -> None:
    job = Job(tmp_path, MATRIX.replace("env_steps: 400", "env_steps: 10_000_000"))
    rows = job.runs / "point_u_maze-c4-s0" / "metrics" / "learner-d4.jsonl"
    deadline = time.monotonic() + 150
    while not rows.exists():
        assert time.monotonic() < deadline, job.log.read_text()
        assert job.process.poll() is None, job.log.read_text()
        time.sleep(0.2)
    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == 128 + signal.SIGUSR1, job.log.read_text()
    assert f"scontrol requeue {os.getpid()}" in job.commands.read_text()
    status = json.loads((rows.parents[1] / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("interrupted", "stopped by SIGUSR1")
    assert list((rows.parents[1] / "snapshots").glob("*/snapshot.json"))


def started_with(name: str, value: str) -> list[psutil.Process]:
    """Returns the processes whose environment has the variable `name` with this value."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value:
                found.append(process)
    return found
