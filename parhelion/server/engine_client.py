"""What the server needs of an engine and of its tokenizer: the only view it has of either."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Protocol

from parhelion.types import EngineStats, Prompt, ReplicaState, RequestOutput, SamplingParams


class TokenizerClient(Protocol):
    """Text to token ids and back. ``encode`` and ``apply_chat_template`` may be called from a worker thread."""

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to ``vocab_size - 1``."""

    @property
    def special_ids(self) -> Collection[int]:
        """Ids that stand for no text, such as the end of a turn."""

    @property
    def has_chat_template(self) -> bool:
        """Whether ``apply_chat_template`` can be used."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""

    def token_text(self, token_id: int) -> str:
        """One token as text, for a reader; bytes that are no whole character show as replacement characters."""

    def token_bytes(self, token_id: int) -> bytes:
        """One token as the bytes it adds to the text."""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as one prompt, special tokens included."""


class EngineClient(Protocol):
    """An engine that serves many requests at once from one event loop."""

    @property
    def tokenizer(self) -> TokenizerClient:
        """The model's tokenizer."""

    @property
    def model_name(self) -> str:
        """The name under which the model was loaded."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of a request, prompt and output together."""

    @property
    def is_dead(self) -> bool:
        """Whether the engine ended and serves nothing any more."""

    @property
    def replicas(self) -> Sequence[ReplicaState]:
        """Those that share the requests, as they are; empty where there is one engine."""

    def generate(
        self, prompt: Prompt, params: SamplingParams, *, request_id: str, priority: int = 0, whole: bool = False
    ) -> AsyncIterator[RequestOutput]:
        """Cumulative outputs of a request until it is finished; closing the iterator aborts it.

        With ``whole`` only the last output counts: the ones before it may turn out to have been in vain.

        Raises:
            InvalidRequestError, QueueFullError, EngineDeadError: at the call or while iterating.
        """

    async def stats(self) -> EngineStats:
        """Counts of this moment."""

    async def shutdown(self) -> None:
        """End the engine and whatever still runs on it."""
