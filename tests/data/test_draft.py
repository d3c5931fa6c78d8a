"""What ends a preparation half-way, and what is left of it then: nothing, or what the next one takes away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from distdl.data.draft import FOREIGN_S, OWNER, Draft, is_left_over
from distdl.data.manifest import Column, read_manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.write import DatasetWriter
from tests.conftest import variables

ENDLESS = """
import sys, time
import numpy as np
from distdl.data import raw
from distdl.data.generators import digits
from distdl.data.prepare import prepare_dataset

def chunks():
    while True:
        yield "train", {"x": np.zeros(10)}
        print("going", flush=True)
        time.sleep(0.05)

digits.prepare = lambda options: raw.Prepared({"x": raw.Column("float64")}, chunks())
prepare_dataset("digits", sys.argv[1], {})
"""


def endless(target: Path) -> subprocess.Popen:
    """A preparation in a process of its own, which has begun to write."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(target)],
        env=variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "going\n"
    return process


def drafts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    process = endless(tmp_path / "set")
    assert len(drafts(tmp_path)) == 1
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert (
        process.returncode == 143 and "ended by SIGTERM; nothing was written to" in error and "Traceback" not in error
    )
    assert drafts(tmp_path) == []


def test_what_a_killed_one_leaves_is_taken_away_by_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "set"
    process = endless(target)
    prepare_dataset("digits", target, {})  # beside one that lives, whose draft stays
    (alive,) = [name for name in drafts(tmp_path) if name.startswith(".set.tmp-")]
    assert capsys.readouterr().err == ""
    process.kill()
    process.communicate(timeout=60)
    (tmp_path / ".set2.tmp-12345678").mkdir()  # of another target
    prepare_dataset("digits", target, {}, overwrite=True)
    assert drafts(tmp_path) == [".set2.tmp-12345678", "set"]
    assert f"removed {tmp_path / alive}" in capsys.readouterr().err
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "test-00000.arrow", "train-00000.arrow"]


def owned(folder: Path, text: str, age_s: float = 0.0) -> Path:
    draft = folder / ".set.tmp-abcdefgh"
    draft.mkdir()
    (draft / OWNER).write_text(text)
    for path in (draft / OWNER, draft):
        os.utime(path, (time.time() - age_s,) * 2)
    return draft


@pytest.mark.parametrize(
    ("text", "age_s", "left"),
    [
        (json.dumps({"host": "elsewhere", "pid": 1}), 0, False),  # whose locks are not seen from here
        (json.dumps({"host": "elsewhere", "pid": 1}), FOREIGN_S + 60, True),
        (json.dumps({"host": os.uname().nodename, "pid": 1}), 0, True),  # nobody holds its lock
        ("", 0, False),  # a moment old: its lock is about to be taken
        ("", FOREIGN_S + 60, True),
        ("{torn", 0, True),
        ("[]", 0, False),
    ],
)
def test_whose_draft_is_left_over(tmp_path: Path, text: str, age_s: float, left: bool) -> None:
    assert is_left_over(owned(tmp_path, text, age_s)) == left


def test_a_draft_without_an_owner_goes_by_its_age(tmp_path: Path) -> None:
    draft = owned(tmp_path, "")
    (draft / OWNER).unlink()
    assert not is_left_over(draft)
    os.utime(draft, (time.time() - FOREIGN_S - 60,) * 2)
    assert is_left_over(draft)
    (draft / "train-00000.arrow").touch()  # somebody writes to it
    assert not is_left_over(draft)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Whoever can write there does not choose what is removed."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / OWNER).write_text(json.dumps({"host": os.uname().nodename}))
    (tmp_path / ".set.tmp-abcdefgh").symlink_to(tmp_path / "precious")
    Draft(tmp_path / "set").remove()
    assert (tmp_path / "precious" / OWNER).is_file()


def test_a_name_with_patterns_is_a_name(tmp_path: Path) -> None:
    other = tmp_path / ".set.tmp-abcdefgh"
    other.mkdir()
    (other / OWNER).write_text(json.dumps({"host": os.uname().nodename}))
    Draft(tmp_path / "se*").remove()
    assert other.is_dir()


def test_two_write_side_by_side(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "a", {"x": Column("int64")}, "s", {}) as writer:
        writer.write("train", {"x": np.arange(3)})
        prepare_dataset("digits", tmp_path / "b", {})
    assert read_manifest(tmp_path / "a").splits["train"].rows == 3 and drafts(tmp_path) == ["a", "b"]
