"""`distdl checkpoint`: look into a checkpoint, check its bytes, compare two, turn one into another format and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.cli.common import (
    Verb,
    add_json_argument,
    add_override_arguments,
    add_verbs,
    console,
    loaded,
    print_json,
    to_write,
)
from distdl.driver import prepare_if_missing
from distdl.errors import InputError

if TYPE_CHECKING:
    from distdl.config.schema import Config


def add_parser(subparsers: Any) -> None:
    """Register `checkpoint` with `inspect`, `verify`, `diff` and `convert` on the main parser's subparsers."""
    parser = subparsers.add_parser("checkpoint", help="inspect, verify, compare and convert checkpoints")
    verbs = add_verbs(
        parser,
        Verb("inspect", "print step, model, sizes and optimizer", run_inspect),
        Verb("verify", "hash everything again and list all damage", run_verify),
        Verb("diff", "what differs between two, of any formats", run_diff),
        Verb("convert", "to and from DeepSpeed, safetensors and Hugging Face", run_convert),
    )
    inspect, verify, diff, convert = (verbs[name] for name in ("inspect", "verify", "diff", "convert"))
    inspect.add_argument("path", metavar="PATH", help="a checkpoint, or a run's folder: its newest one")
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    add_json_argument(inspect)
    verify.add_argument("path", metavar="PATH", help="a checkpoint, or a run's folder: all of its checkpoints")
    add_json_argument(verify)
    kinds = "checkpoint, run (its newest), DeepSpeed folder, .safetensors or Hugging Face"
    diff.add_argument("a", metavar="A", help=kinds)
    diff.add_argument("b", metavar="B", help="another, whose tensors have the same names")
    add_json_argument(diff)
    convert.add_argument(
        "source", metavar="SOURCE", help="checkpoint, run, DeepSpeed folder, .safetensors or Hugging Face"
    )
    convert.add_argument("target", metavar="TARGET", type=to_write, help="file or folder to create")
    convert.add_argument(
        "--to",
        choices=("distdl", "safetensors", "huggingface", "deepspeed"),
        help="format of TARGET (default: safetensors where its name ends so, else distdl)",
    )
    convert.add_argument("--config", metavar="YAML", help="config whose model the names and shapes are checked against")
    convert.add_argument("--weights-only", action="store_true", help="leave the optimizer's state and the step behind")
    convert.add_argument("--force", action="store_true", help="replace TARGET")
    add_override_arguments(convert)


