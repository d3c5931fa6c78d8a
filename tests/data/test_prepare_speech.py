"""Speech: features against scipy's and a hand formula, splits, strings, spelling, and what is refused."""

from __future__ import annotations

import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import ShortTimeFFT

from distdl.data.corpora.speech import Options, _tones
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.data.sounds import filters, log_mel
from distdl.errors import InputError


def write_wav(path: Path, sound: np.ndarray, rate: int = 8000, bits: int = 16) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        file.writeframes((np.round(sound * 2**15).astype("<i2") if bits == 16 else sound.astype("u1")).tobytes())


def whole(path: Path, split: str) -> dict:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Three words of two speakers in four takes; take n of a word is noise of 0.1 (n + 1) seconds."""
    random = np.random.default_rng(0)
    (tmp_path / "wav" / "inner").mkdir(parents=True)
    for w, word in enumerate(("7", "no", "0")):
        for s, speaker in enumerate(("ann", "bob")):
            for take in range(4):
                sound = 0.1 * random.standard_normal(800 * (take + 1) + 10 * w)
                write_wav(tmp_path / "wav" / ("inner" if s else "") / f"{word}_{speaker}_{take}.wav", sound)
    return tmp_path / "wav"


def test_the_spectrum_is_scipys_and_the_filters_are_a_hand_formula() -> None:
    sound, rate = np.random.default_rng(1).standard_normal(1234), 8000
    stft = ShortTimeFFT(np.hamming(200), 80, rate, mfft=256)
    # scipy's slices are centred on multiples of the hop: with 60 zeros in front the fourth one is our first, 0 .. 199.
    power = np.abs(stft.stft(np.concatenate([np.zeros(60), sound]))[:, 3:16]) ** 2  # (129, 13)
    mel = lambda f: 1127 * np.log(1 + f / 700)  # noqa: E731
    corners = 700 * (np.exp(np.linspace(0, mel(4000), 14) / 1127) - 1)
    bank = np.stack([np.interp(np.arange(129) * 31.25, corners[i : i + 3], [0, 1, 0]) for i in range(12)])
    assert np.abs(filters(rate, 256, 12) - bank).max() < 1e-10
    assert np.abs(log_mel(sound, rate, 12) - np.log(bank @ power + 1e-8).T).max() < 1e-10
    assert (filters(rate, 256, 80).sum(1) > 0.5).all()  # none is empty, though the lowest are narrower than a bin
    assert log_mel(sound[:50], rate, 12).shape == (1, 12)


def test_takes_or_a_speaker_are_held_out(tmp_path: Path, recordings: Path) -> None:
    options = {"path": str(recordings), "mels": 12, "frames": 30, "test_takes": 1}
    manifest = prepare_dataset("speech", tmp_path / "a", options)
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 18, "test": 6}
    assert manifest.info["classes"] == ["0", "7", "no"]
    train, test = (whole(tmp_path / "a", split) for split in ("train", "test"))
    assert train["x"].shape == (18, 30, 12) and sorted(test["label"].tolist()) == [0, 0, 1, 1, 2, 2]
    assert test["frames"].tolist() == [8] * 6 and sorted(set(train["frames"].tolist())) == [18, 28, 30]  # 4: is cut
    real = np.arange(30) < train["frames"][:, None]
    assert not train["x"][~real].any()
    assert np.abs(train["x"][real].mean(0)).max() < 1e-5 and np.abs(train["x"][real].std(0) - 1).max() < 1e-5
    by_speaker = prepare_dataset("speech", tmp_path / "b", {**options, "test_speaker": "bob"})
    assert {name: split.rows for name, split in by_speaker.splits.items()} == {"train": 12, "test": 12}


def test_a_zip_is_read_as_its_folder(tmp_path: Path, recordings: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in sorted(recordings.rglob("*.wav")):
            archive.write(file, file.relative_to(recordings))
        archive.writestr("README.md", "no sound")
    rows = []
    for path in (recordings, tmp_path / "all.zip"):
        prepare_dataset("speech", tmp_path / path.stem / "data", {"path": str(path), "test_takes": "1"})
        rows.append(whole(tmp_path / path.stem / "data", "train"))
    assert all(np.array_equal(rows[0][name], rows[1][name]) for name in ("x", "frames", "label"))


def test_strings_hold_every_recording_once_and_one_speaker(tmp_path: Path, recordings: Path) -> None:
    options = {"path": recordings, "frames": 70, "test_takes": 1, "longest": 3, "mels": 12}
    prepare_dataset("speech", tmp_path / "a", options)
    train = whole(tmp_path / "a", "train")
    assert train["length"].sum() == 18 and train["length"].max() > 1 and train["frames"].max() <= 70
    told = np.concatenate([row[:n] for row, n in zip(train["label"], train["length"])])
    assert (np.bincount(told) == 6).all() and not train["label"][np.arange(3) >= train["length"][:, None]].any()
    prepare_dataset("speech", tmp_path / "b", {**options, "spell": True})
    spelt = whole(tmp_path / "b", "train")
    letters, words = " abcdefghijklmnopqrstuvwxyz'", ["zero", "seven", "no"]
    for row, n, label, length in zip(train["label"], train["length"], spelt["label"], spelt["length"]):
        assert "".join(letters[i] for i in label[:length]) == " ".join(words[i] for i in row[:n])


def test_without_a_path_it_rings_telephone_keys(tmp_path: Path) -> None:
    recordings, rate = _tones(Options(takes=2))
    keys = {"1": (697, 1209), "5": (770, 1336), "9": (852, 1477), "0": (941, 1336)}
    for r in recordings:
        if r.word in keys:
            spectrum = np.abs(np.fft.rfft(r.sound * np.hanning(len(r.sound)), rate))  # one bin a Hz
            low, high = spectrum[:1000].argmax(), 1000 + spectrum[1000:].argmax()
            assert abs(low - keys[r.word][0]) < 4 and abs(high - keys[r.word][1]) < 4
    first = prepare_dataset("speech", tmp_path / "a", {"takes": "6", "frames": "20"})
    assert {name: split.rows for name, split in first.splits.items()} == {"train": 30, "test": 150}
    assert prepare_dataset("speech", tmp_path / "b", {"takes": 6, "frames": 20}).fingerprint == first.fingerprint


def test_what_cannot_be_read_is_refused(tmp_path: Path, recordings: Path) -> None:
    def refused(match: str, **options: object) -> None:
        with pytest.raises(InputError, match=match):
            prepare_dataset("speech", tmp_path / "data", {"path": recordings, **options})

    refused("there is no folder or zip", path="nowhere")
    refused("mels is 0", mels=0)
    refused("no recording is left", test_takes=9)
    refused("no recording is left", test_speaker="eve")
    (tmp_path / "empty").mkdir()
    refused("no file named WORD_SPEAKER_TAKE", path=tmp_path / "empty")
    write_wav(recordings / "été_ann_9.wav", np.zeros(900))
    refused("the words have the letters", spell=True)
    write_wav(recordings / "yes_ann_9.wav", np.zeros(900), rate=16000)
    refused("samples a second")
    write_wav(recordings / "no_ann_8.wav", np.zeros(900), bits=8)
    refused("8 bits and 1 channels")
    (recordings / "0_ann_8.wav").write_bytes(b"MP3")
    refused("no WAV file")


def test_a_recording_that_was_cut_off_is_refused(tmp_path: Path, recordings: Path) -> None:
    file = recordings / "0_ann_3.wav"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"0_ann_3\.wav is cut off: the last 500 bytes"):
        prepare_dataset("speech", tmp_path / "data", {"path": recordings})
