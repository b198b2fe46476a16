"""The pack format, version 1: a folder, or a zip of it, with ``pack.json`` (a ``Pack``) and the binaries in ``bin/``.

A pack holds, for one kind of device, which provider and config is fastest for each op, static dimensions and size of M,
what was measured and what it cost to find out, and the binaries of the tile programs with the recipes to launch them.
Nothing in it is executed but the binaries themselves: recipes are arithmetic over the sizes of tensors.
"""

from __future__ import annotations

from typing import Any

import msgspec

from parhelion.config import Quantization

FORMAT_VERSION = 1

NEVER_SERVE = ("inductor", "cutlass")
"""Providers that are measured and never serve from a pack: they would compile while serving."""

TILE_PROGRAMS = ("helion", "gluon")
"""Providers whose programs a pack brings, by the language that they are written in; an op has one or both."""


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What kind of device something was measured on.

    Attributes:
        vendor: ``nvidia`` or ``amd``.
        device: what it calls itself, such as ``NVIDIA H100 80GB HBM3``; its variant (SXM, PCIe) is part of the name.
        target: what compilers call its architecture, such as ``sm_90`` or ``gfx942``.
        num_processors: streaming multiprocessors or compute units.
        memory_bytes: of the device.
        bandwidth: measured bytes a second of a copy; 0 if nothing was measured.
    """

    vendor: str
    device: str
    target: str
    num_processors: int
    memory_bytes: int
    bandwidth: float = 0.0


class Argument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One parameter of a binary.

    Attributes:
        value: an expression; for a pointer the name of a tensor among the recipe's parameters.
        type: ``*`` for a pointer, else ``i32``, ``i64``, ``fp32``, ``fp64`` or ``i1``.
    """

    value: str
    type: str


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a binary is launched, given the arguments that an op's ``launch`` hands to ``run``.

    Expressions are made of integers, ``+ - * // %``, parentheses, ``min(a, b)``, ``max(a, b)``, ``cdiv(a, b)``
    (rounded up), a scalar parameter's name, ``name.size(i)``, ``name.stride(i)`` and ``num_processors``.

    Attributes:
        parameters: names of the tile program's parameters, in the order of ``run``'s arguments.
        grid: one to three expressions.
        arguments: of the binary, in order, without the scratch pointers that end them.
        equal: expressions with the values that were compiled in for them.
        aligned: tensors' names and expressions that the binary takes for multiples of 16 (of bytes, for tensors).
    """

    parameters: tuple[str, ...]
    grid: tuple[str, ...]
    arguments: tuple[Argument, ...]
    equal: tuple[tuple[str, int], ...] = ()
    aligned: tuple[str, ...] = ()


class Binary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One built tile program.

    Attributes:
        kernel: ``folder.function`` of the tile program, such as ``gemm.gemm``.
        config: its ``KernelConfig`` as a dictionary.
        kinds: of ``run``'s arguments: ``bfloat16[2]`` for a tensor of two dimensions, else ``repr``.
        symbol: the function's name in the binary.
        file: under ``bin/``.
        sha256, num_bytes: of the file.
        num_warps, shared_bytes: of one program.
        registers, stack_bytes: of one thread; a stack means that registers were spilled.
        scratch_bytes: global memory that each program wants for itself; such a binary is never shipped unless it is 0.
        programmatic: launched with programmatic dependent launch.
        recipe: how to launch it.
        compile_s: what compiling took.
    """

    kernel: str
    config: dict[str, Any]
    kinds: tuple[str, ...]
    symbol: str
    file: str
    sha256: str
    num_bytes: int
    num_warps: int
    shared_bytes: int
    registers: int
    stack_bytes: int
    recipe: Recipe
    scratch_bytes: int = 0
    programmatic: bool = False
    compile_s: float = 0.0


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A provider, with its config where it has any, and how long it took.

    Attributes:
        provider: ``helion``, ``gluon``, ``torch`` ...
        config: the op's config as a dictionary; None if the provider has none.
        time_us, time_us_p10, time_us_p90: of one launch, inputs and weights cold: the median and the spread.
        binaries: files of what it launches; empty if the pack does not hold them, and then it cannot serve.
    """

    provider: str
    config: dict[str, Any] | None
    time_us: float
    time_us_p10: float
    time_us_p90: float
    binaries: tuple[str, ...] = ()


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who serves an op with given static dimensions for sizes of M up to ``num_tokens``.

    Attributes:
        op: its name.
        contract: ``Contract.key()``: the op with its static dimensions.
        num_tokens: the largest M of the bucket; the next smaller row's is where the bucket begins.
        best: who serves; none of ``NEVER_SERVE``.
        runners_up: the others, fastest first, TorchInductor included.
        floor_us: what the device's measured ceilings allow at best.
        measured_at: the M that was measured.
        rel_err: the largest relative error of an output beside the reference.
        tune_s: seconds of tuning that this row took.
        evaluations: configs that were timed.
        chosen_by: how the winner was found: ``row`` (by itself), ``step`` (in the step), ``seed`` (taken over),
            ``untuned`` (nothing was measured).
        workspace_bytes: memory beside inputs and outputs that a launch takes.
        untuned_us: what the tile program took with the untuned config; 0 if it was not timed.
    """

    op: str
    contract: str
    num_tokens: int
    best: Candidate
    runners_up: tuple[Candidate, ...] = ()
    floor_us: float = 0.0
    measured_at: int = 0
    rel_err: float = 0.0
    tune_s: float = 0.0
    evaluations: int = 0
    chosen_by: str = "row"
    workspace_bytes: int = 0
    untuned_us: float = 0.0


