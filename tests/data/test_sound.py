"""Recordings of every kind come to the right samples or features, or are refused by name."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import resample_poly

from distdl.data.manifest import Manifest, read_manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.data.sounds import Hearing, log_mel, prepare_sound, read_plain_wav, read_sound, read_sound_header
from distdl.errors import InputError

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (the extra `sound` has it)")
RATE = 8000


def tone(seconds: float, hz: float = 440.0, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def encoded(sound: np.ndarray, kind: str = "WAV", subtype: str | None = None, rate: int = RATE) -> io.BytesIO:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=kind, subtype=subtype)
    file.seek(0)
    return file


def hearing(samples: int = 10**6, rate: int = RATE, channel: str = "mean") -> Hearing:
    return Hearing(rate, samples, channel, "waveform")


def whole(path: Path, split: str = "train") -> dict:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of five tones of 0.2 to 0.24 s."""
    for i in range(10):
        path = tmp_path / "raw" / ("high", "low")[i % 2] / f"{i}.{('wav', 'flac')[i % 3 % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(0.2 + 0.01 * (i // 2), 300 + 900 * (i % 2)), RATE)
    return tmp_path / "raw"


def prepared(folder: Path, **options: Any) -> Manifest:
    settings = {"path": folder, "test_fraction": 0, **options}
    return prepare_dataset("sound", folder.parent / "set", settings, overwrite=True)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        prepared(folder, **options)
    return str(caught.value)


# -- one recording -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "subtype", "step"),
    [
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "PCM_32", 2**-23),  # float32 holds no more
        ("WAV", "FLOAT", 2**-24),
        ("WAV", "DOUBLE", 2**-24),
        ("WAVEX", "PCM_16", 2**-15),
        ("WAVEX", "PCM_24", 2**-23),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
        ("AIFF", "PCM_16", 2**-15),
    ],
)
def test_every_depth_has_the_same_samples(kind: str, subtype: str, step: float) -> None:
    sound = tone(0.1)
    file = encoded(sound, kind, subtype)
    assert np.abs(read_sound(file, "a", hearing()) - sound).max() <= step
    file.seek(0)
    assert read_sound_header(file, "a")[:3] == (RATE, 800, 1)


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_lossy_formats_sound_alike(kind: str, subtype: str | None) -> None:
    sound = tone(1.0)
    found = read_sound(encoded(sound, kind, subtype), "a", hearing(8000))
    spectrum = np.abs(np.fft.rfft(found, 8000))
    assert spectrum.argmax() == 440 and abs(np.abs(found[1000:7000]).max() - 0.5) < 0.05


def test_two_channels_are_their_mean_or_one_of_them() -> None:
    both = np.stack([tone(0.1), -0.5 * tone(0.1)], 1)
    for channel, expected in (("mean", both.mean(1)), ("0", both[:, 0]), ("1", both[:, 1])):
        assert np.abs(read_sound(encoded(both), "a", hearing(channel=channel)) - expected).max() < 2**-14
    with pytest.raises(InputError, match="a has 2 channels, and none of the number 2"):
        read_sound(encoded(both), "a", hearing(channel="2"))


def test_resampling_is_scipys_and_a_cut_one_is_the_beginning_of_the_whole() -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 44100)
    stored = soundfile.read(encoded(sound, rate=44100), dtype="float32")[0]
    expected = resample_poly(stored, 160, 441)
    assert len(expected) == 16000
    for samples in (100, 5000, 16000, 20000):
        found = read_sound(encoded(sound, rate=44100), "a", hearing(samples, 16000))
        assert len(found) == min(samples, 16000) and np.abs(found - expected[:samples]).max() < 1e-6
    up = read_sound(encoded(tone(1.0)), "a", hearing(16000, 16000))
    assert np.abs(up[200:-200] - tone(1.0, rate=16000)[200:-200]).max() < 2e-3


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_recording_that_was_cut_off_is_refused(kind: str, share: float) -> None:
    content = encoded(tone(2.0), kind).getvalue()
    with pytest.raises(InputError, match=r"^a is cut off|^a is not a recording"):
        read_sound(io.BytesIO(content[: int(len(content) * share)]), "a", hearing())
    assert len(read_sound(io.BytesIO(content), "a", hearing())) == 16000


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_was_cut_off_anywhere_is_refused(subtype: str) -> None:
    """libsndfile takes what is left for the whole."""
    content = encoded(np.random.default_rng(0).uniform(-0.5, 0.5, 10 * RATE), "OGG", subtype).getvalue()
    last = content.rfind(b"OggS")
    cut_off = (last, last + 5, last + 30, len(content) - 1, content.rfind(b"OggS", 0, last))
    for cut in cut_off:
        with pytest.raises(InputError, match="a is cut off: the end of its last page"):
            read_sound(io.BytesIO(content[:cut]), "a", hearing())
    assert len(read_sound(io.BytesIO(content), "a", hearing())) == 10 * RATE


