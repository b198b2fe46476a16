"""What an op would launch, found out without a GPU: its ``launch`` runs on empty CPU tensors and is written down."""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from parhelion.ops.contract import Contract
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.helion_provider import helion_config, tile_program
from parhelion.ops.inputs import empty_inputs
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import bucket_of, launch_module


@dataclass(frozen=True)
class Launch:
    """One launch of a generated Triton kernel.

    Attributes:
        kernel: the tile program's name, ``folder.function``.
        function: the generated ``triton.JITFunction``.
        arguments: in the order of its parameters.
        options: ``num_warps``, ``num_stages`` and the like.
        source: the generated module, of which the function is part.
        config: the kernel's config.
    """

    kernel: str
    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    source: str
    config: KernelConfig


class GeneratedCode:
    """Generated modules by source: one generation serves all targets and sizes that are compiled alike."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="parhelion-build-")
        self._modules: dict[str, ModuleType] = {}
        self._sources: dict[tuple[int, KernelConfig], str] = {}

    def source(self, bound: Any, config: KernelConfig) -> str:
        """The Triton module of a bound kernel under a config."""
        key = (id(bound), config)
        if key not in self._sources:
            # Helion keeps bound kernels for as long as their kernel lives, so their ids stay theirs.
            self._sources[key] = bound.to_triton_code(helion_config(config))
        return self._sources[key]

    def module(self, source: str) -> ModuleType:
        """The module, imported from a file: Triton reads the source of its functions."""
        name = f"generated_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
        if name not in self._modules:
            path = Path(self._folder.name) / f"{name}.py"
            path.write_text(source)
            self._modules[name] = _import(name, path)
        return self._modules[name]


class Preparer:
    """A runner (see ``launching``) that generates code for kernels, once for each kind of arguments.

    Attributes:
        target: the name of the target that is built for; launches with configs of their own for it read it.
        sources: the generated modules by kernel, config and kind of arguments.
    """

    def __init__(self, target: str, code: GeneratedCode) -> None:
        self.target = target
        self.sources: dict[tuple[Any, ...], str] = {}
        self._code = code

    def __call__(self, kernel: str, config: KernelConfig, *arguments: Any) -> None:
        self.source(kernel, config, arguments)

    def source(self, kernel: str, config: KernelConfig, arguments: tuple[Any, ...]) -> str:
        """The module for arguments of this kind."""
        key = (kernel, config, *map(_kind, arguments))
        if key not in self.sources:
            self.sources[key] = self._code.source(tile_program(kernel).bind(arguments), config)
        return self.sources[key]

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
            self.launches.append(Launch(kernel, function, positional, kept, source, config))

        host: Callable[..., Any] = getattr(module, tile_program(kernel).name)
        host(*arguments, _launcher=launcher)


def record(contract: Contract, num_tokens: int, target: str, code: GeneratedCode, config: Any = None) -> list[Launch]:
    """What the op's tile programs launch for M = ``num_tokens`` on a target.

    Args:
        config: the op's; None for the untuned one.
    """
    module = launch_module(contract.name)
    if config is None:
        config = module.default_config(contract, bucket_of(num_tokens), gemm_target(target))
    preparer = Preparer(target, code)
    if num_tokens == 1:
        # Helion takes an M of 1 for a constant. A server is given code for any M, so it is generated for two tokens.
        module.launch(contract, preparer, config, *empty_inputs(contract, 2))
    recorder = Recorder(preparer)
    module.launch(contract, recorder, config, *empty_inputs(contract, num_tokens))
    return recorder.launches


def _kind(argument: Any) -> Any:
    """What code is generated for: sizes are arguments of it."""
    return (argument.dtype, argument.ndim) if isinstance(argument, torch.Tensor) else argument


def _import(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
