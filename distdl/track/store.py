"""One run in an MLflow store: making it, continuing it, and sending it points so that each arrives once.

The only module that talks to MLflow. It is used by the uploader process; nothing that trains imports it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distdl.config.yaml_file import read_yaml
from distdl.errors import DistdlError, InputError
from distdl.track import database, inputs, logged, machine, note, provenance
from distdl.track.points import NAMING, Point, as_dict, never_changing, points, points_of
from distdl.track.run import RunInfo, artifact_location, load, update
from distdl.track.spool import Event, SpoolReader

METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
TAGS_PER_BATCH = 100
SYSTEM_BYTES = 1 << 18
NOTE = "mlflow.note.content"
CHANGE_CHARS = 200
"""Of each value that a continuation has changed, in the tag `distdl.config_changed`."""
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


def tags_of(event: Event) -> dict[str, str]:
    """What an event says about the run as a whole."""
    if event["kind"] == "checkpoint":
        path = Path(str(event.get("path")))
        return {"distdl.checkpoint": "/".join(path.parts[-4:])}  # from the folder that the runs lie in
    return {}


class Store:
    """The MLflow run of one run folder. Every method may raise what MLflow raises: the caller tries again later."""

    def __init__(self, run_dir: Path, log: Callable[[str], None]) -> None:
        self.run_dir = run_dir
        self._log = log
        self._client: Any = None
        self._run_id = ""
        self._config: dict[str, Any] = {}
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
        if run.info.run_id != info.mlflow_run_id or info.naming != NAMING:
            # A store that does not know this run, or not under these names, gets the whole story; in the same store nothing
            # had been sent.
            afresh: dict[str, Any] = {"spool_offset": 0, "last_steps": {}, "worlds": [], "system_offsets": {}}
            update(self.run_dir, mlflow_run_id=run.info.run_id, naming=NAMING, **afresh)
        update(self.run_dir, experiment_id=run.info.experiment_id)
        client.update_run(run.info.run_id, status="RUNNING")
        update(self.run_dir, status="RUNNING")
        self._run_id = run.info.run_id
        self._config = as_dict(provenance.read_json(self.run_dir / "config.json"))
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
        last_steps, worlds = dict(info.last_steps), list(info.worlds)
        split = str(as_dict(self._config.get("data")).get("eval_split") or "")
        constant = never_changing(self._config)
        points: list[Point] = []
        tags: dict[str, str] = {}
        for number, (offset, event) in enumerate(events, start=1):
            for point in points_of(event, split, constant):
                if point.step > last_steps.get(point.key, point.step - 1):
                    last_steps[point.key] = point.step
                    points.append(point)
            points += _resized(worlds, event)
            tags.update(tags_of(event))
            if len(points) >= METRICS_PER_BATCH or number == len(events):
                self._send_points(points)
                self._send_tags(tags)
                update(self.run_dir, spool_offset=offset, last_steps=last_steps, worlds=worlds, last_error="")
                points, tags = [], {}

    def send_system(self) -> None:
        """Sends what the nodes have sampled of themselves, each node under its own name."""
        offsets = dict(self.info().system_offsets)
        for path in sorted((self.run_dir / machine.FOLDER).glob("*.jsonl")):
            reader = SpoolReader(path, offsets.get(path.stem, 0))
            while found := reader.poll(SYSTEM_BYTES):
                self._send_points([point for event in found for point in _of_node(path.stem, event)])
                offsets[path.stem] = reader.offset
                update(self.run_dir, system_offsets=offsets)

    def finish(self, status: str, error: str | None, end: Event | None = None) -> None:
        """Ends the run as FINISHED, FAILED or KILLED; the tag `distdl.error` tells why (empty when it went well), and the
        note what came out, by the event of the end."""
        if not self._artifacts_sent:
            self._send_artifacts()
        info = self.info()
        text = note.markdown(self.run_dir, info.tags, info.worlds, {**(end or {}), "status": status, "error": error})
        self._client.set_tag(self._run_id, NOTE, provenance.cut(text, provenance.TAG_VALUE_CHARS))
        self._client.set_tag(
            self._run_id, "distdl.error", provenance.cut(provenance.redact(error or ""), provenance.TAG_VALUE_CHARS)
        )
        self._log_model(info)
        self._client.set_terminated(self._run_id, status=status)
        update(self.run_dir, status=status, last_error="")

    def _log_model(self, info: RunInfo) -> None:
        """An entry among MLflow's models is worth less than the end of the run; a server before MLflow 3 knows none."""
        try:
            logged.log_model(self._client, self._run_id, str(info.experiment_id), self.run_dir)
        except Exception as error:
            self._log(f"the model was not noted: {describe(error)}")

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

        wanted = provenance.config_params(provenance.told(self._config, _yaml(self.run_dir / "config.yaml")))
        known = run.data.params
        new = [Param(key, value) for key, value in wanted.items() if key not in known]
        # MLflow params never change; a continuation with another value (more steps, say) is told in a tag.
        changed = {
            key: [provenance.cut(text, CHANGE_CHARS) for text in (known[key], value)]
            for key, value in wanted.items()
            if known.get(key, value) != value
        }
        tags = {key: value for key, value in info.tags.items() if key != "distdl.git_dirty"}
        tags[NOTE] = provenance.cut(note.markdown(self.run_dir, info.tags, info.worlds, {}), provenance.TAG_VALUE_CHARS)
        if changed:
            tags["distdl.config_changed"] = provenance.cut(json.dumps(changed), provenance.TAG_VALUE_CHARS)
        for batch in _batches(new, PARAMS_PER_BATCH):
            self._offer(lambda part: client.log_batch(run.info.run_id, params=part), batch, "param")
        for batch in _batches([RunTag(key, value) for key, value in tags.items()], TAGS_PER_BATCH):
            self._offer(lambda part: client.log_batch(run.info.run_id, tags=part), batch, "tag")
        for key in filter(provenance.OLD_TAGS.match, run.data.tags):
            client.delete_tag(run.info.run_id, key)
        self._send_inputs(client, run.info.run_id)

    def _send_inputs(self, client: Any, run_id: str) -> None:
        """A data set that cannot be described is worth less than the rest: it is only noted."""
        try:
            if found := inputs.dataset_inputs(self.run_dir):
                client.log_inputs(run_id, found)
        except Exception as error:
            if not self._refused_for_good(error):
                raise
            self._log(f"the data set was not noted: {describe(error)}")

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
        self._client.set_tag(self._run_id, "distdl.run_key", self.info().run_key)  # which it has: nothing changes
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


def _resized(worlds: list[list[int]], event: Event) -> list[Point]:
    """Notes a start with so many workers; its points where the number has changed since the run began: one that never
    changes is no chart."""
    step, workers = event.get("step"), event.get("workers")
    if event["kind"] != "world" or not isinstance(step, int) or not isinstance(workers, int):
        return []
    before = {n for _, _, n in worlds}
    worlds.append([step, int(event["t"] * 1000), workers])
    if before | {workers} == {workers}:
        return []
    told = worlds if len(before) == 1 else worlds[-1:]
    return [Point("time/workers", float(n), time_ms, at) for at, time_ms, n in told]


def _of_node(node: str, event: Event) -> Iterator[Point]:
    step = event.get("step")
    if event["kind"] == "system" and isinstance(step, int):
        values = {f"system/{node}/{name}": value for name, value in as_dict(event.get("values")).items()}
        yield from points(values, int(event["t"] * 1000), step)


def _yaml(path: Path) -> Any:
    """What a config's YAML says, or None where there is none that can be read."""
    try:
        return read_yaml(str(path))[0]
    except (OSError, ValueError, InputError):
        return None
