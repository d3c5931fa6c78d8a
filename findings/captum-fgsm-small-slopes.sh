#!/usr/bin/env bash
# captum 0.9.0: FGSM leaves an input as it is where the slope of the loss is below 1e-6. The one-step attack of Goodfellow et al. 2015
# takes the sign of the gradient, whatever its size. So a classifier that is sure of its answer, whose cross entropy is flat in fp32,
# comes out as robust at every epsilon, and so does one whose inputs are large numbers.
#
# Guess before it was run: each input moves by epsilon unless its gradient is zero.
# Seen on 2026-11-30, epsilon 0.1, a linear score w·x from x = 0, and a softmax classifier with the logits 20 and -20, epsilon 30:
#
#     w = 5e-6, -5e-6   [0.1, -0.1]
#     w = 5e-7, -5e-7   [0.0, 0.0]
#     sure, by its cross entropy               x stays, and the class with it
#     sure, by the difference of its logits    the class changes
#
# The threshold is an attribute, `zero_thresh`; it is no argument. With 0 the small slopes count.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 captum==0.9.0
cat > "$folder/try.py" <<'PYTHON'
import sys

import torch
from captum.robust import FGSM


def moved(size, threshold=None):
    w = torch.tensor([size, -size])
    attack = FGSM(lambda x: x @ w, lambda out, target: out)
    if threshold is not None:
        attack.zero_thresh = threshold
    return [round(value, 3) for value in attack.perturb(torch.zeros(1, 2), 0.1, None)[0].tolist()]


def sure(by_logits):
    """Whether the class is another one after the attack."""
    logits = lambda x: torch.stack([x[:, 0], -x[:, 0]], 1)
    loss = (lambda out, target: out[:, 1] - out[:, 0]) if by_logits else torch.nn.CrossEntropyLoss(reduction="none")
    x = torch.tensor([[20.0]])
    return bool(logits(FGSM(logits, loss).perturb(x, 30.0, torch.tensor([0]))).argmax(1) != logits(x).argmax(1))


found = [moved(5e-6), moved(5e-7), moved(5e-7, 0.0), sure(by_logits=False), sure(by_logits=True)]
for name, value in zip(("5e-6", "5e-7", "5e-7, threshold 0", "sure, cross entropy: upset", "sure, logits: upset"), found):
    print(f"{name:30}{value}", flush=True)
if found != [[0.1, -0.1], [0.0, 0.0], [0.1, -0.1], False, True]:
    sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
