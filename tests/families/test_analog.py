"""Crossbars against a simulation in NumPy that goes from pulse to pulse and from device to device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.families.analog.devices import DEVICES, DOWN, UP, Crossbar, Device, Periphery, update_curve
from distdl.layout import noise
from distdl.metrics import values
from tests.families.common import made

ALIKE: dict[str, Any] = {"noise": 0.0, "spread": 0.0, "spread_bounds": 0.0, "skew": 0.0}
EXACT = Periphery(noise=0.0, dac_bits=40, adc_bits=40)


class OneRank:
    def all_sum(self, tensor: Tensor) -> Tensor:
        return tensor


def crossbar(
    device: Device, inputs: int = 4, outputs: int = 3, periphery: Periphery = EXACT, seed: int = 0
) -> Crossbar:
    torch.manual_seed(seed)
    return Crossbar(inputs, outputs, device, periphery)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def one_pulse(w: np.ndarray, up: bool, device: Device) -> np.ndarray:
    """The definition, for devices that are all alike and never miss."""
    if up:
        return np.minimum(w + device.step * (1 - device.fade_up * w / device.high), device.high)
    return np.maximum(w - device.step * (1 - device.fade_down * w / device.low), device.low)


def test_devices_are_counted_with_their_biases() -> None:
    with torch.device("meta"):
        learner = made({"family": "analog"})
    assert sum(c.weight.numel() for c in learner.crossbars) == 785 * 128 + 129 * 10 == 101_770
    assert not list(learner.parameters())


@pytest.mark.parametrize("name", DEVICES)
def test_pulses_at_once_are_pulses_one_by_one(name: str) -> None:
    device = replace(DEVICES[name], **ALIKE)
    bar = crossbar(device, 50, 40)
    bar.weight.uniform_(device.low, device.high)
    counts = np.random.default_rng(0).integers(0, 60, (2, 40, 50))
    want = bar.weight.numpy().astype(float)
    for way in (UP, DOWN):
        for i in range(60):
            want = np.where(i < counts[way], one_pulse(want, way == UP, device), want)
    bar.apply_pulses(torch.from_numpy(counts).float(), generator())
    assert np.abs(bar.weight.numpy() - want).max() < 2e-6 < 1e-2 * np.abs(want).max()


@pytest.mark.parametrize(("name", "pulses"), [("ecram", 7), ("ecram_oxide", 25), ("memtransistor", 12)])
def test_mean_and_scatter_of_noisy_pulses(name: str, pulses: int) -> None:
    """10,000 devices of one kind, whose every step is uncertain on its own."""
    device = replace(DEVICES[name], **ALIKE | {"noise": DEVICES[name].noise})
    bar = crossbar(device, 100, 100)
    bar.weight.zero_()
    rng, want = np.random.default_rng(0), np.zeros(10_000)
    for _ in range(pulses):
        want += device.step * (1 - device.fade_up * want / device.high) * (1 + device.noise * rng.normal(size=10_000))
    bar.apply_pulses(torch.tensor([pulses, 0.0])[:, None, None].expand(2, 100, 100), generator())
    got = bar.weight.numpy()
    assert got.mean() == pytest.approx(want.mean(), abs=4 * want.std() / 100)
    assert got.std() == pytest.approx(want.std(), rel=0.06)


def test_counts_are_coincidences_of_the_trains() -> None:
    bar = crossbar(DEVICES["ecram"])
    x, delta = (
        torch.tensor([[1.0, -0.5, 0.2, 0.0], [0.3, 0.9, 0.0, 0.1]]),
        torch.tensor([[0.6, -0.9, 0.1], [0.0, 0.5, 0.4]]),
    )
    noise.begin(7, torch.tensor([3, 4]))
    rows, columns = (train.numpy() for train in bar.trains(x, delta, 0.05))
    noise.begin(7, torch.tensor([3, 4]))
    up, down = bar.demand(x, delta, 0.05).numpy()
    noise.begin(0, None)
    want = np.zeros((2, 3, 4))
    for b in range(2):
        for t in range(rows.shape[1]):
            for o in range(3):
                for i in range(4):
                    meeting = rows[b, t, i] * columns[b, t, o]
                    want[UP if meeting > 0 else DOWN, o, i] += meeting != 0
    assert np.array_equal(up, want[UP]) and np.array_equal(down, want[DOWN]) and want.sum() > 20


def test_pulses_are_unbiased_and_scatter_as_the_binomial_law() -> None:
    """E = rate x delta at w = 0; a train of T pulses that meet with probability p scatters by T p (1 - p) steps squared."""
    bar, n, rate = crossbar(DEVICES["ecram"]), 20_000, 0.03
    x, delta = torch.tensor([1.0, -0.5, 0.2, 0.0]), torch.tensor([0.6, -0.9, 0.1])
    torch.manual_seed(0)
    rows, columns = bar.trains(x.expand(n, -1), delta.expand(n, -1), rate)
    T = rows.shape[1]
    assert T == np.ceil(rate * 0.9 / 0.002) == 14
    moved = bar.device.step * torch.einsum("nti,nto->noi", rows, columns)
    want = rate * torch.outer(delta, x)
    p = (want / bar.device.step / T).abs()
    scatter = bar.device.step * (T * p * (1 - p)).sqrt()
    assert ((moved.mean(0) - want).abs() <= 4.5 * scatter / n**0.5 + 1e-7).all() and want.abs().max() > 0.02
    assert torch.allclose(moved.std(0), scatter, rtol=0.05, atol=1e-7)


def test_a_train_has_at_most_so_many_pulses_and_then_saturates() -> None:
    bar = crossbar(DEVICES["ecram"], periphery=replace(EXACT, pulses=31))
    up, down = bar.demand(torch.ones(1, 4), torch.ones(1, 3), 10.0)
    assert (up == 31).all() and not down.any()


@pytest.mark.parametrize("name", DEVICES)
def test_pulses_to_and_fro_lead_to_zero(name: str) -> None:
    """The point of symmetry, where a step up is as large as one down; elsewhere it is not."""
    device = replace(DEVICES[name], **ALIKE)
    pairs = torch.ones(2, 3, 4) * np.ceil(0.02 / device.step)
    for start in (0.8, -0.8):
        bar = crossbar(device)
        bar.weight.fill_(start)
        for _ in range(700):
            bar.apply_pulses(pairs, generator())
        assert bar.weight.abs().max() < 0.02


def test_update_curves_saturate_and_are_asymmetric() -> None:
    for name, pulses in (("ecram", 1500), ("memtransistor", 600)):
        device = replace(DEVICES[name], **ALIKE)
        path = update_curve(device, pulses, 1)[:, 0]
        up, down = path[: pulses + 1].diff(), path[pulses:].diff()
        moving = up[up > 0]
        assert path[0] == pytest.approx(device.low) and path.max() == pytest.approx(device.high, abs=0.01)
        assert (moving.diff() < 1e-6).all() and (down < 1e-6).all()  # steps up shrink on the way
        at_top = device.step * (1 - device.fade_up)
        assert moving[-2].item() == pytest.approx(at_top, abs=1e-4), name
        at_top = -device.step * (1 - device.fade_down * path.max().item() / device.low)
        assert down[0].item() == pytest.approx(at_top, rel=0.01)
    spread = update_curve(DEVICES["memtransistor"], 50, 200)
    assert spread[-1].std() > 0.02 and spread.shape == (101, 200)


def test_the_gate_scales_the_window_and_the_step() -> None:
    nominal, open_ = DEVICES["memtransistor"], DEVICES["memtransistor"].gated(-0.5)
    assert torch.allclose(update_curve(open_, 80, 5), update_curve(nominal, 80, 5) * 10**-0.5, atol=1e-5)
    with pytest.raises(ValueError, match="no gate"):
        made({"family": "analog", "device": "ecram", "gate": 0.5})


def test_reading_has_levels_bounds_and_noise() -> None:
    bar = crossbar(DEVICES["ecram"], 200, 3, Periphery(noise=0.0, dac_bits=4, adc_bits=5, bound=2.0))
    bar.weight.fill_(0.1)
    x = torch.zeros(2, 200, dtype=torch.float64)
    x[0, :3], x[1] = torch.tensor([2.0, 1.1, 0.1]), 1.0
    width = 4 / 30
    # 1.1 / 2 is nearest to 4 of the 7 levels above 0, 0.1 / 2 to none; 20 is cut off at 2
    first = round(0.1 * (1 + 4 / 7) / width) * width * 2
    assert bar.read(x)[:, 0].tolist() == pytest.approx([first, 2.0])
    assert torch.allclose(bar.read_back(torch.eye(3)), torch.full((3, 200), width, dtype=torch.float64))
    noisy = crossbar(DEVICES["ecram"], 200, 3, replace(EXACT, noise=0.06))
    noisy.weight.zero_()
    assert float(noisy.read(3 * torch.ones(4000, 200)).std()) == pytest.approx(3 * 0.06, rel=0.03)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_the_digital_net_learns_as_gradient_descent(activation: str) -> None:
    learner = made(
        {"family": "analog", "device": "digital", "inputs": [6], "hidden": [5, 4], "classes": 3}
        | {"activation": activation}
    )
    weights = [c.weight.clone().requires_grad_() for c in learner.crossbars]
    x, label = torch.rand(7, 6, dtype=torch.float64), torch.arange(7) % 3
    h = x
    for i, w in enumerate(weights):
        h = getattr(torch, activation)(h) if i else h
        h = h @ w[:, :-1].T + w[:, -1]
    grads = torch.autograd.grad(F.cross_entropy(h, label, reduction="sum"), weights)
    metrics = learner.update({"image": x, "label": label, "id": label}, OneRank(), 0)
    assert values(metrics)["loss"] == pytest.approx(float(F.cross_entropy(h, label).detach()))
    for c, w, g in zip(learner.crossbars, weights, grads):
        assert g.abs().max() > 1e-3 and torch.allclose(c.weight, w.detach() - 0.01 * g, atol=1e-14)


def test_on_average_the_pulses_of_every_layer_are_the_digital_nets_step() -> None:
    """12,000 copies of a sample, read without noise: what the layers ask of devices and what they ask of numbers."""

    class Records(OneRank):
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def all_sum(self, tensor: Tensor) -> Tensor:
            self.seen.append(tensor.clone())
            return tensor

    model = {"family": "analog", "inputs": [6], "hidden": [5], "classes": 3, "read_noise": 0, "dac_bits": 40}
    pulsed, digital = made(model | {"adc_bits": 40}), made(model | {"device": "digital"})
    for bar, other in zip(pulsed.crossbars, digital.crossbars):
        other.weight.copy_(bar.weight)
    n, asked, wanted = 12_000, Records(), Records()
    batch = {"image": torch.rand(6).expand(n, -1), "label": torch.ones(n, dtype=torch.int64), "id": torch.arange(n)}
    pulsed.update(batch, asked, 0)
    digital.update(batch, wanted, 0)
    for counts, step in zip(asked.seen, wanted.seen):
        up, down = counts / n * 0.002
        assert (up - down - step / n).abs().max() < 1e-4 < 0.1 * (step / n).abs().max()


def test_devices_draw_the_same_noise_on_every_replica_and_other_noise_at_every_step() -> None:
    model = {"family": "analog", "inputs": [6], "hidden": [5], "classes": 3}
    batch = {"image": torch.rand(8, 6), "label": torch.arange(8) % 3, "id": torch.arange(8)}

    def after(steps: list[int]) -> Tensor:
        learner = made(model)
        torch.manual_seed(5)
        for step in steps:
            noise.begin(1, batch["id"])
            learner.update(batch, OneRank(), step)
        noise.begin(0, None)
        return learner.crossbars[0].weight.clone()

    assert torch.equal(after([0]), after([0])) and not torch.equal(after([0]), after([1]))


def test_the_curves_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (mlflow brings it)")
    from benchmarks.analog_update import DRAWN, draw

    draw(tmp_path / "curves.png", devices=2)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG") and set(DRAWN) == set(DEVICES)
