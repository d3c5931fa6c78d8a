"""What a folder that came from elsewhere may make this machine do. A run, a data set or a checkpoint can be a stranger's:

- the code in a run's folder (its family's file) is run after a yes. What this user has trained or launched from a file of
  their own needs none: its SHA-256 is remembered, and so is a yes.
- the tracking server that a run's files name gets credentials where the user has named it, too: in a config of their own,
  with `track.uri=`, with `--uri` or in MLFLOW_TRACKING_URI.
- a link that leads out of the folder is not followed.

What is remembered lies in $DISTDL_HOME/trusted.json (default ~/.distdl); workers get it from their driver.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distdl.errors import InputError
from distdl.files import replace_json

VARIABLE = "DISTDL_TRUSTED"
"""Environment of the workers: the SHA-256 of each file that their driver may run, with commas between."""
FLAG = "--trust"
_PORTS = {"http": 80, "https": 443}
_said_yes = False


def say_yes() -> None:
    """`--trust`: whatever code this process meets in a run's folder is run, and remembered."""
    global _said_yes
    _said_yes = True


# -- code --------------------------------------------------------------------------------------------------------------


def allow(code: Path, *, named_by_run: bool = False) -> None:
    """Returns where this file may be run. Raises InputError where it came with a run, and nobody has said yes to it.

    `named_by_run`: only a run's config.json says so, wherever the file lies.
    """
    run = run_around(code)
    if (run is None and not (named_by_run and not _installed(code))) or known(code):
        return
    what = (
        f"{code} is code that came with the run in {run}" if run else f"{code} is code that only a run's config names"
    )
    digest = _sha256(code)
    if not _said_yes and not _asked(f"{what}\n    (SHA-256 {digest[:16]}…). It runs with your rights."):
        fix = f"read it; {FLAG} runs it now, and whenever it is the same again"
        raise InputError(f"{what}; this machine has not run it before, and does not yet", fix=fix)
    remember(code)


def known(code: Path) -> bool:
    """Whether this user has trained the file as their own, or said yes to it; or their driver, to a worker."""
    digest, told = _sha256(code), _read()
    given = os.environ.get(VARIABLE, "").split(",")
    return digest in given or digest in told.get("code", {}) or str(code.absolute()) in told.get("places", [])


def remember(code: Path, *, place: bool = False) -> None:
    """From now on the file needs no yes, here and in the workers of this process. `place`: whatever is in it, as of a
    module of the user's own, which is not copied into a run's folder."""
    digest = _sha256(code)
    given = [text for text in os.environ.get(VARIABLE, "").split(",") if text]
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*given, digest]))
    told = _read()
    told["code"] = {**told.get("code", {}), digest: code.name}
    if place:
        told["places"] = sorted({*told.get("places", []), str(code.absolute())})
    _write(told)


def run_around(path: Path) -> Path | None:
    """The run's folder that a file lies in, at any depth and by any link; None: it lies in none."""
    for folder in dict.fromkeys([*Path(os.path.abspath(path)).parents, *path.resolve().parents]):
        if (folder / "plan.json").is_file() and (
            folder / "attempts"
        ).is_dir():  # its config.json may be torn, or taken out
            return folder
        with contextlib.suppress(OSError, ValueError, RecursionError, TypeError):
            if "model" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
                return folder
    return None


def _installed(code: Path) -> bool:
    """Whether a file belongs to a package that was installed into this Python."""
    places = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    return any(code.absolute().is_relative_to(place) for place in places)


def _asked(what: str) -> bool:
    """The answer of the person at the terminal; no where there is none."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{what}\nrun it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _sha256(code: Path) -> str:
    try:
        return hashlib.sha256(code.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"the family {code} cannot be read: {error}") from None


# -- servers -----------------------------------------------------------------------------------------------------------


def server(uri: str) -> str:
    """What of a URI decides who gets the credentials: scheme, host and port; all of it where there is no host."""
    parts = urlsplit(uri)
    if not parts.hostname:
        return uri
    with contextlib.suppress(ValueError):  # of a port that is no number
        return f"{parts.scheme}://{parts.hostname}:{parts.port or _PORTS.get(parts.scheme, '')}"
    return uri


def is_configured(uri: str) -> bool:
    """Whether the user has named this server, in a config of their own or in MLFLOW_TRACKING_URI."""
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    return (environment and server(environment) == server(uri)) or server(uri) in _read().get("servers", [])


def remember_server(uri: str) -> None:
    """The user has named this server: what they train may be sent there."""
    told = _read()
    if server(uri) not in told.get("servers", []):
        _write({**told, "servers": sorted({*told.get("servers", []), server(uri)})})


# -- links -------------------------------------------------------------------------------------------------------------


def leads_out(folder: Path, file: Path) -> bool:
    """Whether a file of a folder is a link, or lies behind one, to somewhere outside it. The folder itself may be one."""
    return not file.resolve().is_relative_to(folder.resolve())


def refuse_links(run: Path) -> None:
    """Raises InputError where something in a run's folder is a link to elsewhere: what is logged would be written there,
    and what lies there be sent to MLflow. The checkpoints may lie on another disk, but not in another run."""
    for path in run.iterdir() if run.is_dir() else ():
        if not path.is_symlink() or not leads_out(run, path):
            continue
        if path.name == "checkpoints" and run_around(path.resolve() / "x") is None:
            continue
        what = f"{path} is a link to {path.resolve()}, outside the run's folder: it is not followed"
        raise InputError(what, fix="remove the link, or put a copy in its place")


# -- what is remembered ------------------------------------------------------------------------------------------------


def _file() -> Path:
    return Path(os.environ.get("DISTDL_HOME") or Path.home() / ".distdl") / "trusted.json"


def _read() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        told = json.loads(_file().read_text(encoding="utf-8"))
        if isinstance(told, dict):
            return told
    return {}


def _write(told: dict[str, Any]) -> None:
    """Adds what is new to the file. Where it cannot be written the next process asks again."""
    file = _file()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with file.with_name(f".{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            now = _read()
            merged = {
                "code": {**now.get("code", {}), **told.get("code", {})},
                "places": sorted({*now.get("places", []), *told.get("places", [])}),
                "servers": sorted({*now.get("servers", []), *told.get("servers", [])}),
            }
            draft = file.with_name(f".{file.name}.{os.getpid()}")
            draft.touch(mode=0o600)
            replace_json(file, merged, draft)
