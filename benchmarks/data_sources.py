"""What each source of tables keeps and costs, beside the format's own reader. See README.md.

    python benchmarks/data_sources.py [--gb 0.05] [--rounds 3] [--only csv,parquet] [--read-only] [--output FILE.md]

To add a source, add a `Case`. Every measurement is a process of its own with one thread; ours and the format's own reader
take turns, round by round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
COLUMNS, BLOCK_ROWS = 20, 50_000
KINDS = ("whole", "real", "flag", "text", "day", "time", "money", "vector", "category", "nested.a")
CHILD_TIMEOUT_S = 600


@dataclass(frozen=True)
class Case:
    """A format: how its file is written, by its own library where it has one, and who reads it."""

    write: Callable[[Path, Iterator[Any]], None]
    """A path and tables of pyarrow, all of one schema -> the file."""
    ours: Callable[[str], Any]
    """A path -> a `Table` (distdl/data/table/reader.py)."""
    raw: Callable[[str], Iterator[Any]]
    """A path -> record batches, from the format's own reader with one thread."""
    source: str
    """The name for `distdl data prepare`."""


# -- the cases -----------------------------------------------------------------------------------------------------------


def write_csv(path: Path, tables: Iterator[Any], delimiter: str = ",") -> None:
    import pyarrow as pa
    import pyarrow.csv as pc

    with pa.OSFile(str(path), "wb") as sink:
        for i, table in enumerate(tables):
            flat = table.flatten()
            kept = [f.name for f in flat.schema if not (pa.types.is_list(f.type) or pa.types.is_dictionary(f.type))]
            pc.write_csv(flat.select(kept), sink, pc.WriteOptions(include_header=i == 0, delimiter=delimiter))


def read_csv(path: str) -> Iterator[Any]:
    import pyarrow.csv as pc

    yield from pc.open_csv(path, read_options=pc.ReadOptions(use_threads=False))


def ours_csv(path: str) -> Any:
    from distdl.data.table.csv_table import CsvTable

    return CsvTable(path)


def write_jsonl(path: Path, tables: Iterator[Any]) -> None:
    with open(path, "w") as file:
        for table in tables:
            for row in table.to_pylist():
                file.write(json.dumps(row, default=str) + "\n")


def read_jsonl(path: str) -> Iterator[Any]:
    import pyarrow.json as pj

    yield from pj.open_json(path, read_options=pj.ReadOptions(use_threads=False, block_size=4 << 20))


def ours_jsonl(path: str) -> Any:
    from distdl.data.table.json_table import JsonTable

    return JsonTable(path, trusting=True)  # as a preparation opens it


def write_parquet(path: Path, tables: Iterator[Any]) -> None:
    import pyarrow.parquet as pq

    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


