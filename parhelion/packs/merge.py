"""Several packs of one kind of device as one: what was tuned for several models, or an op tuned again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import msgspec

from parhelion.errors import PackError
from parhelion.packs.blocks import with_rows
from parhelion.packs.format import Binary, BlockTime, Candidate, Fingerprint, Ledger, ModelEntry, Pack, Row
from parhelion.packs.lookup import rows_without, served_as_in
from parhelion.packs.store import StoredPack


def merge(packs: Sequence[StoredPack], name: str) -> tuple[Pack, dict[str, bytes]]:
    """One pack of several, as ``write_pack`` takes it. Where they disagree, the later one wins.

    Rows of an op whose sources a later pack has otherwise are left out of the earlier ones; so are binaries that no row
    names, and times of whole blocks some of whose rows another pack has now.

    Raises:
        PackError: no packs are given, they are of several kinds of device, or a binary is missing or damaged.
    """
    if not packs:
        raise PackError("there are no packs to merge; name at least one")
    rows = _rows([stored.pack for stored in packs])
    binaries = _binaries(packs, rows)
    files = _file_names(binaries)
    last = packs[-1].pack
    merged = msgspec.structs.replace(
        last,
        name=name,
        fingerprint=_fingerprint([stored.pack for stored in packs]),
        rows=tuple(_renamed(each.row, packs[each.pack].pack, files) for each in rows),
        binaries=tuple(msgspec.structs.replace(each.binary, file=files[_identity(each.binary)]) for each in binaries),
        source_hashes={op: hash_ for stored in packs for op, hash_ in stored.pack.source_hashes.items()},
        versions={package: version for stored in packs for package, version in stored.pack.versions.items()},
        command=f"merge of {', '.join(stored.pack.name for stored in packs)}",
        created_at=max(stored.pack.created_at for stored in packs),
        models=united(model for stored in packs for model in stored.pack.models),
        ledger=_ledger([stored.pack.ledger for stored in packs]),
        blocks=_blocks([stored.pack for stored in packs], rows),
    )
    data = {files[_identity(each.binary)]: packs[each.pack].binary(each.binary) for each in binaries}
    return merged, data


@dataclass(frozen=True)
class _From:
    """Something of one of the packs, by its position."""

    pack: int


@dataclass(frozen=True)
class _RowFrom(_From):
    row: Row


@dataclass(frozen=True)
class _BinaryFrom(_From):
    binary: Binary


def _fingerprint(packs: Sequence[Pack]) -> Fingerprint:
    """The device of all packs, as the last one that was measured has it."""
    last = packs[-1]
    for pack in packs:
        here, there = pack.fingerprint, last.fingerprint
        if (here.vendor, here.target) != (there.vendor, there.target):
            raise PackError(
                f"pack {pack.name} is for {here.target} and pack {last.name} for {there.target}: binaries for several "
                "targets do not belong in one pack; merge those of one"
            )
    measured = [pack for pack in packs if pack.fingerprint.device]
    for pack in measured:
        if pack.fingerprint.device != measured[-1].fingerprint.device:
            raise PackError(
                f"pack {pack.name} was measured on {pack.fingerprint.device} and pack {measured[-1].name} on "
                f"{measured[-1].fingerprint.device}: times of several devices do not belong in one pack; merge those "
                "of one"
            )
    return (measured or packs)[-1].fingerprint


def _rows(packs: Sequence[Pack]) -> list[_RowFrom]:
    """The last pack's row for each bucket, of those with the last pack's sources and without candidates with others;
    sorted by contract and M.
    """
    hashes = {op: hash_ for pack in packs for op, hash_ in pack.source_hashes.items()}
    rows = {
        (row.contract, row.num_tokens): _RowFrom(index, row)
        for index, pack in enumerate(packs)
        for row in rows_without(pack.rows, {name for name in hashes if pack.source_hashes.get(name) != hashes[name]})
    }
    return [rows[bucket] for bucket in sorted(rows)]


def _blocks(packs: Sequence[Pack], rows: Sequence[_RowFrom]) -> tuple[BlockTime, ...]:
    """Of each pack those whose rows are all its own."""
    kept: list[BlockTime] = []
    for index, pack in enumerate(packs):
        kept += with_rows(pack.blocks, served_as_in(pack, [each.row for each in rows if each.pack == index]))
    return with_rows(kept, {(each.row.contract, each.row.num_tokens) for each in rows})


def _binaries(packs: Sequence[StoredPack], rows: Iterable[_RowFrom]) -> list[_BinaryFrom]:
    """The binaries that rows name, each once.

    Two that are for the same program, config and kinds may still be for different static dimensions, which only the
    rows tell apart: so none ever takes the place of another one with other code.
    """
    named = {(each.pack, file) for each in rows for candidate in _candidates(each.row) for file in candidate.binaries}
    found: dict[bytes, _BinaryFrom] = {}
    for index, stored in enumerate(packs):
        for binary in stored.pack.binaries:
            if (index, binary.file) in named:
                found.setdefault(_identity(binary), _BinaryFrom(index, binary))
    return list(found.values())


def _file_names(binaries: Iterable[_BinaryFrom]) -> dict[bytes, str]:
    """A binary's identity to its file: its own name, unless another one has it.

    Equal code is kept once, unless two binaries of it differ in nothing by which a launch finds them, such as in their
    grids alone: rows tell those apart by their files.
    """
    names: dict[bytes, str] = {}
    launches: dict[tuple[str, str], set[bytes]] = {}
    for each in binaries:
        binary = each.binary
        found_by = msgspec.json.encode((binary.kernel, binary.config, binary.kinds), order="sorted")
        shared = (file for (file, sha256), own in launches.items() if sha256 == binary.sha256 and found_by not in own)
        name = next(shared, None)
        if name is None:
            taken = any(binary.file == file for file, _ in launches)
            name = (
                hashlib.sha256(_identity(binary)).hexdigest() + PurePath(binary.file).suffix if taken else binary.file
            )
        launches.setdefault((name, binary.sha256), set()).add(found_by)
        names[_identity(binary)] = name
    return names


def _renamed(row: Row, pack: Pack, files: Mapping[bytes, str]) -> Row:
    """A row of a pack with the names that its binaries have now."""
    now = {binary.file: files.get(_identity(binary), "") for binary in pack.binaries}

    def renamed(candidate: Candidate) -> Candidate:
        if unknown := [file for file in candidate.binaries if file not in now]:
            raise PackError(f"pack {pack.name}: {row.contract} needs {unknown[0]}, which it does not list")
        return msgspec.structs.replace(candidate, binaries=tuple(now[file] for file in candidate.binaries))

    return msgspec.structs.replace(row, best=renamed(row.best), runners_up=tuple(map(renamed, row.runners_up)))


def _candidates(row: Row) -> tuple[Candidate, ...]:
    return (row.best, *row.runners_up)


def _identity(binary: Binary) -> bytes:
    """All of a binary but what its file is called and how long it took."""
    return msgspec.json.encode(msgspec.structs.replace(binary, file="", compile_s=0.0), order="sorted")


def united(models: Iterable[ModelEntry]) -> tuple[ModelEntry, ...]:
    """One entry of each model, with the contracts of all its entries."""
    found: dict[tuple[str, str, str | None, int], ModelEntry] = {}
    for model in models:
        before = found.get(model.identity)
        contracts = dict.fromkeys((*(before.contracts if before else ()), *model.contracts))
        found[model.identity] = msgspec.structs.replace(model, contracts=tuple(contracts))
    return tuple(found.values())


def _ledger(ledgers: Sequence[Ledger]) -> Ledger:
    """What all cost together; of the time of a launch, which is no sum, the last measurement."""
    sums = {field: sum(getattr(each, field) for each in ledgers) for field in Ledger.__struct_fields__}
    launch_us = [each.launch_us for each in ledgers if each.launch_us]
    return Ledger(**sums | {"launch_us": launch_us[-1] if launch_us else 0.0})
