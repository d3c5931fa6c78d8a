"""One run in an MLflow store: making it, continuing it, and sending it points so that each arrives once.

The only module that talks to MLflow. It is used by the uploader process; nothing that trains imports it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from distdl.errors import DistdlError
from distdl.track import database, provenance
from distdl.track.run import RunInfo, artifact_location, load, update
from distdl.track.spool import Event

METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
TAGS_PER_BATCH = 100
CHANGE_CHARS = 200
"""Of each value that a continuation has changed, in the tag `distdl.config_changed`."""
DEFAULT_SPLITS = (None, "", "eval", "valid", "validation", "val")
"""Splits whose metrics are `eval/<name>`; any other split's are `eval/<split>/<name>`."""
REJECTIONS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")
"""Error codes that no second attempt cures."""

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # MLflow's own patience (7 retries of 120 s) would outlast every deadline of ours; the uploader has its own backoff
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Set in the uploader's process before mlflow is imported."""


class RunGone(DistdlError):
    """The MLflow run was deleted while it was being written. Exit code 1."""


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


def points_of(event: Event) -> Iterator[Point]:
    """The metric points that an event holds; none for a malformed event or a kind that MLflow is not told about."""
    kind, time_ms = event["kind"], int(event["t"] * 1000)
    values: dict[str, Any] = {}
    if kind == "metrics":
        values = _dict(event.get("values"))
    elif kind == "evaluation":
        split = event.get("split")
        prefix = "eval" if split in DEFAULT_SPLITS else f"eval/{split}"
        values = {f"{prefix}/{name}": value for name, value in _dict(event.get("values")).items()}
    elif kind == "checkpoint":
        values = {f"checkpoint/{name}": event[name] for name in ("seconds", "bytes") if name in event}
    elif kind == "end":
        summary = provenance.flatten(_dict(event.get("summary")))
        values = {f"summary/{name.replace('.', '/')}": value for name, value in summary.items()}
        event = {**event, "step": _dict(event.get("summary")).get("steps", 0)}
    step = event.get("step")
    if not isinstance(step, int):
        return
    for name, value in values.items():
        if isinstance(value, (int, float)):
            with contextlib.suppress(OverflowError):
                yield Point(str(name), float(value), time_ms, step)


def tags_of(event: Event) -> dict[str, str]:
    """What an event says about the run as a whole."""
    if event["kind"] == "checkpoint":
        return {"distdl.last_checkpoint_step": str(event.get("step"))}
    if event["kind"] == "restart":
        return {"distdl.last_restart_step": str(event.get("step"))}
    return {}


