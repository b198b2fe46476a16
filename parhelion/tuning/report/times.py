"""The sections about times: a plot and a table for each contract and source, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from parhelion.tuning.report.data import Figure, Gap, Report
from parhelion.tuning.report.figures import dimensions_of
from parhelion.tuning.report.html import Content, Markup, code, element, identifier, join, number, percent, table
from parhelion.tuning.report.marks import Mark, marks_for
from parhelion.tuning.report.plot import plot

SECTIONS = (("times", "Times"), ("cost", "Cost"), ("matrix", "Compile matrix"), ("portability", "Portability"))


READING = (
    "Medians of one launch in microseconds; a plot's points have their 10th to 90th percentile as a bar. The floor is "
    "what the device's measured ceilings allow: bytes or FLOPs over the limit. Points are measurements and lines only "
    "join them, dotted past sizes at which a provider was not measured. In the tables the fastest is bold, “of floor” "
    "is the floor over the fastest time, and “serves” is the pack's choice or, of a benchmark, the fastest that "
    "compiles nothing while serving."
)


def index(report: Report) -> Markup:
    """Links to the sections and to every op."""
    sections = [_link(anchor, heading) for anchor, heading in SECTIONS]
    ops = [_link(_anchor(op), code(op)) for op in _ops(report.figures)]
    lists = [element("ul", {}, *links) for links in (sections, ops) if links]
    return element("nav", {"aria-label": "Contents"}, *lists)


def times_section(report: Report) -> Markup:
    """Every op with its contracts, then what was not measured."""
    marks = marks_for(point.provider for figure in report.figures for point in figure.points)
    parts: list[Content] = [element("h2", {"id": "times"}, "Times")]
    if not report.figures:
        parts.append(element("p", {}, "No times: pass --pack or --results."))
    else:
        parts.append(element("p", {}, READING))
    for op in _ops(report.figures):
        parts += _op(op, [figure for figure in report.figures if figure.op == op], marks)
    if report.gaps:
        parts.append(_not_measured(report.gaps))
    return element("section", {"aria-labelledby": "times"}, *parts)


def _op(op: str, figures: Sequence[Figure], marks: Mapping[str, Mark]) -> Iterator[Markup]:
    yield element("h3", {"id": _anchor(op)}, code(op))
    for contract in dict.fromkeys(figure.contract for figure in figures):
        yield element("h4", {}, code(dimensions_of(contract)))
        for figure in figures:
            if figure.contract == contract:
                yield _panel(figure, {name: marks[name] for name in marks if name in _providers(figure)})


def _panel(figure: Figure, marks: Mapping[str, Mark]) -> Markup:
    legend = [element("span", {}, mark.icon(), name) for name, mark in marks.items()]
    if any(size.floor_us for size in figure.sizes):
        line = element("line", {"class": "floor", "x1": "-6", "y1": "0", "x2": "6", "y2": "0"})
        icon = element("svg", {"class": "icon", "viewBox": "-6 -6 12 12", "aria-hidden": "true"}, line)
        legend.append(element("span", {}, icon, "floor"))
    drawing = element("figure", {}, element("figcaption", {}, *legend), plot(figure, marks))
    return element("div", {"class": "panel"}, drawing, _table(figure, marks))


def _table(figure: Figure, marks: Mapping[str, Mark]) -> Markup:
    times = {(point.provider, point.num_tokens): point.time_us for point in figure.points}
    rows = []
    for size in figure.sizes:
        here = {name: times[name, size.num_tokens] for name in marks if (name, size.num_tokens) in times}
        best = min(here.values())
        cells = [_time(here.get(name), best) for name in marks]
        floor = number(size.floor_us) if size.floor_us else "-"
        fraction = percent(size.floor_us / best) if size.floor_us else "-"
        rows.append([str(size.num_tokens), *cells, floor, fraction, size.serves or "-"])
    headings = ["M", *(join([mark.icon(), name]) for name, mark in marks.items()), "floor", "of floor", "serves"]
    return table(f"{figure.device}, µs, from {figure.source}", headings, rows)


def _time(time_us: float | None, best: float) -> Content:
    if time_us is None:
        return "-"
    return element("strong", {}, number(time_us)) if time_us == best else number(time_us)


def _not_measured(gaps: Iterable[Gap]) -> Markup:
    rows = [
        [code(gap.contract), ", ".join(map(str, gap.num_tokens)) or "every", gap.provider, gap.reason, gap.source]
        for gap in gaps
    ]
    caption = "What was asked for and not measured"
    whole = table(caption, ["contract", "M", "provider", "why", "source"], rows)
    return element(
        "details",
        {"class": "words"},
        element("summary", {}, f"Not measured: {len(rows)} {'case' if len(rows) == 1 else 'cases'}"),
        whole,
    )


def _providers(figure: Figure) -> set[str]:
    return {point.provider for point in figure.points}


def _ops(figures: Sequence[Figure]) -> list[str]:
    return sorted({figure.op for figure in figures})


def _anchor(op: str) -> str:
    return f"op-{identifier(op)}"


def _link(anchor: str, text: Content) -> Markup:
    return element("li", {}, element("a", {"href": f"#{anchor}"}, text))
