"""A step's rows as a model on the host is given them: ids, positions, places in the cache, and how to attend."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from parhelion.engine.step_layout import Ints, StepRows
from parhelion.layers.step_batch import StepBatch
from parhelion.models.config import ModelConfig
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.cpu_batch import plan_cpu_attention


class HostBatches:
    """Arranges rows for one model.

    Args:
        config: the model's.
        dtype: of its activations.
        tokens: [max_num_seqs, max_model_len + 1] int32, the tokens of every slot; read when a batch is made.
        block_table: [max_num_seqs, max_blocks] int64, the blocks of every slot; likewise.
        block_size: tokens of a block.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        tokens: npt.NDArray[np.int32],
        block_table: Ints,
        block_size: int,
    ) -> None:
        self._windows = frozenset(config.sliding_window(layer) for layer in range(config.num_layers))
        self._dtype = dtype
        self._tokens = tokens
        self._block_table = block_table
        self._block_size = block_size

    def batch(self, rows: StepRows, tokens_ahead: int = 0) -> StepBatch:
        """What the rows compute.

        Args:
            rows: at least one, each of at least one token.
            tokens_ahead: how far behind its position each token's id stands; 0 but for heads that take the next token.
        """
        ends = np.cumsum(rows.counts)
        positions = np.arange(ends[-1]) - np.repeat(ends - rows.counts - rows.starts, rows.counts)
        slots = np.repeat(rows.slots, rows.counts)
        blocks = self._block_table[slots, positions // self._block_size]
        slot_mapping = blocks * self._block_size + positions % self._block_size
        token_ids = self._tokens[slots, positions + tokens_ahead].astype(np.int64)
        return StepBatch(
            torch.from_numpy(token_ids),
            torch.from_numpy(positions),
            torch.from_numpy(slot_mapping),
            self._attention(rows, ends),
        )

    def _attention(self, rows: StepRows, ends: Ints) -> AttentionBatch:
        block_table = self._block_table[rows.slots]
        seq_lens = rows.starts + rows.counts
        return AttentionBatch(
            block_table=torch.from_numpy(block_table).int(),
            seq_lens=torch.from_numpy(seq_lens).int(),
            query_start_loc=torch.from_numpy(np.concatenate(([0], ends))).int(),
            max_query_len=int(rows.counts.max()),
            max_seq_len=int(seq_lens.max()),
            cpu=plan_cpu_attention(
                block_table,
                rows.starts.tolist(),
                rows.counts.tolist(),
                self._block_size,
                self._windows,
                self._dtype,
            ),
        )
