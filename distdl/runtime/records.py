"""The jobs that this user launched, in $DISTDL_HOME (default ~/.distdl): jobs/ID/ holds record.json and package/.

They make `--on` unnecessary after the first time, and let `distdl jobs resume` send the very same package again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distdl.config import Config
from distdl.config_load import config_from_dict
from distdl.errors import DistdlError, InputError, did_you_mean
from distdl.plan.plan import Plan
from distdl.runtime.target import Package, job_id


@dataclass(frozen=True)
class Record:
    """A job as it was last sent somewhere."""

    id: str
    on: str
    """The target's address, as `--on` takes it."""
    submitted_s: float
    """Seconds since the epoch."""
    folder: Path
    """jobs/ID/"""

    def package(self) -> Package:
        """What was sent. Its run is continued: `--fresh` counted for the first time only."""
        values = _read(self.folder)
        try:
            config = config_from_dict(values["config"], beside=self.folder / "package")
            plan = Plan.from_dict(values["plan"])
        except (InputError, KeyError, TypeError) as error:
            fix = "launch the config again: `distdl launch CONFIG` continues the same run"
            raise InputError(f"{self.id} was launched by another version of distdl: {error}", fix=fix) from None
        return Package(self.id, config, plan, self.folder / "package", tuple(values["overrides"]))

    def config(self) -> Config:
        """The config of the job."""
        return self.package().config


def home() -> Path:
    """The folder of the remembered jobs; it need not exist."""
    return Path(os.environ.get("DISTDL_HOME") or Path.home() / ".distdl") / "jobs"


def draft(id: str) -> Path:
    """A folder below `home()` where the package of a job that may yet be refused is made; `record` takes it over."""
    jobs = home()
    try:
        jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = jobs / f".{id}.{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        fix = "set DISTDL_HOME to a folder that can be written"
        raise InputError(f"launched jobs are remembered in {jobs}: {error.strerror}", fix=fix) from None
    return folder / "package"


def record(package: Package, on: str) -> Record:
    """Remembers a job that was submitted to `on`; replaces what was known of its id in one step."""
    folder = home() / package.id
    new = package.folder.parent if package.folder.parent.parent == home() else draft(package.id).parent
    if new == folder:  # the package of an earlier launch is sent again: only the record changes
        new = draft(package.id).parent
    if package.folder.parent != new:
        shutil.copytree(package.folder, new / "package")
    now = time.time()
    values = {
        "id": package.id,
        "on": on,
        "submitted_s": now,
        "overrides": package.overrides,
        "config": package.config.model_dump(mode="json"),
        "plan": package.plan.to_dict(),
    }
    file = new / "record.json"
    file.write_text(json.dumps(values, indent=1), encoding="utf-8")
    file.chmod(0o600)
    old = folder.with_name(f".{package.id}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
    return Record(package.id, on, now, folder)


def records() -> list[Record]:
    """Every remembered job, the last launched one first; what cannot be read is skipped."""
    found = []
    for file in home().glob("[!.]*/record.json"):
        try:
            values = _read(file.parent)
            found.append(Record(values["id"], values["on"], float(values["submitted_s"]), file.parent))
        except (DistdlError, KeyError, TypeError, ValueError):
            continue
    return sorted(found, key=lambda r: -r.submitted_s)


def find_record(name: str | None) -> Record | None:
    """The job of an id or of a run's name; None: the only one there is. Returns None where nothing is remembered of it.
    Raises InputError for no name where there are several."""
    known = records()
    if name is None:
        if len(known) != 1:
            ids = ", ".join(r.id for r in known) or "none"
            raise InputError("which job?", allowed=ids, fix="distdl jobs list shows them")
        return known[0]
    return next((r for r in known if r.id in (name, job_id(name))), None)


def unknown_job(name: str) -> InputError:
    """The error for a job that nothing is remembered of."""
    ids = [r.id for r in records()]
    fix = did_you_mean(name, ids) if ids else "no job was launched from here"
    return InputError(f"nothing is remembered of a job {name!r}", fix=f"{fix}; or say where it runs: --on TARGET")


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "record.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise InputError(f"the record of a job in {folder} cannot be read: {error}") from None
