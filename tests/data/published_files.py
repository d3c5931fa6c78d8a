"""Small files in the form in which each data set of the catalogue is published: `PUBLISHED[name]()` gives their bytes by
name. Their contents are made up."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
import wave
import zipfile
from collections.abc import Callable

import numpy as np
import pytest

from tests.data.test_prepare_cifar import COARSE, FINE, TEN, records
from tests.data.test_prepare_idx import idx

Files = dict[str, bytes]
PUBLISHED: dict[str, Callable[[], Files]] = {}
DRAW = np.random.default_rng(0)
ROWS = 40


def published(*names: str) -> Callable[[Callable[[], Files]], Callable[[], Files]]:
    def keep(make: Callable[[], Files]) -> Callable[[], Files]:
        PUBLISHED.update(dict.fromkeys(names, make))
        return make

    return keep


def packed_tar(files: Files) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, member in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(member)
            tar.addfile(info, io.BytesIO(member))
    return content.getvalue()


def packed_zip(files: Files) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in files.items():
            archive.writestr(name, member)
    return content.getvalue()


def csv(rows: int, columns: int, answers: tuple[str, ...], delimiter: str = ",") -> bytes:
    """Numbers, and what is to be predicted behind them."""
    lines = (
        delimiter.join([*map(str, DRAW.normal(5, 2, columns).round(3)), answers[i % len(answers)]]) for i in range(rows)
    )
    return "".join(line + "\n" for line in lines).encode()


def sound(rate: int, seconds: float) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(DRAW.integers(-9000, 9000, int(rate * seconds)).astype("<i2").tobytes())
    return content.getvalue()


# -- pictures ----------------------------------------------------------------------------------------------------------


def digits(name: str, part: str) -> Files:
    pixels, labels = DRAW.integers(0, 256, (ROWS, 28, 28), np.uint8), (np.arange(ROWS) % 10).astype(np.uint8)
    files = {"images-idx3": idx(pixels), "labels-idx1": idx(labels)}
    return {f"{name}{part}-{what}-ubyte.gz": gzip.compress(content) for what, content in files.items()}


@published("mnist", "fashion_mnist", "kmnist")
def of_mnist() -> Files:
    return digits("", "train") | digits("", "t10k")


@published("emnist")
def of_emnist() -> Files:
    sets = [digits(f"emnist-{name}-", part) for name in ("balanced", "letters") for part in ("train", "test")]
    mapping = {"emnist-balanced-mapping.txt": b"0 48\n"}
    inside = {f"gzip/{name}": content for some in (*sets, mapping) for name, content in some.items()}
    return {"gzip.zip": packed_zip(inside)}


@published("usps")
def of_usps() -> Files:
    def lines() -> bytes:
        rows = (" ".join(f"{k}:{v:.3f}" for k, v in enumerate(DRAW.uniform(-1, 1, 256), 1)) for _ in range(ROWS))
        return "".join(f"{1 + i % 10} {row}\n" for i, row in enumerate(rows)).encode()

    return {"usps.bz2": bz2.compress(lines()), "usps.t.bz2": bz2.compress(lines())}


@published("svhn")
def of_svhn() -> Files:
    scipy_io = pytest.importorskip("scipy.io", reason="scipy is not installed")

    def part() -> bytes:
        content = io.BytesIO()
        labels = (1 + np.arange(ROWS)[:, None] % 10).astype(np.uint8)
        pixels = DRAW.integers(0, 256, (32, 32, 3, ROWS), np.uint8)
        scipy_io.savemat(content, {"X": pixels, "y": labels}, do_compression=True)
        return content.getvalue()

    return {"train_32x32.mat": part(), "test_32x32.mat": part()}


@published("cifar10")
def of_cifar10() -> Files:
    batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {f"cifar-10-batches-bin/{name}.bin": records(9, (10,), i).tobytes() for i, name in enumerate(batches)}
    files["cifar-10-batches-bin/batches.meta.txt"] = "\n".join([*TEN, "", ""]).encode()
    return {"cifar-10-binary.tar.gz": packed_tar({**files, "cifar-10-batches-bin/readme.html": b"<html>"})}


@published("cifar100")
def of_cifar100() -> Files:
    files = {f"cifar-100-binary/{part}.bin": records(30, (20, 100), 1).tobytes() for part in ("train", "test")}
    names = {"coarse": COARSE, "fine": FINE}
    files |= {f"cifar-100-binary/{k}_label_names.txt": "\n".join([*v, ""]).encode() for k, v in names.items()}
    return {"cifar-100-binary.tar.gz": packed_tar(files)}


@published("omniglot")
def of_omniglot() -> Files:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

    def part(folder: str) -> bytes:
        files = {}
        for alphabet in ("Korean", "Latin"):
            for i in range(12):
                content = io.BytesIO()
                image.fromarray(DRAW.integers(0, 2, (105, 105)).astype(bool)).save(content, "PNG")
                files[f"{folder}/{alphabet}/character{1 + i % 2:02}/{i:04}_01.png"] = content.getvalue()
        return packed_zip(files)

    return {f"{folder}.zip": part(folder) for folder in ("images_background", "images_evaluation")}


# -- tables ------------------------------------------------------------------------------------------------------------


@published("iris")
def of_iris() -> Files:
    return {"iris.data": csv(150, 4, ("Iris-setosa", "Iris-versicolor", "Iris-virginica")) + b"\n"}


@published("adult")
def of_adult() -> Files:
    row = "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male"
    rows = [f"{row[2:]}, {217 * i}, 0, 40, {('?', 'Cuba')[i % 2]}, {('<=50K', '>50K')[i % 2]}" for i in range(ROWS)]
    train = "".join(f"{20 + i}{rest}\n" for i, rest in enumerate(rows)) + "\n"
    test = "|1x3 Cross validator\n" + "".join(f"{30 + i}{rest}.\n" for i, rest in enumerate(rows)) + "\n"
    return {"adult.data": train.encode(), "adult.test": test.encode()}


@published("wine_quality")
def of_wine_quality() -> Files:
    names = '"fixed acidity";"volatile acidity";"citric acid";"residual sugar";"chlorides";"free sulfur dioxide"'
    names += ';"total sulfur dioxide";"density";"pH";"sulphates";"alcohol";"quality"\n'
    both = ("winequality-white.csv", "winequality-red.csv")
    return {name: names.encode() + csv(ROWS, 11, tuple("345678"), ";") for name in both}


@published("california_housing")
def of_california_housing() -> Files:
    rows = csv(ROWS, 8, tuple(f"{100000 + 1733 * i}.000000" for i in range(ROWS)))
    files = {"CaliforniaHousing/cal_housing.data": rows, "CaliforniaHousing/cal_housing.domain": b"longitude: c\n"}
    return {"cal_housing.tgz": packed_tar(files)}


@published("covertype")
def of_covertype() -> Files:
    return {"covtype.data.gz": gzip.compress(csv(70, 54, tuple("1234567")))}


@published("cdnow")
def of_cdnow() -> Files:
    def purchase(i: int) -> str:
        when = 19970101 + 100 * int(DRAW.integers(0, 12)) + int(DRAW.integers(0, 28))
        return f" {i // 4:05} {i // 4:04} {when}  {1 + i % 3}  {DRAW.uniform(5, 60):6.2f}"

    return {"CDNOW_sample.txt": "".join(purchase(i) + "\r\n" for i in range(800)).encode()}


# -- text and sound ----------------------------------------------------------------------------------------------------


@published("tiny_shakespeare")
def of_tiny_shakespeare() -> Files:
    return {"input.txt": b"First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 60}


@published("sst")
def of_sst() -> Files:
    tree = "(3 (2 (2 The) (2 film)) (3 (2 is) (3 good)))\n(1 (2 It) (1 (1 bores) (2 .)))\n"
    files = {f"trees/{part}.txt": (tree * 20).encode() for part in ("train", "dev", "test")}
    return {"trainDevTestTrees_PTB.zip": packed_zip({**files, "trees/README": b"read me"})}


@published("multi30k")
def of_multi30k() -> Files:
    lines = {"de": "Zwei junge Männer sind im Freien.\n", "en": "Two young men are outside.\n"}
    names = [(part, language) for part in ("train", "val") for language in lines]
    return {f"{part}.{language}.gz": gzip.compress(lines[language].encode() * 40) for part, language in names}


@published("fsdd")
def of_fsdd() -> Files:
    top = "free-spoken-digit-dataset-1.0.9"
    takes = [(digit, who, take) for digit in range(10) for who in ("ann", "bob") for take in (0, 7)]
    files = {f"{top}/recordings/{d}_{who}_{take}.wav": sound(8000, 0.1) for d, who, take in takes}
    return {"v1.0.9.tar.gz": packed_tar({**files, f"{top}/README.md": b"read me"})}


@published("speech_commands")
def of_speech_commands() -> Files:
    pytest.importorskip("soundfile", reason="soundfile is not installed")
    files = {f"./{word}/{i:08x}_nohash_0.wav": sound(16000, 0.2) for word in ("yes", "no") for i in range(12)}
    files |= {"./_background_noise_/pink_noise.wav": sound(16000, 1), "./README.md": b"read me"}
    return {"speech_commands_v0.02.tar.gz": packed_tar(files)}


# -- series ------------------------------------------------------------------------------------------------------------


@published("sunspots")
def of_sunspots() -> Files:
    values = 50 + 40 * np.sin(np.arange(2820) / 20)
    lines = (f'"{1749 + i // 12}-{1 + i % 12:02}",{value:.1f}\n' for i, value in enumerate(values))
    return {"monthly-sunspots.csv": ('"Month","Sunspots"\n' + "".join(lines)).encode()}


@published("mackey_glass")
def of_mackey_glass() -> Files:
    return {"MackeyGlass_t17.txt": "".join(f"  {np.sin(i / 9):.7e}\n" for i in range(3000)).encode()}


@published("burgers")
def of_burgers() -> Files:
    scipy_io = pytest.importorskip("scipy.io", reason="scipy is not installed")
    x, t = np.linspace(-1, 1, 32)[:, None], np.linspace(0, 1, 10)[:, None]
    content = io.BytesIO()
    scipy_io.savemat(content, {"x": x, "t": t, "usol": -np.sin(np.pi * x) * np.exp(-t.T)})
    return {"burgers_shock.mat": content.getvalue()}
