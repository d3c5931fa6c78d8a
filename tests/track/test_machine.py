"""Each node's load, sampled by one of its workers into a spool of the node's own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from distdl.config.schema import Track
from distdl.track.machine import node_name, sampling
from distdl.track.spool import SpoolReader


def wait_for_samples(path: Path, count: int) -> list[dict[str, object]]:
    end = time.monotonic() + 60
    while len(found := SpoolReader(path).poll()) < count:
        assert time.monotonic() < end, "no samples in time"
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_the_first_worker_of_a_node_samples_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    path = tmp_path / "system" / f"{node_name()}.jsonl"
    with sampling(tmp_path, Track(system_metrics_interval_s=0.05)):
        found = wait_for_samples(path, 2)
    first = found[0]
    assert first["kind"] == "system" and isinstance(first["step"], int)
    assert {"cpu_percent", "memory_percent"} <= first["values"].keys()  # type: ignore[attr-defined]
    count = len(SpoolReader(path).poll())
    with sampling(tmp_path, Track(system_metrics_interval_s=0.05)):  # the run is continued: its seconds go on
        later = wait_for_samples(path, count + 1)[-1]
    assert later["step"] >= first["step"] and later["t"] > first["t"]  # type: ignore[operator]


@pytest.mark.parametrize(
    "rank, track", [("1", Track(system_metrics_interval_s=0.01)), ("0", Track(system_metrics_interval_s=0))]
)
def test_the_others_do_not_and_nobody_where_it_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, track: Track
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    with sampling(tmp_path, track):
        time.sleep(0.1)
    assert not (tmp_path / "system").exists()
