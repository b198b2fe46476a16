"""Embedding and projection to the vocabulary, of which every rank of a group has its rows.

Rows are divided evenly; where the vocabulary is no multiple of the ranks, the last ones have padding behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from parhelion.distributed.group import Group
from parhelion.layers.alternatives import LayerPrograms
from parhelion.layers.decoder_layer import sum_over_ranks
from parhelion.layers.linear import linear_calls
from parhelion.layers.program import PLAIN, Call, Plan, Program
from parhelion.ops.argmax import Argmax
from parhelion.ops.embedding import Embedding
from parhelion.ops.resolve import Resolver
from parhelion.quantization import LinearWeights


def rows_per_rank(vocab_size: int, group: Group) -> int:
    """Rows of a table that each rank holds, padding included."""
    return -(-vocab_size // group.size)


class VocabularyEmbedding:
    """Rows of a table by token id.

    Args:
        table: [rows per rank, hidden_size], this rank's, on the device.
        dtype: of the activations.
        group: the ranks.
        resolver: finds the providers.
    """

    def __init__(self, table: torch.Tensor, dtype: torch.dtype, group: Group, resolver: Resolver) -> None:
        self._rows, hidden_size = table.shape
        self._first = self._rows * group.rank
        self._dtype = dtype
        self._embed = resolver.bind(Embedding(self._rows, hidden_size, table.dtype), table)
        calls = sum_over_ranks(hidden_size, group.size, dtype)
        self._sum = Program(calls, resolver, ("hidden",)) if calls else None

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens] int64 to [num_tokens, hidden_size] of the activations' dtype."""
        if self._sum is None:
            embedded: torch.Tensor = self._embed(token_ids)
            return embedded.to(self._dtype)
        own = token_ids - self._first
        is_elsewhere = (own < 0) | (own >= self._rows)
        found = self._embed(own.masked_fill(is_elsewhere, 0)).to(self._dtype)
        # One rank has the row and the others zeros, so the sum is exact.
        values: list[Any] = [found.masked_fill(is_elsewhere[:, None], 0)]
        self._sum(values)
        summed: torch.Tensor = values[0]
        return summed


def head_calls(weights: LinearWeights, dtype: torch.dtype) -> list[Call]:
    """What computes ``logits`` [M, rows per rank] of ``hidden`` [M, hidden_size], both of ``dtype``."""
    return linear_calls("hidden", "logits", weights, dtype)


class VocabularyHead:
    """Logits of hidden states.

    Args:
        weights: [rows per rank, hidden_size], this rank's, on the device; plain ones in the activations' dtype.
        dtype: of the activations.
        vocab_size: without padding.
        group: the ranks.
        resolver: finds the providers.
        plans: as a model's layers have them: of a quantized head too one may be quicker where there is one token.

    Attributes:
        group: see above.
    """

    def __init__(
        self,
        weights: LinearWeights,
        dtype: torch.dtype,
        vocab_size: int,
        group: Group,
        resolver: Resolver,
        plans: Sequence[Plan] = (PLAIN,),
    ) -> None:
        programs = LayerPrograms(plans, resolver)
        self._product = programs.program(head_calls(weights, dtype), ("hidden", "logits"), rows="hidden")
        rows = len(weights.weight)
        self._vocab_size = vocab_size
        self.group = group
        self._first = rows * group.rank
        self._num_real = min(max(vocab_size - self._first, 0), rows)
        self._best_of_own = resolver.launcher(Argmax(rows, dtype)) if group.size > 1 else None
        self._best_of_ranks = resolver.launcher(Argmax(group.size, dtype)) if group.size > 1 else None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to [num_rows, vocab_size], on every rank."""
        logits = self._product_of(hidden)
        if self.group.is_alone:
            return logits
        return self.group.gather_columns(logits)[:, : self._vocab_size].contiguous()

    def own(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to [num_rows, own tokens]: those that this rank has rows for, without padding."""
        return self._product_of(hidden)[:, : self._num_real]

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to the ids of the largest logits, of equal ones the first: [num_rows] int64 on every
        rank. Ranks tell each other no more than their best.
        """
        logits = self._product_of(hidden)
        if self._best_of_own is None or self._best_of_ranks is None:
            raise ValueError("the rank is alone and has all logits: compute them and compare")
        if self._num_real < logits.shape[1]:
            logits[:, self._num_real :] = -torch.inf
        own = self._best_of_own(logits)[:, None]
        # Side by side in one message; a logit of any dtype and an id are both exact in float64.
        told = torch.cat((logits.gather(1, own).double(), (own + self._first).double()), dim=1)
        values, ids = self.group.gather_columns(told).view(-1, self.group.size, 2).unbind(-1)
        best = self._best_of_ranks(values.to(logits.dtype).contiguous())
        return ids.long().gather(1, best[:, None])[:, 0]

    def _product_of(self, hidden: torch.Tensor) -> torch.Tensor:
        values: list[Any] = [None] * self._product.num_values
        values[0] = hidden
        self._product(values)
        logits: torch.Tensor = values[1]
        return logits
