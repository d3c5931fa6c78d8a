"""Pictures, recordings, samples and data sets of Hugging Face, read by several workers: the data set is the same."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distdl.data import each_file, workers
from distdl.data.prepare import prepare_dataset
from distdl.data.samples import fields
from distdl.data.table import reader
from distdl.errors import InputError
from tests.data import test_prepare_litdata as litdata_files
from tests.data import test_prepare_mds as mds_files
from tests.data.raw_files import RAW, pictures
from tests.data.test_bad_rows import ASIDE, listed


def sent(value: Any) -> Any:
    """As it comes out at another process."""
    file = io.BytesIO()
    workers.pack(value, file)
    return next(workers.unpacked(file.getvalue()))


class Elsewhere:
    """Workers to which everything is sent, in this process."""

    count = 2

    def __init__(self) -> None:
        self.items = 0

    def each(self, function: Callable[[Any], Iterable[Any]], items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.items += 1
            try:
                results = [sent(result) for result in sent(function)(sent(item))]
            except InputError:
                results = list(workers.called_again(function, item))
            yield from results


@pytest.fixture(autouse=True)
def few_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(each_file, "TOGETHER", 3)
    monkeypatch.setattr(fields, "CHUNK_ROWS", 3)
    monkeypatch.setattr(reader, "SECTION_BYTES", 1_000)


def archive(folder: Path, kind: str) -> Path:
    path = folder / f"pictures.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as out:
            for file in sorted(pictures(folder).rglob("*.png")):
                out.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, f"w:{'gz' if kind == 'tgz' else ''}") as tar:
            tar.add(pictures(folder), "pictures")
    return path


def samples(folder: Path, kind: str) -> dict[str, Any]:
    """Pictures and their class, in shards."""
    files = [(path.read_bytes(), path.parent.name) for path in sorted(pictures(folder).rglob("*.png"))]
    if kind == "mds":
        made = [{"image": content, "label": name.encode()} for content, name in files]
        mds_files.write(folder / "s", {"image": ("png", None), "label": ("str", None)}, [made])
        return {"path": folder / "s"}
    if kind == "litdata":
        content = litdata_files.plain([litdata_files.item([content, name.encode()]) for content, name in files])
        chunk = ("c.bin", content, len(files), len(content))
        litdata_files.write(folder / "s", {"image": "jpeg", "label": "str"}, [chunk])
        return {"path": folder / "s"}
    with tarfile.open(folder / "s.tar", "w") as tar:
        for i, (content, name) in enumerate(files):
            for field, value in (("png", content), ("cls", name.encode())):
                info = tarfile.TarInfo(f"{i:03}.{field}")
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
    return {"path": folder / "s.tar"}


def raw(folder: Path, kind: str) -> tuple[str, dict[str, Any]]:
    """A source, and the options that prepare what is written for it."""
    if kind in ("zip", "tar", "tgz"):
        return "images", {"path": archive(folder, kind)}
    if kind in ("webdataset", "mds", "litdata"):
        return kind, samples(folder, kind)
    if kind == "huggingface":
        datasets = pytest.importorskip("datasets", reason="datasets is not installed")
        datasets.disable_progress_bars()
        columns = {"a": [i / 7 for i in range(4500)], "y": [("no", "yes")[i % 2] for i in range(4500)]}
        datasets.Dataset.from_dict(columns).save_to_disk(str(folder / "saved"))
        return kind, {"path": folder / "saved", "label": "y"}
    return kind, RAW[kind](folder)


@pytest.mark.parametrize(
    "kind", ["images", "sound", "webdataset", "mds", "litdata", "huggingface", "zip", "tar", "tgz"]
)
def test_several_workers_give_the_same_data_set(tmp_path: Path, kind: str) -> None:
    source, options = raw(tmp_path, kind)
    others = Elsewhere()
    found = prepare_dataset(source, tmp_path / "a", options, workers=others)
    assert found.fingerprint == prepare_dataset(source, tmp_path / "b", options).fingerprint
    assert (others.items > 3) == (kind != "tgz")  # a packed tar is read from front to back, by one


@pytest.mark.parametrize("bad_rows", ["refuse", "set_aside"])
def test_bad_pictures_are_told_alike(tmp_path: Path, bad_rows: str) -> None:
    options = {"path": pictures(tmp_path), **ASIDE, "bad_rows": bad_rows}
    for i in (4, 21):
        (tmp_path / "pictures" / "dark" / f"{i // 2 * 2:02}.png").write_bytes(b"no picture")
    told = []
    for name, some in (("a", Elsewhere()), ("b", 1)):
        if bad_rows == "refuse":
            with pytest.raises(InputError) as error:
                prepare_dataset("images", tmp_path / name, options, workers=some)
            told.append(str(error.value))
        else:
            found = prepare_dataset("images", tmp_path / name, options, workers=some)
            told.append(f"{found.fingerprint} {listed(tmp_path / name)}")
    assert told[0] == told[1] and "04.png" in told[0] and "20.png" in told[0]


def test_workers_that_had_nothing_to_do_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Idle(workers.Local):
        def start(self) -> None:
            pass

    for options, why in (({}, "where they are large"), (ASIDE, "read from its beginning")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("distdl.data.prepare.Local", Idle)
            patch.setattr(workers, "Local", Idle)
            path = RAW["csv"](tmp_path)
            prepare_dataset("csv", tmp_path / why.replace(" ", ""), {**path, **options}, workers=2)
        assert "csv: one process has read it, of 2: " in (told := capsys.readouterr().err) and why in told
