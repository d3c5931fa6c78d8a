# shellcheck shell=bash
# What ray-head.sh and ray-worker.sh share. Sourced; `usage` is theirs.

fail() { # MESSAGE [EXIT CODE]: 2 for bad input
    echo "error: $1" >&2
    exit "${2:-2}"
}

parse() { # "NAME…" ARGUMENT…: sets the variable of every option; dashes become underscores
    local known=" $1 " name
    # shellcheck disable=SC2034  # the callers read them
    address="" node_address="" cpus="" gpus="" ports="" temp_dir="" python=python3
    token_file=$HOME/.distdl/ray-token
    shift
    while (($#)); do
        case $1 in
            -h | --help) usage && exit 0 ;;
            --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        esac
        name=${1#--}
        [[ $1 == --* && $known == *" $name "* ]] || fail "unknown argument '$1'; --help lists them"
        (($# > 1)) || fail "$1 needs a value"
        case $name in
            port | dashboard-port | client-port | cpus | gpus | ports)
                [[ $2 =~ ^[0-9]+$ ]] || fail "$1 takes a whole number, not '$2'"
                ;;
        esac
        [[ $name != dashboard-port ]] || name=dashboard
        printf -v "${name//-/_}" %s "$2"
        shift 2
    done
    "$python" -c 'import importlib.util as i, sys; sys.exit(not i.find_spec("ray"))' 2>/dev/null ||
        fail "$python has no ray: give the interpreter of distdl by --python" 1
}

is_address() {
    [[ $1 =~ ^[A-Za-z0-9.-]+$ ]]
}

listens() { # HOST PORT
    # shellcheck disable=SC2016  # expanded by the inner bash
    timeout 5 bash -c 'exec 3<>"/dev/tcp/$1/$2"' - "$1" "$2" 2>/dev/null
}

make_token() { # the secret never stands in an argument: other users see those
    if [[ ! -e $token_file ]]; then
        (
            umask 077
            mkdir -p "$(dirname "$token_file")"
            od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token_file"
        )
        echo "made $token_file: copy it to the other machines with scp -p"
    fi
    need_token
}

need_token() {
    [[ -s $token_file ]] || fail "there is no token in $token_file: copy the head's file here, or --token-file FILE"
    [[ $(stat -c %a "$token_file") == ?00 ]] || fail "$token_file can be read by others: chmod 600 $token_file"
    unset RAY_AUTH_TOKEN
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token_file RAY_USAGE_STATS_ENABLED=0
}

need_head() { # ADDRESS: that it answers, and takes the token; `ray start` alone would try for minutes without a word
    local said
    said=$("$python" -m ray.scripts.scripts health-check --address "$1" 2>&1) && return
    [[ $said != *AuthenticationError* ]] || fail "the head at $1 refuses the token in $token_file: copy the head's here" 1
    fail "no Ray head answers at $1: ${said##*$'\n'}" 1
}

run_ray() { # OPTION…: until Ray ends or is to end
    local made="" asked="" code begun retry
    if [[ -z $temp_dir ]]; then
        made=$(mktemp -d /tmp/distdl-XXXXXX) # Ray lets everyone write to its own folder, hence one above that nobody enters
        temp_dir=$made/ray
    fi
    ((${#temp_dir} <= 40)) || fail "--temp-dir $temp_dir is too long: Ray's socket paths end at 107 characters"
    local -a options=(--block --temp-dir="$temp_dir" --object-store-memory=1000000000
        ${cpus:+--num-cpus="$cpus"} ${gpus:+--num-gpus="$gpus"})
    if [[ -n $ports ]]; then
        options+=(--node-manager-port="$ports" --object-manager-port="$((ports + 1))"
            --dashboard-agent-listen-port="$((ports + 2))" --dashboard-agent-grpc-port="$((ports + 3))"
            --metrics-export-port="$((ports + 4))" --runtime-env-agent-port="$((ports + 5))"
            --min-worker-port="$((ports + 10))" --max-worker-port="$((ports + 199))")
    else
        options+=(--min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)
    fi
    trap 'asked=yes; end_ray' TERM INT HUP
    for retry in 1 2 3; do
        begun=$SECONDS code=0
        # A session of its own: everything that Ray starts is in it, and nothing else.
        setsid "$python" -m ray.scripts.scripts start "$@" "${options[@]}" &
        session=$!
        wait "$session" || code=$?
        end_ray
        if [[ -n $asked ]] || ((SECONDS - begun >= 90 || retry == 3)); then
            break
        fi
        echo "Ray did not start, exit code $code; it allows itself 30 s, which a busy machine may exceed: once more"
    done
    [[ -z $made ]] || rm -rf "$made"
    [[ -z $asked ]] || code=0
    exit "$code"
}

end_ray() { # 10 seconds for Ray to say goodbye, then the rest of the session
    kill -TERM "$session" 2>/dev/null || true
    for _ in {1..50}; do
        pgrep -s "$session" >/dev/null || return 0
        sleep 0.2
    done
    pkill -KILL -s "$session" || true
}
