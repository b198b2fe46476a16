"""The section about how much of the limits is reached, over devices."""

from __future__ import annotations

from collections.abc import Sequence

from parhelion.tuning.report.data import Score
from parhelion.tuning.report.html import Content, Markup, code, element, percent, table
from parhelion.tuning.report.portability import DECODE_TOKENS, METHOD, PROVIDERS, SIZES


def portability_section(scores: Sequence[Score]) -> Markup:
    """With one device its fractions of the floor; with several, Pennycook's score and the fractions behind it."""
    devices = list(dict.fromkeys(each.device for score in scores for each in score.fractions))
    heading = "Performance portability" if len(devices) > 1 else "Fraction of the floor"
    parts: list[Content] = [element("h2", {"id": "portability"}, heading), *_explanation(devices)]
    if scores:
        parts += [_table(f"On {device}", _of_device(scores, device)) for device in devices]
    if len(devices) > 1:
        parts.insert(3, _table("PP over the devices", [score for score in scores if score.score is not None]))
    return element("section", {"aria-labelledby": "portability"}, *parts)


def _explanation(devices: Sequence[str]) -> list[Markup]:
    if not devices:
        return [element("p", {}, "Nothing was measured beside a floor.")]
    fraction = (
        "The fraction of the floor is the sum of floors over the sum of times, each pair of contract and M counted "
        f"once. Decode is M up to {DECODE_TOKENS}, prefill what is larger; “helion” is its kernels alone, “serving” "
        "whichever provider serves."
    )
    if len(devices) == 1:
        method = (
            f"Measurements come from one device, {devices[0]}. That says nothing about portability, so no score is "
            f"given; with two or more it would be PP, the harmonic mean of these fractions over the devices ({METHOD})."
        )
    else:
        method = (
            f"PP is the harmonic mean of these fractions over the devices that have measurements, {len(devices)} here, "
            f"and 0 if one of them cannot run the op ({METHOD}). Only pairs that all of the devices have count; "
            "“pairs” is how many those are, for helion and for serving if they differ, and on how many devices. Ops "
            "that were measured on one device have no PP and stand with their device only."
        )
    return [element("p", {}, fraction), element("p", {}, method)]


def _of_device(scores: Sequence[Score], device: str) -> list[Score]:
    """The scores as that of one device."""
    return [
        Score(score.op, score.provider, score.sizes, score.problems, score.measured, (each,), each.of_floor)
        for score in scores
        for each in score.fractions
        if each.device == device
    ]


def _table(caption: str, scores: Sequence[Score]) -> Markup:
    by_key = {(score.op, score.provider, score.sizes): score for score in scores}
    columns = [(provider, sizes) for sizes in SIZES for provider in PROVIDERS]
    rows = []
    for op in dict.fromkeys(score.op for score in scores):
        cells = [_cell(by_key.get((op, provider, sizes))) for provider, sizes in columns]
        whole = [score for score in scores if (score.op, score.sizes) == (op, "all")]
        name = code(op) if op else element("strong", {}, "all ops")
        rows.append([name, *cells, _pairs(whole)])
    headings = ["op", *(f"{sizes}, {provider}" for provider, sizes in columns), "pairs"]
    return element("div", {"class": "cost"}, table(caption, headings, rows))


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    return "not supported" if score.score is None else percent(score.score)


def _pairs(scores: Sequence[Score]) -> str:
    """How many pairs count, for Helion and for who serves if these differ, of all measured; on how many devices."""
    counts = " and ".join(dict.fromkeys(str(score.problems) for score in scores))
    devices = max((len(score.fractions) for score in scores), default=0)
    where = f", on {devices}" if devices > 1 else ""
    return f"{counts} of {max(score.measured for score in scores)}{where}" if scores else "-"
