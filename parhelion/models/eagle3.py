"""EAGLE-3 (Li et al., 2025, arXiv:2503.01840): a small decoder that guesses tokens from the target's hidden states.

At each position the head is given a feature and the token behind it. The feature of a token that the target has seen
is made of the target's hidden states there; behind a guess it is what the head itself left. The head's first layer
attends over the token's embedding and the feature side by side; the rest of it is a decoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from parhelion.distributed.group import ALONE, Group
from parhelion.errors import CheckpointError
from parhelion.layers.alternatives import Alternatives, LayerPrograms
from parhelion.layers.decoder_layer import STEP_VALUES, add_norm, calls_from_normed, layer_calls
from parhelion.layers.linear import linear_calls
from parhelion.layers.program import Program, cover
from parhelion.layers.step_batch import StepBatch
from parhelion.layers.vocabulary import VocabularyEmbedding, VocabularyHead, rows_per_rank
from parhelion.models.decoder import BuildOptions, WeightLoader, rotary_table
from parhelion.models.eagle3_config import Eagle3Config
from parhelion.models.rope import inverse_frequencies
from parhelion.models.weights import Weights
from parhelion.ops.argmax import Argmax
from parhelion.ops.contract import Launcher
from parhelion.ops.resolve import Resolver
from parhelion.ops.rms_norm import RmsNorm
from parhelion.quantization import UNQUANTIZED, LinearWeights, weights_of

_FIRST_VALUES = (*STEP_VALUES, "normed")


class Eagle3Head:
    """A draft head beside its target.

    It has the target's positions, block size and block tables, and a KV cache of its own, of ``config.layer``'s
    dimensions. ``check_fits`` says whether the two belong together.

    Args:
        config: dimensions, whole.
        weights: tensors by the names of either format: the first layer is ``midlayer`` or ``layers.0``.
        options: how to put it together, as for the target. A head is never quantized, its projection to the vocabulary
            included, nor compiled for one token. Its group may be the target's, or each of the target's ranks alone
            with the whole head.
        target_embedding: [vocab_size, hidden_size], shared where the head has no table of its own or an equal one; of
            several ranks each has its rows.
        target_head: [vocab_size, hidden_size], shared where the head has none of its own; likewise.
        target_group: the ranks that share these two.

    Attributes:
        config: dimensions; of several ranks, heads and feed-forward are this one's.
        group: the ranks that share each layer; all of them must make the same calls.
        dtype: of the activations.
        token_ids: [draft_vocab_size] int64, the target's id of each token that the head can guess; None where the
            vocabularies are the same.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or says what cannot be.
    """

    def __init__(
        self,
        config: Eagle3Config,
        weights: Weights,
        options: BuildOptions,
        target_embedding: torch.Tensor | None = None,
        target_head: torch.Tensor | None = None,
        target_group: Group = ALONE,
    ) -> None:
        options = replace(options, scheme=UNQUANTIZED)
        self.config = replace(config, layer=config.layer.shard(options.group.size))
        self.group = options.group
        self.dtype = options.dtype
        self.device = options.device
        layer, resolver = config.layer, options.resolver
        loader = WeightLoader(layer, weights, options)
        self.token_ids = _token_ids(config, weights, options.device)

        self._embed = _embedding(config, weights, loader, options, target_embedding, target_group)
        self._fc_norms = _fc_norms(config, loader, options)
        width = config.num_features * config.target_hidden_size
        fc = loader.linear(["fc"], (layer.hidden_size,), width, weights.has("fc.bias"))
        self._fc = _product(fc, resolver, options.dtype)

        self._layers: list[Program | Alternatives] = []
        first, *others = _layer_names(config, weights)
        cos_sin = rotary_table(inverse_frequencies(layer.rope, layer.head_dim), options.max_model_len)
        cos_sin = cos_sin.to(options.device)
        block = loader.block(first, 2 * layer.hidden_size)
        self._input_norm = _norm(block.input_norm, config, options)
        self._hidden_norm = _norm(loader.vector(f"{first}.hidden_norm", layer.hidden_size), config, options)
        calls = calls_from_normed(loader.shape(0), block, cos_sin)
        programs = LayerPrograms(options.plans, resolver)
        self._layers.append(programs.program(calls, _FIRST_VALUES))
        for index, name in enumerate(others, start=1):
            block = loader.block(name, layer.hidden_size)
            calls = layer_calls(loader.shape(index), block, cos_sin, is_first=False)
            self._layers.append(programs.program(calls, STEP_VALUES))
        self._num_values = max(program.num_values for program in self._layers)

        final_weight = loader.vector("norm", layer.hidden_size)
        final = add_norm(layer.hidden_size, layer.rms_norm_eps, options.dtype, final_weight, options.group.size)
        self._final_norm = Program(cover(final, options.plans[0]), resolver, ("hidden", "residual", "normed"))
        self._lm_head = _lm_head(config, weights, loader, options, target_head, target_group)
        self._argmax: Launcher | None = None
        if self._lm_head.group.is_alone:
            self._argmax = resolver.launcher(Argmax(config.draft_vocab_size, options.dtype))

    def features(self, target_hidden: torch.Tensor) -> torch.Tensor:
        """Fuse hidden states of the target.

        Args:
            target_hidden: [n, num_features * target_hidden_size], those before the layers that the head reads, side by
                side, in the activations' dtype.

        Returns:
            [n, hidden_size].
        """
        for norms in self._fc_norms:
            parts = target_hidden.chunk(len(norms), dim=-1)
            normed = [norm(part.contiguous()) for norm, part in zip(norms, parts, strict=True)]
            target_hidden = normed[0] if len(normed) == 1 else torch.cat(normed, dim=-1)
        return _run(self._fc, target_hidden)

    def forward(
        self, batch: StepBatch, features: torch.Tensor, kv_cache: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute a step.

        Args:
            batch: of each position the next token: position i has the feature of token i and the id of token i + 1.
            features: [num_tokens, hidden_size], from ``features`` or from the step before; left as they are.
            kv_cache: one [num_blocks, block_size, 2 * num_kv_heads, head_dim] tensor a layer; written in place.

        Returns:
            Two of [num_tokens, hidden_size] in the activations' dtype: normed, of which the logits are made, and the
            features that go with the tokens guessed from them, at the positions behind.
        """
        embedded = self._embed(batch.token_ids)
        normed = self._hidden_norm(features)
        attention_in = torch.cat((self._input_norm(embedded), normed), dim=-1)
        # The residual is added to in place.
        residual = normed if self.config.norm_before_residual else features.clone()
        values: list[Any] = [None] * self._num_values
        values[:7] = None, residual, batch.positions, batch.slot_mapping, None, batch.attention, attention_in
        for layer, cache in zip(self._layers, kv_cache, strict=True):
            values[4] = cache
            layer(values)
        values[2:] = [None]
        self._final_norm(values)
        summed, normed = values[1:3]
        return normed, normed if self.config.norm_output else summed

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size], normed, to [num_rows, vocab_size] of the target's vocabulary, in the activations'
        dtype; -inf for tokens that the head cannot guess.
        """
        logits = self._lm_head(hidden)
        if self.token_ids is None:
            return logits
        everywhere = logits.new_full((len(logits), self.config.layer.vocab_size), -torch.inf)
        return everywhere.index_copy_(1, self.token_ids, logits)

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size], normed, to the target's id of the likeliest token, [num_rows] int64: what
        ``compute_logits`` is largest for, without a table as wide as the target's vocabulary.
        """
        alone = self._argmax
        ids: torch.Tensor = self._lm_head.likeliest(hidden) if alone is None else alone(self._lm_head(hidden))
        return ids if self.token_ids is None else self.token_ids[ids]