def read_parquet(path: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    yield from pq.ParquetFile(path).iter_batches(use_threads=False)


def ours_parquet(path: str) -> Any:
    from distdl.data.table.parquet_table import open_parquet

    return open_parquet(path)


def _ipc_writer(kind: str) -> Callable[[Path, Iterator[Any]], None]:
    def write(path: Path, tables: Iterator[Any]) -> None:
        import pyarrow as pa

        first = next(tables)
        make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, make(sink, first.schema) as writer:
            for table in itertools.chain([first], tables):
                for batch in table.combine_chunks().to_batches():
                    writer.write_batch(batch)

    return write


def read_arrow_file(path: str) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


def read_arrow_stream(path: str) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(path) as source, pa.ipc.open_stream(source) as reader:
        yield from reader


def ours_arrow(path: str) -> Any:
    from distdl.data.table.arrow_table import open_arrow

    return open_arrow(path)


CASES = {
    "csv": Case(write_csv, ours_csv, read_csv, "csv"),
    "jsonl": Case(write_jsonl, ours_jsonl, read_jsonl, "jsonl"),
    "parquet": Case(write_parquet, ours_parquet, read_parquet, "parquet"),
    "arrow file": Case(_ipc_writer("file"), ours_arrow, read_arrow_file, "arrow"),
    "arrow stream": Case(_ipc_writer("stream"), ours_arrow, read_arrow_stream, "arrow"),
}


# -- what is kept, and what is named -------------------------------------------------------------------------------------


def typed_tables() -> Iterator[Any]:
    """A small table of every type, with an empty value in each column."""
    import datetime
    from decimal import Decimal

    import pyarrow as pa

    day, moment = datetime.date(2026, 11, 30), datetime.datetime(2026, 11, 30, 12, 30)
    values: dict[str, tuple[list[Any], Any]] = {
        "whole": ([2**40, None, 3], pa.int64()),
        "real": ([0.1, None, -1e300], pa.float64()),
        "flag": ([True, None, False], pa.bool_()),
        "text": (["a, b", None, "ü\n"], pa.string()),
        "day": ([day, None, day], pa.date32()),
        "time": ([moment, None, moment], pa.timestamp("s")),
        "money": ([Decimal("1.10"), None, Decimal("-2.25")], pa.decimal128(10, 2)),
        "vector": ([[1.5, 2.0], None, [3.0, 4.0]], pa.list_(pa.float64())),
        "category": (["x", None, "y"], pa.dictionary(pa.int32(), pa.string())),
        "nested": ([{"a": 1}, None, {"a": 3}], pa.struct([("a", pa.int64())])),
    }
    yield pa.table({name: pa.array(of_column * 400, kind) for name, (of_column, kind) in values.items()})


def check(case: Case, folder: Path) -> tuple[str, str, str]:
    """(types that come back as they were; empty values that do; kinds of damage that are refused by the file's name)."""
    import pyarrow as pa

    from distdl.errors import InputError

    path = folder / "typed"
    case.write(path, typed_tables())
    table = case.ours(str(path))
    found = pa.Table.from_batches(table.batches(table.names)).to_pylist()[:3]
    wanted = pa.Table.from_batches(next(typed_tables()).flatten().to_batches()).to_pylist()[:3]
    alike = [name for name in KINDS if name in table.names and _same(found[0][name], wanted[0][name])]
    nulls = [name for name in KINDS if name in table.names and found[1][name] in (None, "")]
    raw, named = path.read_bytes(), []
    damages = {"cut": raw[: len(raw) // 2 + 1], "empty": b"", "other": b"\x89PNG\r\n\x1a\n" + bytes(2000)}
    for kind, content in damages.items():
        path.write_bytes(content)
        try:
            bad = case.ours(str(path))
            rows = sum(batch.num_rows for batch in bad.batches(bad.names))
            named += [f"{kind} (said)"] if getattr(bad, "notes", []) and rows else []
        except InputError as error:
            named += [kind] if "typed" in str(error) else []
    return f"{len(alike)} of {len(KINDS)}", f"{len(nulls)} of {len(KINDS)}", ", ".join(named)


def _same(found: Any, wanted: Any) -> bool:
    """Text stands for what it says."""
    if isinstance(found, str) and not isinstance(wanted, str):
        return found.lower().rstrip("0").replace("t", " ") == str(wanted).lower().rstrip("0").replace("t", " ")
    return bool(found == wanted)


# -- what it costs -------------------------------------------------------------------------------------------------------


def number_tables(size_bytes: int, path: Path) -> Iterator[Any]:
    """Tables of 20 numbers and a word, until the file at `path` is that large."""
    import numpy as np
    import pyarrow as pa

    values = np.random.default_rng(0).standard_normal((BLOCK_ROWS, COLUMNS)).round(6)
    columns = {f"c{i}": values[:, i] for i in range(COLUMNS)}
    table = pa.table({**columns, "y": [f"class {i % 7}" for i in range(BLOCK_ROWS)]})
    yield table
    while not path.exists() or path.stat().st_size < size_bytes:
        yield table


def child(name: str, who: str, path: str) -> dict[str, float]:
    """Read a file (`ours`, `raw`) or prepare it (`prepare`; `prepare2`: with two workers) in this process: rows, seconds,
    and the peak memory in MB of the largest process."""
    case, peak, done = CASES[name], {"anon": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            status = Path("/proc/self/status").read_text()
            peak["anon"] = max(peak["anon"], int(status.partition("RssAnon:")[2].split()[0]))

    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    import distdl.data.prepare
    from distdl.data.table import arrow_table, csv_table, json_table, parquet_table  # noqa: F401

    pa.set_cpu_count(1)
    threading.Thread(target=watch, daemon=True).start()
    start, cpu, rows = time.perf_counter(), time.process_time(), 0
    if who.startswith("prepare"):
        with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:
            options = {"path": path, "label": "y"}
            workers = int(who.removeprefix("prepare") or 1)
            manifest = distdl.data.prepare.prepare_dataset(case.source, f"{folder}/set", options, workers=workers)
            rows = sum(split.rows for split in manifest.splits.values())
            seconds = time.perf_counter() - start
    else:
        if who == "ours":
            table = case.ours(path)
            batches = table.batches(table.names)
        else:
            batches = case.raw(path)
        for batch in batches:
            rows += batch.num_rows
            _touch(batch)
        seconds = time.process_time() - cpu  # of one thread: whoever else works on the machine does not count
    done.set()
    high = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    high = max(high, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return {"rows": rows, "seconds": seconds, "peak_mb": high / 1024, "anon_mb": peak["anon"] / 1024}


def _touch(batch: Any) -> None:
    """Every page of every buffer once: what is only mapped has not been read."""
    import numpy as np

    for column in batch.columns:
        for buffer in column.buffers():
            if buffer is not None and buffer.size:
                np.frombuffer(buffer, np.uint8)[::4096].sum()


def measure(name: str, gb: float, rounds: int, folder: Path, prepare: bool) -> dict[str, Any]:
    """Medians over the rounds, of the file's own reader, ours, and the whole preparation by one and by two workers."""
    path = folder / "numbers"
    CASES[name].write(path, number_tables(int(gb * 1e9), path))
    turns = [("raw", "ours"), *([("prepare", "prepare2")] if prepare else [])]
    found: dict[str, list[dict[str, float]]] = {who: [] for pair in turns for who in pair}
    for i in range(rounds):
        for pair in turns:
            for who in pair[:: 1 if i % 2 else -1]:
                found[who].append(run_child(name, who, path))
    middle = {who: statistics.median(r["rows"] / r["seconds"] for r in runs) for who, runs in found.items()}
    return {
        "size_mb": path.stat().st_size / 1e6,
        **{f"{who}_rows_s": rate for who, rate in middle.items()},
        "ratio": middle["ours"] / middle["raw"],
        **({"two_workers": middle["prepare2"] / middle["prepare"]} if prepare else {}),
        **{f"{who}_peak_mb": max(r["peak_mb"] for r in runs) for who, runs in found.items()},
        **{f"{who}_anon_mb": max(r["anon_mb"] for r in runs) for who, runs in found.items()},
    }


def _shown(cost: dict[str, Any], key: str, form: str = ",.0f") -> str:
    return f"{cost[key]:{form}}" if key in cost else "not run"


def run_child(name: str, who: str, path: Path) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--child", name, who, str(path)]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S)
    if done.returncode:
        raise SystemExit(f"{name}, {who}: {done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


TITLES = (
    *("source", "types kept", "empty kept", "damage named", "file, MB", "rows/s", "of its own reader's"),
    *("peak of reading, MB (own reader)", "of preparing, MB", "prepared rows/s", "two workers", "their peak each, MB"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gb", type=float, default=0.05, help="size of the file that is read")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of cases, with commas")
    parser.add_argument("--read-only", action="store_true", help="do not prepare a data set from the file, too")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(*args.child)))
        return
    sys.path.insert(0, str(REPOSITORY))
    text = f"| {' | '.join(TITLES)} |\n" + "|---" * len(TITLES) + "|\n"
    for name in args.only.split(",") if args.only else CASES:
        with tempfile.TemporaryDirectory() as folder:
            types, nulls, damage = check(CASES[name], Path(folder))
            cost = measure(name, args.gb, args.rounds, Path(folder), not args.read_only)
        text += (
            f"| {name} | {types} | {nulls} | {damage} | {cost['size_mb']:,.0f} | {cost['ours_rows_s']:,.0f} "
            f"| {cost['ratio']:.2f} | {cost['ours_peak_mb']:,.0f} ({cost['raw_peak_mb']:,.0f}) "
            f"| {_shown(cost, 'prepare_peak_mb')} | {_shown(cost, 'prepare_rows_s')} "
            f"| {_shown(cost, 'two_workers', '.2f')} | {_shown(cost, 'prepare2_peak_mb')} |\n"
        )
        print(text.splitlines()[-1], flush=True)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
