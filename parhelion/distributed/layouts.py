"""Ways to divide GPUs among a model: tensor parallel by pipeline stages by replicas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parhelion.distributed.model_size import ModelSize
from parhelion.errors import ConfigError

_ALIGNED = 16
"""What sizes of quantized linear layers are multiples of: vendors' products of codes take no others."""


@dataclass(frozen=True)
class Layout:
    """How GPUs are divided.

    Attributes:
        tp: ranks that share each layer.
        pp: stages of consecutive layers.
        dp: replicas of the model.
    """

    tp: int
    pp: int = 1
    dp: int = 1

    @property
    def num_gpus(self) -> int:
        """All of them."""
        return self.tp * self.pp * self.dp

    def __str__(self) -> str:
        return f"tp {self.tp} x pp {self.pp} x dp {self.dp}"


def layouts(num_gpus: int) -> Iterator[Layout]:
    """All ways to divide so many GPUs, whatever the model."""
    for tp in divisors(num_gpus):
        for pp in divisors(num_gpus // tp):
            yield Layout(tp, pp, num_gpus // (tp * pp))


def divisors(number: int) -> list[int]:
    """Ascending."""
    low = [each for each in range(1, int(number**0.5) + 1) if number % each == 0]
    return low + [number // each for each in reversed(low) if each * each != number]


def why_not(model: ModelSize, layout: Layout, gpus_per_node: int) -> str | None:
    """Why a model cannot be divided so, with sizes that would work; None if it can."""
    reason = why_not_tp(model, layout.tp)
    if reason is None and layout.tp > gpus_per_node and layout.tp % gpus_per_node:
        reason = f"tp {layout.tp} fills no whole nodes of {gpus_per_node}"
    elif reason is None and layout.tp < gpus_per_node and gpus_per_node % layout.tp and layout.num_gpus > gpus_per_node:
        reason = f"nodes of {gpus_per_node} are no multiple of tp {layout.tp}: a group would be in two nodes"
    if reason is not None:
        works = [tp for tp in sizes_of_tp(model) if _fits(tp, gpus_per_node)]
        return f"{reason}; tp may be {_listed(works)}"
    if model.num_layers < layout.pp:
        return f"{model.num_layers} layers are too few for pp {layout.pp}; pp may be 1 to {model.num_layers}"
    return None


def sizes_of_tp(model: ModelSize) -> list[int]:
    """Among how many ranks the layers can be divided, ascending."""
    return [tp for tp in divisors(model.num_heads) if why_not_tp(model, tp) is None]


def why_not_tp(model: ModelSize, tp: int) -> str | None:
    """Why the layers cannot be divided among so many ranks; None if they can."""
    if model.num_heads % tp:
        return f"{model.num_heads} heads are no multiple of tp {tp}"
    if max(model.num_kv_heads, tp) % min(model.num_kv_heads, tp):
        return f"{model.num_kv_heads} KV heads can be neither divided among tp {tp} nor replicated evenly"
    scheme = model.quantization
    unit = (scheme.block or _ALIGNED) if scheme.is_quantized else 1
    parts = (
        ("hidden size", model.hidden_size, 1),
        ("intermediate size", model.intermediate_size, tp),
        ("attention's width", model.num_heads * model.head_dim, tp),
    )
    for name, size, ranks in parts:
        if size % (ranks * unit):
            per = "" if unit == 1 else f" in units of {unit} ({scheme.name})"
            return f"the {name} of {size} cannot be divided by {ranks}{per}"
    kv_width = model.shard(tp).num_kv_heads * model.head_dim
    if tp > 1 and scheme.block is not None and kv_width % scheme.block:
        return f"a rank's keys are {kv_width} wide, no multiple of {scheme.block} ({scheme.name})"
    return None


def shared_or_whole(model: ModelSize, tp: int) -> ModelSize:
    """What each of ``tp`` ranks holds of a draft model: its part, or all of it where the layers cannot be divided."""
    return model.shard(tp) if why_not_tp(model, tp) is None else model


def check_tp(model: ModelSize, tp: int) -> None:
    """See that the layers can be divided among so many ranks.

    Raises:
        ConfigError: they cannot; the message names the sizes that would work.
    """
    reason = why_not_tp(model, tp)
    if reason is not None:
        works = _listed([each for each in sizes_of_tp(model) if each > 1])
        works = "nothing but 1" if works == "nothing" else f"1, {works}"
        raise ConfigError(f"tp is {tp}, but {reason}; tp may be {works}")


def _fits(tp: int, gpus_per_node: int) -> bool:
    return max(tp, gpus_per_node) % min(tp, gpus_per_node) == 0


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes)) or "nothing"
