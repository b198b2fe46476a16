"""Packs whose binaries are built here, with no GPU: of a model's contracts untuned, or of another pack's rows anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import msgspec

from parhelion import __version__
from parhelion.ops.contract import Contract
from parhelion.ops.launching import BUCKETS
from parhelion.ops.registry import has_programs
from parhelion.ops.source_hash import source_hashes
from parhelion.packs.format import FORMAT_VERSION, Fingerprint, Ledger, ModelEntry, Pack, Row
from parhelion.packs.lookup import names_of, rows_without, stale_sources
from parhelion.tuning.build_rows import (
    UNTUNED,
    Builder,
    Failure,
    Progress,
    RowDraft,
    unmeasured,
    untuned_config,
)
from parhelion.tuning.jobs import Compiler
from parhelion.tuning.programs import distinct
from parhelion.tuning.target import Target

BUILD = "build."
"""What the names of the versions that built begin with."""

_VENDORS = {"cuda": "nvidia", "hip": "amd"}
_PACKAGES = ("torch", "triton", "helion")


@dataclass(frozen=True)
class BuiltPack:
    """A pack as ``write_pack`` takes it.

    Attributes:
        binaries: file name to code object.
        failures: what is not in it.
    """

    pack: Pack
    binaries: dict[str, bytes]
    failures: tuple[Failure, ...]


def untuned_pack(name: str, contracts: Sequence[Contract], models: Sequence[ModelEntry], target: Target) -> Pack:
    """What ``build_pack`` is given for models that nobody has tuned: a row for every contract and bucket
    that has tile programs, unmeasured.

    Args:
        contracts: of the models, each once.
    """
    rows = [
        Row(
            op=contract.name,
            contract=contract.key(),
            num_tokens=bucket,
            best=unmeasured(contract, untuned_config(contract, bucket, target)),
            chosen_by=UNTUNED,
        )
        for contract in contracts
        for bucket in BUCKETS
        if has_programs(contract, bucket, target.name)
    ]
    fingerprint = unknown_device(target)
    return Pack(FORMAT_VERSION, name, fingerprint, tuple(rows), (), source_hashes_of(rows), {}, "", "", tuple(models))


def build_pack(
    source: Pack,
    target: Target,
    compiler: Compiler,
    *,
    name: str,
    command: str,
    progress: Progress = lambda done, total: None,
) -> BuiltPack:
    """Build all that the rows of a pack need of tile programs, for this target or another one.

    Measurements are kept if they were made for this target and with the sources that are here. A config that cannot be
    built gives way to the row's next candidate and, if that leaves none, to the untuned config. A row of which nothing
    is left is left out; then what serves is up to whoever opens the pack.

    Args:
        compiler: for ``target``, such as a ``CompilePool``.
        name: of the new pack.
        command: what made it.
        progress: told how many configs are done, and how many there are.

    Raises:
        PackError: a contract or a config of the pack is not known here.
    """
    is_same = source.fingerprint.target == target.name
    stale = stale_sources(source, source_hashes())
    # Of a row that keeps its measurements, those of a second program may be others' all the same.
    rows_here = rows_without(source.rows, {name for name in stale if "." in name}) if is_same else source.rows
    drafts = [RowDraft(row, target, is_same and row.op not in stale) for row in rows_here]
    builder = Builder(compiler, progress)
    builder.build(request for draft in drafts for request in draft.requests())
    builder.build(draft.spare for draft in drafts if draft.row(builder) is None)
    rows = [draft.row(builder) for draft in drafts]
    failures = [each for draft, row in zip(drafts, rows, strict=True) for each in draft.failures(builder, row)]
    kept = tuple(row for row in rows if row is not None)
    files = {file for row in kept for each in (row.best, *row.runners_up) for file in each.binaries}
    programs = [program for built in builder.built.values() if not isinstance(built, str) for program in built]
    binaries, data = distinct(program for program in programs if program.binary.file in files)
    tuned_with = {package: found for package, found in source.versions.items() if not package.startswith(BUILD)}
    pack = msgspec.structs.replace(
        source,
        name=name,
        fingerprint=source.fingerprint if is_same else unknown_device(target),
        rows=kept,
        binaries=binaries,
        source_hashes=source_hashes_of(kept),
        versions=(tuned_with if is_same else {}) | built_with(),
        command=command,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ledger=msgspec.structs.replace(source.ledger if is_same else Ledger(), build_s=round(builder.seconds, 1)),
    )
    return BuiltPack(pack, data, tuple(failures))


def built_with() -> dict[str, str]:
    """The versions on which binaries depend, under the names that packs keep them."""
    return {f"{BUILD}parhelion": __version__} | {f"{BUILD}{package}": version(package) for package in _PACKAGES}


def unknown_device(target: Target) -> Fingerprint:
    """Of a pack for which nothing was measured: any device of the target."""
    return Fingerprint(_VENDORS[target.backend], "", target.name, 0, 0)


def source_hashes_of(rows: Iterable[Row]) -> dict[str, str]:
    """The hashes of the sources here that rows depend on."""
    here = source_hashes()
    return {name: here[name] for name in sorted({name for row in rows for name in names_of(row, here)})}
