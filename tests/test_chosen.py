"""tests/chosen.py: what is left out is another thing of each family, and no family, layout or cut of a family's axes."""

from __future__ import annotations

from tests.chosen import a_few

STAGES = [f"zero{stage}" for stage in range(4)]


def cells_of(families: int) -> list[str]:
    """Families of three kinds: on one process's layout alone, on all stages, and with two axes besides."""
    out = []
    for i in range(families):
        names = ["torch", *(STAGES if i % 3 else [])]
        names += [*(f"{stage}+tensor2" for stage in STAGES), "zero1+pipeline2"] if i % 3 == 2 else []
        out += [f"f{i}/{name}" for name in names]
    return out


def test_every_family_every_layout_and_every_cut_is_chosen() -> None:
    cells = cells_of(30)
    chosen = a_few(cells, always={"f2/zero0", "f99/zero0"})
    assert chosen == [cell for cell in cells if cell in set(chosen)] == a_few(cells, always={"f2/zero0"})
    assert "f2/zero0" in chosen and len(chosen) < 0.5 * len(cells)
    for kept in (
        lambda cell: cell.partition("/")[0],
        lambda cell: cell.partition("/")[2],
        lambda cell: (cell.partition("/")[0], cell.partition("+")[2]),
    ):
        assert set(map(kept, chosen)) == set(map(kept, cells))
    assert {f"f{i}/zero3" for i in range(30) if i % 3} <= set(chosen), "the highest stage of each"


def test_a_layout_that_one_family_alone_has_is_chosen() -> None:
    cells = ["a/torch", "a/zero3", *(f"a/{stage}+sequence2" for stage in STAGES)]
    assert set(a_few(cells)) >= {f"a/{stage}+sequence2" for stage in STAGES}
