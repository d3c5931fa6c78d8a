"""The arithmetic that `train.precision` asks for."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distdl.config.load import config_from_dict
from distdl.engine import precision
from distdl.errors import InputError
from distdl.train import worker
from tests.small import contract_config


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp8", torch.bfloat16)]
)
def test_products_are_in_as_many_bits_as_it_says(name: str, dtype: torch.dtype) -> None:
    net = nn.Linear(16, 16)
    precision.lower_forward([net], name, "cpu")
    assert net(torch.randn(2, 16)).dtype is dtype
    assert net.weight.dtype is torch.float32
    with precision.autocast(name, "cpu"):
        assert (torch.randn(2, 2) @ torch.randn(2, 2)).dtype is dtype


def test_fp64_stays() -> None:
    net = nn.Linear(16, 16).double()
    precision.lower_forward([net], "fp64", "cpu")
    with precision.autocast("fp64", "cpu"):
        assert net(torch.randn(2, 16).double()).dtype is torch.float64


def test_eight_bits_without_torchao_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    precision.lower_linear(nn.Linear(16, 16), "bf16")  # nobody asks for it
    with pytest.raises(InputError, match="torchao is not installed") as refused:
        precision.lower_linear(nn.Linear(16, 16), "fp8")
    assert "pip install torchao" in str(refused.value)


class Eight(nn.Linear):
    """What torchao would put in a linear layer's place: here it multiplies by 8."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 8 * super().forward(x)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that are replaced."""
    found: list[str] = []

    def convert(model: nn.Module, module_filter_fn: Callable[[Any, str], bool]) -> None:
        for name, module in list(model.named_modules()):
            if module_filter_fn(module, name):
                found.append(name)
                module.__class__ = Eight

    library: Any = types.ModuleType("torchao.float8")
    library.convert_to_float8_training = convert
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.float8", library)
    return found


def test_eight_bits_where_both_sides_are_large_multiples_of_16(chosen: list[str]) -> None:
    sides = [(128, 256), (256, 130), (130, 128), (112, 128), (144, 128), (128, 128)]
    net = nn.Sequential(*(nn.Linear(*pair) for pair in sides))
    precision.lower_linear(net, "fp8")
    assert chosen == ["0", "4"]  # and not the last, which the loss looks at


def test_eight_bits_only_while_it_learns(chosen: list[str]) -> None:
    """An evaluation is that of the model that will be used."""
    net = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128))
    x = torch.randn(2, 128)
    plain = net[0](x)
    precision.lower_linear(net, "fp8")
    assert chosen == ["0"] and torch.equal(net[0](x), 8 * plain)
    assert torch.equal(net.eval()[0](x), plain) and torch.equal(net.train()[0](x), 8 * plain)


def test_a_familys_last_layer_stays(chosen: list[str], tmp_path: Path) -> None:
    values = contract_config("vit", tmp_path)
    values["model"] |= {"width": 128, "heads": 4, "classes": 128}
    learner = worker.build_learner(config_from_dict(values), None)
    learner.head = nn.Linear(128, 128)
    precision.lower_linear(learner, "fp8")
    assert chosen and not any("head" in name for name in chosen)
