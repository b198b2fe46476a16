"""A contract's inputs as structures: tensors, numbers, and records that hold tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from parhelion.ops.contract import Contract, Tensors


@runtime_checkable
class RelatedInputs(Protocol):
    """A contract of which one input says something of another, so that not any numbers will do."""

    def related(self, *inputs: torch.Tensor) -> Tensors:
        """The inputs with those made anew that follow from others."""
        ...


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The value with every tensor changed: itself, those in a tuple or list, those in the fields of a dataclass."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        held = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        return replace(value, **{name: map_tensors(item, change) for name, item in held.items()})
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor of a value, in order."""
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, keep)
    return found


def empty_inputs(contract: Contract, num_tokens: int) -> Tensors:
    """Inputs of the right shapes, strides and dtypes that hold nothing: pages never touched cost no memory.

    The shapes are those of the contract's own samples, made where making them computes nothing.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        inputs = contract.sample_inputs(num_tokens, torch.device("cpu"), torch.Generator())
    emptied: Tensors = map_tensors(inputs, _empty_like)
    return emptied


def _empty_like(fake: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype)
