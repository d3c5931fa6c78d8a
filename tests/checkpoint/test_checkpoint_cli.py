"""`distdl checkpoint`: what is told is true, damage has a name, and every bit survives the way through other formats."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from distdl.checkpoint.convert import _published
from distdl.checkpoint.layout import MANIFEST, STATE, checksum, step_folder
from distdl.checkpoint.load import Checkpoint
from distdl.config.load import load_config
from distdl.errors import InputError
from distdl.families import build
from distdl.run.folder import RunFolder
from distdl.train.worker import build_learner
from distdl.ways.start import checkpoint_of
from tests.checkpoint.test_checkpoint_folder import edit, flip, learn, new_engine, state_of, tensor_file, write
from tests.conftest import Result, python
from tests.ranks import run_ranks
from tests.small import MODELS, small_config

Command = Callable[..., Result]
GPT = {"family": "gpt", "vocabulary": 61, "context": 12, "layers": 3, "heads": 4, "width": 32}


def config_file(path: Path, values: dict[str, Any], **sections: Any) -> Path:
    path.write_text(yaml.safe_dump({**values, **sections}))
    return path


def tensors(path: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint(path)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def weights(path: Path) -> dict[str, Tensor]:
    return {n: t for n, t in tensors(path).items() if n.startswith("weights/")}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an mlp after 3 steps; copy it before you spoil it."""
    engine = new_engine()
    learn(engine, 0, 3)
    return write(tmp_path_factory.mktemp("run") / "checkpoints", engine, 3)


@pytest.fixture
def copy(tmp_path: Path, sound: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "checkpoints" / sound.name))


@pytest.fixture
def mlp(tmp_path: Path, digits: str) -> Path:
    """The YAML that `sound` was trained with."""
    return config_file(tmp_path / "mlp.yaml", small_config("mlp", digits, ""), runs=str(tmp_path / "runs"))


@pytest.fixture
def gpt(tmp_path: Path, text: str) -> tuple[Path, Path]:
    """(safetensors file, YAML) of a gpt with weights far from their start."""
    torch.manual_seed(5)
    learner = build(GPT)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.1 * torch.randn_like(p))
    save_file({name: p.detach() for name, p in learner.named_parameters()}, tmp_path / "gpt.safetensors")
    values = small_config("gpt", "", text)
    values["model"] = GPT
    return tmp_path / "gpt.safetensors", config_file(tmp_path / "gpt.yaml", values)


# -- inspect -----------------------------------------------------------------------------------------------------------


def test_inspect_tells_what_is_there(command: Command, sound: Path) -> None:
    told = json.loads(command("checkpoint", "inspect", sound.parent.parent, "--json", "--tensors").stdout)
    there = tensors(sound)
    assert (told["path"], told["step"], told["family"]) == (str(sound), 3, "mlp")
    assert told["parameters"] == sum(t.numel() for n, t in there.items() if n.startswith("weights/"))
    assert told["optimizer"] == ["exp_avg", "exp_avg_sq"] and told["position"] == 48 and told["files"] == 2
    assert told["bytes"] == sum((sound / name).stat().st_size for name in (STATE, tensor_file(sound).name))
    assert told["model"]["hidden"] == [24, 17]
    assert {n: (t["shape"], t["dtype"]) for n, t in told["tensors"].items()} == {
        n: (list(t.shape), "float32") for n, t in there.items()
    }
    printed = command("checkpoint", "inspect", sound, "--tensors").stdout
    assert f"parameters {told['parameters']:,}" in printed and "weights/net.0.weight" in printed
    assert "hidden [24, 17]" in printed and "48 samples seen" in printed
    assert "weights/net.0.weight" not in command("checkpoint", "inspect", sound).stdout


def test_inspect_reads_no_tensor(command: Command, copy: Path) -> None:
    before = command("checkpoint", "inspect", copy, "--tensors").stdout
    tensor_file(copy).unlink()
    assert command("checkpoint", "inspect", copy, "--tensors") == Result(0, before, "")


def test_inspect_of_what_is_none(command: Command, tmp_path: Path, copy: Path) -> None:
    gone = command("checkpoint", "inspect", tmp_path / "nothing")
    assert gone.code == 2 and "there is no" in gone.stderr and "fix:" in gone.stderr
    (copy / STATE).write_text("{")
    damaged = command("checkpoint", "inspect", copy)
    assert damaged.code == 1 and f"{STATE} is damaged" in damaged.stderr


