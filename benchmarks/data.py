"""Shuffled reading: ours, today's build, raw NumPy and Arrow, and the peers' readers, interleaved. See README.md.

    python benchmarks/data.py [--rounds 5] [--base COMMIT] [--only WORD ...] [--output benchmarks/results/data.md]

Two workloads: 200,000 pictures of 28 x 28 bytes with a label, 256 to a batch, and 48,828 sequences of 1,024 tokens
(uint16), 8 to a batch. Each contender reads the same rows, which it wrote in its own format before, as torch tensors in an
order that it shuffles as well as it can, in a process of its own that does nothing else; round by round all take turns.
`--base` adds the reader of another commit. A figure is the median over the rounds; seconds are of the wall clock, and `CPU`
counts the processor's own, which other work on the machine disturbs less. A peer that is not installed is left out and
named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # run by path; the package may be another commit's, which the environment names first
    sys.path.append(str(Path(__file__).parent.parent))

PICTURES, SEQUENCES, CONTEXT = 200_000, 48_828, 1024
BATCH = {"pictures": 256, "tokens": 8}
ROWS = {"pictures": PICTURES, "tokens": SEQUENCES}
SECONDS = 2.0
"""That each contender reads in a round, after a first batch."""

Reader = Callable[[Path, str], Iterable[Any]]
"""Folder and workload -> batches without end."""
READERS: dict[str, Reader] = {}
WRITERS: dict[str, Callable[[Path, str], None]] = {}
WRITES = {"distdl, one thread": "distdl", "distdl, NumPy": "distdl", "before": "distdl", "before, one thread": "distdl"}
"""Contender -> whose files it reads, where not its own."""


def rows(workload: str) -> dict[str, np.ndarray]:
    """The rows, the same each time."""
    rng = np.random.default_rng(0)
    if workload == "pictures":
        return {"image": rng.integers(0, 256, (PICTURES, 28, 28), np.uint8), "label": np.arange(PICTURES)}
    return {"tokens": rng.integers(0, 50_257, (SEQUENCES, CONTEXT), dtype=np.uint16)}


def each_row(workload: str) -> Iterator[dict[str, Any]]:
    columns = rows(workload)
    for i in range(ROWS[workload]):
        yield {name: values[i] for name, values in columns.items()}


def permuted(workload: str) -> Iterator[np.ndarray]:
    """Row numbers of batches, an epoch's permutation after another."""
    rng, size = np.random.default_rng(1), BATCH[workload]
    while True:
        order = rng.permutation(ROWS[workload])
        yield from (order[i : i + size] for i in range(0, len(order) - size + 1, size))


# -- distdl ----------------------------------------------------------------------------------------------------------------


def write_distdl(folder: Path, workload: str) -> None:
    from distdl.data.manifest import Column
    from distdl.data.write import DatasetWriter

    columns = rows(workload)
    described = {name: Column(str(values.dtype), values.shape[1:]) for name, values in columns.items()}
    with DatasetWriter(folder / "set", described, "benchmark", {}) as writer:
        writer.write("train", columns)


WRITERS["distdl"] = write_distdl


def distdl_reader(threads: int, native: bool = True) -> Reader:
    def read(folder: Path, workload: str) -> Iterable[Any]:
        if not native:
            os.environ["DISTDL_NATIVE"] = "0"
        from distdl.data.read import Dataset
        from distdl.data.source import BatchSource

        size = BATCH[workload]
        return BatchSource(
            Dataset(folder / "set", "train"),
            seed=0,
            global_batch=size,
            micro_batch=size,
            accumulate=1,
            rank=0,
            world=1,
            threads=threads,
        )

    return read


READERS |= {
    "distdl": distdl_reader(0),
    "distdl, one thread": distdl_reader(1),
    "distdl, NumPy": distdl_reader(0, native=False),
    "before": distdl_reader(0),
    "before, one thread": distdl_reader(1),
}

