"""Figures out of measured times: one for each contract of a source."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from parhelion.packs.format import NEVER_SERVE
from parhelion.tuning.report.data import Figure, Point, Size, Source


@dataclass(frozen=True)
class Sample:
    """A measured time of a contract; ``serves`` names the provider that the source chose for this M, if it chose."""

    contract: str
    floor_us: float
    point: Point
    serves: str = ""


def figures_of(source: Source, samples: Iterable[Sample]) -> tuple[Figure, ...]:
    """The samples by contract, in their order. Of a provider's configs at one M only the fastest is kept."""
    by_contract: dict[str, list[Sample]] = {}
    for sample in samples:
        by_contract.setdefault(sample.contract, []).append(sample)
    return tuple(_figure(source, contract, members) for contract, members in by_contract.items())


def is_measured(num_tokens: int, time_us: float) -> bool:
    """Whether this is a time at all; formats write 0 for what was not measured."""
    return num_tokens > 0 and math.isfinite(time_us) and time_us > 0


def op_of(contract: str) -> str:
    """``rms_norm`` of ``rms_norm(hidden_size=4096)``."""
    return contract.partition("(")[0]


def dimensions_of(contract: str) -> str:
    """``hidden_size=4096`` of ``rms_norm(hidden_size=4096)``."""
    return contract.removeprefix(f"{op_of(contract)}(").removesuffix(")")


def _figure(source: Source, contract: str, samples: list[Sample]) -> Figure:
    fastest: dict[tuple[str, int], Point] = {}
    for sample in samples:
        key = (sample.point.provider, sample.point.num_tokens)
        if key not in fastest or sample.point.time_us < fastest[key].time_us:
            fastest[key] = sample.point
    points = tuple(fastest[key] for key in sorted(fastest))
    sizes = tuple(_size(num_tokens, samples, points) for num_tokens in sorted({each.num_tokens for each in points}))
    return Figure(source.name, source.device, op_of(contract), contract, sizes, points)


def _size(num_tokens: int, samples: list[Sample], points: tuple[Point, ...]) -> Size:
    here = [sample for sample in samples if sample.point.num_tokens == num_tokens]
    floor_us = max(sample.floor_us for sample in here)
    chosen = next((sample.serves for sample in here if sample.serves), "")
    able = [point for point in points if point.num_tokens == num_tokens and point.provider not in NEVER_SERVE]
    fastest = min(able, key=lambda point: point.time_us).provider if able else ""
    return Size(num_tokens, floor_us if math.isfinite(floor_us) and floor_us > 0 else 0.0, chosen or fastest)
