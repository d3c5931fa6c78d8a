"""benchmarks/suite.py: what it makes of two runs' junit files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.suite import main


def junit(path: Path, seconds: float, *cases: str) -> str:
    path.write_text(f'<testsuites><testsuite name="pytest" time="{seconds}">{"".join(cases)}</testsuite></testsuites>')
    return str(path)


def case(classname: str, name: str, seconds: float, inside: str = "") -> str:
    return f'<testcase classname="{classname}" name="{name}" time="{seconds}">{inside}</testcase>'


def test_minutes_by_folder_and_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts are added up, moved files are followed, and a test that is gone or skipped is told and ends it with 1."""
    moved, stays = case("tests.test_walk", "a[x.y]", 60), case("tests.data.test_cli", "b", 30)
    twins = case("tests.cli.test_cli", "b", 6)
    before = junit(tmp_path / "before.xml", 120, moved, stays, twins)
    beside = junit(tmp_path / "1.xml", 24, case("tests.halls.test_walk", "a[x.y]", 12), twins)
    alone = junit(tmp_path / "2.xml", 12, stays, case("tests.data.test_cli", "new", 30))
    output = tmp_path / "suite.md"
    assert main(["--before", before, "--after", beside, alone, "--output", str(output)]) == 0
    text = output.read_text()
    assert "2.0 minutes before, 0.6 after: **0.30** (goal: at most 0.42)" in text
    assert "| `tests/halls` | 1 | 1.0 | 1 | 0.2 | 0.20 |" in text
    assert "| `tests/data` | 1 | 0.5 | 2 | 1.0 | 2.00 |" in text
    assert "| all | 3 | 1.6 | 4 | 1.3 | 0.81 |" in text

    skipped = junit(tmp_path / "3.xml", 9, case("tests.data.test_cli", "b", 0, "<skipped/>"), twins)
    assert main(["--before", before, "--after", skipped, "--output", str(output)]) == 1
    assert capsys.readouterr().err == "tests.test_walk::a[x.y] is gone\ntests.data.test_cli::b is skipped\n"

    failed = junit(tmp_path / "4.xml", 9, moved, stays, case("tests.cli.test_cli", "b", 6, "<failure/>"))
    assert main(["--before", before, "--after", failed, "--output", str(output)]) == 1
    assert "after: 1 tests failed" in capsys.readouterr().err
