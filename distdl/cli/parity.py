"""`distdl parity`: proves on this machine's CPUs that the run gives the same numbers on every layout."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.cli.common import add_config_arguments, aside, loaded, print_json
from distdl.driver import prepare_if_missing
from distdl.errors import InputError

if TYPE_CHECKING:
    from distdl.config.schema import Config
    from distdl.parity.cell import Cell

BIG_PARAMETERS = 20_000_000


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "parity", help="same numbers on every layout? a small copy of the run on CPU processes against one"
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--layouts", metavar="A,B", help="layouts such as zero1,zero3+tensor2,zero1+tensor2+pipeline2 (default: all)"
    )
    parser.add_argument("--worlds", metavar="N,M", help="numbers of processes (default: 1,2,4, and 8 on 8 cores)")
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write the cells there, too; without FILE, print them alone",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from distdl.plan.refuse import AXES, layout_key

    chosen = args.layouts.split(",") if args.layouts else ()
    check_names(chosen)
    cut = {axis for name in chosen for axis, _ in layout_key(name)} if chosen else set(AXES)
    config = loaded(args, cut=cut).config
    printed = args.json == "-"
    with aside(printed):
        prepare_if_missing(config)

    from distdl.parity.matrix import default_worlds
    from distdl.parity.shrink import GLOBAL_BATCH

    worlds = _numbers(args.worlds) if args.worlds else default_worlds()
    if odd := [n for n in worlds if n < 1 or GLOBAL_BATCH % n]:
        raise InputError(
            f"--worlds {odd[0]}: the rehearsal has {GLOBAL_BATCH} samples a step", allowed="1, 2, 4, 8, 16"
        )
    if worlds == (1,) and set(chosen) == {"torch"}:
        raise InputError(
            f"--layouts {args.layouts} --worlds 1: that is the reference itself, and there is nothing to compare",
            fix="another layout, or --worlds 2",
        )
    if args.json and not printed and not Path(args.json).resolve().parent.is_dir():
        raise InputError(f"--json {args.json}: there is no such folder", fix="a file in a folder that exists")
    with aside(printed):
        cells = _shown(config, worlds, chosen)
    values = [cell.to_dict() for cell in cells]
    if printed:
        print_json(values)
    elif args.json:
        Path(args.json).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 1 if any(cell.status in ("differs", "failed") for cell in cells) else 0


def _shown(config: Config, worlds: tuple[int, ...], chosen: Sequence[str]) -> list[Cell]:
    """The cells of the matrix, each printed as it comes."""
    from distdl.parity.matrix import matrix
    from distdl.parity.shrink import shrunk
    from distdl.train.survey import model_facts

    cells: list[Cell] = []
    with tempfile.TemporaryDirectory(prefix="distdl-parity-") as folder:
        values = shrunk(config, Path(folder))
        facts = model_facts(_config(values))
        if facts.parameters > BIG_PARAMETERS:
            print(f"note: the family {facts.family} has no small form of its own, and {facts.parameters:,} parameters")
            print("      take their time here: give smaller model.* keys")
        print(f"{facts.family}, {facts.parameters:,} parameters, {values['train']['steps']} steps, clipped at half the "
              "first gradient; largest differences from one process of plain PyTorch")  # fmt: skip
        heads = [f"{head:>9}" for head in ("loss", "norm", "held out", "weights", "by SGD", "bf16 x 64")]
        print("  ".join([f"{'layout':<34}{'processes':>9}", *heads, "furthest"]))
        for cell in matrix(values, worlds, chosen):
            cells.append(cell)
            print(line(cell), flush=True)
    statuses = ("equal", "differs", "failed", "refused")
    count = {status: sum(cell.status == status for cell in cells) for status in statuses}
    print(", ".join(f"{n} {status}" for status, n in count.items() if n))
    return cells


def _config(values: dict[str, Any]) -> Any:
    from distdl.config.load import config_from_dict

    return config_from_dict(values)


def line(cell: Any) -> str:
    """A cell as a line of the table."""
    head = f"{cell.layout:<34}{cell.world:>9}"
    if cell.loss is None:
        return f"{head}  {cell.status}: {cell.reason}"
    found = (cell.loss, cell.norm, cell.evaluation, cell.own, cell.sgd, cell.long)
    numbers = [f"{'-' if n is None else format(n, '.1e'):>9}" for n in found]
    end = told(cell.furthest, cell.start_loss) if cell.status == "equal" else f"DIFFERS: {cell.reason}"
    return "  ".join([head, *numbers, end]).rstrip()


def told(furthest: str, start_loss: float | None) -> str:
    """What is said of a cell that is equal, perhaps to a reference that began a rounding away."""
    if start_loss is None:
        return furthest
    return f"{furthest} (from a start 1e-7 away, whose loss parts from the reference's by {start_loss:.1e})"


def check_names(names: Any) -> None:
    """Raises InputError for a layout that is not spelt as the plan spells it."""
    from distdl.plan.refuse import AXES, layout_key

    for name in names:
        base, *cuts = layout_key(name)
        known = (name == "torch") or (base[0] == "zero" and base[1] in range(4))
        axes = [axis for axis, _ in cuts]
        if not known or len({*axes}) < len(axes) or any(axis not in AXES or degree < 1 for axis, degree in cuts):
            allowed = "torch, or zero0-3 and +tensorN, +pipelineN, +sequenceN, +expertN"
            raise InputError(f"--layouts {name}: no such layout", allowed=allowed)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--worlds {text}", allowed="numbers of processes, such as 1,2,4") from None
