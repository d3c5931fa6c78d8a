"""Who sees a fault: each of `tests/mutants.py` is put into the ranks, and `distdl parity` and the guard look. See README.md.

    python -m benchmarks.mutants [--only 0,3] [--output FILE]

Writes `results/mutants.md`: the faults, and the layouts that they are put on without a fault beside them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from distdl.parity.cell import Cell
from tests.mutants import MUTANTS, guarded, parity_of

RESULTS = Path(__file__).parent / "results"


def table(cells: dict[int, Cell], said: dict[int, str], sound: dict[str, Cell]) -> str:
    """Markdown."""
    caught = sum(cell.status in ("differs", "failed") for cell in cells.values())
    seen = sum(bool(said[i]) for i in cells)
    lines = [
        "# Faults that were put in, and who saw them",
        "",
        f"`python -m tests.mutants --output benchmarks/results/mutants.md`: `distdl parity` catches {caught} of {len(cells)}, "
        f"the guard of a real run sees {seen}. Where every rank is wrong alike, or ZeRO hands the owner's weights to all, there",
        "is nothing that the replicas could differ in: such a fault is parity's to find.",
        "",
        "| fault | case | layout | parity | what it says | guard |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for i, cell in cells.items():
        m = MUTANTS[i]
        word = {"differs": "caught", "failed": "caught"}.get(cell.status, "NOT CAUGHT")
        seen_by_guard = "sees it" if said[i] else "-"
        lines.append(f"| {m.what} | {m.case} | {m.layout} | {word} | {cell.reason} | {seen_by_guard} |")
    lines += [
        "",
        "The same layouts without a fault: the largest difference of the weights' movement, by the config's optimizer, by SGD,",
        "and in bf16 after a long accumulation.",
        "",
        "| case, layout, passes | | own | SGD | long |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, cell in sound.items():
        numbers = " | ".join("-" if n is None else f"{n:.1e}" for n in (cell.own, cell.sgd, cell.long))
        lines.append(f"| {name} | {cell.status} {cell.reason} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="numbers of mutants, such as 0,3")
    parser.add_argument("--output", type=Path, default=RESULTS / "mutants.md")
    args = parser.parse_args()
    asked = [int(n) for n in args.only.split(",")] if args.only else list(range(len(MUTANTS)))
    with tempfile.TemporaryDirectory() as folder:
        cells, sound = parity_of(asked, Path(folder))
        said = guarded(asked, Path(folder))
    text = table(cells, said, sound)
    print(text)
    for i, words in said.items():
        if words:
            print(f"{MUTANTS[i].what}: {words.splitlines()[0]}")
    if not args.only:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
