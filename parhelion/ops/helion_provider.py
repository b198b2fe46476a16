"""The ``helion`` provider: an op's tile program, run by whoever can run it here.

An op's ``helion_kernel.py`` holds the tile programs and one function

    def launch(contract, run, *inputs): ...

that allocates the outputs and hands each program to ``run(kernel, config, *arguments)``. What ``run`` does is decided
here: compile and launch on a GPU, interpret on a CPU, or record for a build on a machine without a GPU. A launch whose
configs depend on the device asks ``target_of(run)`` first. That module, and with it Helion, is imported only when the
provider is asked for a launcher.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.inputs import map_tensors
from parhelion.ops.provider import BaseProvider, missing_package

Runner = Callable[..., Any]
"""``run(kernel, config, *arguments)``: launch a Helion kernel with a fixed config. Returns what the kernel returns."""


class HelionProvider(BaseProvider):
    """Tile programs with the configs that their modules name; never tuned while serving."""

    name = "helion"

    def why_not(self, device: torch.device) -> str | None:
        if device.type != "cuda" and not interpreting():
            return "it needs a GPU (on a CPU its programs run only in the interpreter: HELION_INTERPRET=1)"
        return missing_package("helion", "triton")

    def refuses(self, contract: Contract) -> str | None:
        refuse: Callable[[Contract], str | None] | None = getattr(kernel_module(contract.name), "refuses", None)
        return refuse(contract) if refuse is not None else None

    def launcher(self, contract: Contract) -> Launcher:
        launch = kernel_module(contract.name).launch
        if interpreting():
            return functools.partial(launch, contract, interpret)
        return CompiledLaunch(contract, launch)


class CompiledLaunch:
    """A tile program of one contract, compiled as it is first needed.

    Args:
        contract: which.
        launch: of the op's ``helion_kernel``.
    """

    def __init__(self, contract: Contract, launch: Launcher) -> None:
        self._contract = contract
        self._launch = launch
        self._run = CompiledRunner()
        self._has_met_one_token = False

    def __call__(self, *inputs: Any) -> Any:
        if not self._has_met_one_token and inputs[0].shape[0] == 1:
            self._has_met_one_token = True
            self._compile_for_any_number_of_tokens(inputs)
        return self._launch(self._contract, self._run, *inputs)

    def _compile_for_any_number_of_tokens(self, inputs: tuple[Any, ...]) -> None:
        """Helion, bound to one token, takes M for the constant 1 and compiles something else; bound to two, it does
        not. So what one token needs is compiled for two, which do not exist.
        """
        given = len(inputs) - self._contract.num_weights
        stand_ins = map_tensors(inputs[:given], _two_if_one)
        self._launch(self._contract, self._run.compile, *stand_ins, *inputs[given:])


class CompiledRunner:
    """Compiles a kernel once per config and kind of arguments, and from then on calls Helion's own host function.

    Helion's dispatch (keys of every argument, look-up of the config) is skipped: a contract's arguments differ from
    call to call only in M, which is an argument of what is compiled, as are all strides.
    """

    def __init__(self) -> None:
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, kernel: Any, config: Any, *arguments: Any) -> Any:
        return self.compile(kernel, config, *arguments)(*arguments)

    def compile(self, kernel: Any, config: Any, *arguments: Any) -> Callable[..., Any]:
        """The host function of a kernel for arguments of this kind."""
        key = (kernel, config, *(_kind(argument) for argument in arguments))
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = kernel.bind(arguments).compile_config(config)
            self._compiled[key] = compiled
        return compiled


def target_of(run: Runner) -> str | None:
    """What a recording runner builds for, such as ``"sm_90"`` or ``"gfx942"`` (its attribute ``target``).

    None if ``run`` launches or interprets: then the inputs' device decides.
    """
    target: str | None = getattr(run, "target", None)
    return target


def interpret(kernel: Any, config: Any, *arguments: Any) -> Any:
    """Run a kernel in Helion's interpreter, which knows no configs."""
    return kernel(*arguments)


def interpreting() -> bool:
    """Whether Helion was told to interpret (``HELION_INTERPRET=1``); its own variable, read as it reads it."""
    return os.environ.get("HELION_INTERPRET", "0") not in ("", "0")


def kernel_module(op: str) -> ModuleType:
    """An op's ``helion_kernel``; imports Helion."""
    return importlib.import_module(f"parhelion.ops.{op}.helion_kernel")


def _kind(argument: Any) -> Any:
    return (argument.dtype, argument.ndim) if isinstance(argument, torch.Tensor) else argument


def _two_if_one(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim == 0 or tensor.shape[0] != 1:
        return tensor
    return tensor.new_empty((2, *tensor.shape[1:]))
