#!/usr/bin/env bash
# DeepSpeed 0.19.8 (torch 2.13.0, CPU, gloo, two ranks): with `round_robin_gradients: true` under ZeRO-1 and ZeRO-2,
# `deepspeed.utils.safe_get_full_fp32_param(p)` returns the numbers of another parameter for most parameters.
#
# Guess before it was run: it returns each parameter's fp32 master, as it does without that key.
# Seen on 2026-11-29, right after `initialize`, four layers of 8 x 8 (8 tensors), fp32, compared with the parameter itself:
#
#     round_robin_gradients      false    true
#     tensors that differ        0        6 of 8      under ZeRO-1 and ZeRO-2 alike
#
# Training itself is right; whatever is written or read by way of these functions (checkpoints, averages of weights) is not.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 deepspeed==0.19.8 numpy==2.4.6
cat > "$folder/try.py" <<'PYTHON'
import os
import sys

import torch


def main(rank, store):
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(store, 2), rank=rank, world_size=2)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # an operator that would be compiled for minutes
    deepspeed.init_distributed("gloo", verbose=False)
    for stage in (1, 2):
        for on in (False, True):
            torch.manual_seed(0)
            net = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
            config = {
                "train_batch_size": 2,
                "zero_optimization": {"stage": stage, "round_robin_gradients": on},
                "zero_allow_untested_optimizer": True,
            }
            engine = deepspeed.initialize(model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), config=config)[0]
            differ = sum(not torch.equal(safe_get_full_fp32_param(p), p.detach()) for p in engine.module.parameters())
            if rank == 0:
                print(f"ZeRO-{stage}, round_robin_gradients {on}: {differ} of 8 tensors differ", flush=True)
            if differ != (6 if on else 0):
                sys.exit("it is not so any more")


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (sys.argv[1],), nprocs=2)
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder/store" > "$folder/log" 2>&1 || { tail -3 "$folder/log"; exit 1; }
grep "^ZeRO" "$folder/log"
