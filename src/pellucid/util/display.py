"""HTML tables and heat maps of values. The HTML has no scripts and loads no files; only a framed page has scripts.

All text from models and users is escaped. Larger values have more opaque colours over the page's own background, so
the colours work on light and dark pages.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

POSITIVE, NEGATIVE = "32,110,190", "200,80,40"
MAX_CELLS, MOST_PAGE = 20_000, 8_000_000
STYLE = "border-collapse:collapse;font:13px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums;margin:.4em 0"
CELL = "padding:1px 6px;text-align:{align};white-space:pre"


def visible(text: Any) -> str:
    """Text with visible control characters, and visible spaces at its ends."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    lead, trail = len(shown) - len(shown.lstrip(" ")), len(shown) - len(shown.rstrip(" "))
    inside = shown.strip(" ")
    return "·" * lead + inside + "·" * trail if inside else "·" * len(shown)


def escaped(text: Any) -> str:
    """Text as HTML, with visible control characters and spaces at its ends."""
    return html.escape(visible(text))


def shade(value: float, maximum: float) -> str:
    """CSS background for a value: blue above zero, red below zero, opaque if the magnitude is at least ``maximum``."""
    if not np.isfinite(value) or not maximum:
        return ""
    strength = min(abs(value) / maximum, 1.0)
    return f"background:rgba({POSITIVE if value >= 0 else NEGATIVE},{strength:.3f})"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """An HTML table. Numbers are aligned to the right. A cell may be a pair (text, style)."""
    head = "".join(f'<th scope="col" style="{CELL.format(align="left")}">{escaped(one)}</th>' for one in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    caption_html = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<table style="{STYLE}">{caption_html}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(value: Any) -> str:
    text, style = value if isinstance(value, tuple) else (value, "")
    align = "right" if isinstance(text, (int, float)) else "left"
    shown = f"{text:.4g}" if isinstance(text, float) else escaped(text)
    return f'<td style="{CELL.format(align=align)};{style}">{shown}</td>'


def heat(values: NDArray[Any], rows: Sequence[str], columns: Sequence[str], label: str) -> str:
    """A heat map of ``values`` (n, m) with names of rows and columns. The title of a cell is its value."""
    if values.size > MAX_CELLS:
        return f"<p>{html.escape(label)}: {values.shape[0]:,} x {values.shape[1]:,} values are too many to draw</p>"
    finite = np.abs(values[np.isfinite(values)])
    maximum = float(finite.max(initial=0.0))
    head = "".join(
        f'<th scope="col" style="writing-mode:vertical-rl;padding:2px 0">{escaped(one)}</th>' for one in columns
    )
    body = "".join(
        f'<tr><th scope="row" style="text-align:right;padding-right:6px">{escaped(name)}</th>'
        + "".join(
            f'<td title="{escaped(name)} → {escaped(column)}: {float(value):.4g}" '
            f'style="min-width:14px;height:14px;{shade(float(value), maximum)}"></td>'
            for column, value in zip(columns, row)
        )
        + "</tr>"
        for name, row in zip(rows, values)
    )
    return (
        f'<table style="{STYLE}" aria-label="{html.escape(label)}"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def bar(share: float) -> str:
    """CSS style of a cell that draws a bar for a share from 0 to 1."""
    width = 100 * min(max(share, 0.0), 1.0)
    return f"background:linear-gradient(90deg,rgba({POSITIVE},.35) {width:.1f}%,transparent {width:.1f}%)"


def section(title: str, about: str, *parts: str) -> str:
    """A section: a heading, a sentence about it, and its HTML parts."""
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(about)}</p>{''.join(parts)}</section>"


def framed(page: str, title: str, height: int = 720) -> str:
    """A whole HTML page inside a notebook. Its scripts run in a sandbox, without access to the notebook."""
    if len(page) > MOST_PAGE:
        size = f"{len(page) / 1e6:,.1f} MB; a notebook shows at most {MOST_PAGE / 1e6:,.0f} MB"
        return f"<p>{html.escape(title)}: its page has {size}: write html() to a file, or record fewer points</p>"
    return (
        f'<iframe title="{html.escape(title)}" sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(page)}" '
        f'style="width:100%;height:{height}px;border:0"></iframe>'
    )
