"""A checkpoint folder: every bit comes back, damage is noticed, nothing half-written is seen, nothing in it can run."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distdl import files
from distdl.checkpoint import save as saving
from distdl.checkpoint.layout import MANIFEST, STATE, checkpoints, checksum, seal, step_folder
from distdl.checkpoint.load import Checkpoint, latest
from distdl.checkpoint.prune import best, prune
from distdl.checkpoint.save import save
from distdl.checkpoint.state import RunState
from distdl.config.load import config_from_dict
from distdl.engine.torch import TorchEngine
from distdl.errors import DataCorrupt, DistdlError, InputError, TrainingFailed
from distdl.families import build
from distdl.plan.facts import DataFacts, Hardware, ModelFacts
from distdl.plan.plan import make_plan
from tests.conftest import REPOSITORY
from tests.small import small_config


def new_engine(seed: int = 0, optimizer: dict[str, Any] | None = None, **model: Any) -> TorchEngine:
    values = small_config("mlp", "x", "")
    values["model"] |= model
    values |= {"optimizer": optimizer} if optimizer else {}
    facts = ModelFacts("mlp", 1, 1, 1, "accuracy", "higher", ("torch",), ())
    plan = make_plan(config_from_dict(values), facts, DataFacts("x", "f", 64, 0), Hardware("cpu", 1, 0))
    torch.manual_seed(seed)
    return TorchEngine(build(values["model"]), plan, 0)


def learn(engine: TorchEngine, start: int, steps: int) -> None:
    for step in range(start, start + steps):
        torch.manual_seed(1000 + step)
        batch = {
            "image": torch.rand(16, 1, 8, 8),
            "label": torch.randint(0, 10, (16,)),
            "id": torch.arange(16),
            "position": 16 * step + torch.arange(16),
        }
        for part in engine.feed(iter([batch]), step):
            engine.learner.update(part, engine, step)


def state_of(step: int, primary: float | None = None) -> RunState:
    data = {"position": 16 * step, "seed": 2**62 + 1}
    return RunState(step, stopped=False, data=data, optimizer_steps={"learner": step}, hooks={}, primary=primary)


def write(folder: Path, engine: TorchEngine, step: int, **more: Any) -> Path:
    return save(folder, engine, state_of(step, **more))[0]


def restored(checkpoint: Checkpoint, engine: TorchEngine) -> TorchEngine:
    checkpoint.load_weights(engine.learner)
    engine.load_optimizer(checkpoint.read, set(checkpoint.tensors), checkpoint.state.optimizer_steps)
    return engine


def bits(engine: TorchEngine) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in engine.tensors()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


@pytest.fixture(scope="module")
def trained() -> TorchEngine:
    engine = new_engine()
    learn(engine, 0, 3)
    return engine


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, trained: TorchEngine) -> Path:
    """A sound checkpoint of step 3; copy it before you spoil it."""
    return write(tmp_path_factory.mktemp("sound"), trained, 3)


@pytest.fixture
def folder(tmp_path: Path, sound: Path) -> Path:
    """A run's checkpoints: a sound one of step 3."""
    shutil.copytree(sound, tmp_path / sound.name)
    return tmp_path


def tensor_file(path: Path) -> Path:
    (file,) = path.glob("tensors-*.safetensors")
    return file


