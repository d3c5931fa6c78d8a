"""The jobs that this user launched, in $DISTDL_HOME (default ~/.distdl): jobs/ID@PLACE/ holds record.json and package/.

They make `--on` unnecessary after the first time, and let `distdl jobs resume` send the very same package again. The same
run on two targets is two jobs, and two records; PLACE is a hash of the target's address and of the run's own name.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distdl.config.launch import Launch
from distdl.config.load import config_from_dict
from distdl.config.schema import Config
from distdl.errors import DistdlError, InputError, did_you_mean
from distdl.jobs.target import Package, job_id
from distdl.plan.plan import Plan


@dataclass(frozen=True)
class Record:
    """A job as it was last sent somewhere."""

    id: str
    on: str
    """The target's address, as `--on` takes it."""
    submitted_s: float
    """Seconds since the epoch."""
    folder: Path
    """jobs/ID@PLACE/"""
    run: str = ""
    """Name of the run."""
    place: str = ""
    """`place_of` its target: what two jobs of one id are told apart by."""

    def package(self) -> Package:
        """What was sent. Its run is continued: `--fresh` counted for the first time only."""
        values = _read(self.folder)
        try:
            config = config_from_dict(values["config"], beside=self.folder / "package")
            plan = Plan.from_dict(values["plan"])
        except (InputError, KeyError, TypeError) as error:
            fix = "launch the config again: `distdl launch CONFIG` continues the same run"
            raise InputError(f"{self.id} was launched by another version of distdl: {error}", fix=fix) from None
        return Package(self.id, config, plan, self.folder / "package", tuple(values["overrides"]), owner=owner())

    def config(self) -> Config:
        """The config of the job."""
        return self.package().config


def home() -> Path:
    """The folder of the remembered jobs; it need not exist."""
    return Path(os.environ.get("DISTDL_HOME") or Path.home() / ".distdl") / "jobs"


def owner() -> str:
    """Who sends jobs from here: $DISTDL_OWNER, else USER@HOST as it was at the first launch (a laptop's name changes with
    its network)."""
    if said := os.environ.get("DISTDL_OWNER", "").strip():
        return said
    file = home().parent / "owner"
    try:
        kept = file.read_text(encoding="utf-8").strip()
    except OSError:
        kept = ""
    return kept or _user_at_host()


def _user_at_host() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user that no file names
        user = f"uid-{os.getuid()}"
    return f"{user}@{os.uname().nodename}"


def place_of(on: str, launch: Launch) -> str:
    """Which cluster, namespace or folder an address means: `kubernetes` alone says no namespace, `slurm` no folder."""
    kind = on.partition(":")[0]
    if kind == "kubernetes":
        return f"{on}, namespace {launch.kubernetes.namespace}"
    if kind == "slurm":
        return f"{on}, folder {launch.folder}" if launch.folder else on
    if kind == "ssh":
        host = on.partition("://")[2] or next(iter(launch.ssh.hosts), "")
        return f"ssh://{host}, folder {launch.folder}" if launch.folder else f"ssh://{host}"
    return on.rstrip("/")


def draft(id: str) -> Path:
    """A folder below `home()` where the package of a job that may yet be refused is made; `record` takes it over."""
    jobs = home()
    try:
        jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = jobs / f".{id}.{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        if not (file := jobs.parent / "owner").exists():
            file.write_text(f"{_user_at_host()}\n", encoding="utf-8")
    except OSError as error:
        fix = "set DISTDL_HOME to a folder that can be written"
        raise InputError(f"launched jobs are remembered in {jobs}: {error.strerror}", fix=fix) from None
    return folder / "package"


def record(package: Package, on: str) -> Record:
    """Remembers a job that was submitted to `on`; replaces what was known of this run there in one step."""
    place, run = place_of(on, package.config.launch), package.config.name
    mark = hashlib.sha256(f"{place}\0{run}".encode()).hexdigest()[:8]
    folder = home() / f"{package.id}@{mark}"
    new = package.folder.parent if package.folder.parent.parent == home() else draft(package.id).parent
    if not new.name.startswith("."):  # the package of an earlier launch is sent again, perhaps elsewhere
        new = draft(package.id).parent
    if package.folder.parent != new:
        shutil.copytree(package.folder, new / "package")
    now = time.time()
    values = {
        "id": package.id,
        "on": on,
        "run": run,
        "submitted_s": now,
        "overrides": package.overrides,
        "config": package.config.model_dump(mode="json"),
        "plan": package.plan.to_dict(),
    }
    file = new / "record.json"
    file.write_text(json.dumps(values, indent=1), encoding="utf-8")
    file.chmod(0o600)
    earlier = [folder, *(r.folder for r in records() if (r.id, r.place, r.run) == (package.id, place, run))]
    for number, old in enumerate(dict.fromkeys(path for path in earlier if path.exists())):
        aside = folder.with_name(f".{package.id}.{os.getpid()}.old-{number}")
        os.replace(old, aside)
    os.replace(new, folder)
    for aside in home().glob(f".{package.id}.{os.getpid()}.old-*"):
        shutil.rmtree(aside, ignore_errors=True)
    return Record(package.id, on, now, folder, run, place)


def records() -> list[Record]:
    """Every remembered job, the last launched one first; what cannot be read is skipped."""
    found = []
    for file in home().glob("[!.]*/record.json"):
        try:
            values = _read(file.parent)
            run = str(values.get("run") or values["config"].get("name", ""))  # records of 0.1 say it in the config only
            place = _place(values["on"], values["config"].get("launch"))
            sent_s = float(values["submitted_s"])
            found.append(Record(values["id"], values["on"], sent_s, file.parent, run, place))
        except (DistdlError, AttributeError, KeyError, TypeError, ValueError):
            continue
    return sorted(found, key=lambda r: -r.submitted_s)


def find_record(name: str | None, on: str | None = None) -> Record | None:
    """The job of an id or of a run's name, at the target `on` where it is given (its address, or its place as `jobs list`
    names it); None: the only one there is. Returns None where nothing is remembered of it.
    Raises InputError where that means several."""
    if name is None:
        known = records()
        return _only([r for r in known if on in (r.on, r.place)] or known, "which job?")
    found = [r for r in named(name) if on in (None, r.on, r.place)]
    return _only(found, f"{name} was sent to several places: which one?") if found else None


def named(name: str) -> list[Record]:
    """The jobs of an id, else of a run's name, the last launched one first."""
    known = records()
    by_id = [r for r in known if r.id == name]
    return by_id or [r for r in known if r.run == name] or [r for r in known if r.id == job_id(name)]


def _only(found: Sequence[Record], question: str) -> Record:
    if len(found) == 1:
        return found[0]
    ids = [r.id for r in found]
    if len(set(ids)) == len(ids):
        raise InputError(question, allowed=", ".join(ids) or "none", fix="distdl jobs list shows them")
    raise InputError(question, allowed=", ".join(f"{r.id} --on '{r.place}'" for r in found), fix="give its ID and --on")


def unknown_job(name: str) -> InputError:
    """The error for a job that nothing is remembered of."""
    ids = [r.id for r in records()]
    fix = did_you_mean(name, ids) if ids else "no job was launched from here"
    return InputError(f"nothing is remembered of a job {name!r}", fix=f"{fix}; or say where it runs: --on TARGET")


def _place(on: str, launch: dict[str, Any] | None) -> str:
    """`place_of` for the launch section as a record has it, which may be of another version."""
    try:
        return place_of(on, Launch.model_validate(launch or {}))
    except ValueError:
        return on


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the record of a job in {folder} cannot be read: {error}") from None
