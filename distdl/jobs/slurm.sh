# shellcheck shell=bash
# One Ray cluster inside this Slurm allocation, and one run on it. The head is on the first node, which also trains.
#
# `distdl launch --on slurm` sends this text behind the settings that it makes; launch/slurm.sbatch sources it behind
# settings written by hand. Needs bash 4.3, Slurm 20.11. The settings:
#   python            interpreter of every node; it finds distdl and ray
#   train             array: arguments of `python -m distdl`
#   setup             function run on every node before anything else; it may export DISTDL_NODE_IP, the address by
#                     which the other nodes reach this one (default: Ray's choice, the interface of the default route)
#   job_folder        folder that every node mounts: token, logs, how the job ended
#   runs, name        folder of the runs and name of this one, to see whether an attempt came any further
#   cpus_per_node, gpus_per_node, max_retries, start_deadline_s
#   grace_s           seconds that the run has, once asked to end, to write a checkpoint
#
# Signals: USR1 (time limit, pre-emption) ends the run and requeues the job, USR2 (`distdl jobs stop`) ends both.
# The same job continues its run after a requeue, whoever asked for it.

# shellcheck disable=SC2329  # functions are run by name
: "${python:?}" "${train[0]:?}" "${job_folder:?}" "${runs:?}" "${name:?}" "${cpus_per_node:?}" "${gpus_per_node:?}"
: "${max_retries:?}" "${start_deadline_s:?}" "${grace_s:?}" "${SLURM_JOB_ID:?this runs inside an allocation}"

reason=""
trap 'reason=requeue' USR1
trap 'reason=stop' USR2
trap 'reason=cancel' TERM # scancel; Slurm sends it to every process of the job, so that it is not passed on here

ray_node() { # what srun runs on every node: its part of the Ray cluster, until SIGTERM
    set -e
    setup
    # Local and short: Ray's socket paths end at 107 characters. Ray lets everyone write to its own folder, hence one above.
    temp=$(mktemp -d /tmp/distdl-XXXXXX)
    # Ray's processes share the fate of `ray start --block`: the kernel ends them with it.
    trap '{ set +e; kill -KILL $ray; wait; sleep 0.5; rm -rf "$temp"; } 2>/dev/null' EXIT
    trap 'exit 143' TERM INT
    local -a options=(--block --temp-dir="$temp/ray" --num-cpus="$cpus_per_node" --num-gpus="$gpus_per_node"
        --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 # any that are free
        --object-store-memory=1000000000) # the samples do not travel through Ray's object store
    if ((SLURM_NODEID == 0)); then
        # The dashboard is not needed, and would be one more open port.
        options+=(--head --port="${RAY_ADDRESS##*:}" --node-ip-address="${RAY_ADDRESS%:*}" --include-dashboard=false)
        ! "$python" -c 'import grpc' 2>/dev/null || options+=(--ray-client-server-port="$client_port")
        unset RAY_ADDRESS
    else
        options+=(--address="$RAY_ADDRESS" ${DISTDL_NODE_IP:+--node-ip-address="$DISTDL_NODE_IP"})
    fi
    while :; do
        "$python" -m ray.scripts.scripts start "${options[@]}" &
        ray=$!
        wait "$ray" || true
        ((SLURM_NODEID)) || exit 1 # without its head the cluster is gone: this ends the step on every node
        sleep 3 &                  # a worker comes back: it was killed, or the head does not listen yet
        wait $!
    done
}

wait_for_nodes() { # in a process of its own, until all nodes are there; exit code 1 at the deadline
    exec "$python" - "$SLURM_JOB_NUM_NODES" "$start_deadline_s" <<'END'
import logging, os, socket, sys, time
import ray

wanted, end, alive = int(sys.argv[1]), time.monotonic() + float(sys.argv[2]), 0
host, port = os.environ["RAY_ADDRESS"].rsplit(":", 1)
while alive < wanted:
    if time.monotonic() > end:
        sys.exit(f"error: {alive} of {wanted} nodes joined the Ray cluster within {sys.argv[2]} s")
    try:
        socket.create_connection((host, int(port)), 5).close()  # Ray would wait, and complain, much longer
        ray.init(address="auto", log_to_driver=False, logging_level=logging.CRITICAL, ignore_reinit_error=True)
        alive = sum(node["Alive"] for node in ray.nodes())
    except (OSError, RuntimeError, ValueError):
        pass  # the head does not listen yet
    time.sleep(0.5)
END
}

beside_cluster() { # SIGNAL COMMAND…: runs it, and signals it once the cluster is gone or the end is asked for
    "${@:2}" &
    local command=$! end=""
    while kill -0 "$command" 2>/dev/null; do
        if [[ -z $end && -n $reason$(cluster_gone) ]]; then
            end=$((SECONDS + grace_s))
            [[ $reason == cancel ]] || kill -s "$1" "$command"
        fi
        [[ -z $end ]] || ((SECONDS < end)) || kill -KILL "$command"
        sleep 1 &
        wait $! # unlike a sleep in the foreground, a signal ends it at once
    done
    wait "$command" 2>/dev/null
}

