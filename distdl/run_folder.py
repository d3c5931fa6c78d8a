"""A run's folder: runs/NAME/ with the config, the plan, the events, the checkpoints and, at the end, the summary."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from distdl.attempts import Attempt, claim
from distdl.config import Config
from distdl.config_load import config_from_dict, flatten
from distdl.errors import InputError, Problem
from distdl.family_schema import is_file, relocated

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
    ("start", "weights"),
    ("start", "which"),
    ("way", "teacher"),
    ("way", "which"),
)


class RunFolder:
    """Paths of a run, and its small JSON files. `attempt` is the number of the attempt that writes; 0: none, to read."""

    def __init__(self, path: Path, attempt: int = 0) -> None:
        self.path = path.absolute()
        self.attempt = Attempt(self.path, attempt)
        self.events = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.failures = self.path / "failures"

    def read(self, name: str) -> Any:
        """A JSON file of the folder, or None where it has none."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write(self, name: str, value: Any) -> None:
        """Replaces a JSON file of the folder in one step. Raises TakenOver where a newer attempt trains the run."""
        self.attempt.check()
        file = self.path / name
        draft = file.with_name(f".{file.name}.{self.attempt.number}.{os.getpid()}")
        draft.write_text(json.dumps(value, indent=1), encoding="utf-8")
        os.replace(draft, file)

    def keep(self, config: Config) -> Config:
        """Writes config.json, and the file of a family of the user's own beside it, for a run that goes on elsewhere and
        for workers that see nothing else of the user's. Returns the config that names that copy."""
        model = relocated(config.model, str(self.path)) if is_file(config.model["family"]) else config.model
        file = Path(model["family"])
        if model is not config.model and file != Path(config.model["family"]):  # first: config.json names it
            self.attempt.check()
            draft = file.with_name(f".{file.name}.{self.attempt.number}.{os.getpid()}")
            shutil.copyfile(config.model["family"], draft)
            os.replace(draft, file)
        values = config.model_dump(mode="json")
        self.write("config.json", values | {"model": relocated(config.model, ".")})
        return config.model_copy(update={"model": model})

    def failure_records(self) -> list[dict[str, Any]]:
        """What each worker that failed left behind: rank, time, message, exit_code, known, traceback."""
        return [self.read(f"failures/{path.name}") for path in self.failures.glob("rank-*.json")]

    def begin(self) -> None:
        """Takes the next attempt number; an older attempt that is still alive may write nothing from now on."""
        self.attempt = claim(self.path)

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
    if yaml_path and Path(yaml_path).is_file():
        shutil.copyfile(yaml_path, folder.path / "config.yaml")
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
    return config_from_dict(folder.read("config.json"), overrides, folder.path)


def refuse_other(folder: RunFolder, config: Config) -> None:
    """Raises InputError where the folder's run learns something else than `config` says."""
    if not folder.read("config.json"):
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
        if (RunFolder(path).read("config.json") or {}).get("name") == name:  # `lenet-5` may be a name of its own
            found.append((int(number), path))
    return found
