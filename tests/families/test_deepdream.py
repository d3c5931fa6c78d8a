"""DeepDream: its gradient by hand and by differences, its steps, rolls and octaves; GoogLeNet against torch's layers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.families.deepdream import Config
from distdl.layout import noise
from distdl.nn.googlenet import GoogLeNet
from tests.families.common import made, parameters

SMALL = {
    "family": "deepdream",
    "image": [1, 12, 10],
    "classes": 4,
    "carrier": "cnn",
    "widths": [5, 6],
    "layer": "conv2",
}
SMALL |= {"dreams": 3, "carrier_steps": 0, "start": "grey", "octaves": 1, "jitter": 0, "rate": 1e-3}


class Alone:
    """An engine of one process that only adds up."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    def all_sum(self, tensor: Tensor) -> Tensor:
        self.sums.append(tensor.clone())
        return tensor


def batch_of(positions: list[int], image: Tensor | None = None) -> dict[str, Tensor]:
    place = torch.tensor(positions)
    image = torch.rand(len(place), 1, 12, 10) if image is None else image
    return {"image": image, "label": place % 4, "id": place, "position": place}


def step(learner: Any, t: int, positions: list[int], image: Tensor | None = None) -> Mapping[str, Any]:
    engine = Alone()
    noise.begin(7, torch.tensor(positions))
    try:
        metrics: Mapping[str, Any] = learner.update(
            batch_of(positions, image), engine, learner.config.carrier_steps + t
        )
        return metrics
    finally:
        noise.begin(0, None)
        learner.sums = engine.sums


def test_parameters_of_the_original_carrier() -> None:
    assert parameters("deepdream") == 13_004_888
    assert parameters("deepdream", auxiliary=False) == 6_624_904


