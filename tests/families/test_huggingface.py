"""Models of transformers through our loop: the same logits, dropout by sample, back into their own format."""

from __future__ import annotations

import builtins
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from distdl.checkpoint.load import latest
from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.families import build, load_family
from distdl.layout import noise
from distdl.run.folder import RunFolder
from distdl.train import worker
from distdl.train.survey import survey
from tests.conftest import Result
from tests.families.common import made, parameters
from tests.ranks import run_ranks
from tests.small import BASE, layout, prepared
from tests.small import curves as curves_of

transformers = pytest.importorskip("transformers", reason="the optional extra huggingface")

GPT2 = {"vocab_size": 256, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2}
BERT = {"vocab_size": 260, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
T5 = {"vocab_size": 41, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {  # model, how it is read, its data
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
        {"task": "causal", "context": 24},
        {"source": "stdlib", "options": {"context": 24, "max_bytes": 60000}},
    ),
    "bert": (
        lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT, max_position_embeddings=24)),
        {"task": "masked", "context": 24, "segments": True, "mask": 3, "marks": [1, 2]},
        {"source": "sentence_pairs", "options": {"context": 24, "max_bytes": 120000}},
    ),
    "t5": (
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
        {"task": "seq2seq", "context": 7, "target_length": 11},
        {
            "source": "translation",
            "options": {
                "rows": 600,
                "source_length": 7,
                "target_length": 11,
                "source_vocabulary": 16,
                "target_vocabulary": 41,
            },
        },
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind of model, with random weights, as their library writes it."""
    top = tmp_path_factory.mktemp("theirs")
    for kind, (make, _, _) in KINDS.items():
        torch.manual_seed(1)
        make().save_pretrained(top / kind)
    return top


def section(kind: str, folders: Path) -> dict[str, Any]:
    return {"family": "huggingface", "name": str(folders / kind), **KINDS[kind][1]}


def values(kind: str, folders: Path, data: Path, **train: Any) -> dict[str, Any]:
    told = {**json.loads(json.dumps(BASE)), "name": kind, "model": section(kind, folders)}
    told["data"]["path"] = prepared(KINDS[kind][2], data)
    told["train"] |= {"threads_per_worker": 1, **train}
    return told


def inputs(kind: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    if kind == "t5":
        source = torch.randint(1, 16, (3, 7))
        source[1, 5:] = 0
        real = (source != 0).long()
        return {"input_ids": source, "attention_mask": real, "decoder_input_ids": torch.randint(1, 41, (3, 11))}
    return {"input_ids": torch.randint(5, 250, (3, 24))}


# -- the model is theirs -----------------------------------------------------------------------------------------------


@every_kind
def test_a_folder_gives_their_logits(kind: str, folders: Path) -> None:
    auto = {"gpt2": "AutoModelForCausalLM", "bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}[kind]
    theirs = getattr(transformers, auto).from_pretrained(folders / kind).eval()
    ours = made(section(kind, folders))
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(**inputs(kind)), theirs(**inputs(kind)).logits, rtol=0, atol=0)


def test_the_loss_is_theirs(folders: Path) -> None:
    """Where their mean is ours: rows without padding."""
    ours, batch = made(section("gpt2", folders)), {"tokens": torch.randint(0, 256, (4, 25)), "id": torch.arange(4)}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders / "gpt2").eval()
    shifted = F.cross_entropy(theirs(batch["tokens"][:, :-1]).logits.flatten(0, 1), batch["tokens"][:, 1:].flatten())
    torch.testing.assert_close(ours.loss(batch, 0)[0], shifted)
    ours = made(section("t5", folders))
    batch = {"source": torch.randint(1, 16, (4, 7)), "target": torch.randint(1, 41, (4, 12)), "id": torch.arange(4)}
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folders / "t5").eval()
    told = theirs(
        input_ids=batch["source"], decoder_input_ids=batch["target"][:, :-1], labels=batch["target"][:, 1:].contiguous()
    )
    torch.testing.assert_close(ours.loss(batch, 0)[0], told.loss)
    assert ours.evaluate(batch)["loss"].count == 44
    batch["target"][0, 5:] = 0  # seven of its places are padding and count no more
    labels = batch["target"][:, 1:].masked_fill(batch["target"][:, 1:] == 0, -100)
    told = theirs(input_ids=batch["source"], decoder_input_ids=batch["target"][:, :-1], labels=labels)
    torch.testing.assert_close(ours.loss(batch, 0)[0], told.loss)
    assert ours.evaluate(batch)["loss"].count == ours.counted(batch) == 37


def test_hidden_tokens(folders: Path) -> None:
    """Of 15 % of the real ones 80 % are the mask; marks and padding never."""
    ours = made(section("bert", folders))
    tokens = torch.randint(4, 260, (400, 24))
    tokens[:, 0], tokens[:, 20:] = 1, 0
    noise.begin(5, torch.arange(400))
    hidden, targets = ours.hidden(tokens)
    noise.begin(5, None)
    chosen = targets != -100
    assert set(chosen.sum(-1).tolist()) == {3}  # 15 % of 19
    assert ours.counted({"tokens": tokens}) == 1200
    assert not chosen[:, 0].any() and not chosen[:, 20:].any()
    assert torch.equal(hidden[~chosen], tokens[~chosen]) and torch.equal(targets[chosen], tokens[chosen])
    assert 0.74 < (hidden[chosen] == 3).float().mean() < 0.86
    assert 0.06 < (hidden == tokens)[chosen].float().mean() < 0.15


def test_default_is_gpt2_small() -> None:
    assert parameters("huggingface") == 124_439_808
    bert = {"architecture": "bert", "task": "masked", "mask": 103, "marks": (101, 102)}
    assert parameters("huggingface", **bert, context=512) == 109_514_298
    assert parameters("huggingface", architecture="t5", task="seq2seq", context=512) == 60_506_624


# -- dropout by sample -------------------------------------------------------------------------------------------------


@every_kind
def test_a_sample_meets_the_same_masks_in_any_batch(kind: str, folders: Path) -> None:
    """Attention's dropout, too, which no module of theirs does."""
    ours, given = made(section(kind, folders)).train(), inputs(kind)

    def logits(rows: slice) -> torch.Tensor:
        noise.begin(7, torch.arange(3)[rows])
        out: torch.Tensor = ours.logits(**{name: x[rows] for name, x in given.items()})
        noise.begin(7, None)
        return out.detach()

    whole = logits(slice(0, 3))
    torch.testing.assert_close(whole, torch.cat([logits(slice(0, 1)), logits(slice(1, 3))]))
    assert not torch.allclose(whole, ours.eval().logits(**given))


@pytest.mark.parametrize("causal", [True, False])
def test_attention_without_dropout_is_torchs(causal: bool) -> None:
    module = __import__("distdl.families.huggingface.dropout", fromlist=["_attention"])
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    how = {"is_causal": causal, "enable_gqa": True, "scale": 0.3}
    torch.testing.assert_close(module._attention(q, k, v, **how), F.scaled_dot_product_attention(q, k, v, **how))
    mask = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(
        module._attention(q, k, v, mask, enable_gqa=True),
        F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True),
    )