# -- verify ------------------------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Changes the tensors of a checkpoint, checksums and all."""
    file = tensor_file(path)
    values = load_file(file)
    change(values)
    save_file(values, file)

    def renew(manifest: dict[str, Any]) -> None:
        manifest["files"][file.name] = {"bytes": file.stat().st_size, "xxh3": checksum(file)}
        manifest["tensors"] = {
            n: {"file": file.name, "shape": list(t.shape), "dtype": str(t.dtype)[6:]} for n, t in values.items()
        }

    edit(path, renew)


def verify_says(command: Command, path: Path, *texts: str) -> None:
    code, out, _ = command("checkpoint", "verify", path)
    assert code == 1 and all(text in out for text in texts), out


def test_a_sound_checkpoint_is_called_sound(command: Command, sound: Path) -> None:
    code, out, _ = command("checkpoint", "verify", sound)
    assert code == 0 and "every tensor is there and finite" in out


def test_damage_of_files_is_found_and_named(command: Command, copy: Path) -> None:
    name = tensor_file(copy).name
    flip(tensor_file(copy), -5)
    verify_says(command, copy, f"{name} is not what was written")
    tensor_file(copy).write_bytes(tensor_file(copy).read_bytes()[:-9])
    verify_says(command, copy, f"{name} has ")
    tensor_file(copy).unlink()
    (copy / STATE).unlink()
    verify_says(command, copy, f"{name} is missing", f"{STATE} is missing")
    flip(copy / MANIFEST, 40)
    assert command("checkpoint", "verify", copy).code == 1


def test_numbers_that_are_not_finite_are_damage(command: Command, copy: Path) -> None:
    def spoil(values: dict[str, Tensor]) -> None:
        values["weights/net.0.weight"][3, 2] = torch.nan
        values["optimizer/exp_avg_sq/net.0.bias"][:2] = torch.inf

    rewrite(copy, spoil)
    verify_says(
        command,
        copy,
        "weights/net.0.weight has 1 of 1,536 numbers that are not finite",
        "optimizer/exp_avg_sq/net.0.bias has 2 of 24 numbers",
    )


def test_tensors_that_are_missing_or_too_many_are_damage(command: Command, copy: Path) -> None:
    rewrite(copy, lambda values: values.pop("optimizer/exp_avg/net.0.bias"))
    verify_says(command, copy, "optimizer/exp_avg/net.0.bias is missing")
    rewrite(copy, lambda values: [values.pop(n) for n in ("weights/net.0.bias", "optimizer/exp_avg_sq/net.0.bias")])
    assert command("checkpoint", "verify", copy).code == 0  # a weight less, but a whole
    rewrite(copy, lambda values: values.pop("weights/net.0.weight"))
    verify_says(command, copy, "optimizer/exp_avg/net.0.weight belongs to no weight")
    extra = {"file": tensor_file(copy).name, "shape": [], "dtype": "float32"}
    edit(copy, lambda manifest: manifest["tensors"].update(more=extra))
    verify_says(command, copy, "more is missing")


def of_step(checkpoint: Path, step: int) -> Path:
    """A copy of a checkpoint as that of another step."""
    other = Path(shutil.copytree(checkpoint, checkpoint.with_name(step_folder(step))))
    edit(other, lambda manifest: manifest.update(step=step))
    return other


