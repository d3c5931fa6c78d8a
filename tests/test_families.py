"""Every family against independent implementations, and the promises that each one makes to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config_load import config_from_dict
from distdl.data.read import Dataset
from distdl.engine.torch import TorchEngine
from distdl.families import build, load_family
from distdl.family_schema import family_names
from distdl.learner import Learner
from distdl.loop import train
from distdl.metrics import add, mean, values
from distdl.survey import survey
from tests.small import MODELS, small_config


def made(model: Mapping[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build(model).eval()


def tensors(rows: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in rows.items()}


def batch_of(family: str, digits: str, text: str, ids: range) -> dict[str, Tensor]:
    values = small_config(family, digits, text)
    rows = Dataset(values["data"]["path"], "train").gather(np.arange(ids.start, ids.stop))
    index = np.arange(ids.start, ids.stop, dtype=np.int64)
    return tensors({**rows, "id": index, "position": index})


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")  # two epochs will do
@pytest.mark.parametrize(("activation", "theirs"), [("relu", "relu"), ("tanh", "tanh"), ("sigmoid", "logistic")])
def test_mlp_is_sklearns_mlp(activation: str, theirs: str) -> None:
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    raw = load_digits()
    images, labels = raw.data / 16, raw.target
    peer = MLPClassifier((24, 17), activation=theirs, solver="sgd", max_iter=2, random_state=0, early_stopping=True)
    peer.fit(images[:600], labels[:600])
    expected = peer.predict_proba(images[600:700])
    model = {"family": "mlp", "inputs": [64], "hidden": [24, 17], "activation": activation}
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        learner = made(model).to(dtype)
        layers = [m for m in learner.net if isinstance(m, nn.Linear)]
        assert len(layers) == len(peer.coefs_) == 3
        with torch.no_grad():
            for layer, weight, bias in zip(layers, peer.coefs_, peer.intercepts_):
                layer.weight.copy_(torch.from_numpy(weight.T))
                layer.bias.copy_(torch.from_numpy(bias))
            got = learner.logits({"image": torch.from_numpy(images[600:700]).to(dtype)}).softmax(-1)
        assert np.abs(got.numpy() - expected).max() < tolerance
        assert np.ptp(expected) > 0.01  # not all alike


def test_mlp_layer_norm_stands_before_the_non_linearity() -> None:
    learner = made({"family": "mlp", "inputs": [5], "hidden": [7], "layer_norm": True, "activation": "tanh"}).double()
    x = torch.randn(9, 5, dtype=torch.float64)
    weight, bias, gain, shift, out, out_bias = (p.detach() for p in learner.parameters())
    sums = x @ weight.T + bias
    normal = (sums - sums.mean(-1, keepdim=True)) / (sums.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = torch.tanh(normal * gain + shift) @ out.T + out_bias
    assert torch.allclose(learner.logits({"image": x}), expected, atol=1e-12)


@pytest.mark.parametrize("side", [28, 8])
@pytest.mark.parametrize(("activation", "pool"), [("tanh", "mean"), ("relu", "max")])
def test_lenet_is_its_transcription(activation: str, pool: str, side: int) -> None:
    learner = made({"family": "lenet", "image": [1, side, side], "activation": activation, "pool": pool}).double()
    w = {name: p.detach() for name, p in learner.named_parameters()}
    assert [p.numel() for p in w.values()] == [150, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10]
    act = {"tanh": torch.tanh, "relu": torch.relu}[activation]
    down = {"mean": lambda x: F.avg_pool2d(x, 2), "max": lambda x: F.max_pool2d(x, 2)}[pool]
    pixels = torch.randint(0, 256, (6, 1, side, side), dtype=torch.uint8)
    x = pixels.double() / 255
    if side != 28:
        x = F.interpolate(x, (28, 28), mode="bilinear", align_corners=False)
    x = F.pad(x, (2, 2, 2, 2))  # the paper's 32 x 32
    maps = F.unfold(x, 5).transpose(1, 2) @ w["c1.weight"].flatten(1).T + w["c1.bias"]  # a convolution by hand
    x = down(act(maps.transpose(1, 2).reshape(6, 6, 28, 28)))
    x = down(act(F.conv2d(x, w["c3.weight"], w["c3.bias"])))
    x = act(x.reshape(6, 400) @ w["c5.weight"].T + w["c5.bias"])
    x = act(x @ w["f6.weight"].T + w["f6.bias"])
    expected = x @ w["head.weight"].T + w["head.bias"]
    assert torch.allclose(learner.logits({"image": pixels.double() / 255}), expected, atol=1e-12)
    assert torch.allclose(learner.float().logits({"image": pixels}).double(), expected, atol=1e-5)


GPT = {"family": "gpt", "vocabulary": 61, "context": 12, "layers": 3, "heads": 4, "width": 32}


def test_gpt_is_its_numpy_transcription() -> None:
    """Radford et al. 2019 in fp64, without torch: layer norm, masked attention head by head, tanh-GELU, tied head."""
    learner = made(GPT).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.normal_(0, 0.3)  # gains and biases, too
    w = {name: p.detach().numpy() for name, p in learner.named_parameters()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    tokens = np.random.default_rng(0).integers(0, 61, 12)
    x = w["wte.weight"][tokens] + w["wpe.weight"]
    for i in range(3):
        q, k, v = np.split(linear(norm(x, f"blocks.{i}.ln1"), f"blocks.{i}.attn.qkv"), 3, axis=-1)
        heads = []
        for h in range(4):
            part = slice(8 * h, 8 * h + 8)
            scores = q[:, part] @ k[:, part].T / np.sqrt(8)
            scores[np.triu_indices(12, 1)] = -np.inf
            share = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(share / share.sum(-1, keepdims=True) @ v[:, part])
        x = x + linear(np.concatenate(heads, -1), f"blocks.{i}.attn.out")
        up = linear(norm(x, f"blocks.{i}.ln2"), f"blocks.{i}.up")
        up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + linear(up, f"blocks.{i}.down")
    expected = norm(x, "ln") @ w["wte.weight"].T
    with torch.no_grad():
        got = learner.logits(torch.from_numpy(tokens)[None])[0].numpy()
    assert np.abs(got - expected).max() < 1e-10 and np.ptp(expected) > 1


@pytest.mark.slow
def test_gpt_is_transformers_gpt2() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make bench installs it)")
    settings = transformers.GPT2Config(
        vocab_size=61, n_positions=12, n_embd=32, n_layer=3, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    torch.manual_seed(5)
    peer = transformers.GPT2LMHeadModel(settings).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    names = {"wte": "wte", "wpe": "wpe", "ln": "ln_f"}
    parts = {"ln1": "ln_1", "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj", "ln2": "ln_2"}
    parts |= {"up": "mlp.c_fc", "down": "mlp.c_proj"}
    names |= {f"blocks.{i}.{ours}": f"h.{i}.{theirs}" for i in range(3) for ours, theirs in parts.items()}
    theirs_by_name = dict(peer.transformer.named_parameters())
    learner = made(GPT)
    with torch.no_grad():
        for name, p in learner.named_parameters():
            module, _, kind = name.rpartition(".")
            weight = theirs_by_name[f"{names[module]}.{kind}"]
            conv1d = kind == "weight" and any(part in names[module] for part in ("c_attn", "c_proj", "c_fc"))
            p.copy_(weight.T if conv1d else weight)  # Conv1D keeps [in, out]
    assert len(theirs_by_name) == len(list(learner.parameters()))
    tokens = torch.randint(0, 61, (3, 13))
    with torch.no_grad():
        expected = peer(tokens[:, :-1])
        got = learner.logits(tokens[:, :-1])
        theirs = F.cross_entropy(expected.logits.flatten(0, 1), tokens[:, 1:].flatten())
        ours, _ = learner.loss({"tokens": tokens}, 0)
    assert (got - expected.logits).abs().max() < 1e-5 and float(expected.logits.std()) > 0.1
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


def test_gpt_does_not_see_the_future() -> None:
    learner = made(GPT).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.normal_(0, 0.3)
        tokens = torch.randint(0, 61, (2, 12))
        before = learner.logits(tokens)
        for place in range(1, 12):
            other = tokens.clone()
            other[:, place:] = (other[:, place:] + 1 + torch.randint(0, 60, (2, 12 - place))) % 61
            after = learner.logits(other)
            assert torch.allclose(after[:, :place], before[:, :place], atol=1e-12)
            assert (after[:, place] - before[:, place]).abs().amax(-1).min() > 1e-3  # and it does see the present


def test_gpt_learns_the_next_token() -> None:
    """The target of place t is token t + 1: logits that know it have no loss."""
    learner = made(GPT)
    tokens = torch.randint(0, 61, (2, 13))
    learner.logits = lambda seen: 100.0 * F.one_hot(tokens[:, 1:], 61).float()
    assert float(learner.loss({"tokens": tokens}, 0)[0]) < 1e-6
    learner.logits = lambda seen: 100.0 * F.one_hot(tokens[:, :-1], 61).float()
    assert float(learner.loss({"tokens": tokens}, 0)[0]) > 50


def test_gpt_starts_as_the_paper_says() -> None:
    torch.manual_seed(0)
    learner: Any = build({"family": "gpt", "vocabulary": 400, "context": 64, "layers": 8, "heads": 4, "width": 128})
    for name, p in learner.named_parameters():
        if p.ndim == 2:
            residual = name.endswith(("attn.out.weight", "down.weight"))
            assert float(p.detach().std()) == pytest.approx(0.02 / 4 if residual else 0.02, rel=0.05), (
                name
            )  # 1/sqrt(2 * 8) = 1/4
        else:
            assert bool((p == (0 if name.endswith("bias") else 1)).all()), name


# -- promises of every family ------------------------------------------------------------------------------------------


def test_every_family_has_a_small_config() -> None:
    assert set(MODELS) == set(family_names())


@pytest.mark.parametrize("family", family_names())
def test_every_trainable_parameter_gets_a_gradient_and_moves(family: str, digits: str, text: str) -> None:
    values = small_config(family, digits, text, train__steps=4, schedule__warmup_steps=0, optimizer__weight_decay=0.0)
    plan = survey(config_from_dict(values))
    torch.manual_seed(1)
    learner = build(values["model"])
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    largest = dict.fromkeys(before, 0.0)
    for name, p in learner.named_parameters():
        assert p.requires_grad
        p.register_hook(lambda grad, n=name: largest.update({n: max(largest[n], float(grad.abs().max()))}))
    batches = [batch_of(family, digits, text, range(16 * i, 16 * i + 16)) for i in range(4)]
    train(learner, TorchEngine(learner, plan, 0), iter(batches), [], start=0, steps=4)
    assert [name for name, size in largest.items() if not size > 0] == []
    assert [name for name, p in learner.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("family", family_names())
def test_evaluations_of_parts_add_up_to_the_whole(family: str, digits: str, text: str) -> None:
    learner = made(MODELS[family])
    whole = batch_of(family, digits, text, range(30))
    with torch.no_grad():
        at_once = learner.evaluate(whole)
        parts: dict[str, Any] = {}
        for part in (slice(0, 7), slice(7, 8), slice(8, 30)):
            add(parts, learner.evaluate({name: column[part] for name, column in whole.items()}))
    assert parts.keys() == at_once.keys() and learner.primary in parts and "loss" in parts
    for name, (total, count) in at_once.items():
        assert parts[name].count == count and count % 30 == 0
        assert float(parts[name].total) == pytest.approx(float(total), rel=1e-5)
    per_sample = {"gpt": 16}.get(family, 1)  # tokens
    assert at_once["loss"].count == 30 * per_sample
    assert values(at_once)["loss"] == pytest.approx(learner.loss(whole, 0)[0].item(), rel=1e-5)


def test_the_default_evaluation_weighs_by_samples() -> None:
    class Plain(Learner):
        def loss(self, batch: Any, step: int) -> Any:
            return batch["x"].mean(), {"big": mean((batch["x"] > 4).float())}

    x = torch.arange(10.0)
    learner, sums = Plain(), {}  # type: ignore[var-annotated]
    for part in (x[:7], x[7:]):
        add(sums, learner.evaluate({"x": part, "id": part}))
    assert values(sums) == {"loss": pytest.approx(4.5), "big": pytest.approx(0.5)}  # the mean of means would be 5.5
    assert sums["loss"].count == 10 and learner({"x": x, "id": x}, -1, evaluate=True)["loss"].count == 10


@pytest.mark.parametrize("family", family_names())
def test_fresh_weights_depend_on_the_seed_alone(family: str) -> None:
    first, again, other = (made(MODELS[family], seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("family", family_names())
def test_what_a_family_says_of_itself(family: str) -> None:
    cls = load_family(family)
    assert cls.layouts <= {"torch", "zero0", "zero1", "zero2", "zero3"} and "torch" in cls.layouts
    assert cls.better in ("higher", "lower")
    assert cls.columns(cls.Config())  # it reads something
    assert cls.__doc__ is None or len(cls.__doc__.splitlines()) < 40
