"""A data set as one HTML page that needs nothing else (distdl/page.py): samples and drawings within it, everything that
comes from the data escaped."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from distdl.cli.data_text import class_rows, number, part_names
from distdl.cli.media import Shown, class_names, shown
from distdl.data.bad_rows import told
from distdl.data.manifest import VARIABLE, Manifest
from distdl.data.statistics import Part
from distdl.page import cell, document, number_cell, table

SAMPLES = 24
MOST_PARTS, MOST_CLASSES = 60, 60
STYLE = """
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(15em, 1fr)); gap: 1em }
.sample { border: 1px solid #ddd; border-radius: 6px; padding: .7em; overflow: hidden }
.sample img { image-rendering: pixelated; width: 100%; max-height: 16em; object-fit: contain } audio { width: 100% }
"""


def page(path: str, manifest: Manifest, split: str) -> str:
    """The page of a data set. DataCorrupt: one of the rows that it shows is damaged."""
    parts = [
        f"<h1>{escape(path)}</h1>",
        f"<p>from the source <b>{escape(manifest.source)}</b>; fingerprint <code>{manifest.fingerprint}</code></p>",
        *_splits(manifest),
        *(f"<p>{escape(line)}</p>" for line in told(manifest.info)),
        *_columns(manifest, split),
        *_distributions(manifest, split),
        *(line for name in manifest.columns for line in _classes(manifest, name)),
        *_samples(path, manifest, split),
    ]
    return document(path, parts, STYLE)


def _splits(manifest: Manifest) -> Iterator[str]:
    yield "<h2>Splits</h2>"
    rows = [
        (
            cell(name),
            number_cell(f"{split.rows:,}"),
            number_cell(len(split.shards)),
            number_cell(f"{sum(s.bytes for s in split.shards):,}"),
        )
        for name, split in manifest.splits.items()
    ]
    yield table(("split", "rows", "shards", "bytes"), rows)


def _columns(manifest: Manifest, split: str) -> Iterator[str]:
    yield "<h2>Columns</h2>"
    values = manifest.values.get(split, {})
    rows = []
    for name, column in manifest.columns.items():
        told = values[name].in_words() if name in values else ""
        one = manifest.statistics.get(split, {}).get(name)
        if one and one.lengths:
            told = f"{one.lengths[0]:,} to {one.lengths[2]:,} bytes, {one.lengths[1]:.4g} on average"
        rows.append((cell(name), cell(column.dtype), cell(list(column.shape)), cell(told)))
    yield table(("column", "type", "shape", f"values of {split}"), rows)


# -- drawings ----------------------------------------------------------------------------------------------------------


def histogram(part: Part, width: int = 260, height: int = 48) -> str:
    """A histogram as SVG; each bar says its ends and its count."""
    if not part.histogram or part.low is None or part.high is None:
        return ""
    top, each = max(part.histogram) or 1, width / len(part.histogram)
    step = (part.high - part.low) / len(part.histogram)
    bars = []
    for i, count in enumerate(part.histogram):
        tall = height * count / top
        ends = f"{part.low + i * step:.4g} to {part.low + (i + 1) * step:.4g}: {count:,}"
        bars.append(
            f'<rect x="{i * each:.1f}" y="{height - tall:.1f}" width="{max(each - 1, 0.5):.1f}" height="{tall:.1f}">'
            f"<title>{ends}</title></rect>"
        )
    return f'<svg width="{width}" height="{height}" role="img">{"".join(bars)}</svg>'


def _distributions(manifest: Manifest, split: str) -> Iterator[str]:
    rows, left_out = [], 0
    for name, one in manifest.statistics.get(split, {}).items():
        if class_names(manifest, name) and one.classes is not None:
            continue
        labels = part_names(manifest, name, one)
        for label, part in list(zip(labels, one.parts))[:MOST_PARTS]:
            told = (part.mean, part.deviation, part.median, part.low, part.high)
            cells = [cell(label), *(number_cell(number(value)) for value in told), number_cell(part.missing or "")]
            rows.append([*cells, f"<td>{histogram(part)}</td>"])
        left_out += max(0, len(labels) - MOST_PARTS)
    if not rows:
        return
    yield f"<h2>Distributions of {escape(split)}, as they are stored</h2>"
    yield table(("", "mean", "deviation", "median", "smallest", "largest", "missing", ""), rows)
    if left_out:
        yield f"<p>and {left_out:,} more features</p>"


def _classes(manifest: Manifest, name: str) -> Iterator[str]:
    of_name = {split: of[name] for split, of in manifest.statistics.items() if name in of}
    counts = {split: dict(one.classes) for split, one in of_name.items() if one.classes is not None}
    if not counts or len(counts) < len(of_name):
        return
    splits = sorted(counts, key=lambda split: (split != "train", split))
    names, order = class_names(manifest, name), class_rows(counts, splits)
    if not names and len(order) > MOST_CLASSES:
        return
    total, rows = sum(counts[splits[0]].values()) or 1, []
    for value in order[:MOST_CLASSES]:
        share = counts[splits[0]].get(value, 0) / total
        drawn = f'<svg width="300" height="12"><rect width="{300 * share:.1f}" height="12"/></svg> {100 * share:.1f} %'
        label = f"{value} {names[value]}" if 0 <= value < len(names) else str(value)
        rows.append(
            [cell(label), *(number_cell(f"{counts[split].get(value, 0):,}") for split in splits), f"<td>{drawn}</td>"]
        )
    yield f"<h2>Classes of {escape(name)}</h2>"
    yield table((name, *(f"{split} rows" for split in splits), f"share of {splits[0]}"), rows)
    if len(order) > MOST_CLASSES:
        yield f"<p>and {len(order) - MOST_CLASSES:,} more</p>"


# -- samples -----------------------------------------------------------------------------------------------------------


def _samples(path: str, manifest: Manifest, split: str) -> Iterator[str]:
    from distdl.data.read import Dataset

    rows = manifest.splits[split].rows
    chosen = np.unique(np.linspace(0, rows - 1, min(SAMPLES, rows)).astype(np.int64))
    found = Dataset(path, split).gather(chosen)
    yield f"<h2>Samples of {escape(split)}</h2>"
    yield '<div class="samples">'
    for i, row in enumerate(chosen.tolist()):
        parts = [f'<div class="name">row {row:,}</div>']
        for name, column in manifest.columns.items():
            value = found[name][i]
            parts.append(f'<div class="name">{escape(name)}</div>')
            parts.append(_drawn(shown(manifest, name, value if column.dtype == VARIABLE else np.asarray(value))))
        yield f'<div class="sample">{"".join(parts)}</div>'
    yield "</div>"


def _drawn(value: Shown) -> str:
    if value.kind == "picture":
        return f'<img alt="" src="{escape(value.content)}">'
    if value.kind == "sound":
        return f'<audio controls src="{escape(value.content)}"></audio>'
    return f"<pre>{escape(value.content)}</pre>"
