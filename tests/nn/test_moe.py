"""The mixture of experts against literal loops over tokens, and expert parallelism against the one-process reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.checkpoint.load import Checkpoint
from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.families import build
from distdl.nn.moe import MixtureOfExperts, route, router_loss
from distdl.parity.cell import MOVE_TOLERANCE
from distdl.parity.movement import widest_gap
from distdl.parity.passes import OWN
from distdl.train.survey import survey
from tests.checkpoint.test_resume import last, metrics
from tests.ranks import run_ranks
from tests.resumed import Runs, go_on, train
from tests.small import SOME_STEPS, curves, layout, measured, small_config

B, T, D, E = 3, 12, 8, 4
SPARSE = {"experts": 4, "experts_top_k": 2, "capacity": 0.75, "balance_loss": 0.05, "router_z_loss": 0.01}
"""What makes the small GPT sparse. A capacity below 1 must drop tokens."""


def mixture(k: int, capacity: float, experts: int = E) -> tuple[MixtureOfExperts, Tensor]:
    """A module whose router has clear favourites, and its input."""
    torch.manual_seed(k)
    module = MixtureOfExperts(D, 2 * D, experts, k, capacity)
    with torch.no_grad():
        module.router.weight.normal_()
    return module, torch.randn(B, T, D, requires_grad=True)


def literal(module: MixtureOfExperts, x: Tensor) -> tuple[Tensor, int]:
    """The algorithm in loops: all first choices of a sequence in token order, then all second ones. Returns the output and
    the number of dropped choices."""
    k, n = module.top_k, module.count
    limit = math.ceil(k * x.shape[1] / n * module.capacity) if module.capacity else 10**9
    out, dropped = [], 0
    for sequence in x:
        rows = [torch.zeros(D) for _ in sequence]
        taken = [0] * n
        shares = [(module.router.weight @ token).softmax(0) for token in sequence]
        for choice in range(k):
            for t, p in enumerate(shares):
                best = p.detach().argsort(descending=True).tolist()
                e = best[choice]
                if taken[e] == limit:
                    dropped += 1
                    continue
                taken[e] += 1
                gate = p[e] if k == 1 else p[e] / (p[best[0]] + p[best[1]])
                up, down = module.experts[str(e)].up, module.experts[str(e)].down
                hidden = F.gelu(up.weight @ sequence[t] + up.bias, approximate="tanh")
                rows[t] = rows[t] + gate * (down.weight @ hidden + down.bias)
        out.append(torch.stack(rows))
    return torch.stack(out), dropped


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("capacity", [0, 0.4, 1.25, 100.0])
def test_it_is_the_literal_algorithm(k: int, capacity: float) -> None:
    module, x = mixture(k, capacity)
    got, weight = module(x), torch.randn(B, T, D)
    wanted, dropped = literal(module, x)
    assert (got - wanted).abs().max() < 1e-6 and wanted.abs().max() > 0.1
    assert module.losses is not None
    assert float(module.losses.dropped.mean()) == pytest.approx(dropped / (B * k * T))
    assert (dropped > 0) == (0 < capacity < 1.5), "the small capacities drop, the others hold every token"
    tensors = [x, *module.parameters()]
    gradients = torch.autograd.grad((got * weight).sum(), tensors)
    for gradient, theirs in zip(gradients, torch.autograd.grad((wanted * weight).sum(), tensors, allow_unused=True)):
        assert (gradient - (0 if theirs is None else theirs)).abs().max() < 1e-5


def test_one_expert_that_every_token_goes_through_is_a_dense_perceptron() -> None:
    module, x = mixture(1, 1.0, experts=1)
    assert torch.allclose(module(x), module.experts["0"](x), atol=1e-7)


def test_the_losses_of_the_router_are_those_of_the_papers() -> None:
    scores = 3 * torch.randn(B, T, E, generator=torch.Generator().manual_seed(0))
    for k in (1, 2):
        _, losses = route(scores, k, 1.0)
        for b in range(B):
            balance = sum(
                sum(int(s.argmax()) == e for s in scores[b]) / T * sum(float(s.softmax(0)[e]) for s in scores[b]) / T
                for e in range(E)
            )
            z = sum(math.log(sum(math.exp(v) for v in s.tolist())) ** 2 for s in scores[b]) / T
            assert float(losses.balance[b]) == pytest.approx(E * balance, rel=1e-5)
            assert float(losses.z[b]) == pytest.approx(z, rel=1e-5)
    even = torch.eye(E).repeat(3, 1).unsqueeze(0) * 1e-3  # each expert first as often, and nearly the same shares
    assert float(route(even, 1, 1.0)[1].balance) == pytest.approx(1, abs=1e-3)
    one = torch.tensor([9.0, 0, 0, 0]).expand(1, T, E)
    assert float(route(one, 1, 1.0)[1].balance) == pytest.approx(E, abs=0.01)
    assert float(route(one, 1, 1.0)[1].dropped) == 1 - 1 / E


def test_a_sample_does_not_depend_on_its_batch() -> None:
    for k in (1, 2):
        module, x = mixture(k, 0.6)
        whole = module(x)
        total, _ = router_loss(module, 0.3, 0.2)
        alone = []
        for b in range(B):
            assert torch.allclose(module(x[b : b + 1]), whole[b : b + 1], atol=1e-6)
            alone.append(router_loss(module, 0.3, 0.2)[0])
        assert torch.allclose(total, torch.stack(alone).mean(), rtol=1e-5)


def test_the_router_is_fp32_under_autocast() -> None:
    module, x = mixture(1, 0)
    with torch.autocast("cpu", torch.bfloat16):
        scores = module.router(x.bfloat16())
    assert scores.dtype == torch.float32
    assert torch.equal(scores, F.linear(x.bfloat16().float(), module.router.weight))


# -- in the family gpt -------------------------------------------------------------------------------------------------

GPT = {"family": "gpt", "vocabulary": 61, "context": 12, "layers": 4, "heads": 2, "width": 16, **SPARSE}


def batch() -> dict[str, Tensor]:
    return {"tokens": torch.randint(0, 61, (B, 13), generator=torch.Generator().manual_seed(1)), "id": torch.arange(B)}


def made(**changes: Any) -> Any:
    torch.manual_seed(0)
    learner: Any = build(GPT | changes)
    with torch.no_grad():
        for block in learner.blocks:
            if block.moe is not None:
                block.moe.router.weight.normal_()
    return learner


def test_names_places_and_marks() -> None:
    learner = made()
    names = {name for name, p in learner.named_parameters() if getattr(p, "distdl_expert", False)}
    linears = [f"{layer}.{kind}" for layer in ("up", "down") for kind in ("weight", "bias")]
    assert names == {f"blocks.{i}.moe.experts.{e}.{n}" for i in (1, 3) for e in range(4) for n in linears}
    assert {n for n, _ in learner.named_parameters() if "router" in n} == {
        f"blocks.{i}.moe.router.weight" for i in (1, 3)
    }
    assert all("up" in dict(learner.blocks[i].named_children()) for i in (0, 2)), "the others stay dense"
    assert [b.moe is not None for b in made(experts_every=3).blocks] == [False, False, True, False]


def test_the_losses_join_training_and_stay_out_of_evaluation() -> None:
    learner = made()
    plain = learner.eval()(batch(), -1, evaluate=True)
    assert plain.keys() == {"loss"}
    loss, told = learner.train()(batch(), 0)
    sums = dict.fromkeys(("balance", "z", "dropped"), 0.0)
    learner.through(batch())
    for block in learner.blocks[1::2]:
        for kind in sums:
            sums[kind] += float(getattr(block.moe.losses, kind).mean())
    extra = 0.05 * sums["balance"] + 0.01 * sums["z"]
    assert float(loss) == pytest.approx(float(plain["loss"].total) / B + extra, abs=1e-6) and extra > 0.05
    assert float(told["balance"].total) / told["balance"].count == pytest.approx(sums["balance"] / 2, rel=1e-5)
    assert float(told["dropped"].total) / told["dropped"].count == pytest.approx(sums["dropped"] / 2, rel=1e-5)
    assert sums["dropped"] / 2 >= 1 / 6 - 1e-6, "four queues of ceil(4.5) places for 24 choices"


def test_recomputation_gives_the_same_gradients_and_keeps_nothing() -> None:
    """With heavy losses of the routers too, whose gradient must find its way into layers that are run again."""
    for weights in ({}, {"balance_loss": 50.0, "router_z_loss": 10.0}):
        gradients = []
        for every in (0, 1, 2):
            learner = made(**weights)
            learner.recompute_every = every
            learner(batch(), 0)[0].backward()
            gradients.append([p.grad for p in learner.parameters()])
            assert all(block.moe.losses is None for block in learner.blocks[1::2]), "they would hold the activations"
        assert all(torch.equal(a, b) for other in gradients[1:] for a, b in zip(gradients[0], other))
        assert all(bool(gradient.any()) for gradient in gradients[0])


def test_the_gradient_of_a_router_is_that_of_its_losses_too() -> None:
    """The derivative of the whole loss along the router's weights, by differences."""
    learner = made(capacity=0, balance_loss=0.0, router_z_loss=2.0)
    weight = learner.blocks[1].moe.router.weight
    loss, _ = learner(batch(), 0)
    (gradient,) = torch.autograd.grad(loss, [weight])
    along = gradient / gradient.norm()
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight.add_(sign * 1e-2 * along)
            values.append(float(learner(batch(), 0)[0]))
            weight.sub_(sign * 1e-2 * along)
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(float(gradient.norm()), rel=1e-2)