@pytest.mark.parametrize("spoil", ["missing", "cut"])
def test_a_lost_manifest_is_damage_and_the_others_are_verified(command: Command, copy: Path, spoil: str) -> None:
    other = of_step(copy, 9)
    manifest = copy / MANIFEST
    text = manifest.read_text()
    manifest.unlink() if spoil == "missing" else manifest.write_text(text[: len(text) // 2])
    done = command("checkpoint", "verify", copy.parent.parent)
    assert done.code == 1 and "Traceback" not in done.stderr
    assert f"{copy}: " in done.stdout and f"{other}: all bytes are as they were written" in done.stdout
    assert command("checkpoint", "verify", copy).code == 1


def test_every_checkpoint_of_a_run_is_verified(command: Command, copy: Path) -> None:
    later = of_step(copy, 5)
    flip(tensor_file(copy), -1)
    code, out, _ = command("checkpoint", "verify", copy.parent.parent)
    assert code == 1 and f"{copy}: tensors" in out and f"{later}: all bytes" in out


# -- convert: through other formats and back ---------------------------------------------------------------------------


def test_a_newer_checkpoint_that_is_damaged_is_told_by_whatever_takes_an_older_one(
    command: Command, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = of_step(copy, 5)
    flip(tensor_file(newer), -1)
    run = copy.parent.parent
    told = command("checkpoint", "convert", run, tmp_path / "out.safetensors", "--to", "safetensors")
    assert told.code == 0 and "step 3" in told.stdout
    for text in (told.stderr, str(checkpoint_of(RunFolder(run), "latest")) + capsys.readouterr().err):
        assert f"{newer} is damaged" in text and f"{copy.name} is taken" in text, text


def test_through_safetensors_and_back(command: Command, tmp_path: Path, sound: Path, mlp: Path) -> None:
    file, back = tmp_path / "w.safetensors", tmp_path / "back" / "step_00000000"
    assert command("checkpoint", "convert", sound, file).code == 0
    assert same({f"weights/{n}": t for n, t in load_file(file).items()}, weights(sound))
    code, out, err = command("checkpoint", "convert", file, back, "--config", mlp)
    assert code == 0 and "step 0, from a .safetensors file" in out, err
    assert same(tensors(back), weights(sound)) and command("checkpoint", "verify", back).code == 0
    assert Checkpoint(back).state.optimizer_steps == {"learner": 0}
    assert sorted(p.name for p in back.parent.iterdir()) == [back.name]


def test_the_same_format_keeps_every_bit_or_the_weights_only(
    command: Command, tmp_path: Path, sound: Path, mlp: Path
) -> None:
    whole, light = tmp_path / "step_00000003", tmp_path / "step_00000000"
    assert command("checkpoint", "convert", sound, whole).code == 0
    assert same(tensors(whole), tensors(sound)) and Checkpoint(whole).state == state_of(3)
    assert command("checkpoint", "convert", sound, light, "--weights-only", "--config", mlp).code == 0
    assert same(tensors(light), weights(sound)) and Checkpoint(light).step == 0
    misnamed = command("checkpoint", "convert", sound, tmp_path / "step_00000007")
    assert misnamed.code == 2 and "name it step_00000003" in misnamed.stderr


def test_buffers_keep_their_names_and_types(command: Command, tmp_path: Path, digits: str) -> None:
    values = small_config("cnn", digits, "")
    learner = build(MODELS["cnn"])
    state = {n: torch.full_like(t, 3) for n, t in learner.state_dict().items()}
    buffers = {n for n, _ in learner.named_buffers()}
    assert buffers
    save_file(state, tmp_path / "cnn.safetensors")
    config, back = config_file(tmp_path / "cnn.yaml", values), tmp_path / "ours"
    assert command("checkpoint", "convert", tmp_path / "cnn.safetensors", back, "--config", config).code == 0
    expected = {f"{'buffers' if n in buffers else 'weights'}/{n}": t for n, t in state.items()}
    assert same(tensors(back), expected)
    assert command("checkpoint", "convert", back, tmp_path / "again.safetensors").code == 0
    assert same(load_file(tmp_path / "again.safetensors"), state)


def test_through_hugging_face_and_back(command: Command, tmp_path: Path, gpt: tuple[Path, Path]) -> None:
    file, config = gpt
    first, folder, second = tmp_path / "first", tmp_path / "hf", tmp_path / "second"
    assert command("checkpoint", "convert", file, first, "--config", config).code == 0
    assert command("checkpoint", "convert", first, folder, "--to", "huggingface").code == 0
    theirs = load_file(folder / "model.safetensors")
    assert theirs["transformer.h.2.attn.c_attn.weight"].shape == (32, 96) and "lm_head.weight" not in theirs
    assert json.loads((folder / "config.json").read_text())["n_head"] == 4
    code, _, err = command("checkpoint", "convert", folder, second, "--config", config)
    assert code == 0 and same(tensors(second), tensors(first)), err
    (folder / "config.json").unlink()  # the file alone is enough
    third = command("checkpoint", "convert", folder / "model.safetensors", tmp_path / "third", "--config", config)
    assert third.code == 0 and same(tensors(tmp_path / "third"), tensors(first)), third.stderr


@pytest.mark.slow
def test_transformers_computes_the_same(command: Command, tmp_path: Path, gpt: tuple[Path, Path]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make bench installs it)")
    file, config = gpt
    ours = build(GPT).eval()
    ours.load_state_dict(load_file(file))
    tokens = torch.randint(0, 61, (2, 12))
    hf = command("checkpoint", "convert", file, tmp_path / "hf", "--to", "huggingface", "--config", config)
    assert hf.code == 0, hf.stderr
    peer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert (peer(tokens).logits - ours.logits(tokens)).abs().max() < 1e-5
        peer.transformer.h[1].mlp.c_fc.weight += 0.5
    peer.save_pretrained(tmp_path / "theirs")
    done = command("checkpoint", "convert", tmp_path / "theirs", tmp_path / "ours", "--config", config)
    assert done.code == 0, done.stderr
    Checkpoint(tmp_path / "ours").load_weights(ours)
    with torch.no_grad():
        assert (peer(tokens).logits - ours.logits(tokens)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "model of the type 'llama'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"n_inner": 7}, "n_inner is 7"),
        ({"n_head": 2}, "heads is 2 there and 4 in the config"),
    ],
)
def test_another_hugging_face_model_is_refused(
    command: Command, tmp_path: Path, gpt: tuple[Path, Path], change: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "hf"
    assert command("checkpoint", "convert", gpt[0], folder, "--to", "huggingface", "--config", gpt[1]).code == 0
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | change))
    refused = command("checkpoint", "convert", folder, tmp_path / "ours", "--config", gpt[1])
    assert refused.code == 2 and words in refused.stderr and not (tmp_path / "ours").exists()


def test_weights_of_another_architecture_of_the_same_shapes_are_refused(
    command: Command, tmp_path: Path, gpt: tuple[Path, Path]
) -> None:
    """8 heads have weights of the shapes of 4: only the settings tell them apart. Dropout may differ."""
    assert command("checkpoint", "convert", gpt[0], tmp_path / "four", "--config", gpt[1]).code == 0
    arguments = ("checkpoint", "convert", tmp_path / "four", tmp_path / "other", "--config", gpt[1])
    refused = command(*arguments, "model.heads=8")
    assert refused.code == 2 and "heads is 4 there and 8 in the config" in refused.stderr
    assert not (tmp_path / "other").exists()
    assert command(*arguments, "model.dropout=0.2").code == 0
    run = load_config(str(gpt[1]), ["model.heads=8"]).config  # a run that finds it among its checkpoints
    with pytest.raises(InputError, match="heads is 4 there and 8 in the config"):
        build_learner(run, Checkpoint(tmp_path / "four"))


def test_a_family_without_an_optimizer_is_converted(command: Command, tmp_path: Path, digits: str) -> None:
    values = small_config("som", digits, "")
    learner = build(values["model"])
    kept = {name: t.contiguous() for name, t in learner.state_dict().items()}
    save_file(kept, tmp_path / "som.safetensors")
    done = command(
        *("checkpoint", "convert", tmp_path / "som.safetensors", tmp_path / "som"),
        *("--config", config_file(tmp_path / "som.yaml", values)),
    )
    assert done.code == 0, done.stderr
    back = build(values["model"])
    Checkpoint(tmp_path / "som").load_weights(back)
    assert all(torch.equal(t, kept[name]) for name, t in back.state_dict().items())


# -- convert: refusals -------------------------------------------------------------------------------------------------


def test_what_cannot_be_converted_is_refused(
    command: Command, tmp_path: Path, sound: Path, copy: Path, mlp: Path, gpt: tuple[Path, Path]
) -> None:
    def refused(*args: object, code: int = 2) -> str:
        result = command("checkpoint", "convert", *args)
        assert result.code == code and "internal error" not in result.stderr, result
        return result.stderr

    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "weights.bin").write_bytes(b"x")
    assert "no format that is known" in refused(tmp_path / "strange", tmp_path / "t")
    assert "there is no" in refused(tmp_path / "nothing", tmp_path / "t")
    (tmp_path / "cut.safetensors").write_bytes(gpt[0].read_bytes()[:-3])
    assert "not a whole .safetensors file" in refused(tmp_path / "cut.safetensors", tmp_path / "t", code=1)
    flip(tensor_file(copy), -1)
    assert "its checksum differs" in refused(copy, tmp_path / "t.safetensors", code=1)
    assert "the families gpt" in refused(sound, tmp_path / "t", "--to", "huggingface")
    assert "--config" in refused(gpt[0], tmp_path / "t")
    assert "the model has no weights/blocks.0.attn.out.bias" in refused(gpt[0], tmp_path / "t", "--config", mlp)
    wider = refused(gpt[0], tmp_path / "t", "--config", gpt[1], "model.context=13")
    assert "weights/wpe.weight is [12, 32]" in wider and "[13, 32] in the model" in wider
    assert "keeps momentum_buffer" in refused(
        sound, tmp_path / "t", "--config", mlp, "optimizer={name: sgd, lr: 0.1, momentum: 0.9}"
    )
    assert "lie within each other" in refused(sound, sound / "t")
    assert "lie within each other" in refused(sound, sound, "--force")
    assert "add --config" in refused(sound, tmp_path / "t", "model.dropout=0")
    assert not list(tmp_path.glob("t*")) and not list(tmp_path.glob(".converting-*"))


