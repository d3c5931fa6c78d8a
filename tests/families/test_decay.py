"""What decays in every family: a table that a reader can check, and the rules behind it.

The table decay.txt is renewed by `python -m tests.families.test_decay`; read its diff.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distdl.config.load import load_config
from distdl.errors import InputError
from distdl.families import build
from distdl.learner.kinds import KINDS, kinds
from distdl.ways import assemble
from tests.ranks import REPOSITORY
from tests.small import MODELS

TABLE = Path(__file__).parent / "decay.txt"


def told() -> str:
    """family, decays or stays, kind, parameter: of the small models and of every shipped config, layers as one."""
    rows = set()
    with torch.device("meta"):
        learners = [(family, build(model)) for family, model in MODELS.items()]
        for path in sorted((REPOSITORY / "configs").rglob("*.yaml")):
            config = load_config(str(path)).config
            learners.append((config.family, assemble(config)))
    for family, learner in learners:
        trained = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
        for name, kind in kinds(learner).items():
            if name in trained:
                name = re.sub(r"(?<=\.)\d+(?=\.|$)|(?<=\D)\d+(?=\.)", "*", name)
                rows.add((family, "decays" if KINDS[kind] else "stays", kind, name))
    return "".join(f"{family:16}{does:8}{kind:10}{name}\n" for family, does, kind, name in sorted(rows))


def test_the_table_of_what_decays_is_that_of_the_families() -> None:
    assert told() == TABLE.read_text(encoding="utf-8"), "renew it: python -m tests.families.test_decay; read the diff"


def test_what_was_decayed_by_its_shape_alone() -> None:
    table = {tuple(line.split()) for line in TABLE.read_text(encoding="utf-8").splitlines()}
    for family, kind, name in (
        ("bert", "bias", "words.bias.weight"),
        ("mamba", "state", "blocks.*.mixer.A_log"),
        ("vit", "place", "embed.cls"),
        ("vit", "place", "embed.places"),
        ("lenet1989", "bias", "h*.bias"),
        ("lenet5", "gain", "s*.coefficient"),
        ("lenet5", "bias", "s*.bias"),
        ("cvg", "bias", "bias"),
    ):
        assert (family, "stays", kind, name) in table
    assert ("bm", "decays", "matrix", "pairs") in table  # which has one dimension


class Own(nn.Module):
    parameter_kinds = {"rates": "state", "list": "matrix", "table": "place"}

    def __init__(self) -> None:
        super().__init__()
        self.rates, self.list = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
        self.table, self.plain = nn.Embedding(3, 2), nn.Parameter(torch.ones(2, 2))
        self.row_bias, self.A_log = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        self.norm, self.map = nn.LayerNorm((2, 3, 3)), nn.Linear(2, 2)
        self.map_again = self.map.weight
        self.lengths = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))


class FooRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 4))


def test_the_rules() -> None:
    assert kinds(nn.ModuleDict({"own": Own(), "foreign": FooRMSNorm()})) == {
        "own.rates": "state",
        "own.list": "matrix",
        "own.table.weight": "place",
        "own.plain": "matrix",
        "own.row_bias": "bias",
        "own.A_log": "state",
        "own.map_again": "matrix",
        "own.norm.weight": "gain",
        "own.norm.bias": "bias",
        "own.map.bias": "bias",
        "own.lengths.bias": "bias",
        "own.lengths.parametrizations.weight.original0": "gain",
        "own.lengths.parametrizations.weight.original1": "matrix",
        "foreign.weight": "gain",
    }


@pytest.mark.parametrize(
    ("said", "words"),
    [({"w": "matrx"}, "says that 'w' is a 'matrx'"), ({"v": "bias"}, "'v', which the module has not")],
)
def test_what_a_module_says_is_checked(said: dict[str, str], words: str) -> None:
    module: Any = nn.Module()
    module.w, module.parameter_kinds = nn.Parameter(torch.ones(1)), said
    with pytest.raises(InputError, match=words):
        kinds(module)


def test_models_of_transformers_by_the_type_and_name_of_their_parts() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 16}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    for architecture, extra, wanted in (
        ("mamba", {"state_size": 4}, {"mixer.A_log": "state", "mixer.D": "vector", "norm.weight": "gain"}),
        (
            "gpt_oss",
            heads | experts,
            {"gate_up_proj_bias": "bias", "gate_up_proj": "matrix", "input_layernorm.weight": "gain"},
        ),
        (
            "t5",
            {"num_heads": 2, "d_kv": 8, "d_ff": 16},
            {"relative_attention_bias.weight": "bias", "shared.weight": "embedding"},
        ),
    ):
        auto = transformers.AutoModelForSeq2SeqLM if architecture == "t5" else transformers.AutoModelForCausalLM
        with torch.device("meta"):
            found = kinds(auto.from_config(transformers.AutoConfig.for_model(architecture, **small, **extra)))
        for ending, kind in wanted.items():
            assert {k for name, k in found.items() if name.endswith(ending)} == {kind}, (architecture, ending)


if __name__ == "__main__":
    TABLE.write_text(told(), encoding="utf-8")
