"""Which pack is for this device, and how far it can be believed here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from parhelion.packs.format import Fingerprint
from parhelion.packs.store import StoredPack

Level = Literal["exact", "same_target", "none"]

_UNKNOWN_APART = 1.0
"""How far apart two figures count as if one was not measured: as much as a factor of e."""


@dataclass(frozen=True)
class Match:
    """What a pack is worth on a device.

    Attributes:
        level: ``exact``: measured on such a device. ``same_target``: its binaries run, and its times and choices are
            another device's or nobody's. ``none``: nothing of it can be used.
        reason: a sentence for the user.
    """

    level: Level
    reason: str


@dataclass(frozen=True)
class Chosen:
    """The pack that was picked, and how it matches."""

    stored: StoredPack
    match: Match


def match(pack: Fingerprint, here: Fingerprint) -> Match:
    """How a pack made for one kind of device matches the device here."""
    if (pack.vendor, pack.target) != (here.vendor, here.target):
        return Match(
            "none",
            f"its binaries are for {pack.vendor} {pack.target} ({pack.device}), and this is {here.vendor} "
            f"{here.target} ({here.device})",
        )
    if not pack.device:
        return Match(
            "same_target",
            f"it was built for {pack.target} and measured on no device: its binaries run here, its choices are guesses",
        )
    if pack.device != here.device:
        return Match(
            "same_target",
            f"it was measured on {pack.device}, and this is {here.device}, which has {_difference(pack, here)}: its "
            f"binaries for {pack.target} run here, its times and choices are the other device's",
        )
    # A part of a GPU may go by the name of the whole.
    if pack.num_processors and here.num_processors and pack.num_processors != here.num_processors:
        return Match(
            "same_target",
            f"it was measured on {pack.device} with {pack.num_processors} processors, and this one has "
            f"{here.num_processors}: its binaries run here, its times and choices are for the other number",
        )
    return Match("exact", f"it was measured on {pack.device}, as this is")


def choose(packs: Iterable[StoredPack], here: Fingerprint) -> list[Chosen]:
    """The packs that can be used on a device, the best first.

    One that was measured on such a device comes before those that are for the same target, of which the nearest is
    first, by number of processors and bandwidth. Equals stay in order: ``find_packs`` lists the user's own before those
    that were shipped, both by name.
    """
    matches = [Chosen(stored, match(stored.pack.fingerprint, here)) for stored in packs]
    usable = [chosen for chosen in matches if chosen.match.level != "none"]
    return sorted(usable, key=lambda chosen: _rank(chosen, here))


def _rank(chosen: Chosen, here: Fingerprint) -> tuple[bool, float]:
    exact = chosen.match.level == "exact"
    # Measured twice, the bandwidth of one kind of device is not twice the same, and says nothing.
    return not exact, 0.0 if exact else _distance(chosen.stored.pack.fingerprint, here)


def _distance(a: Fingerprint, b: Fingerprint) -> float:
    return _apart(a.num_processors, b.num_processors) + _apart(a.bandwidth, b.bandwidth)


def _apart(a: float, b: float) -> float:
    return abs(math.log(a / b)) if a > 0 and b > 0 else _UNKNOWN_APART


def _difference(pack: Fingerprint, here: Fingerprint) -> str:
    processors = f"{here.num_processors} processors instead of {pack.num_processors}"
    if here.num_processors == pack.num_processors:
        processors = f"{here.num_processors} processors too"
    if not (pack.bandwidth > 0 and here.bandwidth > 0):
        return processors
    return f"{processors} and {here.bandwidth / pack.bandwidth:.2f} times the bandwidth"
