"""Which pack serves on a device, and what to say where none does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from parhelion.errors import PackError
from parhelion.ops.device_fingerprint import device_fingerprint
from parhelion.ops.pack_kernels import PackKernels
from parhelion.ops.preferences import preferred
from parhelion.ops.source_hash import source_hashes
from parhelion.packs.format import Fingerprint, Pack, Row
from parhelion.packs.location import find_packs, open_pack
from parhelion.packs.match import Chosen, choose, match
from parhelion.packs.store import StoredPack, read_pack

AUTO = "auto"
OFF = "off"


@dataclass(frozen=True)
class FoundPack:
    """Attributes:
    chosen: the pack and how it matches; None if there is none to use.
    notes: packs that cannot be used and what follows if there is none, a sentence each.
    """

    chosen: Chosen | None
    notes: tuple[str, ...] = ()
    others: tuple[Chosen, ...] = ()


def find_pack(name: str, here: Fingerprint) -> FoundPack:
    """The pack for a device.

    Args:
        name: ``auto`` for the best of all that are known, ``off`` for none, else a pack's name or path.
        here: the device.

    Raises:
        PackError: the named pack does not exist, is damaged, or is for another architecture.
    """
    if name == OFF:
        return FoundPack(None, ("packs are off: providers are chosen by a table, and tile programs are not tuned",))
    if name != AUTO:
        stored = open_pack(name)
        found = match(stored.pack.fingerprint, here)
        if found.level == "none":
            way_out = f"pass --pack auto, or build it for {here.target}"
            raise PackError(f"pack {name} cannot be used: {found.reason}; {way_out}")
        return FoundPack(Chosen(stored, found))
    packs, notes = _readable()
    usable = choose(packs, here)
    if not usable:
        known = ", ".join(f"{each.pack.name} ({each.pack.fingerprint.target})" for each in packs) or "none"
        notes.append(
            f"no pack is for {here.device} ({here.target}; known: {known}): a table chooses the providers, and tile "
            "programs with untuned configs are compiled as they are first needed; parhelion tune MODEL makes a pack"
        )
        notes += [note for note in (expected_cost(each.pack) for each in packs) if note is not None]
        return FoundPack(None, tuple(notes))
    return FoundPack(usable[0], tuple(notes), tuple(usable[1:]))


def expected_cost(pack: Pack) -> str | None:
    """What going without a pack costs, as far as another device's pack can tell; None if it cannot.

    Of each op the time of whom the table chooses (the tile program untuned, or another provider) over the time of the
    pack's choice, as a geometric mean over the pack's rows.
    """
    logarithms: dict[str, list[float]] = {}
    for row in pack.rows:
        without = _time_without(row)
        if without is not None and row.best.time_us > 0:
            logarithms.setdefault(row.op, []).append(math.log(without / row.best.time_us))
    if not logarithms:
        return None
    each = (f"{op} {math.exp(sum(values) / len(values)):.2f}x" for op, values in sorted(logarithms.items()))
    return f"going without a pack costs, measured on {pack.fingerprint.device}, of the tuned time: {', '.join(each)}"


def _time_without(row: Row) -> float | None:
    """Microseconds of whom the table chooses on a GPU."""
    first = preferred(row.op, torch.device("cuda"))[0]
    if first == "helion":
        return row.untuned_us or None
    times = {candidate.provider: candidate.time_us for candidate in (row.best, *row.runners_up)}
    return times.get(first)


def pack_kernels(name: str, device: torch.device) -> tuple[PackKernels | None, list[str]]:
    """The packs of ``find_pack``, opened on a device, one behind the other, and its notes; nothing on a CPU.

    Raises:
        PackError: see ``find_pack``.
    """
    if device.type != "cuda":
        if name not in (AUTO, OFF):
            raise PackError(f"pack is {name}, and packs are for GPUs: the device is {device}; leave --pack out")
        return None, []
    here = device_fingerprint(device)
    found = find_pack(name, here)
    if found.chosen is None:
        return None, list(found.notes)
    opened: PackKernels | None = None
    for chosen in reversed((found.chosen, *found.others)):
        opened = PackKernels(chosen, device, source_hashes(), here.num_processors, behind=opened)
    return opened, list(found.notes)


def _readable() -> tuple[list[StoredPack], list[str]]:
    """All known packs that can be read, and why the others cannot."""
    packs, notes = [], []
    for path in find_packs():
        try:
            packs.append(read_pack(path))
        except PackError as error:
            notes.append(f"a pack is passed over: {error}")
    return packs, notes
