"""Parity catches every fault of `tests/mutants.py`, and calls the same layouts equal without one.

All of them start their ranks three times together, not once each. What the guard of a real run sees of them is in
`benchmarks/results/mutants.md`, by `python -m benchmarks.mutants`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from distdl.parity.cell import NORM_TOLERANCE, TOLERANCE, Cell
from tests.mutants import MUTANTS, parity_of

HIDDEN = [index for index, mutant in enumerate(MUTANTS) if mutant.hidden]
"""Those that only the movement of a weight shows, or the pass with plain SGD, or the long one."""


@pytest.fixture(scope="module")
def found(small_data: Path) -> tuple[dict[int, Cell], dict[str, Cell]]:
    return parity_of(list(range(len(MUTANTS))), small_data)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("index", range(len(MUTANTS)), ids=[mutant.what for mutant in MUTANTS])
def test_a_fault_is_caught(index: int, found: tuple[dict[int, Cell], dict[str, Cell]]) -> None:
    cell = found[0][index]
    assert cell.status == "differs", f"{MUTANTS[index].what}: {cell}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_layouts_are_equal_without_a_fault(found: tuple[dict[int, Cell], dict[str, Cell]]) -> None:
    assert {name: cell.reason for name, cell in found[1].items() if cell.status != "equal"} == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("index", HIDDEN, ids=[MUTANTS[index].what for index in HIDDEN])
def test_what_the_curves_alone_do_not_show(index: int, found: tuple[dict[int, Cell], dict[str, Cell]]) -> None:
    """With the config's own optimizer loss, gradient norm and held-out metrics stay within what is allowed."""
    cell = found[0][index]
    for value, limits in [(cell.loss, TOLERANCE), (cell.norm, NORM_TOLERANCE), (cell.evaluation, TOLERANCE)]:
        assert value is None or value < limits["fp32"], cell


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len({mutant.what for mutant in MUTANTS}) == len(MUTANTS) >= 20
