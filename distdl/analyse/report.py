"""What was found as one HTML page that opens without a network, and as files for programs beside it."""

from __future__ import annotations

import csv
import json
import math
from html import escape
from pathlib import Path

import numpy as np

from distdl.analyse.analysis import Analysis, summary
from distdl.analyse.methods import METHODS
from distdl.analyse.section import Marked, Section, Table, Value
from distdl.errors import InputError
from distdl.page import cell, data_uri, document, number_cell, table

REPORT, NUMBERS, ARRAYS = "report.html", "analysis.json", "arrays.npz"
STYLE = """
img { max-width: 100% } .paper { color: #555; font-size: .9em } .refused { color: #777 }
.tokens { line-height: 2; overflow-wrap: anywhere; white-space: pre-wrap; font-family: ui-monospace, monospace }
"""
DIGITS = 5


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """InputError: a report, or a part of one, is there already, or a file is where the folder goes."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", fix="--output names a folder")
    if (old := _there(folder)) and not overwrite:
        raise InputError(f"{old[0]} is there already", fix="--overwrite replaces it, --output names another folder")


def _there(folder: Path) -> list[Path]:
    """Files of a report that are in a folder."""
    tables = [path for path in sorted(folder.glob("*.csv")) if path.stem in _names()]
    return [path for path in (folder / REPORT, folder / NUMBERS, folder / ARRAYS) if path.exists()] + tables


def write(found: Analysis, folder: Path) -> list[Path]:
    """Writes all files, the page last; where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in _there(folder):  # of another choice of methods
        old.unlink()
    written = []
    for section in found.sections.values():
        for one in section.tables:
            written.append(folder / f"{one.name}.csv")
            with written[-1].open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([one.heads, *one.rows])
    arrays = {f"{name}_{key}": array for name, s in found.sections.items() for key, array in s.arrays.items()}
    if arrays:
        written.append(folder / ARRAYS)
        np.savez_compressed(written[-1], **arrays)  # type: ignore[arg-type]
    written.append(folder / NUMBERS)
    written[-1].write_text(json.dumps(summary(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    written.append(folder / REPORT)
    written[-1].write_text(page(found), encoding="utf-8")
    return written


def _names() -> set[str]:
    """Names that tables of a report have."""
    behind = ("", "-mean", "-completeness", "-units", "-whole", "-by", "-classes", "-rows")
    return {f"{method}{end}{n}" for method in METHODS for end in behind for n in ("", *range(3, 30))}


def page(found: Analysis) -> str:
    """The page."""
    look = found.look
    model, told = look.model, look.sample.told
    title = f"A look inside {model.folder.path.name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Family <b>{escape(str(model.config.family))}</b>, checkpoint of step {model.step:,}, in evaluation mode. "
        f"{len(look.rows):,} of {told.rows - told.set_aside:,} rows of {escape(', '.join(look.files))} are looked at, "
        f"drawn evenly (seed {look.seed})"
        + (f"; {told.set_aside:,} rows could not be read" if told.set_aside else "")
        + f".</p><p>What is explained is {escape(look.probe.subject.words)}.</p>",
    ]
    for method, section in found.sections.items():
        parts += _section(method, section)
    return document(title, parts, STYLE)


def _section(method: str, section: Section) -> list[str]:
    of = METHODS[method]
    found = [f'<h2 id="{method}">{escape(of.title)}</h2>']
    found.append(
        f"<p>{escape(of.shows)} {escape(of.cannot)}</p>"
        f'<p class="paper"><a href="{escape(of.address)}">{escape(of.paper)}</a></p>'
    )
    if section.refused:
        return [*found, f'<p class="refused">It does not apply here: {escape(section.refused)}.</p>']
    found += [f"<p>{escape(sentence)}</p>" for sentence in section.sentences]
    for picture in section.pictures:
        source = data_uri("image/png", picture.png)
        found.append(
            f'<figure><img alt="{escape(picture.caption)}" src="{source}"><figcaption>{escape(picture.caption)}'
        )
        found.append("</figcaption></figure>")
    found += [_marked(text) for text in section.texts]
    for one in section.tables:
        found += _table(one)
    return found


def _table(one: Table) -> list[str]:
    more = (
        f" All {len(one.rows):,} lines are in <code>{escape(one.name)}.csv</code>." if len(one.rows) > one.shown else ""
    )
    if not one.shown:
        return [f"<p>{escape(one.title)}:{more}</p>"]
    rows = [[cell(v) if isinstance(v, str) else number_cell(_shown(v)) for v in row] for row in one.rows[: one.shown]]
    return [f"<h3>{escape(one.title)}</h3>", table(one.heads, rows), f"<p>{more}</p>" if more else ""]


def _shown(value: Value) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.{DIGITS}g}"


def _marked(text: Marked) -> str:
    """Tokens: red speaks for the answer, blue against it."""
    most = max(map(abs, text.weights), default=0.0) or 1.0
    words = []
    for word, weight in zip(text.words, text.weights):
        colour = "220,60,40" if weight >= 0 else "40,90,220"
        share = abs(weight) / most
        words.append(
            f'<span title="{weight:.4g}" style="background:rgba({colour},{0.75 * share:.2f})">{escape(word)}</span>'
        )
    return f'<p class="name">{escape(text.title)}</p><p class="tokens">{"".join(words)}</p>'
