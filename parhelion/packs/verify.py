"""What is wrong with a pack, in words: what can be found out without the device it was made for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from parhelion.errors import PackError
from parhelion.packs.blocks import Bucket, with_rows
from parhelion.packs.format import NEVER_SERVE, TILE_PROGRAMS, Binary, BlockTime, Row
from parhelion.packs.lookup import stale_sources
from parhelion.packs.recipe import recipe_problems
from parhelion.packs.store import StoredPack


def verify(stored: StoredPack, source_hashes: Mapping[str, str] | None = None) -> list[str]:
    """Everything that is wrong with a pack; empty if nothing is.

    Whether a row names all the binaries that it needs is known only by running its op's ``launch``, and not seen here.

    Args:
        source_hashes: op to the hash of its sources here; None leaves open whether rows are stale.
    """
    pack = stored.pack
    files = {binary.file for binary in pack.binaries}
    unhashed = sorted({row.op for row in pack.rows} - set(pack.source_hashes))
    problems = [
        *_file_problems(stored),
        *_binary_problems(pack.binaries),
        *_order_problems(pack.rows),
        *(
            f"source_hashes lacks {op!r}, so nobody can tell whether its rows are stale; tune it again"
            for op in unhashed
        ),
        *(problem for row in pack.rows for problem in _row_problems(row, files)),
        *_block_problems(pack.blocks, {(row.contract, row.num_tokens) for row in pack.rows}),
    ]
    if source_hashes is not None:
        problems += stale_sources(pack, source_hashes).values()
    return problems


def _file_problems(stored: StoredPack) -> Iterator[str]:
    seen: set[tuple[str, str, int]] = set()
    for binary in stored.pack.binaries:
        file = (binary.file, binary.sha256, binary.num_bytes)
        if file in seen:
            continue
        seen.add(file)
        try:
            stored.binary(binary)
        except PackError as error:
            yield str(error)
    for name in stored.unnamed_files():
        yield f"{stored.path}: no binary names the file {name}; remove it"


def _binary_problems(binaries: tuple[Binary, ...]) -> Iterator[str]:
    for binary in binaries:
        name = f"{binary.kernel} ({binary.file})"
        if binary.scratch_bytes:
            yield f"{name}: wants {binary.scratch_bytes} bytes of scratch memory, which nobody gives it"
        for problem in recipe_problems(binary):
            yield f"{name}: {problem}"
    counts = Counter(map(_identity, binaries))
    for binary in binaries:
        if counts.pop(_identity(binary), 1) > 1:
            name = f"{binary.kernel} ({binary.file})"
            yield f"{name}: is listed twice for the same config, kinds and recipe; remove one"
    launches = Counter(
        (binary.file, binary.kernel, _found_by(binary))
        for binary in {_identity(each): each for each in binaries}.values()
    )
    for (file, kernel, _), count in launches.items():
        if count > 1:
            yield f"{kernel} ({file}): is launched in {count} ways for one config and kinds; give each its own file"


def _order_problems(rows: tuple[Row, ...]) -> Iterator[str]:
    last: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    for row in rows:
        if (row.contract, row.num_tokens) in seen:
            yield f"{_name(row)}: there are two rows for this bucket; remove one"
        elif row.num_tokens < last.get(row.contract, 0):
            yield f"{_name(row)}: comes after the row for M up to {last[row.contract]}; sort rows by num_tokens"
        seen.add((row.contract, row.num_tokens))
        last[row.contract] = max(row.num_tokens, last.get(row.contract, 0))


def _row_problems(row: Row, files: set[str]) -> Iterator[str]:
    if row.num_tokens < 1:
        yield f"{_name(row)}: num_tokens must be at least 1"
    if not row.contract.startswith(f"{row.op}("):
        yield f"{_name(row)}: is said to be of the op {row.op!r}"
    if row.best.provider in NEVER_SERVE:
        yield f"{_name(row)}: {row.best.provider} would compile while serving; it may only be a runner-up"
    if row.best.provider in TILE_PROGRAMS and (row.best.config is None or not row.best.binaries):
        lacking = "config" if row.best.config is None else "binaries"
        yield f"{_name(row)}: {row.best.provider} serves and has no {lacking}; tune or build again"
    named = {file for candidate in (row.best, *row.runners_up) for file in candidate.binaries}
    for file in sorted(named - files):
        yield f"{_name(row)}: needs the binary {file}, which the pack does not list; build it again"
    times = [candidate.time_us for candidate in row.runners_up]
    if min([row.best.time_us, *times]) < 0:
        yield f"{_name(row)}: a time is below 0 us; measure again"
    if times != sorted(times):
        yield f"{_name(row)}: runners_up are not in the order of their times"


def _block_problems(blocks: tuple[BlockTime, ...], rows: set[Bucket]) -> Iterator[str]:
    counts = Counter((block.contracts, block.num_tokens) for block in blocks)
    for block in blocks:
        ops = ", ".join(key.partition("(")[0] for key in block.contracts)
        name = f"the block of {ops or 'nothing'}, M = {block.num_tokens}"
        if counts.pop((block.contracts, block.num_tokens), 1) > 1:
            yield f"{name}: is listed twice; remove one"
        if block.time_us <= 0:
            yield f"{name}: its time is {block.time_us} us; measure again"
        if not block.contracts or not with_rows([block], rows):
            yield f"{name}: has calls without a row for this M, so that its time says nothing; remove it"


def _identity(binary: Binary) -> bytes:
    # With other code it may be for other static dimensions, which are in the code and in no recipe.
    same = (binary.kernel, binary.config, binary.kinds, binary.recipe, binary.sha256)
    return msgspec.json.encode(same, order="sorted")


def _found_by(binary: Binary) -> bytes:
    """What a launch finds it by, among those of its row's files."""
    return msgspec.json.encode((binary.config, binary.kinds), order="sorted")


def _name(row: Row) -> str:
    return f"{row.contract}, M up to {row.num_tokens}"
