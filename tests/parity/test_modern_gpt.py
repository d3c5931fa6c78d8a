"""Invariant 1 of a gpt with every choice of Llama, Mistral and Qwen at once: the same numbers on each axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.parity import MODERN
from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.parity.layouts import data_ranks, laid_out
from distdl.train.survey import survey
from tests.parity.test_parity import compare
from tests.small import contract_config, measured

LAYOUTS = ["zero3", "zero1+tensor2", "zero3+tensor2", "zero1+pipeline2", "zero1+sequence2"]


def modern(data: Path) -> dict[str, Any]:
    values = contract_config("gpt", data)
    values["model"] = {**values["model"], **MODERN}
    return values


@pytest.mark.slow
def test_every_choice_at_once_is_the_same_on_each_axis(small_data: Path) -> None:
    values = modern(small_data)
    cases = {f"modern/{name}": laid_out(values, name, 2) for name in LAYOUTS}
    cases["modern/zero1+sequence2, ring"] = laid_out(values, "zero1+sequence2", 2)
    cases["modern/zero1+sequence2, ring"]["parallel"]["attention"] = "ring"
    for name, case in cases.items():
        case["train"]["micro_batch"] = 8 // data_ranks(name.partition("/")[2].partition(",")[0], 2)
    reference = measured(1, {"modern": values})[0]["modern"]
    assert reference["loss"][0] - reference["loss"][-1] > 0.3
    compare({"modern": reference | {"values": values}}, measured(2, cases))


def test_heads_of_keys_are_not_cut(small_data: Path) -> None:
    config = config_from_dict(laid_out(modern(small_data), "zero1+tensor4", 4))
    with pytest.raises(InputError, match=r"2 heads of keys and values cannot be shared evenly by parallel.tensor=4"):
        survey(config)
