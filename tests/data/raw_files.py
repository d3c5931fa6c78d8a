"""Small raw files for every source that reads one, written as people have them: `RAW[source](folder)` gives the options.

Where a format can hold them there are, beside what is learned: `who` (ten groups of four rows), `when` (the row's number)
and `part` (train, val or test).
"""

from __future__ import annotations

import json
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data import test_prepare_litdata as litdata_files
from tests.data import test_prepare_mds as mds_files
from tests.data import test_prepare_webdataset as tar_files
from tests.data.test_prepare_idx import idx as idx_bytes

Make = Callable[[Path], dict[str, Any]]
RAW: dict[str, Make] = {}
ROWS = 40
PARTS = ("train", "train", "val", "test")
WAYS = {"stratify": True, "split_group": "who", "split_time": "when", "split_column": "part"}
NUMBERS = np.random.default_rng(0).normal(size=(ROWS, 2)).round(3)
NUMBERS[1::2] += 2  # so that there is something to learn


def raw(source: str) -> Callable[[Make], Make]:
    def keep(make: Make) -> Make:
        RAW[source] = make
        return make

    return keep


def table() -> dict[str, list[Any]]:
    """Two numbers and a class that they tell, and where each row belongs."""
    return {
        "a": NUMBERS[:, 0].tolist(),
        "b": NUMBERS[:, 1].tolist(),
        "who": [f"p{i // 4}" for i in range(ROWS)],
        "when": list(range(ROWS)),
        "part": [PARTS[i % 4] for i in range(ROWS)],
        "y": [("no", "yes")[i % 2] for i in range(ROWS)],
    }


@raw("csv")
def of_csv(folder: Path) -> dict[str, Any]:
    columns = table()
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values()))]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return {"path": folder / "t.csv", "label": "y"}


@raw("jsonl")
def of_jsonl(folder: Path) -> dict[str, Any]:
    rows = [dict(zip(table(), row)) for row in zip(*table().values())]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": folder / "t.jsonl", "label": "y"}


@raw("parquet")
def of_parquet(folder: Path) -> dict[str, Any]:
    pq.write_table(pa.table(table()), folder / "t.parquet")
    return {"path": folder / "t.parquet", "label": "y"}


