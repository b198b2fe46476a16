"""What a device's stage is given and hands on, where its steps find and leave it: captured graphs know fixed places."""

from __future__ import annotations

import torch

from parhelion.distributed.stages import Stage, StageLinks
from parhelion.engine.step_layout import Bucket, StepInts
from parhelion.models.decoder import HiddenStates


class StageBuffers:
    """Tensors go from stage to stage outside of graphs, with as many tokens as a step has. Its graph reads and writes
    as many as its bucket has, at the front of these buffers; what padding finds is whatever was there before.

    Args:
        stage: whose.
        links: to the stages before and behind.
        passed_on: layers before which hidden states are taken for a head beside the last stage, in steps that it
            follows.
        most_tokens: of any bucket.
        hidden_size: of the model.
        dtype: of its activations.
        device: where.
    """

    def __init__(
        self,
        stage: Stage,
        links: StageLinks,
        passed_on: tuple[int, ...],
        most_tokens: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._links = links
        states = HiddenStates(passed_on)
        before, behind = (2 + states.count_before(layer) for layer in (stage.layers.start, stage.layers.stop))
        shape = (most_tokens, hidden_size)
        self._received = None if stage.is_first else torch.zeros((before, *shape), dtype=dtype, device=device)
        self._left = None if stage.is_last else torch.zeros((behind, *shape), dtype=dtype, device=device)

    def receive(self, num_tokens: int, has_states: bool) -> None:
        """Take in what the stage before hands over for the next step, unless this is the first."""
        if self._received is not None:
            place = _part(self._received, num_tokens, has_states)
            place.copy_(self._links.receive(tuple(place.shape), place.dtype))

    def given(self, bucket: Bucket, has_states: bool) -> torch.Tensor | None:
        """What is received for a step of this bucket; see ``DecoderModel.forward``."""
        return None if self._received is None else _part(self._received, bucket.num_tokens, has_states)

    def leave(self, returned: torch.Tensor) -> None:
        """Keep what ``DecoderModel.forward`` returned, for ``hand_over``."""
        assert self._left is not None, "the last stage samples"
        self._left[: returned.shape[0], : returned.shape[1]] = returned

    def hand_over(self, num_tokens: int, has_states: bool) -> None:
        """Send what the last step left for its tokens; the next one may leave something else."""
        assert self._left is not None, "the last stage samples"
        left = _part(self._left, num_tokens, has_states)
        self._links.send(left.clone(memory_format=torch.contiguous_format))


class PassedOn:
    """Reads hidden states for a later stage, as a ``StatesReader``: they go with what is handed over.

    Args:
        layers: see ``HiddenStates``.
    """

    def __init__(self, layers: tuple[int, ...]) -> None:
        self._layers = layers

    def wanted(self) -> HiddenStates:
        """See ``StatesReader``."""
        return HiddenStates(self._layers)

    def keep(self, ints: StepInts, states: HiddenStates) -> None:
        """See ``StatesReader``; ``StageBuffers`` keeps them."""


def _part(buffer: torch.Tensor, num_tokens: int, has_states: bool) -> torch.Tensor:
    """Of a step of so many tokens: the two that are always there, and the states behind them."""
    return buffer[: None if has_states else 2, :num_tokens]
