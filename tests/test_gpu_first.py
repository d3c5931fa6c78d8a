"""`benchmarks/gpu_first.sh`, the first ten minutes on GPUs, rehearsed on two processes of this CPU with small sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distdl.config.load import load_config
from distdl.train.survey import survey
from tests.conftest import variables
from tests.forks import REPOSITORY
from tests.small import prepared

SCRIPT = REPOSITORY / "benchmarks" / "gpu_first.sh"


def rehearsed(out: Path, *only: str, timeout_s: float) -> tuple[int, str, str]:
    """(exit code, the table, what was printed) of these checks, or of all."""
    here = {
        "SMALL": "1",
        "WORKERS": "2",
        "PATIENCE": "5",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    here |= {"ONLY": " ".join(only)} if only else {}
    done = subprocess.run(
        ["bash", str(SCRIPT), str(out)], env=variables() | here, capture_output=True, text=True, timeout=timeout_s
    )
    return done.returncode, (out / "table.txt").read_text(), done.stdout + done.stderr


def test_what_fails_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    """Without data and without a command line, every check that trains fails."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "distdl").write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    (tmp_path / "bin" / "distdl").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out")],
        env=variables() | {"SMALL": "1", "WORKERS": "2", "ONLY": "mlp zero1 zero2", "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stdout.count("no such thing") == 3
    assert re.findall(r"FAILED +(\S+), exit code 3", (tmp_path / "out" / "table.txt").read_text()) == [
        *("mlp", "zero1", "zero2"),
    ]


CHECKS = re.findall(r"^check (\S+)", SCRIPT.read_text(), re.MULTILINE)
"""But for `step`, which wants a GPU."""
FEW = ("mlp", "zero2", "resume", "stopped")
"""One of each kind: a worker alone, several, a run that goes on, a rank that stops."""


@pytest.mark.slow
def test_the_first_ten_minutes_are_rehearsed(tmp_path: Path) -> None:
    """In part; of the other checks `test_what_every_check_trains_can_be_planned` says that what they ask for can be run."""
    code, table, printed = rehearsed(tmp_path / "out", *FEW, timeout_s=3600)
    assert code == 0, printed
    assert re.findall(r"^ok +(\S+),", table, re.MULTILINE) == list(FEW)


@pytest.mark.slow
@pytest.mark.long
def test_all_of_the_first_ten_minutes_are_rehearsed(tmp_path: Path) -> None:
    code, table, printed = rehearsed(tmp_path / "out", timeout_s=3600)
    assert code == 0, printed
    assert re.findall(r"^ok +(\S+),", table, re.MULTILINE) == CHECKS
    assert "the same bits" in (tmp_path / "out" / "same-bits.log").read_text()


@pytest.mark.slow
def test_what_every_check_trains_can_be_planned(tmp_path: Path, small_data: Path) -> None:
    """With a command line that only notes what it is asked for."""
    told = tmp_path / "told"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "distdl").write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >> {told}\necho >> {told}\n")
    (tmp_path / "bin" / "distdl").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    of_script = {"SMALL": "1", "WORKERS": "2", "PATH": path}
    words = ["bash", str(SCRIPT), str(tmp_path / "out")]
    subprocess.run(words, env=variables() | of_script, capture_output=True, timeout=120)
    assert {"doctor", "mlp", "torch", "zero1", "zero2", "zero3", "compile", "resume", "same-bits", "stopped"} <= {
        *CHECKS
    }
    asked = [line.rstrip("\0").split("\0") for line in told.read_text().splitlines()]
    assert asked.pop(0) == ["doctor"]
    names = set()
    for command, config, *rest in asked:
        assert command == "train"
        overrides = [word for word in rest if not word.startswith("--")]
        recipe = load_config(config, overrides).config.data.prepare
        assert recipe is not None
        data = prepared({"source": recipe.source, "options": recipe.options}, small_data)
        plan = survey(load_config(config, [*overrides, f"data.path={data}"]).config)
        names.add(f"{plan.config['name']} {plan.layout} {plan.world}")
    assert names == {
        *("mlp torch 1", "torch-1 torch 1", "torch torch 2", "zero1 zero1 2", "zero2 zero2 2", "zero3 zero3 2"),
        *("zero2 zero1 2", "bits zero2 2", "bits-again zero2 2", "compile zero2 2", "stopped zero1 2"),
    }
