"""The spool: what is written is read, whatever happens to the process or the disk."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distdl.track.spool import SpoolReader, SpoolWriter, count_events


def write_all(path: Path, *events: tuple[str, dict]) -> None:
    writer = SpoolWriter(path)
    for kind, fields in events:
        writer.write(kind, **fields)
    writer.close()


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    before = time.time()
    write_all(
        path,
        ("metrics", {"step": 3, "values": {"loss": 0.1, "größe": 2}}),
        ("end", {"status": "FAILED", "error": "line\nbreak", "summary": {"a": [1, 2.5, None, True]}}),
    )
    first, second = SpoolReader(path).poll()
    assert first["values"] == {"loss": 0.1, "größe": 2} and first["step"] == 3 and first["kind"] == "metrics"
    assert before <= first["t"] <= time.time()
    assert second["error"] == "line\nbreak" and second["summary"] == {"a": [1, 2.5, None, True]}


def test_non_finite_numbers_survive_in_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_all(path, ("metrics", {"step": 0, "values": {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5}}))

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    values = SpoolReader(path).poll()[0]["values"]
    assert math.isnan(values["a"]) and values["b"] == math.inf and values["c"] == -math.inf and values["d"] == 1.5


def test_scalars_of_numpy_become_numbers_and_odd_values_text(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "events.jsonl"
    write_all(
        path,
        ("metrics", {"step": 0, "values": {"a": numpy.float32(0.5), "nan": numpy.float32("nan")}}),
        ("message", {"level": "info", "text": Path("x"), "many": numpy.zeros(3), (1, 2).__repr__(): object}),
    )
    first, second = SpoolReader(path).poll()
    assert first["values"]["a"] == 0.5 and math.isnan(first["values"]["nan"])
    assert second["text"] == "x"


def test_a_dict_may_be_reused_after_write(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writer, values = SpoolWriter(path, flush_interval_s=60), {"loss": 1.0}
    writer.write("metrics", step=0, values=values)
    values["loss"] = 2.0
    writer.close()
    assert SpoolReader(path).poll()[0]["values"] == {"loss": 1.0}


def test_the_thread_writes_without_being_asked(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writer, reader = SpoolWriter(path, flush_interval_s=0.02), SpoolReader(path)
    writer.write("phase", name="training", text="")
    deadline = time.monotonic() + 10
    while not (events := reader.poll()) and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.close()
    assert [event["kind"] for event in events] == ["phase"]


def test_a_torn_line_of_a_crash_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_all(path, ("restart", {"step": 1}))
    with open(path, "ab") as file:
        file.write(b'{"t": 1.0, "kind": "metr')
    reader = SpoolReader(path)
    assert [event["step"] for event in reader.poll()] == [1]
    assert reader.poll() == []  # half a line is not read until it is whole
    write_all(path, ("restart", {"step": 2}))
    assert [event["step"] for event in reader.poll()] == [2]
    assert reader.skipped == 1 and reader.offset == path.stat().st_size


def test_garbage_and_missing_files_are_no_errors(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = SpoolReader(path)
    assert reader.poll() == [] and count_events(path) == 0
    path.write_bytes(b'\xff\xfe\n[1]\n{"kind": 3}\n\n{"t": 1.0, "kind": "x"}\r\n{"t": 2.0, "kind": "y"}\n')
    assert [event["kind"] for event in reader.poll()] == ["x", "y"]
    assert reader.skipped == 3


def test_offsets_point_behind_each_event_in_small_reads(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_all(path, *[("restart", {"step": step, "text": "x" * 200}) for step in range(20)])
    reader, found = SpoolReader(path), []
    while part := reader.poll_with_offsets(max_bytes=300):
        found += part
    assert [event["step"] for _, event in found] == list(range(20))
    for offset, event in found[:-1]:
        assert SpoolReader(path, offset).poll()[0]["step"] == event["step"] + 1
    assert count_events(path, found[9][0]) == 10


def test_a_refusing_disk_never_raises_and_loses_nothing_when_it_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "events.jsonl"
    writer = SpoolWriter(path, flush_interval_s=60)
    writer.write("restart", step=0)
    assert writer.flush()
    real_write, room = os.write, [25]  # the disk takes 25 bytes more, in the middle of a line

    def full_disk(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken = real_write(fd, data[: room[0]])
        room[0] -= taken
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk)
        writer.write("restart", step=1)
        writer.write("restart", step=2)
        assert not writer.flush() and not writer.flush()
        assert writer.error is not None and writer.error.errno == 28
    writer.write("restart", step=3)
    assert writer.flush() and writer.error is None
    writer.close()
    assert [event["step"] for event in SpoolReader(path).poll()] == [0, 1, 2, 3]
    assert capfd.readouterr().err.count("No space left") == 1


def test_a_disk_that_refuses_for_long_keeps_the_newest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = SpoolWriter(tmp_path / "file" / "events.jsonl", flush_interval_s=60, max_pending=10)
    for step in range(8):
        writer.write("restart", step=step)
    assert not writer.flush()
    for step in range(8, 15):
        writer.write("restart", step=step)
    assert not writer.flush() and writer.dropped == 5
    (tmp_path / "file").unlink()
    assert writer.flush()
    writer.close()
    assert [event["step"] for event in SpoolReader(writer.path).poll()] == list(range(5, 15))


def test_the_end_of_the_process_writes_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = (
        "import sys; from distdl.track.spool import SpoolWriter\n"
        "SpoolWriter(sys.argv[1], flush_interval_s=60).write('restart', step=7); raise SystemExit(3)"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONPATH": str(root)}, timeout=60
    )
    assert result.returncode == 3
    assert [event["step"] for event in SpoolReader(path).poll()] == [7]


def test_training_does_not_import_mlflow() -> None:
    code = (
        "import sys, distdl.track.spool, distdl.track.run, distdl.track.client, distdl.cli.ui, distdl.cli.display\n"
        "raise SystemExit(any(name.split('.')[0] in ('mlflow', 'torch', 'ray', 'rich') for name in sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}, timeout=60).returncode
        == 0
    )