def test_damage_behind_what_is_kept_is_found() -> None:
    content = bytearray(encoded(np.random.default_rng(0).uniform(-1, 1, 160000), "FLAC").getvalue())
    for i in range(len(content) - 9000, len(content) - 8000):
        content[i] ^= 0x5A
    with pytest.raises(InputError, match=r"a is not a recording that can be read|cut off or damaged"):
        read_sound(io.BytesIO(content), "a", hearing(100))
    with pytest.raises(InputError, match="a holds NaN"):
        read_sound(encoded(np.array([0.0, np.nan]), "WAV", "FLOAT"), "a", hearing())
    with pytest.raises(InputError, match="a holds 0 samples of 1 channels"):
        read_sound_header(encoded(np.zeros(0)), "a")
    with pytest.raises(InputError, match="at 2,000,000 Hz\n    allowed: sound of at most 256 channels"):
        read_sound(encoded(tone(0.1), rate=2_000_000), "a", hearing())
    with pytest.raises(InputError, match="a is not a recording that can be read: "):
        read_sound_header(io.BytesIO(b"no sound at all"), "a")


def test_a_wav_of_a_stream_that_did_not_know_its_length_is_read() -> None:
    content = bytearray(encoded(tone(0.1)).getvalue())
    at = content.index(b"data") + 4
    content[at : at + 4] = content[4:8] = b"\xff" * 4
    assert len(read_sound(io.BytesIO(content), "a", hearing())) == 800


def test_the_extensible_header_is_pcm_in_plain_wavs_too() -> None:
    plain, extensible = (encoded(tone(0.1), kind, "PCM_16").getvalue() for kind in ("WAV", "WAVEX"))
    assert extensible[20:22] == b"\xfe\xff"
    expected, found = (read_plain_wav(content, "a") for content in (plain, extensible))
    assert np.array_equal(expected[0], found[0]) and expected[1] == found[1] == RATE
    with pytest.raises(InputError, match="unknown format: 65534"):
        read_plain_wav(encoded(tone(0.1), "WAVEX", "FLOAT").getvalue(), "a")
    for length in (4, 11, 30, 44, 60):  # within the header
        with pytest.raises(InputError, match=r"a is no WAV file|a is cut off"):
            read_plain_wav(extensible[:length], "a")
    with pytest.raises(InputError, match="the last 600 bytes that its header promises are missing"):
        read_plain_wav(plain[:-600], "a")


# -- the source --------------------------------------------------------------------------------------------------------


def test_features_are_those_of_speech_standardised_over_the_training_part(tmp_path: Path, folder: Path) -> None:
    manifest = prepared(folder, mels=12, test_fraction=0.4)
    assert manifest.info["classes"] == ["high", "low"]
    assert manifest.columns["x"].shape == (22, 12)  # 0.24 s
    train, test = whole(tmp_path / "set"), whole(tmp_path / "set", "test")
    assert len(train["x"]) + len(test["x"]) == 10 and len(test["x"]) > 0
    real = np.arange(22) < train["frames"][:, None]
    assert not train["x"][~real].any() and sorted({*train["frames"], *test["frames"]}) == [18, 19, 20, 21, 22]
    assert np.abs(train["x"][real].mean(0)).max() < 1e-5 and np.abs(train["x"][real].std(0) - 1).max() < 1e-4
    record = manifest.preparation["x"]
    files = sorted((folder / "high").iterdir()) + sorted((folder / "low").iterdir())
    rows = [prepare_sound(record, file) for file in files]
    stored = {(*row.ravel().tolist(), n) for of in (train, test) for row, n in zip(of["x"], of["frames"])}
    assert {(*row.ravel().tolist(), n) for row, n in rows} == stored
    sound = soundfile.read(files[0], dtype="float32")[0]
    by_hand = (log_mel(sound, RATE, 12) - record["mean"]) / record["std"]
    assert np.abs(rows[0][0][: len(by_hand)] - by_hand).max() < 1e-5


def test_waveforms_are_cut_and_padded(tmp_path: Path, folder: Path) -> None:
    manifest = prepared(folder, features="waveform", seconds=0.22)
    rows = whole(tmp_path / "set")
    assert manifest.columns["x"].shape == (1760,) and rows["samples"].tolist() == [1600, 1680, 1760, 1760, 1760] * 2
    files = sorted((folder / "high").iterdir()) + sorted((folder / "low").iterdir())
    for row, length, file in zip(rows["x"], rows["samples"], files):
        assert np.array_equal(row[:length], soundfile.read(file, dtype="float32")[0][:1760]) and not row[length:].any()
        assert np.array_equal(prepare_sound(manifest.preparation["x"], file)[0], row)
    assert manifest.info["notes"] == [
        "4 of 10 recordings are longer than 0.22 s and were cut",
        "4 of 10 recordings are shorter than 0.22 s and were padded",
    ]
    assert manifest.info["sounds"] == {"stored_as": {"PCM_16": 10}}


