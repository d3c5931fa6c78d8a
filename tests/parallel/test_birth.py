"""A model that is born in pieces is the model, on every layout, and no rank holds more than it should."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from distdl.config.load import config_from_dict
from distdl.families import build
from distdl.families.gpt import GPT
from distdl.learner import Learner
from distdl.parallel import birth, record
from distdl.plan import birth as planned
from distdl.train.survey import survey
from tests.nn.test_moe import SPARSE
from tests.ranks import run_ranks
from tests.small import MODELS, contract_config, curve, layout

CPU = torch.device("cpu")


@contextmanager
def tiny() -> Iterator[None]:
    """Within it small models, too, are born in pieces, and small tensors wait."""
    with mock.patch.object(planned, "SMALL", 0), mock.patch.object(record, "SMALL", 1):
        yield


def in_pieces(model: dict[str, Any]) -> Learner:
    with record.recording() as notes:
        learner = build(model)
    notes.promise(learner)
    return learner


# -- the same numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(MODELS))
def test_a_family_in_pieces_has_the_weights_that_it_has_as_a_whole(family: str) -> None:
    """To the bit, in whatever order they are made; and torch's generator is where it would be."""
    torch.manual_seed(3)
    whole = build(MODELS[family])
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with tiny():
        learner = in_pieces(MODELS[family])
    assert torch.equal(torch.get_rng_state(), after)
    for parameter in reversed(list(learner.parameters())):
        birth.bear(parameter, CPU)
    birth.bear_all(learner, CPU)
    want, got = whole.state_dict(), learner.state_dict()
    assert want.keys() == got.keys()
    assert [name for name in want if not torch.equal(want[name], got[name])] == []
    assert [p.requires_grad for p in whole.parameters()] == [p.requires_grad for p in learner.parameters()]


def test_parameters_wait_and_are_made_in_place() -> None:
    """Those of a GPT have no memory until they are born; who holds one holds it still."""
    with tiny():
        learner = in_pieces(MODELS["gpt"])
    assert all(p.is_meta and birth.promised(p) for p in learner.parameters())
    held = dict(learner.named_parameters())
    birth.bear_all(learner, CPU)
    assert isinstance(learner, GPT)
    assert all(p is held[name] and not p.is_meta for name, p in learner.named_parameters())
    assert learner.wte.weight is held["wte.weight"]


def test_weights_of_a_file_are_read_when_their_tensor_is_made() -> None:
    """And not before; where a layout drops one it is never read."""
    with tiny():
        learner = in_pieces(MODELS["gpt"])
    assert isinstance(learner, GPT)
    asked: list[str] = []

    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        asked.append(name)
        return torch.full(shape, 2.0)

    for name, parameter in learner.named_parameters():
        birth.put(parameter, functools.partial(read, name, tuple(parameter.shape)))
    del learner.blocks[0]
    assert asked == []
    birth.bear_all(learner, CPU)
    assert asked == [name.replace("blocks.0", "blocks.1") for name, _ in learner.named_parameters()]
    assert all(torch.equal(p, torch.full_like(p, 2.0)) for p in learner.parameters())
    birth.put(learner.ln.weight, lambda: torch.zeros(learner.ln.weight.shape))  # which is there
    assert not learner.ln.weight.any()


def test_by_name_a_tensor_depends_on_nothing_but_the_seed_and_its_name() -> None:
    """A layer more changes no other's weights; copies stay copies; another seed gives others."""

    def made(seed: int, **changes: Any) -> dict[str, Tensor]:
        with record.recording(seed) as notes:
            learner = build({**MODELS["mlp"], **changes})
        notes.promise(learner)
        for parameter in reversed(list(learner.parameters())):
            birth.bear(parameter, CPU)
        return learner.state_dict()

    widths = MODELS["mlp"]["hidden"]
    torch.manual_seed(7)
    few, more, other = made(3), made(3, hidden=[*widths, 9]), made(4)
    same = [name for name in few if few[name].shape == more[name].shape]
    assert same
    assert all(torch.equal(few[name], more[name]) for name in same)
    assert not any(torch.equal(few[name], other[name]) for name in few if few[name].ndim > 1)
    assert len({float(tensor.flatten()[0]) for tensor in few.values() if tensor.ndim > 1}) == len(widths) + 1


