"""`distdl data`: output and exit codes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from distdl.cli.data import add_parser
from distdl.errors import DistdlError


def run(*arguments: object) -> int:
    """The exit code of `distdl data ...`, as the main command gives it."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["data", *map(str, arguments)])
    try:
        return args.run(args)
    except DistdlError as error:
        print(error)
        return error.exit_code


def test_prepare_inspect_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "digits"
    assert run("prepare", "digits", target, "test_fraction=0.1") == 0
    assert "train 1,617 rows" in capsys.readouterr().out
    assert run("inspect", target) == 0
    assert all(word in capsys.readouterr().out for word in ["image"])
    assert run("inspect", target, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["splits"]["test"]["rows"] == 180 and facts["columns"]["image"]["shape"] == [1, 8, 8]
    assert facts["columns"]["label"]["values"] == "0 to 9"
    assert len(facts["fingerprint"]) == 64 and facts["info"]["classes"][9] == "9"
    assert run("verify", target) == 0
    shard = target / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    capsys.readouterr()
    assert run("verify", target) == 1
    assert "train-00000.arrow" in capsys.readouterr().out
    assert run("prepare", "digits", target) == 2
    assert "--overwrite" in capsys.readouterr().out
    assert run("prepare", "digits", target, "--overwrite") == 0 and run("verify", target) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "digist", "T"], "did you mean 'digits'"),
        (["prepare", "digits", "T", "fraction"], "key=value"),
        (["prepare", "digits", "T", "test_fractoin=1"], "did you mean 'test_fraction'"),
        (["prepare", "csv", "T"], "needs the option path"),
        (["inspect", "T"], "distdl data prepare"),
        (["verify", "T"], "distdl data prepare"),
    ],
)
def test_bad_input_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list, message: str
) -> None:
    assert run(*[tmp_path / "t" if a == "T" else a for a in arguments]) == 2
    assert message in capsys.readouterr().out and not (tmp_path / "t").exists()
