"""`distdl completion`: what a shell needs to complete the command line with the tab key.

The script is whole: pressing tab starts no Python. It completes verbs, options and their choices, families, files, and the
runs in runs/, the sources of data and the shipped examples.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from distdl.errors import InputError

EPILOG = """\
bash, in ~/.bashrc:     source <(distdl completion bash)
zsh, once:              distdl completion zsh > "${fpath[1]}/_distdl"
"""

FILES = ("CONFIG", "YAML", "FILE", "PATH")
FOLDERS = ("DIR",)
"""What arguments are called in the help -> what stands there."""

FUNCTIONS = {
    "RUN": "_distdl_runs",
    "NAME": "_distdl_families",
    "SOURCE": "_distdl_sources",
    "EXAMPLE": "_distdl_examples",
}
BASH = """\
_distdl_runs() {{ compgen -W "$(cd runs 2>/dev/null && ls -d -- */ 2>/dev/null | tr -d /)" -- "$1"; compgen -d -- "$1"; }}
_distdl_families() {{ compgen -W "{families}" -- "$1"; compgen -f -X '!*.py' -- "$1"; }}
_distdl_sources() {{ compgen -W "{sources}" -- "$1"; compgen -f -- "$1"; }}
_distdl_examples() {{ compgen -W "{examples}" -- "$1"; }}
"""
ZSH = """\
_distdl_runs() {{ _path_files -W runs -/; _files -/; }}
_distdl_families() {{ compadd -- {families}; _files -g '*.py'; }}
_distdl_sources() {{ compadd -- {sources}; _files; }}
_distdl_examples() {{ compadd -- {examples}; }}
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="the script that completes this command line in bash or zsh",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell that is to complete")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    print(script(args.shell))
    return 0


def script(shell: str) -> str:
    """The completion script of a shell, from the parsers themselves. Raises InputError without the package shtab."""
    try:
        import shtab
    except ImportError:
        raise InputError("completion needs the package shtab", fix="pip install shtab") from None
    from distdl.cli.main import make_parser
    from distdl.cli.starter import examples
    from distdl.config.family import family_names
    from distdl.data.prepare import source_names

    parser = make_parser()
    words = {
        **dict.fromkeys(FILES, shtab.FILE),
        **dict.fromkeys(FOLDERS, shtab.DIRECTORY),
        **{metavar: {"bash": function, "zsh": function} for metavar, function in FUNCTIONS.items()},
    }
    for action in _actions(parser):
        if action.metavar in words and not action.choices:
            action.complete = words[str(action.metavar)]  # type: ignore[attr-defined]
    names = {"families": family_names(), "sources": source_names(), "examples": examples()}
    preamble = (BASH if shell == "bash" else ZSH).format(**{key: " ".join(known) for key, known in names.items()})
    return str(shtab.complete(parser, shell, preamble=preamble))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of all that stand behind it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