def flip(file: Path, place: int, bit: int = 1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= bit
    file.write_bytes(content)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the manifest, as a person or a newer version might have."""
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    manifest["xxh3"] = seal(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "adagrad", "lion"])
def test_every_bit_comes_back_and_training_goes_on_the_same(tmp_path: Path, name: str) -> None:
    optimizer = {"name": name, "lr": 0.01, **({"momentum": 0.9} if name in ("sgd", "rmsprop") else {})}
    engine = new_engine(0, optimizer)
    learn(engine, 0, 3)
    path, size = save(tmp_path, engine, state_of(3))
    assert path == tmp_path / "step_00000003" and size == tensor_file(path).stat().st_size
    checkpoint = Checkpoint(path)
    assert checkpoint.step == 3 and checkpoint.state == state_of(3)
    other = restored(checkpoint, new_engine(9, optimizer))
    assert equal(bits(other), bits(engine))
    kept = {n.split("/")[1] for n in bits(engine) if n.startswith("optimizer/")}
    assert (
        kept
        == {
            "adamw": {"exp_avg", "exp_avg_sq"},
            "adam": {"exp_avg", "exp_avg_sq"},
            "sgd": {"momentum_buffer"},
            "rmsprop": {"square_avg", "momentum_buffer"},
            "adagrad": {"sum"},
            "lion": {"exp_avg"},
        }[name]
    )
    learn(engine, 3, 3)
    learn(other, 3, 3)
    assert equal(bits(other), bits(engine))
    assert not torch.equal(bits(engine)["weights/net.0.weight"], checkpoint.read("weights/net.0.weight"))


def test_what_is_in_the_folder(sound: Path, trained: TorchEngine) -> None:
    assert sorted(p.name for p in sound.iterdir()) == [MANIFEST, STATE, "tensors-00000-00000.safetensors"]
    manifest = json.loads((sound / MANIFEST).read_text())
    assert (manifest["format"], manifest["version"], manifest["family"]) == ("distdl-checkpoint", 2, "mlp")
    assert manifest["model"]["hidden"] == [24, 17] and manifest["step"] == 3
    for name, meta in manifest["files"].items():
        assert (meta["bytes"], meta["xxh3"]) == ((sound / name).stat().st_size, checksum(sound / name))
    assert manifest["files"].keys() == {STATE, "tensors-00000-00000.safetensors"}
    weights = {n.removeprefix("weights/") for n in manifest["tensors"] if n.startswith("weights/")}
    assert weights == {n for n, _ in trained.learner.named_parameters()}
    assert manifest["tensors"]["weights/net.0.weight"]["shape"] == [24, 64]
    assert "world" not in manifest and "layout" not in manifest  # it knows nothing of who wrote it


def test_large_states_go_into_several_files(
    tmp_path: Path, trained: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "FILE_BYTES", 2000)
    path = write(tmp_path, trained, 3)
    assert len(list(path.glob("tensors-00000-*.safetensors"))) > 3
    assert equal(bits(restored(Checkpoint(path), new_engine(9))), bits(trained))


def test_the_same_step_again_replaces_it(folder: Path) -> None:
    engine = new_engine(5)
    learn(engine, 0, 1)
    path = write(folder, engine, 3)
    assert [p for _, p in checkpoints(folder)] == [path]
    assert torch.equal(Checkpoint(path).read("weights/net.0.bias"), bits(engine)["weights/net.0.bias"])


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_noticed(folder: Path) -> None:
    path = folder / step_folder(3)
    for file in (tensor_file(path), path / STATE):
        size = file.stat().st_size
        for place in [0, 7, 8, 100, size // 2, size - 1] if size > 2000 else range(0, size, 11):
            flip(file, place)
            with pytest.raises(DataCorrupt, match=f"is damaged: {file.name} is not what was written") as caught:
                Checkpoint(path)
            assert str(path) in str(caught.value) and caught.value.exit_code == 1
            flip(file, place)
    assert Checkpoint(path).step == 3


def test_a_shorter_or_missing_file_is_noticed(folder: Path) -> None:
    path = folder / step_folder(3)
    file = tensor_file(path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataCorrupt, match=file.name):
        Checkpoint(path)
    file.unlink()
    with pytest.raises(DataCorrupt, match=f"is not whole: {file.name} is missing"):
        Checkpoint(path)


def test_a_flipped_bit_in_the_manifest_is_noticed(folder: Path) -> None:
    path = folder / step_folder(3)
    text, missed = (path / MANIFEST).read_bytes(), []
    end = text.index(b'"tensors": {') + 300  # the rest is more of the same
    for place in range(0, end, 5):
        flip(path / MANIFEST, place)
        try:
            Checkpoint(path)
            missed.append(text[max(0, place - 20) : place + 5])
        except DistdlError:
            pass
        except Exception as error:
            missed.append(f"{type(error).__name__}: {error}".encode())
        flip(path / MANIFEST, place)
    assert missed == []


# -- what is no checkpoint of ours -------------------------------------------------------------------------------------


def test_folders_of_others(tmp_path: Path, trained: TorchEngine) -> None:
    with pytest.raises(InputError, match=r"there is no .*nowhere"):
        Checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"empty is not a checkpoint of distdl(?s:.*)runs/NAME/checkpoints/step_00000100"
    ):
        Checkpoint(tmp_path / "empty")
    pickled = tmp_path / "global_step3"
    pickled.mkdir()
    torch.save(trained.learner.state_dict(), pickled / "mp_rank_00_model_states.pt")
    for path in (pickled, pickled / "mp_rank_00_model_states.pt"):
        with pytest.raises(InputError, match="is not a checkpoint of distdl") as caught:
            Checkpoint(path)
        assert caught.value.exit_code == 2


def test_manifests_of_others(folder: Path) -> None:
    path = folder / step_folder(3)
    keep = (path / MANIFEST).read_text()
    for text in ("{", "[]", "3", '"x"', "null", "{}", '{"name": "x"}', "\x00"):
        (path / MANIFEST).write_text(text)
        with pytest.raises(InputError, match="is not a manifest of distdl"):
            Checkpoint(path)
    (path / MANIFEST).write_text(keep)
    edit(path, lambda m: m.update(version=3))
    with pytest.raises(InputError, match=r"has version 3, and this distdl reads up to 2(?s:.*)upgrade distdl"):
        Checkpoint(path)
    edit(path, lambda m: m.update(version=1, format="other"))
    with pytest.raises(InputError, match="is of the format 'other', not 'distdl-checkpoint'"):
        Checkpoint(path)


def test_a_manifest_cannot_reach_outside_its_folder(folder: Path) -> None:
    path = folder / step_folder(3)
    (folder / "secret").write_text("x")
    meta = {"bytes": 1, "xxh3": checksum(folder / "secret")}
    for name in ("../secret", str(folder / "secret"), "x/../../secret"):
        edit(path, lambda m, n=name: m["files"].update({n: meta}))
        with pytest.raises(InputError, match="names a file outside its folder"):
            Checkpoint(path)
        edit(path, lambda m, n=name: m["files"].pop(n))
    assert Checkpoint(path).step == 3


@pytest.mark.parametrize("name", [MANIFEST, STATE, ""])
def test_a_link_out_of_a_checkpoint_is_not_followed(folder: Path, name: str) -> None:
    path = folder / step_folder(3)
    file = path / name if name else tensor_file(path)
    file.rename(path / "inside")
    file.symlink_to("inside")
    assert Checkpoint(path).step == 3
    (path / "inside").rename(folder / "private")
    file.unlink()
    file.symlink_to(folder / "private")
    with pytest.raises(DataCorrupt, match=rf"{file.name} is a link to .*private, outside the checkpoint"):
        Checkpoint(path)


@pytest.mark.parametrize("name", ["../other.safetensors", "unlisted.safetensors"])
def test_a_tensor_cannot_be_read_from_an_unchecked_file(folder: Path, name: str) -> None:
    path = folder / step_folder(3)
    shutil.copy(tensor_file(path), path / name)
    edit(path, lambda m: m["tensors"]["weights/net.0.bias"].update(file=name))
    with pytest.raises((InputError, DataCorrupt)):
        Checkpoint(path).read("weights/net.0.bias")


def test_another_model_is_told_by_name_and_shape(sound: Path) -> None:
    checkpoint = Checkpoint(sound)
    with pytest.raises(InputError) as caught:
        checkpoint.load_weights(new_engine(hidden=[24, 18]).learner)
    assert "holds another model: " in str(caught.value) and "--fresh" in str(caught.value)
    assert "weights/net.4.weight is [17, 24] in the checkpoint and [18, 24] in the model" in str(caught.value)
    assert "weights/net.4.bias is [17] in the checkpoint and [18] in the model" in str(caught.value)
    with pytest.raises(InputError, match=r"\(and 4 more\)"):  # five of nine are told
        checkpoint.load_weights(new_engine(hidden=[25, 18]).learner)
    with pytest.raises(InputError, match=r"the model has no weights/net.8.bias"):
        checkpoint.load_weights(new_engine(hidden=[24]).learner)
    with pytest.raises(InputError, match=r"the checkpoint has no weights/net.12.bias"):
        checkpoint.load_weights(new_engine(hidden=[24, 17, 9]).learner)


def test_a_refused_model_is_left_as_it_was(sound: Path) -> None:
    learner = new_engine(5, hidden=[24, 18]).learner
    before = {name: p.clone() for name, p in learner.named_parameters()}
    with pytest.raises(InputError):
        Checkpoint(sound).load_weights(learner)
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())


# -- the latest --------------------------------------------------------------------------------------------------------


def test_latest_falls_back_to_the_older_sound_one(folder: Path, trained: TorchEngine) -> None:
    assert latest(folder / "nothing") == (None, [])
    newest, newer = write(folder, trained, 20), write(folder, trained, 10)
    found, warnings = latest(folder)
    assert found is not None and found.step == 20 and warnings == []
    flip(tensor_file(newest), 500)
    found, warnings = latest(folder)
    assert found is not None and found.step == 10 and len(warnings) == 1
    assert str(newest) in warnings[0] and tensor_file(newest).name in warnings[0]
    (newer / MANIFEST).unlink()
    found, warnings = latest(folder)
    assert found is not None and found.step == 3
    assert [str(p) in w for p, w in zip((newest, newer), warnings)] == [True, True]
    flip(folder / step_folder(3) / STATE, 9)
    with pytest.raises(DataCorrupt, match=r"no sound checkpoint is left in this run; start afresh with --fresh"):
        latest(folder)


@pytest.mark.parametrize("key", ["files", "tensors", "step", "version"])
def test_latest_falls_back_over_a_maimed_manifest(folder: Path, trained: TorchEngine, key: str) -> None:
    edit(write(folder, trained, 10), lambda m: m.pop(key))
    found, warnings = latest(folder)
    assert found is not None and found.step == 3 and len(warnings) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(files=[]), "files is list, not dict"),
        (lambda m: m.update(version="9"), "version is str, not int"),
        (lambda m: m.update(step=True), "step is bool, not int"),
        (lambda m: m["files"].update({STATE: "x"}), f"files: {STATE}: a str stands where a mapping should"),
        (lambda m: m["files"][STATE].update(bytes="7"), f"files: {STATE}: bytes is str, not int"),
        (lambda m: m["tensors"].update({"weights/x": {"file": 3}}), "tensors: weights/x: file is int, not str"),
    ],
)
def test_latest_falls_back_over_a_sealed_manifest_of_wrong_types(
    folder: Path, trained: TorchEngine, change: Any, says: str
) -> None:
    edit(write(folder, trained, 10), change)
    found, warnings = latest(folder)
    assert found is not None and found.step == 3 and says in warnings[0] and step_folder(10) in warnings[0]


WHOLE = '{"step": 10, "stopped": false, "data": {}, "optimizer_steps": {}, "hooks": {}, "loss_scales": %s}'


@pytest.mark.parametrize(
    "state",
    [
        "[1]",
        "{}",
        '{"step": 10, "stopped": 0}',
        *(WHOLE % scales for scales in ("[]", '{"a": 1}', '{"a": {"b": "c"}}')),
    ],
)
def test_latest_falls_back_over_a_state_of_wrong_types(folder: Path, trained: TorchEngine, state: str) -> None:
    path = write(folder, trained, 10)
    (path / STATE).write_text(state)
    size, xxh3 = (path / STATE).stat().st_size, checksum(path / STATE)
    edit(path, lambda m: m["files"].update({STATE: {"bytes": size, "xxh3": xxh3}}))
    found, warnings = latest(folder)
    assert found is not None and found.step == 3 and STATE in warnings[0]


class Kept:
    """A source or a hook that keeps a number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


def test_a_run_is_put_together_and_taken_apart_in_one_place(tmp_path: Path, trained: TorchEngine) -> None:
    """With the keys and the bytes that state.json has always had; a hook that is new begins anew."""
    state = RunState.of(trained, Kept(16), {"log": Kept(1), "gone": Kept(2)}, 3, True, 0.5)
    path, _ = save(tmp_path, trained, state)
    kept = {"log": {"number": 1}, "gone": {"number": 2}}
    values = {"step": 3, "stopped": True, "data": {"number": 16}, "optimizer_steps": {"learner": 3}, "hooks": kept}
    assert (path / STATE).read_text() == json.dumps(values | {"primary": 0.5}, indent=1)
    checkpoint, engine, source = Checkpoint(path), new_engine(9), Kept(0)
    assert checkpoint.state == state
    hooks = {"log": Kept(0), "new": Kept(7)}
    checkpoint.load_weights(engine.learner)
    checkpoint.state.restore(engine, source, hooks, checkpoint.read, checkpoint.tensors)
    assert (source.number, hooks["log"].number, hooks["new"].number) == (16, 1, 7)
    assert engine.optimizer_steps == {"learner": 3} and equal(bits(engine), bits(trained))


@pytest.mark.parametrize("more", [{}, {"of another release": 1}, {"primary": None}])
def test_a_state_in_an_older_form_is_read(folder: Path, trained: TorchEngine, more: dict[str, Any]) -> None:
    path = write(folder, trained, 10, primary=0.7)
    old = {"step": 10, "stopped": False, "data": {"position": 160}, "optimizer_steps": {"learner": 10}, "hooks": {}}
    (path / STATE).write_text(json.dumps(old | more))
    size, xxh3 = (path / STATE).stat().st_size, checksum(path / STATE)
    edit(path, lambda m: m["files"].update({STATE: {"bytes": size, "xxh3": xxh3}}))
    assert Checkpoint(path).state == RunState(10, False, {"position": 160}, {"learner": 10}, {}, None)
    assert best(folder, "higher") == [] and latest(folder)[0].step == 10  # type: ignore[union-attr]


def test_a_checkpoint_that_was_renamed_is_not_believed(folder: Path, trained: TorchEngine) -> None:
    """It is neither continued from as the newest, nor the best, nor does a sound one go in its stead."""
    write(folder, trained, 10, primary=0.7)
    write(folder, trained, 20, primary=0.9).rename(folder / step_folder(90))
    found, warnings = latest(folder)
    assert found is not None and found.step == 10
    assert f"{step_folder(90)} is that of step 20" in warnings[0] and "give it its name back" in warnings[0]
    assert best(folder, "higher")[0].name == step_folder(10)
    assert [p.name for p in prune(folder, 1, 0, "higher")] == [step_folder(3)]
    assert steps_in(folder) == [10, 90]
    (folder / step_folder(90)).rename(folder / "a-copy-of-mine")  # any other name is the user's own affair
    assert Checkpoint(folder / "a-copy-of-mine").step == 20


def test_what_a_kill_left_half_removed_goes_at_the_next_start(folder: Path) -> None:
    for name in (".removing-step_00000002", ".removing-.writing-1-step_00000004", ".writing-1-step_00000005"):
        (folder / name).mkdir()
        (folder / name / "tensors").write_text("x")
    saving.remove_drafts(folder)
    assert [p.name for p in folder.iterdir()] == [step_folder(3)]


def test_only_published_folders_count(folder: Path) -> None:
    for name in (".writing-step_00000009", ".removing-step_00000008", "step_9", "step_00000007.old", "notes"):
        (folder / name).mkdir()
    (folder / "step_123456789").mkdir()  # beyond eight digits is fine
    assert [step for step, _ in checkpoints(folder)] == [3, 123456789]


# -- crashes and full disks --------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


def crash(*args: Any, **kwargs: Any) -> None:
    raise Crash


@pytest.mark.parametrize("place", ["write_safetensors", "write_json", "os.rename", "sync_folder"])
def test_a_crash_while_writing_leaves_the_older_one(
    folder: Path, trained: TorchEngine, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def crash_after_the_rename(path: Path) -> None:
        if path == folder:
            crash()

    with monkeypatch.context() as patch:
        if place == "os.rename":
            patch.setattr(os, "rename", crash)
        else:
            patch.setattr(saving, place, crash_after_the_rename if place == "sync_folder" else crash)
        with pytest.raises(Crash):
            write(folder, trained, 6)
    published = place == "sync_folder"  # the rename is done by then
    assert [step for step, _ in checkpoints(folder)] == ([3, 6] if published else [3])
    found, warnings = latest(folder)
    assert found is not None and found.step == (6 if published else 3) and warnings == []
    assert write(folder, trained, 6).is_dir()  # the next run writes over the remains
    assert sorted(p.name for p in folder.iterdir()) == [step_folder(3), step_folder(6)]
    assert Checkpoint(folder / step_folder(6)).step == 6


@pytest.mark.parametrize("place", ["write_safetensors", "write_json", "manifest", "os.rename"])
def test_a_full_disk_ends_the_run_and_spares_the_older_one(
    folder: Path, trained: TorchEngine, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(path: Path, *args: Any) -> None:
        if place == "manifest" and path.name == STATE:
            files.write_json(path, *args)
            return
        if place == "write_safetensors":
            path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "os.rename":
            patch.setattr(os, "rename", full)
        else:
            patch.setattr(saving, "write_safetensors" if place == "write_safetensors" else "write_json", full)
        with pytest.raises(TrainingFailed) as caught:
            write(folder, trained, 6)
    text = str(caught.value)
    assert text.startswith("the checkpoint of step 6 could not be written: rank 0: No space left on device\n")
    assert f"older checkpoints in {folder} are untouched" in text and caught.value.exit_code == 1
    assert [p.name for p in folder.iterdir()] == [step_folder(3)]  # nothing half-written is left, hidden or not
    assert Checkpoint(folder / step_folder(3)).step == 3


def test_a_folder_that_cannot_be_written_is_a_clear_failure(
    folder: Path, trained: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(TrainingFailed, match="the checkpoint of step 6 could not be written"):
        write(folder, trained, 6)


def test_a_published_checkpoint_was_flushed_to_the_disk(
    folder: Path, trained: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contents and their names first, then the rename, then the folder that holds the new name."""
    events: list[str] = []
    sync, rename = os.fsync, os.rename

    def noted_sync(descriptor: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    write(folder, trained, 6)
    draft = f".writing-0-{step_folder(6)}"
    assert events == ["tensors-00000-00000.safetensors", STATE, MANIFEST, draft, "rename", folder.name]


# -- pruning -----------------------------------------------------------------------------------------------------------


def scored(folder: Path, values: dict[int, Any]) -> None:
    for step, value in values.items():
        path = folder / step_folder(step)
        path.mkdir()
        (path / STATE).write_text(json.dumps({"step": step, "primary": value}))


def steps_in(folder: Path) -> list[int]:
    return [step for step, _ in checkpoints(folder)]


@pytest.mark.parametrize(
    ("better", "keep_last", "keep_best", "left"),
    [
        ("higher", 2, 1, [20, 60, 70]),
        ("higher", 1, 2, [20, 40, 70]),  # of equals the earlier one
        ("lower", 2, 1, [10, 60, 70]),
        ("lower", 1, 2, [10, 50, 70]),
        ("higher", 3, 0, [50, 60, 70]),
        ("higher", 99, 1, [10, 20, 30, 40, 50, 60, 70]),
    ],
)
def test_the_newest_and_the_best_are_kept(
    tmp_path: Path, better: Any, keep_last: int, keep_best: int, left: list[int]
) -> None:
    scored(tmp_path, {10: 0.1, 20: 0.9, 30: None, 40: 0.8, 50: 0.3, 60: 0.8, 70: float("nan")})
    before = steps_in(tmp_path)
    removed = prune(tmp_path, keep_last, keep_best, better)
    assert steps_in(tmp_path) == left
    assert [int(p.name.removeprefix("step_")) for p in removed] == [s for s in before if s not in left]
    assert len(list(tmp_path.iterdir())) == len(left)  # nothing hidden stays behind
    assert prune(tmp_path, keep_last, keep_best, better) == []


def test_the_best_is_the_best_of_all_and_survives_damage_elsewhere(tmp_path: Path) -> None:
    scored(tmp_path, {10: 0.5, 20: 0.7, 30: 0.6})
    (tmp_path / step_folder(20) / STATE).write_text("{")
    assert [p.name for p in best(tmp_path, "higher")] == [step_folder(30), step_folder(10)]
    (tmp_path / step_folder(30) / STATE).unlink()
    assert [p.name for p in best(tmp_path, "higher")] == [step_folder(10)]
    assert best(tmp_path / "nothing", "lower") == []


# -- nothing in it can run ---------------------------------------------------------------------------------------------

RUNS_CODE = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
CALLS = {"torch.load", "torch.save", "np.load", "numpy.load", "eval", "exec", "compile", "read_pickle", "yaml.load"}


def forbidden(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in RUNS_CODE)
        elif isinstance(node, ast.ImportFrom):
            names = {a.name for a in node.names}
            if (node.module or "").split(".")[0] in RUNS_CODE or (node.module == "torch" and names & {"load", "save"}):
                yield f"from {node.module}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            yield ast.unparse(node.func)


def runs_nothing(source: str) -> bool:
    """Every torch.load is restricted to tensors, and pickle is there for the name of its error."""
    tree = ast.parse(source)
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
    uses = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pickle"}
    restricted = [{ast.unparse(keyword) for keyword in load.keywords} >= {"weights_only=True"} for load in loads]
    return uses <= {"UnpicklingError"} and all(restricted)


def test_no_pickle_in_the_checkpoint_room() -> None:
    files = sorted((REPOSITORY / "distdl" / "checkpoint").glob("*.py"))
    assert len(files) >= 4
    sources = {f.name: f.read_text(encoding="utf-8") for f in files}
    foreign = {"deepspeed_folder.py": {"pickle", "torch.load", "torch.save"}}  # DeepSpeed's own files are pickles
    assert {n: set(forbidden(s)) for n, s in sources.items()} == {n: foreign.get(n, set()) for n in sources}
    assert runs_nothing(sources["deepspeed_folder.py"])
    assert not runs_nothing("torch.load(f)") and not runs_nothing("torch.load(f, weights_only=False)")
    assert not runs_nothing("pickle.load(f)")
    bad = "import pickle\nfrom torch import load\nimport torch\ntorch.load('x')\nfrom joblib import load\n"
    assert list(forbidden(bad)) == ["pickle", "from torch", "from joblib", "torch.load"]


def test_no_file_of_a_checkpoint_is_a_pickle(sound: Path) -> None:
    import pickle

    for file in sound.iterdir():
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, UnicodeDecodeError)):
            pickle.loads(file.read_bytes())  # noqa: S301 - our own file, written a moment ago
