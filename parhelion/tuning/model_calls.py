"""What one step of a model calls, and how often: the contracts of the fused plan, each with its count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from parhelion.distributed.layouts import check_tp
from parhelion.distributed.model_size import ModelSize
from parhelion.errors import ConfigError
from parhelion.layers.decoder_layer import LayerShape, LayerWeights, add_norm, layer_calls
from parhelion.layers.fusions import FUSED, ON_GPU
from parhelion.layers.program import PLAIN, Plan, cover
from parhelion.layers.vocabulary import head_calls
from parhelion.models.checkpoint import read_model_config
from parhelion.ops.contract import Contract
from parhelion.ops.embedding import Embedding
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.linear import Linear
from parhelion.ops.registry import needs_other_ranks, needs_single_rows, own_parts
from parhelion.ops.step_inputs import StepInputs
from parhelion.ops.weight_only_mm import WeightOnlyMm
from parhelion.quantization import (
    UNQUANTIZED,
    LinearWeights,
    QuantScheme,
    RequestedQuantization,
    choose_head_scheme,
)
from parhelion.tuning.model_contracts import BLOCK_SIZE, MAX_POSITION, samplers, scheme
from parhelion.tuning.model_shapes import ModelShape, model_shape

NUM_LAYERS: Mapping[str, int] = MappingProxyType(
    {
        "smollm2-135m": 30,
        "qwen3-0.6b": 28,
        "qwen3-1.7b": 28,
        "qwen3-8b": 36,
        "qwen3-32b": 64,
        "llama-3-8b": 32,
        "qwen2.5-7b": 28,
    }
)
"""Blocks of the listed models (``num_hidden_layers``)."""


@dataclass(frozen=True)
class TunedModel:
    """A model as far as the tuner cares.

    Attributes:
        shape: its dimensions.
        num_layers: blocks.
        quantization: of its linear layers.
        max_position: positions of the rotary table.
        windows: of each block, how many tokens back a query sees; empty if all see all.
        out_bias, mlp_bias: the attention's output projection, and the feed-forward's two, add a bias.
        tp: ranks that share each layer; what is tuned is what one of them calls by itself.
        lm_head_quantization: of its output head, as an engine is told.
    """

    shape: ModelShape
    num_layers: int
    quantization: QuantScheme
    max_position: int = MAX_POSITION
    windows: tuple[int | None, ...] = ()
    out_bias: bool = False
    mlp_bias: bool = False
    tp: int = 1
    lm_head_quantization: RequestedQuantization | None = None

    @property
    def name(self) -> str:
        return self.shape.name

    @property
    def rank_shape(self) -> ModelShape:
        """The dimensions that one rank computes with."""
        return self.shape.shard(self.tp)

    @property
    def head_quantization(self) -> QuantScheme:
        """The scheme of its output head."""
        return choose_head_scheme(self.lm_head_quantization)


def tuned_model(
    model: str,
    quantization: str | None = None,
    tp: int = 1,
    lm_head_quantization: RequestedQuantization | None = None,
) -> TunedModel:
    """A listed model by name, or one by its folder or ``.gguf`` file, of which only the config is read.

    Layers that a checkpoint's scheme leaves unquantized are counted as quantized.

    Args:
        quantization: a scheme's name; None is the checkpoint's own, and none for a listed model.
        tp: ranks that share each layer.
        lm_head_quantization: of the output head, which no checkpoint quantizes.

    Raises:
        ConfigError: there is no such model or scheme, they do not fit each other, the checkpoint is quantized
            already, or so many ranks cannot share the layers.
        CheckpointError: the config cannot be read.
    """
    found = _from_config(Path(model)) if Path(model).exists() else _listed(model)
    found = replace(found, lm_head_quantization=lm_head_quantization)
    if quantization is None:
        return _of_ranks(found, tp)
    asked = scheme(quantization)
    if found.quantization.is_quantized and found.quantization.name != asked.name:
        raise ConfigError(f"{model} is quantized as {found.quantization.name} already: leave --quantization out")
    block = asked.block
    if block is not None and (odd := [k for _, k in found.shape.projections if k % block]):
        raise ConfigError(f"{model} has a layer of {odd[0]} inputs, and {asked.name} takes multiples of {block}")
    return _of_ranks(replace(found, quantization=asked), tp)


def check_ranks(shape: ModelShape, quantization: QuantScheme, tp: int) -> None:
    """See that so many ranks can share each layer.

    Raises:
        ConfigError: they cannot; the message names the sizes that would work.
    """
    s = shape
    # Whether the tables are tied is no matter here, and neither are layers.
    dims = (s.hidden_size, s.intermediate_size, s.num_heads, s.num_kv_heads, s.head_dim, s.vocab_size)
    check_tp(ModelSize(s.name, 1, *dims, False, quantization), tp)


def layer_contracts(
    model: TunedModel, target: GemmTarget, dtype: torch.dtype = torch.bfloat16, plan: Plan = ON_GPU[0]
) -> Counter[Contract]:
    """What all blocks and the last norm call in one step on a target, of several ranks what each calls by itself.

    Where a plan makes one call of a block and cannot of the first one, that is computed under the first plan.
    """
    counts: Counter[Contract] = Counter()
    for index in range(model.num_layers):
        own = plan if index or not is_first_apart(model, target, plan, dtype) else ON_GPU[0]
        counts.update(_block(model, target, dtype, index, own))
    counts.update(_last_norm(model, dtype, plan))
    return counts


def is_first_apart(model: TunedModel, target: GemmTarget, plan: Plan, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether a plan computes the blocks behind the first in calls for rows of single tokens, and not the first."""
    # Of a model with but one block too, what another one would be.
    more = replace(model, num_layers=2, windows=model.windows[:1] * 2)
    first, later = (needs_single_rows(_block(more, target, dtype, index, plan)) for index in range(2))
    return later and not first


