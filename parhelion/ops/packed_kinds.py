"""The kinds of ``run``'s arguments: as ``Binary.kinds`` spells them, and as what a runner looks them up by."""

from __future__ import annotations

import ast
import re
from typing import Any

import torch

from parhelion.errors import PackError

_TENSOR = re.compile(r"(\w+)\[(\d+)\]")


def kind_of(argument: Any) -> str:
    """The kind of an argument, as ``Binary.kinds`` spells it."""
    if isinstance(argument, torch.Tensor):
        return f"{str(argument.dtype).removeprefix('torch.')}[{argument.ndim}]"
    return repr(argument)


def key_of_kind(kind: str) -> Any:
    """(dtype, dimensions) of a tensor, else the value itself.

    Raises:
        PackError: it is neither.
    """
    tensor = _TENSOR.fullmatch(kind)
    name = tensor[1] if tensor else kind.removeprefix("torch.")
    dtype = getattr(torch, name, None) if name.isidentifier() else None
    if isinstance(dtype, torch.dtype):
        return (dtype, int(tensor[2])) if tensor else dtype
    try:
        value = ast.literal_eval(kind)
        hash(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise PackError(f"{kind[:40]!r} is no kind of argument that is known here; build the pack again") from None
    return value


def num_dimensions(kind: str) -> int | None:
    """Of a tensor; None if the kind is something else."""
    tensor = _TENSOR.fullmatch(kind)
    return int(tensor[2]) if tensor else None


def is_number(kind: str) -> bool:
    """Whether expressions may use such an argument's name."""
    return isinstance(key_of_kind(kind), int | float)