# -- raw -------------------------------------------------------------------------------------------------------------------


def write_raw(folder: Path, workload: str) -> None:
    for name, values in rows(workload).items():
        np.save(folder / f"{name}.npy", values)


def read_raw(folder: Path, workload: str) -> Iterable[Any]:
    import torch

    columns = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    for ids in permuted(workload):
        yield {name: torch.from_numpy(np.asarray(values[ids])) for name, values in columns.items()}


WRITERS["NumPy memory map"], READERS["NumPy memory map"] = write_raw, read_raw


def read_torch(folder: Path, workload: str, loader: Any = None) -> Iterable[Any]:
    import torch
    from torch.utils.data import DataLoader, Dataset

    columns = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return ROWS[workload]

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {n: torch.from_numpy(np.array(v[i])) if v.ndim > 1 else int(v[i]) for n, v in columns.items()}

    made = (loader or DataLoader)(Rows(), batch_size=BATCH[workload], shuffle=True)
    while True:
        yield from made


READERS["torch DataLoader"] = read_torch
WRITES["torch DataLoader"] = "NumPy memory map"


def read_stateful(folder: Path, workload: str) -> Iterable[Any]:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return read_torch(folder, workload, StatefulDataLoader)


READERS["torchdata StatefulDataLoader"] = read_stateful
WRITES["torchdata StatefulDataLoader"] = "NumPy memory map"


def write_arrow(folder: Path, workload: str) -> None:
    import pyarrow as pa

    columns = rows(workload)
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(v.reshape(-1)), v[0].size) if v.ndim > 1 else pa.array(v)
        for name, v in columns.items()
    }
    table = pa.table(arrays)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=8192)


def read_arrow(folder: Path, workload: str) -> Iterable[Any]:
    import pyarrow as pa
    import torch

    table = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow"))).read_all()
    for ids in permuted(workload):
        taken = {name: column.combine_chunks() for name, column in zip(table.column_names, table.take(ids).columns)}
        yield {
            name: torch.from_numpy(np.array(column.flatten() if column.type.num_fields else column))
            for name, column in taken.items()
        }


WRITERS["Arrow Table.take"], READERS["Arrow Table.take"] = write_arrow, read_arrow

# -- peers -----------------------------------------------------------------------------------------------------------------


def write_hf(folder: Path, workload: str) -> None:
    import datasets

    features = {
        "pictures": {"image": datasets.Array2D((28, 28), "uint8"), "label": datasets.Value("int64")},
        "tokens": {"tokens": datasets.List(datasets.Value("uint16"), length=CONTEXT)},
    }[workload]
    made = datasets.Dataset.from_generator(
        each_row,
        gen_kwargs={"workload": workload},
        features=datasets.Features(features),
        cache_dir=str(folder / "made"),
    )
    made.save_to_disk(str(folder / "set"))


def read_hf(folder: Path, workload: str) -> Iterable[Any]:
    import datasets

    found = datasets.load_from_disk(str(folder / "set")).with_format("torch")
    for ids in permuted(workload):
        yield found[ids]


WRITERS["Hugging Face datasets"], READERS["Hugging Face datasets"] = write_hf, read_hf


def write_mds(folder: Path, workload: str) -> None:
    from streaming import MDSWriter

    columns = {
        "pictures": {"image": "ndarray:uint8:28,28", "label": "int"},
        "tokens": {"tokens": "ndarray:uint16:1024"},
    }
    with MDSWriter(out=str(folder / "set"), columns=columns[workload]) as writer:
        for row in each_row(workload):
            writer.write({name: int(v) if v.ndim == 0 else v for name, v in row.items()})


def read_mds(folder: Path, workload: str) -> Iterable[Any]:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    size = BATCH[workload]
    found = StreamingDataset(local=str(folder / "set"), shuffle=True, batch_size=size)
    loader = DataLoader(found, batch_size=size)
    while True:
        yield from loader