def test_features_as_pictures(tmp_path: Path, folder: Path) -> None:
    prepared(folder, mels=12)
    recordings = whole(tmp_path / "set")
    x = recordings["x"]
    manifest = prepared(folder, mels=12, as_image=True)
    rows = whole(tmp_path / "set")
    assert list(manifest.columns) == ["image", "frames", "label"] and np.array_equal(rows["image"][:, 0], x)
    assert rows["frames"].tolist() == recordings["frames"].tolist()
    file = sorted((folder / "high").iterdir())[0]
    assert np.array_equal(
        prepare_sound(read_manifest(tmp_path / "set").preparation["image"], file)[0], rows["image"][0]
    )


def test_other_rates_are_refused_or_resampled_and_said(tmp_path: Path, folder: Path) -> None:
    soundfile.write(folder / "low" / "z.wav", np.stack([tone(0.2, rate=16000)] * 2, 1), 16000)
    text = refusal(folder)
    assert "the recordings have 2 rates: 10 of 8,000 Hz, 1 of 16,000 Hz, such as" in text and "rate_hz=8000" in text
    manifest = prepared(folder, rate_hz=4000, features="waveform", test_fraction=0)
    assert manifest.columns["x"].shape == (960,)
    assert manifest.info["notes"][1:] == [
        "1 recordings have several channels: the mean of their channels is taken",
        "11 recordings were resampled to 4,000 Hz",
    ]


def test_one_recording_much_longer_than_the_others_asks_for_a_length(folder: Path) -> None:
    soundfile.write(folder / "low" / "z.wav", tone(3.0), RATE)
    text = refusal(folder)
    assert "the longest recording has 3 s, half of them at most 0.22 s" in text and "seconds=" in text
    assert prepared(folder, seconds=3).columns["x"].shape == (298, 40)


def test_a_zip_of_splits_is_read_as_its_folder(tmp_path: Path, folder: Path) -> None:
    split = tmp_path / "split"
    for name in ("train", "test"):
        (split / name).parent.mkdir(exist_ok=True)
        (split / name / "a").mkdir(parents=True)
        (split / name / "b").mkdir()
    for i, file in enumerate(sorted(folder.rglob("*.*"))):
        (split / ("train" if i % 3 else "test") / "ab"[i % 2] / file.name).write_bytes(file.read_bytes())
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in split.rglob("*.*"):
            archive.write(file, Path("top") / file.relative_to(split))
    manifests = [prepared(path, seconds=0.2) for path in (split, tmp_path / "all.zip")]
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert {name: s.rows for name, s in manifests[1].splits.items()} == {"test": 4, "train": 6}


def test_all_damaged_recordings_are_named_at_once(folder: Path) -> None:
    files = sorted(folder.rglob("*.wav"))
    for file in files[:2]:
        file.write_bytes(file.read_bytes()[:-10])
    flac = sorted(folder.rglob("*.flac"))[0]
    flac.write_bytes(b"nothing")
    (folder / "low" / "notes.txt").write_text("none")
    text = refusal(folder)
    assert all(f"{file} is cut off" in text for file in files[:2]) and f"{flac} is not a recording" in text
    for file in (*files[:2], flac):
        file.unlink()
    assert prepared(folder).info["left_out"] == {".txt": 1}
    flacs = sorted(folder.rglob("*.flac"))
    for file in flacs[:2]:  # seen when they are decoded
        file.write_bytes(file.read_bytes()[:-100])
    for features in ("log_mel", "waveform"):
        text = refusal(folder, features=features)
        assert all(f"{file} is not a recording" in text for file in flacs[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "mfcc"}, "features is 'mfcc'"),
        ({"channel": "left"}, "channel is 'left'"),
        ({"mels": 0}, "mels=0"),
        ({"features": "waveform", "as_image": True}, "as_image goes with"),
        ({"seconds": 1e9}, "a row would have 8,000,000,000,000 samples"),
        ({"seconds": 0.00001}, "less than a sample"),
        ({"rate_hz": 50, "seconds": 1}, "the rate is 50 Hz"),
        ({"channel": "1"}, "has 1 channels, and none of the number 1"),
    ],
)
def test_wrong_options(folder: Path, options: dict, message: str) -> None:
    assert message in refusal(folder, **options)
