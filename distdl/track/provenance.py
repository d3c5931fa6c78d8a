"""Where a run came from, in a form that MLflow takes: params, a dozen tags and texts, without secrets.

Nothing here imports what it reports on: what versions were installed is read from metadata, so no torch or ray is loaded.
"""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from distdl.config.family import FamilyName

PARAM_VALUE_CHARS = 6000
"""What MLflow takes for one param."""
TAG_VALUE_CHARS = 5000
KEY_CHARS = 250
PARAM_SECTIONS = ("model", "optimizer", "schedule", "train", "data")
"""Sections of the config that are told with their defaults; of the others, what was set. The whole is `config.json`."""
OLD_TAGS = re.compile(
    r"plan\.|version\.|distdl\.(version|hostname|git_commit|git_dirty|dataset_fingerprint|last_\w+_step|uploader)$"
)
"""Tags of earlier versions, taken from a run that is continued: the note, the inputs and the files have them now."""
TEXT_ARTIFACTS = ("config.yaml", "config.json", "plan.json", "environment.txt")

_SECRET_NAME = (
    r"(?:password|passwd|secret(?:_key)?|api_key|access_key|credentials?"
    r"|(?:auth|access|api|hf|bearer)_?token)"
)
_SECRET_KEY = re.compile(rf"(?:^|[._\-/]){_SECRET_NAME}$", re.IGNORECASE)
_SECRET_LINE = re.compile(rf'(?im)^(\s*(?:-\s+)?["\']?[\w.\-]*{_SECRET_NAME}["\']?\s*[:=]\s*)[^\s{{\[].*?(,?)$')
_URL_SECRET = re.compile(r"(\w+://)[^/\s@\"']+@")


def redact(text: str) -> str:
    """The text without passwords: the user part of URLs and the values of keys like `api_key`."""
    return _SECRET_LINE.sub(r"\1'***'\2", _URL_SECRET.sub(r"\1***@", text))


def artifact_text(path: Path) -> str:
    """The text of a file of the run, without secrets. May raise OSError."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json":
        tree = read_json(path)
        if tree is not None:
            return json.dumps(_redact_tree(tree), indent=2) + "\n"
    return redact(text)


def _redact_tree(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {
            key: "***" if _SECRET_KEY.search(str(key)) and isinstance(value, (str, int)) else _redact_tree(value)
            for key, value in tree.items()
        }
    if isinstance(tree, list):
        return [_redact_tree(item) for item in tree]
    return _URL_SECRET.sub(r"\1***@", tree) if isinstance(tree, str) else tree


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {'a.b.c': leaf}; a list of plain values is one leaf."""
    if isinstance(tree, dict) and tree:
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(item, (dict, list)) for item in tree):
        items = [(str(index), value) for index, value in enumerate(tree)]
    else:
        return {prefix: tree} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat


def told(config: Any, named: Any = None) -> dict[str, Any]:
    """Of a config, the leaves that are worth a param: those that were set, and what decides how the model learns.

    `named`: what the YAML says, where a value that is also the default was set all the same.
    """
    from distdl.config.schema import Config
    from distdl.config.section import Section

    said, chosen = flatten(named), {}
    for section, values in config.items() if isinstance(config, dict) else ():
        field = Config.model_fields.get(section)
        default = field.default if field else None
        defaults = flatten({section: default.model_dump(mode="json") if isinstance(default, Section) else default})
        for key, value in flatten({section: values}).items():
            told_anyway = section in PARAM_SECTIONS and value not in (None, [], {})
            if (
                field is None
                or key in said
                or told_anyway
                or (value not in (None, [], {}) and value != defaults.get(key))
            ):
                chosen[key] = value
    return chosen


def config_params(config: Any) -> dict[str, str]:
    """The config as MLflow params: flattened, without secrets, long values cut with a note."""
    params = {}
    for key, value in flatten(config).items():
        text = value if isinstance(value, str) else json.dumps(value)
        text = "***" if _SECRET_KEY.search(key) and value is not None else redact(text)
        params[key[:KEY_CHARS]] = cut(text, PARAM_VALUE_CHARS)
    return params


def cut(text: str, limit_chars: int) -> str:
    """The text, or its beginning and a note of how long it was."""
    if len(text) <= limit_chars:
        return text
    note = f" ... [cut: {len(text):,} characters in all]"
    return text[: limit_chars - len(note)] + note


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def gather_tags(run_dir: Path, source_dir: Path | None) -> dict[str, str]:
    """Tags that say where the run came from. `source_dir` is the folder of the config, looked at for its git commit."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": "distdl train",
        "distdl.run_dir": f"{run_dir.parent.name}/{run_dir.name}",  # relative: no path of this machine leaves it
    }
    tags.update(_git_tags(source_dir))
    tags.update(_family_tags(run_dir))
    return {key[:KEY_CHARS]: cut(redact(value), TAG_VALUE_CHARS) for key, value in tags.items()}


def environment_text() -> str:
    """The installed distributions, one `name==version` a line, as `pip freeze` would list them."""
    found = {(d.metadata["Name"] or "").strip(): d.version for d in importlib.metadata.distributions()}
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found, key=str.lower) if name)


def _user() -> str:
    """Who trains: as $DISTDL_OWNER says, which stands for a job sent elsewhere, else who is logged in."""
    if said := os.environ.get("DISTDL_OWNER", "").strip():
        return said
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return str(os.getuid())


def _family_tags(run_dir: Path) -> dict[str, str]:
    """The content of a family of the user's own, which no version of distdl tells."""
    named = FamilyName(str(((read_json(run_dir / "config.json") or {}).get("model") or {}).get("family"))).file
    file = run_dir / named.name if named else None
    if file is None or not file.is_file():
        return {}
    return {"distdl.family_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _git_tags(source_dir: Path | None) -> dict[str, str]:
    if source_dir is None:
        return {}
    commit = _git(source_dir, "rev-parse", "HEAD")
    if not commit:
        return {}
    changes = _git(source_dir, "status", "--porcelain", "--untracked-files=no")
    dirty = "unknown" if changes is None else str(bool(changes)).lower()
    return {"mlflow.source.git.commit": commit, "distdl.git_dirty": dirty}


def _git(folder: Path, *arguments: str) -> str | None:
    # fsmonitor off: a repository's own config must not make us start a program
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=10.0,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
