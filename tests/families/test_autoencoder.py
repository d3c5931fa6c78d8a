"""The autoencoder against PCA, and every option against its formula."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distdl.families import model_config
from distdl.layout import noise
from tests.families.common import made, parameters
from tests.ranks import run_ranks
from tests.small import contract_config, curves, layout

SMALL = {"family": "autoencoder", "inputs": [12], "column": "x", "hidden": [9, 7], "code": 4, "activation": "tanh"}
LINEAR = {"activation": "linear", "output": "linear", "error": "squared"}


def batch_of(rows: int = 6, width: int = 12) -> dict[str, Tensor]:
    x = torch.rand(rows, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return {"x": x, "id": torch.arange(rows), "position": torch.arange(rows)}


def loss_of(learner: Any, batch: dict[str, Tensor], seed: int = 5) -> float:
    noise.begin(seed, batch["position"])
    try:
        return float(learner.loss(batch, 0)[0].detach())
    finally:
        noise.begin(0, None)


def weights_of(learner: Any) -> dict[str, np.ndarray]:
    with torch.no_grad():
        for p in learner.parameters():
            p.normal_(0, 0.5)
    return {name: p.detach().numpy() for name, p in learner.named_parameters()}


def test_parameter_counts() -> None:
    assert parameters("autoencoder") == 2_837_314  # Hinton & Salakhutdinov 2006
    assert parameters("autoencoder", hidden=(400,), code=20, variational=True) == 652_824  # Kingma & Welling 2014
    assert parameters("autoencoder", hidden=(512, 128)) == 943_662
    assert parameters("autoencoder", tied=True) == 2_837_314 - sum(a * b for a, b in SIZES)


SIZES = [(784, 1000), (1000, 500), (500, 250), (250, 30)]


def test_the_linear_tied_optimum_is_pca() -> None:
    """Baldi & Hornik 1989: the code spans the first principal components, and the error is what PCA leaves."""
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    x = load_digits().data[:400] / 16
    pca = PCA(5).fit(x)
    left = float(((pca.inverse_transform(pca.transform(x)) - x) ** 2).sum(1).mean())
    model = {"family": "autoencoder", "inputs": [64], "column": "x", "hidden": [], "code": 5, "tied": True}
    learner = made({**model, **LINEAR}).double()
    batch = {"x": torch.from_numpy(x), "id": torch.arange(len(x))}
    optimizer = torch.optim.LBFGS(learner.parameters(), max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = learner.loss(batch, 0)
        loss.backward()
        return loss

    optimizer.step(closure)
    reached = learner.evaluate(batch)["squared_error"]
    assert float(reached.total) / reached.count == pytest.approx(left, rel=1e-6)
    basis = np.linalg.qr(learner.encoder[0].weight.detach().numpy().T)[0]  # (64, 5)
    cosines = np.linalg.svd(pca.components_ @ basis)[1]  # of the principal angles between the two subspaces
    assert cosines.min() > 1 - 1e-4


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_its_numpy_transcription(tied: bool) -> None:
    learner = made({**SMALL, "tied": tied}).double()
    w, batch = weights_of(learner), batch_of()
    x = batch["x"].numpy()
    h = np.tanh(x @ w["encoder.0.weight"].T + w["encoder.0.bias"])
    h = np.tanh(h @ w["encoder.1.weight"].T + w["encoder.1.bias"])
    h = h @ w["encoder.2.weight"].T + w["encoder.2.bias"]
    for i in range(3):
        weight = w[f"encoder.{2 - i}.weight"] if tied else w[f"decoder.{i}.weight"].T
        h = h @ weight + w[f"biases.{i}" if tied else f"decoder.{i}.bias"]
        h = np.tanh(h) if i < 2 else 1 / (1 + np.exp(-h))
    cross_entropy = -(x * np.log(h) + (1 - x) * np.log(1 - h)).sum(1).mean()
    assert loss_of(learner, batch) == pytest.approx(cross_entropy, abs=1e-12)
    measured = learner.evaluate(batch)
    assert float(measured["loss"].total) / 6 == pytest.approx(cross_entropy, rel=1e-6)
    assert float(measured["squared_error"].total) / 6 == pytest.approx(((h - x) ** 2).sum(1).mean(), rel=1e-6)


@pytest.mark.parametrize("corruption", ["mask", "gaussian"])
def test_denoising_restores_the_clean_sample_from_a_damaged_one(corruption: str) -> None:
    learner = made({**SMALL, "corruption": corruption, "corruption_strength": 0.4, "error": "squared"}).double()
    plain = made({**SMALL, "error": "squared"}).double()
    plain.load_state_dict(learner.state_dict())
    batch = batch_of(4000)
    noise.begin(5, batch["position"])
    damaged = learner.corrupted(batch["x"])
    noise.begin(0, None)
    if corruption == "mask":
        kept = damaged != 0
        assert torch.equal(damaged[kept], batch["x"][kept]) and float(kept.double().mean()) == pytest.approx(
            0.6, abs=0.01
        )
    else:
        added = damaged - batch["x"]
        assert float(added.mean()) == pytest.approx(0, abs=0.01) and float(added.std()) == pytest.approx(0.4, abs=0.01)
    with torch.no_grad():
        _, squared = plain.errors(batch["x"], plain.encode(damaged)[-1])
    assert loss_of(learner, batch) == pytest.approx(float(squared.mean()), abs=1e-12)
    assert loss_of(learner, batch, seed=6) != loss_of(learner, batch, seed=5)
    assert learner.evaluate(batch)["loss"] == plain.evaluate(batch)["loss"]  # nothing is damaged there


def penalty_of(**model: Any) -> tuple[float, Any, dict[str, np.ndarray], dict[str, Tensor]]:
    """What a penalty adds to the loss, divided by its weight."""
    learner = made({**SMALL, **model, "penalty_weight": 0.25}).double()
    w, batch = weights_of(learner), batch_of()
    plain = made({**SMALL, **model, "penalty": "none"}).double()
    plain.load_state_dict(learner.state_dict())
    assert learner.evaluate(batch)["loss"] == plain.evaluate(batch)["loss"]
    return (loss_of(learner, batch) - loss_of(plain, batch)) / 0.25, learner, w, batch


def test_the_sparse_penalties() -> None:
    reached, learner, _, batch = penalty_of(penalty="l1", code_activation="tanh")
    code = learner.encode(batch["x"])[-1].detach().numpy()
    assert reached == pytest.approx(np.abs(code).sum(1).mean(), abs=1e-12)

    reached, learner, _, batch = penalty_of(penalty="kl", code_activation="sigmoid", sparsity=0.1)
    active = learner.encode(batch["x"])[-1].detach().numpy().mean(0)  # (k,)
    expected = (0.1 * np.log(0.1 / active) + 0.9 * np.log(0.9 / (1 - active))).sum()
    assert reached == pytest.approx(expected, abs=1e-12) and expected > 0.1
    assert learner.batch_coupled


@pytest.mark.parametrize(("activation", "code"), [("tanh", "sigmoid"), ("relu", "linear"), ("sigmoid", "relu")])
def test_the_contractive_penalty_is_the_norm_of_the_jacobian(activation: str, code: str) -> None:
    reached, learner, _, batch = penalty_of(penalty="contractive", activation=activation, code_activation=code)
    jacobians = [torch.func.jacrev(lambda row: learner.encode(row[None])[-1][0])(row) for row in batch["x"]]
    assert jacobians[0].shape == (4, 12)
    expected = torch.stack(jacobians).square().sum((1, 2)).mean()
    expected = float(expected.detach())
    assert reached == pytest.approx(expected, abs=1e-12) and expected > 1e-3


def test_one_contractive_sigmoid_layer_is_rifais_formula() -> None:
    """Rifai et al. 2011: sum_j (h_j (1 - h_j))^2 sum_i W_ji^2."""
    reached, learner, w, batch = penalty_of(penalty="contractive", hidden=[], code_activation="sigmoid")
    h = learner.encode(batch["x"])[-1].detach().numpy()
    expected = (((h * (1 - h)) ** 2) @ (w["encoder.0.weight"] ** 2).sum(1)).mean()
    assert reached == pytest.approx(expected, abs=1e-12)


def test_the_elbo() -> None:
    """The divergence against torch.distributions, the reparametrised code by its moments, the bound as their sum."""
    from torch import distributions

    learner = made({**SMALL, "variational": True}).double()
    weights_of(learner)
    batch = batch_of()
    encoded = learner.encode(batch["x"])[-1].detach()
    q = distributions.Normal(encoded[:, :4], (encoded[:, 4:] / 2).exp())
    noise.begin(5, batch["position"])
    z, kl = learner.posterior(encoded)
    expected = distributions.kl_divergence(q, distributions.Normal(0, 1)).sum(-1)
    assert torch.allclose(kl, expected, atol=1e-12)
    with torch.no_grad():
        out = learner.decode(z)
    error = -distributions.Bernoulli(logits=out, validate_args=False).log_prob(batch["x"]).sum(-1)
    assert loss_of(learner, batch) == pytest.approx(float((error + kl).mean()), abs=1e-12)
    many = encoded[:1].expand(20000, -1)
    noise.begin(5, torch.arange(20000))
    drawn = learner.posterior(many)[0]
    noise.begin(0, None)
    assert torch.allclose(drawn.mean(0), q.mean[0], atol=float(5 * q.stddev[0].max() / math.sqrt(20000)))
    assert torch.allclose(drawn.std(0), q.stddev[0], rtol=0.03)
    encoded = encoded.clone().requires_grad_(True)
    noise.begin(5, batch["position"])
    learner.posterior(encoded)[0].sum().backward()
    noise.begin(0, None)
    assert torch.equal(encoded.grad[:, :4], torch.ones(6, 4).double())  # the draw lets the gradient through
    assert encoded.grad[:, 4:].abs().min() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"tied": True, "penalty": "kl", "code_activation": "sigmoid", "penalty_weight": 0.5},
        {"variational": True, "corruption": "gaussian"},
    ],
    ids=["kl", "variational"],
)
def test_two_ranks_learn_what_one_learns(model: dict[str, Any], small_data: Path) -> None:
    """The two forms whose loss is not a plain mean over samples, or draws twice, beside the small run."""
    base = {"family": "autoencoder", "inputs": [1, 8, 8], "hidden": [32], "code": 10, "activation": "tanh"}
    values = contract_config("autoencoder", small_data, model={**base, **model})
    reference = run_ranks(curves, 1, {"torch": values})[0]["torch"]
    for rank in run_ranks(curves, 2, {name: layout(values, name, 2) for name in ("torch", "zero1", "zero3")}):
        for name, got in rank.items():
            assert got["loss"] == pytest.approx(reference["loss"], abs=2e-5), name
            assert got["evaluation"] == pytest.approx(reference["evaluation"], abs=2e-5), name


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"output": "linear"}, "choose error: squared"),
        ({"penalty": "kl"}, "set code_activation: sigmoid"),
        ({"variational": True, "tied": True}, "tied: false"),
        ({"corruption": "mask", "corruption_strength": 1.0}, "choose one below 1"),
    ],
)
def test_choices_that_do_not_go_together(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config({**SMALL, **model})
