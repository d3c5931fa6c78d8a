"""`benchmarks/gpu_first.sh`, the first ten minutes on GPUs, rehearsed on two processes of this CPU with small sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import variables
from tests.forks import REPOSITORY

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


@pytest.mark.slow
def test_the_first_ten_minutes_are_rehearsed(tmp_path: Path) -> None:
    checks = re.findall(r"^check (\S+)", SCRIPT.read_text(), re.MULTILINE)
    assert {"doctor", "mlp", "torch", "zero1", "zero2", "zero3", "compile", "resume", "same-bits", "stopped"} <= {
        *checks
    }
    code, table, printed = rehearsed(tmp_path / "out", timeout_s=3600)
    assert code == 0, printed
    assert re.findall(r"^ok +(\S+),", table, re.MULTILINE) == checks
    assert "the same bits" in (tmp_path / "out" / "same-bits.log").read_text()
