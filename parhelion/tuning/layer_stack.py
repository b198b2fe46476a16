"""Some blocks of a model with random weights and one step's tokens: what a kernel meets between its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from parhelion.layers.decoder_layer import STEP_VALUES, LayerShape, LayerWeights, layer_calls
from parhelion.layers.fusions import ON_GPU
from parhelion.layers.program import Call, Program, cover
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.gemm.target import target_of_device
from parhelion.ops.paged_attention.batch import MOST_DECODES, AttentionBatch
from parhelion.ops.paged_attention.sample import places, sample_rows, sampled_lens
from parhelion.ops.provider import fixed
from parhelion.ops.resolve import Resolver
from parhelion.platform.ceilings import l2_bytes
from parhelion.quantization import LinearWeights, QuantScheme, quantize_per_block, quantize_per_channel
from parhelion.tuning.model_calls import TunedModel, is_first_apart
from parhelion.tuning.model_contracts import BLOCK_SIZE

LEAST_LAYERS = 8
"""The first block is one of many, as in a model."""

MOST_LAYERS = 64

_TIMES_L2 = 4
"""The weights of all blocks beside the L2 cache: when a block's turn comes again nothing of it is left there."""


class ChosenResolver(Resolver):
    """Launchers that are given; for other contracts whatever serves without a pack.

    Args:
        device: where the model runs.
        given: by contract.
    """

    def __init__(self, device: torch.device, given: Mapping[Contract, Launcher]) -> None:
        super().__init__(device)
        self._given = given

    def launcher(self, contract: Contract) -> Launcher:
        """See ``Resolver``."""
        given = self._given.get(contract)
        return super().launcher(contract) if given is None else given

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        """See ``Resolver``."""
        given = self._given.get(contract)
        return super().bind(contract, *weights) if given is None else fixed(given, weights)


