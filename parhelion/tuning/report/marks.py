"""How providers are told apart: a colour and a shape each, the same on the whole page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from parhelion.tuning.report.html import Markup, element

KNOWN = ("helion", "torch", "inductor", "reference", "vllm", "flashinfer", "cutlass", "deep_gemm", "flash_attn")
"""Each has the mark of its place. Others get those that are left over, in alphabetical order."""

SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "M-3.5 -3.5H3.5V3.5H-3.5Z",
    "M0 -4.6L4.4 3.4H-4.4Z",
    "M0 -4.8L4.8 0L0 4.8L-4.8 0Z",
    "M0 4.6L4.4 -3.4H-4.4Z",
    "M-1.5 -4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",
    "M-4.5 -2.2L-2.2 -4.5L0 -2.2L2.2 -4.5L4.5 -2.2L2.2 0L4.5 2.2L2.2 4.5L0 2.2L-2.2 4.5L-4.5 2.2L-2.2 0Z",
    "M-4.6 0L-2.3 -4H2.3L4.6 0L2.3 4H-2.3Z",
    "M0 -5L1.3 -1.3L5 0L1.3 1.3L0 5L-1.3 1.3L-5 0L-1.3 -1.3Z",
)

LIGHT = ("#c8500a", "#0063b1", "#00806a", "#6b7280", "#b0478e", "#8a6a00", "#5b3fc4", "#1f2933", "#7a3b12")
DARK = ("#ff9a52", "#5fb3f2", "#35cfa8", "#9aa3af", "#ee9bd0", "#e3c037", "#b3a4ff", "#eef1f4", "#d0a27c")
"""After Okabe and Ito's palette for the colour-blind, at least 3:1 beside the page; shapes tell apart what is close."""


@dataclass(frozen=True)
class Mark:
    """A place in ``SHAPES``, ``LIGHT`` and ``DARK``."""

    place: int

    @property
    def css(self) -> str:
        """The class that colours it."""
        return f"s{self.place}"

    def shape(self, x: float, y: float) -> Markup:
        """The shape, at a point of an SVG."""
        attributes = {"class": f"mark {self.css}", "d": SHAPES[self.place], "transform": f"translate({x:.1f} {y:.1f})"}
        return element("path", attributes)

    def icon(self) -> Markup:
        """The shape as a picture in a line of text; the text beside it says what it is."""
        return element("svg", {"class": "icon", "viewBox": "-6 -6 12 12", "aria-hidden": "true"}, self.shape(0, 0))


def marks_for(providers: Iterable[str]) -> dict[str, Mark]:
    """A mark for each provider, in the order of places. With more than there are places, marks repeat."""
    present = set(providers)
    places = {name: place for place, name in enumerate(KNOWN) if name in present}
    free = [place for place in range(len(KNOWN)) if place not in places.values()] or list(range(len(KNOWN)))
    others = {name: free[-1 - number % len(free)] for number, name in enumerate(sorted(present - set(KNOWN)))}
    ordered = sorted((places | others).items(), key=lambda item: (item[1], item[0]))
    return {name: Mark(place) for name, place in ordered}


def colour_rules(colours: Iterable[str]) -> str:
    """CSS variables, a colour for each place."""
    return "".join(f"--s{place}:{colour};" for place, colour in enumerate(colours))
