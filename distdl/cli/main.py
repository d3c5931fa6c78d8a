"""The `distdl` command. One file per subcommand; nothing heavy is imported before a subcommand asks for it."""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from distdl import __version__, own_process, trust
from distdl.config.secret_text import redacted
from distdl.errors import DistdlError, nearest

COMMANDS = (
    *("init", "train", "tune", "plan", "launch", "jobs", "k8s"),
    *("predict", "sample", "evaluate", "analyse", "export", "serve", "runs", "checkpoint", "data", "config", "ui"),
    *("families", "doctor", "parity", "completion"),
)

EPILOG = """\
examples:
  distdl init table.csv                            prepare a file of yours, and write a config that trains it
  distdl train configs/quickstart.yaml             train; the same command again continues
  distdl train configs/families/mlp.yaml train.epochs=3     any key of the YAML can be given as key=value
  distdl predict adult new.csv -o answers.csv      what a trained model says of new rows
  distdl serve adult                               the same over HTTP, on this machine
  distdl tune configs/ways/tune.yaml               search for the best values of some keys of a config
  distdl plan configs/families/gpt.yaml --workers 8         what would run, without starting it
  distdl launch configs/families/gpt.yaml --on kubernetes   the same on a cluster; `distdl jobs` follows it
  distdl runs list                                 what was trained here, and what came of it
  distdl ui                                        the tracking page of this folder's runs
"""


def make_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of the whole command line, or of some commands of it: a command does not wait for what others import."""
    parser = Parser(
        prog="distdl",
        description="Train any architecture family on any number of workers from one YAML file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"distdl {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in commands:
        importlib.import_module(f"distdl.cli.{name}").add_parser(subparsers)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; key=value ones may stand anywhere, which argparse alone does not allow behind an option."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = make_parser(argv[:1] if argv and argv[0] in COMMANDS else COMMANDS)
    args, rest = parser.parse_known_args(argv)
    strangers = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(args, "overrides")]
    if strangers:
        parser.error(f"unrecognized arguments: {' '.join(strangers)}{_meant(strangers, argv, args, parser)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


class Parser(argparse.ArgumentParser):
    """Says what may have been meant, as a config's keys do."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            near = nearest(found[1], re.findall(r"[\w.-]+", found[2]))
            message += f"\n    fix: did you mean '{near}'?" if near else ""
        super().error(message)


def _meant(
    strangers: Sequence[str], argv: Sequence[str], args: argparse.Namespace, parser: argparse.ArgumentParser
) -> str:
    """How to say what an unknown flag was to say: by its right name, or as the key of the config that it names."""
    flag, _, value = next((text for text in strangers if text.startswith("-")), "").partition("=")
    if not flag:
        return ""
    if not value:
        value = next((after for text, after in itertools.pairwise(argv) if text == flag and after[:1] != "-"), "VALUE")
    word = flag.lstrip("-").replace("-", "_")
    if word in ("config", "c") and hasattr(args, "config"):
        return f"\n    fix: CONFIG is given without a flag: distdl {args.command} {value}"
    if hasattr(args, "overrides"):
        from distdl.config.check import home_of

        if key := word if "." in word else home_of(word):
            return f"\n    fix: a key of the config is given as key=value: {key}={value}"
    near = nearest(flag, _flags(parser, args.command))
    return f"\n    fix: did you mean '{near}'?" if near else ""


def _flags(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """The flags of a command."""
    kinds = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [flag for action in kinds for flag in action.choices[command]._option_string_actions]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    # OpenMP threads that spin while they wait make a step ten times slower (250 ms for 20) as soon as anything else wants a
    # core; sleeping costs nothing measurable. It must be set before torch is imported, and the workers inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        args = _parse(argv)
        if getattr(args, "trust", False):
            trust.say_yes()
        return int(args.run(args))
    except DistdlError as error:
        print(f"distdl: {redacted(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("distdl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; say nothing more
        return 1
    except Exception as error:  # a mistake of ours, not of the user's
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(f"distdl: internal error: {type(error).__name__}: {redacted(str(error))}", file=sys.stderr)
        print(f"    at {where.filename}:{where.lineno}; DISTDL_DEBUG=1 shows the traceback", file=sys.stderr)
        if os.environ.get("DISTDL_DEBUG"):
            traceback.print_exc()
        return 1


def command() -> int:
    """`main` in a process of its own, which is that of the `distdl` command."""
    finish = own_process.begin()
    code = main()
    finish(code)
    return code


if __name__ == "__main__":
    sys.exit(command())
