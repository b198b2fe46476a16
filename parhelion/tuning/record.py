"""What an op would launch, found out without a GPU: its ``launch`` runs on empty CPU tensors and is written down."""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from parhelion.ops.contract import Contract
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.gluon_provider import gluon_source
from parhelion.ops.helion_provider import helion_config, tile_program
from parhelion.ops.inputs import empty_inputs
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import bucket_of, launch_module
from parhelion.ops.packed_kinds import kind_of
from parhelion.ops.tile_programs import module_for, providers_of

HELION = "helion"
"""The provider whose code is generated for what it is given; Gluon's is written."""


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel that was generated, or of a Gluon kernel.

    Attributes:
        kernel: the tile program's name, ``folder.function``.
        function: the ``triton.JITFunction``.
        arguments: in the order of its parameters.
        options: ``num_warps``, ``num_stages`` and the like.
        source: the module of which the function is part, as text.
        config: the kernel's config.
        kinds: of the arguments that the op handed to ``run``, as ``packs.format.Binary`` spells them.
        static_sizes: sizes of those arguments, as recipes spell them, that Helion compiled in, with their values.
    """

    kernel: str
    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    source: str
    config: KernelConfig
    kinds: tuple[str, ...] = ()
    static_sizes: tuple[tuple[str, int], ...] = ()


class GeneratedCode:
    """Generated modules by source: one generation serves all targets and sizes that are compiled alike.

    Args:
        num_processors: what persistent programs are told that the device has; None: what the device here says.
    """

    def __init__(self, num_processors: int | None = None) -> None:
        self.num_processors = num_processors
        self._folder = tempfile.TemporaryDirectory(prefix="parhelion-build-")
        self._modules: dict[str, ModuleType] = {}
        self._sources: dict[tuple[Any, KernelConfig], str] = {}

    def source(self, bound: Any, config: KernelConfig) -> str:
        """The Triton module of a bound kernel under a config."""
        # By identity: two bound kernels are never equal.
        key = (bound, config)
        if key not in self._sources:
            self._sources[key] = bound.to_triton_code(helion_config(config))
        return self._sources[key]

    def module(self, source: str) -> ModuleType:
        """The module, imported from a file: Triton reads the source of its functions."""
        name = f"generated_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
        if name not in self._modules:
            path = Path(self._folder.name) / f"{name}.py"
            path.write_text(source)
            self._modules[name] = _import(name, path)
            if self.num_processors is not None:
                _tell_processors(self._modules[name], self.num_processors)
        return self._modules[name]


class Preparer:
    """A runner (see ``launching``) that generates code for kernels, once for each kind of arguments. One that is
    written in Gluon is its own code, the same for all arguments.

    Attributes:
        target: the name of the target that is built for; launches with configs of their own for it read it.
        sources: the modules by kernel, config and kind of arguments.
    """

    def __init__(self, target: str, code: GeneratedCode) -> None:
        self.target = target
        self.sources: dict[tuple[Any, ...], str] = {}
        self._static_sizes: dict[str, tuple[tuple[str, int], ...]] = {}
        self._code = code

    def __call__(self, kernel: str, config: KernelConfig, *arguments: Any) -> None:
        self.source(kernel, config, arguments)

    def source(self, kernel: str, config: KernelConfig, arguments: tuple[Any, ...]) -> str:
        """The module for arguments of this kind."""
        key = (kernel, config, *map(_kind, arguments))
        if key not in self.sources and (written := gluon_source(kernel)) is not None:
            self.sources[key] = written
            self._static_sizes[written] = ()
        elif key not in self.sources:
            bound = tile_program(kernel).bind(arguments)
            self.sources[key] = self._code.source(bound, config)
            self._static_sizes[self.sources[key]] = _static_sizes(bound)
        return self.sources[key]

    def static_sizes(self, source: str) -> tuple[tuple[str, int], ...]:
        """What a module was generated for; see ``Launch``."""
        return self._static_sizes[source]

    def module(self, source: str) -> ModuleType:
        """A generated module, imported."""
        return self._code.module(source)


class Recorder:
    """A runner that writes every launch down instead of making it.

    Attributes:
        target: as of ``Preparer``.
        launches: what was recorded so far.
    """

    def __init__(self, preparer: Preparer) -> None:
        self.target = preparer.target
        self.launches: list[Launch] = []
        self._preparer = preparer

    def __call__(self, kernel: str, config: KernelConfig, *arguments: Any) -> None:
        source = self._preparer.source(kernel, config, arguments)
        module = self._preparer.module(source)

        def launcher(function: Any, grid: Any, *positional: Any, **options: Any) -> None:
            # Options with an underscore are Helion's own; its launcher keeps them from Triton.
            kept = {name: value for name, value in options.items() if not name.startswith("_")}
            kinds, static = tuple(map(kind_of, arguments)), self._preparer.static_sizes(source)
            self.launches.append(Launch(kernel, function, positional, kept, source, config, kinds, static))

        host: Callable[..., Any] = getattr(module, kernel.rpartition(".")[2])
        host(*arguments, _launcher=launcher)


def record(contract: Contract, num_tokens: int, target: str, code: GeneratedCode, config: Any = None) -> list[Launch]:
    """What the op's tile programs launch for M = ``num_tokens`` on a target.

    Args:
        config: the op's; None for the untuned one.
    """
    if config is None:
        config = launch_module(contract.name).default_config(contract, bucket_of(num_tokens), gemm_target(target))
    module = module_for(contract.name, config)
    preparer = Preparer(target, code)
    if num_tokens == 1 and HELION in providers_of(contract.name):
        # Helion takes an M of 1 for a constant. A server is given code for any M, so it is generated for two tokens.
        module.launch(contract, preparer, config, *empty_inputs(contract, 2))
    recorder = Recorder(preparer)
    module.launch(contract, recorder, config, *empty_inputs(contract, num_tokens))
    return recorder.launches


def _kind(argument: Any) -> Any:
    """What code is generated for: sizes are arguments of it."""
    return (argument.dtype, argument.ndim) if isinstance(argument, torch.Tensor) else argument


def _static_sizes(bound: Any) -> tuple[tuple[str, int], ...]:
    """Sizes that were specialized, by the tile program (``hl.specialize``) or because they are 1, read as numbers
    in the tensors that Helion traced with, and all others as symbols.
    """
    tensors = zip(bound.kernel.signature.parameters, bound.fake_args, strict=True)
    return tuple(
        (f"{name}.size({dimension})", int(size))
        for name, tensor in tensors
        if isinstance(tensor, torch.Tensor)
        for dimension, size in enumerate(tensor.shape)
        if str(size).isdecimal()
    )


def _tell_processors(module: ModuleType, num_processors: int) -> None:
    """Make a module's host function believe that the device has so many: it asks ``helion.runtime``, for one that is
    not here.
    """
    if hasattr(module, "helion"):
        runtime = SimpleNamespace(get_num_sm=lambda device: num_processors)
        module.helion = SimpleNamespace(runtime=runtime)  # type: ignore[attr-defined]


def _import(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
