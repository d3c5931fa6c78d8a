"""What every command keeps to: JSON and nothing else where asked, colours where wanted, the same by either name, quick."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distdl.cli.display import Display, print_summary
from distdl.cli.main import COMMANDS
from distdl.data.change.split import split_dataset
from tests.conftest import REPOSITORY, Result, python

Command = Callable[..., Result]
DOC = (REPOSITORY / "docs" / "command_line.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, and a run of it."""
    made = tmp_path_factory.mktemp("work")
    values = {
        "name": "small",
        "model": {"family": "mlp", "inputs": [1, 8, 8], "hidden": [8]},
        "data": {"path": digits, "threads": 0},
        "train": {"global_batch": 60, "steps": 4},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "parallel": {"engine": "torch"},
        "track": {"enabled": False},
        "runtime": {"kind": "local", "workers": 1},
    }
    (made / "small.yaml").write_text(yaml.safe_dump(values))
    (made / "wrong.yaml").write_text(yaml.safe_dump({**values, "nmae": "x", "train": {"steps": "many"}}))
    split_dataset(digits, str(made / "other"), {"of": "all", "test_fraction": "0.5"})
    (made / "table.csv").write_text("a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(40)))
    return made


@pytest.fixture
def here(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    if not (folder / "runs").exists():
        assert command("train", "small.yaml").code == 0
    return folder


# -- JSON --------------------------------------------------------------------------------------------------------------


def documented() -> Iterator[tuple[str, set[str], set[str]]]:
    """(command, its keys, those that are not always there) of the table in docs/command_line.md."""
    for name, keys in re.findall(r"^\| `distdl ([^`]+)` \|[^|]*\| ([^|]*) \|$", DOC, re.MULTILINE):
        yield name, set(re.findall(r"`(\w+)`", keys)), set(re.findall(r"\(`(\w+)`\)", keys))


ARGUMENTS = {
    "train": ("train", "small.yaml"),
    "plan": ("plan", "small.yaml"),
    "evaluate": ("evaluate", "small"),
    "runs list": ("runs", "list"),
    "runs show": ("runs", "show", "small"),
    "runs compare": ("runs", "compare", "small", "runs/small"),
    "runs best": ("runs", "best"),
    "runs note": ("runs", "note", "small"),
    "evaluate --data": ("evaluate", "small", "--data", "DIGITS"),
    "families": ("families",),
    "families NAME": ("families", "mlp"),
    "config show": ("config", "show", "small.yaml"),
    "config check": ("config", "check", "small.yaml"),
    "data sources": ("data", "sources"),
    "init": ("init", "table.csv", "--output", "of_table.yaml"),
    "init --list": ("init", "--list"),
    "data inspect": ("data", "inspect", "DIGITS"),
    "data verify": ("data", "verify", "DIGITS"),
    "data fetch --list": ("data", "fetch", "--list"),
    "data split": ("data", "split", "DIGITS", "again", "of=all"),
    "data merge": ("data", "merge", "DIGITS", "other", "both"),
    "data convert": ("data", "convert", "DIGITS", "digits.parquet"),
    "checkpoint inspect": ("checkpoint", "inspect", "runs/small"),
    "checkpoint verify": ("checkpoint", "verify", "runs/small"),
    "checkpoint diff": ("checkpoint", "diff", "runs/small", "runs/small"),
    "doctor": ("doctor",),
    "parity": ("parity", "small.yaml", "--worlds", "1", "--layouts", "torch,zero1"),
}
ELSEWHERE = {"jobs list", "jobs status", "k8s status", "data fetch NAME", "tune", "export"}
"""Whose JSON tests/runtime/ looks at, beside the targets that they ask; or tests/data/test_fetch.py, beside a server;
or tests/tune/test_tune.py, on Ray; or tests/export/."""


def test_every_documented_command_is_tested() -> None:
    assert {name for name, _, _ in documented()} == ARGUMENTS.keys() | ELSEWHERE


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "parity" else ()) for name in ARGUMENTS]
)
def test_json_is_all_that_is_printed(name: str, here: Path, digits: str, command: Command) -> None:
    arguments = [digits if word == "DIGITS" else word for word in ARGUMENTS[name]]
    code, out, err = command(*arguments, "--json")
    assert code == 0 or name == "doctor", out + err
    found = json.loads(out)
    keys, sometimes = next((keys, sometimes) for other, keys, sometimes in documented() if other == name)
    for row in found if isinstance(found, list) else [found]:
        assert keys - sometimes <= row.keys(), name
    assert found and (not sometimes or name in ("families", "checkpoint inspect"))


