"""McCulloch-Pitts nets against their truth tables, written out."""

from __future__ import annotations

import pytest
import torch

from distdl.data.generators.synthetic import Options, truth_table
from distdl.families.mcp import Config
from tests.families.common import made, parameters

AB = [[0, 0], [0, 1], [1, 0], [1, 1]]
TABLES = {
    "and": [[0], [0], [0], [1]],
    "or": [[0], [1], [1], [1]],
    "xor": [[0], [1], [1], [0]],
    "half_adder": [[0, 0], [1, 0], [1, 0], [0, 1]],  # sum, carry
}


@pytest.mark.parametrize("net", TABLES)
def test_the_gallery_computes_its_truth_tables(net: str) -> None:
    assert made({"family": "mcp", "net": net}).outputs(torch.tensor(AB).float()).tolist() == TABLES[net]


def test_not() -> None:
    assert made({"family": "mcp", "net": "not"}).outputs(torch.tensor([[0.0], [1.0]])).tolist() == [[1], [0]]


def test_nothing_is_trainable() -> None:
    assert parameters("mcp") == 0


def test_inhibition_is_absolute() -> None:
    """One inhibitory input silences two excitatory ones; a weighted sum of 3 + 3 - 1 against 2 would not."""
    unit = made({"family": "mcp", "net": "given", "layers": ((((3, 3, -1), 2),),), "targets": ("or",)})
    assert unit.outputs(torch.tensor([[1.0, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]])).tolist() == [[1], [1], [0], [0]]


def test_a_given_net_is_checked_against_its_targets() -> None:
    """Parity of three inputs as a net of the 1956 kind, and the same net with one threshold wrong."""
    counts = (((1, 1, 1), 1), ((1, 1, 1), 2), ((1, 1, 1), 3))  # at least one, two, three are active
    once, thrice = ((1, -1, 0), 1), ((0, 0, 1), 1)
    either = (((1, 1), 1),)
    _, splits = truth_table(Options("truth_table", length=3))
    batch = {name: torch.from_numpy(column) for name, column in splits["train"].items()}
    for layers, accuracy in (((counts, (once, thrice), either), 1.0), ((counts, (once, once), either), 7 / 8)):
        net = made({"family": "mcp", "net": "given", "layers": layers, "targets": ("xor",)})
        metrics = net.evaluate(batch)
        assert float(metrics["accuracy"].total) / metrics["accuracy"].count == accuracy
        assert float(metrics["loss"].total) == 8 * (1 - accuracy)


def test_the_truth_table_has_what_follows() -> None:
    columns, splits = truth_table(Options("truth_table", length=2))
    rows = splits["train"]
    assert rows["x"].tolist() == AB and set(columns) == {"x", "and", "or", "xor", "not"}
    assert [[int(v)] for v in rows["and"]] == TABLES["and"] and [[int(v)] for v in rows["or"]] == TABLES["or"]
    assert [[int(v)] for v in rows["xor"]] == TABLES["xor"] and rows["not"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"net": "given"}, "needs layers and targets"),
        ({"layers": ((((1, 1), 1),),), "targets": ("or",)}, "only it may have them"),
        ({"net": "given", "layers": ((((1, 1), 1),), (((1, 1), 1),)), "targets": ("or",)}, "as many weights"),
        ({"net": "given", "layers": ((((1, 1), 1), ((1,), 1)),), "targets": ("or", "or")}, "equally many weights"),
        ({"net": "given", "layers": ((((1, 1), 1),),), "targets": ("or", "and")}, "name one for each"),
    ],
)
def test_a_wrong_net_is_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Config(**wrong)