# -- training, and back ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_from_a_folder_and_goes_back(
    folders: Path, small_data: Path, tmp_path: Path, command: Callable[..., Result]
) -> None:
    for kind in KINDS:
        config = config_from_dict(values(kind, folders, small_data, steps=30))
        folder = RunFolder(tmp_path / kind)
        folder.path.mkdir()
        plan = survey(config)
        before = worker.build_learner(config, None)
        worker.run(plan, folder, 0)
        learned = folder.read("summary.json")["metrics"]["loss"]
        first = _loss(before, config, plan)
        assert learned < first - 0.3, f"{kind}: {first:.3f} to {learned:.3f}"
        done = command("checkpoint", "convert", tmp_path / kind, tmp_path / f"{kind}-back", "--to", "huggingface")
        assert done.code == 0 and "the model is written without one" in done.stdout, done.stderr
        names = {path.name for path in (tmp_path / f"{kind}-back").iterdir()}
        assert names - {"generation_config.json"} == {"config.json", "model.safetensors"}
        theirs = type(KINDS[kind][0]()).from_pretrained(tmp_path / f"{kind}-back").eval()
        ours = worker.build_learner(config, latest(folder.checkpoints)[0]).eval()
        with torch.no_grad():
            logits = theirs(**inputs(kind)).logits
            torch.testing.assert_close(ours.logits(**inputs(kind)), logits, rtol=0, atol=1e-6)
            assert not torch.allclose(before.eval().logits(**inputs(kind)), logits, atol=1e-2)
        once_more = made({**section(kind, folders), "name": str(tmp_path / f"{kind}-back")})
        torch.testing.assert_close(once_more.logits(**inputs(kind)), logits, rtol=0, atol=1e-6)


