"""The arithmetic that `train.precision` asks for."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from distdl.engine import precision
from distdl.errors import InputError


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


def test_eight_bits_where_both_sides_are_multiples_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []

    def convert(model: nn.Module, module_filter_fn: Callable[[Any, str], bool]) -> None:
        chosen.extend(name for name, module in model.named_modules() if module_filter_fn(module, name))

    library: Any = types.ModuleType("torchao.float8")
    library.convert_to_float8_training = convert
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.float8", library)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10), nn.Linear(10, 16), nn.Linear(48, 16))
    precision.lower_linear(net, "fp8")
    assert chosen == ["0", "4"]
