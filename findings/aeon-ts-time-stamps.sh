#!/usr/bin/env bash
# aeon 1.6.0: in a .ts file with `@timeStamps true`, load_from_ts_file takes every number that has a decimal point, without its sign,
# for a value: `(0,-1.5)` is 1.5, and of `(0.5,1)` the moment becomes the value.
#
# Guess before it was run: a pair is a moment and a value, and the value is read as it is in a file without time stamps.
# Seen on 2026-11-30:
#
#     -1.5, 2.5   without time stamps      [-1.5, 2.5]
#     -1.5, 2.5   at the moments 0 and 1   [1.5, 2.5]
#     1.0, 2.0    at 0 and 1               [1.0, 2.0]
#     1, 2        at 0.5 and 1.5           [0.5, 1.5]
#
# Nothing is said. A classifier of series that swing around zero is trained on their absolute values.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check aeon==1.6.0
cat > "$folder/try.py" <<'PYTHON'
import sys

from aeon.datasets import load_from_ts_file

HEAD = "@problemName swings\n@timeStamps {}\n@missing false\n@univariate true\n@equalLength true\n@seriesLength 2\n@classLabel true a b\n@data\n"


def read(stamps, first, second):
    path = f"{sys.argv[1]}/swings.ts"
    with open(path, "w") as file:
        file.write(HEAD.format(stamps) + f"{first}:a\n{second}:b\n")
    return load_from_ts_file(path)[0][0, 0].tolist()


found = {}
for name, *what in (
    ("-1.5, 2.5 without time stamps", "false", "-1.5,2.5", "3.5,4.5"),
    ("-1.5, 2.5 at 0 and 1", "true", "(0,-1.5),(1,2.5)", "(0,3.5),(1,4.5)"),
    ("1.0, 2.0 at 0 and 1", "true", "(0,1.0),(1,2.0)", "(0,3.0),(1,4.0)"),
    ("1, 2 at 0.5 and 1.5", "true", "(0.5,1),(1.5,2)", "(0.5,3),(1.5,4)"),
):
    found[name] = read(*what)
    print(f"{name:32}{found[name]}", flush=True)
if list(found.values()) != [[-1.5, 2.5], [1.5, 2.5], [1.0, 2.0], [0.5, 1.5]]:
    sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
