"""The parity matrix: every family on every layout that it declares, against one process of plain PyTorch. See README.md.

    python -m benchmarks.parity [FAMILY ...] [--worlds 1,2,4] [--missing] [--output FOLDER]

Each family's small run (tests/families/small) in the passes of `distdl parity`. Prints every cell as it is measured;
`results/parity.json` keeps all of them, family by family, `results/parity.md` is the table. With --missing a run that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from distdl.cli.parity import line, told
from distdl.errors import TrainingFailed
from distdl.parity.cell import MOVE_TOLERANCE, NORM_TOLERANCE, TOLERANCE, Cell
from distdl.parity.matrix import matrix
from distdl.parity.passes import LONG, OWN, SGD
from tests.small import MODELS, contract_config

RESULTS = Path(__file__).parent / "results"
EXPERTS = {"experts": 4, "experts_every": 1, "experts_top_k": 2, "heads": 4}
"""gpt with a mixture of experts in every block, as a row of its own."""

MODERN = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "inner": 24, "biases": "qkv", "qk_norm": True}
MODERN |= {"heads": 4, "key_value_heads": 2, "window": 6, "tied": False, "z_loss": 1e-3}
"""gpt with every choice of Llama, Mistral and Qwen."""


def runs(data: Path) -> dict[str, dict[str, Any]]:
    """Name of the row -> small config."""
    rows = {family: contract_config(family, data) for family in MODELS}
    rows["gpt"]["model"] |= {"heads": 4, "layers": 2}
    rows["gpt, experts"] = contract_config("gpt", data)
    rows["gpt, experts"]["model"] |= EXPERTS
    rows["gpt, modern"] = contract_config("gpt", data)
    rows["gpt, modern"]["model"] |= MODERN
    return rows


def kept(path: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads(path.read_text())["cells"] if path.exists() else {}


def markdown(cells: dict[str, list[dict[str, Any]]]) -> str:
    """A row per family and layout that ran, and the reasons of those that did not."""
    ran = [(f, c) for f, row in cells.items() for c in row if c["loss"] is not None]
    equal = sum(c["status"] == "equal" for _, c in ran)
    lines = [
        f"{equal} of {len(ran)} cells are equal to the reference: loss and held-out metrics within {TOLERANCE['fp32']:g}, "
        f"gradient norm within {NORM_TOLERANCE['fp32']:g} of its size; the movement of each weight and buffer, over its "
        f"length, within {MOVE_TOLERANCE[OWN]['fp32']:g} with the config's optimizer (`weights`), "
        f"{MOVE_TOLERANCE[SGD]['fp32']:g} with plain SGD, {MOVE_TOLERANCE[LONG]['bf16']:g} in bf16 from 64 micro-batches.",
        "",
        "| family | layout | processes | loss | norm | held out | weights | SGD | bf16 x 64 | furthest | |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for family, c in ran:
        found = [c.get(key) for key in ("loss", "norm", "evaluation", "own", "sgd", "long")]
        numbers = " | ".join("-" if n is None else f"{float(n):.1e}" for n in found)
        status = c["status"] if c["status"] == "equal" else f"{c['status']}: {c['reason']}"
        where = f"| {family} | {c['layout']} | {c['world']} |"
        lines.append(f"{where} {numbers} | {told(c.get('furthest', ''), c.get('start_loss'))} | {status} |")
    lines += ["", "## Not run, and why", "", "| family | layout | processes | reason |", "| --- | --- | ---: | --- |"]
    for family, row in cells.items():
        reasons: dict[str, list[str]] = {}
        for c in row:
            if c["loss"] is None:
                reasons.setdefault(f"{c['status']}: {c['reason']}", []).append(f"{c['layout']} × {c['world']}")
        lines += [f"| {family} | {', '.join(where)} | | {why} |" for why, where in reasons.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="rows of the table (default: all)")
    parser.add_argument("--worlds", default="2,4")
    parser.add_argument("--layouts", help="only these, such as zero1,zero1+tensor2+pipeline2")
    parser.add_argument("--missing", action="store_true", help="only the rows that the table has not whole yet")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    file = args.output / "parity.json"
    cells = kept(file)
    worlds, chosen = [int(n) for n in args.worlds.split(",")], args.layouts.split(",") if args.layouts else ()
    with tempfile.TemporaryDirectory(prefix="distdl-parity-") as folder:
        for name, values in runs(Path(folder)).items():
            row = cells.get(name, [])
            if (args.families and name not in args.families) or (args.missing and whole(row, worlds)):
                continue
            begin = time.monotonic()
            measured = []
            try:
                for cell in matrix(values, worlds, chosen):
                    measured.append(cell.to_dict())
                    print(f"{name:<14}{line(cell)}", flush=True)
            except TrainingFailed as error:
                measured.append(Cell("reference", 1, "failed", reason=str(error).splitlines()[0]).to_dict())
                print(f"{name:<14}{error}", flush=True)
            again = {(c["layout"], c["world"]) for c in measured}
            old = [c for c in row if (c["layout"], c["world"]) not in again and (chosen or c["world"] not in worlds)]
            cells[name] = old + measured
            print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
            about = {"command": "python -m benchmarks.parity", "steps": 20, "cells": cells}
            file.write_text(json.dumps(about, indent=1) + "\n")
            (args.output / "parity.md").write_text(markdown(cells))
    return int(any(c["status"] in ("differs", "failed") for row in cells.values() for c in row))


def whole(row: list[dict[str, Any]], worlds: list[int]) -> bool:
    """Whether each number of processes has been measured, weights and all."""
    ran = {c["world"] for c in row if c.get("own") is not None}
    return ran >= set(worlds)


if __name__ == "__main__":
    sys.exit(main())
