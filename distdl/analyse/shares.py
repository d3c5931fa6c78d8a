"""Attributions of all rows, by one method: what each part of the input has to do with the answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from distdl.analyse import attribution, drawings
from distdl.analyse.look import PICTURES, Look, Opened
from distdl.analyse.parts import Sum
from distdl.analyse.section import Marked, Picture, Section, Table, Value

HOW: dict[str, Sum] = {"saliency": "amax", "integrated_gradients": "sum", "gradcam": "mean", "occlusion": "mean"}
"""How the numbers of a part become one: of a gradient the largest (Simonyan et al.), of shares their sum."""
SIGNED = ("integrated_gradients", "occlusion")
MOST_PARTS = 1000
"""Parts of a row that become lines of a table, and that are hidden one after the other."""
BARS = 20
JUMP = 0.05
"""Share of the difference by which shares may miss it before a row is named as one that they do not explain."""
WORDS = {"columns": "column", "tokens": "token", "steps": "step", "numbers": "number", "pixels": "pixel"}


@dataclass
class _Found:
    """By row."""

    values: list[np.ndarray] = field(default_factory=list)
    sums: list[tuple[float, float, float]] = field(default_factory=list)
    """Of integrated gradients: the answer, the one to the baseline, and the sum of the shares."""
    steps: int = 0
    layer: str = ""


def attributed(look: Look, method: str) -> Section:
    """The section of a method."""
    most = max(int(np.prod(one.parts.shape)) for one in look.opened)
    if method == "occlusion" and most > MOST_PARTS and look.opened[0].parts.kind in ("columns", "numbers", "tokens"):
        return Section(refused=f"its input has {most:,} parts, and as many passes would hide one after the other")
    found = _Found()
    for one in look.opened:
        found.values += _values(look, method, one, found)
    section, kind = Section(), look.opened[0].parts.kind
    {"pixels": _of_pictures, "steps": _of_steps, "tokens": _of_tokens}.get(kind, _of_columns)(
        look, method, found, section
    )
    if found.layer:
        section.sentences.append(f"The last convolution is the layer '{found.layer}'.")
    if method in SIGNED:
        section.sentences.append(f"The baseline is {_baseline(kind)}.")
    if found.sums:
        _complete(look, found, section)
    return section


def _values(look: Look, method: str, one: Opened, found: _Found) -> list[np.ndarray]:
    """(*shape of the parts) of each row."""
    probe, inputs, batch = look.probe, one.inputs, look.model.batch
    if method == "gradcam":
        found.layer, seen = attribution.gradcam(probe, inputs)
        return list(seen.double().cpu().numpy())
    if method == "integrated_gradients":
        shares = attribution.integrated(probe, inputs, one.baseline, batch)
        found.steps, values = max(found.steps, shares.steps), shares.values
        told = one.parts.told(values, HOW[method])
        sums = told.flatten(1).sum(1).tolist()
        found.sums += list(zip(shares.row.double().tolist(), shares.baseline.double().tolist(), sums))
        return list(told.cpu().numpy())
    if method == "occlusion":
        values = attribution.occlusion(probe, inputs, one.baseline, one.parts, batch)
    else:
        values = tuple(v.abs() for v in attribution.saliency(probe, inputs))
    return list(one.parts.told(values, HOW[method]).cpu().numpy())


def _baseline(kind: str) -> str:
    return {"pixels": "black", "tokens": "a vector of zeros"}.get(kind, "the mean of the rows that were looked at")


def _title(look: Look, row: int) -> str:
    true = look.true(row)
    return f"{look.rows[row].name[-24:]}\n{look.thing(int(look.things[row]))[:18]}" + (
        f" (is {true[:14]})" if true else ""
    )


def _of_pictures(look: Look, method: str, found: _Found, section: Section) -> None:
    section.arrays["maps"] = np.stack(found.values).astype(np.float32)
    pictures = [p for row in range(min(PICTURES, len(look.rows))) if (p := look.picture(row)) is not None]
    titles = [_title(look, row) for row in range(len(pictures))]
    signed = method in SIGNED
    if pictures and all(p.shape[1:] == v.shape for p, v in zip(pictures, found.values)):
        drawn = drawings.maps(pictures, found.values[: len(pictures)], titles, signed)
        caption = "The rows, and below them what speaks for the answer" + (
            " (red) and against it (blue)." if signed else "."
        )
        section.pictures.append(Picture(caption, drawn))
    rows: list[tuple[Value, ...]] = []
    for row, values in enumerate(found.values):
        weight = np.abs(values)
        total = float(weight.sum()) or 1.0
        centre = [float((weight.sum(1 - axis) * np.arange(values.shape[axis])).sum() / total) for axis in (0, 1)]
        rows.append((*_head(look, row), float(values.sum()), *centre))
    heads = (*HEAD, "sum of the map", "its centre: row", "its centre: column")
    section.tables.append(Table(method, "By row", heads, rows, shown=20))


def _of_steps(look: Look, method: str, found: _Found, section: Section) -> None:
    n = min(PICTURES, len(look.rows))
    titles = [_title(look, row).replace("\n", ": ") for row in range(n)]
    caption = "What speaks for the answer, over time."
    section.pictures.append(Picture(caption, drawings.over_time(found.values[:n], titles, "attribution")))
    if len({v.shape for v in found.values}) == 1:
        section.arrays["over_time"] = np.stack(found.values).astype(np.float32)
    _by_part(look, method, found, section)


def _of_tokens(look: Look, method: str, found: _Found, section: Section) -> None:
    names = [one.parts.names for one in look.opened]
    for row in range(min(PICTURES, len(look.rows))):
        title = f"{look.thing(int(look.things[row]))!r} ({look.answers[row]:.4g})"
        section.texts.append(Marked(title, names[row], found.values[row].tolist()))
    rows: list[tuple[Value, ...]] = [
        (*_head(look, row), place, word, float(value))
        for row, values in enumerate(found.values)
        for place, (word, value) in enumerate(zip(names[row], values))
    ]
    section.tables.append(Table(method, "By token", (*HEAD, "place", "token", "attribution"), rows, shown=0))


def _of_columns(look: Look, method: str, found: _Found, section: Section) -> None:
    _by_part(look, method, found, section)
    means = next((table for table in section.tables if table.name == f"{method}-mean"), None)
    if means is not None:
        top = means.rows[:BARS]
        drawn = drawings.bars([str(r[0]) for r in top], [float(r[1] or 0) for r in top], "mean size of the attribution")
        section.pictures.append(Picture(f"The {len(top)} with the most, over {len(look.rows):,} rows.", drawn))


def _by_part(look: Look, method: str, found: _Found, section: Section) -> None:
    """The mean over the rows of each part, and each row by itself."""
    parts = look.opened[0].parts
    if len({v.shape for v in found.values}) > 1 or len(parts.names) > MOST_PARTS:
        section.sentences.append(
            f"Rows have more than {MOST_PARTS:,} parts or are of several lengths: no table of them."
        )
        return
    values = np.stack(found.values)
    size = np.abs(values).mean(0)
    total, order = float(size.sum()) or 1.0, np.argsort(-size, kind="stable")
    word = WORDS[parts.kind]
    means: list[tuple[Value, ...]] = [
        (parts.names[i], float(size[i]), float(size[i]) / total, float(values[:, i].mean())) for i in order.tolist()
    ]
    heads = (word, "mean size", "share of all", "mean with its sign")
    section.tables.append(Table(f"{method}-mean", f"By {word}, mean over {len(values):,} rows", heads, means, shown=50))
    section.numbers["share"] = {str(name): share for name, _, share, _ in means}
    rows: list[tuple[Value, ...]] = [
        (*_head(look, row), parts.names[i], float(values[row, i]))
        for row in range(len(values))
        for i in range(values.shape[1])
    ]
    section.tables.append(Table(method, "Row by row", (*HEAD, word, "attribution"), rows, shown=0))


HEAD = ("row", "told", "true", "answer")


def _head(look: Look, row: int) -> tuple[Value, ...]:
    return (look.rows[row].name, look.thing(int(look.things[row])), look.true(row), float(look.answers[row]))


def _complete(look: Look, found: _Found, section: Section) -> None:
    """How well the shares add up."""
    rows: list[tuple[Value, ...]] = [
        (look.rows[i].name, row, start, total, total - (row - start))
        for i, (row, start, total) in enumerate(found.sums)
    ]
    worst = max(abs(float(row[-1] or 0)) for row in rows)
    heads = ("row", "answer", "answer to the baseline", "sum of the shares", "missed by")
    section.tables.append(
        Table("integrated_gradients-completeness", "Whether the shares add up", heads, rows, shown=10)
    )
    section.numbers["missed_by_at_most"], section.numbers["steps"] = worst, found.steps
    section.sentences.append(
        f"With {found.steps} steps the shares of no row miss the difference of its answers by more than {worst:.3g}."
    )
    off = [abs(total - (row - start)) > max(JUMP * abs(row - start), 1e-3) for row, start, total in found.sums]
    if any(off):
        section.sentences.append(
            f"Of {sum(off):,} of {len(off):,} rows they miss it by more than {JUMP:.0%}: on the way from the baseline the "
            "answer jumps, or is too rough for these steps, and the shares of these rows are not to be trusted."
        )
    section.numbers["rows_that_miss"] = sum(off)
