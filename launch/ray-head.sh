#!/bin/bash
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/ray-head.sh --address IP [OPTION…]

Starts the head of a Ray cluster on this machine and keeps it until Ctrl-C or SIGTERM, which end all of its processes.
Then, on every other machine: launch/ray-worker.sh --address IP:PORT, with the same token file.

  --address IP        address of this machine that the workers reach
  --port N            port of the head (6379)
  --dashboard-port N  port of the dashboard, where `distdl launch --on http://IP:N` sends jobs (8265)
  --client-port N     port of Ray Client, `--on ray://IP:N`; unused where ray[client] is not installed (10001)
  --cpus N            CPUs for workers on this machine; 0: none train here (all)
  --gpus N            GPUs likewise (all)
  --token-file FILE   secret of the cluster, mode 600; made if absent (~/.distdl/ray-token)
  --temp-dir DIR      folder of Ray's logs and sockets; a short path (a new folder in /tmp, removed at the end)
  --python FILE       interpreter that has ray (python3)
  --ports FIRST       use the 200 ports from FIRST instead of any, for machines behind a firewall
  -h, --help          this text
END
}

# shellcheck source=launch/ray-node.sh
source "$(dirname "${BASH_SOURCE[0]}")/ray-node.sh"

port=6379 dashboard=8265 client_port=10001
parse "address port dashboard-port client-port cpus gpus token-file temp-dir python ports" "$@"
[[ -n $address ]] || fail "--address is missing: the address of this machine that the workers reach"
is_address "$address" || fail "--address takes an address without a port, not '$address'"
listens "$address" "$port" && fail "port $port of $address is taken: another Ray? --port takes another"
listens "$address" "$dashboard" && fail "port $dashboard of $address is taken: --dashboard-port takes another"
make_token

echo "head at $address:$port, dashboard at http://$address:$dashboard"
echo "on the other machines: launch/ray-worker.sh --address $address:$port"
echo "clients: RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token_file RAY_ADDRESS=$address:$port"
unset RAY_ADDRESS
options=(--head --node-ip-address="$address" --port="$port")
options+=(--dashboard-host="$address" --dashboard-port="$dashboard")
! "$python" -c 'import grpc' 2>/dev/null || options+=(--ray-client-server-port="$client_port")
run_ray "${options[@]}"