def test_a_gpt_with_experts_has_no_hugging_face_model(command: Command, tmp_path: Path, copy: Path) -> None:
    edit(copy, lambda manifest: manifest.update(family="gpt", model=GPT))
    rewrite(copy, lambda values: values.update({"weights/blocks.0.experts.up": torch.ones(2)}))
    refused = command("checkpoint", "convert", copy, tmp_path / "t", "--to", "huggingface")
    assert refused.code == 2 and "mixture of experts" in refused.stderr


def test_a_target_is_replaced_only_on_demand_and_only_a_checkpoint(
    command: Command, tmp_path: Path, sound: Path
) -> None:
    target = tmp_path / "w.safetensors"
    target.write_text("mine")
    refused = command("checkpoint", "convert", sound, target)
    assert refused.code == 2 and "--force" in refused.stderr and target.read_text() == "mine"
    assert command("checkpoint", "convert", sound, target, "--force").code == 0 and len(load_file(target)) > 4
    for _ in range(2):
        assert command("checkpoint", "convert", sound, tmp_path / "ds", "--to", "deepspeed", "--force").code == 0
    home = tmp_path / "home"
    home.mkdir()
    (home / "latest").write_text("thesis")
    (home / "thesis").mkdir()
    refused = command("checkpoint", "convert", sound, home, "--force")
    assert refused.code == 2 and "holds no checkpoint" in refused.stderr and (home / "thesis").is_dir()


