"""For which rows the model is wrong: by the groups of a column, as `distdl evaluate --by` tells them, and by class."""

from __future__ import annotations

from dataclasses import replace

from distdl.analyse.look import Look
from distdl.analyse.rows import knows_truth
from distdl.analyse.section import Section, Table, Value
from distdl.data.asking.open import How
from distdl.errors import InputError
from distdl.model.measured import Measured, measured


def groups(look: Look, by: str, how: How) -> Section:
    """The section: all rows of each file, not only those that are looked at closely."""
    section = Section()
    for path in look.files:
        if not knows_truth(look.model, path):
            continue
        try:
            found = measured(look.model, path, replace(how, answers=True, keep=(by,) if by else ()), by)
        except InputError as error:
            if by:
                raise
            section.refused = error.problems[0].what  # a file without the truth in it
            continue
        _tell(look, path, by, found, section)
    if not section.tables:
        return Section(refused=section.refused or "it is not known what is true of these rows")
    section.refused = ""
    return section


def _tell(look: Look, path: str, by: str, found: Measured, section: Section) -> None:
    of = f"{path}: " if len(look.files) > 1 else ""
    number = len(section.tables)
    metrics: dict[str, float] = {**found.metrics, **found.more}
    whole: list[tuple[Value, ...]] = list(metrics.items())
    section.tables.append(
        Table(f"groups-whole{number or ''}", f"{of}All {found.told.rows:,} rows", ("metric", "value"), whole)
    )
    if found.groups:
        names = list(dict.fromkeys(name for group in found.groups.values() for name in group))
        rows: list[tuple[Value, ...]] = [
            (group, *(of_it.get(n) for n in names)) for group, of_it in found.groups.items()
        ]
        section.tables.append(Table(f"groups-by{number or ''}", f"{of}By {by}", (by, *names), rows))
    if found.confusion:
        rows = []
        for i, counts in enumerate(found.confusion):
            if total := sum(counts):
                wrong = [(n, j) for j, n in enumerate(counts) if j != i and n]
                mostly = str(found.classes[max(wrong)[1]]) if wrong else ""
                rows.append((str(found.classes[i]), total, 1 - counts[i] / total, mostly))
        heads = ("class", "rows", "share that is wrong", "mostly taken for")
        section.tables.append(Table(f"groups-classes{number or ''}", f"{of}By class", heads, rows))
    section.sentences += [*([f"{of}{found.told.set_aside:,} rows could not be read."] if found.told.set_aside else [])]
    section.sentences += [of + note + "." for note in found.notes]
    section.numbers[path] = {"rows": found.told.rows, "metrics": metrics, "groups": found.groups}