def _layer_names(config: Eagle3Config, weights: Weights) -> list[str]:
    """How the names of each layer's tensors begin."""
    num_layers = config.layer.num_layers
    if not weights.has("midlayer.self_attn.q_proj.weight"):
        return [f"layers.{index}" for index in range(num_layers)]
    if num_layers != 1:
        raise CheckpointError(
            f"the draft head's config.json says num_hidden_layers {num_layers}, but its tensors are of a single layer "
            "(midlayer): correct num_hidden_layers to 1, or fetch the head again"
        )
    return ["midlayer"]


def _token_ids(config: Eagle3Config, weights: Weights, device: torch.device) -> torch.Tensor | None:
    """The target's ids of the draft vocabulary; ``d2t`` holds by how much they differ from the draft's own."""
    draft_size, size = config.draft_vocab_size, config.layer.vocab_size
    if draft_size > size:
        raise CheckpointError(
            f"the draft head's config.json says draft_vocab_size {draft_size}, which is more than the {size} tokens of "
            "vocab_size: fetch the head again"
        )
    if draft_size == size and not weights.has("d2t"):
        return None
    own = torch.arange(draft_size)
    ids = own + weights.get("d2t", draft_size).to("cpu", torch.int64)
    if int(ids.min()) < 0 or int(ids.max()) >= size:
        raise CheckpointError(
            f"the draft head's d2t leads to tokens {int(ids.min())} to {int(ids.max())}, but the model has 0 to "
            f"{size - 1}: d2t must hold differences of ids; fetch or convert the head again"
        )
    return None if draft_size == size and torch.equal(ids, own) else ids.to(device)