def test_json_of_a_run_that_is_trained_tells_the_rest_on_stderr(here: Path, command: Command) -> None:
    code, out, err = command("train", "small.yaml", "--fresh", "--json")
    found = json.loads(out)
    assert code == 0 and found["trained"] and found["steps"] == 4 and Path(found["folder"]).is_dir()
    assert "checkpoint at step 4" in err
    again = json.loads(command("train", "small.yaml", "--json").stdout)
    assert not again["trained"] and again["metrics"] == found["metrics"]


def test_json_of_mistakes_and_damage(here: Path, digits: str, command: Command, tmp_path: Path) -> None:
    code, out, err = command("config", "check", "wrong.yaml", "--json")
    found = json.loads(out)
    assert (code, err, found["valid"]) == (2, "", False)
    assert {problem["what"].split()[0] for problem in found["problems"]} >= {"nmae", "train.steps"}
    assert all(problem["where"].startswith("wrong.yaml") for problem in found["problems"])

    shutil.copytree(digits, tmp_path / "digits")
    shard = next((tmp_path / "digits").rglob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    code, out, _ = command("data", "verify", tmp_path / "digits", "--json")
    assert code == 1 and not json.loads(out)["sound"] and json.loads(out)["problems"]

    shutil.copytree(here / "runs" / "small", tmp_path / "run")
    file = next((tmp_path / "run").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    code, out, _ = command("checkpoint", "verify", tmp_path / "run", "--json")
    assert code == 1 and [row["sound"] for row in json.loads(out)].count(False) == 1


# -- colours -----------------------------------------------------------------------------------------------------------

COLOUR = re.compile(r"\x1b\[[0-9;]*\b(3[0-8]|4[0-8]|9[0-7])[;m]")


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False), ({}, False)],
)
def test_colours_are_where_they_are_wanted(
    variables: dict[str, str], coloured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The progress bar is what we colour; a table has bold words at most, which NO_COLOR leaves."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **variables}.items():
        monkeypatch.setenv(name, value)
    output = io.StringIO()
    with Display(tmp_path, 100, "a run", plain=False, file=output):
        pass
    assert bool(COLOUR.search(output.getvalue())) is coloured


def test_a_pipe_gets_plain_text(here: Path, digits: str, command: Command, capsys: Any) -> None:
    print_summary({"metrics": {"accuracy": 0.5}, "steps": 3})
    printed = capsys.readouterr().out
    for arguments in (("data", "inspect", digits), ("checkpoint", "inspect", "runs/small", "--tensors")):
        printed += command(*arguments).stdout
    assert "accuracy" in printed and "fingerprint" in printed and "\x1b" not in printed


# -- by either name, and quickly ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_python_m_distdl_is_distdl() -> None:
    for arguments in (("--help",), ("jobs", "--help"), ("plan",)):
        module = python("-m", "distdl", *arguments, cwd=REPOSITORY)
        script = python(
            "-c", "import sys; from distdl.cli.main import main; sys.exit(main())", *arguments, cwd=REPOSITORY
        )
        assert module == script
        assert (module.stdout + module.stderr).startswith("usage: distdl ")


def test_a_list_of_families_waits_for_nothing_heavy() -> None:
    """Seven seconds of CPU, when it built every family; now no torch, and no schema of what it does not read."""
    code = """\
import sys
from distdl.cli.main import main
main(["families"])
heavy = ("torch", "rich", "yaml", "distdl.config.schema")
print(*sorted(name for name in sys.modules if name in heavy))
"""
    lines = python("-c", code, cwd=REPOSITORY).stdout.splitlines()
    assert lines[-2:] == ["distdl families NAME lists the fields of its model: section", ""] and len(lines) > 150


def test_a_command_imports_no_other_one() -> None:
    code = """\
import sys
from distdl.cli.main import main
try: main(["evaluate", "--help"])
except SystemExit: pass
print(*sorted(name.removeprefix("distdl.cli.") for name in sys.modules if name.startswith("distdl.cli.")))
"""
    assert python("-c", code, cwd=REPOSITORY).stdout.splitlines()[-1] == "common evaluate main"


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., set[str]]:
    """What bash offers after some words, in a folder with one run and one config."""
    made = tmp_path_factory.mktemp("completion")
    (made / "runs" / "first-run").mkdir(parents=True)
    (made / "small.yaml").touch()
    (made / "table.csv").touch()
    (made / "script.sh").write_text(python("-m", "distdl", "completion", "bash", cwd=made).stdout)

    def offered(*words: str) -> set[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        script = f"source script.sh; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _shtab_distdl"
        lines = f'{script}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", lines], cwd=made, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        return set(done.stdout.split())

    return offered


def test_tab_completes_what_there_is(completed: Callable[..., set[str]]) -> None:
    assert completed("distdl", "") >= set(COMMANDS)
    assert completed("distdl", "jobs", "s") == {"status", "stop"}
    assert completed("distdl", "train", "--f") == {"--fresh"}
    assert completed("distdl", "checkpoint", "convert", "a", "b", "--to", "h") == {"huggingface"}
    assert completed("distdl", "families", "lenet") == {"lenet1989", "lenet5"}
    assert completed("distdl", "evaluate", "f") == {"first-run"} == completed("distdl", "train", "--resume", "f")
    assert completed("distdl", "train", "sm") == {"small.yaml"}
    assert (
        completed("distdl", "data", "prepare", "sin") == {"sinusoids"} == completed("distdl", "data", "sources", "sin")
    )
    assert completed("distdl", "data", "pre") == {"prepare"} and completed("distdl", "init", "tab") == {"table.csv"}
    assert completed("distdl", "init", "--example", "quick") == {"quickstart"}
    assert completed("distdl", "init", "--family", "lenet5") == {"lenet5"}


def test_the_script_for_zsh(command: Command) -> None:
    code, out, _ = command("completion", "zsh")
    assert code == 0 and out.startswith("#compdef distdl") and "_distdl_runs" in out and "lenet1989" in out
    if zsh := shutil.which("zsh"):
        subprocess.run([zsh, "-n"], input=out, text=True, check=True, timeout=60)


def test_completion_imports_no_torch() -> None:
    code = "import sys; from distdl.cli.main import main; main(['completion', 'bash']); print('torch' in sys.modules)"
    assert python("-c", code, cwd=REPOSITORY).stdout.endswith("False\n")


# -- what may have been meant ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, fix",
    [
        (["trian", "small.yaml"], "did you mean 'train'?"),
        (["jobs", "lst"], "did you mean 'list'?"),
        (["train", "small.yaml", "--epochs", "3"], "train.epochs=3"),
        (["train", "small.yaml", "--lr=0.1"], "optimizer.lr=0.1"),
        (["train", "small.yaml", "--train.epochs", "3"], "train.epochs=3"),
        (["train", "--config", "small.yaml"], "CONFIG is given without a flag: distdl train small.yaml"),
        (["plan", "small.yaml", "--global-batch", "8"], "train.global_batch=8"),
        (["train", "small.yaml", "--fersh"], "did you mean '--fresh'?"),
        (["ui", "--prot", "5"], "did you mean '--port'?"),
    ],
)
def test_a_wrong_word_is_told_with_what_was_meant(arguments: list[str], fix: str, here: Path, command: Command) -> None:
    code, out, err = command(*arguments)
    assert code == 2 and not out and f"fix: {fix}" in err.replace("a key of the config is given as key=value: ", ""), (
        err
    )
