"""What a checkpoint's configuration says of the model, in one form for every file format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    # Schemes name torch's dtypes; who only wants a configuration need not load torch.
    from parhelion.quantization.scheme import QuantScheme


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al., 2021) and its scaling.

    Attributes:
        theta: the base of the frequencies.
        scaling: None, ``linear`` (position interpolation, Chen et al., 2023) or ``llama3`` (Llama 3.1's
            wavelength-dependent interpolation).
        factor: by how much the context is stretched.
        low_freq_factor, high_freq_factor, original_max_position: llama3's own parameters.
        freq_factors: one divisor per inverse frequency, ``[head_dim / 2]``, as GGUF files of Llama 3.x store the result
            of llama3's scaling; set only where ``scaling`` is None.
    """

    theta: float = 10000.0
    scaling: Literal["linear", "llama3"] | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    freq_factors: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer's dimensions and switches, under Hugging Face's names where it has them.

    Attributes:
        architecture: the key in the model registry, such as ``LlamaForCausalLM``.
        sliding_windows: per layer, how many tokens back a query sees, itself included; None is all of them.
        eos_token_ids: ids that end a text, from the generation config as well as the model's.
        hidden_act: activation of the gate; only ``silu`` is supported.
        quantization: how the stored weights are quantized; None where they are not (GGUF's are dequantized as they are
            read).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position: int
    tie_word_embeddings: bool
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    hidden_act: str = "silu"
    quantization: QuantScheme | None = None

    def sliding_window(self, layer: int) -> int | None:
        """The window of one layer, or None."""
        return self.sliding_windows[layer] if self.sliding_windows else None

    def shard(self, tp: int) -> ModelConfig:
        """What each of ``tp`` ranks computes of every layer: its heads and its part of the feed-forward. With fewer KV
        heads than ranks each is held by several. Hidden size and vocabulary stay whole.
        """
        return replace(
            self,
            num_heads=self.num_heads // tp,
            num_kv_heads=max(1, self.num_kv_heads // tp),
            intermediate_size=self.intermediate_size // tp,
        )

    def only_layers(self, layers: range) -> ModelConfig:
        """The same with nothing but consecutive layers, as a pipeline's stage has them."""
        windows = self.sliding_windows[layers.start : layers.stop]
        return replace(self, num_layers=len(layers), sliding_windows=windows)

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of keys and values that one token adds over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim
