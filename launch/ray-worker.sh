#!/bin/bash
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/ray-worker.sh --address IP:PORT [OPTION…]

Joins this machine to the Ray cluster of launch/ray-head.sh, and keeps it there until Ctrl-C or SIGTERM, which end all
of its processes. Copy the head's token file here first (scp -p): the cluster takes nobody without it.

  --address IP:PORT   the head
  --node-address IP   address of this machine that the others reach (Ray's choice)
  --cpus N            CPUs for workers on this machine (all)
  --gpus N            GPUs likewise (all)
  --token-file FILE   secret of the cluster, mode 600 (~/.distdl/ray-token)
  --temp-dir DIR      folder of Ray's logs and sockets; a short path (a new folder in /tmp, removed at the end)
  --python FILE       interpreter that has ray (python3)
  --ports FIRST       use the 200 ports from FIRST instead of any, for machines behind a firewall
  -h, --help          this text
END
}

# shellcheck source=launch/ray-node.sh
source "$(dirname "${BASH_SOURCE[0]}")/ray-node.sh"

parse "address node-address cpus gpus token-file temp-dir python ports" "$@"
[[ -n $address ]] || fail "--address is missing: IP:PORT of the head"
[[ $address =~ ^(.+):([0-9]+)$ ]] || fail "--address takes IP:PORT, not '$address'"
need_token
listens "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" || fail "nothing listens at $address: start launch/ray-head.sh there" 1

need_head "$address"

export RAY_ADDRESS=$address # what runs here finds this cluster, whatever else runs on this machine
run_ray --address="$address" ${node_address:+--node-ip-address="$node_address"}