class LayerStack:
    """The first blocks of a model, each with weights of its own, and the tokens of one step.

    Up to 256 tokens are as many rows that each decode one, with some 576 in their caches; more are prompts. Of several
    ranks it is the part of one, which adds nothing up.

    In a way that makes one call of a block and cannot of a model's first, all blocks are as those behind it, and the
    step's tokens come with what a block before has left.

    Args:
        model: whose.
        num_tokens: M.
        device: where.
        num_layers: blocks.
        dtype: of activations.
        way: which of the plans in ``layers.fusions.ON_GPU``.

    Attributes:
        contracts: of all calls in order, those of all blocks.
    """

    def __init__(
        self,
        model: TunedModel,
        num_tokens: int,
        device: torch.device,
        num_layers: int,
        dtype: torch.dtype = torch.bfloat16,
        way: int = 0,
    ) -> None:
        shape = model.rank_shape
        self._plan = ON_GPU[way]
        self._has_first = not is_first_apart(model, target_of_device(device), self._plan, dtype)
        self._random = _Random(device, dtype)
        self._embedded = self._random.normal(num_tokens, shape.hidden_size)
        self._left = None if self._has_first else self._random.normal(num_tokens, shape.hidden_size)
        self._attention, num_blocks = _attention(num_tokens, model.max_position, device)
        self._positions, self._slots = places(self._attention, num_tokens, BLOCK_SIZE)
        cache = (num_blocks, BLOCK_SIZE, 2 * shape.num_kv_heads, shape.head_dim)
        self._caches = [self._random.normal(*cache) for _ in range(num_layers)]
        self._layers = self._calls(model, num_layers, dtype)
        self.contracts = tuple(call.contract for layer in self._layers for call in layer)

    def bound(self, resolver: Resolver) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """What runs all blocks once with these launchers, and returns hidden and residual [M, hidden_size]."""
        programs = [Program(layer, resolver, STEP_VALUES) for layer in self._layers]
        num_values = max(program.num_values for program in programs)

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            values: list[Any] = [None] * num_values
            # A copy, as blocks add to it in place.
            values[:4] = self._left, self._embedded.clone(), self._positions, self._slots
            values[5] = self._attention
            for program, cache in zip(programs, self._caches, strict=True):
                values[4] = cache
                program(values)
            return values[0], values[1]

        return run

    def _calls(self, model: TunedModel, num_layers: int, dtype: torch.dtype) -> list[list[Call]]:
        shape = model.rank_shape
        angles = torch.rand(model.max_position, shape.head_dim // 2, device=self._embedded.device)
        cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
        layers = []
        for index in range(num_layers):
            dims = LayerShape(
                hidden_size=shape.hidden_size,
                intermediate_size=shape.intermediate_size,
                num_heads=shape.num_heads,
                num_kv_heads=shape.num_kv_heads,
                head_dim=shape.head_dim,
                epsilon=shape.rms_norm_eps,
                block_size=BLOCK_SIZE,
                max_position=model.max_position,
                sliding_window=model.windows[index % len(model.windows)] if model.windows else None,
                dtype=dtype,
            )
            layers.append(
                cover(layer_calls(dims, self._weights(model), cos_sin, index == 0 and self._has_first), self._plan)
            )
        return layers

    def _weights(self, model: TunedModel) -> LayerWeights:
        shape, vector = model.rank_shape, self._random.vector
        biases = (shape.qkv_bias, model.out_bias, model.mlp_bias, model.mlp_bias)
        qkv, out, gate_up, down = (
            self._random.linear(n, k, model.quantization, bias)
            for (n, k), bias in zip(shape.projections, biases, strict=True)
        )
        return LayerWeights(
            input_norm=vector(shape.hidden_size),
            post_attention_norm=vector(shape.hidden_size),
            qkv=qkv,
            out=out,
            gate_up=gate_up,
            down=down,
            q_norm=vector(shape.head_dim) if shape.qk_norm else None,
            k_norm=vector(shape.head_dim) if shape.qk_norm else None,
        )


def layers_beyond_l2(model: TunedModel, device: torch.device) -> int:
    """How many blocks have more weights than the device's L2 cache holds, several times over."""
    stored = model.quantization.weight_dtype
    weights = (stored.itemsize if stored is not None else 2) * sum(n * k for n, k in model.rank_shape.projections)
    return min(MOST_LAYERS, max(LEAST_LAYERS, -(-_TIMES_L2 * l2_bytes(device) // weights)))


class _Random:
    """Numbers that a model might have, made on the device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._generator = torch.Generator(device).manual_seed(0)

    def normal(self, *size: int) -> torch.Tensor:
        return torch.randn(size, device=self._device, dtype=self._dtype, generator=self._generator)

    def vector(self, size: int) -> torch.Tensor:
        return 1 + self.normal(size) / 8

    def linear(self, n: int, k: int, quantization: QuantScheme, bias: bool) -> LinearWeights:
        weight = self.normal(n, k) / k**0.5
        added = self.normal(n) / 8 if bias else None
        if quantization.weight_dtype is None:
            return LinearWeights(weight, None, added, quantization)
        if quantization.block is None:
            codes, scales = quantize_per_channel(weight, quantization.weight_dtype)
        else:
            codes, scales = quantize_per_block(weight, quantization.block, quantization.weight_dtype)
        return LinearWeights(codes, scales, added, quantization)


def _attention(num_tokens: int, max_position: int, device: torch.device) -> tuple[AttentionBatch, int]:
    """The rows of a step, their bounds those that the engine gives, and how many blocks a cache needs for them."""
    query_lens, seq_lens = sampled_lens(num_tokens)
    # Heads of one element: query and cache are made elsewhere, and only the rows are wanted.
    one_element = (1, 1, 1, BLOCK_SIZE)
    _, cache, rows = sample_rows(query_lens, seq_lens, one_element, torch.float32, device, torch.Generator())
    batch = AttentionBatch(
        block_table=rows.block_table,
        seq_lens=rows.seq_lens,
        query_start_loc=rows.query_start_loc,
        max_query_len=1 if num_tokens <= MOST_DECODES else num_tokens,
        max_seq_len=max(max_position, rows.max_seq_len),
    )
    return batch, cache.shape[0]
