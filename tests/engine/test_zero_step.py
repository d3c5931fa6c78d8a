"""A step of ZeRO-1 and 2 that does not go DeepSpeed's own way has its numbers, to the bit, in fewer messages and reads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.small import contract_config, layout

STEPS = 3
BARE = {"train__clip_norm": None, "guard__nonfinite": False}
"""Nobody asks for a norm."""
TWO = {"train__micro_batch": 4}
"""Micro-batches on each of two ranks."""
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "zero1": ("gpt", "zero1", {}),
    "zero1, no small model": ("gpt", "zero1", {}),
    "zero1, two micro-batches": ("gpt", "zero1", TWO),
    "zero1, no norm": ("gpt", "zero1", BARE),
    "zero2": ("gpt", "zero2", {}),
    "zero2, two micro-batches": ("gpt", "zero2", TWO),
    "zero2, left out": ("gpt", "zero2", TWO),
    "zero1, bf16": ("gpt", "zero1", {"train__precision": "bf16"}),
    "zero1, tensor": ("gpt", "zero1+tensor2", {}),
    "zero2, sequence": ("gpt", "zero2+sequence2", {}),
    "zero1, two players": ("gan", "zero1", {"train__clip_norm": None}),
}
"""Name -> family, layout, what differs."""
MESSAGES = {
    "zero1": (1, 1),
    "zero1, no small model": (2, 2),
    "zero1, two micro-batches": (1, 1),
    "zero1, no norm": (1, 1),
    "zero2": (1, 1),
    "zero2, two micro-batches": (3, 1),
}
"""Case -> sums and gatherings of a step: of the gradients, of the norm where it is not known to all, and of weights."""


def told(rank: int, world: int, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each case, with DeepSpeed's own step and with ours: norms, messages of a step, and a digest of all tensors."""
    from unittest import mock

    from distdl.engine import zero_step

    found = {}
    for name, values in cases.items():
        with mock.patch.object(zero_step, "suits", lambda optimizer: False):
            own = trained(rank, values, "left out" in name)
        large = {"SMALL": 0, "PIECE": 1000} if "no small" in name else {"SMALL": zero_step.SMALL}
        with mock.patch.multiple(zero_step, **large):
            found[name] = {"deepspeed": own, "ours": trained(rank, values, "left out" in name)}
    return found


def trained(rank: int, values: dict[str, Any], leaves_out: bool) -> dict[str, Any]:
    from unittest import mock

    import torch.distributed as dist

    from distdl.config.load import config_from_dict
    from distdl.layout.process import ProcessState
    from distdl.train import loop, worker
    from distdl.train.survey import survey

    norms, messages = list[Any](), {"all_reduce": 0, "all_gather_into_tensor": 0}

    def counted(name: str) -> Any:
        whole = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            messages[name] += 1
            return whole(*args, **kwargs)

        return mock.patch.object(dist, name, call)

    with ProcessState(), counted("all_reduce"), counted("all_gather_into_tensor"):
        config = config_from_dict(values)
        plan = survey(config)
        worker.set_up_torch(plan)
        learner = worker.build_learner(config, None)
        engine = worker.make_engine(learner, plan, rank)
        if leaves_out:
            engine.judge = lambda step, loss: step == 2
        source = worker.make_source(plan, rank)
        for step in range(STEPS):
            messages.update(dict.fromkeys(messages, 0))
            loop.train(learner, engine, source, [], start=step, steps=step + 1)
            norms += [None if norm is None else float(norm).hex() for norm in engine.grad_norms.values()]
        source.close()
        of_a_step = list(messages.values())
        digest = hashlib.sha256()
        for name, tensor in engine.tensors():
            digest.update(name.encode() + tensor.detach().float().contiguous().numpy().tobytes())
    return {"norms": norms, "digest": digest.hexdigest(), "messages": of_a_step, "steps": engine.optimizer_steps}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    data = tmp_path_factory.mktemp("data")
    cases = {name: case(data, *of) for name, of in CASES.items()}
    return run_ranks(told, 2, cases)


def case(data: Path, family: str, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    values = layout(contract_config(family, data, train__steps=STEPS, guard__parity_every_steps=0, **changes), name, 2)
    values["data"]["eval_split"] = None
    return values


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_deepspeeds_to_the_bit(name: str, found: list[dict[str, dict[str, Any]]]) -> None:
    for rank in found:
        own, ours = rank[name]["deepspeed"], rank[name]["ours"]
        assert ours["digest"] == own["digest"] and ours["steps"] == own["steps"]
        if "no norm" in name:
            continue
        assert ours["norms"] == own["norms"]
        assert (None in ours["norms"]) == ("left out" in name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESSAGES)
def test_a_step_takes_as_few_messages_as_it_needs(name: str, found: list[dict[str, dict[str, Any]]]) -> None:
    ours, own = found[0][name]["ours"], found[0][name]["deepspeed"]
    assert tuple(ours["messages"]) == MESSAGES[name]
    assert own["messages"][0] > ours["messages"][0]
    assert ("no norm" in name) == (ours["norms"] == [None] * STEPS)
