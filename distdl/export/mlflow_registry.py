"""An exported MLflow model in the registry of the store that its run is tracked in, as a version of the run's name.

The registry itself finds the newest as `models:/NAME@latest`; the best checkpoint's version has the alias `best`.
"""

from __future__ import annotations

import os
from pathlib import Path

from distdl.export.folder import MANIFEST
from distdl.run.folder import RunFolder
from distdl.track import database
from distdl.track.run import load
from distdl.track.store import set_environment

BEST = "best"


def register(folder: Path, run: RunFolder, step: int, best: bool) -> str:
    """Copies an export to the run's artifacts and registers it; what came of it, in words: a store that cannot be reached
    takes nothing from the export."""
    info = load(run.path)
    if info is None or not info.mlflow_run_id:
        return "not registered: the run is not tracked in MLflow"
    set_environment()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    name = run.path.name
    try:
        if (file := database.path_of(info.tracking_uri)) is not None and not file.is_file():
            return f"not registered: {file} is gone"
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(tracking_uri=info.tracking_uri, registry_uri=info.tracking_uri)
        place = f"model/step_{step:08d}"
        client.log_artifacts(info.mlflow_run_id, str(folder), place)
        source = f"{client.get_run(info.mlflow_run_id).info.artifact_uri}/{place}"
        try:
            client.create_registered_model(name, description=f"exported by distdl; {MANIFEST} says how it was checked")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {"distdl.step": str(step)}
        version = client.create_model_version(name, source, info.mlflow_run_id, tags=tags).version
        if best:
            client.set_registered_model_alias(name, BEST, version)
    except Exception as error:  # a store has as many ways to fail as there are stores
        words = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        return f"not registered: {info.tracking_uri} says: {words}"
    aliases = " and models:/" + name + "@best" if best else ""
    return f"registered as version {version} of {name} in {info.tracking_uri}: models:/{name}@latest{aliases}"
