"""What a data set holds, in the terminal: columns, splits, distributions, classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from distdl.cli.media import class_names
from distdl.data.manifest import Manifest
from distdl.data.statistics import Part, Statistics

BLOCKS = " ▁▂▃▄▅▆▇█"
MOST_ROWS = 40
"""Features or classes of a column that are listed."""
BAR = 30


def sparkline(counts: Sequence[int]) -> str:
    """A histogram in a word: a block a bin, as high as its count; what is there at all is seen."""
    top = max(counts, default=0)
    return "".join(BLOCKS[-(-8 * count // top)] if top else " " for count in counts)


def bar(share: float) -> str:
    """A share from 0 to 1 as a bar."""
    return "█" * round(share * BAR) or ("▏" if share else "")


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def part_names(manifest: Manifest, name: str, one: Statistics) -> list[str]:
    """What the parts of a column are called: the features of a table, where their names are known."""
    if len(one.parts) == 1 and manifest.columns[name].shape != (1,):
        return [name]
    known = manifest.info.get("features") if name == "x" else None
    names = [str(feature) for feature in known] if isinstance(known, list) else []
    return names if len(names) == len(one.parts) else [f"{name}[{i}]" for i in range(len(one.parts))]


def tables(manifest: Manifest, split: str) -> Iterator[Any]:
    """rich's tables of the distributions of a split, and of the classes in all of them."""
    from rich.table import Table
    from rich.text import Text

    found = manifest.statistics.get(split, {})
    looked = min((one.looked_at for one in found.values()), default=0)
    rows = manifest.splits[split].rows
    title = f"distributions of {split}, as they are stored" + (
        f" (of {looked:,} rows of {rows:,})" if looked < rows else ""
    )
    numbers = Table("", "mean", "deviation", "median", "smallest", "largest", "missing", "histogram", title=title)
    left_out = 0
    for name, one in found.items():
        if class_names(manifest, name) and one.classes is not None:
            continue  # numbers of classes have no mean
        labels = part_names(manifest, name, one)
        for label, part in list(zip(labels, one.parts))[:MOST_ROWS]:
            numbers.add_row(Text(label), *_cells(part), Text(sparkline(part.histogram)))
        left_out += max(0, len(labels) - MOST_ROWS)
        if one.lengths:
            low, mean, high = one.lengths
            numbers.add_row(Text(name), f"{mean:.4g} bytes", "", "", f"{low:,} bytes", f"{high:,} bytes", "", "")
    if numbers.row_count:
        yield numbers
    if left_out:
        yield f"and {left_out:,} more features: --json has them all"
    for name, one in found.items():
        if one.classes is not None and (class_names(manifest, name) or len(one.classes) <= MOST_ROWS):
            yield _classes(manifest, name)


def _cells(part: Part) -> list[str]:
    told = [number(value) for value in (part.mean, part.deviation, part.median, part.low, part.high)]
    return [*told, f"{part.missing:,}" if part.missing else ""]


def _classes(manifest: Manifest, name: str) -> Any:
    """How many rows each class has in each split, the most frequent of the first split first."""
    from rich.table import Table
    from rich.text import Text

    names = class_names(manifest, name)
    counts = {split: dict(of[name].classes or {}) for split, of in manifest.statistics.items() if name in of}
    splits = sorted(counts, key=lambda split: (split != "train", split))
    table = Table(name, *(f"{split} rows" for split in splits), "", title=f"classes of {name}")
    rows = class_rows(counts, splits)
    total = sum(counts[splits[0]].values()) or 1
    for value in rows[:MOST_ROWS]:
        label = f"{value}" + (f"  {names[value]}" if 0 <= value < len(names) else "")
        share = counts[splits[0]].get(value, 0) / total
        told = [f"{counts[split].get(value, 0):,}" for split in splits]
        table.add_row(Text(label), *told, f"{bar(share)} {100 * share:.1f} %")
    if len(rows) > MOST_ROWS:
        table.add_row(f"and {len(rows) - MOST_ROWS:,} more", *([""] * (len(splits) + 1)))
    return table


def class_rows(counts: dict[str, dict[int, int]], splits: list[str]) -> list[int]:
    """The classes of all splits: the most frequent of the first split first."""
    every = {value for of in counts.values() for value in of}
    return sorted(every, key=lambda value: (-counts[splits[0]].get(value, 0), value))
