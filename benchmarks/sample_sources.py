"""What each source of arrays, pictures, sounds, series, samples and text keeps and costs, beside the format's own reader.

    python benchmarks/sample_sources.py [--mb 50] [--rounds 3] [--only npz,images] [--output FILE.md]

Tables are in data_sources.py. Every measurement is a process of its own with one thread, ours and the format's own reader
round by round, and counts the CPU time of the process: others may work beside it. What is measured of a source is all that
it reads to make rows (two passes, where it has two); checks of every value, checksums and writing come on top, equally for
all, and are in "prepared". To add a source, add a `Case`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parent.parent
CHILD_TIMEOUT_S = 600
FEATURES = 20
SIDE = 64
Options = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A format. `write`: a folder and bytes -> the options that prepare what it wrote there. `raw`: the same options -> how
    many rows, as the format's own reader reads them; None: none is installed."""

    source: str
    write: Callable[[Path, int], Options]
    raw: Callable[[Options], Iterator[int]] | None
    reader: str
    kept: str
    """What a row may hold."""
    nulls: str
    """What becomes of a value that is missing."""


CASES: dict[str, Case] = {}


def case(name: str, source: str, reader: str, kept: str, nulls: str, raw: Any = None) -> Any:
    def keep(write: Callable[[Path, int], Options]) -> Callable[[Path, int], Options]:
        CASES[name] = Case(source, write, raw, reader, kept, nulls)
        return write

    return keep


def labels(rows: int) -> np.ndarray:
    return np.arange(rows) % 7


def numbers(rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, FEATURES)).round(6)


def pixels(n: int, side: int = SIDE) -> Iterator[np.ndarray]:
    """Smooth pictures with some grain, as photographs are."""
    draw = np.random.default_rng(0)
    ramp, grain = np.linspace(0, 100, side), draw.integers(0, 40, (side, side, 1))
    for _ in range(n):
        made = draw.uniform(0.3, 1, 3) * (ramp[:, None, None] + ramp[None, :, None]) + np.roll(
            grain, draw.integers(side)
        )
        yield made.astype(np.uint8)


def encoded(picture: np.ndarray, kind: str = "JPEG") -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, kind)
    return content.getvalue()


# -- arrays ------------------------------------------------------------------------------------------------------------

ARRAYS = ("whole and real numbers, names of classes", "refused with row and value")
OF_ARRAYS: Options = {"columns": "x,label", "train": "x,y", "test_fraction": 0}


def raw_npz(options: Options) -> Iterator[int]:
    with np.load(options["path"]) as archive:
        yield len(archive["x"]) + 0 * len(archive["y"])


@case("npz", "npz", "numpy.load", *ARRAYS, raw=raw_npz)
def npz(folder: Path, size: int) -> Options:
    rows = size // (8 * FEATURES)
    np.savez(folder / "a.npz", x=numbers(rows), y=labels(rows))
    return {"path": str(folder / "a.npz"), **OF_ARRAYS}


def raw_npy(options: Options) -> Iterator[int]:
    yield len(np.load(f"{options['path']}/x.npy")) + 0 * len(np.load(f"{options['path']}/y.npy"))


@case("npy", "npz", "numpy.load", *ARRAYS, raw=raw_npy)
def npy(folder: Path, size: int) -> Options:
    rows = size // (8 * FEATURES)
    np.save(folder / "x.npy", numbers(rows))
    np.save(folder / "y.npy", labels(rows))
    return {"path": str(folder), **OF_ARRAYS}


def raw_hdf5(options: Options) -> Iterator[int]:
    import h5py

    with h5py.File(options["path"]) as file:
        for at in range(0, len(file["x"]), 8192):
            yield len(file["x"][at : at + 8192]) + 0 * len(file["y"][at : at + 8192])


@case("hdf5", "hdf5", "h5py", *ARRAYS, raw=raw_hdf5)
def hdf5(folder: Path, size: int) -> Options:
    import h5py

    rows = size // (8 * FEATURES)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", data=numbers(rows), chunks=(min(4096, rows), FEATURES))
        file.create_dataset("y", data=labels(rows), chunks=(min(4096, rows),))
    return {"path": str(folder / "a.h5"), **OF_ARRAYS}


def raw_mat(options: Options) -> Iterator[int]:
    from scipy.io import loadmat

    yield len(loadmat(options["path"], mat_dtype=True)["x"])


def _mat5(packed: bool) -> Callable[[Path, int], Options]:
    def write(folder: Path, size: int) -> Options:
        from scipy.io import savemat

        rows = size // (8 * FEATURES)
        arrays = {"x": numbers(rows), "y": labels(rows)[:, None].astype(float)}
        savemat(folder / "a.mat", arrays, do_compression=packed)
        return {"path": str(folder / "a.mat"), **OF_ARRAYS}

    return write


