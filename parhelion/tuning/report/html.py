"""HTML out of values: every string is escaped unless it was made here."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence

VOID = frozenset({"meta", "link", "circle", "line", "path", "polyline", "polygon"})
"""Elements without content; those of SVG must be closed with a slash, and the others may be."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Markup
Attributes = Mapping[str, str]


def element(tag: str, attributes: Attributes, *content: Content) -> Markup:
    """``<tag attributes>content</tag>`` with values and plain strings escaped."""
    opening = tag + "".join(f' {name}="{html.escape(value)}"' for name, value in attributes.items())
    if tag in VOID:
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{join(content)}</{tag}>")


def join(content: Iterable[Content]) -> Markup:
    """Contents one after another."""
    return Markup("".join(each if isinstance(each, Markup) else html.escape(each) for each in content))


def code(text: str) -> Markup:
    """Something that a machine reads. Lines may break within it, so that it fits a narrow screen."""
    breakable = re.sub("([_(/])", r"\1<wbr/>", html.escape(text))
    return Markup(f"<code>{breakable}</code>")


def table(caption: str, headings: Sequence[Content], rows: Iterable[Sequence[Content]]) -> Markup:
    """A table whose first column heads its rows. It scrolls by itself where the screen is narrower."""
    head = join(element("th", {"scope": "col"}, heading) for heading in headings)
    body = [
        element("tr", {}, element("th", {"scope": "row"}, cells[0]), *(element("td", {}, cell) for cell in cells[1:]))
        for cells in rows
    ]
    whole = element(
        "table",
        {},
        element("caption", {}, caption),
        element("thead", {}, element("tr", {}, head)),
        element("tbody", {}, *body),
    )
    # Focusable, so that a keyboard can scroll it.
    return element("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": caption}, whole)


def identifier(text: str) -> str:
    """A name as an anchor: letters, digits and hyphens."""
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in text)


def number(value: float) -> str:
    """Three digits, without an exponent: ``0.00407``, ``2.00``, ``1234``; 0 and less as they are rounded."""
    if value <= 0 or value >= 99.95:
        return f"{value:.0f}"
    decimals = 2 - math.floor(math.log10(float(f"{value:.2e}")))
    return f"{value:.{decimals}f}"


def percent(value: float) -> str:
    """``0.07%``, ``4.2%``, ``83%``."""
    return f"{value * 100:.0f}%" if value >= 0.1 else f"{value * 100:.2g}%"


def seconds(value: float) -> str:
    """``41 s``, ``12 min 5 s``, ``3 h 20 min``; ``-`` if it is 0, which packs write for what was not measured."""
    if value <= 0:
        return "-"
    if value < 60:
        return f"{number(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size_of(num_bytes: int) -> str:
    """``512 B``, ``1.5 KiB``, ``24.0 MiB``."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