class Odd(nn.Module):
    """What constructors do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = [torch.rand(2000), torch.arange(3.0)]  # a tensor that is neither parameter nor buffer
        self.a = nn.Parameter(torch.randn(50, 40) * 0.1)
        with torch.no_grad():
            self.a[:10] += 1  # a part of it
            self.b = nn.Parameter(self.a.detach().clone().T.contiguous())
            self.b /= self.b.norm().item()  # a number of a weight
            if self.b.is_meta or self.a.device.type != "cpu":
                self.b.zero_()
        self.mean = self.a.mean(0).tolist()
        self.mask = nn.Buffer(torch.rand(60, 60) < 0.5)
        self.c = nn.Parameter(torch.empty(3, 2000))
        nn.init.orthogonal_(self.c)
        nn.init.trunc_normal_(self.c[1:], std=0.1, a=-0.2, b=0.2)
        self.d = nn.Parameter(torch.from_numpy(torch.rand(1500).numpy()))
        generator = torch.Generator().manual_seed(5)
        self.e = nn.Parameter(torch.rand(1500, generator=generator))
        nn.init.normal_(self.e[:700], generator=generator)
        self.f = nn.Parameter(torch.bernoulli(self.a.detach().abs().clamp(max=1)))


def test_what_constructors_do_with_tensors_is_done_again() -> None:
    torch.manual_seed(1)
    whole = Odd()
    torch.manual_seed(1)
    with record.recording() as notes:
        odd = Odd()
    notes.promise(odd)
    assert odd.a.is_meta
    assert odd.c.is_meta
    birth.bear_all(odd, CPU)
    assert odd.mean == whole.mean
    assert torch.equal(odd.table[0], whole.table[0])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(odd.state_dict()[name], tensor), name


def test_two_parameters_in_one_memory_are_told() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.zeros(2000))
            self.b = nn.Parameter(self.a.data.view(40, 50))

    with record.recording() as notes:
        net = Same()
    with pytest.raises(record.BornWhole, match="b and a are two views of the same memory"):
        notes.promise(net)


# -- on every layout ---------------------------------------------------------------------------------------------------


class Counted:
    """`bear`, and the most elements that what it made had at a time."""

    def __init__(self) -> None:
        self.bear, self.made = birth.bear, list[nn.Parameter]()
        self.most = self.largest = 0

    def __call__(self, parameter: nn.Parameter, *args: Any) -> None:
        waits = birth.promised(parameter)
        self.bear(parameter, *args)
        if waits:
            self.made.append(parameter)
            self.largest = max(self.largest, parameter.data.nelement())
            self.most = max(self.most, sum(p.data.nelement() for p in self.made))


def lives(rank: int, world: int, cases: dict[str, dict[str, Any]], pieces: bool) -> dict[str, Any]:
    """Curves; of a birth in pieces what was counted, too."""
    found: dict[str, Any] = {}
    for name, values in cases.items():
        counted = Counted()
        with tiny() if pieces else contextlib.nullcontext(), mock.patch.object(birth, "bear", counted):
            plan = survey(config_from_dict(values))
            found[name] = {**curve(rank, values), "born": plan.born}
            found[name] |= {"most": counted.most, "largest": counted.largest, "made": len(counted.made)}
    return found


@pytest.mark.slow
def test_every_layout_begins_and_goes_on_as_from_whole_models(small_data: Path) -> None:
    """ZeRO-3, tensor, pipeline and experts: the same curves to the bit; and ZeRO-3 holds one tensor at a time."""
    dense = contract_config("gpt", small_data, train__steps=4)
    experts = dense | {"model": dense["model"] | SPARSE}
    names = ["zero3", "zero1+tensor2", "zero3+tensor2", "zero1+pipeline2"]
    cases = {name: layout(dense, name, 2) for name in names}
    cases["experts"] = layout(experts, "zero1+expert2", 2)
    cases["bf16"] = layout(dense | {"train": dense["train"] | {"precision": "bf16"}}, "zero3", 2)
    cases["lstm"] = layout(contract_config("lstm", small_data, train__steps=2), "zero3", 2)
    want, got = run_ranks(lives, 2, cases, False), run_ranks(lives, 2, cases, True)
    for before, after in zip(want, got):
        for name, found in after.items():
            assert (found["born"], before[name]["born"]) == (planned.PIECES, planned.WHOLE), name
            assert found["made"], name
            assert (found["loss"], found["norm"]) == (before[name]["loss"], before[name]["norm"]), name
        assert after["zero3"]["most"] == after["zero3"]["largest"] > 0
