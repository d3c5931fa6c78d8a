"""A run's folder: runs/NAME/ with the config, the plan, the events, the checkpoints and, at the end, the summary."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from distdl.attempts import Attempt, claim
from distdl.config import Config
from distdl.config_load import config_from_dict
from distdl.config_yaml import flatten
from distdl.errors import DataCorrupt, InputError, Problem
from distdl.family_schema import is_file, relocated
from distdl.files import publish, read_json, replace_json, sync

MAY_CHANGE = (
    "checkpoint",
    "evaluate",
    "early_stopping",
    "guard",
    "launch",
    "name",
    "parallel",
    "runs",
    "runtime",
    "track",
)
"""Sections that a continued run may change: they decide how and where it runs, not what is learned."""
MAY_CHANGE_KEYS = (
    ("train", "epochs"),
    ("train", "steps"),
    ("train", "micro_batch"),
    ("train", "threads_per_worker"),
    ("data", "path"),
    ("data", "prepare"),
    ("data", "cache"),
    ("data", "threads"),
    ("data", "verify"),
    ("data", "verify_again_mb_per_s"),
    ("start", "weights"),
    ("start", "which"),
    ("way", "teacher"),
    ("way", "which"),
)

CURES = {
    "config.json": "start the run with its YAML, which lies beside it: distdl train RUN/config.yaml",
    "plan.json": "start the run again (`distdl train --resume RUN`), which plans anew",
    "summary.json": "start the run again (`distdl train --resume RUN`), which writes it anew",
}
"""What to do about a file of a run folder that is damaged."""


class RunFolder:
    """Paths of a run, and its small JSON files. `attempt` is the number of the attempt that writes; 0: none, to read."""

    def __init__(self, path: Path, attempt: int = 0) -> None:
        self.path = path.absolute()
        self.attempt = Attempt(self.path, attempt)
        self.events = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.failures = self.path / "failures"

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or None where it has none. Raises DataCorrupt, which names it, for a torn one."""
        return read_json(self.path / name, CURES.get(name, ""))

    def read_derived(self, name: str) -> dict[str, Any] | None:
        """The same for a file that a run only tells of itself: a torn one is as good as none, since it is written again."""
        try:
            return self.read(name)
        except DataCorrupt:
            return None

    def config_values(self) -> dict[str, Any] | None:
        """The config that the run was last started with, as plain values; that of its plan.json where config.json is torn.

        None where there is neither. Raises DataCorrupt where both are torn.
        """
        try:
            return self.read("config.json")
        except DataCorrupt as torn:
            planned = (self.read_derived("plan.json") or {}).get("config")
            if not isinstance(planned, dict):
                raise torn from None
            return planned

    def write(self, name: str, value: Any) -> None:
        """Replaces a JSON file of the folder in one step. Raises TakenOver where a newer attempt trains the run."""
        self.attempt.check()
        file = self.path / name
        replace_json(file, value, self._draft(file))

    def keep(self, config: Config) -> Config:
        """Writes config.json, and the file of a family of the user's own beside it, for a run that goes on elsewhere and
        for workers that see nothing else of the user's. Returns the config that names that copy."""
        model = relocated(config.model, str(self.path)) if is_file(config.model["family"]) else config.model
        file = Path(model["family"])
        if model is not config.model and file != Path(config.model["family"]):  # first: config.json names it
            self.attempt.check()
            draft = self._draft(file)
            shutil.copyfile(config.model["family"], draft)
            sync(draft)
            publish(draft, file)
        values = config.model_dump(mode="json")
        self.write("config.json", values | {"model": relocated(config.model, ".")})
        return config.model_copy(update={"model": model})

    def failure_records(self) -> list[dict[str, Any]]:
        """What each worker that failed left behind: rank, time, message, exit_code, known, traceback."""
        found = [self.read_derived(f"failures/{path.name}") for path in sorted(self.failures.glob("rank-*.json"))]
        return [record for record in found if record]

    def begin(self) -> None:
        """Takes the next attempt number; an older attempt that is still alive may write nothing from now on."""
        self.attempt = claim(self.path)
        for draft in self.path.glob(".*.json.*.*"):  # of an older attempt that was killed, or may write no more
            draft.unlink(missing_ok=True)

    def _draft(self, file: Path) -> Path:
        return file.with_name(f".{file.name}.{self.attempt.number}.{os.getpid()}")

    @contextmanager
    def locked(self, *, take_over: bool = False) -> Iterator[None]:
        """Keeps every other process from training this run meanwhile. Raises InputError where one is at it; with
        `take_over` it gets the lock when that one has ended."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if take_over:
                    Thread(target=fcntl.flock, args=(file, fcntl.LOCK_EX), daemon=True).start()
                    yield
                    return
                fix = "wait for it, or start another run beside it with --fresh"
                raise InputError(f"the run in {self.path} is being trained by another process", fix=fix) from None
            yield


def open_run(config: Config, yaml_path: str | None, *, fresh: bool = False) -> RunFolder:
    """The folder that a config's run continues in, or a new one. Raises InputError where it holds another experiment."""
    root = Path(config.runs)
    taken = _numbered(root, config.name)
    if fresh or not taken:
        name = config.name if not taken else f"{config.name}-{max(n for n, _ in taken) + 1}"
        folder = RunFolder(root / name)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.keep(config)
    else:
        folder = RunFolder(max(taken)[1])
        refuse_other(folder, config)
    kept = folder.path / "config.yaml"
    if yaml_path and Path(yaml_path).is_file() and not (kept.exists() and kept.samefile(yaml_path)):
        shutil.copyfile(yaml_path, kept)
    return folder


