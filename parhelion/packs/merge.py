"""Several packs of one kind of device as one: what was tuned for several models, or an op tuned again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import PurePath

import msgspec

from parhelion.errors import PackError
from parhelion.packs.format import Binary, Ledger, ModelEntry, Pack, Row
from parhelion.packs.store import StoredPack


def merge(packs: Sequence[StoredPack], name: str) -> tuple[Pack, dict[str, bytes]]:
    """One pack of several, as ``write_pack`` takes it. Where they disagree, the later one wins.

    Rows of an op whose sources the later pack has other than the earlier one are taken from the later one alone, and of
    the binaries of a kernel, config and kinds then only the later one's are kept.

    Raises:
        PackError: no packs are given, they are of several kinds of device, or a binary is missing or damaged.
    """
    if not packs:
        raise PackError("there are no packs to merge; name at least one")
    merged = reduce(_merged, [stored.pack for stored in packs])
    binaries, data = _with_one_file_each(merged.binaries, packs)
    command = f"merge of {', '.join(stored.pack.name for stored in packs)}"
    return msgspec.structs.replace(merged, name=name, command=command, binaries=binaries), data


def _merged(a: Pack, b: Pack) -> Pack:
    here, there = a.fingerprint, b.fingerprint
    if (here.vendor, here.target, here.device) != (there.vendor, there.target, there.device):
        raise PackError(
            f"pack {a.name} is of {here.device} ({here.target}) and pack {b.name} of {there.device} ({there.target}): "
            "times measured on several devices do not belong in one pack; merge those of one device"
        )
    changed = {op for op, hash_ in b.source_hashes.items() if a.source_hashes.get(op, hash_) != hash_}
    return msgspec.structs.replace(
        b,
        rows=_rows([row for row in a.rows if row.op not in changed], b.rows),
        binaries=_binaries(a.binaries, b.binaries, replace=bool(changed)),
        source_hashes=a.source_hashes | b.source_hashes,
        versions=a.versions | b.versions,
        created_at=max(a.created_at, b.created_at),
        models=_models((*a.models, *b.models)),
        ledger=_ledger(a.ledger, b.ledger),
    )


def _rows(a: Iterable[Row], b: Iterable[Row]) -> tuple[Row, ...]:
    """The later one's in place of the earlier one's for the same bucket; sorted by contract and M."""
    rows = {(row.contract, row.num_tokens): row for row in (*a, *b)}
    return tuple(rows[key] for key in sorted(rows))


def _binaries(a: tuple[Binary, ...], b: tuple[Binary, ...], replace: bool) -> tuple[Binary, ...]:
    """Both packs'. With ``replace`` the earlier one's are left out where the later one has any for such a launch."""
    if replace:
        there = {_launch(binary) for binary in b}
        a = tuple(binary for binary in a if _launch(binary) not in there)
    return tuple({(_launch(binary), _text(binary.recipe)): binary for binary in (*a, *b)}.values())


def _launch(binary: Binary) -> str:
    return _text((binary.kernel, binary.config, binary.kinds))


def _text(value: object) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _models(models: Iterable[ModelEntry]) -> tuple[ModelEntry, ...]:
    united: dict[tuple[str, str], ModelEntry] = {}
    for model in models:
        before = united.get((model.name, model.quantization))
        contracts = dict.fromkeys((*(before.contracts if before else ()), *model.contracts))
        united[model.name, model.quantization] = msgspec.structs.replace(model, contracts=tuple(contracts))
    return tuple(united.values())


def _ledger(a: Ledger, b: Ledger) -> Ledger:
    """What both cost together; of the time of a launch, which is no sum, the later measurement."""
    sums = {field: getattr(a, field) + getattr(b, field) for field in Ledger.__struct_fields__}
    return Ledger(**sums | {"launch_us": b.launch_us or a.launch_us})


def _with_one_file_each(
    binaries: Sequence[Binary], packs: Sequence[StoredPack]
) -> tuple[tuple[Binary, ...], dict[str, bytes]]:
    """The binaries with equal code objects in one file, and the files."""
    homes = {binary.sha256: (stored, binary) for stored in packs for binary in stored.pack.binaries}
    files: dict[str, str] = {}
    data: dict[str, bytes] = {}
    named = []
    for binary in binaries:
        if binary.sha256 not in files:
            stored, as_stored = homes[binary.sha256]
            code = stored.binary(as_stored)
            file = binary.file if binary.file not in data else binary.sha256 + PurePath(binary.file).suffix
            files[binary.sha256], data[file] = file, code
        named.append(msgspec.structs.replace(binary, file=files[binary.sha256]))
    return tuple(named), data
