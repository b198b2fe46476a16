"""The ``helion`` provider: an op's tile program, compiled and launched on a GPU or interpreted on a CPU.

An op's ``helion_kernel.py`` holds the tile programs, its ``launch.py`` (see ``launching``) what the host does with
them. Only here are the two brought together; a tile program's module, and with it Helion, is imported when the first
launcher needs it.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.gemm.target import target_of_device
from parhelion.ops.inputs import map_tensors
from parhelion.ops.interpreting import interpreting
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import BUCKETS, bucket_index, launch_module
from parhelion.ops.provider import BaseProvider, missing_package


class HelionProvider(BaseProvider):
    """Tile programs with untuned configs, compiled as they are first needed."""

    name = "helion"

    def why_not(self, device: torch.device) -> str | None:
        if device.type != "cuda" and not interpreting():
            return "it needs a GPU (on a CPU its programs run only in the interpreter: HELION_INTERPRET=1)"
        return missing_package("helion", "triton")

    def launcher(self, contract: Contract) -> Launcher:
        return self.configured(contract, None)

    def configured(self, contract: Contract, config: Any) -> Launcher:
        """The launcher with one config for all sizes of M; None for the untuned ones."""
        if interpreting():
            return InterpretedLaunch(contract, config)
        return CompiledLaunch(contract, config)


class InterpretedLaunch:
    """A tile program of one contract in Helion's interpreter."""

    def __init__(self, contract: Contract, config: Any) -> None:
        self._contract = contract
        self._config = config
        self._launch = launch_module(contract.name)

    def __call__(self, *inputs: Any) -> Any:
        target = target_of_device(inputs[0].device)
        bucket = BUCKETS[bucket_index(inputs[0].shape[0])]
        config = self._config or self._launch.default_config(self._contract, bucket, target)
        return self._launch.launch(self._contract, interpret, config, *inputs)


class CompiledLaunch:
    """A tile program of one contract, compiled as it is first needed."""

    def __init__(self, contract: Contract, config: Any) -> None:
        self._contract = contract
        self._module = launch_module(contract.name)
        self._run = CompiledRunner()
        self._configs = [config] * len(BUCKETS)
        self._has_met_one_token = False

    def __call__(self, *inputs: Any) -> Any:
        num_tokens = inputs[0].shape[0]
        index = bucket_index(num_tokens)
        config = self._configs[index]
        if config is None:
            target = target_of_device(inputs[0].device)
            config = self._configs[index] = self._module.default_config(self._contract, BUCKETS[index], target)
        if num_tokens == 1 and not self._has_met_one_token:
            self._has_met_one_token = True
            self._compile_for_any_number_of_tokens(config, inputs)
        return self._module.launch(self._contract, self._run, config, *inputs)

    def _compile_for_any_number_of_tokens(self, config: Any, inputs: tuple[Any, ...]) -> None:
        """Helion, bound to one token, takes M for the constant 1 and compiles something else; bound to two, it does
        not. So what one token needs is compiled for two, which do not exist.
        """
        given = len(inputs) - self._contract.num_weights
        stand_ins = map_tensors(inputs[:given], _two_if_one)
        self._module.launch(self._contract, self._run.compile, config, *stand_ins, *inputs[given:])


class CompiledRunner:
    """Compiles a kernel once per config and kind of arguments, and from then on calls Helion's own host function.

    Helion's dispatch (keys of every argument, look-up of the config) is skipped: a contract's arguments differ from
    call to call only in M, which is an argument of what is compiled, as are all strides.
    """

    def __init__(self) -> None:
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, kernel: str, config: KernelConfig, *arguments: Any) -> Any:
        return self.compile(kernel, config, *arguments)(*arguments)

    def compile(self, kernel: str, config: KernelConfig, *arguments: Any) -> Callable[..., Any]:
        """The host function of a kernel for arguments of this kind."""
        key = (kernel, config, *(_kind(argument) for argument in arguments))
        compiled = self._compiled.get(key)
        if compiled is None:
            with _alone():
                compiled = tile_program(kernel).bind(arguments).compile_config(helion_config(config))
            self._compiled[key] = compiled
        return compiled


@contextmanager
def _alone() -> Iterator[None]:
    """For Helion this process is in no group: where torch cannot tell symmetric memory from other, Helion takes every
    program of a process in a group for one that ranks run together, and makes it persistent.
    """
    with patch.object(torch.distributed, "is_initialized", return_value=False):
        yield


def interpret(kernel: str, config: KernelConfig, *arguments: Any) -> Any:
    """Run a kernel in Helion's interpreter, which knows no configs."""
    return tile_program(kernel)(*arguments)


@functools.cache
def tile_program(kernel: str) -> Any:
    """The ``helion.Kernel`` of a name such as ``gemm.gemm``; imports Helion."""
    folder, _, function = kernel.partition(".")
    return getattr(importlib.import_module(f"parhelion.ops.{folder}.helion_kernel"), function)


@functools.lru_cache(maxsize=4096)
def helion_config(config: KernelConfig) -> Any:
    """A config as Helion takes it."""
    import helion

    fields: dict[str, Any] = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    if config.block_sizes:
        fields["block_sizes"] = list(config.block_sizes)
    if config.loop_orders:
        fields["loop_orders"] = [list(order) for order in config.loop_orders]
    if config.l2_groupings:
        fields["l2_groupings"] = list(config.l2_groupings)
    if config.pid_type != "flat":
        fields["pid_type"] = config.pid_type
    return helion.Config(**fields, **{name: json.loads(value) for name, value in config.others})


def _kind(argument: Any) -> Any:
    return (argument.dtype, argument.ndim) if isinstance(argument, torch.Tensor) else argument


def _two_if_one(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim == 0 or tensor.shape[0] != 1:
        return tensor
    return tensor.new_empty((2, *tensor.shape[1:]))
