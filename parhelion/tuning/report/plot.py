"""Time against M as inline SVG, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from parhelion.tuning.report.data import Figure, Point
from parhelion.tuning.report.html import Markup, element, join, number, percent
from parhelion.tuning.report.marks import Mark

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 448, 24, 258
INSET = 14
"""Between the outermost points and the frame."""

LABEL_GAP = 32
"""Between the middles of neighbouring labels of the M axis."""


@dataclass(frozen=True)
class LogScale:
    """Maps ``low`` to ``start`` and ``high`` to ``end``, logarithmically."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def plot(figure: Figure, marks: Mapping[str, Mark]) -> Markup:
    """The times of a figure, with the floor below them: markers are measurements, lines only join them.

    A line is dashed where it passes a size that its provider was not measured at but others were.
    """
    x = _x_scale([size.num_tokens for size in figure.sizes])
    low, high = _limits(figure)
    y = LogScale(low, high, BOTTOM, TOP)
    drawn = [_floor(figure, x, y), _y_axis(y), _x_axis([size.num_tokens for size in figure.sizes], x)]
    # In reverse, so that Helion's lie on top.
    for provider, mark in reversed(list(marks.items())):
        points = [point for point in figure.points if point.provider == provider]
        drawn.append(_lines(points, figure, mark, x, y))
        drawn += [_point(point, figure, mark, x, y) for point in points]
    label = f"Time against M for {figure.contract} on {figure.device}; the figures are in the table beside it"
    return element("svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": label}, *drawn)


def _x_scale(sizes: Sequence[int]) -> LogScale:
    low, high = sizes[0], sizes[-1]
    # A single size stands in the middle.
    return LogScale(low, high, LEFT + INSET, RIGHT - INSET) if low < high else LogScale(low / 2, low * 2.0, LEFT, RIGHT)


def _limits(figure: Figure) -> tuple[float, float]:
    """The axis of times, from and to a 1, 2 or 5 of a decade, with the floor within."""
    values = [value for point in figure.points for value in (point.time_us, *_spread(point))]
    values += [size.floor_us for size in figure.sizes if size.floor_us > 0]
    steps = list(_steps(min(values) / 10, max(values) * 10))
    # Half a percent of room, so that a point on a step is not cut in half.
    low = max(step for step in steps if step <= min(values) * 0.995)
    high = min(step for step in steps if step >= max(values) * 1.005)
    return low, high


def _steps(low: float, high: float) -> Iterator[float]:
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for digit in (1, 2, 5):
            yield float(f"{digit}e{power}")


def _spread(point: Point) -> tuple[float, ...]:
    """Both ends of it, if it is there."""
    ends = (point.time_us_p10, point.time_us_p90)
    return ends if all(math.isfinite(end) and end > 0 for end in ends) else ()


def _y_axis(y: LogScale) -> Markup:
    steps = [step for step in _steps(y.low, y.high) if y.low <= step <= y.high]
    decades = [step for step in steps if f"{step:e}".startswith("1.0")]
    ticks = decades if len(decades) > 2 else steps
    drawn = [element("text", {"x": "4", "y": "12"}, "µs")]
    for tick in ticks:
        at = y(tick)
        drawn.append(element("line", {"class": "grid", **_ends(LEFT, at, RIGHT, at)}))
        drawn.append(_text(LEFT - 6, at + 4, "end", f"{tick:.10f}".rstrip("0").rstrip(".")))
    return join(drawn)


def _x_axis(sizes: Sequence[int], x: LogScale) -> Markup:
    drawn = [element("line", {"class": "axis", **_ends(LEFT, BOTTOM, RIGHT, BOTTOM)})]
    last = x(sizes[-1])
    labelled = -math.inf
    for size in sizes:
        at = x(size)
        drawn.append(element("line", {"class": "axis", **_ends(at, BOTTOM, at, BOTTOM + 4)}))
        if at - labelled >= LABEL_GAP and (size == sizes[-1] or last - at >= LABEL_GAP):
            drawn.append(_text(at, BOTTOM + 18, "middle", str(size)))
            labelled = at
    drawn.append(_text((LEFT + RIGHT) / 2, HEIGHT - 6, "middle", "M (tokens)"))
    return join(drawn)


def _floor(figure: Figure, x: LogScale, y: LogScale) -> Markup:
    """The line that nothing can be below, and the area under it."""
    known = [(x(size.num_tokens), y(size.floor_us)) for size in figure.sizes if size.floor_us > 0]
    if not known:
        return Markup()
    if len(known) == 1:
        known = [(known[0][0] - INSET, known[0][1]), (known[0][0] + INSET, known[0][1])]
    line = " ".join(f"{at:.1f},{height:.1f}" for at, height in known)
    area = f"{known[0][0]:.1f},{BOTTOM} {line} {known[-1][0]:.1f},{BOTTOM}"
    return join(
        [
            element("polygon", {"class": "floor-area", "points": area}),
            element("polyline", {"class": "floor", "points": line}),
        ]
    )


def _lines(points: Sequence[Point], figure: Figure, mark: Mark, x: LogScale, y: LogScale) -> Markup:
    drawn = []
    for left, right in pairwise(points):
        passes = any(left.num_tokens < size.num_tokens < right.num_tokens for size in figure.sizes)
        ends = _ends(x(left.num_tokens), y(left.time_us), x(right.num_tokens), y(right.time_us))
        drawn.append(element("line", {"class": f"series {mark.css}{' passes' if passes else ''}", **ends}))
    return join(drawn)


def _point(point: Point, figure: Figure, mark: Mark, x: LogScale, y: LogScale) -> Markup:
    at, height = x(point.num_tokens), y(point.time_us)
    drawn = [element("title", {}, _title(point, figure))]
    if ends := _spread(point):
        drawn.append(element("line", {"class": f"spread {mark.css}", **_ends(at, y(ends[0]), at, y(ends[1]))}))
    # Larger than the marker, so that it is easy to point at.
    drawn.append(element("circle", {"class": "target", "cx": f"{at:.1f}", "cy": f"{height:.1f}", "r": "9"}))
    return element("g", {}, *drawn, mark.shape(at, height))


def _title(point: Point, figure: Figure) -> str:
    text = f"{point.provider}, M = {point.num_tokens}: {number(point.time_us)} µs"
    if ends := _spread(point):
        text += f" (10th to 90th percentile: {number(ends[0])} to {number(ends[1])} µs)"
    floor_us = next(size.floor_us for size in figure.sizes if size.num_tokens == point.num_tokens)
    return text + (f"; {percent(floor_us / point.time_us)} of the floor, {number(floor_us)} µs" if floor_us else "")


def _ends(x1: float, y1: float, x2: float, y2: float) -> dict[str, str]:
    return {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}


def _text(x: float, y: float, anchor: str, text: str) -> Markup:
    return element("text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}, text)
