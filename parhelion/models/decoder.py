"""The decoder-only transformer that the architectures share: a stack of pre-norm attention and feed-forward blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from parhelion.distributed.group import ALONE, Group
from parhelion.distributed.stages import Stage, whole_model
from parhelion.layers.alternatives import Alternatives, LayerPrograms
from parhelion.layers.decoder_layer import (
    STEP_VALUES,
    LayerShape,
    LayerWeights,
    add_norm,
    as_later_block,
    layer_calls,
    sum_over_ranks,
)
from parhelion.layers.one_token import OneTokenCompiler, can_compile
from parhelion.layers.program import Call, Plan, Program, cover
from parhelion.layers.step_batch import StepBatch
from parhelion.layers.vocabulary import VocabularyEmbedding, VocabularyHead, rows_per_rank
from parhelion.models.config import ModelConfig
from parhelion.models.rope import inverse_frequencies
from parhelion.models.weights import Weights
from parhelion.ops.launching import BUCKETS
from parhelion.ops.paged_attention.cpu_batch import CpuAttentionBatch, DecodeGroup
from parhelion.ops.registry import COLLECTIVES
from parhelion.ops.resolve import Resolver
from parhelion.quantization import UNQUANTIZED, LinearWeights, QuantScheme, Section, load_linear, weights_of


@dataclass(frozen=True)
class BuildOptions:
    """How a model is put together.

    Attributes:
        dtype: of activations, norms and the KV cache.
        storage_dtype: of the embedding's table.
        scheme: how linear layers are quantized, those that it ignores excepted.
        head_scheme: how the output head is quantized.
        plans: the fusions, or several sets of which at each size of M the quickest serves, as far as a pack knows.
        resolver: finds the providers; its device is the model's.
        block_size: tokens of a KV block.
        max_model_len: positions that the rotary tables cover.
        compile_one_token: let TorchInductor make a function of each block for steps of one token (CPUs).
        keep_tables: leave the embedding's table and the output matrix, as stored, with the model, for a head that
            shares them; who asked for them takes them away.
        group: the ranks that share each layer.
        stage: which layers there are, and whether what comes before and behind them; None for the whole model.
    """

    dtype: torch.dtype
    storage_dtype: torch.dtype
    scheme: QuantScheme
    plans: tuple[Plan, ...]
    resolver: Resolver
    block_size: int
    max_model_len: int
    head_scheme: QuantScheme = UNQUANTIZED
    compile_one_token: bool = False
    keep_tables: bool = False
    group: Group = ALONE
    stage: Stage | None = None

    @property
    def device(self) -> torch.device:
        return self.resolver.device


class WeightLoader:
    """Reads this rank's part of a block's parameters, stacking the projections that share an input.

    Args:
        config: the model's, whole.
        weights: its tensors.
        options: dtype, device and scheme.
    """

    def __init__(self, config: ModelConfig, weights: Weights, options: BuildOptions) -> None:
        self._config = config
        self._weights = weights
        self._options = options

    def linear(
        self,
        names: Sequence[str],
        rows: Sequence[int],
        in_features: int,
        bias: bool,
        sections: Sequence[Section] = (),
    ) -> LinearWeights:
        """One layer out of several projections of the same input, stacked in the order given.

        Args:
            sections: what this rank has of each; everything if it is alone.
        """
        o = self._options
        kept = () if o.group.is_alone else tuple(sections)
        rows = tuple(rows)
        return load_linear(self._weights, o.scheme, tuple(names), rows, in_features, bias, o.dtype, o.device, kept)

    def vector(self, name: str, size: int) -> torch.Tensor:
        """A norm's weight, [size]."""
        return self._weights.get(f"{name}.weight", size).to(self._options.device, self._options.dtype)

    def table(self, name: str, vocab_size: int | None = None) -> torch.Tensor:
        """An embedding's or an output head's [vocab_size, hidden_size], as stored; of several ranks each has as many
        rows, zeros behind the last of the vocabulary included. ``vocab_size`` is the model's unless given.
        """
        group, shape = self._options.group, (vocab_size or self._config.vocab_size, self._config.hidden_size)
        if group.is_alone:
            return self._weights.get(f"{name}.weight", *shape)
        rows = rows_per_rank(shape[0], group)
        first = min(rows * group.rank, shape[0])
        section = Section(0, first, min(first + rows, shape[0]))
        found = self._weights.get_section(f"{name}.weight", section, *shape)
        if section.size == rows:
            return found
        return torch.cat((found, found.new_zeros(rows - section.size, shape[1])))

    def shape(self, index: int) -> LayerShape:
        """Static dimensions of block number ``index``, as this rank computes it."""
        return _layer_shape(self._config.shard(self._options.group.size), self._options, index)

    def layer(self, index: int) -> LayerWeights:
        """Block number ``index``."""
        return self.block(f"model.layers.{index}", self._config.hidden_size)

    def block(self, prefix: str, attention_in: int) -> LayerWeights:
        """The block whose tensors' names begin with ``prefix``; its queries, keys and values are made of
        ``attention_in`` features.
        """
        c, group = self._config, self._options.group
        q_rows, kv_rows = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        kv_section = group.heads(0, c.num_kv_heads, c.head_dim)
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        return LayerWeights(
            input_norm=self.vector(f"{prefix}.input_layernorm", c.hidden_size),
            post_attention_norm=self.vector(f"{prefix}.post_attention_layernorm", c.hidden_size),
            qkv=self.linear(
                [f"{attention}.{name}_proj" for name in "qkv"],
                (q_rows, kv_rows, kv_rows),
                attention_in,
                c.attention_bias,
                (group.heads(0, c.num_heads, c.head_dim), kv_section, kv_section),
            ),
            out=self.linear(
                [f"{attention}.o_proj"],
                (c.hidden_size,),
                q_rows,
                c.attention_output_bias,
                (group.heads(1, c.num_heads, c.head_dim),),
            ),
            gate_up=self.linear(
                [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
                (c.intermediate_size, c.intermediate_size),
                c.hidden_size,
                c.mlp_bias,
                (group.section(0, c.intermediate_size),) * 2,
            ),
            down=self.linear(
                [f"{mlp}.down_proj"],
                (c.hidden_size,),
                c.intermediate_size,
                c.mlp_bias,
                (group.section(1, c.intermediate_size),),
            ),
            q_norm=self.vector(f"{attention}.q_norm", c.head_dim) if c.qk_norm else None,
            k_norm=self.vector(f"{attention}.k_norm", c.head_dim) if c.qk_norm else None,
        )


@dataclass(frozen=True)
class HiddenStates:
    """Asks a forward pass for the hidden states before some of its blocks, for a head that guesses from them.

    Attributes:
        layers: indices of the blocks, of all stages, ascending.
        taken: filled in that order by the pass, by the last stage's of several, each [num_tokens, hidden_size] in the
            activations' dtype.
    """

    layers: tuple[int, ...]
    taken: list[torch.Tensor] = field(default_factory=list)

    def count_before(self, layer: int) -> int:
        """How many are taken before this block is reached."""
        return sum(each < layer for each in self.layers)


class DecoderModel:
    """Token embeddings, blocks, final norm and the projection to the vocabulary.

    Args:
        config: dimensions.
        weights: tensors by Hugging Face name; read once, in order.
        options: how to put it together.

    Attributes:
        config: dimensions; of several ranks, heads and feed-forward are this one's, and of several stages, the layers.
        whole: dimensions of all ranks and stages together.
        stage: which layers these are.
        group: the ranks that share each layer; all of them must make the same calls.
        dtype: of the activations.
        scheme: of the linear layers.
        head_scheme: of the output head.
        launches_per_layer: calls of the last block, which is like all but the first, under the first plan.
        linear_provider: who multiplies in the last block's linear layers.
        block_kernels: ``op=provider`` for each call of the last block, in order, at each size of M in ``BUCKETS``, of
            a step of single tokens where others call something else.
        tables: the embedding's and the output matrix, each [vocab_size, hidden_size] as stored, if they are kept; of
            several ranks each has its rows.
    """

    def __init__(self, config: ModelConfig, weights: Weights, options: BuildOptions) -> None:
        self.stage = stage = options.stage or whole_model(config.num_layers)
        self.whole = config
        self.config = config.shard(options.group.size).only_layers(stage.layers)
        self.group = options.group
        self.dtype = options.dtype
        self.device = options.device
        resolver = options.resolver
        loader = WeightLoader(config, weights, options)
        self._take_tables(loader, config.tie_word_embeddings or not weights.has("lm_head.weight"), options)
        cos_sin = rotary_table(inverse_frequencies(config.rope, config.head_dim), options.max_model_len)
        cos_sin = cos_sin.to(options.device)
        self._layers: list[Program | Alternatives] = []
        calls: list[Call] = []
        self._one_token_layers = []
        compiler = OneTokenCompiler(options.storage_dtype) if options.compile_one_token else None
        programs = LayerPrograms(options.plans, resolver)
        for index in stage.layers:
            shape, layer = loader.shape(index), loader.layer(index)
            calls = layer_calls(shape, layer, cos_sin, index == 0)
            self._layers.append(programs.program(calls, STEP_VALUES, as_later_block(shape, layer, calls)))
            if compiler is not None and can_compile(calls):
                self._one_token_layers.append(compiler.layer(calls))
        self._final_norm: Program | None = None
        if stage.is_last:
            weight = loader.vector("model.norm", config.hidden_size)
            final = add_norm(config.hidden_size, config.rms_norm_eps, options.dtype, weight, options.group.size)
            self._final_norm = Program(cover(final, options.plans[0]), resolver, ("hidden", "residual", "normed"))
        self._num_values = max(layer.num_values for layer in self._layers)
        summing = sum_over_ranks(config.hidden_size, options.group.size, options.dtype)
        self._sum_of_states = Program(summing, resolver, ("hidden",)) if summing else None
        self.scheme = options.scheme
        self.head_scheme = options.head_scheme
        contracts = [call.contract for call in cover(calls, options.plans[0])]
        self.launches_per_layer = len(contracts)
        last_product = next(contract for contract in reversed(contracts) if contract.name not in COLLECTIVES)
        self.linear_provider = ", ".join(resolver.served_by(last_product))
        self.block_kernels = {size: _kernels_at(self._layers[-1], size, resolver) for size in BUCKETS}

    def _take_tables(self, loader: WeightLoader, tied: bool, options: BuildOptions) -> None:
        """The embedding, if this is the first stage, and the output head, if it is the last."""
        stage, group, device = self.stage, options.group, options.device
        self._embed: VocabularyEmbedding | None = None
        self._lm_head: VocabularyHead | None = None
        needs_table = stage.is_first or (stage.is_last and (tied or options.keep_tables))
        table = loader.table("model.embed_tokens") if needs_table else None
        head = None
        if stage.is_last:
            head = table if tied else loader.table("lm_head")
            assert head is not None
            name = "model.embed_tokens" if tied else "lm_head"
            # A table that is the embedding's too stays as it is: codes of it come beside it.
            weights = weights_of(name, head.to(device), options.head_scheme, options.dtype)
            vocab_size, plans = self.config.vocab_size, options.plans
            self._lm_head = VocabularyHead(weights, options.dtype, vocab_size, group, options.resolver, plans)
        if stage.is_first:
            assert table is not None
            stored = table.to(device, options.storage_dtype)
            self._embed = VocabularyEmbedding(stored, options.dtype, group, options.resolver)
        self.tables = (table, head) if options.keep_tables and table is not None and head is not None else None

    def forward(
        self,
        batch: StepBatch,
        kv_cache: Sequence[torch.Tensor],
        states: HiddenStates | None = None,
        received: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute a step.

        Args:
            batch: the step's tokens.
            kv_cache: one [num_blocks, block_size, 2 * num_kv_heads, head_dim] tensor a layer; written in place.
            states: what else is wanted.
            received: what the stage before this one returned; may be written to. None if this is the first.

        Returns:
            [num_tokens, hidden_size], normed, in the activations' dtype. Of a stage that is not the last, [2 + states
            so far, num_tokens, hidden_size]: what its last layer adds to the residual (of several ranks each has a
            part, which its peer adds up with the others'), the residual, and the rank's parts of the states.
        """
        values: list[Any] = [None] * self._num_values
        hidden, residual, *parts = (None, self._embedded(batch.token_ids)) if received is None else received
        values[:6] = hidden, residual, batch.positions, batch.slot_mapping, None, batch.attention
        row = self._single_row(batch)
        if states is not None:
            for index, layer, cache in zip(self.stage.layers, self._layers, kv_cache, strict=True):
                if index in states.layers:
                    parts.append(self._part_of_state(*values[:2]))
                values[4] = cache
                layer(values)
        elif row is not None:
            for one_token_layer, cache in zip(self._one_token_layers, kv_cache, strict=True):
                values[4] = cache
                one_token_layer(values, row)
        else:
            for layer, cache in zip(self._layers, kv_cache, strict=True):
                values[4] = cache
                layer(values)
        if self._final_norm is None:
            return torch.stack((values[0], values[1], *parts))
        if states is not None:
            states.taken.extend(self._states(parts))
        values[2:] = [None]
        self._final_norm(values)
        normed: torch.Tensor = values[2]
        return normed

    def _part_of_state(self, hidden: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        """The hidden state before a block: the residual and what the block before left, which the next one's norm adds
        to it. Of several ranks each has a part of the latter, and the first one's has the residual in it.
        """
        if self.group.rank > 0:
            return torch.zeros_like(residual) if hidden is None else hidden.clone()
        return residual.clone() if hidden is None else residual + hidden

    def _states(self, parts: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Hidden states from this rank's parts of them: one sum over the ranks for all."""
        if self._sum_of_states is None:
            return parts
        values: list[Any] = [torch.cat(tuple(parts))]
        self._sum_of_states(values)
        states: tuple[torch.Tensor, ...] = values[0].chunk(len(parts))
        return states

    def _embedded(self, token_ids: torch.Tensor) -> torch.Tensor:
        if self._embed is None:
            raise ValueError(f"stage {self.stage.number} has no embedding: give it what the one before it returned")
        return self._embed(token_ids)

    def _single_row(self, batch: StepBatch) -> DecodeGroup | None:
        """The step's only row if the blocks for one token can compute it."""
        plan = batch.attention.cpu
        if not self._one_token_layers or not isinstance(plan, CpuAttentionBatch) or batch.token_ids.shape[0] != 1:
            return None
        return plan.decodes

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to [num_rows, vocab_size], in the activations' dtype: who computes with logits widens
        them first, and who only compares them need not. For the last stage, or the only one."""
        return self._head(hidden)

    def compute_own_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to [num_rows, own tokens]: the columns of ``compute_logits`` that this rank
        computes itself, before ranks tell each other anything.
        """
        return self._head.own(hidden)

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to the likeliest ids, [num_rows] int64: what ``compute_logits`` is largest for, while
        ranks tell each other no more than their best. For models of several ranks.
        """
        return self._head.likeliest(hidden)

    @property
    def _head(self) -> VocabularyHead:
        if self._lm_head is None:
            raise ValueError(f"stage {self.stage.number} of {self.stage.count} has no output head: the last one has")
        return self._lm_head


def rotary_table(inverse_frequencies: torch.Tensor, max_position: int) -> torch.Tensor:
    """[max_position, head_dim] float32: the cosines of every position's angles, then the sines."""
    angles = torch.outer(torch.arange(max_position).float(), inverse_frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _kernels_at(layer: Program | Alternatives, num_tokens: int, resolver: Resolver) -> list[str]:
    contracts = layer.contracts_at(num_tokens)
    return [f"{contract.name}={resolver.served_at(contract, num_tokens)}" for contract in contracts]


def _layer_shape(config: ModelConfig, options: BuildOptions, index: int) -> LayerShape:
    return LayerShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        epsilon=config.rms_norm_eps,
        block_size=options.block_size,
        max_position=options.max_model_len,
        sliding_window=config.sliding_window(index),
        dtype=options.dtype,
        num_ranks=options.group.size,
    )
