"""Where the minutes of the tests go: one whole run before a change and one after it, from what pytest wrote of them.

    make test REPORTS=build/before        # in a checkout of before; or pytest tests -m "not chaos" --junitxml=FILE
    make test REPORTS=build/after
    python benchmarks/suite.py --before build/before/*.xml --after build/after/*.xml

Both on the same machine with nothing else to do. A run's minutes are those of the clock, of its parts one after the other;
a folder's are those that its tests took together, with what was set up for them. A test counts for the folder where it is
now. Ends with 1 where a test of before is gone, or is skipped that was not.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

GOAL = 0.42
"""What the run after may take of the run before."""


@dataclass
class Suite:
    """One whole run."""

    clock_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """Test -> what it took."""
    skipped: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)


def read(paths: Sequence[str]) -> Suite:
    """A run from the junit files of its parts."""
    suite = Suite()
    for path in paths:
        for part in ElementTree.parse(path).getroot().iter("testsuite"):
            suite.clock_s += float(part.attrib["time"])
            for case in part.iter("testcase"):
                test = f"{case.attrib['classname']}::{case.attrib['name']}"
                suite.seconds[test] = suite.seconds.get(test, 0.0) + float(case.attrib["time"])
                kinds = {child.tag for child in case}
                suite.skipped |= {test} if "skipped" in kinds else set()
                suite.failed |= {test} if kinds & {"failure", "error"} else set()
    return suite


def place(test: str) -> tuple[str, str]:
    """(folder, the file's name and what is in it) of a test."""
    classname, _, name = test.partition("::")
    words = classname.split(".")
    start = next((i for i, word in enumerate(words) if word.startswith("test_")), len(words) - 1)
    return "/".join(words[:start]), f"{'.'.join(words[start:])}::{name}"


def where_now(before: Suite, after: Suite) -> dict[str, str]:
    """Test of before -> the same test of after, where there is one: in its place, or else in a file of that name."""
    new = {place(test)[1]: test for test in after.seconds if test not in before.seconds}
    found = {test: test if test in after.seconds else new.get(place(test)[1], "") for test in before.seconds}
    return {test: now for test, now in found.items() if now}


def lost(before: Suite, after: Suite) -> list[str]:
    """Tests that say nothing any more."""
    now = where_now(before, after)
    gone = [f"{test} is gone" for test in before.seconds if test not in now]
    return gone + [f"{now[t]} is skipped" for t in sorted(now) if now[t] in after.skipped and t not in before.skipped]


def table(before: Suite, after: Suite) -> str:
    """The two runs by folder, in Markdown."""
    now = where_now(before, after)
    rows: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0, 0.0])
    for column, suite in ((0, before), (2, after)):
        for test, seconds in suite.seconds.items():
            folder = place(now.get(test, test) if suite is before else test)[0]
            rows[folder][column] += 1
            rows[folder][column + 1] += seconds / 60
    ratio = after.clock_s / before.clock_s
    lines = [
        f"`make test`: {before.clock_s / 60:.1f} minutes before, {after.clock_s / 60:.1f} after: "
        f"**{ratio:.2f}** (goal: at most {GOAL}).",
        "",
        "`python benchmarks/suite.py`: one run each on the same machine; a folder's minutes are those of its tests, "
        "of which two may run at a time.",
        "",
        "| folder | tests before | minutes | tests after | minutes | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, (count, minutes, count_after, minutes_after) in sorted(rows.items(), key=lambda row: -row[1][1]):
        share = f"{minutes_after / minutes:.2f}" if minutes else ""
        lines.append(f"| `{name}` | {count:,} | {minutes:.1f} | {count_after:,} | {minutes_after:.1f} | {share} |")
    sums = [sum(column) for column in zip(*rows.values())]
    lines += [f"| all | {sums[0]:,} | {sums[1]:.1f} | {sums[2]:,} | {sums[3]:.1f} | {sums[3] / sums[1]:.2f} |", ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", nargs="+", required=True, metavar="XML")
    parser.add_argument("--after", nargs="+", required=True, metavar="XML")
    parser.add_argument("--output", default="benchmarks/results/suite.md")
    args = parser.parse_args(argv)
    before, after = read(args.before), read(args.after)
    for name, suite in (("before", before), ("after", after)):
        if suite.failed:
            print(f"{name}: {len(suite.failed)} tests failed: {', '.join(sorted(suite.failed)[:9])}", file=sys.stderr)
    if problems := lost(before, after):
        print("\n".join(problems), file=sys.stderr)
    text = table(before, after)
    Path(args.output).write_text(text, encoding="utf-8")
    print(text)
    return 1 if problems or before.failed or after.failed else 0


if __name__ == "__main__":
    sys.exit(main())
