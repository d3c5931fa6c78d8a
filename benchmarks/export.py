"""Every family in every format of `distdl export`, and how far the file is from the run. See README.md.

    python -m benchmarks.export [FAMILY ...] [--missing] [--output FOLDER]

Each family's small run (tests/families/small) is trained for a few steps, exported through `distdl.export`, and read back.
Prints every cell as it is measured; `results/export.json` keeps all of them, `results/export.md` is the table.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import distdl
from distdl.errors import DistdlError
from distdl.export.export import TARGETS, Wish, export
from distdl.model.drawn import makes
from distdl.model.model import Model
from distdl.run.folder import RunFolder
from tests.small import MODELS, contract_config

RESULTS = Path(__file__).parent / "results"
STEPS = 4
HEAD = """\
Each family's small run, exported and read back from the disk: the largest difference of any number of its answers from the
run's, by 1 or by the number where it is larger, on real rows and at other numbers of rows and steps than its example had.
Classes and tokens are the same in all of them. Written by `python -m benchmarks.export`.

- **predict** and **sample**: what the family answers, and what it makes by itself.
- **steps**: `any` where rows of any number of steps are answered, `up to N`, or `-` where the model's rows have one size.
  Files of torch-export and ONNX say so themselves, and the file's own shapes were compared with what came out.
- **safetensors** of a family that only makes samples is compared by those.
"""


def measured(family: str, data: Path, place: Path) -> dict[str, Any]:
    """The cells of a family."""
    values = contract_config(family, data, train__steps=STEPS, runs=str(place / "runs"))
    values["schedule"] = {"name": "constant"}
    values["guard"] = {"parity_every_steps": 0}
    run = distdl.train(values)
    model = Model(RunFolder(run.folder))
    row: dict[str, Any] = {"predict": ", ".join(model.tells) or "-", "sample": makes(model) or "-", "steps": "-"}
    graphs: dict[str, Any] = {}
    for to in TARGETS:
        try:
            done = export(model, Wish(to, place / to), graphs)
        except DistdlError as error:
            row[to] = {"why": error.problems[0].what if hasattr(error, "problems") else str(error)}
        else:
            row[to] = {"largest": done.difference.largest, "others": done.difference.others}
            for _, high in done.manifest.get("lengths", {}).values():
                row["steps"] = f"up to {high}" if high else "any"
        print(f"{family:<16}{to:<14}{row[to]}", flush=True)
    return row


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The table, and the reasons of what is not."""
    reasons: list[str] = []
    lines = [HEAD, f"| family | predict | sample | steps | {' | '.join(TARGETS)} |"]
    lines.append("| --- | --- | --- | --- |" + " ---: |" * len(TARGETS))
    for family, row in sorted(rows.items()):
        cells = []
        for to in TARGETS:
            if "why" not in row[to]:
                cells.append(f"{row[to]['largest']:.1e}")
                continue
            if to == "huggingface":
                cells.append("-")  # said once below
                continue
            why = row[to]["why"]
            if why not in reasons:
                reasons.append(why)
            cells.append(f"no ({reasons.index(why) + 1})")
        lines.append(f"| {family} | {row['predict']} | {row['sample']} | {row['steps']} | {' | '.join(cells)} |")
    lines += ["", "Under huggingface `-`: transformers has no model that the family equals.", ""]
    lines += [f"{number}. {why}" for number, why in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=[])
    parser.add_argument("--missing", action="store_true", help="only those that no result has")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    file = args.output / "export.json"
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    chosen = args.families or sorted(MODELS)
    if args.missing:
        chosen = [family for family in chosen if family not in rows]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for family in chosen:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                rows[family] = measured(family, data, Path(place))
            file.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
            (args.output / "export.md").write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
