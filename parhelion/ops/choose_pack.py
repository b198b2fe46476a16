"""Which pack serves on a device, and what to say where none does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.errors import PackError
from parhelion.ops.device_fingerprint import device_fingerprint
from parhelion.ops.pack_kernels import PackKernels
from parhelion.ops.source_hash import source_hashes
from parhelion.packs.format import Fingerprint
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
    chosen = choose(packs, here)
    if chosen is None:
        known = ", ".join(f"{each.pack.name} ({each.pack.fingerprint.target})" for each in packs) or "none"
        notes.append(
            f"no pack is for {here.device} ({here.target}; known: {known}): a table chooses the providers, and tile "
            "programs with untuned configs are compiled as they are first needed; parhelion tune MODEL makes a pack"
        )
    return FoundPack(chosen, tuple(notes))


def pack_kernels(name: str, device: torch.device) -> tuple[PackKernels | None, list[str]]:
    """The pack of ``find_pack``, opened on a device, and its notes; no pack and no notes on a CPU.

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
    opened = PackKernels(found.chosen, device, source_hashes(), here.num_processors)
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
