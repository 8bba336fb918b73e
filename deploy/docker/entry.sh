#!/bin/bash
# fathom-entry ROLE: entry point of all containers of docker-compose.yml. Anything but a role is run as a command.
set -euo pipefail

HEAD=head GCS_PORT=6379 DASHBOARD_PORT=8265 METRICS_PORT=8080

# Becomes the owner of the checkout, so that nobody has to configure a uid: Compose starts this script as root for that.
# Folders that the engine created as root for a bind mount become the owner's, too.
become_owner() {
    local owner
    owner=$(stat -c %u:%g deploy/experiments)
    for folder in runs .fathom; do
        chown "$owner" "$folder" 2>/dev/null || true # TensorBoard has only one of them, read-only
    done
    [ "$owner" = 0:0 ] || exec setpriv --reuid "${owner%:*}" --regid "${owner#*:}" --clear-groups --no-new-privs "$0" "$@"
}

# The first container creates the cluster's token. A hard link appears whole and never replaces another one.
make_token() {
    [ -s "$RAY_AUTH_TOKEN_PATH" ] && return
    local new
    new=$(umask 077 && mktemp "$(dirname "$RAY_AUTH_TOKEN_PATH")/new-XXXXXX")
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$new"
    ln "$new" "$RAY_AUTH_TOKEN_PATH" 2>/dev/null || true
    rm "$new"
}

# Ray itself gives up after a while, but the first start on a machine may take longer. Each try has a time limit,
# because a look-up of the name that comes too early hangs.
wait_for_head() {
    until timeout 3 bash -c "exec 3<>/dev/tcp/$HEAD/$1" 2>/dev/null; do sleep 1; done
}

# Ray's object store gets nine tenths of /dev/shm, whose size is `shm_size`.
start_ray() {
    local shm
    shm=$(df --output=size --block-size=1 /dev/shm | tail -n 1)
    exec ray start --block --disable-usage-stats --node-ip-address "$(hostname -i | cut -d ' ' -f 1)" \
        --metrics-export-port "$METRICS_PORT" --object-store-memory $((shm / 10 * 9)) "$@"
}

# Prints the command for an experiment or, if the file names `envs:`, for a matrix and its report. Finished runs are
# skipped.
command_for() {
    local name out
    name=$(basename "$1")
    out=runs/${name%.y*ml}
    if grep -qE '^(envs|environments):' "$1"; then
        echo "fathom matrix '$1' --out '$out' && fathom report '$out'"
    elif grep -qs '"done"' "$out/status.json"; then
        echo "echo '$out: done before'"
    else
        echo "fathom run '$1' --run-dir '$out' --resume"
    fi
}

# Follows the job and returns its exit status. On a signal, it first lets the run end in order.
submit() {
    local id submitted
    export RAY_API_SERVER_ADDRESS=http://$HEAD:$DASHBOARD_PORT
    wait_for_head "$DASHBOARD_PORT"
    until ray job list >/dev/null 2>&1; do sleep 2; done
    id=fathom-$(date +%Y%m%d-%H%M%S)
    ray job submit --submission-id "$id" --entrypoint-resources '{"driver": 1}' -- \
        bash -c "cd /fathom && $(command_for "$FATHOM_EXPERIMENT")" &
    submitted=$!
    trap 'ray job stop "$id"' TERM INT
    wait "$submitted"
}

cd /fathom
if [ "$(id -u)" = 0 ] && [ "${1:-}" != health ] && [ -d deploy/experiments ]; then become_owner "$@"; fi
[ -z "${RAY_AUTH_TOKEN_PATH:-}" ] || make_token
case ${1:-} in
head)
    start_ray --head --port "$GCS_PORT" --dashboard-host 0.0.0.0 --dashboard-port "$DASHBOARD_PORT" \
        --num-cpus 0 --num-gpus 0
    ;;
worker)
    wait_for_head "$GCS_PORT"
    start_ray --address "$HEAD:$GCS_PORT" --resources '{"driver": 1000}' # drivers run here, beside their roles
    ;;
submit) submit ;;
tensorboard) exec tensorboard --logdir runs --bind_all --port 6006 ;;
health)
    [ -z "${FATHOM_HEALTH:-}" ] ||
        python3 -I -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=6)' "$FATHOM_HEALTH"
    ;;
*) exec "$@" ;;
esac