def _embedding(
    config: Eagle3Config,
    weights: Weights,
    loader: WeightLoader,
    options: BuildOptions,
    target: torch.Tensor | None,
    target_group: Group,
) -> VocabularyEmbedding:
    """Of the head's own table, unless it has none or the target's again, which then need not be held twice."""
    theirs = None if target is None else target.to(options.device, options.storage_dtype)
    if not weights.has("embed_tokens.weight"):
        shared = _shared(theirs, config, target_group, "embed_tokens.weight")
        return VocabularyEmbedding(shared, options.dtype, target_group, options.resolver)
    own = loader.table("embed_tokens").to(options.device, options.storage_dtype)
    table = theirs if theirs is not None and torch.equal(own, theirs) else own
    return VocabularyEmbedding(table, options.dtype, options.group, options.resolver)


def _lm_head(
    config: Eagle3Config,
    weights: Weights,
    loader: WeightLoader,
    options: BuildOptions,
    target: torch.Tensor | None,
    target_group: Group,
) -> VocabularyHead:
    if weights.has("lm_head.weight") or config.draft_vocab_size != config.layer.vocab_size:
        table, group = loader.table("lm_head", config.draft_vocab_size), options.group
    else:
        table, group = _shared(target, config, target_group, "lm_head.weight"), target_group
    own = weights_of("lm_head", table.to(options.device), UNQUANTIZED, options.dtype)
    return VocabularyHead(own, options.dtype, config.draft_vocab_size, group, options.resolver)


def _shared(target: torch.Tensor | None, config: Eagle3Config, group: Group, name: str) -> torch.Tensor:
    """The target's tensor, or this rank's rows of it, in place of one that the head lacks."""
    expected = (rows_per_rank(config.layer.vocab_size, group), config.layer.hidden_size)
    if target is None or tuple(target.shape) != expected:
        theirs = "not given" if target is None else f"of shape {tuple(target.shape)}"
        raise CheckpointError(
            f"the draft head has no tensor {name}, and the model's, which would stand in for it with shape {expected}, "
            f"is {theirs}: the head is incomplete or of another model; fetch it again"
        )
    return target


def _fc_norms(config: Eagle3Config, loader: WeightLoader, options: BuildOptions) -> list[list[Launcher]]:
    """Norms before the fusion, one after the other; each is of as many equal parts of the row as it has launchers."""
    size, count = config.target_hidden_size, config.num_features
    norms = []
    if config.norm_before_fc:
        norms.append([_norm(loader.vector("input_norm", count * size), config, options)])
    if config.fc_norm:
        norms.append([_norm(loader.vector(f"fc_norm.{index}", size), config, options) for index in range(count)])
    return norms


def _norm(weight: torch.Tensor, config: Eagle3Config, options: BuildOptions) -> Launcher:
    return options.resolver.bind(RmsNorm(len(weight), config.layer.rms_norm_eps, options.dtype), weight)


def _product(weights: LinearWeights, resolver: Resolver, dtype: torch.dtype) -> Program:
    return Program(linear_calls("x", "y", weights, dtype), resolver, ("x", "y"))


def _run(product: Program, x: torch.Tensor) -> torch.Tensor:
    values: list[Any] = [x, None]
    product(values)
    y: torch.Tensor = values[1]
    return y