def test_a_full_disk_leaves_the_old_target(
    command: Command, tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distdl.checkpoint import convert

    target = tmp_path / "w.safetensors"
    target.write_text("mine")

    def full(path: Path, *_: Any) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "write_safetensors", full)
    failed = command("checkpoint", "convert", sound, target, "--force")
    assert failed.code == 1 and "No space left on device" in failed.stderr
    assert target.read_text() == "mine" and sorted(p.name for p in tmp_path.iterdir()) == ["w.safetensors"]


# -- convert: folders of DeepSpeed -------------------------------------------------------------------------------------

TRAP = []


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, (TRAP[0],))


def test_a_pickle_that_would_run_code_is_not_opened(command: Command, tmp_path: Path) -> None:
    TRAP[:] = [str(tmp_path / "trap")]
    folder = tmp_path / "ds"
    (folder / "global_step1").mkdir(parents=True)
    (folder / "latest").write_text("global_step1")
    torch.save({"module": {}, "client": Evil()}, folder / "global_step1" / "mp_rank_00_model_states.pt")
    refused = command("checkpoint", "convert", folder, tmp_path / "t.safetensors")
    assert refused.code == 2 and "posix.mkdir" in refused.stderr and "not opened" in refused.stderr
    assert not (tmp_path / "trap").exists() and not (tmp_path / "t.safetensors").exists()