def test_the_gradient_is_the_formula_by_hand() -> None:
    """One layer with ReLU: d (1/2 mean a^2) / dx = conv^T(a) / units, as a transposed convolution."""
    learner = made({**SMALL, "widths": [5], "layer": "conv1"}).double()
    conv = learner.carrier.trunk.conv1[0]
    x = torch.rand(3, 1, 12, 10, dtype=torch.float64, requires_grad=True)
    value = learner.value(learner.carrier, x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    with torch.no_grad():
        a = F.conv2d(x, conv.weight, conv.bias, padding=2).relu()
        assert (value - a.square().mean((1, 2, 3)) / 2).abs().max() < 1e-12
        by_hand = F.conv_transpose2d(a, conv.weight, padding=2) / (5 * 12 * 10)
    assert (gradient - by_hand).abs().max() < 1e-12 < float(by_hand.abs().max())


@pytest.mark.parametrize("objective", ["activation", "class"])
def test_the_gradient_is_that_of_small_differences(objective: str) -> None:
    learner = made({**SMALL, "objective": objective}).double()
    x = torch.rand(3, 1, 12, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: learner.value(learner.carrier, x), x, eps=1e-7)


def test_class_i_is_the_aim_of_dream_i() -> None:
    learner = made({**SMALL, "objective": "class", "dreams": 6})
    x = torch.rand(12, 1, 12, 10)  # two jitters of six dreams
    logits = learner.carrier(x)[0].detach()
    expected = [float(logits[i, i % 6 % 4]) for i in range(12)]
    assert learner.value(learner.carrier, x).tolist() == pytest.approx(expected)


def test_a_step_is_the_rate_in_the_mean_along_the_gradient() -> None:
    learner = made(SMALL)
    before = learner.pictures()
    x = before.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(learner.value(learner.carrier, x).sum(), x)
    step(learner, 0, [0, 1])
    change = learner.pictures() - before
    assert torch.allclose(change, 1e-3 * gradient / gradient.abs().mean((1, 2, 3), keepdim=True), atol=1e-6)
    assert change.abs().mean((1, 2, 3)).tolist() == pytest.approx([1e-3] * 3, rel=1e-3)
    assert learner.sums[0].dtype == torch.float64


def test_small_steps_never_lower_the_objective() -> None:
    learner = made({**SMALL, "rate": 1e-4})
    values = [float(step(learner, t, [0])["objective"].total) for t in range(50)]
    assert all(a < b for a, b in itertools.pairwise(values))


def test_dreams_stay_pictures() -> None:
    learner = made({**SMALL, "rate": 0.2})
    for t in range(10):
        step(learner, t, [0])
    pictures = learner.start + learner.detail
    assert 0 <= float(pictures.min()) < 0.01 and 0.99 < float(pictures.max()) <= 1


def test_the_gradient_is_the_mean_over_the_rolls_of_the_samples() -> None:
    learner = made({**SMALL, "jitter": 3})
    positions = [5, 6, 7, 8]
    x = learner.pictures().requires_grad_()
    noise.begin(7, torch.tensor(positions))
    shifts = (3 * (2 * noise.uniform(4, 2) - 1)).round().long().tolist()
    noise.begin(0, None)
    assert len({tuple(s) for s in shifts}) > 1 and all(abs(n) <= 3 for s in shifts for n in s)
    values = [learner.value(learner.carrier, x.roll(s, (2, 3))).sum() for s in shifts]
    (expected,) = torch.autograd.grad(sum(values), x)
    other = made({**SMALL, "jitter": 3})
    step(learner, 0, positions)
    assert torch.allclose(learner.sums[0].float(), expected, atol=1e-6)
    step(other, 0, positions[:2])  # two ranks that share the samples
    parts = other.sums[0].clone()
    other = made({**SMALL, "jitter": 3})
    step(other, 0, positions[2:])
    assert torch.allclose(parts + other.sums[0], learner.sums[0], atol=1e-6)


def test_octaves_grow_and_carry_the_dream_over() -> None:
    assert Config(image=(3, 224, 300)).sizes() == [(82, 109), (114, 153), (160, 214), (224, 300)]
    model = {**SMALL, "image": [1, 28, 28], "octaves": 3, "octave_steps": 2, "rate": 0.05}
    learner = made(model)
    seen = []
    learner.value = lambda net, x, whole=learner.value: (seen.append(x.detach().clone()), whole(net, x))[1]
    image = torch.rand(2, 1, 28, 28)
    for t in range(4):
        step(learner, t, [0, 1], image)
    dreamt = learner.detail[..., :20, :20].clone()
    step(learner, 4, [0, 1], image)
    step(learner, 5, [0, 1], image)
    step(learner, 6, [0, 1], image)  # steps that are left stay at the largest
    assert [x.shape[-1] for x in seen] == [14, 14, 20, 20, 28, 28, 28]
    larger = F.interpolate(dreamt, (28, 28), mode="bilinear", align_corners=False, antialias=True)
    assert torch.allclose(seen[4][:3], learner.start + larger, atol=1e-6)
    assert torch.equal(learner.pictures(), (learner.start + learner.detail).clamp(0, 1))


def test_the_first_pictures_are_those_of_the_whole_batch_wherever_they_lie() -> None:
    class Other:
        """The other of two ranks has added its part already."""

        def __init__(self, parts: list[Tensor]) -> None:
            self.parts = parts

        def all_sum(self, tensor: Tensor) -> Tensor:
            return tensor.add_(self.parts.pop(0))

    learner = made({**SMALL, "dreams": 5})
    image = torch.rand(4, 1, 12, 10)
    alone = learner.first_pictures(batch_of([40, 41, 42, 43], image), Alone())
    assert torch.equal(alone, image[[0, 1, 2, 3, 0]])  # four samples for five dreams
    theirs = image[[0, 1, 2, 3, 0]] * torch.tensor([0.0, 0, 1, 1, 0])[:, None, None, None]
    mine = learner.first_pictures(batch_of([40, 41], image[:2]), Other([torch.tensor(2), theirs]))
    assert torch.equal(mine, alone)


def test_the_carrier_rests_while_dreams_learn() -> None:
    learner = made({**SMALL, "carrier_steps": 3, "octaves": 1}).train()

    class Engine(Alone):
        minimized = 0

        def minimize(self, loss: Tensor, player: str) -> None:
            assert player == "carrier"
            self.minimized += 1

    engine = Engine()
    before = {name: t.clone() for name, t in learner.carrier.state_dict().items()}
    for t in range(6):
        start = learner.detail.clone()
        learner.update(batch_of([0, 1]), engine, t)
        assert torch.equal(start, learner.detail) == (t < 3)
    assert engine.minimized == 3 and int(learner.dreamt) == 3 and learner.carrier.training
    assert all(torch.equal(before[name], t) for name, t in learner.carrier.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in learner.carrier.parameters())


def test_an_inception_module_is_its_four_branches() -> None:
    """torch's own convolutions and batch normalisation with the same weights."""
    from distdl.nn.googlenet import Inception

    torch.manual_seed(0)
    ours = Inception(7, 2, 3, 4, 5, 6, 8).double().eval()
    for m in ours.modules():
        for t in (getattr(m, name, None) for name in ("running_mean", "running_var")):
            if t is not None:
                t.copy_(torch.rand_like(t) + 0.5)
    x = torch.randn(2, 7, 9, 9, dtype=torch.float64)

    def layer(block: nn.Module, x: Tensor) -> Tensor:
        conv, norm, _ = block
        x = F.conv2d(x, conv.weight, padding=conv.kernel_size[0] // 2)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3).relu()

    two = lambda branch: layer(branch[1], layer(branch[0], x))  # noqa: E731
    pooled = layer(ours.branch4[1], F.max_pool2d(x, 3, 1, 1))
    expected = torch.cat([layer(ours.branch1, x), two(ours.branch2), two(ours.branch3), pooled], 1)
    assert expected.shape == (2, 2 + 4 + 6 + 8, 9, 9) and (ours(x) - expected).abs().max() < 1e-12


def test_googlenet_has_the_sizes_of_table_1_and_three_heads_in_training() -> None:
    with torch.device("meta"):
        net = GoogLeNet(3, 1000, auxiliary=True)
        x, sizes = torch.empty(2, 3, 224, 224), {}
        for name, part in net.trunk.named_children():
            x = part(x)
            sizes[name] = tuple(x.shape[1:])
        assert [logits.shape for logits in net(torch.empty(2, 3, 224, 224))] == [(2, 1000)] * 3
        assert [logits.shape for logits in net.eval()(torch.empty(2, 3, 224, 224))] == [(2, 1000)]
    wanted = {
        "conv1": (64, 112, 112),
        "pool2": (192, 28, 28),
        "inception3a": (256, 28, 28),
        "inception3b": (480, 28, 28),
    }
    wanted |= {"inception4a": (512, 14, 14), "inception4d": (528, 14, 14), "inception4e": (832, 14, 14)}
    wanted |= {"inception5b": (1024, 7, 7)}
    assert {name: sizes[name] for name in wanted} == wanted


def test_auxiliary_classifiers_count_three_tenths() -> None:
    model = {"family": "deepdream", "image": [3, 64, 64], "classes": 4, "octaves": 1, "jitter": 0}
    learner = made(model).train()
    batch = batch_of([0, 1, 2, 3], torch.rand(4, 3, 64, 64))
    losses = []

    class Engine(Alone):
        def minimize(self, loss: Tensor, player: str) -> None:
            losses.append(loss)

    noise.begin(0, batch["position"])
    learner.update(batch, Engine(), 0)
    noise.begin(0, batch["position"])
    main, first, second = (F.cross_entropy(logits, batch["label"]) for logits in learner.carrier(batch["image"]))
    noise.begin(0, None)
    assert float(losses[0].detach()) == pytest.approx(float((main + 0.3 * first + 0.3 * second).detach()), rel=1e-5)


def test_models_that_cannot_be_say_what_can() -> None:
    with pytest.raises(ValueError, match="no layer 'conv4'; choose one of conv1, conv2"):
        Config(carrier="cnn", widths=(4, 4), layer="conv4", image=(1, 28, 28))
    with pytest.raises(ValueError, match="take fewer"):
        Config(image=(1, 8, 8))
    with pytest.raises(ValueError, match="googlenet has no layer 'conv9'"):
        made({"family": "deepdream", "layer": "conv9"})
