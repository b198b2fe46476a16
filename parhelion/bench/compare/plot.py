"""Time per output token against batch size, a panel a model, as an SVG file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from parhelion.bench.compare.results import Comparison, Row
from parhelion.bench.report import format_figure
from parhelion.tuning.report.html import Markup, element, join
from parhelion.tuning.report.marks import DARK, LIGHT, Mark
from parhelion.tuning.report.plot import LogScale

PANEL_WIDTH, HEIGHT = 420, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 404, 52, 268
INSET = 16

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1b1f24 } .title { font-weight: 600 }
.page { fill: #fff } .grid { stroke: #d8dee4 } .axis { stroke: #57606a }
.floor { fill: none; stroke: #57606a; stroke-dasharray: 4 3 } .floor-area { fill: #57606a; opacity: .12 }
.series { fill: none; stroke-width: 1.6 } .spread { stroke-width: 1.2 }
"""
_STYLE_DARK = """
text { fill: #e6e9ec } .page { fill: #14171a } .grid { stroke: #343a41 } .axis, .floor { stroke: #a3acb5 }
.floor-area { fill: #a3acb5 }
"""


def write_plot(comparison: Comparison, path: Path) -> None:
    """Write the plot; a comparison without offline rows gives an empty one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(plot(comparison))


def plot(comparison: Comparison) -> str:
    """The whole file."""
    models = list(dict.fromkeys(row.model for row in comparison.rows))
    engines = list(dict.fromkeys(name for row in comparison.rows for name in row.tpot_ms))
    marks = {name: Mark(number % len(LIGHT)) for number, name in enumerate(engines)}
    width = PANEL_WIDTH * max(1, len(models))
    panels = [
        element(
            "g",
            {"transform": f"translate({PANEL_WIDTH * number} 0)"},
            _panel(model, [row for row in comparison.rows if row.model == model], marks),
        )
        for number, model in enumerate(models)
    ]
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {width} {HEIGHT}",
        "width": str(width),
        "height": str(HEIGHT),
        "role": "img",
        "aria-label": f"Time per output token against batch size on {comparison.device}, with the floor",
    }
    page = element("rect", {"class": "page", "width": str(width), "height": str(HEIGHT)})
    return str(element("svg", attributes, Markup(f"<style>{_styles(len(engines))}</style>"), page, *panels)) + "\n"


def _styles(count: int) -> str:
    dark = _STYLE_DARK + _colours(DARK, count)
    return f"{_STYLE}{_colours(LIGHT, count)}@media (prefers-color-scheme: dark) {{{dark}}}\n"


def _colours(colours: Sequence[str], count: int) -> str:
    rules = (
        f".series.s{n}, .spread.s{n} {{ stroke: {colour} }} .mark.s{n} {{ fill: {colour} }}\n"
        for n, colour in enumerate(colours[:count])
    )
    return "".join(rules)


def _panel(model: str, unordered: Sequence[Row], marks: Mapping[str, Mark]) -> Markup:
    rows = sorted((row for row in unordered if row.tpot_ms), key=lambda row: row.batch)
    if not rows:
        return Markup()
    x, y = _scales(rows)
    series = [_series(rows, name, mark, x, y) for name, mark in marks.items()]
    title = element("text", {"class": "title", "x": str(LEFT), "y": "18"}, f"{model}: ms per output token")
    return join([title, _legend(marks), _floor(rows, x, y), _axes(rows, x, y), *series])


def _scales(rows: Sequence[Row]) -> tuple[LogScale, LogScale]:
    """Batches across, a single one in the middle; milliseconds upwards with a little room around them."""
    low, high = float(rows[0].batch), float(rows[-1].batch)
    if low == high:
        low, high = low / 2, high * 2
    values = [value for row in rows for ends in row.tpot_ms_range.values() for value in ends if value > 0]
    values += [row.floor_ms for row in rows if row.floor_ms]
    least, most = (min(values), max(values)) if values else (1.0, 1.0)
    return LogScale(low, high, LEFT + INSET, RIGHT - INSET), LogScale(least / 1.25, most * 1.25, BOTTOM, TOP)


def _axes(rows: Sequence[Row], x: LogScale, y: LogScale) -> Markup:
    drawn = []
    for tick in _ticks(y.low, y.high):
        at = y(tick)
        drawn.append(_line("grid", LEFT, at, RIGHT, at))
        drawn.append(_text(LEFT - 6, at + 4, "end", f"{tick:g}"))
    drawn.append(_line("axis", LEFT, BOTTOM, RIGHT, BOTTOM))
    for row in rows:
        drawn.append(_line("axis", x(row.batch), BOTTOM, x(row.batch), BOTTOM + 4))
        drawn.append(_text(x(row.batch), BOTTOM + 18, "middle", str(row.batch)))
    drawn.append(_text((LEFT + RIGHT) / 2, HEIGHT - 10, "middle", "batch (sequences)"))
    return join(drawn)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade within."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for digit in (1, 2, 5) if low <= (tick := float(f"{digit}e{power}")) <= high]


def _floor(rows: Sequence[Row], x: LogScale, y: LogScale) -> Markup:
    """What no engine can be below, and the area under it."""
    points = [(x(row.batch), y(row.floor_ms)) for row in rows if row.floor_ms]
    if not points:
        return Markup()
    if len(points) == 1:
        at, height = points[0]
        points = [(at - INSET, height), (at + INSET, height)]
    line = " ".join(f"{at:.1f},{height:.1f}" for at, height in points)
    area = f"{points[0][0]:.1f},{BOTTOM} {line} {points[-1][0]:.1f},{BOTTOM}"
    return join(
        [
            element("polygon", {"class": "floor-area", "points": area}),
            element("polyline", {"class": "floor", "points": line}),
            _text(points[0][0] + 4, min(points[0][1] + 16, BOTTOM - 2), "start", "floor"),
        ]
    )


def _series(rows: Sequence[Row], name: str, mark: Mark, x: LogScale, y: LogScale) -> Markup:
    """An engine's medians, joined, with the range of the rounds; a time that is not above 0 cannot be drawn."""
    shown = [row for row in rows if row.tpot_ms.get(name, 0.0) > 0]
    line = " ".join(f"{x(row.batch):.1f},{y(row.tpot_ms[name]):.1f}" for row in shown)
    drawn = [element("polyline", {"class": f"series {mark.css}", "points": line})]
    for row in shown:
        at, (low, high) = x(row.batch), row.tpot_ms_range[name]
        title = element("title", {}, f"{name}, batch {row.batch}: {format_figure(row.tpot_ms[name])} ms")
        ends = [_line(f"spread {mark.css}", at, y(low), at, y(high))] if low > 0 else []
        drawn.append(element("g", {}, title, *ends, mark.shape(at, y(row.tpot_ms[name]))))
    return join(drawn)


def _legend(marks: Mapping[str, Mark]) -> Markup:
    drawn = []
    at = LEFT + 6.0
    for name, mark in marks.items():
        drawn += [mark.shape(at, 34), _text(at + 10, 38, "start", name)]
        at += 28 + 7 * len(name)
    return join(drawn)


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    return element("line", {"class": css, **ends})


def _text(x: float, y: float, anchor: str, text: str) -> Markup:
    return element("text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}, text)
