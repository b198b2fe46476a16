"""The decoder-only transformer that the architectures share: a stack of pre-norm attention and feed-forward blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from parhelion.layers.attention import SelfAttention
from parhelion.layers.linear import Linear
from parhelion.layers.mlp import GatedMLP
from parhelion.layers.norm import RMSNorm
from parhelion.layers.rotary import RotaryTables
from parhelion.layers.step_batch import StepBatch
from parhelion.models.config import ModelConfig
from parhelion.models.rope import inverse_frequencies
from parhelion.models.weights import Weights
from parhelion.ops.attention import PagedAttention
from parhelion.ops.elementwise import ElementwiseOps
from parhelion.ops.linear import Provider


@dataclass(frozen=True)
class Providers:
    """Who computes what.

    Attributes:
        linear: all linear layers.
        elementwise: norms, rotations and activations.
    """

    linear: Provider
    elementwise: ElementwiseOps


@dataclass(frozen=True)
class DecoderLayer:
    """One block."""

    input_norm: RMSNorm
    attention: SelfAttention
    post_attention_norm: RMSNorm
    mlp: GatedMLP


class LayerBuilder:
    """Builds layers out of a checkpoint's tensors, fusing the projections that share an input.

    Args:
        config: the model's.
        weights: its tensors.
        providers: who computes the layers.
    """

    def __init__(self, config: ModelConfig, weights: Weights, providers: Providers) -> None:
        self.config = config
        self.weights = weights
        self.providers = providers
        self._attend = PagedAttention(config.num_heads, config.num_kv_heads, config.head_dim, config.head_dim**-0.5)

    def linear(self, names: tuple[str, ...], rows: tuple[int, ...], in_features: int, bias: bool) -> Linear:
        """One layer out of several projections of the same input, stacked in the order given."""
        weight = torch.cat([self.weights.get(f"{n}.weight", r, in_features) for n, r in zip(names, rows, strict=True)])
        biases = [self.weights.get(f"{n}.bias", r) for n, r in zip(names, rows, strict=True)] if bias else []
        return Linear(weight, torch.cat(biases) if biases else None, self.providers.linear)

    def norm(self, name: str, size: int) -> RMSNorm:
        """A normalization over the last ``size`` elements."""
        return RMSNorm(
            self.weights.get(f"{name}.weight", size).float(), self.config.rms_norm_eps, self.providers.elementwise
        )

    def attention(self, prefix: str, layer: int) -> SelfAttention:
        """The self-attention of one layer."""
        c = self.config
        q_rows, kv_rows = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        return SelfAttention(
            qkv=self.linear(
                (f"{prefix}.q_proj", f"{prefix}.k_proj", f"{prefix}.v_proj"),
                (q_rows, kv_rows, kv_rows),
                c.hidden_size,
                c.attention_bias,
            ),
            out=self.linear((f"{prefix}.o_proj",), (c.hidden_size,), q_rows, c.attention_output_bias),
            attend=self._attend,
            q_norm=self.norm(f"{prefix}.q_norm", c.head_dim) if c.qk_norm else None,
            k_norm=self.norm(f"{prefix}.k_norm", c.head_dim) if c.qk_norm else None,
            sliding_window=c.sliding_window(layer),
            ops=self.providers.elementwise,
        )

    def mlp(self, prefix: str) -> GatedMLP:
        """The feed-forward block of one layer."""
        c = self.config
        return GatedMLP(
            gate_up=self.linear(
                (f"{prefix}.gate_proj", f"{prefix}.up_proj"),
                (c.intermediate_size, c.intermediate_size),
                c.hidden_size,
                c.mlp_bias,
            ),
            down=self.linear((f"{prefix}.down_proj",), (c.hidden_size,), c.intermediate_size, c.mlp_bias),
            ops=self.providers.elementwise,
        )

    def layer(self, index: int) -> DecoderLayer:
        """Block number ``index``."""
        prefix = f"model.layers.{index}"
        return DecoderLayer(
            input_norm=self.norm(f"{prefix}.input_layernorm", self.config.hidden_size),
            attention=self.attention(f"{prefix}.self_attn", index),
            post_attention_norm=self.norm(f"{prefix}.post_attention_layernorm", self.config.hidden_size),
            mlp=self.mlp(f"{prefix}.mlp"),
        )


class DecoderModel:
    """Token embeddings, blocks, final norm and the projection to the vocabulary.

    Args:
        config: dimensions.
        weights: tensors by Hugging Face name; read once, in order.
        providers: who computes the layers.
        max_model_len: positions that the rotary tables cover.
    """

    def __init__(self, config: ModelConfig, weights: Weights, providers: Providers, max_model_len: int) -> None:
        self.config = config
        self.dtype = providers.linear.activation_dtype
        builder = LayerBuilder(config, weights, providers)
        embedding = weights.get("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        tied = config.tie_word_embeddings or not weights.has("lm_head.weight")
        head = embedding if tied else weights.get("lm_head.weight", config.vocab_size, config.hidden_size)
        self.lm_head = Linear(head, None, providers.linear)
        self.embedding = embedding.to(providers.linear.weight_dtype)
        del embedding, head
        self.layers = [builder.layer(index) for index in range(config.num_layers)]
        self.norm = builder.norm("model.norm", config.hidden_size)
        self.rotary = RotaryTables(inverse_frequencies(config.rope, config.head_dim), max_model_len, self.dtype)

    def forward(self, batch: StepBatch, kv_cache: list[torch.Tensor]) -> torch.Tensor:
        """Compute a step.

        Args:
            batch: the step's tokens.
            kv_cache: one [num_blocks, block_size, 2 * num_kv_heads, head_dim] tensor a layer; written in place.

        Returns:
            [num_tokens, hidden_size], normed, in the activations' dtype.
        """
        residual = F.embedding(batch.token_ids, self.embedding).to(self.dtype)
        rotation = self.rotary.at(batch.positions)
        hidden = self.layers[0].input_norm(residual)
        for index, layer in enumerate(self.layers):
            if index:
                hidden = layer.input_norm.add(hidden, residual)
            hidden = layer.attention(hidden, rotation, kv_cache[index], batch.attention)
            hidden = layer.mlp(layer.post_attention_norm.add(hidden, residual))
        return self.norm.add(hidden, residual)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to [num_rows, vocab_size] float32."""
        return self.lm_head(hidden).float()
