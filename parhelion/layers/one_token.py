"""A block for one token on a CPU, as a single function that TorchInductor compiles.

With one token every matrix product is a pass over the weight, which a compiled loop makes as fast as any library; and
what lies between the products costs more in launches than in arithmetic. So the whole block becomes one function:
the contracts' own formulas in the order of the block's calls, with attention over the token's own row of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from types import FunctionType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import wait_tensor

from parhelion.layers.program import Call
from parhelion.ops.collectives.all_reduce import AllReduce
from parhelion.ops.contract import Contract, as_tuple
from parhelion.ops.linear import Linear
from parhelion.ops.linear.cpu import one_token_product
from parhelion.ops.paged_attention.cpu import attend_one_token
from parhelion.ops.paged_attention.cpu_batch import DecodeGroup
from parhelion.ops.registry import op

Function = Callable[..., Any]

MARGIN = 2
"""Added to integers that a compiled function is given: 0 and 1 it would take for constants."""


@dataclass(frozen=True)
class OneTokenLayer:
    """A compiled block with its weights.

    Attributes:
        run: shared by all blocks that are alike.
        weights: of all calls, one after the other.
    """

    run: Function
    weights: tuple[torch.Tensor, ...]

    def __call__(self, values: list[Any], row: DecodeGroup) -> None:
        """Compute on the values that the block's ``Program`` would be given (``STEP_VALUES``), and leave the same."""
        hidden, residual, positions, slot_mapping, kv_cache = values[:5]
        adjacent = row.first_block is not None
        first = (row.first_block or 0) * kv_cache.shape[1]
        values[0], values[1] = self.run(
            self.weights,
            hidden,
            residual,
            positions,
            slot_mapping,
            kv_cache,
            None if adjacent else row.blocks,
            first + MARGIN,
            row.longest + MARGIN,
        )


class OneTokenCompiler:
    """Makes blocks for one token; blocks with equal contracts share a compiled function.

    Args:
        weight_dtype: that the matrix products read their weights in.
    """

    def __init__(self, weight_dtype: torch.dtype) -> None:
        self._weight_dtype = weight_dtype
        self._functions: dict[tuple[Any, ...], Function] = {}

    def layer(self, calls: Sequence[Call]) -> OneTokenLayer:
        """The block of these calls, which must be of unquantized weights."""
        key = tuple((call.contract, call.inputs, call.outputs) for call in calls)
        if key not in self._functions:
            options = {"guard_filter_fn": _guards_of_what_varies}
            function = _with_own_code(_block_function(calls), sha256(repr(key).encode()).hexdigest()[:16])
            self._functions[key] = torch.compile(function, fullgraph=True, options=options)
        return OneTokenLayer(self._functions[key], tuple(w for call in calls for w in self._kept(call)))

    def _kept(self, call: Call) -> tuple[torch.Tensor, ...]:
        if not isinstance(call.contract, Linear):
            return call.weights
        weight, *bias = call.weights
        return (weight.to(self._weight_dtype).contiguous(), *bias)


_OF_A_ROW = ("blocks", "first", "num_tokens")
_VARYING = ("hidden", "kv_cache", *_OF_A_ROW)


def for_any_row() -> AbstractContextManager[None]:
    """While it lasts, blocks compile for rows of any length, anywhere in the cache. Elsewhere Dynamo takes a length for
    a constant until it meets a second one, and compiles again.
    """
    from torch.compiler import config

    patch: AbstractContextManager[None] = config.patch(dynamic_sources=",".join(f"L['{name}']" for name in _OF_A_ROW))
    return patch


def _guards_of_what_varies(guards: Sequence[Any]) -> list[bool]:
    """Which of Dynamo's checks are made at every call: those of the inputs that may be something else next time.

    The rest, some forty checks of weights and formulas, would cost a sixth of the block's time, and always hold: a
    function serves one kind of block and nothing else. Checks without a name are of global state.
    """
    return [not guard.name or guard.name in _VARYING for guard in guards]


def _with_own_code(function: Function, kind: str) -> Function:
    """The function with a code object that no other function has: Dynamo keeps what it compiled by code object.

    Args:
        kind: names what it computes. Under one name Dynamo would take the width of a draft model's blocks and that of
            the model's for one number that varies, and compile for any width.
    """
    code = function.__code__.replace(co_name=f"one_token_block_{kind}")
    return FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)


def can_compile(calls: Sequence[Call]) -> bool:
    """Whether a block consists of contracts whose formulas are made for this."""
    return all(_is_traceable(call.contract) for call in calls)


def _is_traceable(contract: Contract) -> bool:
    return contract.name in _FORMULAS and getattr(contract, "soft_cap", None) is None


def _block_function(calls: Sequence[Call]) -> Function:
    steps = tuple(
        (_FORMULAS[call.contract.name](call.contract), call.inputs, call.outputs, len(call.weights)) for call in calls
    )

    def run(
        weights: tuple[torch.Tensor, ...],
        hidden: torch.Tensor | None,
        residual: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache: torch.Tensor,
        blocks: torch.Tensor | None,
        first: int,
        num_tokens: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values: dict[str, Any] = {
            "hidden": hidden,
            "residual": residual,
            "positions": positions,
            "slot_mapping": slot_mapping,
            "kv_cache": kv_cache,
            "attention": (blocks, first - MARGIN, num_tokens - MARGIN),
        }
        taken = 0
        for formula, inputs, outputs, count in steps:
            result = formula(*[values[name] for name in inputs], *weights[taken : taken + count])
            values.update(zip(outputs, as_tuple(result), strict=True))
            taken += count
        return values["hidden"], values["residual"]

    return run


def _compiled_alone(contract: Contract) -> Function:
    """What the op's own ``inductor`` provider compiles."""
    provider: Any = op(contract.name).provider("inductor")
    function: Function = provider.function(contract)
    return function


def _sum_over_ranks(contract: AllReduce) -> Function:
    """Gloo's sum as a function without side effects, as which the compiler knows it; the group is torch's default."""
    group = dist.distributed_c10d._get_default_group().group_name

    def summed(hidden: torch.Tensor) -> torch.Tensor:
        return wait_tensor(torch.ops._c10d_functional.all_reduce(hidden, "sum", group))

    return summed


_FORMULAS: Mapping[str, Callable[[Any], Function]] = {
    "all_reduce": _sum_over_ranks,
    "linear": lambda contract: one_token_product,
    "paged_attention": attend_one_token,
    "rms_norm": _compiled_alone,
    "fused_add_rms_norm": lambda contract: contract.reference,
    "silu_and_mul": _compiled_alone,
    "rope_and_cache": _compiled_alone,
    "fused_qk_norm_rope": _compiled_alone,
}
"""What each contract becomes inside the function, by the op's name."""
