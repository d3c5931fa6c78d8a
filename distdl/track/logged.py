"""The model of a run as MLflow lists models: an entry that points at the newest checkpoint, and holds no bytes of it.

It is a model of elsewhere (`mlflow.model.isExternal`), since MLflow cannot load a checkpoint of distdl by itself. One entry
a run: a continuation renews it, and its metrics are those points of the run that the evaluation of the checkpoint has made.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from distdl.track import note
from distdl.track.points import Point, as_dict, points_of
from distdl.track.provenance import read_json
from distdl.track.run import SPOOL_NAME
from distdl.track.spool import SpoolReader

EXTERNAL = "mlflow.model.isExternal"
READ_BYTES = 1 << 20


def log_model(client: Any, run_id: str, experiment_id: str, run_dir: Path) -> str:
    """Makes or renews the entry; its id, or '' of a run without a checkpoint."""
    found = note.checkpoints(run_dir)
    if not found:
        return ""
    from mlflow.entities import LoggedModelOutput, Metric

    config, plan = (as_dict(read_json(run_dir / name)) for name in ("config.json", "plan.json"))
    step = _step(found[-1])
    tags = {EXTERNAL: "true", "distdl.checkpoint": found[-1], "distdl.step": str(step)}
    known = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    ours = [model for model in known if model.tags.get(EXTERNAL) == "true"]  # not one that was exported
    if ours:
        model_id = ours[0].model_id
        client.set_logged_model_tags(model_id, tags)
    else:
        told = as_dict(plan.get("model"))
        family = str(told.get("family") or as_dict(config.get("model")).get("family") or "model")
        params = {"family": family, "parameters": str(told.get("parameters", ""))}
        made = client.create_logged_model(
            experiment_id, name=_name(run_dir.name), source_run_id=run_id, tags=tags, params=params, model_type=family
        )
        model_id = made.model_id
        client.finalize_logged_model(model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])  # once: a store refuses it again
    if not ours or ours[0].tags.get("distdl.step") != str(step):
        split = str(as_dict(config.get("data")).get("eval_split") or "")
        metrics = [
            Metric(p.key, p.value, p.time_ms, p.step, model_id=model_id, run_id=run_id)
            for p in _evaluation(run_dir, step, split)
        ]
        if metrics:
            client.log_batch(run_id, metrics=metrics)
    return str(model_id)


def _evaluation(run_dir: Path, step: int, split: str) -> list[Point]:
    """The points of the last evaluation of the held-out split up to a step: those that the run has already, to the
    millisecond, so that no chart gets one twice."""
    reader, found = SpoolReader(run_dir / SPOOL_NAME), list[Point]()
    while events := reader.poll(READ_BYTES):
        for event in events:
            if event["kind"] == "evaluation" and isinstance(event.get("step"), int) and event["step"] <= step:
                here = [
                    point for point in points_of(event, split) if not point.key.startswith(f"eval/{event['split']}/")
                ]
                found = here or found
    return found


def _step(checkpoint: str) -> int:
    digits = re.search(r"(\d+)$", checkpoint)
    return int(digits[1]) if digits else 0


def _name(run: str) -> str:
    """A name that MLflow takes: without what stands for a path or an address."""
    return re.sub(r"[/:.%\"']", "_", run) or "run"