class Store:
    """The MLflow run of one run folder. Every method may raise what MLflow raises: the caller tries again later."""

    def __init__(self, run_dir: Path, log: Callable[[str], None]) -> None:
        self.run_dir = run_dir
        self._log = log
        self._client: Any = None
        self._run_id = ""
        self._artifacts_sent = False
        self._fruitless = 0
        self._refused_keys: set[str] = set()  # said once, not for every step

    @property
    def connected(self) -> bool:
        return self._client is not None

    @property
    def run_id(self) -> str:
        return self._run_id

    def info(self) -> RunInfo:
        """The current tracking record. Raises DistdlError if the run folder has none."""
        info = load(self.run_dir)
        if info is None:
            raise DistdlError(f"{self.run_dir} has no tracking record")
        return info

    def connect(self) -> None:
        """Finds or makes the experiment and the run, marks it RUNNING and sends params, tags and files."""
        info = self.info()
        file = database.path_of(info.tracking_uri)
        if file is not None and (mended := database.ready(file)):
            self._log(mended)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=info.tracking_uri)
        client.search_experiments(max_results=1)  # the first touch checks the tables
        experiment_id = self._experiment(client, info)
        run = self._existing_run(client, info, experiment_id)
        if run is None:
            run = client.create_run(experiment_id, run_name=info.run_name, tags={"distdl.run_key": info.run_key})
            self._log(f"created MLflow run {run.info.run_id} in experiment '{info.experiment}'")
        if run.info.run_id != info.mlflow_run_id:
            # A store that does not know this run gets the whole story; in the same store nothing had been sent.
            update(self.run_dir, mlflow_run_id=run.info.run_id, spool_offset=0, last_steps={})
        update(self.run_dir, experiment_id=run.info.experiment_id)
        client.update_run(run.info.run_id, status="RUNNING")
        update(self.run_dir, status="RUNNING")
        self._run_id = run.info.run_id
        self._send_origin(client, run, info)
        self._client = client
        if elsewhere := artifacts_elsewhere(info.tracking_uri, run.info.artifact_uri):
            self._log(f"the files of the run are not stored: this database keeps them at {elsewhere}")
            self._artifacts_sent = True
        if not self._artifacts_sent:
            self._send_artifacts()

    def send(self, events: list[tuple[int, Event]]) -> None:
        """Sends events, each with the spool offset behind it, and notes the offset of what MLflow has accepted."""
        info = self.info()
        last_steps = dict(info.last_steps)
        points: list[Point] = []
        tags: dict[str, str] = {}
        for number, (offset, event) in enumerate(events, start=1):
            for point in points_of(event):
                if point.step > last_steps.get(point.key, point.step - 1):
                    last_steps[point.key] = point.step
                    points.append(point)
            tags.update(tags_of(event))
            if len(points) >= METRICS_PER_BATCH or number == len(events):
                self._send_points(points)
                self._send_tags(tags)
                update(self.run_dir, spool_offset=offset, last_steps=last_steps, last_error="")
                points, tags = [], {}

    def finish(self, status: str, error: str | None) -> None:
        """Ends the run as FINISHED, FAILED or KILLED; the tag `distdl.error` tells why (empty when it went well)."""
        if not self._artifacts_sent:
            self._send_artifacts()
        self._client.set_tag(
            self._run_id, "distdl.error", provenance.cut(provenance.redact(error or ""), provenance.TAG_VALUE_CHARS)
        )
        self._client.set_terminated(self._run_id, status=status)
        update(self.run_dir, status=status, last_error="")

    # --- making the run

    def _experiment(self, client: Any, info: RunInfo) -> str:
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(info.experiment)
        if experiment is None:
            try:
                location = artifact_location(info.tracking_uri, self.run_dir.resolve().parent)
                return str(client.create_experiment(info.experiment, artifact_location=location))
            except MlflowException as error:  # another run that started at the same moment made it
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = client.get_experiment_by_name(info.experiment)
        if experiment.lifecycle_stage == "deleted":
            self._log(f"the experiment '{info.experiment}' was in MLflow's trash: restored")
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _existing_run(self, client: Any, info: RunInfo, experiment_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        if info.mlflow_run_id:
            try:
                run = client.get_run(info.mlflow_run_id)
                if run.info.lifecycle_stage == "active":
                    return run
                self._log(f"MLflow run {info.mlflow_run_id} was deleted: a new one is made")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                self._log(f"this store does not know the run {info.mlflow_run_id}: a new one is made")
        found = client.search_runs([experiment_id], f"tags.`distdl.run_key` = '{info.run_key}'", max_results=1)
        return found[0] if found else None

    def _send_origin(self, client: Any, run: Any, info: RunInfo) -> None:
        from mlflow.entities import Param, RunTag

        wanted = provenance.config_params(provenance.read_json(self.run_dir / "config.json"))
        known = run.data.params
        new = [Param(key, value) for key, value in wanted.items() if key not in known]
        # MLflow params never change; a continuation with another value (more steps, say) is told in a tag.
        changed = {
            key: [provenance.cut(text, CHANGE_CHARS) for text in (known[key], value)]
            for key, value in wanted.items()
            if known.get(key, value) != value
        }
        tags = dict(info.tags)
        if changed:
            tags["distdl.config_changed"] = provenance.cut(json.dumps(changed), provenance.TAG_VALUE_CHARS)
        for batch in _batches(new, PARAMS_PER_BATCH):
            self._offer(lambda part: client.log_batch(run.info.run_id, params=part), batch, "param")
        for batch in _batches([RunTag(key, value) for key, value in tags.items()], TAGS_PER_BATCH):
            self._offer(lambda part: client.log_batch(run.info.run_id, tags=part), batch, "tag")

    def _send_artifacts(self) -> None:
        """Files are worth less than metrics: a failure is noted and tried once more at the end, never more."""
        try:
            for name in provenance.TEXT_ARTIFACTS:
                path = self.run_dir / name
                if path.is_file():
                    self._client.log_text(self._run_id, provenance.artifact_text(path), name)
            self._artifacts_sent = True
        except Exception as error:
            self._log(f"the files of the run were not stored: {describe(error)}")

    # --- sending

    def _send_points(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(point.key, point.value, point.time_ms, point.step)
            for point in points
            if point.key not in self._refused_keys
        ]
        for batch in _batches(metrics, METRICS_PER_BATCH):
            self._offer(lambda part: self._client.log_batch(self._run_id, metrics=part), batch, "metric")

    def _send_tags(self, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_tag(self._run_id, key, value)

    def _offer(self, send: Callable[[list[Any]], Any], items: list[Any], what: str) -> None:
        """Sends items in one call; if they are refused for good, halves until the culprit is alone and drops it."""
        try:
            send(items)
            self._fruitless = 0
        except Exception as error:
            if not self._refused_for_good(error):
                raise
            if len(items) == 1:
                self._refused_keys.add(items[0].key)
                self._log(f"MLflow refuses the {what} '{items[0].key}', it is left out: {describe(error)}")
                return
            middle = len(items) // 2
            for half in (items[:middle], items[middle:]):
                if half := [item for item in half if item.key not in self._refused_keys]:
                    self._offer(send, half, what)

    def _refused_for_good(self, error: Exception) -> bool:
        """Whether the items are at fault, not the store or the way to it. Raises RunGone if the run is."""
        if getattr(error, "error_code", None) in REJECTIONS:
            self._check_run_is_there()
            return True
        self._fruitless += 1
        if self._fruitless < 3 or self._client is None:
            return False
        # Three unclear failures of the same items: if the store takes another write, it is the items.
        self._client.set_tag(self._run_id, "distdl.uploader", "probing a batch that is refused")
        return True

    def _check_run_is_there(self) -> None:
        if self._client is not None and self._client.get_run(self._run_id).info.lifecycle_stage != "active":
            raise RunGone(f"MLflow run {self._run_id} was deleted; nothing more is sent to it")


def artifacts_elsewhere(tracking_uri: str, artifact_uri: str) -> str:
    """Where a database of this machine sends the files of its runs, as scheme and host; '' where they stay here. Whoever
    made the database has chosen it, and MLflow would show this user's credentials there."""
    parts = urlsplit(artifact_uri or "")
    if not tracking_uri.startswith("sqlite:") or parts.scheme in ("", "file"):
        return ""
    return f"{parts.scheme}://{parts.hostname or ''}"


def describe(error: BaseException) -> str:
    """An error in one line, without secrets, short enough for a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return provenance.redact(text)[:300]


def set_environment() -> None:
    """Keeps MLflow quiet and on this machine; what the user has set for HTTP stays. Call it before importing mlflow."""
    for key, value in ENVIRONMENT.items():
        if key in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            os.environ[key] = value
        else:
            os.environ.setdefault(key, value)


def _batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
