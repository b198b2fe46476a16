"""From a contract and a config to the binaries that launch it for any M of a bucket.

The op's launches are recorded for two sizes of M, grouped into programs, and each is compiled with nothing put in that
depends on M. What is put in (the op's static dimensions, a stride that is 1, a pointer that is a multiple of 16) stands
in the binary's recipe, so that a launcher refuses what it was not built for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from parhelion.ops.contract import Contract
from parhelion.ops.inputs import empty_inputs
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import LaunchModule, build_sizes
from parhelion.ops.tile_programs import module_for
from parhelion.packs.format import Binary
from parhelion.tuning.cross_compile import BuildError, cross_compile, short_reason
from parhelion.tuning.host_recipe import RecipeError, recipe_of
from parhelion.tuning.record import GeneratedCode, Launch, Preparer, Recorder
from parhelion.tuning.target import Target
from parhelion.tuning.timed_config import Timed, config_of

_SUFFIXES = {"cuda": "cubin", "hip": "hsaco"}

_PROGRAMMATIC = "programmatic"
"""The parameter that makes a tile program wait for its predecessor by itself; see ``ops.programmatic``."""


@dataclass(frozen=True)
class Program:
    """One built tile program.

    Attributes:
        binary: what a pack says about it.
        data: the cubin or hsaco.
    """

    binary: Binary
    data: bytes


def programs_of(contract: Contract, bucket: int, config: Any, target: Target, code: GeneratedCode) -> list[Program]:
    """Every program that the op launches for M up to ``bucket`` with a config, each once.

    Args:
        bucket: one of ``BUCKETS``.
        config: the op's ``Config``, or a ``Timed`` one.
        code: what was generated before, for use again.

    Raises:
        BuildError: one of them cannot be built; the message says which and why.
    """
    return [_built(launches, target) for launches in recorded_programs(contract, bucket, config, target, code)]


def recorded_programs(
    contract: Contract, bucket: int, config: Any, target: Target, code: GeneratedCode
) -> list[list[Launch]]:
    """The op's launches for M up to ``bucket``, those of one program together.

    Raises:
        BuildError: no code can be generated.
    """
    module = module_for(contract.name, config_of(config))
    recorder = _BuildRecorder(target.name, code)
    try:
        for inputs in _build_inputs(module, contract, bucket, isinstance(config, Timed)):
            module.launch(contract, recorder, config_of(config), *inputs)
    # Generating code may fail in as many ways as compiling it.
    except Exception as error:
        raise BuildError(short_reason(error, "")) from error
    programs: dict[tuple[Any, ...], list[Launch]] = {}
    for launch in recorder.launches:
        programs.setdefault((launch.kernel, launch.config, launch.kinds), []).append(launch)
    return list(programs.values())


def distinct(programs: Iterable[Program]) -> tuple[tuple[Binary, ...], dict[str, bytes]]:
    """The binaries as a pack lists them, each once and sorted by file, and their files.

    Buckets and contracts may share programs. Of one that was built several times the longest time is kept: the others
    took it from the compiler's cache.
    """
    binaries: dict[str, Binary] = {}
    files: dict[str, bytes] = {}
    for program in programs:
        binary = program.binary
        known = binaries.get(binary.file)
        if known is None or known.compile_s < binary.compile_s:
            binaries[binary.file] = binary
        files[binary.file] = program.data
    return tuple(binaries[file] for file in sorted(binaries)), files


def plain(value: Any) -> Any:
    """A config as a pack holds it: dictionaries, lists, strings and numbers."""
    return msgspec.json.decode(msgspec.json.encode(value))


class _BuildRecorder(Recorder):
    """Records what can be built where the device is not."""

    def __init__(self, target: str, code: GeneratedCode) -> None:
        super().__init__(Preparer(target, code))
        self._knows_processors = code.num_processors is not None

    def __call__(self, kernel: str, config: KernelConfig, *arguments: Any) -> None:
        if config.pid_type != "flat" and not self._knows_processors:
            raise BuildError(
                f"{kernel}: pid_type {config.pid_type} is built for a number of processors, and none is known; "
                "build for a device that was measured, or with pid_type flat"
            )
        super().__call__(kernel, config, *arguments)


def _build_inputs(module: LaunchModule, contract: Contract, bucket: int, is_timed: bool) -> list[tuple[Any, ...]]:
    """Empty inputs that between them launch all programs that are wanted, none of them with an M of 1."""
    of_op = getattr(module, "timed_inputs" if is_timed else "build_inputs", None)
    if of_op is not None:
        found: list[tuple[Any, ...]] = of_op(contract, bucket)
        return found
    return [empty_inputs(contract, num_tokens) for num_tokens in build_sizes(bucket)]


def _built(launches: list[Launch], target: Target) -> Program:
    kernel = launches[0].kernel
    try:
        recipe, how = recipe_of(launches)
        equal = dict(recipe.equal) | dict(launches[0].static_sizes)
        recipe = msgspec.structs.replace(recipe, equal=tuple(equal.items()))
        built = cross_compile(launches[0], target, how)
    except (BuildError, RecipeError) as error:
        raise BuildError(f"{kernel}: {error}") from error
    if built.scratch_bytes:
        raise BuildError(
            f"{kernel}: it wants {built.scratch_bytes} bytes of scratch memory, and launchers give it none"
        )
    binary = Binary(
        kernel=kernel,
        config=plain(launches[0].config),
        kinds=launches[0].kinds,
        symbol=built.symbol,
        file="",
        sha256=hashlib.sha256(built.data).hexdigest(),
        num_bytes=built.size,
        num_warps=built.num_warps,
        shared_bytes=built.shared_bytes,
        registers=built.resources.registers,
        stack_bytes=built.resources.stack_bytes,
        recipe=recipe,
        programmatic=(_PROGRAMMATIC, repr(True)) in zip(recipe.parameters, launches[0].kinds, strict=True),
    )
    # Rows name files: of two programs with the same code and different recipes each has its own.
    name = hashlib.sha256(msgspec.json.encode(binary, order="sorted")).hexdigest()[:16]
    file = f"{name}.{_SUFFIXES[target.backend]}"
    return Program(msgspec.structs.replace(binary, file=file, compile_s=round(built.seconds, 3)), built.data)
