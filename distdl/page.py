"""One HTML page that needs nothing else: no script, no network, pictures within it.

What comes from elsewhere is escaped by who puts it in, and the page forbids the browser whatever it does not hold
itself: a link may be followed, nothing is loaded.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em;
  padding: 0 1em; color: #222; background: #fff }
h1 { font-size: 1.5em; overflow-wrap: anywhere } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse } th, td { text-align: left; padding: .2em .9em .2em 0; border-bottom: 1px solid #ddd }
td.n { text-align: right; font-variant-numeric: tabular-nums }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2em 0; font-size: .85em }
.name { color: #777; font-size: .85em }
svg { vertical-align: middle } rect { fill: #4878a8 }
"""


def document(title: str, parts: Sequence[str], style: str = "") -> str:
    """A page of parts that are HTML already; `style`: rules beside those of every page."""
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells that are HTML already."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{''.join(row)}</tr>" for row in rows) + "</table>"


def cell(text: object) -> str:
    return f"<td>{escape(str(text))}</td>"


def number_cell(text: object) -> str:
    return f'<td class="n">{escape(str(text))}</td>'


def data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
