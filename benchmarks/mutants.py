"""Who sees which fault: each of `tests/mutants.py` is put into the ranks; `distdl parity` looks, and so does the guard.

    python -m benchmarks.mutants [--only 0,3] [--output FILE]

Two minutes on two idle cores. Writes `results/mutants.md`: the faults, and the same layouts without one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from distdl.parity.cell import Cell
from tests.mutants import MUTANTS, guarded, parity_of

RESULTS = Path(__file__).parent / "results"


def table(cells: dict[int, Cell], said: dict[int, str], sound: dict[str, Cell]) -> str:
    """Markdown."""
    caught = sum(cell.status != "equal" for cell in cells.values())
    lines = [
        "`python -m benchmarks.mutants`\n",
        f"`distdl parity` catches {caught} of {len(cells)} faults of one line; the guard of a real run, with "
        f"`guard.parity_every_steps: 1`, sees {sum(map(bool, said.values()))}.",
        "",
        "The rest are parity's to find: where all ranks are wrong alike, replicas do not differ. `weights` is the movement",
        "with the config's own optimizer, `SGD` and `bf16` those of the other passes: of the worst tensor, each divided by",
        "the reference's.",
        "",
        "| fault | run | layout | parity | loss | weights | SGD | bf16 | guard |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for index, cell in cells.items():
        mutant, verdict = MUTANTS[index], "missed" if cell.status == "equal" else "caught"
        guard = "sees it" if said[index] else "-"
        lines.append(f"| {mutant.what} | {mutant.case} | {mutant.layout} | {verdict} | {_numbers(cell)} | {guard} |")
    lines += [
        "",
        "## The same layouts without a fault",
        "",
        "| run, layout, passes | | loss | weights | SGD | bf16 |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {name} | {cell.status} | {_numbers(cell)} |" for name, cell in sound.items()]
    return "\n".join(lines) + "\n"


def _numbers(cell: Cell) -> str:
    return " | ".join("-" if n is None else f"{n:.1e}" for n in (cell.loss, cell.own, cell.sgd, cell.long))


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
    for index, cell in cells.items():
        print(f"{MUTANTS[index].what}: {cell.reason}", *said[index].splitlines()[:1], sep="\n    ")
    if not args.only:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
