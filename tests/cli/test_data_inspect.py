"""`distdl data inspect`: distributions and classes in the terminal, and the page with samples."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from distdl.cli.data_page import histogram, page
from distdl.cli.data_text import sparkline
from distdl.cli.media import png, shown, wav
from distdl.data.manifest import Column, Manifest, read_manifest
from distdl.data.statistics import Part
from distdl.data.write import DatasetWriter
from tests.conftest import Result

Command = Callable[..., Result]
HOSTILE = "</pre><script>alert('x')</script><img src=http://a.org/b onerror=alert(1)>\"'"


def written(
    folder: Path, columns: dict[str, Column], rows: dict, test: dict | None = None, **about: object
) -> Manifest:
    with DatasetWriter(folder / "set", columns, "test", {}, about=about) as writer:
        writer.write("train", rows)
        if test:
            writer.write("test", test)
    return read_manifest(folder / "set")


class Tags(HTMLParser):
    """The tags of a page and their attributes, and what stands outside of any."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def sources(self, tag: str) -> list[bytes]:
        return [base64.b64decode(of["src"].partition(",")[2]) for name, of in self.tags if name == tag]


# -- the terminal ------------------------------------------------------------------------------------------------------


def test_features_and_classes_are_told(tmp_path: Path, command: Command) -> None:
    x = np.array([[1, 10], [3, np.nan], [5, 30]], np.float32)
    columns = {"x": Column("float32", (2,)), "label": Column("int64"), "t": Column("bytes")}
    rows = {"x": x, "label": np.array([1, 1, 0]), "t": [b"one", b"", b"three"]}
    info = {"features": ["age", "[red]height"], "classes": ["no", "yes"]}
    written(tmp_path, columns, rows, {**rows, "label": np.array([0, 0, 0])}, info=info)
    code, out, _ = command("data", "inspect", tmp_path / "set")
    assert code == 0
    (age,) = [line for line in out.splitlines() if " age " in line]
    assert [cell.strip() for cell in age.split("│")[2:7]] == ["3", "1.633", "3", "1", "5"]
    (height,) = [line for line in out.splitlines() if "[red]height" in line]
    assert " 1 " in height.split("│")[7], "one of it is missing"
    classes = [
        [cell.strip() for cell in line.split("│")[1:4]] for line in out.splitlines() if "yes" in line or " no " in line
    ]
    assert classes == [["1  yes", "2", "0"], ["0  no", "1", "3"]]
    assert "2.667 bytes" in out and "5 bytes" in out
    facts = json.loads(command("data", "inspect", tmp_path / "set", "--json").stdout)
    assert facts["statistics"]["train"]["label"]["classes"] == {"0": 1, "1": 2} and facts["preparation"] == {}


def test_an_older_data_set_is_still_told(tmp_path: Path, command: Command) -> None:
    written(tmp_path, {"label": Column("int64")}, {"label": np.array([1, 2])})
    record = json.loads((tmp_path / "set" / "manifest.json").read_text())
    del record["statistics"]
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(record))
    code, out, _ = command("data", "inspect", tmp_path / "set", "--html", tmp_path / "p.html")
    assert code == 0 and "older version" in out and "Samples" in (tmp_path / "p.html").read_text()


def test_a_histogram_in_a_word() -> None:
    assert (
        sparkline((0, 1, 4, 8)) == " ▁▄█" and sparkline((1, 1000)) == "▁█" and sparkline((0,)) == " " == sparkline([0])
    )


# -- the page ----------------------------------------------------------------------------------------------------------


def test_a_page_has_samples_and_needs_nothing_else(tmp_path: Path, command: Command) -> None:
    from PIL import Image

    pictures = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 9), dtype=np.uint8)
    sounds = np.sin(np.arange(5 * 800).reshape(5, 800) / 9).astype(np.float32)
    columns = {
        "image": Column("uint8", (3, 6, 9)),
        "sound": Column("float32", (800,)),
        "tokens": Column("uint8", (4,)),
        "label": Column("int64"),
        "note": Column("bytes"),
    }
    tokens = np.frombuffer("añb<".encode()[:4] * 5, np.uint8).reshape(5, 4)
    rows = {
        "image": pictures,
        "sound": sounds,
        "tokens": tokens,
        "label": np.arange(5) % 2,
        "note": [b"\xff\0", b"&lt;"] * 2 + [b""],
    }
    preparation = {"sound": {"kind": "sound", "version": 1, "rate_hz": 8000}}
    info = {"classes": ["cat", "dog"], "encoding": "bytes"}
    written(tmp_path, columns, rows, info=info, preparation=preparation)
    assert command("data", "inspect", tmp_path / "set", "--html", tmp_path / "p.html").code == 0
    found = Tags((tmp_path / "p.html").read_text())
    assert [np.asarray(Image.open(io.BytesIO(one))).tolist() for one in found.sources("img")] == [
        picture.transpose(1, 2, 0).tolist() for picture in pictures
    ]
    with wave.open(io.BytesIO(found.sources("audio")[0])) as sound:
        assert (sound.getframerate(), sound.getnframes(), sound.getsampwidth()) == (8000, 800, 2)
    texts = [text for text in found.texts if text.strip()]
    assert texts.count("añb") == 5 and "0 (cat)" in texts and "2 bytes: ff 00" in texts and "&lt;" in texts
    assert {tag for tag, _ in found.tags} >= {"svg", "rect", "title", "img", "audio", "table"}


