"""The perceptron against scikit-learn's, its layer norm by hand, and its counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.families.common import made, parameters


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
    learner = made({"family": "mlp", "inputs": [5], "hidden": [7], "norm": "layer", "activation": "tanh"}).double()
    x = torch.randn(9, 5, dtype=torch.float64)
    weight, bias, gain, shift, out, out_bias = (p.detach() for p in learner.parameters())
    sums = x @ weight.T + bias
    normal = (sums - sums.mean(-1, keepdim=True)) / (sums.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = torch.tanh(normal * gain + shift) @ out.T + out_bias
    assert torch.allclose(learner.logits({"image": x}), expected, atol=1e-12)


def test_mlp_parameter_counts() -> None:
    """784-300-10 and 784-300-100-10 of LeCun et al. 1998, the default, softmax and linear regression."""
    assert parameters("mlp", hidden=(300,)) == 238_510
    assert parameters("mlp", hidden=(300, 100)) == 266_610
    assert parameters("mlp") == 669_706
    assert parameters("mlp", hidden=()) == 7_850
    assert parameters("mlp", hidden=(), inputs=(10,), target="value") == 11


def test_mlp_takes_sklearns_step() -> None:
    """One step of gradient descent from the same weights on the same 100 images."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    raw = load_digits()
    images, labels = raw.data[:200] / 16, raw.target[:200]
    peer = MLPClassifier((24, 17), solver="sgd", momentum=0, nesterovs_momentum=False, alpha=0, batch_size=100)
    peer.set_params(learning_rate_init=0.5, random_state=0)
    peer.partial_fit(images[:100], labels[:100], classes=range(10))  # to have weights
    before = [(weight.copy(), bias.copy()) for weight, bias in zip(peer.coefs_, peer.intercepts_)]
    peer.partial_fit(images[100:], labels[100:])
    learner = made({"family": "mlp", "inputs": [64], "hidden": [24, 17], "activation": "relu"}).double()
    layers = [m for m in learner.net if isinstance(m, nn.Linear)]
    assert len(layers) == len(before) == 3
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, before):
            layer.weight.copy_(torch.from_numpy(weight.T))
            layer.bias.copy_(torch.from_numpy(bias))
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    learner.loss({"image": torch.from_numpy(images[100:]), "label": torch.from_numpy(labels[100:])}, 0)[0].backward()
    optimizer.step()
    for layer, weight, bias, (old, _) in zip(layers, peer.coefs_, peer.intercepts_, before):
        assert np.abs(layer.weight.detach().numpy() - weight.T).max() < 1e-12
        assert np.abs(layer.bias.detach().numpy() - bias).max() < 1e-12
        assert np.abs(weight - old).max() > 1e-3


def test_linear_regression_is_least_squares() -> None:
    """A value as the target and no hidden layer: the gradient is zero at the solution of the normal equations."""
    from sklearn.datasets import load_diabetes

    x, y = (torch.from_numpy(array) for array in load_diabetes(return_X_y=True))
    learner = made({"family": "mlp", "inputs": [10], "column": "x", "hidden": [], "target": "value"}).double()
    assert (learner.primary, learner.better) == ("loss", "lower")
    assert set(learner.columns(learner.config)) == {"x", "y"}
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y[:, None]).solution
    with torch.no_grad():
        learner.net[0].weight.copy_(solution[:-1].T)
        learner.net[0].bias.copy_(solution[-1])
    loss, _ = learner.loss({"x": x, "y": y}, 0)
    loss.backward()
    assert max(p.grad.abs().max() for p in learner.parameters()) < 1e-8
    total, count = learner.evaluate({"x": x, "y": y})["loss"]
    residual = y - x @ solution[:-1, 0] - solution[-1]
    assert float(total) / count == pytest.approx(float(residual.square().mean()), rel=1e-6)
    assert float(loss.detach()) == pytest.approx(float(residual.square().mean()), rel=1e-12)
    assert float(loss.detach()) < 0.5 * float(y.var())
