"""The sheet against its equations unit by unit, the wave over time, the order of all functions, and the finding."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distdl.families.cortical_array import orders
from tests.families.common import Small, made, parameters

TABLE = torch.tensor([[0.0, 0.0], [0, 1], [1, 0], [1, 1]])


class Alone:
    """The engine of one worker."""

    def all_sum(self, tensor: Tensor) -> Tensor:
        return tensor


def sheet(seed: int = 0, **model: Any) -> Any:
    return made({"family": "cortical_array", **model}, seed)


def reached(learner: Any, x: Tensor = TABLE) -> dict[str, float]:
    return {name: float(total) / count for name, (total, count) in learner.evaluate({"x": x}).items()}


def test_numbers_of_the_full_sheet() -> None:
    assert parameters("cortical_array") == 0  # nothing is trained by a gradient
    learner = sheet()
    assert (
        learner.afferent.numel() + learner.lateral.numel() + learner.threshold.numel() == 900 * (2 + 12 + 1) == 13_500
    )
    inhibitory = learner.sign[learner.linked] < 0
    assert 0.25 < float(inhibitory.double().mean()) < 0.35


def test_a_unit_hears_different_neighbours_within_reach() -> None:
    learner = sheet(grid=[7, 9], radius=2.0, synapses=10)
    sign: dict[int, float] = {}
    for unit in range(63):
        heard = learner.source[unit][learner.linked[unit]].tolist()
        within = [j for j in range(63) if 0 < (j // 9 - unit // 9) ** 2 + (j % 9 - unit % 9) ** 2 <= 4]
        assert set(heard) <= set(within) and len(heard) == len(set(heard)) == min(10, len(within))
        for j, s in zip(heard, learner.sign[unit].tolist(), strict=False):
            assert sign.setdefault(j, s) == s  # a neighbour excites all who hear it, or inhibits all
    assert len(learner.source) == 63 and not learner.linked.all()


def test_the_update_is_its_equations_unit_by_unit() -> None:
    """Eight steps under the wave, with batches of another mixture each time."""
    rng = np.random.default_rng(1)
    learner = sheet(grid=[4, 5], radius=1.5, synapses=6, duration=8, settle=3, inhibitory=0.4, rate=20.0)
    source, linked, sign = learner.source.numpy(), learner.linked.numpy(), learner.sign.numpy()
    a, w, theta = learner.afferent.numpy().copy(), learner.lateral.numpy().copy(), learner.threshold.numpy().copy()
    start = w.copy()
    assert not linked.all()  # some at the border hear fewer
    for step in range(8):
        x = rng.integers(0, 2, (5, 2)).astype(np.float64)
        if step % 2:
            x[:, 1] = 1 - x[:, 0]  # the weaker input falls
        y = np.zeros((5, 20))
        for _ in range(3):
            new = np.zeros_like(y)
            for b, i in itertools.product(range(5), range(20)):
                field = a[i] @ x[b] - theta[i]
                field += sum(sign[i, k] * w[i, k] * y[b, source[i, k]] for k in range(6) if linked[i, k])
                new[b, i] = (y[b, i] + 1 / (1 + np.exp(-8 * field))) / 2
            y = new
        front = (5 + 6) * (step + 0.5) / 8 - 3.5
        for i in range(20):
            p = np.exp(-((i % 5 - front) ** 2) / 2)
            for c in range(2):
                a[i, c] = np.clip(a[i, c] + 20 * p * np.cov(y[:, i], x[:, c], ddof=0)[0, 1], 0, 0.5)
            for k in np.flatnonzero(linked[i]):
                w[i, k] = np.clip(w[i, k] + 20 * p * np.cov(y[:, i], y[:, source[i, k]], ddof=0)[0, 1], 0, 0.3)
            theta[i] += 0.3 * p * (y[:, i].mean() - 0.5)
        total, count = learner.update({"x": torch.from_numpy(x)}, Alone(), step)["loss"]
        assert float(total) / count == pytest.approx((4 * y * (1 - y)).mean(), abs=1e-6)
    for got, expected in ((learner.afferent, a), (learner.lateral, w), (learner.threshold, theta)):
        assert np.abs(got.numpy() - expected).max() < 1e-12
    assert a.max() == 0.5 and a.min() == 0 and np.abs(w - start).max() > 0.02  # both limits are met
    assert (w[~linked] == 0).all()


def test_the_wave_travels_over_the_columns_and_leaves() -> None:
    learner = sheet(grid=[3, 20], duration=100)
    p = torch.stack([learner.plasticity(step).view(3, 20)[1] for step in range(101)])  # (T, columns)
    assert torch.equal(learner.plasticity(40), learner.plasticity(40).view(3, 20)[:1].expand(3, 20).flatten())
    peak = p.argmax(0)
    assert (peak.diff() > 0).all() and p.amax(0).min() > 0.98  # each column in its turn, and wholly
    assert (peak - ((torch.arange(20) + 3.5) / 26 * 100 - 0.5)).abs().max() <= 0.5
    assert p[0].max() < 0.02 and p[99].max() < 0.02 and p[100].max() == 0  # outside, before and after


def test_uniform_plasticity_is_as_much_in_total() -> None:
    wave, uniform = (sheet(grid=[2, 12], duration=150, plasticity=which) for which in ("wave", "uniform"))
    totals = [torch.stack([s.plasticity(step) for step in range(200)]).sum(0) for s in (wave, uniform)]
    assert torch.allclose(*totals, rtol=3e-3)
    assert float(uniform.plasticity(0).std()) == 0 == float(uniform.plasticity(150).max())
    assert all(torch.equal(one, other) for one, other in zip(wave.buffers(), uniform.buffers(), strict=True))


def test_orders_of_all_sixteen_functions() -> None:
    """By how the function can be computed: without inputs, from one, by a threshold unit, or by none."""
    table = [(0, 0), (0, 1), (1, 0), (1, 1)]

    def by_a_threshold(truth: tuple[int, ...]) -> bool:
        fields = (
            [v * x + w * z + b for x, z in table]
            for v, w, b in itertools.product((-2, -1, 1, 2), (-2, -1, 1, 2), (-3, -1, 1, 3))
        )
        return any(tuple(int(f > 0) for f in field) == truth for field in fields)

    counts = [0, 0, 0, 0]
    for truth in itertools.product((0, 1), repeat=4):
        one_input = any(
            all(t == x[c] ^ flip for t, x in zip(truth, table, strict=True)) for c in (0, 1) for flip in (0, 1)
        )
        expected = 0 if len(set(truth)) == 1 else 1 if one_input else 2 if by_a_threshold(truth) else 3
        assert int(orders(torch.tensor(truth, dtype=torch.bool))) == expected
        counts[expected] += 1
    assert counts == [2, 4, 8, 2]


def test_evaluation_counts_what_the_units_compute() -> None:
    """Units without neighbours' voices, whose synapses and thresholds are set by hand; the last two columns are late."""
    learner = sheet(grid=[2, 4])
    learner.lateral.zero_()
    learner.afferent.copy_(torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]] * 2))  # nothing, A, B, A and B
    learner.threshold.copy_(torch.tensor([0.5] * 3 + [1.5] + [0.5] * 3 + [0.5]))
    assert learner.functions()[:4].int().tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    metrics = reached(learner)
    assert [metrics[f"order{k}"] for k in range(4)] == [0.25, 0.5, 0.25, 0]
    assert (metrics["higher_order"], metrics["late_higher_order"]) == (0.25, 0.5)
    assert {**reached(learner, TABLE[:1]), "loss": 0} == {**metrics, "loss": 0}  # whatever the samples are


def test_a_fresh_sheet_is_constant_and_the_end_of_the_wave_is_the_end() -> None:
    learner = sheet(grid=[5, 5], duration=3)
    assert reached(learner)["order0"] == 1
    for step in range(3):
        learner.update({"x": TABLE}, Alone(), step)
    before = [buffer.clone() for buffer in learner.buffers()]
    learner.update({"x": TABLE}, Alone(), 3)
    assert all(torch.equal(one, other) for one, other in zip(before, learner.buffers(), strict=True))


def test_the_wave_makes_more_units_of_a_higher_order(small_data: Path) -> None:
    """On a quarter of the sheet, by the engine and the loop; the whole one is an acceptance case."""
    gains = []
    for seed in (1, 2):
        late = {}
        for plasticity in ("wave", "uniform"):
            model = {"family": "cortical_array", "grid": [15, 15], "duration": 300, "plasticity": plasticity}
            run = Small("cortical_array", small_data, model=model, seed=seed, train__steps=300, train__global_batch=4)
            run.train(300)
            late[plasticity] = run.evaluate()["late_higher_order"]
        gains.append(late["wave"] - late["uniform"])
    assert np.mean(gains) > 0.15
