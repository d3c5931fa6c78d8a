"""`distdl predict` of series: a table of forecasts, in the numbers and at the moments of the file."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from distdl.data.prepare import prepare_dataset
from distdl.data.series.moments import moment
from tests.cli.test_predict import trained
from tests.conftest import Result

Command = Callable[..., Result]
HEAD = "@attribute series_name string\n@attribute start_timestamp date\n"
HEAD += "@frequency monthly\n@horizon 4\n@missing true\n@data\n"
WAVE = 5 + np.sin(np.arange(60) / 4)
SERIES = {"low": WAVE, "high": 1e4 * WAVE}
MODEL = {"family": "gru", "task": "values", "inputs": 1, "steps": 20, "units": 8, "embedding": 0, "layers": 1}


def line(name: str, values: list[str]) -> str:
    return f"{name}:1979-01-31 00-00-00:{','.join(values)}\n"


def texts(values: np.ndarray) -> list[str]:
    return [f"{value:.6f}" for value in values]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "two.tsf").write_text(HEAD + "".join(line(name, texts(v)) for name, v in SERIES.items()))
        prepare_dataset("tsf", "two", {"path": "two.tsf", "steps": "20", "lookback": "20", "normalise": "series"})
        trained("two", MODEL, folder / "two", train={"global_batch": 4, "steps": 10})
        (folder / "wave.csv").write_text("\n".join(["height", *texts(WAVE)]) + "\n")
        options = {"path": "wave.csv", "columns": "height", "steps": "20", "standardise": "true", "train_values": "30"}
        prepare_dataset("series", "wave", options)
        trained("wave", MODEL, folder / "wave", train={"global_batch": 4, "steps": 10})
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def rows_of(done: Result, code: int = 0) -> list[dict[str, str]]:
    assert done.code == code, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def test_each_series_is_forecast_as_far_as_its_file_says(command: Command) -> None:
    rows = rows_of(command("predict", "two", "two.tsf"))
    assert [(row["series"], row["step"]) for row in rows] == [(n, str(i)) for n in SERIES for i in (1, 2, 3, 4)]
    # the first value is of January 1979, the 61st of January 1984; February has no 31st
    assert [row["time"] for row in rows[:2]] == ["1984-01-31 00:00:00", "1984-02-29 00:00:00"]
    sampled = command("sample", "two", "--data", "two.tsf", "--length", 4)
    more = np.ravel([json.loads(text)["more"] for text in sampled.stdout.splitlines()])
    np.testing.assert_allclose([float(row["forecast"]) for row in rows], more, rtol=1e-6)
    low, high = np.array([float(row["forecast"]) for row in rows]).reshape(2, 4)
    assert (low > 3).all() and (low < 7).all()
    np.testing.assert_allclose(high, 1e4 * low, rtol=1e-3)


def test_a_horizon_of_ones_own_and_series_of_a_text(command: Command) -> None:
    assert [row["step"] for row in rows_of(command("predict", "two", "two.tsf", "--horizon", 2))] == ["1", "2"] * 2
    rows = rows_of(command("predict", "wave", "wave.csv", "--horizon", 3))
    assert [(row["series"], row["step"], row["time"]) for row in rows] == [("wave.csv", str(i), "") for i in (1, 2, 3)]
    assert 3 < float(rows[0]["forecast"]) < 7
    (one,) = rows_of(command("predict", "wave", "wave.csv"))
    assert one["next[0]"] and float(one["next[0]"]) == pytest.approx(float(rows[0]["forecast"]))
    whole = rows_of(command("predict", "wave", "wave", "--horizon", 2))
    assert whole[:2] and whole[0]["series"] == whole[1]["series"] == "row 0" and 3 < float(whole[0]["forecast"]) < 7
    done = command("predict", "two", "two", "--horizon", 1)
    assert "does not say how each was scaled" in done.stderr and abs(float(rows_of(done)[0]["forecast"])) < 4


def test_several_files_are_told_apart(command: Command, place: Path) -> None:
    (place / "one.tsf").write_text(HEAD + line("other", texts(WAVE)))
    rows = rows_of(command("predict", "two", "two.tsf", "one.tsf", "--horizon", 1))
    assert [(row["file"], row["series"]) for row in rows] == [
        ("two.tsf", "low"),
        ("two.tsf", "high"),
        ("one.tsf", "other"),
    ]


def test_a_series_that_cannot_be_gone_on_with_keeps_its_place_and_is_named(command: Command, place: Path) -> None:
    gap = line("gap", [*texts(WAVE[:30]), "?", *texts(WAVE[31:])])
    content = HEAD + line("low", texts(WAVE)) + gap + line("short", texts(WAVE[:7])) + line("last", texts(WAVE))
    (place / "bad.tsf").write_text(content)
    done = command("predict", "two", "bad.tsf", "-o", "bad.csv")
    assert done.code == 1 and "bad.tsf:8" in done.stderr and "1 of the series' 60 values are missing" in done.stderr
    assert "note: 1 series have fewer values than the 20 that the model learned from at a time" in done.stderr
    assert "3 of 4 rows are answered" in done.stderr
    rows = list(csv.DictReader(io.StringIO((place / "bad.csv").read_text())))
    assert [row["step"] for row in rows] == [*"1234", "", *"1234", *"1234"]
    assert rows[4]["forecast"] == rows[4]["time"] == "" and rows[4]["series"] == "bad.tsf:8"
    assert rows[:4] == [{**row, "series": "low"} for row in rows[9:]], "the others are forecast as without it"
    assert all(row["forecast"] for row in rows[5:9]) and rows[5]["time"] == "1979-08-31 00:00:00"
    assert len((place / "bad.csv.bad.jsonl").read_text().splitlines()) == 1


def test_standard_input_is_called_so(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    content = HEAD + line("low", texts(WAVE)) + line("gap", ["?", *texts(WAVE)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content.encode()))))  # type: ignore[arg-type]
    done = command("predict", "two", "-")
    rows = rows_of(done, 1)
    assert [row["series"] for row in rows] == [*["low"] * 4, "stdin:8"] and "set aside: stdin:8: " in done.stderr


def test_mistakes_are_told_in_words(command: Command, place: Path, digits: str) -> None:
    trained("still", {"family": "mlp", "inputs": [1, 8, 8], "hidden": []}, Path(digits), steps=1)
    wrong = {
        ("two", "two.tsf", "--horizon", "0"): "--horizon is 0",
        ("still", digits, "--horizon", "2"): "--horizon 2 is about models of series",
        ("two", "two.tsf", "--workers", "2"): "series are forecast by this process alone",
        ("two", "wave.csv"): "learned from a .tsf file, and this is wave.csv",
        ("wave", "two.tsf", "--horizon", "2"): "learned from a text or CSV of numbers",
    }
    for args, said in wrong.items():
        done = command("predict", *args)
        assert done.code == 2 and said in done.stderr and "Traceback" not in done.stderr, (args, done.stderr)


def test_moments_by_frequency() -> None:
    start = datetime(2020, 1, 31, 12)
    found = {
        "10_minutes": "2020-01-31 12:30:00",
        "half_hourly": "2020-01-31 13:30:00",
        "hourly": "2020-01-31 15:00:00",
        "daily": "2020-02-03 12:00:00",
        "weekly": "2020-02-21 12:00:00",
        "monthly": "2020-04-30 12:00:00",
        "quarterly": "2020-10-31 12:00:00",
        "yearly": "2023-01-31 12:00:00",
        "4_seconds": "2020-01-31 12:00:12",
        "now and then": "None",
        "half_monthly": "None",
    }
    assert {frequency: str(moment(start, frequency, 3)) for frequency in found} == found
    assert moment(start, "yearly", 9000) is None
