"""A run's folder: runs/NAME/ with the config, the plan, the events, the checkpoints and, at the end, the summary."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from distdl import trust
from distdl.config.family import FamilyName, portable
from distdl.config.load import config_from_dict
from distdl.config.schema import Config
from distdl.config.yaml_file import flatten
from distdl.errors import DataCorrupt, InputError, Problem
from distdl.files import publish, read_json, replace_json, sync, sync_folder
from distdl.run.attempts import Attempt, claim

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
    "search",
    "track",
)
"""Sections that a continued run may change: they decide how and where it runs, not what is learned."""
MAY_CHANGE_KEYS = (
    ("train", "epochs"),
    ("train", "steps"),
    ("train", "micro_batch"),
    ("train", "threads_per_worker"),
    ("train", "tf32"),
    ("train", "vocabulary_multiple"),
    ("train", "channels_last"),
    ("data", "path"),
    ("data", "prepare"),
    ("data", "quarantine"),
    ("data", "cache"),
    ("data", "threads"),
    ("data", "verify"),
    ("data", "verify_again_mb_per_s"),
    ("start", "weights"),
    ("start", "which"),
    ("way", "teacher"),
    ("way", "which"),
)
DECIDED_LATER = (("train", "precision"), ("train", "deterministic"))
"""Keys whose `auto` a plan decides on the spot: a note tells where that is not what the run began with."""
FLIGHTS = "nccl-rank-"
"""Begins the names of the files in which NCCL leaves a rank's last collectives, before the rank's number."""
NOTE = "note.json"
"""What its user has written down about a run."""
DRAFT = ".new-"
"""Begins the name of a run's folder that is not in its place yet."""

