"""The data set of a run as an input of its MLflow run: name, digest, schema, and where it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distdl.data.manifest import Manifest, read_manifest
from distdl.data.store import is_remote
from distdl.errors import DistdlError
from distdl.track.points import as_dict
from distdl.track.provenance import read_json, redact

DIGEST_CHARS = 32
"""Of the fingerprint, of which MLflow takes no more than 36."""
SCHEMA_CHARS = 1_000_000
"""What MLflow takes; a table of tens of thousands of columns is told without its schema."""


def dataset_inputs(run_dir: Path) -> list[Any]:
    """MLflow's entities for the splits that a run reads; [] where its plan names no data set."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    config, plan = (as_dict(read_json(run_dir / name)) for name in ("config.json", "plan.json"))
    data, facts = as_dict(config.get("data")), as_dict(plan.get("data"))
    if not facts.get("fingerprint"):
        return []
    path = str(data.get("path", ""))
    manifest = _manifest(str(facts.get("path", path)))
    entity = Dataset(
        name=Path(urlsplit(path).path).name or "data",
        digest=str(facts["fingerprint"])[:DIGEST_CHARS],
        source_type=urlsplit(path).scheme if is_remote(path) else "local",
        source=json.dumps({"uri": redact(path)}),
        schema=_schema(manifest) if manifest else None,
        profile=json.dumps(_profile(facts, manifest)),
    )
    splits = {
        "training": data.get("train_split"),
        "evaluation": data.get("eval_split"),
        "testing": data.get("test_split"),
    }
    return [
        DatasetInput(
            entity,
            [InputTag("mlflow.data.context", ", ".join(f"{use} ({split})" for use, split in splits.items() if split))],
        )
    ]


def _manifest(path: str) -> Manifest | None:
    if is_remote(path):  # the uploader talks to one store, which is MLflow's
        return None
    try:
        return read_manifest(path)
    except DistdlError:
        return None


def _schema(manifest: Manifest) -> str | None:
    """The columns in the form that MLflow's page draws as a table."""
    columns = [
        {"name": name, "type": "tensor", "tensor-spec": {"dtype": column.dtype, "shape": [-1, *column.shape]}}
        for name, column in manifest.columns.items()
    ]
    text = json.dumps({"mlflow_tensorspec": {"features": json.dumps(columns), "targets": None}})
    return text if len(text) <= SCHEMA_CHARS else None


def _profile(facts: Mapping[str, Any], manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {"rows": {"training": facts.get("train_rows"), "evaluation": facts.get("eval_rows")}}
    return {"rows": {name: split.rows for name, split in manifest.splits.items()}, "source": manifest.source}
