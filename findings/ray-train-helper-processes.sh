#!/usr/bin/env bash
# Ray 2.60.0: a run of Ray Train with one worker, without a data set, on a cluster of one node that cannot grow, starts seven
# processes: the controller, the worker, and five helpers, each an actor with an interpreter of its own. One is for data sets,
# one asks for more nodes, one looks out for nodes that will be taken away. Those that Ray starts ahead when it begins, one for
# each CPU, are used for none of them: Ray Train gives all its actors a runtime environment, so that others are started.
#
# Guess before it was run: the controller and the worker, in two of the processes that were started ahead.
# Seen on 2026-11-30, with two CPUs:
#
#     TrainController, RayTrainWorker, _AutoscalingCoordinatorActor, DatasetManager, PlacementGroupCleaner,
#     PreemptionWatcher, SynchronizationActor        7 processes
#     started ahead                                  2, of which 0 became one of these
#
# Each costs about a second of a core while the workers load their libraries: on two cores three seconds of a start.
# RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=0 and RAY_prestart_worker_first_driver=0 are the two that can be switched off.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[default,train]==2.60.0"
cat > "$folder/try.py" <<'PYTHON'
import sys
import time

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.state import list_actors, list_workers


def pids(kind=None):
    found = list_workers(limit=1000, detail=True)
    return {worker.pid for worker in found if worker.worker_type == "WORKER" and worker.is_alive}


def loop():
    import time

    time.sleep(15)


ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level="ERROR")
time.sleep(8)
ahead = pids()
trainer = DataParallelTrainer(loop, scaling_config=ScalingConfig(num_workers=1), run_config=RunConfig(storage_path=sys.argv[1]))
import threading

thread = threading.Thread(target=trainer.fit, daemon=True)
thread.start()
names, end = {}, time.time() + 60
while time.time() < end and thread.is_alive():
    for actor in list_actors(limit=1000):
        if actor.pid:
            names[actor.pid] = actor.class_name
    if sum(name == "RayTrainWorker" for name in names.values()):
        end = min(end, time.time() + 8)
    time.sleep(0.5)
found = sorted(names.values())
print(len(found), "processes:", ", ".join(found))
print("started ahead:", len(ahead), "of which became one of these:", len(ahead & set(names)))
expected = ["DatasetManager", "PlacementGroupCleaner", "PreemptionWatcher", "RayTrainWorker", "SynchronizationActor",
            "TrainController", "_AutoscalingCoordinatorActor"]
import os

os._exit(0 if found == expected and len(ahead) == 2 and not ahead & set(names) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder/runs" 2> "$folder/log" || { tail -3 "$folder/log"; echo "it is not so any more"; exit 1; }
