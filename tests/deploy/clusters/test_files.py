"""The cluster files against their schemas, and the Slurm script with stand-ins for Slurm's commands."""

import contextlib
import os
import subprocess
import sys
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
    "scontrol": "printf 'localhost\\nlocalhost\\n'",
    # Arguments that begin with -- are Slurm's options, the others are the command. `srun` records the command.
    "srun": 'while [[ $1 == --* ]]; do shift; done; echo "$@" >> "$COMMANDS"; exec "$@"',
}


@pytest.mark.deploy
def test_the_slurm_script_starts_a_cluster_and_leaves_no_process(tmp_path: Path) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name, body in STAND_INS.items():
        (bin_dir / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (bin_dir / name).chmod(0o755)
    matrix = tmp_path / "tiny.yaml"
    matrix.write_text(MATRIX)
    python_bin = Path(sys.executable).parent
    environ = {
        "PATH": f"{bin_dir}:{python_bin}:{os.environ['PATH']}",
        "COMMANDS": str(tmp_path / "commands"),
        "HOME": str(Path.home()),
    }
    environ |= {"SLURM_JOB_NODELIST": "localhost,localhost", "SLURM_JOB_ID": str(os.getpid()), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        ["bash", str(FILES / "slurm.sh"), str(matrix)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=230,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "commands").read_text().count("ray start --block") == 2
    assert (tmp_path / "runs" / "tiny" / "summary.csv").is_file()
    assert psutil.wait_procs(started_with("COMMANDS", environ["COMMANDS"]), timeout=20)[1] == []


def started_with(name: str, value: str) -> list[psutil.Process]:
    """Returns the processes whose environment has the variable `name` with this value."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value:
                found.append(process)
    return found
