"""GPT as people train it now: Llama, Mistral and Qwen by their published counts, by transformers' own classes, in both
directions, and token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from distdl.checkpoint.huggingface import CONFIG, WEIGHTS, from_huggingface, to_huggingface
from distdl.checkpoint.stream import whole, write_safetensors
from distdl.config.family import family_schema
from distdl.config.load import config_from_dict
from distdl.config.marks import INVISIBLE
from distdl.errors import InputError
from distdl.export import check, huggingface, onnx, torch_export
from distdl.families import build
from distdl.families.gpt import Config
from distdl.nn.rotary import Rotary
from distdl.ways import start
from tests.export.common import asked, traced
from tests.families.common import made, parameters
from tests.families.test_answers import lively

MODERN = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "biases": "none"}
SMALL = {"family": "gpt", "vocabulary": 61, "context": 12, "layers": 3, "heads": 4, "width": 32}
LLAMA = {**SMALL, **MODERN, "inner": 48, "key_value_heads": 2, "tied": False}

QWEN2 = {"layers": 24, "heads": 14, "width": 896}
QWEN3 = {"layers": 28, "heads": 16, "width": 1024, "head_width": 128}


@pytest.mark.parametrize(
    ("name", "count", "model"),
    [
        ("Llama 2 7B", 6_738_415_616, {"vocabulary": 32000, "inner": 11008, "tied": False}),
        ("Llama 3 8B", 8_030_261_248, {"vocabulary": 128256, "inner": 14336, "key_value_heads": 8, "tied": False}),
        (
            "Mistral 7B",
            7_241_732_096,
            {"vocabulary": 32000, "inner": 14336, "key_value_heads": 8, "tied": False, "window": 4096},
        ),
        (
            "Qwen2 0.5B",
            494_032_768,
            {"vocabulary": 151936, "inner": 4864, "key_value_heads": 2, "biases": "qkv", **QWEN2},
        ),
        (
            "Qwen3 0.6B",
            596_049_920,
            {"vocabulary": 151936, "inner": 3072, "key_value_heads": 8, "qk_norm": True, **QWEN3},
        ),
    ],
)
def test_published_models_have_as_many_parameters(name: str, count: int, model: dict[str, Any]) -> None:
    assert parameters("gpt", **{"layers": 32, "heads": 32, "width": 4096, **MODERN, **model}) == count


THEIRS = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
STRETCHED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, as many keys": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama 3.1": ("Llama", {"rope_parameters": STRETCHED | {"original_max_position_embeddings": 16}}),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 16}),
    "mistral, all of the context": ("Mistral", {"sliding_window": None, "rms_norm_eps": 1e-5}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2, windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}


def peer_of(case: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make bench installs it)")
    name, more = PEERS[case]
    torch.manual_seed(5)
    peer = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**THEIRS | more)).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return peer


@pytest.mark.slow
@pytest.mark.parametrize("case", PEERS)
def test_weights_of_transformers_cross_both_ways(case: str, tmp_path: Path) -> None:
    """Beyond the window, and beyond what was trained on where frequencies are stretched."""
    peer = peer_of(case)
    peer.save_pretrained(tmp_path / "theirs")
    model, tensors = from_huggingface(tmp_path / "theirs")
    assert model is not None
    learner = build(model).eval()
    learner.load_state_dict({name: tensor.read() for name, tensor in tensors.items()})
    tokens = torch.randint(0, 61, (2, 40))
    with torch.no_grad():
        expected, got = peer(tokens).logits, learner.logits(tokens)  # type: ignore[operator]
    assert (got - expected).abs().max() < 1e-5 and expected.std() > 0.3
    config, back = to_huggingface(model, {name: whole(p.detach()) for name, p in learner.named_parameters()})
    (tmp_path / "back").mkdir()
    write_safetensors(tmp_path / "back" / WEIGHTS, back)
    (tmp_path / "back" / CONFIG).write_text(json.dumps(config))
    again = type(peer).from_pretrained(tmp_path / "back").eval()
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, expected)
    assert from_huggingface(tmp_path / "back")[0] == model


@pytest.mark.slow
def test_a_run_starts_from_a_folder_of_theirs(tmp_path: Path) -> None:
    """Heads and the rest that no shape tells must agree; the context of rotary positions need not."""
    peer = peer_of("qwen2")
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    model, _ = from_huggingface(tmp_path / "theirs")
    assert model is not None
    values = {
        "name": "tuned",
        "model": model | {"context": 16},
        "data": {"path": "data/x"},
        "train": {"global_batch": 4, "steps": 1},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "start": {"weights": str(tmp_path / "theirs")},
    }
    config = start.located(config_from_dict(values))
    learner: Any = build(config.model)
    start.check(learner, config)
    start.carry_over(learner, config)
    tokens = torch.randint(0, 61, (2, 16))
    with torch.no_grad():
        assert (learner.eval().logits(tokens) - peer(tokens).logits).abs().max() < 1e-5
    for key, value in (("rope_theta", 1e4), ("heads", 2), ("norm_eps", 1e-5), ("window", 4)):
        other = config_from_dict(values | {"model": model | {key: value}})
        with pytest.raises(InputError, match=f"was trained with model.{key}="):
            start.check(learner, other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm": "layer"}, "the nearest is Llama, for which it has norm=layer .not rms."),
        ({"qk_norm": True, "biases": "qkv"}, "the nearest is Qwen2, for which it has qk_norm=True .not False."),
        ({"feed_forward": "gelu", "positions": "learned"}, "positions=learned .not rotary., feed_forward=gelu"),
    ],
)
def test_choices_that_no_model_of_theirs_has_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        to_huggingface(LLAMA | changes, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "stretched by rope_type 'yarn'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "turns whole heads"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}, "2 of 3 layers look back"),
        ({"tie_word_embeddings": True}, "has a head of its own"),
    ],
)
def test_what_theirs_has_and_ours_has_not_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    config, tensors = to_huggingface(LLAMA, {n: whole(p.detach()) for n, p in made(LLAMA).named_parameters()})
    write_safetensors(tmp_path / WEIGHTS, tensors)
    (tmp_path / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if k != "rope_parameters"} | change))
    with pytest.raises(InputError, match=words):
        from_huggingface(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key_value_heads": 3}, "4 heads cannot share 3 key_value_heads"),
        ({"head_width": 7}, "heads are 7 wide, and rotary positions turn pairs"),
        ({"positions": "learned", "rope_theta": 1e6}, "rope_theta without rotary positions"),
        ({"experts": 2}, "experts are perceptrons of GELU"),
    ],
)
def test_choices_that_cannot_be_together_are_refused(changes: dict[str, Any], words: str) -> None:
    told = {key: value for key, value in (LLAMA | changes).items() if key != "family"}
    with pytest.raises(ValueError, match=words):
        Config(**told)


MEMORIES = [{}, {"window": 3}, {"qk_norm": True, "biases": "qkv"}, {"labels": True, "documents": True, "window": 4}]


@pytest.mark.parametrize("more", MEMORIES)
def test_tokens_read_one_by_one_are_told_what_all_at_once_are(more: dict[str, Any]) -> None:
    """Keys are kept as they were turned, and two heads of them for four of queries."""
    learner = lively(made(LLAMA | more))
    tokens = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(3))
    memory = learner.memory()
    for first, last in ((0, 5), (5, 6), (6, 9), (9, 12)):
        with memory.of(last - first):
            told = learner.predict({"tokens": tokens[:, first:last]})["next"]
        whole_row = learner.predict({"tokens": tokens[:, :last]})["next"]
        assert (told.log() - whole_row.log()).abs().max() < 1e-5
    assert {keys.shape[1] for keys, _ in memory._kept} == {2}


def test_a_token_sees_its_window_and_no_further() -> None:
    """Of one layer; through several, what was seen is seen on."""
    learner = lively(made(LLAMA | {"layers": 1, "window": 4}))
    tokens = torch.randint(61, (1, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = learner.logits(tokens)
        for place in range(12):
            other = tokens.clone()
            other[:, place] = (other[:, place] + 7) % 61
            moved = (learner.logits(other) - before).abs().amax(-1)[0] > 1e-5
            assert moved.nonzero().flatten().tolist() == list(range(place, min(12, place + 4)))


def test_documents_that_share_a_row_each_begin_at_place_0() -> None:
    model = LLAMA | {"labels": True, "documents": True, "window": 3}
    learner = lively(made(model))
    tokens = torch.randint(61, (1, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        both = learner.logits(tokens, torch.tensor([[1] * 5 + [2] * 7]))
        alone = torch.cat([learner.logits(tokens[:, :5]), learner.logits(tokens[:, 5:])], 1)
    assert (both - alone).abs().max() < 1e-5


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    turn = Rotary(8, 100.0)
    products = [
        float((turn.turned(q, torch.tensor([t + 3])) * turn.turned(k, torch.tensor([t]))).sum()) for t in (0, 5, 40)
    ]
    assert products == pytest.approx([products[0]] * 3, rel=1e-12)
    assert abs(products[0] - float((q * k).sum())) > 1e-3


@pytest.mark.parametrize("chunk", [0, 5])
def test_the_z_loss_is_the_squared_denominator_and_is_not_evaluated(chunk: int) -> None:
    learner = lively(made(LLAMA | {"z_loss": 0.1}))
    learner.save_memory(loss_chunk_tokens=chunk)
    batch = {"tokens": torch.randint(61, (2, 13)), "id": torch.arange(2)}
    scores = learner.logits(batch["tokens"][:, :-1]).flatten(0, 1)
    plain = F.cross_entropy(scores, batch["tokens"][:, 1:].flatten())
    with_z = plain + 0.1 * scores.logsumexp(-1).square().mean()
    told = learner.evaluate(batch)["loss"]
    assert float(told.total) / told.count == pytest.approx(float(plain), rel=1e-6)
    loss, _ = learner.train().loss(batch, 0)
    assert float(loss) == pytest.approx(float(with_z), rel=1e-6) and with_z - plain > 0.1
    want = torch.autograd.grad(with_z, learner.lm_head.weight)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, learner.lm_head.weight)[0], want, rtol=1e-4, atol=1e-7)


def test_what_no_shape_tells_is_marked() -> None:
    marked = family_schema("gpt").marked(INVISIBLE)
    assert {"heads", "key_value_heads", "head_width", "rope_theta", "rope_stretch", "norm_eps", "window"} <= marked


@pytest.mark.slow
def test_its_answer_is_a_graph_of_any_length(tmp_path: Path) -> None:
    """Windows, shared keys and turned places are in it, as a program of torch and as ONNX."""
    learner, rows = asked(LLAMA | {"window": 5, "qk_norm": True})
    found = traced(learner, rows)
    torch_export.write(tmp_path, found, {})
    onnx.write(tmp_path, found, {"distdl": {}, "preparation": {}})
    for run in (torch_export.asked(tmp_path, ["tokens"]), onnx.asked(tmp_path, ["next"])):
        difference = check.compared(run, learner, rows, found.lengths, "fp32", (found.inputs, found.outputs))
        assert difference.others == 0 and difference.largest < 1e-5


def test_the_tokenizer_of_the_folder_that_a_run_started_from_comes_along(tmp_path: Path) -> None:
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    theirs.mkdir()
    out.mkdir()
    assert huggingface.companions(out, None) == huggingface.companions(out, str(theirs)) == ""  # a run, or nothing
    for name in (CONFIG, WEIGHTS, "tokenizer.json", "generation_config.json", "modeling_own.py"):
        (theirs / name).write_text(name)
    told = huggingface.companions(out, str(theirs))
    assert told == f"from {theirs}: tokenizer.json, generation_config.json"
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        name: name for name in ("tokenizer.json", "generation_config.json")
    }
