"""Triton code to a binary for a target that is not here."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import torch

from parhelion.tuning.record import Launch
from parhelion.tuning.resources import Resources, amd_resources, nvidia_resources
from parhelion.tuning.target import MAX_TENSOR_MEMORY_COLUMNS, MAX_THREADS, Target

_ALIGNMENT = 16
"""Triton compiles pointers and sizes that are multiples of this apart from others."""

_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


class BuildError(Exception):
    """A program cannot be built for a target; the message says why in a few words."""


@dataclass(frozen=True)
class Built:
    """A built program.

    Attributes:
        data: the cubin or hsaco.
        symbol: the function's name in it.
        shared_bytes: shared memory (LDS) of one program.
        num_warps: warps (wavefronts) of one program, those included that a program gives work of their own.
        scratch_bytes: global memory that each program wants for itself.
        seconds: what compiling took, from Triton's front end to the assembler.
    """

    data: bytes
    symbol: str
    shared_bytes: int
    num_warps: int
    scratch_bytes: int
    resources: Resources
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of the binary."""
        return len(self.data)


@dataclass(frozen=True)
class Specialization:
    """How Triton would compile a launch: it takes the ones and the multiples of 16 among the arguments into account."""

    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]


def specialize(*launches: Launch) -> Specialization:
    """As Triton's own dispatch does when a kernel is launched; for several launches of it, what is true of all of them.

    Raises:
        BuildError: no one program serves them: their arguments differ in type, or where they are constants.
    """
    how = Specialization({}, {}, {})
    columns = zip(*(launch.arguments for launch in launches), strict=True)
    for position, (parameter, values) in enumerate(zip(launches[0].function.params, columns, strict=True)):
        is_one = not parameter.do_not_specialize and all(type(value) is int and value == 1 for value in values)
        if parameter.is_constexpr or is_one or any(value is None for value in values):
            if any(value != values[0] for value in values):
                raise BuildError(f"the constant {parameter.name} differs among launches: {', '.join(map(str, values))}")
            how.signature[parameter.name] = "constexpr"
            how.constants[parameter.name] = values[0]
            continue
        how.signature[parameter.name] = _common_type(parameter.name, values)
        if not parameter.do_not_specialize and all(map(_is_aligned, values)):
            how.attributes[(position,)] = [["tt.divisibility", _ALIGNMENT]]
    return how


def cross_compile(launch: Launch, target: Target, specialization: Specialization | None = None) -> Built:
    """Build one recorded launch for a target.

    Args:
        specialization: what may be compiled in; None for what Triton would compile in for this launch.

    Raises:
        BuildError: the compiler refuses it, or what it built is more than the target can run.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    how = specialize(launch) if specialization is None else specialization
    source = _source_kind(launch.function)(launch.function, how.signature, how.constants, how.attributes)
    device = GPUTarget(target.backend, target.arch, target.warp_size)
    start = time.perf_counter()
    with _kept_output() as output:
        try:
            built = triton.compile(source, target=device, options=launch.options)
        # Whatever a compiler throws at a program is what the report is about.
        except Exception as error:
            raise BuildError(short_reason(error, _text(output))) from error
    seconds = time.perf_counter() - start
    _check_limits(built.metadata, target)
    if target.backend == "cuda":
        data, resources = built.asm["cubin"], nvidia_resources(built.asm["cubin"])
    else:
        data, resources = built.asm["hsaco"], amd_resources(built.asm["amdgcn"])
    return Built(
        data,
        built.metadata.name,
        built.metadata.shared,
        built.metadata.num_warps,
        (built.metadata.global_scratch_size or 0) + (built.metadata.profile_scratch_size or 0),
        resources,
        seconds,
    )


def _source_kind(function: Any) -> Any:
    """What Triton compiles a function as."""
    if function.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        return GluonASTSource
    from triton.compiler import ASTSource

    return ASTSource


def short_reason(error: Exception, output: str) -> str:
    """The line of a compiler's complaint that says what is wrong.

    Triton points at source lines and ends with the cause; Helion begins with the cause and ends with the source lines;
    a failed pass leaves its cause among what was printed.
    """
    text = str(error).partition("While processing:")[0].strip() or type(error).__name__
    if "PassManager::run failed" in text:
        text = next(iter(re.findall(r"error: (.+)", output)), text)
    else:
        text = next(iter(re.findall(r"(?:ptxas fatal\s*|error)\s*: (.+)", text)), text)
    lines = [line.strip() for line in text.splitlines() if line.strip(" ^\t")]
    # Triton wraps what its own functions raise: ValueError("the cause").
    wrapped = re.fullmatch(r"\w+\([\"'](.+)[\"']\)", lines[-1])
    return (wrapped[1] if wrapped else lines[-1])[:300]


def _check_limits(metadata: Any, target: Target) -> None:
    """What a driver would refuse at the launch. Triton asks the device, so without one it does not check."""
    if metadata.shared > target.max_shared_bytes:
        raise BuildError(
            f"needs {metadata.shared / 1024:.0f} KiB of shared memory, above {target.max_shared_bytes // 1024} KiB"
        )
    threads = metadata.num_warps * target.warp_size
    if threads > MAX_THREADS:
        raise BuildError(f"needs {threads} threads, above {MAX_THREADS}")
    columns = getattr(metadata, "tmem_size", 0) or 0
    if columns > MAX_TENSOR_MEMORY_COLUMNS:
        raise BuildError(f"needs {columns} columns of tensor memory, above {MAX_TENSOR_MEMORY_COLUMNS}")


def _common_type(name: str, values: Sequence[Any]) -> str:
    """The type of all of them, for integers of different sizes the wider one."""
    types = {_type_of(value) for value in values}
    if types == {"i32", "i64"}:
        return "i64"
    if len(types) > 1:
        raise BuildError(f"the argument {name} differs in type among launches: {sorted(types)}")
    return types.pop()


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def _is_aligned(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(value.data_ptr() % _ALIGNMENT == 0)
    return isinstance(value, int) and not isinstance(value, bool) and value % _ALIGNMENT == 0


@contextmanager
def _kept_output() -> Iterator[IO[bytes]]:
    """Keeps what compilers print, from native code too, off the terminal and for ``short_reason``."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield file
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def _text(file: IO[bytes]) -> str:
    sys.stdout.flush()
    sys.stderr.flush()
    file.seek(0)
    return file.read().decode(errors="replace")
