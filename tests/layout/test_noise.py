"""Dropout masks are a pure function of (seed, position, draw): no rank, micro-batch or restart enters them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from distdl.layout import noise
from distdl.layout.noise import Dropout

GOLDEN = [  # seed 7, positions 0, 3, 2**31, 2**40 + 5; two draws of three elements. A resumed run relies on them
    [
        [250631558, 298941537, 1332636854],
        [2041956180, 1694946430, 668945218],
        [1534215461, 1430997197, 1580951296],
        [564004837, -375194725, 1201418772],
    ],
    [
        [-1174673538, -1466075125, -331802651],
        [505882426, -267122074, 1813855609],
        [-316391160, -1427283706, -1661160704],
        [90813355, -1692148752, 54918883],
    ],
]


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    noise.begin(0, None)


def draw(seed: int, positions: list[int] | Tensor, *sizes: int, draws: int = 1) -> Tensor:
    """The last of `draws` draws of shape (B, *sizes)."""
    positions = torch.as_tensor(positions, dtype=torch.int64)
    noise.begin(seed, positions)
    for _ in range(draws):
        out = noise.bits(torch.Size((len(positions), *sizes)))
    return out


def by_hand(seed: int, position: int, number: int, element: int) -> int:
    """The same bits in plain integers: splitmix64's finaliser over counters, and the hash that joins them; the upper half
    as a signed 32-bit number."""
    golden, whole = 0x9E3779B97F4A7C15, 2**64 - 1

    def mix(x: int) -> int:
        x &= whole
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & whole
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & whole
        return x ^ (x >> 31)

    start = mix(seed + golden)
    factor = mix(mix(start + golden) + number * golden) | 1
    key = mix(start + position * golden)
    x = mix(element ^ golden)
    rotated = (x << 32 | x >> 32) & whole
    out = (rotated + factor * key * x & whole) >> 32
    return out - 2**32 if out >= 2**31 else out


def test_golden_values() -> None:
    positions = [0, 3, 2**31, 2**40 + 5]
    assert torch.stack([draw(7, positions, 3, draws=n) for n in (1, 2)]).tolist() == GOLDEN


def test_bits_are_the_hash_that_is_written_down() -> None:
    positions = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 5, 2**62]
    for seed in (0, 1, 12345, 2**31 + 7, 2**40):
        for number in (1, 2, 9):
            expected = [[by_hand(seed, p, number, e) for e in range(5)] for p in positions]
            assert draw(seed, positions, 5, draws=number).tolist() == expected


def masks(positions: Tensor, x: Tensor, seed: int = 3) -> list[Tensor]:
    """What two dropout layers do to rows of `x` in one forward pass."""
    layers = [Dropout(0.3), Dropout(0.3)]
    noise.begin(seed, positions)
    return [layer(x) for layer in layers]


@pytest.mark.parametrize("cuts", [[12], [6, 6], [1] * 12, [5, 7], [3, 3, 3, 3], [11, 1]])
def test_any_split_gives_the_same_rows(cuts: list[int]) -> None:
    positions = torch.arange(100, 112)
    x = torch.randn(12, 4, 5)
    whole = masks(positions, x)
    parts = [masks(p, rows) for p, rows in zip(positions.split(cuts), x.split(cuts))]
    for site in range(2):
        assert torch.equal(torch.cat([part[site] for part in parts]), whole[site])
    shuffled = torch.randperm(12)
    for site, rows in enumerate(masks(positions[shuffled], x[shuffled])):
        assert torch.equal(rows, whole[site][shuffled])


def test_no_generator_is_asked_or_moved() -> None:
    x = torch.ones(8, 100)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = masks(torch.arange(8), x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, masks(torch.arange(8), x)))


def test_several_rows_for_one_sample() -> None:
    """(B*k, ...) holds k rows of each sample one after the other; they differ, and a split between samples keeps them."""
    noise.begin(1, torch.arange(4))
    whole = noise.bits(torch.Size((12, 50)))
    noise.begin(1, torch.arange(2, 4))
    assert torch.equal(noise.bits(torch.Size((6, 50))), whole[6:])
    assert len({tuple(row) for row in whole.tolist()}) == 12
    with pytest.raises(ValueError, match="the first dimension must hold them"):
        noise.bits(torch.Size((5, 50)))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_scale(p: float) -> None:
    x = torch.ones(400, 1000)
    noise.begin(0, torch.arange(400))
    y = Dropout(p)(x)
    assert y.unique().tolist() == [0.0, pytest.approx(1 / (1 - p))]
    dropped = float((y == 0).double().mean())
    assert abs(dropped - p) < 5 * (p * (1 - p) / 400_000) ** 0.5
    assert float(y.mean()) == pytest.approx(1, abs=0.02)
    for dim in (0, 1):  # no row and no column stands out: 6 sigma
        rates = (y == 0).double().mean(dim)
        assert float((rates - p).abs().max()) < 6 * (p * (1 - p) / y.shape[dim]) ** 0.5


def test_bits_are_uniform() -> None:
    """Chi-square of every byte of the word over 256 bins, and each of 32 bits is set half the time."""
    words = draw(5, list(range(1000)), 400).flatten().long() & 0xFFFFFFFF
    n = len(words)
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((words >> shift) & 255, minlength=256).double()
        chi2 = float(((counts - n / 256) ** 2 / (n / 256)).sum())
        assert 255 - 6 * 22.6 < chi2 < 255 + 6 * 22.6  # sqrt(2 * 255) = 22.6
    for bit in range(32):
        assert abs(float(((words >> bit) & 1).double().mean()) - 0.5) < 5 * 0.5 / n**0.5


def test_other_seeds_positions_sites_and_elements_are_unrelated() -> None:
    positions = torch.arange(500)
    base = draw(1, positions, 200)
    others = {
        "seed": draw(2, positions, 200),
        "position": draw(1, positions + 500, 200),
        "position beyond 32 bits": draw(1, positions + 2**32, 200),
        "draw": draw(1, positions, 200, draws=2),
        "element": base.roll(1, 1),
        "neighbour": base.roll(1, 0),
    }
    signs = (base >= 0).double() * 2 - 1
    for name, other in others.items():
        agreement = float((signs * ((other >= 0).double() * 2 - 1)).mean())
        assert abs(agreement) < 5 / base.numel() ** 0.5, name
        assert int((base == other).sum()) <= 2, name


def test_identity_where_nothing_is_to_be_dropped() -> None:
    x = torch.randn(4, 9)
    noise.begin(0, torch.arange(4))
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert noise._scope.draws == 0  # and neither uses up a draw


def test_outside_a_training_step_torchs_generator_is_used() -> None:
    assert not noise.active()
    torch.manual_seed(0)
    expected = torch.nn.functional.dropout(torch.ones(50), 0.5)
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.5)(torch.ones(50)), expected)


def test_the_gradient_passes_where_the_value_passed() -> None:
    x = torch.ones(6, 40, requires_grad=True)
    noise.begin(0, torch.arange(6))
    y = Dropout(0.25)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_uniform_normal_and_bernoulli_have_their_moments() -> None:
    noise.begin(5, torch.arange(200))
    u, z = noise.uniform(200, 1000).double(), noise.normal(200, 1000).double()
    assert 0 < float(u.min()) < 1e-4 and 1 - 1e-4 < float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(1 / 2, abs=3e-3) and float(u.var()) == pytest.approx(1 / 12, abs=1e-3)
    assert float(z.mean()) == pytest.approx(0, abs=1e-2) and float(z.var()) == pytest.approx(1, abs=2e-2)
    assert float((z**4).mean()) == pytest.approx(3, abs=0.1) and float((z**3).mean()) == pytest.approx(0, abs=5e-2)
    rates = torch.tensor([0.0, 0.2, 0.7, 1.0]).expand(200, 250, 4)
    drawn = noise.bernoulli(rates)
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and drawn.dtype == torch.float32
    assert drawn.mean((0, 1)).tolist() == pytest.approx([0, 0.2, 0.7, 1], abs=1e-2)


@pytest.mark.parametrize("draw_some", [noise.uniform, noise.normal])
def test_the_smallest_and_the_largest_bits_stay_inside(draw_some: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 has no logarithm, and 1 is not below a probability of 1."""
    for extreme in (-(2**63), -1, 0, 2**63 - 1):
        monkeypatch.setattr(noise, "_words", lambda shape, b=extreme: torch.full(shape, b, dtype=torch.int64))
        noise.begin(0, torch.arange(2))
        assert bool(torch.isfinite(draw_some(2, 3)).all())
        assert 0 < float(noise.uniform(2, 3)[0, 0]) < 1


def test_draws_of_a_sample_are_its_own_whatever_it_is_batched_with() -> None:
    def draws(positions: list[int]) -> Tensor:
        noise.begin(9, torch.tensor(positions))
        n = len(positions)
        return torch.stack([noise.uniform(n, 4), noise.normal(n, 4), noise.bernoulli(torch.full((n, 4), 0.5))])

    whole = draws([3, 4, 5, 6])
    assert torch.equal(torch.cat([draws([3]), draws([4, 5, 6])], 1), whole)
    assert not torch.equal(whole[0, 0], whole[0, 1]) and not torch.equal(whole[0], whole[1])


def test_without_samples_torchs_generator_is_asked() -> None:
    torch.manual_seed(2)
    first = noise.uniform(3, 2), noise.normal(3, 2)
    torch.manual_seed(2)
    assert torch.equal(noise.uniform(3, 2), first[0]) and torch.equal(noise.normal(3, 2), first[1])
    assert not torch.equal(noise.normal(3, 2), first[1])
