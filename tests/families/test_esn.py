"""The echo state network against reservoirpy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.families.common import made, parameters

SMALL = {"family": "esn", "inputs": 2, "steps": 60, "units": 30, "washout": 10, "generate": 0, "ridge": 1e-3}


class Alone:
    """The engine of one worker."""

    def all_sum(self, tensor: Tensor) -> Tensor:
        return tensor


def waves(rows: int, steps: int = 60, inputs: int = 2) -> Tensor:
    """Sines of different phases and frequencies. (rows, steps + 1, inputs)"""
    t = torch.arange(steps + 1)[None, :, None]
    phase = torch.rand(rows, 1, inputs, generator=torch.Generator().manual_seed(0)) * 6.28
    return torch.sin(0.3 * t * (1 + torch.arange(inputs) / 2) + phase)


def test_the_reservoir_is_reservoirpys() -> None:
    nodes = pytest.importorskip("reservoirpy.nodes")
    learner = made(SMALL)
    series = waves(1)[0].double()
    w_in = learner.w_in.numpy()
    peer = nodes.Reservoir(
        units=30, lr=0.3, W=learner.w.numpy(), Win=w_in[:, 1:], bias=w_in[:, :1].ravel(), activation="tanh"
    )
    expected = peer.run(series.numpy())
    h, last = learner.run(series[None], learner.silence(series[None]))
    assert h.shape == (1, 61, 1 + 2 + 30)
    assert np.abs(h[0, :, 3:].numpy() - expected).max() < 1e-12 and np.ptp(expected) > 0.5
    assert torch.equal(h[..., 0], torch.ones(1, 61).double()) and torch.equal(h[0, :, 1:3], series)
    assert torch.equal(last, h[:, -1, 3:])


def test_the_readout_is_scikit_learns_ridge_over_all_batches() -> None:
    from sklearn.linear_model import Ridge

    learner, series = made(SMALL), waves(6)
    for part in (series[:1], series[1:4], series[4:]):
        learner.update({"x": part}, Alone(), 0)
    h, _ = learner.run(series[:, :-1].double(), learner.silence(series))
    h, y = h[:, 10:].flatten(0, 1).numpy(), series[:, 11:].double().flatten(0, 1).numpy()
    peer = Ridge(alpha=1e-3, fit_intercept=False, solver="cholesky").fit(h, y)
    assert learner.readout.shape == (2, 1 + 2 + 30)  # (1 + D + N) D numbers
    assert np.abs(learner.readout.numpy() - peer.coef_).max() < 1e-9
    loss = learner.evaluate({"x": series})["loss"]
    assert float(loss.total) / loss.count == pytest.approx(np.mean((peer.predict(h) - y) ** 2), rel=1e-5)


@pytest.mark.parametrize(("radius", "density"), [(0.8, 1.0), (1.25, 0.2)])
def test_the_reservoir_has_the_radius_and_the_density_asked_for(radius: float, density: float) -> None:
    learner = made({"family": "esn", "units": 100, "spectral_radius": radius, "density": density, "input_scale": 0.1})
    assert np.abs(np.linalg.eigvals(learner.w.numpy())).max() == pytest.approx(radius, rel=1e-9)
    assert float((learner.w != 0).double().mean()) == pytest.approx(density, abs=0.02)
    assert 0.09 < float(learner.w_in.abs().max()) <= 0.1
    assert parameters("esn") == 0 and made({"family": "esn", "units": 50}).readout.numel() == 1 + 1 + 50


def test_it_forgets_its_start() -> None:
    """The echo state property: two states under the same input come together."""
    learner, series = made(SMALL | {"spectral_radius": 0.9}), waves(1, 200).double()
    first, _ = learner.run(series, learner.silence(series))
    other, _ = learner.run(series, torch.ones_like(learner.silence(series)))
    assert float((first - other)[:, 0].abs().max()) > 0.1 and float((first - other)[:, -1].abs().max()) < 1e-4


def test_it_generates_from_its_own_predictions_alone() -> None:
    learner, series = made(SMALL | {"generate": 20}), waves(4)
    assert learner.primary == "generated"
    learner.update({"x": series}, Alone(), 0)
    own = learner.generate(series[:, :-20].double(), 20)
    x = series[:, :-20].double()
    for _ in range(20):  # the slow way: the series so far, again and again
        h, _ = learner.run(x, learner.silence(x))
        x = torch.cat([x, (h[:, -1] @ learner.readout.T)[:, None]], 1)
    assert torch.allclose(own, x[:, -20:], atol=1e-10)
    assert float((own - series[:, -20:]).square().mean()) < 0.01  # a fifth of a hundredth of the power of a sine
    hidden = series.clone()
    hidden[:, -20:] = 0  # what it is asked for, it does not see
    assert torch.equal(learner.generate(hidden[:, :-20].double(), 20), own)


def test_steps_must_be_left() -> None:
    for bad in ({"washout": 60}, {"generate": 60}):
        with pytest.raises(ValueError, match="60"):
            made(SMALL | bad)