def existing_run(config: Config) -> RunFolder | None:
    """The folder that a config's run would continue in, or None."""
    taken = _numbered(Path(config.runs), config.name)
    return RunFolder(max(taken)[1]) if taken else None


def find_run(name: str, runs: str) -> RunFolder:
    """An existing run by its folder or its name below `runs`. Raises InputError."""
    for path in (Path(name), Path(runs) / name):
        if (path / "config.json").is_file():
            return RunFolder(path)
    have = sorted(p.parent.name for p in Path(runs).glob("*/config.json"))
    allowed = "runs there are: " + ", ".join(have) if have else f"there is no run in {runs}/ yet"
    raise InputError(f"there is no run {name!r}", allowed=allowed, fix="give the name of a run or its folder")


def saved_config(folder: RunFolder, overrides: Sequence[str] = ()) -> Config:
    """The config that a run was last started with, `key=value` arguments on top. Raises InputError."""
    values = folder.config_values()
    if values is None:
        raise InputError(
            f"{folder.path} holds no run: it has no config.json", fix="give the name of a run or its folder"
        )
    return config_from_dict(values, overrides, folder.path)


def refuse_other(folder: RunFolder, config: Config) -> None:
    """Raises InputError where the folder's run learns something else than `config` says."""
    try:
        if not folder.config_values():
            return
    except DataCorrupt:  # nothing is left to compare with but the checkpoint, which knows its model and its data
        return
    before = saved_config(folder)  # with the defaults of keys that came later
    old = dict(flatten(before.model_dump(mode="json") | {"model": relocated(before.model, ".")}))
    new = dict(flatten(config.model_dump(mode="json") | {"model": relocated(config.model, ".")}))
    changed = [
        path
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path) and path[0] not in MAY_CHANGE and path[:2] not in MAY_CHANGE_KEYS
    ]
    if changed:
        lines = [f"{'.'.join(p)}: {old.get(p)!r} there, {new.get(p)!r} now" for p in changed[:8]]
        raise InputError(
            Problem(
                f"the run in {folder.path} was started with another config: {'; '.join(lines)}",
                fix="--fresh starts a new run beside it; name=OTHER gives the new run its own name",
            )
        )


def _numbered(root: Path, name: str) -> list[tuple[int, Path]]:
    """(number, folder) of NAME (1) and NAME-2, NAME-3, … that exist."""
    found = [(1, root / name)] if (root / name / "config.json").is_file() else []
    for path in root.glob(f"{name}-*"):
        number = path.name.removeprefix(f"{name}-")
        if not number.isdigit() or int(number) < 2:
            continue
        if (RunFolder(path).read_derived("config.json") or {}).get(
            "name"
        ) == name:  # `lenet-5` may be a name of its own
            found.append((int(number), path))
    return found