def zero(folder: Path, stage: int, values: dict[str, Tensor], world: int, states: tuple[str, ...] = ()) -> Path:
    """A folder as DeepSpeed writes it, of one parameter group."""
    tag = folder / "global_step4"
    tag.mkdir(parents=True)
    (folder / "latest").write_text("global_step4")
    model = {
        "module": {n: v if stage < 3 else v[:0] for n, v in values.items()},
        "buffer_names": [],
        "param_shapes": [{n: v.shape for n, v in values.items()}],
        "shared_params": {},
        "global_steps": 4,
    }
    flats = [v.flatten() for v in values.values()]
    end = sum(f.numel() for f in flats) if stage < 3 else sys.maxsize
    if stage < 3:
        flat = torch.cat(flats)
        parts = torch.cat([flat, flat.new_zeros(-flat.numel() % (2 * world))]).chunk(world)
    else:
        cut = [torch.cat([f, f.new_zeros(-f.numel() % world)]).chunk(world) for f in flats]
        parts = tuple(torch.cat([pieces[rank] for pieces in cut]) for rank in range(world))
    for rank, part in enumerate(parts):
        state = {"state": {0: {key: part.clone() * (i + 2) for i, key in enumerate(states)}}}
        shard = {"zero_stage": stage, "partition_count": world}
        lean = part[: max(0, end - rank * part.numel())].clone()  # the weights lack the padding, the state has it
        shard |= {"single_partition_of_fp32_groups": [lean], "base_optimizer_state": state} if stage < 3 else {}
        shard |= {"fp32_flat_groups": [part.clone()], "optimizer_state_dict": state} if stage == 3 else {}
        torch.save({"optimizer_state_dict": shard}, tag / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3:
            torch.save(model, tag / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if stage < 3:
        torch.save(model, tag / "mp_rank_00_model_states.pt")
    return folder


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 3])
def test_parts_of_every_stage_become_whole(
    command: Command, tmp_path: Path, sound: Path, mlp: Path, stage: int, world: int
) -> None:
    values = {n.removeprefix("weights/"): t for n, t in weights(sound).items()}
    folder = zero(tmp_path / "ds", stage, values, world, ("exp_avg", "exp_avg_sq"))
    done = command("checkpoint", "convert", folder, tmp_path / "step_00000004", "--config", mlp)
    assert done.code == 0 and f"ZeRO-{stage}" in done.stdout, done.stderr
    expected = {f"weights/{n}": t for n, t in values.items()}
    expected |= {f"optimizer/exp_avg/{n}": 2 * t for n, t in values.items()}
    expected |= {f"optimizer/exp_avg_sq/{n}": 3 * t for n, t in values.items()}
    assert same(tensors(tmp_path / "step_00000004"), expected)
    state = Checkpoint(tmp_path / "step_00000004").state
    assert (state.step, state.data["position"], state.optimizer_steps) == (4, 64, {"learner": 4})


def test_weights_alone_start_a_run_at_step_0(command: Command, tmp_path: Path, sound: Path, mlp: Path) -> None:
    values = {n.removeprefix("weights/"): t for n, t in weights(sound).items()}
    for name, states, more in (("none", (), ()), ("left", ("exp_avg", "exp_avg_sq"), ("--weights-only",))):
        folder, target = zero(tmp_path / name, 2, values, 2, states), tmp_path / f"{name}-ours" / "step_00000000"
        done = command("checkpoint", "convert", folder, target, "--config", mlp, *more)
        assert done.code == 0, done.stderr
        state = Checkpoint(target).state
        assert same(tensors(target), weights(sound)) and (state.step, state.data["position"]) == (0, 0)


@pytest.mark.parametrize("tag", ["..", ".", "", "../other", "nowhere"])
def test_a_tag_outside_its_folder_is_refused(command: Command, tmp_path: Path, tag: str) -> None:
    (tmp_path / "other" / "inside").mkdir(parents=True)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "latest").write_text(tag)
    refused = command("checkpoint", "convert", folder, tmp_path / "out")
    assert refused.code == 2 and f"names {tag!r}" in refused.stderr, refused