cluster_gone() {
    kill -0 "$cluster" 2>/dev/null || echo gone
}

end_cluster() { # before Slurm ends the job: its SIGKILL would leave the temporary folders behind
    [[ -n ${cluster:-} ]] || return 0
    scancel --signal=TERM "$SLURM_JOB_ID.0" # srun would pass a signal on as SIGKILL, and no node could clean up
    for _ in {1..50}; do
        [[ -z $(cluster_gone) ]] || break
        sleep 0.2
    done
    kill "$cluster"
    wait "$cluster"
    rm -f "$RAY_AUTH_TOKEN_PATH"
    cluster=""
} 2>/dev/null

end_job() { # HOW (finished, stopped, failed), EXIT CODE
    echo "$1 $2" >"$job_folder/end-$SLURM_JOB_ID" # for the time when Slurm has forgotten the job
    end_cluster
    # A job that Slurm ends itself is cancelled already, or requeued after a lost node: a scancel would undo that.
    [[ $1 != stopped || $reason == cancel ]] || scancel "$SLURM_JOB_ID"
    exit "$2"
}

retry_or_fail() { # EXIT CODE
    local failures="$job_folder/failures-$SLURM_JOB_ID"
    echo "$1" >>"$failures"
    (($(wc -l <"$failures") <= max_retries)) || end_job failed "$1"
    requeue "it failed; attempt $(($(wc -l <"$failures") + 1)) of $((max_retries + 1))" "$1"
}

requeue() { # WHY, EXIT CODE where Slurm refuses
    echo "the job is requeued and will continue from its last checkpoint: $1"
    end_cluster
    trap '' TERM # which Slurm sends to scontrol as well
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    echo "error: Slurm does not requeue the job: \`distdl jobs resume\`, or the same sbatch, continues it"
    end_job failed "$2"
}

progressed() { # whether this attempt wrote a checkpoint
    [[ -n $(find "$runs/$name" "$runs/$name"-[0-9]* -mindepth 2 -maxdepth 2 -path '*/checkpoints/*' -newer "$begun" \
        -print -quit 2>/dev/null) ]]
}

umask 077
mkdir -p "$job_folder" || exit 1
begun="$job_folder/begun-$SLURM_JOB_ID"
if [[ -e $begun ]]; then # what was fresh at the first attempt is what later ones continue
    for i in "${!train[@]}"; do [[ ${train[i]} != --fresh ]] || unset "train[i]"; done
fi
set -e
setup
set +e

# Every job has its own token, and ports by its number, below those that Linux hands out: jobs on one node stay apart.
ray_place=$("$python" - "${DISTDL_NODE_IP:-}" "$SLURM_JOB_ID" <<'END'
import socket, sys
import distdl, ray

def free(first):  # the first port from there that nobody has
    for port in range(first, first + 100):
        try:
            socket.create_server(("", port)).close()
            return port
        except OSError:
            pass
    sys.exit(f"error: the ports {first} to {first + 99} are taken")

address, job = sys.argv[1] or ray.util.get_node_ip_address(), int(sys.argv[2])
print(f"{address}:{free(20000 + 10 * job % 5000)}", free(26000 + 10 * job % 5000))
END
) || {
    echo "error: $python on $(hostname) cannot run distdl and ray: what makes them available belongs in the setup lines"
    end_job failed 2
}
read -r RAY_ADDRESS client_port <<<"$ray_place"
export RAY_ADDRESS RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$job_folder/token-$SLURM_JOB_ID" RAY_USAGE_STATS_ENABLED=0
unset RAY_AUTH_TOKEN
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"

echo "attempt $((${SLURM_RESTART_COUNT:-0} + 1)) of Slurm job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --overlap --mpi=none --kill-on-bad-exit=1 --input=none \
    --output="$job_folder/ray-%j-node%n.log" --open-mode=append \
    bash -c "$(declare -f setup ray_node
        declare -p python cpus_per_node gpus_per_node client_port); ray_node" 2>"$job_folder/srun-$SLURM_JOB_ID.log" &
cluster=$!
trap end_cluster EXIT

beside_cluster KILL wait_for_nodes
code=$?
if ((code == 0)); then
    touch "$begun"
    beside_cluster TERM "$python" -m distdl "${train[@]}"
    code=$?
fi

((code != 0)) || end_job finished 0
case $reason in
    stop | cancel) end_job stopped 130 ;;
    requeue)
        progressed && requeue "its time here is over" 1
        retry_or_fail 1 # no checkpoint in all its time: not for ever
        ;;
esac
if [[ -n $(cluster_gone) ]]; then
    echo "error: the Ray cluster has ended: $job_folder/ray-$SLURM_JOB_ID-node*.log tell why" && code=1
fi
((code != 2)) || end_job failed 2 # bad input fails the same way again
retry_or_fail "$code"