case("mat 5", "mat", "scipy.io.loadmat", *ARRAYS, raw=raw_mat)(_mat5(packed=False))
case("mat 7, compressed", "mat", "scipy.io.loadmat", *ARRAYS, raw=raw_mat)(_mat5(packed=True))


def raw_mat73(options: Options) -> Iterator[int]:
    import h5py

    with h5py.File(options["path"]) as file:
        rows = np.ascontiguousarray(file["x"][...].T)  # samples first, as a model reads them
        yield len(rows) + 0 * file["y"][...].size


@case("mat 7.3", "mat", "h5py", *ARRAYS, raw=raw_mat73)
def mat73(folder: Path, size: int) -> Options:
    from tests.data import mat73

    rows = size // (8 * FEATURES)
    mat73.write(folder / "a.mat", x=numbers(rows), y=labels(rows)[:, None].astype(float))
    return {"path": str(folder / "a.mat"), **OF_ARRAYS}


def raw_idx(options: Options) -> Iterator[int]:
    content = (Path(options["path"]) / "train-images-idx3-ubyte").read_bytes()
    yield len(np.frombuffer(content, np.uint8, offset=16)) // 784


@case("idx", "idx", "numpy.frombuffer", "bytes, classes", "none", raw=raw_idx)
def idx(folder: Path, size: int) -> Options:
    from tests.data.test_prepare_idx import idx as content

    rows = size // 784
    (folder / "train-images-idx3-ubyte").write_bytes(content(np.zeros((rows, 28, 28), np.uint8) + np.uint8(9)))
    (folder / "train-labels-idx1-ubyte").write_bytes(content(labels(rows).astype(np.uint8)))
    return {"path": str(folder), "test_fraction": 0}


# -- lines -------------------------------------------------------------------------------------------------------------


def raw_svmlight(options: Options) -> Iterator[int]:
    from sklearn.datasets import load_svmlight_file

    yield load_svmlight_file(options["path"])[0].shape[0]


