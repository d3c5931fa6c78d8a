"""`distdl init`: from a file that people have to a config that trains."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.cli.common import (
    add_json_argument,
    add_progress_arguments,
    aside,
    followed,
    key_values,
    print_json,
    tell_prepared,
    to_write,
)
from distdl.errors import InputError, Problem, did_you_mean

if TYPE_CHECKING:
    from distdl.cli.starter import Recipe
    from distdl.data.manifest import Manifest
    from distdl.data.progress import Follow

EPILOG = """\
examples:
  distdl init flowers.csv                    prepare it, and write flowers.yaml: `distdl train flowers.yaml` trains it
  distdl init houses.csv --target price      predict a number
  distdl init pictures/ --family vit         pictures in one folder per class
  distdl init --example gpt                  one of the shipped configs; --list tells them all
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "init",
        help="prepare a file or folder and write a config that trains it",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="file or folder: a table, pictures, text, arrays")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="options of the source, such as test_fraction=0.2"
    )
    parser.add_argument("--label", metavar="COLUMN", default="", help="column with the class to predict")
    parser.add_argument("--target", metavar="COLUMN", default="", help="column with the number to predict")
    parser.add_argument("--family", metavar="NAME", default="", help="the family (default: one that fits)")
    parser.add_argument(
        "--source", metavar="SOURCE", default="", help="what reads it (default: told by name and first bytes)"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=to_write, help="the config to write (default: PATH's name.yaml)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a config and a data set that are there")
    about = "processes that read what is large (default: 1); any number gives the same data set"
    parser.add_argument("--workers", metavar="N", type=int, default=1, help=about)
    parser.add_argument("--example", metavar="EXAMPLE", help="write this shipped config instead")
    parser.add_argument("--list", action="store_true", help="list the shipped configs")
    add_progress_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 0. Raises InputError for what cannot be told apart, and where something would be replaced."""
    if args.path and "=" in args.path and not Path(args.path).exists():
        args.path, args.overrides = None, [args.path, *args.overrides]
    if sum(map(bool, (args.path, args.example, args.list))) != 1:
        raise InputError(
            "nothing, or too much, is named" if not args.path else "a file and an example are two things",
            allowed="distdl init FILE|FOLDER, distdl init --example NAME, distdl init --list",
        )
    if args.list:
        return _list(args.json)
    with aside(args.json):
        done = _example(args) if args.example else _from_file(args)
    if args.json:
        print_json(done)
    return 0


# -- shipped configs ---------------------------------------------------------------------------------------------------


def _list(json: bool) -> int:
    from distdl.cli.starter import examples

    rows = {}
    for name, path in examples().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        rows[name] = first.removeprefix("#").strip() if first.startswith("#") else ""
    if json:
        print_json([{"name": name, "summary": text} for name, text in rows.items()])
        return 0
    width = max(map(len, rows))
    for name, text in rows.items():
        print(f"{name:<{width}}  {text}")
    print("\ndistdl init --example NAME writes one of them here")
    return 0


def _example(args: argparse.Namespace) -> dict[str, Any]:
    from distdl.cli.starter import examples

    known = examples()
    if args.example not in known:
        raise InputError(f"there is no example '{args.example}'", fix=did_you_mean(args.example, known))
    output = _free(args.output or f"{args.example}.yaml", args.overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(known[args.example], output)
    print(f"{output}: `distdl train {output}` trains it")
    return {"config": str(output), "example": args.example}


def _free(output: str, overwrite: bool) -> Path:
    path = Path(output)
    if path.exists() and not (overwrite and path.is_file()):
        raise InputError(f"{output} already exists", fix="--output OTHER.yaml, or --overwrite to replace it")
    return path


# -- a file of the user's ----------------------------------------------------------------------------------------------


def _from_file(args: argparse.Namespace) -> dict[str, Any]:
    from distdl.cli.starter import Recipe, config_text, contents, unread_in_words
    from distdl.data.advice import Wish
    from distdl.data.recognise import advise, recognise

    path = args.path.rstrip("/") or args.path
    output = _free(args.output or f"{_name(path)}.yaml", args.overwrite)
    name = _name(output.name)
    source = args.source or recognise(path)
    given = key_values(args.overrides)
    advice = advise(source, path, Wish(args.label, args.target), given)
    options = {**advice.options, **given}
    because = {key: why for key, why in advice.because.items() if key not in given}
    told = "; ".join(f"{key}={options[key]}: {why}" for key, why in because.items())
    print(f"{path} is read as {source}" + (f" ({told})" if told else ""))
    recipe = Recipe(f"data/{name}", source, as_plain(source, options), because)
    manifest = _prepared(recipe, args.overwrite, followed(args), args.workers)
    tell_prepared(manifest)
    rows = ", ".join(f"{split} {part.rows:,}" for split, part in manifest.splits.items())
    print(f"{recipe.path}: {rows} rows")
    text = config_text(name, recipe, manifest, args.family)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    _check(output)
    for line in unread_in_words(contents(manifest), manifest):
        print(f"note: {line}")
    print(f"{output}: `distdl train {output}` trains it, `distdl data inspect {recipe.path}` shows the data")
    return {
        "config": str(output),
        "path": recipe.path,
        "source": source,
        "options": options,
        "because": because,
        "splits": {split: part.rows for split, part in manifest.splits.items()},
    }


def as_plain(source: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options as a YAML writes them: those that are numbers or truths without quotes, however the command line had them."""
    import dataclasses

    from distdl.data.prepare import parse_options

    typed = dataclasses.asdict(parse_options(source, options))
    return {key: typed[key] if isinstance(typed[key], bool | int | float) else value for key, value in options.items()}


def _name(path: str) -> str:
    """A run's name of a file's: what stands before its endings, of letters that a name may have."""
    stem = Path(path).resolve().name
    for _ in range(2):
        stem = stem.rpartition(".")[0] or stem
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:80] or "run"


def _prepared(recipe: Recipe, overwrite: bool, follow: Follow | None, workers: int = 1) -> Manifest:
    """The data set of a recipe: the one that is there, where it was made by it."""
    import dataclasses
    import json

    from distdl.data.manifest import read_manifest
    from distdl.data.prepare import parse_options, prepare_dataset, public

    asked = json.loads(json.dumps(public(dataclasses.asdict(parse_options(recipe.source, recipe.options)))))
    if Path(recipe.path).exists() and not overwrite:
        there = read_manifest(recipe.path)
        if (there.source, dict(there.options)) != (recipe.source, asked):
            raise InputError(
                f"{recipe.path} is already there, and was prepared in another way",
                fix="--output OTHER.yaml, whose data go elsewhere, or --overwrite to replace it",
            )
        return there
    return prepare_dataset(recipe.source, recipe.path, recipe.options, overwrite, follow=follow, workers=workers)


def _check(output: Path) -> None:
    """InputError where the family cannot read the data set, or the config says what no config may say: then it goes."""
    from distdl.config.load import load_config
    from distdl.train.survey import survey

    try:
        survey(load_config(str(output)).config)
    except BaseException as error:
        output.unlink()
        if not isinstance(error, InputError):
            raise
        what = f"the config {output} would not train, and was not kept"
        fix = "another --family (`distdl families` lists them), or write the config by hand"
        raise InputError(Problem(what, fix=fix), *error.problems) from error
