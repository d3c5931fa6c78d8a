#!/usr/bin/env bash
# DeepSpeed 0.19.8 (torch 2.13.0, CPU): bf16 with gradient accumulation adds the micro-batches' gradients up in bf16.
#
# Guess before it was run: the gradients of a step's micro-batches are added in fp32, as the master weights are fp32.
# Seen on 2026-11-29: a bias whose gradient is exactly 1 in every micro-batch gets, by one step of SGD at a rate of 1 from 0,
#
#     micro-batches          1      64     512    2048
#     ZeRO 0, 1, 2, 3        1      1      0.5    0.125        (right: 1)
#
# since the n-th part of 1 is soon smaller than half a unit in the last of bf16's 8 bits. Nothing is said, and the loss that is
# shown is right. `data_types: {grad_accum_dtype: fp32}` gives 1 at every number under ZeRO 1, 2 and 3, and
# NotImplementedError ("unsupported mix of model_dtype=torch.bfloat16 and grad_accum_dtype=torch.float32") under ZeRO 0.
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

import deepspeed
import torch

os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
deepspeed.init_distributed("gloo", verbose=False)


def bias(stage, micro_batches, **more):
    net = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(net.weight), torch.nn.init.zeros_(net.bias)
    config = {
        "train_batch_size": micro_batches,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_batches,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        **more,
    }
    engine = deepspeed.initialize(model=net, optimizer=torch.optim.SGD(net.parameters(), 1.0), config=config)[0]
    x = torch.zeros(1, 1, dtype=torch.bfloat16)
    for _ in range(micro_batches):
        engine.backward(-engine(x).sum())
        engine.step()
    return float(engine.module.bias if stage < 3 else deepspeed.utils.safe_get_full_fp32_param(engine.module.bias))


fp32 = {"data_types": {"grad_accum_dtype": "fp32"}}
wrong = []
for stage in (0, 1, 2, 3):
    found = [bias(stage, n) for n in (1, 64, 512, 2048)]
    print(f"ZeRO-{stage}:", *(f"{value:.4g}" for value in found))
    wrong += [stage] * (not torch.allclose(torch.tensor(found), torch.tensor([1, 1, 0.5, 0.125]), rtol=1e-3))
    try:
        cured = bias(stage, 512, **fp32)
    except NotImplementedError as error:
        cured = str(error)
    print("    with grad_accum_dtype fp32, 512:", cured)
    right = "unsupported mix" in str(cured) if stage == 0 else abs(cured - 1) < 1e-3
    wrong += [stage] * (not right)
sys.exit(f"it is not so any more for stages {wrong}" if wrong else 0)
PYTHON
"$folder/venv/bin/python" "$folder/try.py" > "$folder/log" 2>&1 || { tail -3 "$folder/log"; exit 1; }
grep -E "^ZeRO|with grad_accum" "$folder/log"