WRITERS["mosaicml-streaming"], READERS["mosaicml-streaming"] = write_mds, read_mds

_held: dict[str, dict[str, np.ndarray]] = {}


def _row(workload: str, i: int) -> Any:
    import torch

    if workload not in _held:
        _held[workload] = rows(workload)
    columns = _held[workload]
    if workload == "tokens":
        return torch.from_numpy(columns["tokens"][i])
    return {"image": columns["image"][i], "label": int(columns["label"][i])}


def write_litdata(folder: Path, workload: str) -> None:
    from functools import partial

    import litdata

    more = {"item_loader": litdata.TokensLoader(block_size=CONTEXT)} if workload == "tokens" else {}
    inputs = list(range(ROWS[workload]))
    litdata.optimize(
        fn=partial(_row, workload),
        inputs=inputs,
        output_dir=str(folder / "set"),
        chunk_bytes="64MB",
        num_workers=1,
        **more,
    )


def read_litdata(folder: Path, workload: str) -> Iterable[Any]:
    import litdata

    more = {"item_loader": litdata.TokensLoader(block_size=CONTEXT)} if workload == "tokens" else {}
    found = litdata.StreamingDataset(str(folder / "set"), shuffle=True, **more)
    loader = litdata.StreamingDataLoader(found, batch_size=BATCH[workload])
    while True:
        yield from loader


WRITERS["litdata"], READERS["litdata"] = write_litdata, read_litdata


def write_wds(folder: Path, workload: str) -> None:
    import webdataset

    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxsize=64 << 20, maxcount=1 << 30, verbose=0) as writer:
        for i, row in enumerate(each_row(workload)):
            parts = {"cls" if v.ndim == 0 else "npy": int(v) if v.ndim == 0 else v for v in row.values()}
            writer.write({"__key__": f"{i:08d}", **parts})


def read_wds(folder: Path, workload: str) -> Iterable[Any]:
    import webdataset

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    names = ("npy", "cls") if workload == "pictures" else ("npy",)
    found = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).decode().to_tuple(*names)
    batches = found.batched(BATCH[workload])
    while True:
        yield from batches


WRITERS["WebDataset"], READERS["WebDataset"] = write_wds, read_wds


def read_grain(folder: Path, workload: str) -> Iterable[Any]:
    import grain

    columns = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}

    class Rows:
        def __len__(self) -> int:
            return ROWS[workload]

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {name: np.asarray(values[i]) for name, values in columns.items()}

    found = grain.MapDataset.source(Rows()).seed(0).shuffle().repeat().batch(BATCH[workload])
    return found.to_iter_dataset(grain.ReadOptions(num_threads=0))


READERS["Grain"] = read_grain
WRITES["Grain"] = "NumPy memory map"

# -- measuring -------------------------------------------------------------------------------------------------------------


def one(name: str, folder: Path, workload: str) -> dict[str, float]:
    """Reads for SECONDS: samples a second, of the wall clock and of the processor; seconds to the first batch; the peak of
    memory that is no file's, in MB."""
    import torch

    torch.set_num_threads(1)
    begin = time.perf_counter()
    batches = iter(READERS[name](folder, workload))
    next(batches)
    first = time.perf_counter() - begin
    count, begin, used = 0, time.perf_counter(), _cpu()
    while time.perf_counter() - begin < SECONDS or count < 20:
        for _ in range(10):
            next(batches)
        count += 10
    wall, busy = time.perf_counter() - begin, _cpu() - used
    samples = count * BATCH[workload]
    private = sum(
        int(line.split()[1]) for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "Anonymous" in line
    )
    return {"samples_per_s": samples / wall, "per_cpu_s": samples / busy, "first_s": first, "memory_mb": private / 1024}


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def call(*words: str, package: Path | None = None) -> str:
    """This file again, in a process of its own."""
    package = package or Path(__file__).parent.parent
    variables = {
        **os.environ,
        "PYTHONPATH": str(package),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, *words], env=variables, capture_output=True, text=True, timeout=1800
    )
    if done.returncode:
        raise RuntimeError(
            done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        )
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base", help="a commit of this repository to compare with")
    parser.add_argument("--only", nargs="+", default=[""], help="contenders whose name has one of these words")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        WRITERS[args.write[0]](Path(args.write[1]), args.write[2])
        return
    if args.read:
        print(json.dumps(one(args.read[0], Path(args.read[1]), args.read[2])), flush=True)
        os._exit(0)  # some leave threads behind
    text = compared(args)
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


