"""A model's dimensions, and what of them one rank of several has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from parhelion.distributed.stages import Stage, divide_layers
from parhelion.quantization import UNQUANTIZED, QuantScheme

ELEMENT = 2
"""Bytes of an element of activations, keys, values and unquantized weights (bfloat16)."""


@dataclass(frozen=True)
class ModelSize:
    """A dense decoder's dimensions, under the names of ``config.json``.

    Attributes:
        tied: embedding and output head are one table.
        quantization: of its linear layers.
        head_quantization: of its output head.
        draft: a model or a head that guesses for this one, on the same ranks; None: there is none.
    """

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    quantization: QuantScheme
    head_quantization: QuantScheme = UNQUANTIZED
    draft: ModelSize | None = None

    def shard(self, tp: int) -> ModelSize:
        """What one of ``tp`` ranks holds of every layer and of the vocabulary.

        With more ranks than KV heads each head is held by several ranks. The vocabulary is padded to a multiple.
        """
        return replace(
            self,
            num_heads=self.num_heads // tp,
            num_kv_heads=max(1, self.num_kv_heads // tp),
            intermediate_size=self.intermediate_size // tp,
            vocab_size=-(-self.vocab_size // tp),
        )

    def stages(self, pp: int) -> tuple[Stage, ...]:
        """The layers divided into ``pp`` stages by the bytes of weights that a step reads: those of the layers, and for
        the last stage those of the output head.

        Raises:
            ConfigError: there are more stages than layers.
        """
        return divide_layers(self.num_layers, pp, self.head_bytes / self.layer_bytes)

    @property
    def projections(self) -> tuple[tuple[int, int], ...]:
        """(N, K) of a layer's linear maps: qkv, out, gate_up, down."""
        attended = self.num_heads * self.head_dim
        return (
            (attended + 2 * self.num_kv_heads * self.head_dim, self.hidden_size),
            (self.hidden_size, attended),
            (2 * self.intermediate_size, self.hidden_size),
            (self.hidden_size, self.intermediate_size),
        )

    @property
    def layer_bytes(self) -> int:
        """Weights, scales (float32) and norms of a layer."""
        return sum(_linear_bytes(n, k, self.quantization) for n, k in self.projections) + ELEMENT * (
            2 * self.hidden_size + 2 * self.head_dim
        )

    @property
    def table_bytes(self) -> int:
        """The embedding's table, which no scheme quantizes."""
        return ELEMENT * self.vocab_size * self.hidden_size

    @property
    def head_bytes(self) -> int:
        """What the output head reads: a table, or codes and scales."""
        return _linear_bytes(self.vocab_size, self.hidden_size, self.head_quantization)

    @property
    def shares_table(self) -> bool:
        """Whether embedding and output head are one table in memory as well: codes are beside it."""
        return self.tied and not self.head_quantization.is_quantized

    @property
    def weight_bytes(self) -> int:
        """All of them."""
        return self.num_layers * self.layer_bytes + self.table_bytes + (0 if self.shares_table else self.head_bytes)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of a token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * ELEMENT


@dataclass(frozen=True)
class HeadSize(ModelSize):
    """An EAGLE-3 head's dimensions: the vocabulary is what it can guess, and the embedding the target's.

    Attributes:
        fused: elements of the target's hidden states that it makes a feature of; every rank does all of it.
    """

    fused: int = 0

    @property
    def weight_bytes(self) -> int:
        """All of them; the first layer's queries, keys and values are of an embedding and a feature side by side."""
        qkv_rows, hidden_size = self.projections[0]
        return super().weight_bytes + ELEMENT * hidden_size * (qkv_rows + self.fused)


def _linear_bytes(n: int, k: int, scheme: QuantScheme) -> int:
    if scheme.weight_dtype is None:
        return ELEMENT * n * k
    scales = n if scheme.block is None else -(-n // scheme.block) * -(-k // scheme.block)
    return int(scheme.weight_dtype.itemsize) * n * k + 4 * scales