@raw("arrow")
def of_arrow(folder: Path) -> dict[str, Any]:
    made = pa.table(table())
    with pa.OSFile(str(folder / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, made.schema) as writer:
        writer.write_table(made)
    return {"path": folder / "t.arrow", "label": "y"}


@raw("huggingface")
def of_huggingface(folder: Path) -> dict[str, Any]:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.Dataset.from_dict(table()).save_to_disk(str(folder / "saved"))
    return {"path": folder / "saved", "label": "y"}


@raw("arff")
def of_arff(folder: Path) -> dict[str, Any]:
    kinds = ["numeric", "numeric", "string", "numeric", "string", "{no,yes}"]
    head = ["@relation t", *(f"@attribute {name} {kind}" for name, kind in zip(table(), kinds)), "@data"]
    (folder / "t.arff").write_text(
        "\n".join([*head, *(",".join(map(str, row)) for row in zip(*table().values()))]) + "\n"
    )
    return {"path": folder / "t.arff", "label": "y"}


def arrays() -> dict[str, np.ndarray]:
    return {"X": NUMBERS, "y": np.arange(ROWS) % 2, "who": np.arange(ROWS) // 4, "when": np.arange(ROWS)}


ARRAYS = {"columns": "x,label,who,when", "train": "X,y,who,when"}


@raw("npz")
def of_npz(folder: Path) -> dict[str, Any]:
    np.savez(folder / "t.npz", **arrays())
    return {"path": folder / "t.npz", **ARRAYS}


@raw("hdf5")
def of_hdf5(folder: Path) -> dict[str, Any]:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(folder / "t.h5", "w") as file:
        for name, values in arrays().items():
            file[name] = values
    return {"path": folder / "t.h5", **ARRAYS}


@raw("mat")
def of_mat(folder: Path) -> dict[str, Any]:
    scipy_io = pytest.importorskip("scipy.io", reason="scipy is not installed")
    scipy_io.savemat(folder / "t.mat", arrays(), oned_as="column")
    return {"path": folder / "t.mat", **ARRAYS}


@raw("svmlight")
def of_svmlight(folder: Path) -> dict[str, Any]:
    lines = [f"{(-1, 1)[i % 2]} qid:{i // 4} 1:{a} 2:{b}" for i, (a, b) in enumerate(NUMBERS)]
    (folder / "t.svm").write_text("\n".join(lines) + "\n")
    return {"path": folder / "t.svm"}


@raw("ts")
def of_ts(folder: Path) -> dict[str, Any]:
    head = "@problemName t\n@timeStamps false\n@univariate true\n@classLabel true no yes\n@data\n"
    rows = [",".join(f"{np.sin(t * (0.4, 1.6)[i % 2] + i / 40):.3f}" for t in range(8 + i % 3)) for i in range(ROWS)]
    (folder / "t.ts").write_text(head + "".join(f"{row}:{('no', 'yes')[i % 2]}\n" for i, row in enumerate(rows)))
    return {"path": folder / "t.ts"}


@raw("tsf")
def of_tsf(folder: Path) -> dict[str, Any]:
    head = "@relation t\n@attribute series_name string\n@frequency daily\n@horizon 20\n@missing false\n@data\n"
    values = [",".join(f"{np.sin(i + t / 3):.4f}" for t in range(200)) for i in range(3)]
    (folder / "t.tsf").write_text(head + "".join(f"s{i}:{row}\n" for i, row in enumerate(values)))
    return {"path": folder / "t.tsf", "steps": 8}


@raw("series")
def of_series(folder: Path) -> dict[str, Any]:
    (folder / "s.txt").write_text("".join(f"{np.sin(t / 3):.4f}\n" for t in range(400)))
    return {"path": folder / "s.txt", "steps": 8}


def pictures(folder: Path) -> Path:
    """Dark pictures of one class and light ones of another, in folders."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for i in range(ROWS):
        path = folder / "pictures" / ("dark", "light")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((draw.integers(0, 99, (10, 10)) + 150 * (i % 2)).astype(np.uint8)).save(path)
    return folder / "pictures"


@raw("images")
def of_images(folder: Path) -> dict[str, Any]:
    return {"path": pictures(folder), "channels": 1}


@raw("segmentation")
def of_segmentation(folder: Path) -> dict[str, Any]:
    from PIL import Image

    draw = np.random.default_rng(0)
    for i in range(8):
        mask = np.zeros((16, 16), np.uint8)
        mask[i % 8 : i % 8 + 8, 4:12] = 255
        for name, pixels in (("images", mask // 2 + draw.integers(0, 90, mask.shape)), ("masks", mask)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return {"images": folder / "images", "masks": folder / "masks"}


def tone(path: Path, hz: float, seconds: float) -> None:
    """A WAV file of 16 bits at 8 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = (9000 * np.sin(2 * np.pi * hz * np.arange(int(8000 * seconds)) / 8000)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(values.tobytes())


@raw("sound")
def of_sound(folder: Path) -> dict[str, Any]:
    pytest.importorskip("soundfile", reason="soundfile is not installed")
    for i in range(ROWS):
        tone(folder / "sounds" / ("low", "high")[i % 2] / f"{i:02}.wav", (300, 1500)[i % 2] + 5 * i, 0.1 + i % 3 / 50)
    return {"path": folder / "sounds"}


@raw("speech")
def of_speech(folder: Path) -> dict[str, Any]:
    for i in range(ROWS):
        tone(folder / "words" / f"{i % 2}_{('ann', 'bob')[i % 4 // 2]}_{i // 4}.wav", (300, 1500)[i % 2] + 5 * i, 0.1)
    return {"path": folder / "words", "frames": 10, "mels": 8, "test_takes": 2}


@raw("idx")
def of_idx(folder: Path) -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 99, (ROWS, 8, 8)) + 150 * (np.arange(ROWS) % 2)[:, None, None]
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(images.astype(np.uint8)))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes((np.arange(ROWS) % 2).astype(np.uint8)))
    return {"path": folder, "test_fraction": 0.2}


@raw("cifar")
def of_cifar(folder: Path) -> dict[str, Any]:
    records = np.random.default_rng(0).integers(0, 99, (ROWS, 1 + 3072)) + 150 * (np.arange(ROWS) % 2)[:, None]
    records[:, 0] = np.arange(ROWS) % 2
    place = folder / "cifar-10-batches-bin"
    place.mkdir(exist_ok=True)
    (place / "data_batch_1.bin").write_bytes(records.astype(np.uint8).tobytes())
    (place / "batches.meta.txt").write_text("dark\nlight\n")
    return {"path": place, "test_fraction": 0.2}


SENTENCES = [
    f"The {w} of the {n} was seen{' again' * (n % 3)} at the old mill.\n"
    for w in ("cat", "dog", "owl")
    for n in range(60)
]


@raw("text")
def of_text(folder: Path) -> dict[str, Any]:
    (folder / "book.txt").write_text("".join(SENTENCES))
    return {"path": folder / "book.txt", "context": 32}


def text_lines(folder: Path) -> dict[str, Any]:
    """JSON lines of texts, with where they belong."""
    rows = [
        {"text": SENTENCES[i] * 2, "who": f"p{i // 4}", "when": i, "part": PARTS[i % 4], "n": i} for i in range(ROWS)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": folder / "texts.jsonl", "context": 48, "packing": "none"}


def chats() -> list[dict[str, Any]]:
    rows = []
    for i in range(ROWS):
        turns = [
            {"role": "user", "content": f"What is {i} and one?"},
            {"role": "assistant", "content": f"It is {i + 1}."},
        ]
        rows.append({"messages": turns, "who": f"p{i // 4}", "when": i, "part": PARTS[i % 4]})
    return rows


@raw("chat")
def of_chat(folder: Path) -> dict[str, Any]:
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats()))
    return {"path": folder / "chats.jsonl", "context": 64, "packing": "none"}


