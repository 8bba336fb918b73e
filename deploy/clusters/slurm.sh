#!/usr/bin/env bash
# Slurm: a Ray cluster on the nodes of one job, and a matrix on it. Submit from the checkout, on a file system that all
# nodes share: sbatch deploy/clusters/slurm.sh [MATRIX.yaml]. Slurm warns five minutes before it takes the nodes. The runs
# then take snapshots and end, and the job is queued again; it skips runs that are done and resumes the others.
#SBATCH --job-name=fathom
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
matrix=${1:-deploy/experiments/collector_learner_ant_big_maze.yaml}
export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')  # for this job alone
export RAY_AUTH_TOKEN
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(getent ahostsv4 "${nodes[0]}" | awk 'NR == 1 {print $1}')
export RAY_ADDRESS="$head:$((20000 + SLURM_JOB_ID % 20000))"  # two jobs may share a node
start() { srun --nodes=1 --ntasks=1 --nodelist="$1" ray start --block --disable-usage-stats "${@:2}" & }

trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
start "${nodes[0]}" --head --node-ip-address="$head" --port="${RAY_ADDRESS##*:}"
for node in "${nodes[@]:1}"; do start "$node" --address="$RAY_ADDRESS"; done
python - "${#nodes[@]}" <<'PYTHON'
import sys, time
import ray
deadline = time.monotonic() + 300
while True:
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="CRITICAL")
        if sum(node["Alive"] for node in ray.nodes()) >= int(sys.argv[1]):
            break
        ray.shutdown()
    except ConnectionError:
        pass  # the head is not up yet
    if time.monotonic() > deadline:
        sys.exit("the Ray nodes did not come up within 300 s")
    time.sleep(2)
PYTHON
fathom matrix "$matrix" --out "runs/$(basename "$matrix" .yaml)" &
runs=$! warned=
trap 'warned=yes; kill -USR1 "$runs"' USR1
status=0; wait "$runs" || status=$?
if [[ $warned ]]; then  # the signal has only ended the wait
  status=0; wait "$runs" || status=$?
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