class BlockTime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a whole block of a model takes at an M, in one of the ways to compute it.

    Its launches overlap, so it is less than their sum, and not by the same for every way.

    Attributes:
        contracts: the keys of what the block calls, in order; of a model whose blocks differ, what the last one calls.
        num_tokens: the M that was measured, that of the bucket of all these contracts' rows.
        time_us: of one block among several of them in one CUDA graph, with the configs that suit this way best.
    """

    contracts: tuple[str, ...]
    num_tokens: int
    time_us: float


class Ledger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a pack cost, and what it takes.

    Attributes:
        tune_s: wall-clock seconds of tuning, ``gpu_s`` of them with the GPU at work.
        compile_s: processor seconds of compiling candidates, ``num_compiled`` of them; ``num_dropped`` were given up
            before they ran.
        build_s: processor seconds of building the binaries that are kept.
        launch_us: Python's part of one launch, measured; 0 if it was not.
    """

    tune_s: float = 0.0
    gpu_s: float = 0.0
    compile_s: float = 0.0
    num_compiled: int = 0
    num_dropped: int = 0
    num_timed: int = 0
    build_s: float = 0.0
    launch_us: float = 0.0


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model, or a draft head, that the pack was tuned for.

    Attributes:
        name: such as ``qwen3-8b``, or ``qwen3-8b-eagle3``.
        quantization: the scheme's name.
        contracts: the keys of the contracts that it calls.
        tp: ranks that share each layer; the contracts are then those that one of them calls by itself.
        lm_head_quantization: of its output head, as an engine is told; None if that is not quantized.
    """

    name: str
    quantization: str
    contracts: tuple[str, ...]
    tp: int = 1
    lm_head_quantization: Quantization | None = None

    @property
    def title(self) -> str:
        """For people: the model, its scheme, that of its output head if it is quantized and, if there are several, its
        ranks.
        """
        head = f" lm_head {self.lm_head_quantization}" if self.lm_head_quantization is not None else ""
        return f"{self.name} {self.quantization}{head}" + (f" tp {self.tp}" if self.tp > 1 else "")

    @property
    def identity(self) -> tuple[str, str, str | None, int]:
        """All but the contracts: a pack has one entry of each."""
        return self.name, self.quantization, self.lm_head_quantization, self.tp


class Pack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of ``pack.json``.

    Attributes:
        format_version: ``FORMAT_VERSION``.
        name: such as ``h100-sxm``.
        fingerprint: where it was measured, or what it was built for.
        source_hashes: op to the hash of what its binaries and configs depend on, and ``op.provider`` to that of what a
            provider has in another folder; see ``parhelion.ops.source_hash``.
        versions: package to version: parhelion, torch, triton, helion of the machine that tuned, and of the one that
            built under ``build.`` names.
        command: what made it.
        created_at: ISO 8601, UTC.
        models: that it was tuned for.
        ledger: what it cost.
        blocks: what was measured of whole blocks; none where only rows were.
    """

    format_version: int
    name: str
    fingerprint: Fingerprint
    rows: tuple[Row, ...]
    binaries: tuple[Binary, ...]
    source_hashes: dict[str, str]
    versions: dict[str, str]
    command: str
    created_at: str
    models: tuple[ModelEntry, ...] = ()
    ledger: Ledger = Ledger()
    blocks: tuple[BlockTime, ...] = ()
