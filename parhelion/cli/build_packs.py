"""The packs that ``parhelion build`` makes: one a target, from a model's contracts or from another pack."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from parhelion.cli.output import count_bar, format_bytes, print_json, print_note, stdout
from parhelion.cli.tune import ranks
from parhelion.errors import ConfigError, PackError

if TYPE_CHECKING:
    from parhelion.config import Quantization
    from parhelion.packs.format import Pack
    from parhelion.tuning.build_pack import BuiltPack
    from parhelion.tuning.build_rows import Failure
    from parhelion.tuning.target import Target


@dataclass(frozen=True)
class Written:
    """A pack that was built.

    Attributes:
        path: where it lies.
        target: what for.
        num_rows, num_binaries: in it.
        binary_bytes: of its code objects; ``zip_bytes`` of the file.
        build_s: seconds that it took, ``processor_s`` on all cores together.
        failures: what could not be built.
    """

    path: str
    target: str
    num_rows: int
    num_binaries: int
    binary_bytes: int
    zip_bytes: int
    build_s: float
    processor_s: float
    failures: tuple[Failure, ...]


def build_packs(
    source: str,
    targets: list[str],
    quantizations: list[str],
    lm_head_quantization: Quantization | None,
    tp: str | None,
    output: Path | None,
    jobs: int | None,
    json_: bool,
) -> None:
    """Build a pack for each target, write them and say what is in them.

    Raises:
        ConfigError: no target is named, something that is named does not exist, or the options contradict each other.
        PackError: the pack that is to be built anew cannot be.
    """
    from parhelion.packs.location import user_packs
    from parhelion.tuning.target import target as target_named

    pack = None if _is_model(source) else _open(source)
    if pack is not None and quantizations:
        raise ConfigError(f"pack {pack.name} has the quantizations that it has: leave --quantization out")
    if pack is not None and lm_head_quantization is not None:
        raise ConfigError(f"pack {pack.name} has the output heads that it has: leave --lm-head-quantization out")
    if pack is not None and tp is not None:
        raise ConfigError(f"pack {pack.name} has the rows that it has: leave --tp out")
    sizes = ranks(tp or "1")
    if pack is not None and not targets:
        targets = [pack.fingerprint.target]
    if not targets:
        raise ConfigError("a model's pack is built for targets that you name, such as --target sm_90,gfx942")
    if output is not None and output.suffix == ".zip" and len(targets) > 1:
        raise ConfigError(f"{output} is one file and there are {len(targets)} targets: name a folder")
    written = []
    for target in [target_named(name) for name in targets]:
        wanted = _untuned(source, quantizations, lm_head_quantization, sizes, target) if pack is None else pack
        command = _command(source, target, quantizations, lm_head_quantization, sizes)
        written.append(_write(wanted, target, output or user_packs(), command, jobs))
    if json_:
        print_json(written)
    else:
        _print(written)


def _write(source: Pack, target: Target, output: Path, command: str, jobs: int | None) -> Written:
    from parhelion.packs.location import pack_name
    from parhelion.packs.store import write_pack
    from parhelion.tuning.build_pack import build_pack
    from parhelion.tuning.compile_pool import CompilePool

    is_same = source.fingerprint.target == target.name
    name = source.name if is_same else f"{source.name}-{target.name}"
    path = output if output.suffix == ".zip" else output / f"{name}.zip"
    processors = source.fingerprint.num_processors if is_same else 0
    start = time.perf_counter()
    with (
        count_bar(f"compiling for {target.name}") as bar,
        CompilePool(target, num_processors=processors or None, jobs=jobs) as pool,
    ):
        built = build_pack(source, target, pool, name=pack_name(path), command=command, progress=bar)
    write_pack(built.pack, built.binaries, path)
    return _written(built, path, target, time.perf_counter() - start)


def _written(built: BuiltPack, path: Path, target: Target, seconds: float) -> Written:
    return Written(
        str(path),
        target.name,
        len(built.pack.rows),
        len(built.pack.binaries),
        sum(map(len, built.binaries.values())),
        path.stat().st_size,
        round(seconds, 1),
        built.pack.ledger.build_s,
        built.failures,
    )


def _is_model(source: str) -> bool:
    """Whether it is a listed model or head, or a checkpoint of which the config can be read."""
    from parhelion.tuning.head_calls import HEADS
    from parhelion.tuning.model_shapes import MODEL_SHAPES

    path = Path(source)
    is_checkpoint = (path / "config.json").is_file() or (path.suffix == ".gguf" and path.is_file())
    return is_checkpoint or source in HEADS or any(shape.name == source for shape in MODEL_SHAPES)


def _open(source: str) -> Pack:
    from parhelion.packs.location import open_pack
    from parhelion.tuning.head_calls import HEADS
    from parhelion.tuning.model_shapes import MODEL_SHAPES

    try:
        return open_pack(source).pack
    except PackError as error:
        models = ", ".join((*(shape.name for shape in MODEL_SHAPES), *HEADS))
        raise PackError(
            f"{error}; models that can be built for are {models}, a folder with a config.json or a .gguf file"
        ) from None


def _untuned(
    model: str,
    quantizations: list[str],
    lm_head_quantization: Quantization | None,
    sizes: tuple[int, ...],
    target: Target,
) -> Pack:
    """What a model, or a draft head, needs on a target, as a pack without binaries."""
    from parhelion.ops.gemm.target import gemm_target
    from parhelion.packs.format import ModelEntry
    from parhelion.packs.merge import united
    from parhelion.tuning.build_pack import untuned_pack
    from parhelion.tuning.head_calls import TunedHead, served_head_contracts, tuned
    from parhelion.tuning.model_calls import served_contracts

    contracts, models, schemes = {}, [], []
    asked: list[str | None] = [*dict.fromkeys(quantizations)]
    for scheme, tp in product(asked or [None], sizes):
        found = tuned(model, scheme, tp, lm_head_quantization)
        if isinstance(found, TunedHead):
            called = served_head_contracts(found)
        else:
            called = served_contracts(found, gemm_target(target.name))
        contracts.update(dict.fromkeys(called))
        keys = tuple(contract.key() for contract in called)
        models.append(ModelEntry(found.name, found.quantization.name, keys, found.tp, lm_head_quantization))
        schemes.append(found.quantization.name)
    heads = () if lm_head_quantization is None else (f"head_{lm_head_quantization}",)
    ranked = () if sizes == (1,) else (f"tp{'-'.join(map(str, sizes))}",)
    name = "-".join((models[0].name, *dict.fromkeys(schemes), *heads, *ranked, target.name))
    # A head that cannot be divided is whole on however many ranks.
    return untuned_pack(name, list(contracts), united(models), target)


def _command(
    source: str,
    target: Target,
    quantizations: list[str],
    lm_head_quantization: Quantization | None,
    sizes: tuple[int, ...],
) -> str:
    """The command that makes the pack again, without folders of this machine."""
    words = ["parhelion", "build", Path(source).name, "--target", target.name]
    for name in quantizations:
        words += ["--quantization", name]
    words += [] if lm_head_quantization is None else ["--lm-head-quantization", lm_head_quantization]
    words += [] if sizes == (1,) else ["--tp", ",".join(map(str, sizes))]
    return shlex.join(words)


def _print(written: list[Written]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="packs built")
    for heading in ("target", "rows", "binaries", "code", "zip", "s", "processor s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in written:
        sizes = (format_bytes(each.binary_bytes), format_bytes(each.zip_bytes))
        times = (f"{each.build_s:.0f}", f"{each.processor_s:.0f}")
        counts = (str(each.num_rows), str(each.num_binaries))
        table.add_row(each.target, *counts, *sizes, *times)
    console = stdout()
    console.print(table)
    for each in written:
        for line in _failure_lines(each):
            console.print(escape(line), soft_wrap=True)
        print_note(f"written to {each.path}")


def _failure_lines(written: Written) -> list[str]:
    """A line for each op and reason, with how many rows it concerns."""
    counts: dict[tuple[str, str, str], int] = {}
    for each in written.failures:
        key = (each.op, each.reason, each.instead)
        counts[key] = counts.get(key, 0) + 1
    return [
        f"{op} on {written.target}, {count} rows: {reason}; {instead} serves"
        for (op, reason, instead), count in counts.items()
    ]
