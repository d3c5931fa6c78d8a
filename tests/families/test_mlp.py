"""The perceptron against scikit-learn's, and its layer norm by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.families.common import made


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