@pytest.mark.parametrize("column", ["label", "t", "path", "source", "feature"])
def test_nothing_in_the_data_becomes_part_of_the_page(tmp_path: Path, column: str) -> None:
    """No tag, no attribute and no address comes from it."""
    columns = {"x": Column("float32", (2,)), "label": Column("int64"), "t": Column("bytes")}
    rows = {"x": np.ones((2, 2), np.float32), "label": np.array([0, 1]), "t": [b"", b"harmless"]}
    info = {"classes": ["a", "b"], "features": ["f", "g"]}

    def tags(rows: dict, info: dict, name: str, source: str) -> list[tuple[str, list[str]]]:
        folder = tmp_path / name
        with DatasetWriter(folder, columns, source, {}, about={"info": info}) as writer:
            writer.write("train", rows)
        text = page(str(folder), read_manifest(folder), "train")
        assert "<script" not in text.lower()
        return [(tag, sorted(of)) for tag, of in Tags(text).tags]

    plain = tags(rows, info, "plain", "test")
    hostile = HOSTILE.replace("/", "\u2215") if column == "path" else HOSTILE
    spoilt_rows = {**rows, "t": [b"", hostile.encode()]} if column == "t" else rows
    spoilt_info = dict(info)
    if column == "label":
        spoilt_info["classes"] = [hostile, "b"]
    if column == "feature":
        spoilt_info["features"] = [hostile, "g"]
    name, source = hostile if column == "path" else "other", hostile if column == "source" else "test"
    assert tags(spoilt_rows, spoilt_info, name, source) == plain


def test_the_page_forbids_what_it_does_not_hold(tmp_path: Path) -> None:
    manifest = written(tmp_path, {"label": Column("int64")}, {"label": np.array([1, 2])})
    found = Tags(page(str(tmp_path / "set"), manifest, "train"))
    (policy,) = [of["content"] for tag, of in found.tags if tag == "meta" and "content" in of]
    assert policy.startswith("default-src 'none'") and "script" not in policy


def test_a_picture_of_other_numbers_is_stretched_and_a_large_one_thinned_out() -> None:
    from PIL import Image

    stretched = np.asarray(Image.open(io.BytesIO(png(np.array([[[0.5, 1.0], [1.5, np.nan]]])))))
    assert stretched.tolist() == [[85, 170], [255, 0]]
    mask = np.asarray(Image.open(io.BytesIO(png(np.array([[0, 1], [1, 0]], np.uint8)))))
    assert mask.tolist() == [[0, 255], [255, 0]]
    assert Image.open(io.BytesIO(png(np.zeros((3, 1000, 700), np.uint8)))).size == (175, 250)


def test_a_sound_keeps_its_values_and_is_cut() -> None:
    def samples(values: np.ndarray) -> list[int]:
        with wave.open(io.BytesIO(wav(values, 10))) as sound:
            return np.frombuffer(sound.readframes(1000), "<i2").tolist()

    assert samples(np.array([[0.5, -1.0], [9, 9]], np.float32)) == [16383, -32767]
    assert samples(np.array([2.0, -1.0])) == [32767, -16383]
    assert samples(np.array([1, -2], np.int16)) == [1, -2]
    assert len(samples(np.zeros(500, np.int16))) == 100, "ten seconds"


def test_words_of_a_vocabulary() -> None:
    about = {"tokens": {"kind": "tokens", "version": 1, "words": ["the", "cat"]}}
    manifest = Manifest("s", {}, {"tokens": Column("int64", (3,))}, 16, {}, preparation=about)
    assert shown(manifest, "tokens", np.array([0, 1, 7])).content == "the cat ?"
    assert shown(Manifest("s", {}, manifest.columns, 16, {}), "tokens", np.array([0, 1, 7])).content == "0 1 7"


def test_a_histogram_without_numbers_is_not_drawn() -> None:
    assert histogram(Part(None, None, None, None, None, 3, ())) == ""
    assert histogram(Part(0, 1, 0.5, 0, 0.5, 0, (2, 1))).count("<rect") == 2
