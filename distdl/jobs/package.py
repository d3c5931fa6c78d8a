"""Packs a run for another machine: the user's YAML, distdl's own source and the files that the config names (its family's
among them), no secrets.

The same input gives the same bytes, so that a place that keys what it was sent by its hash (Ray does) takes a second
submission without an upload.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import distdl
from distdl.config.load import Loaded, load_config
from distdl.config.secret_text import SECRET_TEXT, without_value
from distdl.config.yaml_file import flatten
from distdl.errors import InputError, Problem
from distdl.jobs.records import owner
from distdl.jobs.target import Package, job_id
from distdl.train.survey import survey_elsewhere

CONFIG = "config.yaml"
"""The user's YAML, as it stands in the package."""
LIMIT_BYTES = 100 * 2**20
"""A package is code: data belongs where every node reads it, and Ray refuses 500 MiB."""
SKIPPED = (".git", ".hg", ".svn", "__pycache__", "*.pyc", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache")
"""What no run reads: left out of a folder of `launch.files`."""
SECRET_FILES = (
    *(".env", ".env.*", "*.env", ".netrc", ".pgpass", ".npmrc", ".pypirc", ".git-credentials", ".htpasswd"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ovpn"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*credential*", "kubeconfig*", "auth_token", "*secret*"),
    *(".ssh", ".aws", ".azure", ".gnupg", ".kube", ".docker", "gcloud"),
)
"""Names, in lower case, of files and folders that hold secrets as a rule."""
SECRET_NAME = re.compile(
    r"passw(or)?d|secret|credential|(^|_)(api|access|private)?_?(keys?|tokens?|auth)$", re.IGNORECASE
)
NOT_SECRET_NAME = re.compile(r"_(file|path|dir|mode)$", re.IGNORECASE)
"""AWS_SHARED_CREDENTIALS_FILE says where a secret is, and is none."""


@dataclass(frozen=True)
class Contents:
    """What goes into a package, and what does not."""

    files: dict[str, Path]
    """Path in the package -> the file here."""
    left_out: tuple[str, ...]
    """Files of a folder of `launch.files` that look like secrets."""


def make_package(
    config_path: str, overrides: Sequence[str], *, fresh: bool = False, directory: Path | None = None
) -> Package:
    """Checks the config, plans it for other machines and packs it in `directory`, which may hold an earlier package
    (null: a temporary folder that goes with this process). `runtime.kind` becomes ray, whatever the YAML says.

    Raises InputError for a config that does not hold, for a secret in it, and for more than `LIMIT_BYTES`.
    """
    loaded = load_config(config_path, [*overrides, "runtime.kind=ray"])
    refuse_secrets(loaded, overrides)
    found = contents(loaded)
    _refuse_size(found)
    plan = survey_elsewhere(loaded.config)
    if directory is None:
        directory = Path(tempfile.mkdtemp(prefix="distdl-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
    _write(found, directory)
    config = loaded.config
    if file := config.family_name.file:  # where it lies in the package, whatever folder that is unpacked in
        inside = os.path.relpath(file, Path(loaded.path).absolute().parent)
        config = config.model_copy(update={"model": {**config.model, "family": inside}})
    return Package(job_id(config.name), config, plan, directory, tuple(overrides), fresh, owner=owner())


def left_out(config_path: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """Files of the folders of `launch.files` that do not travel because they look like secrets."""
    return contents(load_config(config_path, [*overrides, "runtime.kind=ray"])).left_out


def contents(loaded: Loaded) -> Contents:
    """The files of a package. Raises InputError for one that cannot or must not travel."""
    source = Path(distdl.__file__).parent
    files = {f"distdl/{path.relative_to(source)}": path for path in _below(source)}
    left_out: list[str] = []
    beside = Path(loaded.path).absolute().parent
    named = [("launch.files", name) for name in loaded.config.launch.files]
    if file := loaded.config.family_name.file:
        named.append(("model.family", os.path.relpath(file, beside)))
    for key, name in named:
        where = loaded.origin(tuple(key.split(".")))
        top, inside = _inside(beside, name, key, where)
        for path in _below(top) if top.is_dir() else [top]:
            at = str(inside / path.relative_to(top))
            if not path.resolve().is_relative_to(beside.resolve()):
                fix = "put a copy of it beside the config"
                raise InputError(
                    f"{at} is a link to {path.resolve()}, outside the config's folder", where=where, fix=fix
                )
            if not looks_secret(path, Path(at)):
                files[at] = path
            elif path == top:
                fix = f"take it out of {key}; the place where the run goes gives it its secrets (docs/deploy.md)"
                raise InputError(f"{at} looks like a secret, and a package never holds one", where=where, fix=fix)
            else:
                left_out.append(at)
    return Contents({**files, CONFIG: Path(loaded.path)}, tuple(left_out))


def _inside(beside: Path, name: str, key: str, where: str) -> tuple[Path, Path]:
    """A file or folder of `launch.files`, or the family's, and its path in the package."""
    inside = Path(os.path.normpath(name))
    if inside.is_absolute() or inside.parts[:1] == ("..",) or inside == Path("."):
        fix = "give a path below the folder that the config is in"
        raise InputError(f"{key}: {name!r} does not lie below the config's folder", where=where, fix=fix)
    if inside.parts[0] in ("distdl", CONFIG):
        raise InputError(f"{key}: {name!r} is the name of a part of every package", where=where, fix="rename it")
    if not (beside / inside).exists():
        fix = f"paths of {key} are relative to the config"
        raise InputError(f"{key}: there is no {beside / inside}", where=where, fix=fix)
    return beside / inside, inside


def _below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order, without what no run reads."""
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in SKIPPED):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)
        elif path.is_file() or path.is_symlink():
            yield path


def looks_secret(path: Path, name: Path) -> bool:
    """Whether a file holds a secret by its name in the package, a folder's name above it, or its first 64 KiB."""
    if any(fnmatch(part.lower(), pattern) for part in name.parts for pattern in SECRET_FILES):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return bool(SECRET_TEXT.search(file.read(2**16).decode("utf-8", "replace")))


def refuse_secrets(loaded: Loaded, overrides: Sequence[str] = ()) -> None:
    """Raises InputError for a secret in the YAML, in an argument or in `launch.environment`: all of them travel, and are
    shown by the target to whoever may look at a job."""
    fix = "name it where the run goes: launch.kubernetes.secret, or a variable of the machines there (docs/deploy.md)"
    problems = []
    for key in loaded.config.launch.environment:
        if SECRET_NAME.search(key) and not NOT_SECRET_NAME.search(key):
            at = loaded.origin(("launch", "environment", key))
            problems.append(Problem(f"launch.environment.{key} looks like a secret", at, fix=fix))
    for path, value in flatten(loaded.config.model_dump(mode="json")):
        if SECRET_TEXT.search(str(value)):
            at = next((loaded.origin(path[:n]) for n in range(len(path), 0, -1) if path[:n] in loaded.origins), "")
            problem = f"the value of {'.'.join(path)} holds a password or a key"
            problems.append(Problem(problem, without_value(at), fix=fix))
    text = Path(loaded.path).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        if not problems and SECRET_TEXT.search(line):
            problems.append(Problem("this line holds a password or a key", f"{loaded.path}:{number}", fix=fix))
    if not problems and any(SECRET_TEXT.search(text) for text in overrides):
        problems.append(Problem("an argument holds a password or a key", fix=fix))
    if problems:
        raise InputError(*problems)


def _refuse_size(found: Contents) -> None:
    sizes = {name: path.stat().st_size for name, path in found.files.items()}
    if sum(sizes.values()) > LIMIT_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        named = ", ".join(f"{name} ({sizes[name] / 2**20:.0f} MiB)" for name in largest)
        what = f"the package has {sum(sizes.values()) / 2**20:.0f} MiB; the largest files are {named}"
        fix = "put data on launch.folder or in an object store, where every node reads it"
        raise InputError(what, allowed=f"{LIMIT_BYTES / 2**20:.0f} MiB", fix=fix)


def _write(found: Contents, directory: Path) -> None:
    """Writes the files, readable by their owner alone, with one date for all: only what is in them counts."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)
    for name, path in sorted(found.files.items()):
        copy = directory / name
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(path, copy)
        copy.chmod(0o700 if os.access(path, os.X_OK) else 0o600)
        os.utime(copy, (EPOCH_S, EPOCH_S))


EPOCH_S = 946684800
"""2000-01-01: the date of every file of a package (zip knows none before 1980)."""


def digest(folder: Path) -> str:
    """SHA-256 over the names, modes and bytes of a package's files."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        total.update(f"{path.relative_to(folder)}\0{path.stat().st_mode & 0o777:o}\0{len(data)}\0".encode() + data)
    return total.hexdigest()


def size_text(folder: Path) -> str:
    """How much travels, for people."""
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
    return f"{len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB"
