#!/usr/bin/env bash
# DeepSpeed 0.19.8 (torch 2.13.0, CPU): with bf16 the fp32 master weights of ZeRO 1, 2 and 3 begin as the bf16-rounded weights,
# although the model that is given holds fp32.
#
# Guess before it was run: the masters are copies of the fp32 weights that the model is initialised or loaded with, and only what
# the forward pass reads is rounded.
# Seen on 2026-11-29: a weight of 1.001 has a master of 1.0 (bf16 has 8 significant bits) after `initialize`. So loading an fp32
# checkpoint into the model first loses 16 bits of every weight, once: more than many a step moves it.
#
# Fails if this changes.
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
from deepspeed.utils import safe_get_full_fp32_param

os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
deepspeed.init_distributed("gloo", verbose=False)
for stage in (1, 2, 3):
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(net.weight, 1.001)
    config = {
        "train_batch_size": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine = deepspeed.initialize(model=net, optimizer=torch.optim.SGD(net.parameters(), 1.0), config=config)[0]
    master = safe_get_full_fp32_param(engine.module.weight)
    print(f"ZeRO-{stage}: the master of 1.001 is {float(master)} ({master.dtype})", flush=True)
    if master.dtype != torch.float32 or float(master) != 1.0:
        sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" > "$folder/log" 2>&1 || { tail -3 "$folder/log"; exit 1; }
grep "^ZeRO" "$folder/log"
