"""What a folder that came from elsewhere may not do: run its code unasked, get credentials, have a link followed."""

from __future__ import annotations

import ast
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distdl import trust
from distdl.config.family import _is_plain
from distdl.config.load import load_config
from distdl.errors import InputError
from distdl.run.folder import RunFolder, open_run, saved_config
from distdl.track import uploader
from distdl.track.run import load, update
from distdl.track.store import artifacts_elsewhere
from distdl.track.uploader import upload_pending
from tests.config.test_custom_family import EXAMPLE
from tests.conftest import Result
from tests.small import small_config

Command = Callable[..., Result]
RAN = "__import__('pathlib').Path('canary').write_text('ran')"
"""What a stranger's code would do."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's own memory, empty; and the folder that the test works in."""
    monkeypatch.setenv("DISTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(trust.VARIABLE, "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(trust, "_said_yes", False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def stranger(digits: str, code: str, family: str = "./gated.py", **changes: Any) -> Path:
    """A run's folder as it was downloaded, with its family's file."""
    folder = Path("downloaded")
    folder.mkdir()
    values = small_config("mlp", digits, "", **changes) | {"model": {"family": family, "hidden": 8}, "name": "gated"}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "config.yaml").write_text(json.dumps(values))  # JSON is YAML
    (folder / "gated.py").write_text(code)
    return folder


# -- code --------------------------------------------------------------------------------------------------------------

HOSTILE = EXAMPLE.replace("class Config:\n", f"class Config:\n    {RAN}\n") + f"\n{RAN}\n"


@pytest.mark.parametrize(
    "words",
    [
        ("config", "check", "downloaded/config.yaml"),
        ("config", "show", "downloaded/config.yaml"),
        ("plan", "downloaded"),
        ("plan", "downloaded/config.yaml"),
        ("train", "--resume", "downloaded"),
        ("train", "downloaded/config.yaml"),
        ("evaluate", "downloaded"),
        ("parity", "downloaded/config.yaml"),
        ("families", "downloaded/gated.py"),
    ],
    ids=" ".join,
)
def test_no_command_runs_the_code_of_a_strangers_run(words: tuple[str, ...], digits: str, command: Command) -> None:
    stranger(digits, HOSTILE)
    told = command(*words)
    assert told.code == 2 and "gated.py is code that came with the run in" in told.stderr and "--trust" in told.stderr
    assert not Path("canary").exists() and not Path("runs").exists()


def test_plain_fields_are_checked_and_shown_and_the_rest_waits_for_a_yes(digits: str, command: Command) -> None:
    folder = stranger(digits, f"{EXAMPLE}\n{RAN}\n")
    assert command("config", "check", "downloaded/config.yaml").code == 0
    shown = command("config", "show", "downloaded/config.yaml", "model.dropout=0.3")
    assert shown.code == 0 and "model.dropout" in shown.stdout
    assert command("plan", "downloaded").code == 2 and not Path("canary").exists()
    assert command("plan", "downloaded", "--trust").code == 0 and Path("canary").exists()
    trust._said_yes = False  # another process
    assert command("plan", "downloaded").code == 0  # said once
    (folder / "gated.py").write_text(f"{EXAMPLE}\n{RAN}  # another content\n")
    assert command("plan", "downloaded").code == 2


def test_a_link_to_the_code_is_no_way_around(digits: str, command: Command) -> None:
    folder = stranger(digits, HOSTILE)
    Path("mine.yaml").symlink_to(folder / "config.yaml")
    Path("gated.py").symlink_to(folder / "gated.py")
    assert command("config", "check", "mine.yaml").code == 2 and not Path("canary").exists()


@pytest.mark.parametrize("family", ["../gated.py", "{here}/gated.py", "elsewhere.gated"])
def test_a_runs_config_names_no_code_outside_its_folder(
    family: str, digits: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger(digits, EXAMPLE, family=family.format(here=os.getcwd()))
    Path("elsewhere").mkdir()
    for path in (Path("gated.py"), Path("elsewhere/gated.py")):
        path.write_text(f"{EXAMPLE}\n{RAN}\n")
    monkeypatch.syspath_prepend(os.getcwd())
    told = command("plan", "downloaded")
    assert told.code == 2 and ("outside the run's folder" in told.stderr or "only a run's config names" in told.stderr)
    assert not Path("canary").exists() and "elsewhere" not in sys.modules


@pytest.mark.slow
def test_ones_own_family_needs_no_yes_and_a_worker_has_its_drivers(
    digits: str, command: Command, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    odd = EXAMPLE.replace("class Gated(", "    def __post_init__(self):\n        pass\n\n\nclass Gated(")
    Path("gated.py").write_text(odd)
    values = small_config("mlp", digits, "", train__steps=1) | {"name": "gated", "model": {"family": "./gated.py"}}
    Path("gated.yaml").write_text(json.dumps(values))
    assert command("train", "gated.yaml", "--plain").code == 0
    assert oct((home / "trusted.json").stat().st_mode & 0o777) == "0o600"
    inherited = os.environ[trust.VARIABLE]
    monkeypatch.setenv(trust.VARIABLE, "")
    assert command("train", "--resume", "runs/gated", "--plain", "train.steps=2").code == 0
    (home / "trusted.json").unlink()  # another machine
    monkeypatch.setenv(trust.VARIABLE, "")
    assert "--trust" in command("train", "--resume", "runs/gated", "--plain", "train.steps=3").stderr
    monkeypatch.setenv(trust.VARIABLE, inherited)
    assert saved_config(RunFolder(Path("runs/gated"))).family == "gated"
    monkeypatch.setenv(trust.VARIABLE, "")
    Path("gated.py").write_text(f"{odd}\n")  # the config goes on with the file beside it: the run's copy is not asked
    assert command("train", "gated.yaml", "--plain", "train.steps=3").code == 0


@pytest.mark.parametrize(
    "field",
    [
        "x: int = print()",
        "x: int = [].append",
        "x: 'int' = 3",
        "x: tuple['int', ...] = ()",
        "x: Annotated['int', 3] = 3",
        "Literal: Any = tuple\n    y: Literal['int'] = ()",
        "_x: int = 3",
        "x: int = 9**9",
        "x: int = [y for y in (3,)]",
        "x: str = f'{3}'",
        "x: int = Field(default_factory=lambda: 3)",
        "x: int = (y := 3)",
        "x = 3",
        "def f(self): pass",
        "import os",
        "pass\n    3 + 3",
    ],
)
def test_a_config_that_could_run_something_is_not_plain(field: str) -> None:
    for text, plain in ((f"@dataclass(frozen=True)\nclass Config:\n    {field}\n", False), (EXAMPLE, True)):
        node = next(n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == "Config")
        assert _is_plain(node) is plain


# -- credentials -------------------------------------------------------------------------------------------------------

THEIRS = "http://tracker.example:5790"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stores that an uploader would have been started for."""
    uris: list[str] = []

    class Ended:
        def wait(self, timeout_s: float) -> int:
            return 0

    def spawn(run_dir: Path, *_: str) -> Any:
        info = load(run_dir)
        uris.append(info.tracking_uri if info else "")
        return Ended()

    monkeypatch.setattr(uploader, "spawn", spawn)
    return uris


@pytest.mark.parametrize("theirs", [THEIRS, "sqlite:////var/lib/other.db", "postgresql://db.example/mlflow"])
def test_nothing_is_sent_to_a_store_that_only_a_runs_files_name(
    theirs: str, sent: list[str], digits: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stranger(digits, EXAMPLE)
    update(folder, tracking_uri=theirs, experiment="x", run_name="x")
    told = command("ui", "--sync", "downloaded")
    assert told.code == 2 and not sent
    assert trust.server(theirs) in told.stderr and f"--uri {theirs}" in told.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mine.example")
    assert command("ui", "--sync", "downloaded").code == 2 and not sent
    monkeypatch.setenv("MLFLOW_TRACKING_URI", theirs)
    assert command("ui", "--sync", "downloaded").code == 0 and sent == [theirs]


def test_the_store_that_the_user_names_gets_it(sent: list[str], digits: str, command: Command) -> None:
    folder = stranger(digits, EXAMPLE)
    update(folder, tracking_uri=THEIRS, experiment="x", run_name="x")
    assert command("ui", "--sync", "downloaded", "--uri", "https://mine.example/mlflow").code == 0
    assert sent == ["https://mine.example/mlflow"]
    assert command("ui", "--sync", "downloaded").code == 0 and len(sent) == 2  # it is theirs from now on
    update(folder, tracking_uri="http://mine.example/mlflow")  # in the clear: another place
    assert command("ui", "--sync", "downloaded").code == 2 and len(sent) == 2
    update(folder, tracking_uri=f"sqlite:///{os.getcwd()}/mlflow.db")  # the store beside the run
    upload_pending(folder)
    assert len(sent) == 3
    assert command("ui", "--uri", THEIRS).code == 2


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--resume", "downloaded"), ("downloaded/config.yaml",)], ids=["resume", "yaml"])
def test_a_strangers_config_names_no_server_for_the_user(
    words: tuple[str, ...], digits: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stranger(digits, EXAMPLE, track__uri=THEIRS, track__enabled=True)
    before = (folder / "config.json").read_bytes()
    told = command("train", *words, "--trust", "--plain")
    assert told.code == 2 and trust.server(THEIRS) in told.stderr and f"track.uri={THEIRS}" in told.stderr
    assert (folder / "config.json").read_bytes() == before and len(list(folder.iterdir())) == 3
    assert not Path("runs").exists() and not trust.is_configured(THEIRS)
    path = load_config("downloaded/config.yaml", ["track.enabled=false"]).path
    assert command("train", path, "--trust", "--plain", "track.enabled=false", "train.steps=1").code == 0


SECRETS = [(key, "https://me:hunter2@mine.example/x") for key in ("track.uri", "data.path", "runtime.address")]
SECRETS += [("track.uri", f"postgresql://mine.example/x?user=me&{key}=hunter2") for key in ("password", "TOKEN")]


@pytest.mark.parametrize(("key", "secret"), SECRETS)
def test_a_secret_is_refused_before_anything_is_written(key: str, secret: str, digits: str, command: Command) -> None:
    Path("a.yaml").write_text(json.dumps(small_config("mlp", digits, "")))
    kind = "runtime.kind=ray" if key == "runtime.address" else "seed=3"
    words = (kind, f"{key}={secret}")
    for action in (("train",), ("config", "check"), ("plan",)):
        told = command(*action, "a.yaml", *words)
        assert told.code == 2 and f"argument '{key}=…': the value of {key} holds a password or a key" in told.stderr
        assert "hunter2" not in told.stderr + told.stdout
    assert [path.name for path in Path().iterdir()] == ["a.yaml"]


def test_a_run_of_the_users_own_remembers_their_server(digits: str) -> None:
    from distdl.driver import check_server

    Path("a.yaml").write_text(json.dumps(small_config("mlp", digits, "", track__enabled=True, track__uri=THEIRS)))
    config = load_config("a.yaml").config
    check_server(config, Path("a.yaml"), [])
    run = open_run(config, "a.yaml")
    check_server(saved_config(run), run.path, [])  # a resume asks nothing
    with pytest.raises(InputError, match="which you have not named yourself"):
        other = saved_config(run, ["track.uri=http://other.example"])
        check_server(other, run.path, [])


def test_a_database_does_not_choose_where_files_go() -> None:
    local, server = "sqlite:////runs/mlflow.db", "https://mine.example"
    assert artifacts_elsewhere(local, "file:///runs/mlartifacts/1") == artifacts_elsewhere(local, "/runs/x") == ""
    assert artifacts_elsewhere(local, f"{THEIRS}/api/2.0/mlflow-artifacts") == "http://tracker.example"
    assert artifacts_elsewhere(local, "s3://bucket/x") == "s3://bucket"
    assert artifacts_elsewhere(server, "s3://bucket/x") == ""  # a server of the user's own may


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["events.jsonl", "config.yaml", "attempts"])
def test_a_link_out_of_a_run_is_not_followed(
    name: str, digits: str, command: Command, sent: list[str], tmp_path: Path
) -> None:
    folder = stranger(digits, EXAMPLE)
    update(folder, tracking_uri=f"sqlite:///{os.getcwd()}/mlflow.db", experiment="x", run_name="x")
    private = tmp_path / "private"
    if name == "attempts":
        private.mkdir()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(private)  # it need not exist yet
    for words in (
        ("ui", "--sync", "downloaded"),
        ("train", "--resume", "downloaded", "--trust"),
        ("plan", "downloaded"),
    ):
        told = command(*words)
        assert told.code == 2 and f"{name} is a link to {private}" in told.stderr
    assert not sent and (not private.exists() or not list(private.iterdir()))


def test_checkpoints_may_lie_on_another_disk_but_not_in_another_run(digits: str, tmp_path: Path) -> None:
    folder = stranger(digits, EXAMPLE)
    (tmp_path / "disk").mkdir()
    (folder / "checkpoints").symlink_to(tmp_path / "disk")
    trust.refuse_links(folder)
    (tmp_path / "disk" / "config.json").write_text('{"model": {}}')
    with pytest.raises(InputError, match="checkpoints is a link to"):
        trust.refuse_links(folder)


@pytest.mark.parametrize(("answer", "runs"), [("y\n", True), ("\n", False), ("", False)])
def test_a_person_at_the_terminal_is_asked_once(
    answer: str, runs: bool, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    code, told = stranger(digits, EXAMPLE) / "gated.py", Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", told)
    if not runs:
        with pytest.raises(InputError, match="--trust"):
            trust.allow(code)
    else:
        trust.allow(code)
        trust.allow(code)
    assert told.getvalue().count("run it? [y/N]") == 1 and trust.known(code) is runs