def test_a_folder_that_lacks_a_rank_is_refused(command: Command, tmp_path: Path, sound: Path) -> None:
    values = {n.removeprefix("weights/"): t for n, t in weights(sound).items()}
    for stage, rank, text in ((2, 0, "is not whole"), (2, 2, "written by 3 ranks"), (3, 2, "no whole DeepSpeed")):
        folder = zero(tmp_path / f"{stage}{rank}", stage, values, 3)
        (folder / "global_step4" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").unlink()
        refused = command("checkpoint", "convert", folder, tmp_path / "t.safetensors")
        assert refused.code in (1, 2) and text in refused.stderr, refused
    folder = zero(tmp_path / "cut", 2, values, 2)
    file = folder / "global_step4" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.write_bytes(file.read_bytes()[:-200])
    refused = command("checkpoint", "convert", folder, tmp_path / "t.safetensors")
    assert refused.code == 1 and file.name in refused.stderr
    shutil.copy(folder / "global_step4" / "mp_rank_00_model_states.pt", folder / "global_step4" / "mp_rank_01_model.pt")
    assert "tensor parallelism" in command("checkpoint", "convert", folder, tmp_path / "t.safetensors").stderr


def train_on_deepspeed(rank: int, world: int, folder: str) -> list[str]:
    """Trains the mlp on every stage, saves it with DeepSpeed, and beside it the whole tensors; their names."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    from distdl.engine.deepspeed_import import import_deepspeed
    from distdl.layout.process import ProcessState

    deepspeed, names = import_deepspeed("cpu"), []
    for stage, precision in [(0, "fp32"), *((stage, p) for stage in (1, 2, 3) for p in ("fp32", "bf16"))]:
        with ProcessState():
            torch.manual_seed(stage)
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            learner = build(MODELS["mlp"] | {"dropout": 0.0}).to(dtype)
            decay = [p for p in learner.parameters() if p.ndim > 1]
            rest = [p for p in learner.parameters() if p.ndim < 2]
            optimizer = torch.optim.AdamW([{"params": decay}, {"params": rest, "weight_decay": 0.0}], lr=0.01)
            config = {
                "train_batch_size": 8 * world,
                "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
                "gradient_clipping": 0.0,
                "zero_allow_untested_optimizer": True,
                "bf16": {"enabled": precision == "bf16"},
            }
            engine = deepspeed.initialize(model=learner, optimizer=optimizer, config=config)[0]
            for _ in range(3):
                batch = {"image": torch.rand(8, 1, 8, 8).to(dtype), "label": torch.randint(0, 10, (8,))}
                engine.backward(engine(batch, 0)[0])
                engine.step()
            name = f"zero{stage}-{precision}"
            engine.save_checkpoint(f"{folder}/{name}")
            if stage in (1, 2):  # which link the weights to the state of the first group only
                engine.optimizer._hp_optimizer_states_linked = False
                engine.optimizer._lazy_init_hp_params_optimizer_state()
            whole = {}
            for key, p in learner.named_parameters():
                whole[f"weights/{key}"] = (safe_get_full_fp32_param(p) if stage else p).detach().clone()
                for state in ("exp_avg", "exp_avg_sq") if stage else ():
                    whole[f"optimizer/{state}/{key}"] = safe_get_full_optimizer_state(p, state).clone()
            if rank == 0:
                save_file(whole, f"{folder}/{name}.safetensors")
            names.append(name)
    return names


def load_on_deepspeed(rank: int, world: int, folder: str) -> bool:
    """A fresh engine of stages 0 and 1 loads a converted folder; are its weights, computed with and kept, the file's?"""
    from deepspeed.utils import safe_get_full_fp32_param

    from distdl.engine.deepspeed_import import import_deepspeed

    deepspeed, good = import_deepspeed("cpu"), []
    expected = load_file(f"{folder}/expected.safetensors")
    for stage in (0, 1):
        learner = build(MODELS["mlp"])
        config = {"train_batch_size": 8, "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
        optimizer = torch.optim.AdamW(learner.parameters(), lr=0.01)
        engine = deepspeed.initialize(model=learner, optimizer=optimizer, config=config)[0]
        path, _ = engine.load_checkpoint(f"{folder}/converted", load_module_only=True)
        good.append(path is not None)
        for name, p in learner.named_parameters():
            kept = safe_get_full_fp32_param(p) if stage else p
            good += [torch.equal(p, expected[name]), torch.equal(kept, expected[name])]
    return all(good) and len(good) > 10


@pytest.mark.slow
def test_real_folders_of_every_stage(command: Command, tmp_path: Path, mlp: Path) -> None:
    config = ("--config", mlp, "model.dropout=0")
    for name in run_ranks(train_on_deepspeed, 2, str(tmp_path))[0]:
        expected = load_file(tmp_path / f"{name}.safetensors")
        done = command("checkpoint", "convert", tmp_path / name, tmp_path / f"{name}-ours", *config)
        assert done.code == 0, done.stderr
        assert same(tensors(tmp_path / f"{name}-ours"), expected), name
        assert Checkpoint(tmp_path / f"{name}-ours").step == (0 if name == "zero0-fp32" else 3)
    universal = tmp_path / "universal"
    made = python(
        *("-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"),
        *("--input_folder", tmp_path / "zero2-bf16" / "global_step3", "--output_folder", universal),
        cwd=tmp_path,
    )
    assert made.code == 0, made.stderr
    done = command("checkpoint", "convert", universal, tmp_path / "universal-ours", *config)
    assert done.code == 0 and "universal" in done.stdout, done.stderr
    assert same(tensors(tmp_path / "universal-ours"), load_file(tmp_path / "zero2-bf16.safetensors"))


@pytest.mark.slow
def test_deepspeed_loads_what_is_written_for_it(command: Command, tmp_path: Path, sound: Path) -> None:
    assert command("checkpoint", "convert", sound, tmp_path / "converted", "--to", "deepspeed").code == 0
    assert command("checkpoint", "convert", tmp_path / "converted", tmp_path / "expected.safetensors").code == 0
    values = load_file(tmp_path / "expected.safetensors")
    assert same({f"weights/{n}": t for n, t in values.items()}, weights(sound))
    assert run_ranks(load_on_deepspeed, 1, str(tmp_path)) == [True]


@pytest.mark.slow
def test_a_run_starts_from_converted_weights(command: Command, tmp_path: Path, sound: Path, mlp: Path) -> None:
    run = tmp_path / "runs" / "mlp"
    folder = run / "checkpoints" / "step_00000000"
    assert command("checkpoint", "convert", sound, folder, "--weights-only", "--config", mlp).code == 0
    still = (
        "train.steps=1",
        "optimizer={name: sgd, lr: 1e-30}",
        "checkpoint.every_steps=1",
        "schedule={name: constant}",
    )
    done = python("-m", "distdl", "train", mlp, *still, cwd=tmp_path)
    assert done.code == 0, done.stderr
    after = weights(run / "checkpoints" / "step_00000001")
    assert all((after[n] - t).abs().max() < 1e-25 for n, t in weights(sound).items())


# -- convert: memory ---------------------------------------------------------------------------------------------------

MEASURED = """
import re, sys, threading, time
from distdl.cli.main import main
import distdl.checkpoint.convert, distdl.data.source, distdl.families.gpt

def anonymous():  # memory of the process that is no mapping of a file, in MB
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

before, peak, done = anonymous(), [0.0], threading.Event()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())
thread = threading.Thread(target=watch)
thread.start()
code = main(["checkpoint", "convert", *sys.argv[1:]])
done.set()
thread.join()
print("grew", peak[0] - before)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_checkpoint_larger_than_memory_is_converted(tmp_path: Path, text: str) -> None:
    """400 MB in 100 tensors of up to 16 MB pass through less than 150 MB, imports included, by every way."""
    values = small_config("gpt", "", text)
    values["model"] = {"family": "gpt", "vocabulary": 256, "context": 16, "layers": 8, "heads": 8, "width": 1024}
    config = config_file(tmp_path / "gpt.yaml", values)
    weight = {n: torch.randn(p.shape) for n, p in build(values["model"]).named_parameters()}
    size = sum(t.nbytes for t in weight.values())
    assert size > 400e6
    zero(tmp_path / "ds2", 2, weight, 2)
    zero(tmp_path / "ds3", 3, weight, 2)
    ways = [
        (tmp_path / "ds2", tmp_path / "ours", "--config", config),
        (tmp_path / "ours", tmp_path / "hf", "--to", "huggingface"),
        (tmp_path / "hf", tmp_path / "back", "--config", config),
        (tmp_path / "ds3", tmp_path / "converted", "--to", "deepspeed"),
    ]
    for way in ways:
        done = python("-c", MEASURED, *way, cwd=tmp_path)
        assert done.code == 0, done.stderr
        assert float(done.stdout.split("grew")[1]) < 150, (way, done.stdout)
    converted = tmp_path / "converted" / "global_step4" / "mp_rank_00_model_states.pt"
    assert same(dict(torch.load(converted, weights_only=True, mmap=True)["module"]), weight)
    assert same(tensors(tmp_path / "back"), {f"weights/{n}": t for n, t in weight.items()})


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp8"])
def test_what_was_trained_on_a_gpu_is_evaluated_without_one(
    command: Command, tmp_path: Path, sound: Path, digits: str, precision: str
) -> None:
    values = small_config("mlp", digits, "", parallel__engine="deepspeed", train__precision=precision)
    run = tmp_path / "runs" / "mlp"
    shutil.copytree(sound.parent, run / "checkpoints")
    (run / "config.json").write_text(json.dumps(values))
    done = command("evaluate", run, "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 3 and 0 <= json.loads(done.stdout)["metrics"]["accuracy"] <= 1


def test_two_conversions_to_one_target_do_not_write_over_each_other(tmp_path: Path) -> None:
    target = tmp_path / "t.safetensors"
    with _published(target, force=True) as one, _published(target, force=True) as two:
        one.write_text("one")
        two.write_text("two")
    assert target.read_text() == "one" and list(tmp_path.iterdir()) == [target]
    with (
        pytest.raises(InputError, match="has come to exist meanwhile"),
        _published(tmp_path / "u", force=False) as three,
    ):
        three.write_text("three")
        (tmp_path / "u").write_text("other")
    assert (tmp_path / "u").read_text() == "other"
