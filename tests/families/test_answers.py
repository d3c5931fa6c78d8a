"""The verb for the answer, of every family: what `predict` says, of which columns, alike for one row and for many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distdl.config.family import family_names
from distdl.errors import InputError
from distdl.export.rows import made_up
from distdl.families import load_family, model_config
from distdl.layout import noise
from distdl.learner import Learner
from distdl.learner.answers import KINDS, NOTHING
from distdl.learner.units import Units
from tests.families.common import made, rows_of
from tests.small import MODELS, contract_config

every_family = pytest.mark.parametrize("family", family_names())
ROWS = 4
ONLY_GENERATE = {"gan", "diffusion"}
"""Families without a question that has an answer."""
MORE = {  # other kinds of answers than those of the families' small configs
    "mlp with a value": {
        "family": "mlp",
        "inputs": [6],
        "column": "x",
        "hidden": [5],
        "target": "value",
        "norm": "batch",
    },
    "mlp with hinge loss": {
        "family": "mlp",
        "inputs": [6],
        "column": "x",
        "hidden": [5],
        "classes": 3,
        "loss": "hinge",
    },
    "lenet5 of 1998": {"family": "lenet5", "variant": "1998"},
    "mtdnn": {"family": "mtdnn", "inputs": 16, "tasks": 4, "hidden": [6], "chosen": [2, 0]},
    "bert classify": {**MODELS["bert"], "task": "classify", "classes": 3},
    "bert mask": {**MODELS["bert"], "task": "mask"},
    "birnn rows": {"family": "birnn", "task": "rows", "inputs": 8, "steps": 8, "frame": 1, "units": 6},
    "gru values": {"family": "gru", "task": "values", "inputs": 3, "steps": 8, "units": 6},
    "rnn2 tokens": {"family": "rnn2", "task": "tokens", "inputs": 9, "steps": 8, "units": 6},
    "hrnn tokens": {"family": "hrnn", "task": "tokens", "inputs": 9, "steps": 8, "units": 6, "chunk": 4},
    "gpt with documents": {**MODELS["gpt"], "labels": True, "documents": True},
    "gpt with experts": {**MODELS["gpt"], "experts": 4, "experts_every": 1},
    "vit mask": {**MODELS["vit"], "task": "mask"},
    "unet of many classes": {
        "family": "unet",
        "image": [1, 32, 32],
        "width": 4,
        "depth": 1,
        "classes": 3,
        "border_weight": 0,
    },
    "autoencoder, variational": {"family": "autoencoder", "inputs": [6], "column": "x", "hidden": [5], "code": 2}
    | {"variational": True, "error": "squared", "output": "linear"},
    "clv_agent, continuous": {"family": "clv_agent", "continuous": True},
    "bm, sampled": {"family": "bm", "visible": 5, "hidden": 2, "learning": "sampled"},
    "tabular td0": {"family": "tabular", "rule": "td0", "environment": "random_walk"},
    "frn": {"family": "frn", "inputs": 2, "outputs": 2},
    "huggingface, masked": {"family": "huggingface", "task": "masked", "architecture": "bert", "context": 12, "mask": 3}
    | {"marks": [1, 2], "segments": True}
    | {"overrides": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}},
    "huggingface, a sentence for a sentence": {"family": "huggingface", "task": "seq2seq", "architecture": "t5"}
    | {"context": 9, "target_length": 6}
    | {"overrides": {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}},
    "rae, greedy": {**MODELS["rae"], "trees": "greedy", "supervision": 0.0},
}


def lively(learner: Learner) -> Learner:
    """With weights that say different things of different rows, and moments of batch norm that are not those of a start."""
    generator = torch.Generator().manual_seed(0)
    for parameter in learner.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    for name, buffer in learner.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.3
    return learner


def question(family: str, data: Path) -> tuple[Learner, dict[str, Tensor]]:
    """A learner of a family's small config, and rows of its data with the columns that are asked for and no other."""
    values = contract_config(family, data)
    learner, config = lively(made(values["model"])), model_config(values["model"])
    rows = rows_of(values["data"]["path"], range(ROWS), "test")
    asked = load_family(family).asked(config)
    return learner, {name: rows[name] if name in rows else made_up(c, ROWS) for name, c in asked.items()}


def same(one: Tensor, many: Tensor) -> None:
    """Equal up to rounding, and to what fills rows up behind their ends."""
    wide = max(one.shape[-1], many.shape[-1]) if one.ndim > 1 else 0
    one, many = (
        torch.nn.functional.pad(x, (0, wide - x.shape[-1]), value=NOTHING) if x.ndim > 1 and x.shape[-1] < wide else x
        for x in (one, many)
    )
    if one.is_floating_point():
        # Matrices of other sizes are multiplied in another order: 2e-6 of values about 1 is what fp32 leaves of that.
        torch.testing.assert_close(one, many, rtol=2e-5, atol=2e-6)
    else:
        assert torch.equal(one, many)


