"""Launchers as custom ops of torch, so that ``torch.compile`` takes a graph over them without looking inside."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from parhelion.errors import ConfigError
from parhelion.ops.contract import Contract, Launcher, Tensors, as_tuple

NAMESPACE = "parhelion"


def custom_op(contract: Contract, launch: Launcher) -> Launcher:
    """A function with the launcher's inputs and outputs that ``torch.compile(fullgraph=True)`` can trace.

    What it writes in place is declared, and shapes follow from the contract's own reference, for any M.

    Args:
        contract: whose inputs are tensors; one that takes a record (``paged_attention``) cannot be wrapped.
        launch: computes it. A second call for an equal contract replaces the first one's launcher.

    Raises:
        ConfigError: the contract takes something else than tensors.
    """
    inputs = _sample(contract)
    if not all(isinstance(value, torch.Tensor) for value in inputs):
        raise ConfigError(f"{contract.name} takes a record of tensors, which custom ops of torch cannot: call it as is")
    name = f"{contract.name}_{hashlib.sha256(contract.key().encode()).hexdigest()[:12]}"
    num_new = len(contract.outputs) - len(contract.mutated)
    operator = torch.library.custom_op(
        f"{NAMESPACE}::{name}",
        _without_aliases(launch, num_new),
        mutates_args=tuple(f"x{position}" for position in contract.mutated),
        schema=_schema(contract, len(inputs), num_new),
    )
    operator.register_fake(_without_aliases(contract.reference, num_new))

    def call(*arguments: torch.Tensor) -> Any:
        new = as_tuple(operator(*arguments)) if num_new else ()
        outputs = (*new, *(arguments[position] for position in contract.mutated))
        return outputs if len(outputs) > 1 else outputs[0]

    return call


def _schema(contract: Contract, num_inputs: int, num_new: int) -> str:
    """Inputs that are written are marked; they are no outputs, as a custom op's outputs are new tensors."""
    marks = {position: f"(a{position}!)" for position in contract.mutated}
    inputs = ", ".join(f"Tensor{marks.get(position, '')} x{position}" for position in range(num_inputs))
    outputs = "Tensor" if num_new == 1 else f"({', '.join(['Tensor'] * num_new)})"
    return f"({inputs}) -> {outputs}"


def _without_aliases(launch: Launcher, num_new: int) -> Launcher:
    def only_new(*inputs: torch.Tensor) -> Any:
        outputs = as_tuple(launch(*inputs))[:num_new]
        return outputs if num_new > 1 else outputs[0]

    return only_new


def _sample(contract: Contract) -> Tensors:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return contract.sample_inputs(2, torch.device("cpu"), torch.Generator())
