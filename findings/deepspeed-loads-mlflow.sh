#!/usr/bin/env bash
# DeepSpeed 0.19.8 (torch 2.13.0, CPU), where MLflow 3.17.2 is installed beside it: `import deepspeed` loads all of MLflow, pandas and
# a web framework with it, into every rank.
#
# Guess before it was run: a library that can log to MLflow loads it where a run asks for that.
# Seen on 2026-11-30: the autotuner, which a training never calls, is imported with the package and imports MLflow at its top.
# With MLflow hidden the same import loads about half as many modules, in about a fifth of the time (0.2 s in place of 1.1).
#
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 deepspeed==0.19.8 numpy==2.4.6 mlflow==3.17.2
cat > "$folder/try.py" <<'PYTHON'
import sys
import time

import torch

before = set(sys.modules)
if sys.argv[1] == "hidden":
    sys.modules["mlflow"] = None
begin = time.perf_counter()
import deepspeed

seconds = time.perf_counter() - begin
loaded = set(sys.modules) - before
packages = [name for name in ("mlflow", "pandas", "fastapi") if sys.modules.get(name) is not None]
print(f"MLflow {sys.argv[1]}: {len(loaded):,} modules in {seconds:.2f} s, among them {', '.join(packages) or 'none of it'}", flush=True)
if bool(packages) != (sys.argv[1] == "installed"):
    sys.exit("it is not so any more")
PYTHON
for how in installed hidden installed hidden; do # the first two fill caches
    DS_ACCELERATOR=cpu "$folder/venv/bin/python" "$folder/try.py" $how > "$folder/log" 2> "$folder/errors" || { tail -3 "$folder/errors"; exit 1; }
    tail -1 "$folder/log"
done