@raw("words")
def of_words(folder: Path) -> dict[str, Any]:
    return {"path": of_text(folder)["path"], "context": 8, "min_count": 1}


@raw("sentence_pairs")
def of_sentence_pairs(folder: Path) -> dict[str, Any]:
    (folder / "book.txt").write_text("".join(SENTENCES * 20))
    return {"path": folder / "book.txt", "context": 64}


@raw("translation")
def of_translation(folder: Path) -> dict[str, Any]:
    numbers = [f"{i % 5} and {i % 7}" for i in range(ROWS)]
    (folder / "t.a").write_text("\n".join(numbers) + "\n")
    (folder / "t.b").write_text("\n".join(text.replace("and", "und") for text in numbers) + "\n")
    return {"path": folder / "t.a", "target_path": folder / "t.b", "source_length": 6, "target_length": 6}


@raw("trees")
def of_trees(folder: Path) -> dict[str, Any]:
    (folder / "trees.txt").write_text("".join(f"(3 (2 (2 The) (3 good)) (2 plot{i % 4}))\n" for i in range(ROWS)))
    return {"path": folder / "trees.txt"}


@raw("rays")
def of_rays(folder: Path) -> dict[str, Any]:
    return {"views": 9, "size": 4, "test_every": 3}


@raw("pde_file")
def of_pde_file(folder: Path) -> dict[str, Any]:
    x, t = np.linspace(-1, 1, 21), np.linspace(0, 1, 11)
    np.savez(folder / "u.npz", x=x, t=t, usol=np.sin(x)[:, None] * np.exp(-t))
    return {"path": folder / "u.npz", "known": 20, "collocation": 50}


@raw("webdataset")
def of_webdataset(folder: Path) -> dict[str, Any]:
    files = [
        (f"{i:04}.{field}", content)
        for i, row in enumerate(chats())
        for field, content in (
            ("cls", str(i % 2).encode()),
            ("json", json.dumps({key: row[key] for key in ("who", "when", "part")}).encode()),
            ("x.npy", tar_files.npy(NUMBERS[i].astype("<f4"))),
        )
    ]
    tar_files.tar(folder / "s.tar", files)
    fields = ["cls", "json.who", "json.when", "json.part", "x.npy"]
    return {"path": folder / "s.tar", "fields": ",".join(fields), "names": "label,who,when,part,x"}


@raw("mds")
def of_mds(folder: Path) -> dict[str, Any]:
    columns: dict[str, tuple[str, int | None]] = {
        "x": ("ndarray:float32:2", 8),
        "cls": ("int", 8),
        "when": ("int", 8),
        "who": ("str", None),
        "part": ("str", None),
    }
    rows = [
        {
            "x": NUMBERS[i].astype("<f4").tobytes(),
            "cls": struct.pack("<q", i % 2),
            "when": struct.pack("<q", i),
            "who": row["who"].encode(),
            "part": row["part"].encode(),
        }
        for i, row in enumerate(chats())
    ]
    mds_files.write(folder / "mds", columns, [rows[:25], rows[25:]])
    return {"path": folder / "mds"}


@raw("litdata")
def of_litdata(folder: Path) -> dict[str, Any]:
    def item(i: int, row: dict[str, Any]) -> bytes:
        numbers = NUMBERS[i].astype("<f4").tobytes()
        whole = (struct.pack("<q", i % 2), struct.pack("<q", i))
        return litdata_files.item([numbers, *whole, row["who"].encode(), row["part"].encode()])

    items = [item(i, row) for i, row in enumerate(chats())]
    formats = {"x": "no_header_numpy:9", "cls": "int", "when": "int", "who": "str", "part": "str"}
    content = litdata_files.plain(items)
    litdata_files.write(folder / "lit", formats, [("chunk-0-0.bin", content, ROWS, len(content))])
    return {"path": folder / "lit"}


NO_FILES: dict[str, dict[str, Any]] = {
    "assays": {"molecules": 60, "bits": 16},
    "customers": {},
    "digit_strings": {},
    "digits": {},
    "pde": {"equation": "burgers"},
    "pixels": {},
    "scenes": {"rows": 20, "test_rows": 4},
    "sinusoids": {"tasks": 4, "test_tasks": 2},
    "stdlib": {"max_bytes": 300_000},
    "synthetic": {"task": "truth_table"},
}
"""Sources that read no file: options that make them small."""

RAW |= {name: (lambda folder, options=options: dict(options)) for name, options in NO_FILES.items()}