@case("svmlight", "svmlight", "sklearn.datasets.load_svmlight_file", "numbers, class or target", "0", raw=raw_svmlight)
def svmlight(folder: Path, size: int) -> Options:
    draw = np.random.default_rng(0)
    with open(folder / "a.svm", "w") as file:
        for i in range(size // 220):
            places = np.sort(draw.choice(300, FEATURES, replace=False)) + 1
            file.write(f"{i % 7} " + " ".join(f"{p}:{v:.5f}" for p, v in zip(places, draw.random(FEATURES))) + "\n")
    return {"path": str(folder / "a.svm"), "test_fraction": 0}


def raw_arff(options: Options) -> Iterator[int]:
    from scipy.io import arff

    yield len(arff.loadarff(options["path"])[0])


@case("arff", "arff", "scipy.io.arff", "numbers, nominal, text, dates", "filled, as of tables", raw=raw_arff)
def arff(folder: Path, size: int) -> Options:
    rows = size // (10 * FEATURES)
    with open(folder / "a.arff", "w") as file:
        file.write("@relation r\n" + "".join(f"@attribute c{i} numeric\n" for i in range(FEATURES)))
        file.write("@attribute y {a,b,c}\n@data\n")
        for i, row in enumerate(numbers(rows).tolist()):
            file.write(",".join(map(repr, row)) + f",{'abc'[i % 3]}\n")
    return {"path": str(folder / "a.arff"), "label": "y", "test_fraction": 0}


def raw_lines(options: Options) -> Iterator[int]:
    """The lines of a file of numbers, as NumPy reads them from text."""
    rows = 0
    with open(options["path"]) as file:
        for line in file:
            if line[0] != "@":
                body = line.rpartition(":")[0] if options["path"].endswith(".ts") else line.rpartition(":")[2]
                rows += len(np.fromstring(body, sep=",")) > 0
    yield rows


@case("ts", "ts", "numpy.fromstring", "numbers, class or target", "filled or refused", raw=raw_lines)
def ts(folder: Path, size: int) -> Options:
    draw = np.random.default_rng(0)
    with open(folder / "a.ts", "w") as file:
        file.write("@problemName p\n@timeStamps false\n@univariate true\n@classLabel true a b\n@data\n")
        for i in range(size // 2000):
            file.write(",".join(map(repr, draw.standard_normal(200).round(6).tolist())) + f":{'ab'[i % 2]}\n")
    return {"path": str(folder / "a.ts"), "test_fraction": 0}


@case("tsf", "tsf", "numpy.fromstring", "numbers", "filled or refused", raw=raw_lines)
def tsf(folder: Path, size: int) -> Options:
    draw = np.random.default_rng(0)
    with open(folder / "a.tsf", "w") as file:
        file.write("@relation r\n@attribute series_name string\n@frequency daily\n@horizon 20\n@missing false\n@data\n")
        for i in range(size // 2000):
            file.write(f"s{i}:" + ",".join(map(repr, draw.standard_normal(200).round(6).tolist())) + "\n")
    return {"path": str(folder / "a.tsf"), "steps": 20, "stride": 20}


# -- pictures and sounds -----------------------------------------------------------------------------------------------


def raw_images(options: Options) -> Iterator[int]:
    from PIL import Image

    for path in sorted(Path(options["path"]).rglob("*.*")):
        with Image.open(path) as picture:
            yield 0 * np.asarray(picture.convert("RGB")).size + 1


def _images(side: int, file_bytes: int) -> Callable[[Path, int], Options]:
    def write(folder: Path, size: int) -> Options:
        for i, picture in enumerate(pixels(size // file_bytes, side)):
            place = folder / "p" / f"class {i % 7}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:06}.jpg").write_bytes(encoded(picture))
        return {"path": str(folder / "p"), "test_fraction": 0}

    return write


OF_PICTURES = ("all that Pillow decodes", "refused by name")
case("images, 64 x 64", "images", "Pillow", *OF_PICTURES, raw=raw_images)(_images(64, 2000))
case("images, 300 x 300", "images", "Pillow", *OF_PICTURES, raw=raw_images)(_images(300, 25000))


def raw_sound(options: Options) -> Iterator[int]:
    import soundfile

    for path in sorted(Path(options["path"]).rglob("*.wav")):
        yield 0 * len(soundfile.read(path, dtype="float32")[0]) + 1


@case("sound, waveform", "sound", "soundfile", "all that libsndfile decodes", "refused by name", raw=raw_sound)
def sound(folder: Path, size: int) -> Options:
    draw = np.random.default_rng(0)
    for i in range(size // 32000):
        place = folder / "s" / f"class {i % 7}"
        place.mkdir(parents=True, exist_ok=True)
        with wave.open(str(place / f"{i:06}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(draw.integers(-9000, 9000, 16000).astype("<i2").tobytes())
    return {"path": str(folder / "s"), "features": "waveform", "test_fraction": 0}


# -- samples -----------------------------------------------------------------------------------------------------------

SAMPLES = ("pictures, numbers, arrays, text, JSON", "a field that is missing is refused by its sample")


def raw_webdataset(options: Options) -> Iterator[int]:
    from PIL import Image

    with tarfile.open(options["path"], "r|") as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            if member.name.endswith(".jpg"):
                with Image.open(content) as picture:
                    yield 0 * np.asarray(picture.convert("RGB")).size + 1
            else:
                yield 0 * int(content.read())


@case("webdataset", "webdataset", "tarfile and Pillow", *SAMPLES, raw=raw_webdataset)
def webdataset(folder: Path, size: int) -> Options:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i, picture in enumerate(pixels(size // 3500)):
            for ending, content in (("jpg", encoded(picture)), ("cls", str(i % 7).encode())):
                info = tarfile.TarInfo(f"{i:06}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return {"path": str(folder / "a.tar"), "test_fraction": 0}


def raw_mds(options: Options) -> Iterator[int]:
    """The layout without hashes, sizes or checks, as no library that reads it is installed."""
    from PIL import Image

    for path in sorted(Path(options["path"]).glob("*.mds")):
        content = path.read_bytes()
        (n,) = np.frombuffer(content, "<u4", 1)
        places = np.frombuffer(content, "<u4", n + 1, 4)
        for begin, end in zip(places[:-1].tolist(), places[1:].tolist()):
            (first,) = np.frombuffer(content, "<u4", 1, begin)
            with Image.open(io.BytesIO(content[begin + 4 : begin + 4 + int(first)])) as picture:
                yield 0 * np.asarray(picture.convert("RGB")).size + 1
            assert end - begin == 4 + first + 8


@case("mds", "mds", "Pillow and struct", *SAMPLES, raw=raw_mds)
def mds(folder: Path, size: int) -> Options:
    from tests.data.test_prepare_mds import write

    made = [
        {"image": encoded(picture), "label": int(i % 7).to_bytes(8, "little")}
        for i, picture in enumerate(pixels(size // 2000))
    ]
    shards = [made[i : i + 2000] for i in range(0, len(made), 2000)]
    write(folder / "m", {"image": ("jpeg", None), "label": ("int", 8)}, shards)
    return {"path": str(folder / "m"), "test_fraction": 0}


def raw_litdata(options: Options) -> Iterator[int]:
    """The layout without checks, as no library that reads it is installed."""
    from PIL import Image

    for path in sorted(Path(options["path"]).glob("*.bin")):
        content = path.read_bytes()
        (n,) = np.frombuffer(content, "<u4", 1)
        for begin in np.frombuffer(content, "<u4", n + 1, 4)[:-1].tolist():
            first, _ = np.frombuffer(content, "<u4", 2, begin).tolist()
            with Image.open(io.BytesIO(content[begin + 8 : begin + 8 + first])) as picture:
                yield 0 * np.asarray(picture.convert("RGB")).size + 1


@case("litdata", "litdata", "Pillow and struct", *SAMPLES, raw=raw_litdata)
def litdata(folder: Path, size: int) -> Options:
    from tests.data.test_prepare_litdata import item, plain, write

    made = [item([encoded(p), int(i % 7).to_bytes(8, "little")]) for i, p in enumerate(pixels(size // 2000))]
    parts = [made[i : i + 2000] for i in range(0, len(made), 2000)]
    chunks = [(f"c{i}.bin", plain(part), len(part), len(plain(part))) for i, part in enumerate(parts)]
    write(folder / "l", {"image": "jpeg", "label": "int"}, chunks)
    return {"path": str(folder / "l"), "test_fraction": 0}


def raw_huggingface(options: Options) -> Iterator[int]:
    from datasets import load_from_disk

    for batch in load_from_disk(options["path"]).with_format("arrow").iter(8192):
        yield batch.num_rows


@case(
    "huggingface",
    "huggingface",
    "datasets, in Arrow",
    "all of Arrow, pictures",
    "filled, as of tables",
    raw_huggingface,
)
def huggingface(folder: Path, size: int) -> Options:
    import datasets

    rows = size // (8 * FEATURES)
    columns = {f"c{i}": values for i, values in enumerate(numbers(rows).T)}
    datasets.Dataset.from_dict({**columns, "y": labels(rows)}).save_to_disk(str(folder / "h"))
    return {"path": str(folder / "h"), "label": "y", "test_fraction": 0}


# -- text --------------------------------------------------------------------------------------------------------------


def raw_text(options: Options) -> Iterator[int]:
    with open(options["path"], "rb") as file:
        while block := file.read(4 << 20):
            yield len(block) // options["context"]


def _text(folder: Path, size: int) -> Options:
    words = np.random.default_rng(0).choice(
        ["the", "model", "learns", "from", "its", "errors", "a", "step\n"], size // 5
    )
    (folder / "a.txt").write_text(" ".join(words.tolist()))
    return {"path": str(folder / "a.txt"), "context": 128, "test_fraction": 0}


case("text, bytes", "text", "read", "bytes", "none", raw=raw_text)(_text)


def raw_tokens(options: Options) -> Iterator[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(options["tokenizer"])
    lines = Path(options["path"]).read_text().splitlines()
    for at in range(0, len(lines), 1000):
        found = tokenizer.encode_batch(lines[at : at + 1000], add_special_tokens=False)
        yield sum(len(one.ids) for one in found) // options["context"]


@case("text, packed", "text", "tokenizers", "tokens, packed by best fit", "none", raw=raw_tokens)
def packed_text(folder: Path, size: int) -> Options:
    from tokenizers import ByteLevelBPETokenizer

    options = _text(folder, size)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([options["path"]], vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    how = {"tokenizer": str(folder / "tokenizer.json"), "document": "line", "packing": "best_fit"}
    return {**options, **how}


# -- measuring ---------------------------------------------------------------------------------------------------------


def child(name: str, who: str, told: str) -> dict[str, float]:
    """Read what was written (`raw`, `ours`), or prepare it (`prepare`), in this process: rows, CPU seconds, peak in MB."""
    import pyarrow as pa

    import distdl.data.prepare as preparing

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pa.set_cpu_count(1)
    which, options = CASES[name], json.loads(told)
    module = preparing.source_module(which.source)
    parsed = preparing.parse_options(which.source, options)
    warm(which.source)
    start, rows = time.process_time(), 0
    if who == "raw":
        assert which.raw is not None
        rows = sum(which.raw(options))  # once before the clock starts: libraries do much at their first use
        start = time.process_time()
        rows = sum(which.raw(options))
    elif who == "ours":
        for begin in (False, True):
            start, rows = (time.process_time() if begin else start), 0
            for _, chunk in module.prepare(parsed).chunks:
                rows += len(next(iter(chunk.values())))
    else:
        with tempfile.TemporaryDirectory() as folder:
            manifest = preparing.prepare_dataset(which.source, f"{folder}/set", options)
            rows = sum(split.rows for split in manifest.splits.values())
    seconds = time.process_time() - start
    high = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    high = max(high, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return {"rows": rows, "seconds": seconds, "peak_mb": high / 1024}


def warm(source: str) -> None:
    """Import what takes longer than a small file."""
    import contextlib
    import importlib

    for module in (
        "h5py",
        "scipy.io",
        "scipy.io.arff",
        "PIL.Image",
        "soundfile",
        "sklearn.datasets",
        "datasets",
        "tokenizers",
    ):
        wanted = {"h5py": "hdf5 mat", "scipy.io": "mat arff", "scipy.io.arff": "arff", "soundfile": "sound"}
        wanted |= {"sklearn.datasets": "svmlight", "datasets": "huggingface", "tokenizers": "text"}
        if source in wanted.get(module, source).split():
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
    from distdl.data.write import DatasetWriter  # noqa: F401

    with contextlib.suppress(ImportError):
        from PIL import Image

        Image.init()


def run_child(name: str, who: str, options: Options) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--child", name, who, json.dumps(options)]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S)
    if done.returncode:
        raise SystemExit(f"{name}, {who}: {done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def damage(which: Case, options: Options) -> str:
    """Kinds of damage to the first file that are refused with its name; `lets X pass` of one that is not seen."""
    from distdl.data.prepare import parse_options, source_module
    from distdl.errors import DistdlError

    place = Path(options["path"])
    path = (
        place if place.is_file() else next(p for p in sorted(place.rglob("*")) if p.is_file() and p.suffix != ".json")
    )
    whole, named = path.read_bytes(), []
    changes = {"cut": whole[: len(whole) // 2 + 1], "empty": b"", "other": b"\x7fELF\n\xff\xfe" + bytes(2000)}
    for kind, content in changes.items():
        path.write_bytes(content)
        try:
            for _ in source_module(which.source).prepare(parse_options(which.source, options)).chunks:
                pass
            named.append(f"lets {kind} pass")
        except DistdlError as error:
            named.append(kind if path.name in str(error) or str(place) in str(error) else f"{kind} without a name")
    path.write_bytes(whole)
    return ", ".join(named)


def measure(name: str, mb: float, rounds: int, folder: Path) -> str:
    """A line of the table: medians over the rounds."""
    which = CASES[name]
    small = folder / "small"
    small.mkdir()
    seen = damage(which, which.write(small, 200_000))
    options = which.write(folder, int(mb * 1e6))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and small not in path.parents) / 1e6
    turns = ["raw", "ours", "prepare"] if which.raw else ["ours", "prepare"]
    found: dict[str, list[dict[str, float]]] = {who: [] for who in turns}
    for i in range(rounds):
        for who in turns[:: 1 if i % 2 else -1]:
            found[who].append(run_child(name, who, options))
    rate = {who: statistics.median(r["rows"] / r["seconds"] for r in runs) for who, runs in found.items()}
    cost = {who: statistics.median(r["seconds"] for r in runs) for who, runs in found.items()}
    peak = {who: max(r["peak_mb"] for r in runs) for who, runs in found.items()}
    ratio = f"{cost['raw'] / cost['ours']:.2f}" if "raw" in cost else "-"
    return (
        f"| {name} | {which.kept} | {which.nulls} | {seen} | {size:,.0f} | {rate['ours']:,.0f} | {ratio} | {which.reader} "
        f"| {peak['ours']:,.0f} ({peak.get('raw', 0):,.0f}) | {peak['prepare']:,.0f} | {rate['prepare']:,.0f} |\n"
    )


TITLES = (
    *("source", "kept", "empty values", "damage named", "MB", "rows/s of CPU", "of its own reader's", "which is"),
    *("peak of reading, MB (own reader)", "of preparing, MB", "prepared rows/s"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mb", type=float, default=50, help="size of what is read")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of cases, with commas between them")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    if args.child:
        print(json.dumps(child(*args.child)))
        return
    text = f"| {' | '.join(TITLES)} |\n" + "|---" * len(TITLES) + "|\n"
    names = [name for name in CASES if not args.only or name.replace(",", "") in args.only.split(",")]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            text += measure(name, args.mb, args.rounds, Path(folder))
        print(text.splitlines()[-1], flush=True)
        if args.output:
            args.output.write_text(text)


if __name__ == "__main__":
    main()
