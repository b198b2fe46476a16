"""What a device's stage is given and hands on, where its steps find and leave it: captured graphs know fixed places."""

from __future__ import annotations

import torch

from parhelion.distributed.stages import Stage, StageLinks
from parhelion.engine.step_layout import Bucket


class StageBuffers:
    """Tensors go from stage to stage outside of graphs, with as many tokens as a step has. Its graph reads and writes
    as many as its bucket has, at the front of these buffers; what padding finds is whatever was there before.

    Args:
        stage: whose.
        links: to the stages before and behind.
        most_tokens: of any bucket.
        hidden_size: of the model.
        dtype: of its activations.
        device: where.
    """

    def __init__(
        self,
        stage: Stage,
        links: StageLinks,
        most_tokens: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._links = links
        shape = (2, most_tokens, hidden_size)
        self._received = None if stage.is_first else torch.zeros(shape, dtype=dtype, device=device)
        self._left = None if stage.is_last else torch.zeros(shape, dtype=dtype, device=device)

    def receive(self, num_tokens: int) -> None:
        """Take in what the stage before hands over for the next step, unless this is the first."""
        if self._received is not None:
            shape = (2, num_tokens, self._received.shape[-1])
            self._received[:, :num_tokens] = self._links.receive(shape, self._received.dtype)

    def given(self, bucket: Bucket) -> torch.Tensor | None:
        """[2, num_tokens, hidden_size] for a step of this bucket; see ``DecoderModel.forward``."""
        return None if self._received is None else self._received[:, : bucket.num_tokens]

    def leave(self, returned: torch.Tensor) -> None:
        """Keep what ``DecoderModel.forward`` returned, for ``hand_over``."""
        assert self._left is not None, "the last stage samples"
        self._left[:, : returned.shape[1]] = returned

    def hand_over(self, num_tokens: int) -> None:
        """Send what the last step left for its tokens; the next one may leave something else."""
        assert self._left is not None, "the last stage samples"
        self._links.send(self._left[:, :num_tokens].clone(memory_format=torch.contiguous_format))