def compared(args: argparse.Namespace) -> str:
    from benchmarks.startup import checkout

    names = [n for n in READERS if any(w in n for w in args.only) and (args.base or not n.startswith("before"))]
    failed: dict[str, str] = {}
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    sizes: dict[tuple[str, str], int] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="distdl-data-") as place, contextlib.ExitStack() as stack:
        base = stack.enter_context(checkout(args.base, Path(place) / "base")) if args.base else None
        for name in names:
            for workload in BATCH:
                owner = WRITES.get(name, name)
                folder = Path(place) / owner.replace(" ", "_") / workload
                if not folder.exists() and name not in failed:
                    folder.mkdir(parents=True)
                    try:
                        call("--write", owner, str(folder), workload)
                    except RuntimeError as error:
                        failed[name] = str(error)
                sizes[name, workload] = bytes_in(folder)
        for turn in range(args.rounds):
            for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                for workload in BATCH if name not in failed else ():
                    folder = Path(place) / WRITES.get(name, name).replace(" ", "_") / workload
                    try:
                        told = call(
                            "--read", name, str(folder), workload, package=base if name.startswith("before") else None
                        )
                    except RuntimeError as error:
                        failed[name] = str(error)
                        break
                    found.setdefault((name, workload), []).append(json.loads(told))
            print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
    command = " ".join(
        ["python benchmarks/data.py", f"--rounds {args.rounds}", *(["--base", args.base] if args.base else [])]
    )
    lines = ["# Reading", "", f"`{command}`: medians, on {os.cpu_count()} cores whose load was {load:.1f} before.", ""]
    for workload in BATCH:
        lines += table(workload, [n for n in names if (n, workload) in found], found, sizes)
    lines += [f"Left out: {name}: {why}\n" for name, why in failed.items()]
    return "\n".join(lines)


def table(
    workload: str,
    names: list[str],
    found: dict[tuple[str, str], list[dict[str, float]]],
    sizes: dict[tuple[str, str], int],
) -> list[str]:
    def median(name: str, key: str) -> float:
        return statistics.median(told[key] for told in found[name, workload])

    floor = "NumPy memory map"
    per = {key: median(floor, key) if floor in names else float("nan") for key in ("samples_per_s", "per_cpu_s")}
    size = BATCH[workload]
    kind = {"pictures": "pictures of 28 x 28 bytes", "tokens": "sequences of 1,024 tokens"}[workload]
    what = f"{ROWS[workload]:,} {kind}, {size} to a batch"
    lines = [
        f"{what}:",
        "",
        "| | samples/s | of NumPy's map | samples/s of CPU | of NumPy's map | first batch, s | memory, MB | on disk, MB |",
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in sorted(names, key=lambda n: -median(n, "samples_per_s")):
        wall, busy = median(name, "samples_per_s"), median(name, "per_cpu_s")
        cells = [f"{wall:,.0f}", f"{wall / per['samples_per_s']:.2f}", f"{busy:,.0f}", f"{busy / per['per_cpu_s']:.2f}"]
        cells += [
            f"{median(name, 'first_s'):.2f}",
            f"{median(name, 'memory_mb'):,.0f}",
            f"{sizes[name, workload] / 1e6:,.0f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
