"""What several commands share: how a config is named on the command line, and how its data set comes to be."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from distdl import trust
from distdl.config.family import is_custom, is_file, source_file
from distdl.config.load import Loaded, load_config
from distdl.config.schema import Config
from distdl.config.section import local_path
from distdl.errors import InputError


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG and key=value."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    add_override_arguments(parser)


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """key=value arguments, the last word on any key of the config."""
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="overrides a key of the YAML, such as train.epochs=3"
    )
    add_trust_argument(parser)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """--trust, which main() passes on."""
    parser.add_argument(
        trust.FLAG,
        action="store_true",
        help="run the code that came with a run from elsewhere; remembered by its content",
    )


def to_write(path: str) -> str:
    """A path that a command writes to, as argparse's `type`: a URI is refused."""
    try:
        return local_path(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{path!r}: {error}") from None


def work_in(args: argparse.Namespace) -> None:
    """Makes the folder of -C, where one is given, the working folder. CONFIG and the RUN to resume were meant from the old
    one. Raises InputError."""
    if not args.directory:
        return
    if args.config and "=" not in args.config:
        args.config = os.path.abspath(args.config)
    if getattr(args, "resume", None) and os.path.exists(args.resume):
        args.resume = os.path.abspath(args.resume)
    try:
        os.chdir(args.directory)
    except OSError as error:
        what = f"cannot work in the folder {args.directory} on {os.uname().nodename}: {error.strerror}"
        raise InputError(what, where="-C", fix="create it, or mount it at this place on every node") from error


def loaded(args: argparse.Namespace, *more: str, cut: Collection[str] = ()) -> Loaded:
    """The checked config of the command line. `cut`: axes that the command itself will cut."""
    return load_config(args.config, [*args.overrides, *more], cut)


def check_server(config: Config, place: Path | None, overrides: Sequence[str]) -> None:
    """Raises InputError for a tracking URI that cannot be used or holds a password, and for a server that only the files of
    a run name; `place` is the file or folder that the config was read from. A server of the user's own is remembered."""
    if not config.track.enabled or config.track.uri is None:
        return
    from distdl.track.run import check_tracking_uri, refuse_unconfigured

    check_tracking_uri(config.track.uri)
    said = any(text.startswith(("track.uri=", "track=")) for text in overrides)
    run = trust.run_around(place / "config.json" if place.is_dir() else place) if place else None
    if run and not said:
        refuse_unconfigured(config.track.uri, run, fix=f"track.uri={config.track.uri} names it; track.enabled=false")
    trust.remember_server(config.track.uri)


def remember_family(config: Config) -> None:
    """A family of the user's own that they train or launch: their copy of it in a run's folder needs no yes."""
    family = config.model["family"]
    if is_custom(family):
        trust.remember(source_file(family), place=not is_file(family))


def prepare_if_missing(config: Config) -> None:
    """Writes the data set that `data.prepare` describes, if `data.path` does not exist yet."""
    recipe, path = config.data.prepare, config.data.path
    if recipe is None:
        return
    from distdl.data.prepare import parse_options, prepare_dataset

    options = {key: value if isinstance(value, str | list) else str(value) for key, value in recipe.options.items()}
    parse_options(recipe.source, options)  # a wrong option is an error even while the data set is there
    if "://" in path or Path(path).exists():
        return
    print(f"preparing {recipe.source} in {path} …", flush=True)
    try:
        manifest = prepare_dataset(recipe.source, path, options)
    except InputError:
        if not (Path(path) / "manifest.json").is_file():
            raise
        print(f"another process has prepared {path} meanwhile", flush=True)
        return
    rows = ", ".join(f"{name} {split.rows:,} rows" for name, split in manifest.splits.items())
    print(f"prepared {path}: {rows}", flush=True)


def tell_dead(runs: Path) -> None:
    """Closes the MLflow runs of a folder that are RUNNING there and that nobody trains, and says so."""
    from distdl.track.uploader import close_dead_later

    try:
        names = close_dead_later(runs)
    except OSError as error:
        print(f"note: runs in {runs} that ended without a word stay RUNNING in MLflow: {error}", file=sys.stderr)
        return
    for name in names:
        print(f"note: {name} ended without a word; MLflow is told (distdl train --resume {runs / name} continues it)")
