#!/usr/bin/env bash
# DeepSpeed 0.19.8 (torch 2.13.0, CPU): under ZeRO-3 every step starts `numactl --hardware` as a process of its own, once for each
# bucket of gradients, to learn how many devices the machine has. Under ZeRO-2 no step does.
#
# Guess before it was run: the machine is looked at once, when the engine is made.
# Seen on 2026-11-30, counted where Python starts processes, ten steps of a linear layer after the first:
#
#     ZeRO-2     0 starts
#     ZeRO-3    10 starts
#
# Where numactl is not installed, the start is tried and fails each time. The number only matters for a kind of quantised gradients
# that is off by default. With LOCAL_SIZE in the environment, as DeepSpeed's own launcher sets it, nothing is started.
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
os.environ.pop("LOCAL_SIZE", None)
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
deepspeed.init_distributed("gloo", verbose=False)
started = []


def hear(event, arguments):
    if event == "subprocess.Popen":
        started.append([str(word) for word in arguments[1]])


sys.addaudithook(hear)
found = {}
for stage, local_size in ((2, None), (3, None), (3, "1")):
    if local_size:
        os.environ["LOCAL_SIZE"] = local_size
    net = torch.nn.Linear(8, 8)
    config = {
        "train_batch_size": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine = deepspeed.initialize(model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), config=config)[0]
    for step in range(11):
        if step == 1:
            started.clear()
        engine.backward(engine(torch.ones(1, 8)).sum())
        engine.step()
    found[stage, local_size] = sum("numactl" in words[0] for words in started)
    print(f"ZeRO-{stage}, LOCAL_SIZE {local_size}: {found[stage, local_size]} starts of numactl in ten steps", flush=True)
if list(found.values()) != [0, 10, 0]:
    sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" > "$folder/log" 2>&1 || { tail -3 "$folder/log"; exit 1; }
grep "^ZeRO" "$folder/log"