# -- expert parallelism ------------------------------------------------------------------------------------------------


def sparse_config(
    text: str, model: dict[str, Any], optimizer: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    values = small_config("gpt", "", text, **changes)
    values["model"] |= SPARSE | model
    return values | ({"optimizer": optimizer} if optimizer else {})


def cases(text: str) -> dict[str, dict[str, Any]]:
    """Clipping on and biting. Plain SGD shows a wrong scale of the experts' gradients, which Adam hides."""
    adamw, few = {"name": "adamw", "lr": 3e-3}, {"train__steps": SOME_STEPS}
    return {
        "top 2": sparse_config(text, {}, optimizer={**adamw, "weight_decay": 0.05}, **few),
        "top 1, sgd": sparse_config(
            text,
            {"experts_top_k": 1, "experts_every": 1},
            optimizer={"name": "sgd", "lr": 0.2},
            train__l1=1e-3,
            train__l2=1e-2,
            **few,
        ),
        "no limit": sparse_config(text, {"capacity": 0}, optimizer=adamw, **few),
    }


def compare(reference: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    """Loss within 1e-5 over all steps, gradient norm within 1e-4 of its size, the same evaluation on every rank, and each
    weight moves as the reference's does."""
    for case, got in ranks[0].items():
        want = reference[case.split("/")[0]]
        assert len(want["loss"]) == SOME_STEPS and min(want["norm"]) > 0.5, "clipping at 0.5 bites"
        assert got["loss"] == pytest.approx(want["loss"], abs=1e-5), case
        assert got["norm"] == pytest.approx(want["norm"], rel=1e-4), case
        assert all(rank[case]["evaluation"] == pytest.approx(want["evaluation"], abs=1e-5) for rank in ranks), case
        gap = widest_gap(want, got)
        assert gap and gap.error < MOVE_TOLERANCE[OWN]["fp32"], f"{case}: {gap}"


def laid_out(text: str, names: list[str], world: int) -> dict[str, dict[str, Any]]:
    out = {f"{case}/{name}": layout(values, name, world) for case, values in cases(text).items() for name in names}
    for values in out.values():
        values["train"]["micro_batch"] = values["train"]["global_batch"] // world // 2  # two accumulated micro-batches
    return out


@pytest.fixture(scope="module")
def reference(text: str) -> dict[str, Any]:
    return measured(1, cases(text))[0]


@pytest.mark.slow
def test_experts_on_two_ranks_give_the_reference(reference: dict[str, Any], text: str) -> None:
    names = ["zero1+expert2", "zero2+expert2", "torch", "zero0", "zero1", "zero2", "zero3", "zero1+tensor2"]
    compare(reference, measured(2, laid_out(text, names, 2)))


@pytest.mark.slow
def test_experts_on_four_ranks_give_the_reference(reference: dict[str, Any], text: str) -> None:
    """Two sets of two, and one expert a rank."""
    names = [f"zero{zero}+expert{size}" for zero in (1, 2) for size in (2, 4)]
    chosen = {case: values for case, values in laid_out(text, names, 4).items() if not case.startswith("no limit")}
    compare(reference, measured(4, chosen))


@pytest.mark.slow
def test_it_learns(text: str) -> None:
    values = layout(sparse_config(text, {"capacity": 1.25}, train__steps=60), "zero2+expert2", 2)
    loss = run_ranks(curves, 2, {"x": values})[0]["x"]["loss"]
    assert loss[0] - loss[-1] > 1.0


@pytest.mark.slow
def test_a_checkpoint_of_experts_continues_on_any_layout(text: str, tmp_path: Path) -> None:
    """Killed after step 13 with the checkpoint of step 10 behind it; from experts to one process and back, and on."""
    base = sparse_config(text, {}) | {"checkpoint": {"every_steps": 5, "keep_last": 9}}
    base["track"]["every_steps"] = 1
    whole = {"values": layout(base, "torch", 1), "folder": str(tmp_path / "whole")}
    ways = [
        ("zero1+expert2", 2, "torch", 1),
        ("torch", 1, "zero1+expert2", 2),
        ("zero2+expert2", 4, "zero2+expert4", 4),
    ]
    first: dict[int, Runs] = {1: {}, 2: {}, 4: {}}
    then: dict[int, Runs] = {1: {}, 2: {}, 4: {}}
    for source, world, target, target_world in ways:
        name = f"{source}x{world} to {target}x{target_world}"
        folder = {"folder": str(tmp_path / name)}
        first[world][name] = {"values": layout(base, source, world), **folder}
        then[target_world][name] = {"values": layout(base, target, target_world), **folder}
    for world, runs in first.items():
        train(world, {"whole": whole} if world == 1 else {}, runs)
    for world, runs in then.items():
        go_on(world, runs)
    wanted, tensors = metrics(tmp_path / "whole"), last(tmp_path / "whole").tensors
    assert len(wanted) == 20
    for source, world, target, target_world in ways:
        path = tmp_path / f"{source}x{world} to {target}x{target_world}"
        got = metrics(path)
        assert max(abs(got[step] - wanted[step]) for step in wanted) < 1e-5, path.name
        for step in (10, 20):  # written by both layouts: every expert once, under its one-process name
            saved = Checkpoint(path / "checkpoints" / f"step_{step:08d}").tensors
            assert {n: t["shape"] for n, t in saved.items()} == {n: t["shape"] for n, t in tensors.items()}


def test_nonsense_is_refused(text: str) -> None:
    for model, match in (
        ({"experts_top_k": 2, "experts": 1}, "experts_top_k is 2 and experts is 1"),
        ({"experts_every": 5}, "no block has experts"),
        ({"experts": 0}, "capacity and balance_loss and router_z_loss without experts"),
        ({"experts_top_k": 3}, "experts_top_k"),
        ({"capacity": -1.0}, "capacity"),
    ):
        with pytest.raises(InputError, match=match):
            config_from_dict(sparse_config(text, model))


def test_layouts_that_cannot_be_are_refused(text: str) -> None:
    for name, world, match in (
        ("zero1+expert3", 3, "4 experts cannot be shared evenly by parallel.expert=3"),
        ("zero0+expert2", 2, "averages the gradient norms"),
        ("zero3+expert2", 2, "ZeRO-3"),
        ("zero1+sequence2", 2, "1 routing group cannot be shared evenly by parallel.sequence=2"),
        ("zero1+pipeline2", 2, "1 sum of the routers' losses cannot be shared evenly by parallel.pipeline=2"),
    ):
        with pytest.raises(InputError, match=match):
            survey(config_from_dict(layout(sparse_config(text, {}), name, world)))
    with pytest.raises(InputError, match="has no experts"):
        survey(config_from_dict(layout(small_config("gpt", "", text), "zero1+expert2", 2)))
