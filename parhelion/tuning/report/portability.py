"""How much of the limits of several devices one set of kernels reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from parhelion.tuning.report.data import Figure, Fraction, Score

METHOD = 'S. J. Pennycook, J. D. Sewell, V. W. Lee, "A Metric for Performance Portability", 2016'
DECODE_TOKENS = 256
"""Steps of up to so many tokens are called decode here, larger ones prefill."""

SIZES: Mapping[str, Callable[[int], bool]] = {
    "decode": lambda num_tokens: num_tokens <= DECODE_TOKENS,
    "prefill": lambda num_tokens: num_tokens > DECODE_TOKENS,
    "all": lambda num_tokens: True,
}
PROVIDERS = ("helion", "serving")

Problem = tuple[str, int]
"""A contract and M."""


@dataclass(frozen=True)
class _Measured:
    """One problem on one device, in microseconds: its floor, Helion's time and that of whoever serves."""

    op: str
    floor_us: float
    times: Mapping[str, float]


Devices = Mapping[str, Mapping[Problem, _Measured]]


def scores(figures: Iterable[Figure]) -> tuple[Score, ...]:
    """The scores of every op, provider and class of sizes, then of all ops together.

    The efficiency of a device is the sum of floors over the sum of times, of the problems (contract and M) that all
    compared devices have. The score is Pennycook's PP: with efficiencies ``e_i`` on the devices of a set ``H``, the
    harmonic mean ``|H| / sum(1 / e_i)``, and 0 if one of them cannot run it. One device has an efficiency and no
    score. ``H`` is the devices that have measurements of the op; one without any says nothing about support. All ops
    together are not supported where one of them is not. Of several sources of a device the first counts.

    Source of the method: ``METHOD``.
    """
    devices = _by_device(figures)
    ops = sorted({measured.op for found in devices.values() for measured in found.values()})
    result: list[Score] = []
    overall: list[Score] = []
    for sizes in SIZES:
        for provider in PROVIDERS:
            parts = [_score(_only(devices, sizes, op), op, provider, sizes, frozenset()) for op in ops]
            known = [part for part in parts if part is not None]
            lacking = frozenset(each.device for part in known for each in part.fractions if each.of_floor is None)
            together = _score(_only(devices, sizes, None), "", provider, sizes, lacking)
            result += known
            overall += [together] if together is not None else []
    return tuple(sorted(result, key=lambda score: score.op)) + tuple(overall)


def harmonic_mean(values: Sequence[float]) -> float:
    """``n / sum(1 / value)``."""
    return len(values) / sum(1 / value for value in values)


def _score(devices: Devices, op: str, provider: str, sizes: str, lacking: frozenset[str]) -> Score | None:
    """One score; None if nothing was measured. ``lacking`` names devices that cannot run all of it."""
    able = {
        device: {problem for problem, measured in found.items() if provider in measured.times}
        for device, found in devices.items()
        if device not in lacking
    }
    runs = {device: problems for device, problems in able.items() if problems}
    common = set.intersection(*runs.values()) if runs else set()
    fractions = tuple(
        Fraction(device, _efficiency(found, common, provider) if device in runs and common else None)
        for device, found in devices.items()
    )
    if not fractions or (runs and not common):
        return None
    measured = len({problem for found in devices.values() for problem in found})
    return Score(op, provider, sizes, len(common), measured, fractions, _pp(fractions))


def _pp(fractions: Sequence[Fraction]) -> float | None:
    if len(fractions) < 2:
        return None
    values = [each.of_floor for each in fractions if each.of_floor is not None]
    return harmonic_mean(values) if len(values) == len(fractions) else 0.0


def _efficiency(found: Mapping[Problem, _Measured], problems: set[Problem], provider: str) -> float:
    floors = sum(found[problem].floor_us for problem in problems)
    return floors / sum(found[problem].times[provider] for problem in problems)


def _by_device(figures: Iterable[Figure]) -> Devices:
    devices: dict[str, dict[Problem, _Measured]] = {}
    for figure in figures:
        found = devices.setdefault(figure.device, {})
        times = {(point.provider, point.num_tokens): point.time_us for point in figure.points}
        for size in figure.sizes:
            pairs = (("helion", "helion"), ("serving", size.serves))
            own = {name: times[who, size.num_tokens] for name, who in pairs if (who, size.num_tokens) in times}
            if size.floor_us > 0:
                found.setdefault((figure.contract, size.num_tokens), _Measured(figure.op, size.floor_us, own))
    return devices


def _only(devices: Devices, sizes: str, op: str | None) -> Devices:
    """What is of these sizes and this op, on the devices that have any of it."""
    kept = {
        device: {
            problem: measured
            for problem, measured in found.items()
            if SIZES[sizes](problem[1]) and op in (None, measured.op)
        }
        for device, found in devices.items()
    }
    return {device: found for device, found in kept.items() if found}