CURES = {
    "config.json": "start the run with its YAML, which lies beside it, and the key=value arguments that it had: "
    "distdl train RUN/config.yaml name=…",
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
            model = planned.get("model")
            if isinstance(model, dict) and isinstance(model.get("family"), str):
                planned = planned | {"model": portable(model)}
            return planned

    def write(self, name: str, value: Any) -> None:
        """Replaces a JSON file of the folder in one step. Raises TakenOver where a newer attempt trains the run."""
        self.attempt.check()
        file = self.path / name
        replace_json(file, value, self._draft(file))

    def copy(self, name: str, source: str) -> None:
        """Replaces a file of the folder by a copy of another one, in one step."""
        self.attempt.check()
        draft = self._draft(self.path / name)
        shutil.copyfile(source, draft)
        sync(draft)
        publish(draft, self.path / name)

    def keep(self, config: Config) -> None:
        """Writes config.json, and the file of a family of the user's own beside it, for a run that goes on elsewhere and
        for workers that see nothing else of the user's."""
        file = config.family_name.file
        if file and file != self.path / file.name:  # first: config.json names it
            self.copy(file.name, str(file))
        self.write("config.json", config.portable())

    def failure_records(self) -> list[dict[str, Any]]:
        """What each worker that failed left behind: rank, time, message, exit_code, known, traceback."""
        found = [self.read_derived(f"failures/{path.name}") for path in sorted(self.failures.glob("rank-*.json"))]
        return [record for record in found if record]

    def begin(self) -> None:
        """Takes the next attempt number; an older attempt that is still alive may write nothing from now on."""
        trust.refuse_links(self.path)
        self.attempt = claim(self.path)
        for draft in self.path.glob(".*.json.*.*"):  # of an older attempt that was killed, or may write no more
            draft.unlink(missing_ok=True)

    def _draft(self, file: Path) -> Path:
        return file.with_name(f".{file.name}.{self.attempt.number}.{os.getpid()}")

    @contextmanager
    def private(self) -> Iterator[None]:
        """Within it, new files are open to those whom the folder itself is open to, and to nobody else."""
        before = os.umask(0o077)
        try:
            with suppress(OSError):  # a folder that this machine does not see is told of elsewhere
                os.umask(before | (~self.path.stat().st_mode & 0o777))
            yield
        finally:
            os.umask(before)

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
    """The folder that a config's run continues in, or a new one that nobody else has. Raises InputError where it holds
    another experiment, or another run's name."""
    while True:
        before = None if fresh else existing_run(config)
        if before:
            refuse_other(before, config)
            return before
        if new := _new_run(config, yaml_path, fresh=fresh):
            return new


def existing_run(config: Config) -> RunFolder | None:
    """The folder that a config's run would continue in, or None. Raises InputError where another run has its name."""
    taken = _numbered(Path(config.runs), config.name)
    folder = RunFolder(Path(config.runs) / config.name)
    if not taken and (owner := _owner(folder)) is not None:
        what = f"the folder {folder.path} belongs to the run {owner!r}, not to one that is named {config.name!r}"
        raise InputError(what, fix="name=OTHER gives this run a name of its own; --resume FOLDER continues that one")
    return RunFolder(max(taken)[1]) if taken else None


def _new_run(config: Config, yaml_path: str | None, *, fresh: bool) -> RunFolder | None:
    """A folder that was not there before. None: another process made the run that was asked for a moment ago.

    It is written beside its place and takes it by one rename, which fails where anything is: so two processes never get
    the same folder, and one that is killed meanwhile leaves nothing that looks like a run.
    """
    root = Path(config.runs)
    root.mkdir(parents=True, exist_ok=True)
    _remove_old_drafts(root)
    claimed = Path(tempfile.mkdtemp(prefix=f"{DRAFT}{config.name}-", dir=root))
    try:
        draft = _private_folder(claimed / config.name)
        with draft.private():
            draft.keep(config)
            if yaml_path and Path(yaml_path).is_file():
                draft.copy("config.yaml", yaml_path)
        first = max((n for n, _ in _numbered(root, config.name)), default=0) + 1 if fresh else 1
        for number in itertools.count(first):
            path = root / (config.name if number == 1 else f"{config.name}-{number}")
            try:
                draft.path.rename(path)  # an empty folder, left by a start that was killed, is replaced
                sync_folder(root)
                return RunFolder(path)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
            if not fresh:
                return _begun(path, draft)
    finally:
        shutil.rmtree(claimed, ignore_errors=True)
    raise AssertionError


def _begun(path: Path, draft: RunFolder) -> RunFolder | None:
    """A folder with only the checkpoint that the run is to start from (`distdl checkpoint convert` puts it there), taken
    for the run of the draft. None: another process was faster. Raises InputError for a folder of anything else."""
    if (path / "config.json").is_file():
        return None
    if not path.is_dir() or any(p.name != "checkpoints" and not p.name.startswith(".") for p in path.iterdir()):
        what = f"{path} is there already, and is no run: it has no config.json"
        raise InputError(what, fix="move it away, name=OTHER, or --fresh for the next free number")
    _make_private(path)
    files = sorted(
        draft.path.iterdir(), key=lambda file: file.name == "config.json"
    )  # last: with it the folder is taken
    for file in files[:-1]:
        os.replace(file, path / file.name)
    try:
        os.link(files[-1], path / "config.json")
    except FileExistsError:
        return None
    return RunFolder(path)


def _private_folder(path: Path) -> RunFolder:
    path.mkdir()
    _make_private(path)
    return RunFolder(path)


def _make_private(path: Path) -> None:
    """A run's folder is its owner's alone: a config tells of paths and servers, weights of the data. Where the folder above
    is shared with its group on purpose (setgid), the group keeps what the umask has left it."""
    mode = path.stat().st_mode
    path.chmod(mode & (0o2770 if mode & stat.S_ISGID else 0o700))


def _remove_old_drafts(root: Path) -> None:
    """Takes away what starts that were killed have left; one that is at it needs far less than an hour."""
    for path in root.glob(f"{DRAFT}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 3600:
                shutil.rmtree(path, ignore_errors=True)


def find_run(name: str, runs: str) -> RunFolder:
    """An existing run by its folder or its name below `runs`. Raises InputError."""
    for path in (Path(name), Path(runs) / name):
        if (path / "config.json").is_file():
            return RunFolder(path)
    have = sorted(p.parent.name for p in Path(runs).glob("[!.]*/config.json"))
    allowed = "runs there are: " + ", ".join(have) if have else f"there is no run in {runs}/ yet"
    raise InputError(f"there is no run {name!r}", allowed=allowed, fix="give the name of a run or its folder")


def saved_config(folder: RunFolder, overrides: Sequence[str] = ()) -> Config:
    """The config that a run was last started with, `key=value` arguments on top. Raises InputError."""
    trust.refuse_links(folder.path)
    values = folder.config_values()
    if values is None:
        raise InputError(
            f"{folder.path} holds no run: it has no config.json", fix="give the name of a run or its folder"
        )
    named = not any(re.match(r"model(\.family)?=", text) for text in overrides)
    family = (values.get("model") or {}).get("family") if named else None
    said = FamilyName(family) if isinstance(family, str) else None
    if said and said != said.portable:
        what = f"{folder.path / 'config.json'} names the family's file {family}, which lies outside the run's folder"
        raise InputError(what, fix="name the file yourself: model.family=PATH")
    config = config_from_dict(values, overrides, folder.path)
    if said and said.own and not said.file:
        trust.allow(said.source(), named_by_run=True)
    if (code := config.optimizer_code) and not any(text.startswith("optimizer") for text in overrides):
        trust.allow(code, named_by_run=True)
    return config


def refuse_other(folder: RunFolder, config: Config) -> None:
    """Raises InputError where the folder's run learns something else than `config` says."""
    try:
        if not folder.config_values():
            return
    except DataCorrupt:  # nothing is left to compare with but the checkpoint, which knows its model and its data
        return
    before = _before(folder, config)
    old, new = dict(flatten(before.portable())), dict(flatten(config.portable()))
    changed = [
        path
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path) and path[0] not in MAY_CHANGE and path[:2] not in MAY_CHANGE_KEYS
        if "auto" not in (old.get(path), new.get(path)) or path[:2] not in DECIDED_LATER
    ]
    if changed:
        lines = [f"{'.'.join(p)}: {old.get(p)!r} there, {new.get(p)!r} now" for p in changed[:8]]
        raise InputError(
            Problem(
                f"the run in {folder.path} was started with another config: {'; '.join(lines)}",
                fix="--fresh starts a new run beside it; name=OTHER gives the new run its own name",
            )
        )


def _before(folder: RunFolder, config: Config) -> Config:
    """The config that a run was last started with, with the defaults of keys that came later. Where the family is a file of
    the user's own, those that it has now: the run's copy of it is not asked, which may come from another machine."""
    values = folder.config_values() or {}
    family, mine = FamilyName(str((values.get("model") or {}).get("family"))), config.family_name
    if mine.file and family.portable == mine.portable:
        with suppress(InputError):  # it has other fields now
            return config_from_dict(values | {"model": values["model"] | {"family": mine.text}})
    return saved_config(folder)


def _owner(folder: RunFolder) -> str | None:
    """The name of the run that a folder belongs to; None: it holds none."""
    try:
        values = folder.config_values()
    except DataCorrupt:  # torn, and so is its plan: whose it is, its own name tells
        return folder.path.name
    return None if values is None else str(values.get("name"))


def _numbered(root: Path, name: str) -> list[tuple[int, Path]]:
    """(number, folder) of NAME (1) and NAME-2, NAME-3, … that exist and belong to runs of this name: `lenet-5` may be a
    name of its own."""
    pattern = re.compile(rf"{re.escape(name)}-([1-9][0-9]*)")
    places = [(1, root / name)]
    places += [(int(match[1]), path) for path in root.glob(f"{name}-*") if (match := pattern.fullmatch(path.name))]
    return [(n, path) for n, path in places if (n == 1) == (path.name == name) and _owner(RunFolder(path)) == name]