def served_contracts(model: TunedModel, target: GemmTarget, dtype: torch.dtype = torch.bfloat16) -> list[Contract]:
    """All that an engine which serves the model on a target may call, under any plan, each once; of several ranks what
    each of them calls by itself.
    """
    of_tokens, of_requests = edge_contracts(model, dtype, target)
    found = dict.fromkeys(of_tokens)
    for plan in (PLAIN, FUSED, *ON_GPU):
        for index in _kinds_of_blocks(model):
            found.update(dict.fromkeys(_block(model, target, dtype, index, plan)))
        found.update(dict.fromkeys(_last_norm(model, dtype, plan)))
        found.update(dict.fromkeys(_head(model, target, dtype, plan)))
    return list(dict.fromkeys((*found, *of_requests)))


def alternative_contracts(model: TunedModel, target: GemmTarget) -> Counter[Contract]:
    """What only other plans than the first call, which a step calls instead of something else."""
    heads = head_ways(model, target)
    usual, found = {*layer_contracts(model, target), *heads[0]}, Counter[Contract]()
    for plan, head in zip(ON_GPU[1:], heads[1:], strict=True):
        counts = layer_contracts(model, target, plan=plan) + Counter(head)
        found |= Counter({contract: count for contract, count in counts.items() if contract not in usual})
    return found


def layer_ways(model: TunedModel, target: GemmTarget) -> list[list[Contract]]:
    """What a block that is not the first calls under each of the plans, of several ranks what each calls by itself."""
    return [own_parts(way) for way in shared_layer_ways(model, target)]


def shared_layer_ways(model: TunedModel, target: GemmTarget) -> list[list[Contract]]:
    """The same with what ranks call together."""
    return [_calls(model, target, torch.bfloat16, model.num_layers - 1, plan) for plan in ON_GPU]


def called_contracts(model: TunedModel, target: GemmTarget) -> list[set[Contract]]:
    """All that blocks call under each of the plans, the first one's own calls included."""
    return [set(layer_contracts(model, target, plan=plan)) for plan in ON_GPU]


def left_to_ranks(model: TunedModel, target: GemmTarget) -> tuple[str, ...]:
    """The ops that ranks call together, under any of the plans; none of one rank alone."""
    return tuple(sorted({contract.name for contract in shared_contracts(model, target)}))


def shared_contracts(model: TunedModel, target: GemmTarget, dtype: torch.dtype = torch.bfloat16) -> Counter[Contract]:
    """What ranks call together in one step, and how often: the most of any plan."""
    found: Counter[Contract] = Counter()
    for plan in ON_GPU:
        found |= shared_under(model, target, plan, dtype)
    return found


def shared_under(
    model: TunedModel, target: GemmTarget, plan: Plan, dtype: torch.dtype = torch.bfloat16
) -> Counter[Contract]:
    """What ranks call together in one step under a plan: the blocks behind the first are alike in that."""
    last = add_norm(model.shape.hidden_size, model.shape.rms_norm_eps, dtype, _empty(1), model.tp)
    counts = Counter(call.contract for call in cover(last, plan))
    counts.update(_calls(model, target, dtype, 0, plan))
    for contract, count in Counter(_calls(model, target, dtype, model.num_layers - 1, plan)).items():
        counts[contract] += (model.num_layers - 1) * count
    return Counter({contract: count for contract, count in counts.items() if needs_other_ranks(contract)})


def head_ways(
    model: TunedModel, target: GemmTarget | None = None, dtype: torch.dtype = torch.bfloat16
) -> list[list[Contract]]:
    """What the output head calls under each of the plans. ``target`` None is any that has 8-bit floats."""
    return [_head(model, target, dtype, plan) for plan in ON_GPU]


def edge_contracts(
    model: TunedModel, dtype: torch.dtype = torch.bfloat16, target: GemmTarget | None = None
) -> tuple[list[Contract], list[Contract]]:
    """What sees every token, before the blocks, and what sees one token a request: the output head and the samplers
    behind them, and before them what looks up the inputs of steps that have no other tokens.

    Which of the samplers a step calls depends on its requests; all are counted. Of the ways to compute the output head
    it is the first.
    """
    shape, rank = model.shape, model.rank_shape
    of_requests = [*head_ways(model, target, dtype)[0], *samplers(shape, model.tp, dtype), StepInputs(BLOCK_SIZE)]
    return [Embedding(rank.vocab_size, shape.hidden_size, dtype)], of_requests


