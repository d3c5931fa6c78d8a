#!/bin/bash
# The first ten minutes on GPUs: what never ran there, in the order in which it would fail.
#
#     benchmarks/gpu_first.sh [OUT]       OUT: a folder for runs, logs and table.txt (default: gpu_first)
#
# Run it from the root of a checkout whose environment is active. To carry to the machine: the checkout, and a Python with what
# `pip install -c constraints.txt -e .` installs, torch as a CUDA build; nothing is downloaded here, the data are made on the spot.
#
# WORKERS   GPUs to use (default: all there are); on a machine without any, processes on its CPU: a rehearsal
# SMALL=1   small models and few steps, for the rehearsal
# PATIENCE  what the seconds that a command may take are multiplied by (default: 1)
# ONLY      names of checks, separated by blanks (default: all)
set -u
out=$(mkdir -p "${1:-gpu_first}" && cd "${1:-gpu_first}" && pwd)
gpus=$(nvidia-smi -L 2>/dev/null | grep -c . || true)
workers=${WORKERS:-$(( gpus > 0 ? gpus : 2 ))}
here=$(cd "$(dirname "$0")/.." && pwd)
failed=0
: > "$out/table.txt"

size=(model.context=1024 model.layers=12 model.heads=12 model.width=768 train.micro_batch=16 train.steps=60)
size+=("train.global_batch=$((16 * workers))" "data.prepare.options={context: 1024, max_bytes: 20000000}")
if [ -n "${SMALL:-}" ]; then
    size=(model.context=64 model.layers=2 model.heads=2 model.width=32 train.micro_batch=2 train.steps=6)
    size+=("train.global_batch=$((4 * workers))" "data.prepare.options={context: 64, max_bytes: 200000}")
fi
common=(track.enabled=false "runs=$out/runs" schedule.warmup_steps=2 checkpoint.every_steps=0 evaluate.every_steps=0)
common+=(data.eval_split=null)
gpt=("$here/configs/families/gpt.yaml" "${size[@]}" "${common[@]}" "data.path=$out/data/text" model.dropout=0.0)

# check NAME SECONDS COMMAND...: runs it, each command in it so long at most; what it printed is in OUT/NAME.log.
check() {
    local name=$1 begin=$SECONDS; limit=$(($2 * ${PATIENCE:-1})); shift 2
    case " ${ONLY:-$name} " in *" $name "*) ;; *) return 0 ;; esac
    if "$@" > "$out/$name.log" 2>&1; then
        echo "ok      $name, $((SECONDS - begin)) s" | tee -a "$out/table.txt"
    else
        echo "FAILED  $name, exit code $?, $((SECONDS - begin)) s: $out/$name.log" | tee -a "$out/table.txt"
        tail -n 12 "$out/$name.log" | sed 's/^/        /'
        failed=$((failed + 1))
    fi
}

# trained NAME WORKERS key=value...: the GPT on so many workers.
trained() {
    local name=$1 n=$2; shift 2
    timeout "$limit" distdl train "${gpt[@]}" --plain --fresh "name=$name" "runtime={kind: local, workers: $n}" "$@"
}

alone() {
    timeout "$limit" distdl train "$here/configs/families/mlp.yaml" --plain --fresh name=mlp "runtime={kind: local, workers: 1}" \
        parallel.engine=torch train.epochs=2 "data.path=$out/data/digits" "${common[@]}"
}

# The same command goes on from the checkpoint of the last step: another layout, so that the optimizer's state is laid out anew.
resumed() {
    timeout "$limit" distdl train "${gpt[@]}" --plain name=zero2 "runtime={kind: local, workers: $workers}" parallel.zero=1 \
        "train.steps=$1" && grep -q '"restart"' "$out/runs/zero2/events.jsonl"
}

same_bits() {
    local name
    for name in bits bits-again; do
        trained "$name" "$workers" parallel.zero=2 train.deterministic=true || return 1
    done
    python - "$out/runs/bits" "$out/runs/bits-again" <<'PYTHON'
import sys
import torch
import distdl

one, other = (dict(distdl.load(run).named_parameters()) for run in sys.argv[1:])
different = [name for name in one if not torch.equal(one[name], other[name])]
print(f"{len(different)} of {len(one)} tensors differ: {different[:5]}" if different else "the same bits")
sys.exit(bool(different))
PYTHON
}

# One rank stops without a word; the run has to end by itself and to name it.
stopped() {
    [ "$workers" -gt 1 ] || return 0
    trained stopped "$workers" parallel.zero=1 train.steps=100000 guard.hang_s=5 > "$out/stopped-run.log" 2>&1 &
    local driver=$! rank
    for _ in $(seq 240); do
        grep -q '"metrics"' "$out/runs/stopped/events.jsonl" 2> /dev/null && break
        kill -0 $driver 2> /dev/null || break
        sleep 0.5
    done
    rank=$(pgrep -P "$(pgrep -P "$(pgrep -P $driver)")" | tail -n 1)  # below this shell: timeout, distdl, its workers
    [ -n "$rank" ] || return 1
    kill -STOP "$rank"
    wait $driver
    cat "$out/stopped-run.log"
    kill -KILL "$rank" 2> /dev/null
    grep -q "its process is stopped" "$out/stopped-run.log"
}

steps=$([ -n "${SMALL:-}" ] && echo 8 || echo 80)
check doctor 120 timeout 120 distdl doctor
check mlp 180 alone
check torch-1 240 trained torch-1 1 "parallel={engine: torch}" train.global_batch="$([ -n "${SMALL:-}" ] && echo 4 || echo 16)"
check torch 240 trained torch "$workers" "parallel={engine: torch}"
check zero1 240 trained zero1 "$workers" parallel.zero=1
check zero2 240 trained zero2 "$workers" parallel.zero=2
check zero3 240 trained zero3 "$workers" parallel.zero=3
check resume 240 resumed "$steps"
check same-bits 400 same_bits
check compile 400 trained compile "$workers" parallel.zero=2 train.compile=true
check stopped 300 stopped
if [ "$gpus" -gt 0 ]; then
    check step 600 timeout 600 python "$here/benchmarks/step.py" --gpu --models 124m --rounds 1
fi
echo "$failed failed; $out/table.txt"
exit $((failed > 0))
