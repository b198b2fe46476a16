"""The report as one page of HTML that needs nothing else: no network, no scripts, plots as inline SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from parhelion.tuning.report.costs import costs_section
from parhelion.tuning.report.data import Report, Source
from parhelion.tuning.report.html import Content, Markup, code, element
from parhelion.tuning.report.portability_section import portability_section
from parhelion.tuning.report.style import style_sheet
from parhelion.tuning.report.support import matrix_section
from parhelion.tuning.report.times import index, times_section

TITLE = "Parhelion report"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A browser loads nothing for this page, whatever stands in it."""


def report_page(report: Report) -> str:
    """The whole page. Equal reports give equal pages."""
    head = element(
        "head",
        {},
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("title", {}, f"{TITLE}: {', '.join(_devices(report.sources)) or 'no device'}"),
        # An empty one, for which a browser asks no server.
        element("link", {"rel": "icon", "href": "data:,"}),
        element("style", {}, Markup(style_sheet())),
    )
    body = element("body", {}, element("header", {}, *_header(report)), element("main", {}, *_sections(report)))
    return "<!DOCTYPE html>\n" + element("html", {"lang": "en"}, head, body) + "\n"


def _header(report: Report) -> Iterator[Markup]:
    yield element("h1", {}, TITLE)
    yield element("p", {"class": "soft"}, ", ".join(_devices(report.sources)) or "Nothing was measured.")
    if report.sources:
        yield element("div", {"class": "sources"}, *map(_source, report.sources))
    if report.skipped:
        yield element("p", {"class": "soft"}, f"Read, but not shown: {'; '.join(report.skipped)}.")
    yield index(report)


def _sections(report: Report) -> Iterator[Markup]:
    yield times_section(report)
    yield costs_section(report.costs)
    yield matrix_section(report.matrix)
    yield portability_section(report.scores)


def _source(source: Source) -> Markup:
    target = f" ({source.target})" if source.target else ""
    versions = ", ".join(f"{name} {version}" for name, version in source.versions.items())
    facts: list[tuple[str, Content]] = [
        ("device", source.device + target),
        ("made at", _moment(source.created_at)),
        ("made by", code(source.command)),
        ("versions", versions or "not said"),
        ("notes", "; ".join(source.notes)),
    ]
    terms = [element("div", {}, element("dt", {}, name), element("dd", {}, value)) for name, value in facts if value]
    return element("article", {}, element("h2", {}, f"{source.kind} {source.name}"), element("dl", {}, *terms))


def _moment(text: str) -> str:
    """ISO 8601 as people write it; anything else as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if moment.tzinfo else text


def _devices(sources: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(source.device for source in sources))