def _loss(learner: Any, config: Any, plan: Any) -> float:
    from distdl.data.source import EvalSource
    from distdl.train.loop import evaluate

    source = EvalSource(worker.make_dataset(plan, "test"), batch=50, rank=0, world=1)
    return evaluate(learner.eval(), worker.make_engine(learner, plan, 0), source)["loss"]


@pytest.mark.slow
def test_two_processes_equal_one(folders: Path, small_data: Path) -> None:
    """BERT and T5 with their dropouts; GPT-2 and the other layouts are in tests/parity/test_parity.py."""
    cases = {kind: values(kind, folders, small_data, steps=8) for kind in ("bert", "t5")}
    alone = run_ranks(curves_of, 1, cases)[0]
    both = run_ranks(curves_of, 2, {kind: layout(told, "zero1", 2) for kind, told in cases.items()})[0]
    for kind in cases:
        assert both[kind]["loss"] == pytest.approx(alone[kind]["loss"], abs=1e-5)
        assert len(set(alone[kind]["loss"])) > 5


# -- what is wrong -----------------------------------------------------------------------------------------------------


def refusal(**model: Any) -> str:
    with pytest.raises(InputError) as caught:
        build({"family": "huggingface", **model})
    return str(caught.value)


def test_what_cannot_be_loaded_is_told(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "there is no such folder" in refusal(name="./nowhere")
    assert "model.name = 'nobody/nothing'" in refusal(name="nobody/nothing")
    assert "model.architecture = 'gpt-2'" in refusal(architecture="gpt-2")
    message = refusal(overrides={"n_layers": 3})
    assert "model.overrides.n_layers: a gpt2 has no such key" in message and "n_layer" in message
    assert "at most 24" in refusal(**{**section("gpt2", folders), "context": 25, "family": "huggingface"})
    assert "with the task seq2seq" in refusal(task="seq2seq", context=8)
    pickled = tmp_path / "pickled"
    model = KINDS["gpt2"][0]()
    model.config.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    assert "safetensors" in refusal(name=str(pickled), context=24)
    told = json.loads((pickled / "config.json").read_text())
    (pickled / "evil.py").write_text("raise SystemExit('it ran')\n")
    told |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (pickled / "config.json").write_text(json.dumps(told))
    assert "code that comes with a model is never run" in refusal(name=str(pickled), context=24)


def test_without_the_package_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Result]
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'distdl[huggingface]'" in refusal()
    monkeypatch.setattr("distdl.cli.families.family_names", lambda: ["huggingface", "mlp"])
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    told = command("families")
    assert told.code == 0 and "needs the package transformers" in told.stdout and "669,706 trainable" in told.stdout


def test_shapes_and_small_forms() -> None:
    cls = load_family("huggingface")
    columns = {
        task: {name: c.shape for name, c in cls.columns(cls.Config(task=task, context=8)).items()}
        for task in ("causal", "masked", "seq2seq")
    }
    assert columns == {
        "causal": {"tokens": (9,)},
        "masked": {"tokens": (8,)},
        "seq2seq": {"source": (8,), "target": (129,)},
    }
    full = config_from_dict({**json.loads(json.dumps(BASE)), "name": "x", "data": {"path": "x"}, "model": section_of()})
    small = cls.shrunk(full.model)
    assert small["from_scratch"] and small["context"] == 32
    assert len(made({**small, "overrides": {**small["overrides"], "n_embd": 24}}).model.transformer.h) == 2


def section_of() -> dict[str, Any]:
    return {"family": "huggingface"}
