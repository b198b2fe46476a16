"""``embedding``: rows of a table."""

import torch

from parhelion.ops.embedding.contract import Embedding
from parhelion.ops.embedding.providers import TorchEmbedding
from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op

OP = Op(
    Embedding,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), TorchEmbedding()),
    examples=(Embedding(100, 64), Embedding(1000, 576, torch.float32), Embedding(32768, 2048), Embedding(32768, 4096)),
)

__all__ = ["OP", "Embedding"]