def _of_ranks(model: TunedModel, tp: int) -> TunedModel:
    check_ranks(model.shape, model.quantization, tp)
    return replace(model, tp=tp)


def _listed(name: str) -> TunedModel:
    try:
        shape = model_shape(name)
    except ConfigError as error:
        raise ConfigError(f"{error}; a folder with a config.json will do too") from None
    return TunedModel(shape, NUM_LAYERS[name], UNQUANTIZED)


def _from_config(path: Path) -> TunedModel:
    config = read_model_config(path)
    shape = ModelShape(
        path.resolve().name,
        config.hidden_size,
        config.intermediate_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.vocab_size,
        config.rms_norm_eps,
        config.qk_norm,
        config.attention_bias,
    )
    return TunedModel(
        shape,
        config.num_layers,
        config.quantization or UNQUANTIZED,
        config.max_position,
        config.sliding_windows,
        config.attention_output_bias,
        config.mlp_bias,
    )


def _head(model: TunedModel, target: GemmTarget | None, dtype: torch.dtype, plan: Plan) -> list[Contract]:
    """What the output head calls; see ``head_ways``."""
    scheme, shape = model.head_quantization, model.rank_shape
    widens = target is not None and _widens(scheme, target)
    head = _linear(shape.vocab_size, shape.hidden_size, UNQUANTIZED if widens else scheme, False)
    calls = [call.contract for call in cover(head_calls(head, dtype), plan)]
    return [_weight_only(each) for each in calls] if widens else calls


def _last_norm(model: TunedModel, dtype: torch.dtype, plan: Plan) -> list[Contract]:
    """What a rank calls by itself of the norm behind the blocks."""
    norm = add_norm(model.shape.hidden_size, model.shape.rms_norm_eps, dtype, _empty(1), model.tp)
    return own_parts(call.contract for call in cover(norm, plan))


def _kinds_of_blocks(model: TunedModel) -> list[int]:
    """The first block, whose input norm adds nothing, and of the others one for each window."""
    windows = model.windows or (None,) * model.num_layers
    others = {window: index for index, window in reversed(list(enumerate(windows))) if index > 0}
    return [0, *sorted(others.values())]


def _block(model: TunedModel, target: GemmTarget, dtype: torch.dtype, index: int, plan: Plan) -> list[Contract]:
    """The contracts of those of one block's calls that a rank makes by itself."""
    return own_parts(_calls(model, target, dtype, index, plan))


def _calls(model: TunedModel, target: GemmTarget, dtype: torch.dtype, index: int, plan: Plan) -> list[Contract]:
    """The contracts of one block's calls; it is asked with parameters that have shapes and no values."""
    s, quantization = model.rank_shape, model.quantization
    # Without 8-bit floats a layer multiplies FP8 weights by activations as they are, or dequantizes the weights.
    widens = _widens(quantization, target)
    if widens:
        quantization = UNQUANTIZED
    biases = (s.qkv_bias, model.out_bias, model.mlp_bias, model.mlp_bias)
    qkv, out, gate_up, down = (
        _linear(n, k, quantization, bias) for (n, k), bias in zip(s.projections, biases, strict=True)
    )
    dims = LayerShape(
        s.hidden_size,
        s.intermediate_size,
        s.num_heads,
        s.num_kv_heads,
        s.head_dim,
        s.rms_norm_eps,
        BLOCK_SIZE,
        model.max_position,
        model.windows[index] if model.windows else None,
        dtype,
        model.tp,
    )
    norm, head_norm = _empty(s.hidden_size), _empty(s.head_dim) if s.qk_norm else None
    weights = LayerWeights(norm, norm, qkv, out, gate_up, down, head_norm, head_norm)
    calls = cover(layer_calls(dims, weights, _empty(model.max_position, s.head_dim), index == 0), plan)
    contracts = [call.contract for call in calls]
    return [_weight_only(each) for each in contracts] if widens and model.quantization.block is None else contracts


def _widens(quantization: QuantScheme, target: GemmTarget) -> bool:
    """Whether layers there widen FP8 weights and leave activations as they are: on what ``platform.device.has_float8``
    says no of. AMD's GPUs quantize them, also those whose matrix unit takes another format.
    """
    return quantization.weight_dtype == torch.float8_e4m3fn and not (target.float8 or target.is_amd)


def _weight_only(contract: Contract) -> Contract:
    if not isinstance(contract, Linear):
        return contract
    return WeightOnlyMm(contract.in_features, contract.out_features, contract.dtype, contract.bias)


def _linear(n: int, k: int, quantization: QuantScheme, bias: bool) -> LinearWeights:
    scales = _empty(n, 1) if quantization.is_quantized else None
    return LinearWeights(_empty(n, k), scales, _empty(n) if bias else None, quantization)


def _empty(*size: int) -> torch.Tensor:
    return torch.empty(size, device="meta")