def check(learner: Learner, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What every answer promises. Returns it."""
    tells = learner.tells(learner.config)
    learner.train()
    found = learner.predict(batch)
    assert learner.training and found.keys() == tells.keys()
    again = learner.predict(batch)
    for name, tensor in found.items():
        assert len(tensor) == ROWS and not tensor.requires_grad and torch.equal(tensor, again[name]), name
        assert tells[name].kind in KINDS and tells[name].meaning
        if tells[name].kind == "probabilities":
            torch.testing.assert_close(tensor.sum(-1), torch.ones_like(tensor.sum(-1)), rtol=0, atol=1e-5)
        if tells[name].kind in ("class", "tokens", "cell", "mask", "nodes"):
            assert not tensor.is_floating_point() and bool((tensor >= NOTHING).all())
    for i in range(ROWS):
        alone = learner.predict({name: column[i : i + 1] for name, column in batch.items()})
        for name, tensor in found.items():
            same(alone[name], tensor[i : i + 1])
    return found


@every_family
def test_an_answer_needs_no_target_and_is_the_same_for_one_row_and_for_many(family: str, small_data: Path) -> None:
    learner, batch = question(family, small_data)
    if family in ONLY_GENERATE:
        assert learner.tells(learner.config) == {}
        return
    check(learner, batch)


@pytest.mark.parametrize("case", MORE)
def test_other_kinds_of_answers(case: str) -> None:
    learner = lively(made(MORE[case]))
    batch = {name: made_up(column, ROWS) for name, column in learner.asked(learner.config).items()}
    if learner.tells(learner.config):
        check(learner, batch)
    else:
        assert case == "bm, sampled"


@every_family
def test_a_row_is_asked_without_targets(family: str) -> None:
    """`asked` leaves out what is to be answered."""
    cls, config = load_family(family), model_config(MODELS[family])
    asked = cls.asked(config)
    assert asked and not asked.keys() & cls.targets
    answers = {"label", "y", "caption", "target", "mask", "boxes", "rgb", "u", "reward", "query_y", "border", "labels"}
    assert asked.keys() & answers <= ({"caption"} if family == "vse" else set())


@pytest.mark.parametrize("family", ["gan", "diffusion", "rbm", "bm", "deepdream"])
def test_samples_are_those_of_the_seed(family: str, small_data: Path) -> None:
    learner, _ = question(family, small_data)
    if family == "deepdream":
        learner.start.copy_(torch.rand_like(learner.start))  # type: ignore[union-attr, operator, arg-type]
    few, more, other = learner.sample(2, seed=1), learner.sample(3, seed=1), learner.sample(2, seed=2)
    assert few.shape == (2, *few.shape[1:]) and len(more) == 3
    torch.testing.assert_close(few, more[:2], rtol=1e-4, atol=1e-5)
    assert family == "deepdream" or not torch.equal(few, other)
    if few.ndim == 4:
        assert float(few.min()) >= 0 and float(few.max()) <= 1


def test_an_autoencoder_samples_where_it_learned_a_distribution() -> None:
    assert made(MORE["autoencoder, variational"]).sample(3).shape == (3, 6)
    with pytest.raises(InputError, match="distribution of codes"):
        made({**MORE["autoencoder, variational"], "variational": False}).sample(3)


def test_a_value_is_told_in_the_units_of_the_file() -> None:
    learner = made(MORE["mlp with a value"])
    x = torch.rand(4, 6)
    bare = learner.predict({"x": x})["value"]
    learner.file_units = Units(shift=10.0, divide=100.0)
    torch.testing.assert_close(learner.predict({"x": x})["value"], bare.double() * 100 + 10)


def test_an_embedding_is_what_the_last_layer_sees() -> None:
    learner = made(MODELS["cnn"])
    image = torch.rand(3, 1, 8, 8)
    found = learner.predict({"image": image}, embedding=True)
    logits = found["embedding"] @ learner.net[-1].weight.T + learner.net[-1].bias
    torch.testing.assert_close(logits.softmax(-1), found["probabilities"])
    assert "embedding" not in learner.predict({"image": image})
    assert learner.predict({"image": image}, embedding=True).keys() == {"class", "probabilities", "embedding"}


def test_rows_that_are_filled_up_are_answered_at_their_ends() -> None:
    for model in (MODELS["gpt"], MODELS["mamba"], MODELS["elman"], MORE["hrnn tokens"]):
        learner = lively(made(model))
        vocabulary = 9 if model["family"] == "hrnn" else 256
        tokens = torch.randint(0, vocabulary, (1, 7), generator=torch.Generator().manual_seed(0))
        filled = torch.cat([tokens, torch.zeros(1, 3, dtype=tokens.dtype)], 1)
        length = torch.tensor([7])
        same(learner.predict({"tokens": tokens})["next"], learner.predict({"tokens": filled, "length": length})["next"])


def test_a_text_that_is_longer_than_what_a_model_reads_is_answered_by_its_end() -> None:
    learner = lively(made(MODELS["gpt"]))  # reads 16
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    length = torch.tensor([40, 21])
    found = learner.predict({"tokens": tokens, "length": length})["next"]
    same(found[:1], learner.predict({"tokens": tokens[:1, 24:]})["next"])
    same(found[1:], learner.predict({"tokens": tokens[1:, 5:21]})["next"])


def test_a_question_within_a_step_of_training_leaves_its_noise_alone() -> None:
    def draws(ask: bool) -> list[Any]:
        noise.begin(3, torch.arange(4))
        try:
            first = noise.uniform(4, 2)
            if ask:
                made(MODELS["snn"]).predict({"image": torch.rand(2, 1, 8, 8)})
            return [first.tolist(), noise.uniform(4, 2).tolist()]
        finally:
            noise.begin(0, None)

    assert draws(ask=True) == draws(ask=False)