def run_inspect(args: argparse.Namespace) -> int:
    """Exit code 0; InputError where there is no checkpoint, DataCorrupt where its manifest is damaged."""
    from distdl.checkpoint.verify import facts, found_in

    told = facts(found_in(Path(args.path))[-1])
    tensors = told.pop("tensors")
    if args.json:
        print_json({**told, "tensors": tensors} if args.tensors else told)
        return 0
    model = {key: value for key, value in (told["model"] or {}).items() if key != "family"}
    lines = {
        "step": f"{told['step']:,}",
        "family": told["family"],
        "model": ", ".join(f"{key} {value}" for key, value in model.items()),
        "parameters": f"{told['parameters']:,}",
        "optimizer": ", ".join(told["optimizer"]) or "none: weights only",
        "data": "unknown" if told["position"] is None else f"{told['position']:,} samples seen",
        "size": f"{told['bytes']:,} bytes in {told['files']} files and {len(tensors)} tensors",
    }
    print(told["path"])
    for name, text in lines.items():
        print(f"  {name:<10} {text}")
    if args.tensors:
        from rich.table import Table

        table = Table("tensor", "shape", "dtype")
        for name, tensor in sorted(tensors.items()):
            table.add_row(name, str(tuple(tensor["shape"])), tensor["dtype"])
        console().print(table)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Exit code 0 where every checkpoint is sound, 1 where not; InputError where there is none."""
    from distdl.checkpoint.layout import checkpoints
    from distdl.checkpoint.verify import found_in, problems
    from distdl.errors import DataCorrupt

    told = []
    for path in found_in(Path(args.path)):
        try:
            found = problems(path)
        except DataCorrupt as error:
            found = [str(error)]
        except InputError as error:
            if path.absolute() not in [p for _, p in checkpoints(path.absolute().parent)]:
                raise
            found = [str(error)]  # it has a checkpoint's name: what is missing there has been lost
        told.append({"path": str(path), "sound": not found, "problems": found})
        for text in found or ["all bytes are as they were written, and every tensor is there and finite"]:
            if not args.json:
                print(f"{path}: {text}")
    damaged = any(not row["sound"] for row in told)
    if args.json:
        print_json(told)
    elif damaged:
        print(
            "    fix: copy it again from where it is sound; training goes on from the newest sound checkpoint of a run"
        )
    return 1 if damaged else 0


def run_diff(args: argparse.Namespace) -> int:
    """Exit code 0 where all tensors are equal, 1 where not; InputError, or DataCorrupt, for what is no source."""
    import dataclasses

    from distdl.checkpoint.diff import compare

    found = compare(Path(args.a), Path(args.b))
    if args.json:
        print_json({"a": args.a, "b": args.b, "equal": found.equal, **dataclasses.asdict(found)})
        return 0 if found.equal else 1
    print(f"{found.same:,} tensors are equal; A is of step {found.steps[0]:,}, B of step {found.steps[1]:,}")
    for key, (one, other) in found.model.items():
        print(f"model.{key}: {one} and {other}")
    for name, (here, there) in found.shapes.items():
        print(f"{name} is {here} and {there}")
    for side, names in zip("AB", found.only):
        print("\n".join(f"{name} is in {side} alone" for name in names), end="\n" if names else "")
    if found.differ:
        from rich.table import Table

        table = Table("tensor", "numbers that differ", "largest difference", "relative")
        for row in found.differ:
            table.add_row(row.name, f"{row.count:,} of {row.of:,}", f"{row.largest:.3g}", f"{row.relative:.3g}")
        console().print(table)
    return 0 if found.equal else 1


def run_convert(args: argparse.Namespace) -> int:
    """Exit code 0; InputError for a source or target that cannot be, DataCorrupt for a damaged source."""
    from distdl.checkpoint.convert import Wish, convert

    if args.overrides and not args.config:
        raise InputError(
            f"'{args.overrides[0]}' overrides a key of a config, and none is given", fix="add --config YAML"
        )
    config = loaded(args).config if args.config else None
    target = Path(args.target)
    to = args.to or ("safetensors" if target.suffix == ".safetensors" else "distdl")
    done = convert(
        Path(args.source), target, Wish(to, config, _data_state, weights_only=args.weights_only, force=args.force)
    )
    counts = {kind: len(done.of(kind)) for kind in ("weights", "buffers", "optimizer")}
    parts = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    size = sum(tensor.bytes for tensor in done.tensors.values())
    print(f"{target}: {to}, {parts}, {size:,} bytes, step {done.step:,}, from a {done.kind}")
    if to == "huggingface" and (name := (done.model or {}).get("name")):
        from distdl.families.huggingface.hub import TOKENIZER

        if not any((target / file).is_file() for file in TOKENIZER):
            print(f"note: no tokenizer is found beside {name}: the model is written without one")
    return 0


def _data_state(config: Config, step: int) -> dict[str, Any]:
    """Where the config's stream of samples is after `step` steps."""
    from distdl.data.balance import Labels
    from distdl.data.read import Dataset
    from distdl.data.source import BatchSource
    from distdl.train.classes import balanced_column

    prepare_if_missing(config)
    data, batch = config.data, config.train.global_batch
    source = BatchSource(
        Dataset(data.path, data.train_split, cache_dir=data.cache),
        seed=config.seed,
        global_batch=batch,
        micro_batch=batch,
        accumulate=1,
        rank=0,
        world=1,
        shuffle=data.shuffle,
        labels=Labels(balanced=balanced_column(config)),
        last_batch=data.last_batch,
        position=step * batch,
        threads=0,
    )
    return source.state_dict()
