"""What a submission is checked by: the commands of style, types, documents and tests, and that all of them are run."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY, Result, python

STYLE = ["ruff check .", "ruff format --check .", "mypy"]
DOCUMENTS = "python docs/site/build.py dist/site"


def run_with_stand_ins(folder: Path, *command: str, fails: str = "") -> tuple[Result, list[str]]:
    """Runs a command in the checkout, with programs in place of the environment's that do nothing but note how they were
    called; the one whose call is `fails` fails. -> How the command ended, and the calls in their order."""
    calls = folder / "calls"
    for name in ("ruff", "mypy", "python"):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> "{calls}"\n[ "{fails}" != "$(tail -1 "{calls}")" ]\n')
        program.chmod(0o755)
    for stamp in (".installed-run", ".installed-docs", ".installed"):  # newer than pyproject.toml: nothing to install
        (folder / stamp).touch()
    # Without what an outer make says to an inner one: `make test VENV=...` would take precedence over ours.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    variables["VENV"] = str(folder)
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=60)
    return Result(done.returncode, done.stdout, done.stderr), calls.read_text(encoding="utf-8").splitlines()


def parts_of_the_tests(calls: list[str]) -> list[str]:
    """What both calls of pytest leave out; the second is given every file that has tests to be run alone, and no other."""
    pattern = re.compile(r"python -m pytest ([\w/. ]+) -m (.*?) and (not )?alone")
    (beside, left_out, apart), (alone, also, together) = (pattern.findall(call)[0] for call in calls)
    assert beside == "tests" and apart and not together
    marked = [
        path for path in (REPOSITORY / "tests").rglob("test_*.py") if re.search(r"mark\.alone\b", path.read_text())
    ]
    assert set(alone.split()) == {str(path.relative_to(REPOSITORY)) for path in marked}
    return [left_out, also]


def test_a_submission_is_checked_for_style_types_documents_and_by_all_tests(tmp_path: Path) -> None:
    result, calls = run_with_stand_ins(tmp_path, ".ci/run")
    assert result.code == 0, result.stderr
    assert calls[:-2] == [*STYLE, DOCUMENTS]
    assert parts_of_the_tests(calls[-2:]) == ["not chaos and not long"] * 2


@pytest.mark.parametrize("fails", [*STYLE, DOCUMENTS])
def test_a_submission_fails_where_a_check_does(tmp_path: Path, fails: str) -> None:
    result, calls = run_with_stand_ins(tmp_path, ".ci/run", fails=fails)
    assert result.code != 0 and calls[-1] == fails


@pytest.mark.parametrize("part", [-2, -1])
def test_both_parts_of_the_tests_are_run_and_must_pass(tmp_path: Path, part: int) -> None:
    for name in ("sound", "fails"):
        (tmp_path / name).mkdir()
    calls = run_with_stand_ins(tmp_path / "sound", "make", "test")[1]
    result, found = run_with_stand_ins(tmp_path / "fails", "make", "test", fails=calls[part])
    assert result.code != 0 and found == calls and len(calls) == 2


def test_make_check_begins_with_what_a_submission_is_checked_for(tmp_path: Path) -> None:
    result, calls = run_with_stand_ins(tmp_path, "make", "check")
    assert result.code == 0, result.stderr
    assert calls[:-2] == STYLE
    assert parts_of_the_tests(calls[-2:]) == ["not slow and not chaos and not long"] * 2


def test_the_hooks_of_pre_commit_are_the_style_of_a_submission() -> None:
    [hooks] = [repo["hooks"] for repo in yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]]
    entries = [hook["entry"].removeprefix(".venv/bin/").replace("--force-exclude", "").split() for hook in hooks]
    assert entries == [command.removesuffix(" .").split() for command in STYLE]


@pytest.mark.slow
def test_code_that_uses_distdl_is_checked_against_its_types(tmp_path: Path) -> None:
    """The family of docs/custom_family.md in somebody's own folder: right as it stands, and told of what is not."""
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*,numpy.*,pydantic.*]\nfollow_imports = skip\n")
    document = (REPOSITORY / "docs" / "custom_family.md").read_text(encoding="utf-8")
    family = next(block for block in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "(Learner)" in block)

    wrong = family.replace("Column.label(10,", 'Column.label("ten",').replace("-> tuple[Tensor, Metrics]", "-> str")
    (tmp_path / "gated.py").write_text(family)
    (tmp_path / "mistaken.py").write_text(wrong)
    result = python("-m", "mypy", "--no-color-output", "gated.py", "mistaken.py", cwd=tmp_path)
    assert 'Argument 1 to "label" of "Column" has incompatible type "str"; expected "int"' in result.stdout
    assert re.search(r'Return type "str" of "loss" incompatible with return type ".*" in supertype', result.stdout)
    assert result.code == 1 and "gated.py" not in result.stdout, result.stdout + result.stderr


def test_an_ignore_is_needed_and_named_and_torch_has_types(tmp_path: Path) -> None:
    """By the project's own settings and, where `make style` has just filled it, from its cache: torch takes seconds."""
    lines = (
        "import torch",
        "count: int = torch.zeros(1).numel()  # type: ignore[assignment]",
        "total: int = torch.zeros(1)",
        "mean: int = 0.5  # type: ignore",
    )
    (tmp_path / "file.py").write_text("\n".join(lines) + "\n")
    result = python("-m", "mypy", "--no-color-output", tmp_path / "file.py", cwd=REPOSITORY)
    found = re.findall(r":(\d+): error: .*\[([\w-]+)\]$", result.stdout, re.MULTILINE)
    assert sorted(found) == [("2", "unused-ignore"), ("3", "assignment"), ("4", "ignore-without-code")], result.stdout
