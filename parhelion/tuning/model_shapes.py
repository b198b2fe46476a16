"""The static dimensions of models that people serve: what kernels are built and measured for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from parhelion.errors import ConfigError


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder's dimensions, as its ``config.json`` gives them.

    Attributes:
        name: as the commands take it.
        hidden_size, intermediate_size, vocab_size: elements.
        num_heads, num_kv_heads, head_dim: attention's.
        rms_norm_eps: epsilon of every norm.
        qk_norm: queries and keys are normalized by head (Qwen3).
        qkv_bias: the projection to queries, keys and values has a bias (Qwen2).
    """

    name: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    qk_norm: bool = False
    qkv_bias: bool = False

    def shard(self, tp: int) -> ModelShape:
        """What one of ``tp`` ranks has of every layer and of the vocabulary, which is padded. With fewer KV heads than
        ranks each is held by several.
        """
        return replace(
            self,
            num_heads=self.num_heads // tp,
            num_kv_heads=max(1, self.num_kv_heads // tp),
            intermediate_size=self.intermediate_size // tp,
            vocab_size=-(-self.vocab_size // tp),
        )

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection to queries, keys and values."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def projections(self) -> tuple[tuple[int, int], ...]:
        """(N, K) of the layer's linear maps: qkv, out, gate_up, down."""
        return (
            (self.qkv_size, self.hidden_size),
            (self.hidden_size, self.num_heads * self.head_dim),
            (2 * self.intermediate_size, self.hidden_size),
            (self.hidden_size, self.intermediate_size),
        )


MODEL_SHAPES = (
    ModelShape("smollm2-135m", 576, 1536, 9, 3, 64, 49152, 1e-5),
    ModelShape("qwen3-0.6b", 1024, 3072, 16, 8, 128, 151936, 1e-6, qk_norm=True),
    ModelShape("qwen3-1.7b", 2048, 6144, 16, 8, 128, 151936, 1e-6, qk_norm=True),
    ModelShape("qwen3-8b", 4096, 12288, 32, 8, 128, 151936, 1e-6, qk_norm=True),
    ModelShape("qwen3-32b", 5120, 25600, 64, 8, 128, 151936, 1e-6, qk_norm=True),
    ModelShape("llama-3-8b", 4096, 14336, 32, 8, 128, 128256, 1e-5),
    ModelShape("qwen2.5-7b", 3584, 18944, 28, 4, 128, 152064, 1e-6, qkv_bias=True),
)


def model_shape(name: str) -> ModelShape:
    """A model by name.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    for shape in MODEL_SHAPES:
        if shape.name == name:
            return shape
    known = ", ".join(shape.name for shape in MODEL_SHAPES)
    raise ConfigError(f"the dimensions of {name!r} are not listed; those of {known} are")
