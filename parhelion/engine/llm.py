"""The offline API: an engine in this process, driven by the calling thread, or several in processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from parhelion.config import EngineConfig
from parhelion.engine.intake import Intake
from parhelion.engine.load import Progress, load_engine
from parhelion.engine.messages import AddRequest, EngineInfo, TokenOutput
from parhelion.engine.names import model_name, tokenizer_loader
from parhelion.engine.outputs import OutputProcessor
from parhelion.engine.replicas.core import ReplicaCore
from parhelion.errors import ConfigError, EngineDeadError, InvalidRequestError, RequestsLostError
from parhelion.models.resolve import resolve_model
from parhelion.models.tokenizer import Tokenizer
from parhelion.types import EngineStats, Prompt, RequestOutput, SamplingParams

Message = Mapping[str, Any]
"""One turn of a conversation: ``role`` and ``content``."""


class Core(Protocol):
    """What computes: an ``EngineCore``, or several behind a ``ReplicaCore``."""

    def add(self, request: AddRequest) -> None:
        """Queue a request."""
        ...

    def abort(self, request_id: str) -> bool:
        """Forget a request."""
        ...

    def step(self) -> list[TokenOutput]:
        """The next tokens; raises ``RequestsLostError`` if what computed some requests has ended, and others go on."""
        ...

    def stats(self) -> EngineStats:
        """Counts of this moment."""
        ...

    def check_integrity(self) -> None:
        """Raise if an invariant is broken."""
        ...

    def close(self) -> None:
        """End what computes."""
        ...


class LLM:
    """Generate text offline, many prompts at once. Not thread-safe; for a server use ``AsyncEngine``.

    With ``dp`` above 1 there are so many engines, each in a process of its own, that share the prompts; a prompt whose
    engine ends begins again on another. With ``executor="ray"`` the one engine has a process of its own as well.

    Args:
        model: an alias, a Hugging Face style folder, a ``.gguf`` file or a hub id.
        load_progress: called with tensors read so far and how many there are.
        options: any field of ``EngineConfig``.

    Raises:
        ConfigError: an unknown option, or one that cannot be had here.
        ModelNotFoundError, CheckpointError, OutOfMemoryError: the model cannot be loaded.

    Attributes:
        tokenizer: the model's.
        info: what the engine has become.
    """

    tokenizer: Tokenizer
    info: EngineInfo

    def __init__(self, model: str, *, load_progress: Progress | None = None, **options: Any) -> None:
        known = {field.name for field in fields(EngineConfig)}
        if unknown := sorted(set(options) - known):
            raise ConfigError(f"unknown option {', '.join(unknown)}; the options are {', '.join(sorted(known))}")
        self.config = EngineConfig(model=model, **options)
        path = resolve_model(model)
        tokenizer_path = path if self.config.tokenizer is None else resolve_model(self.config.tokenizer)
        self.tokenizer = tokenizer_loader(self.config)(tokenizer_path)
        # Whoever calls generate() waits for all of it anyway: the length of the queue is no matter here.
        unbounded = replace(self.config, max_queue_len=sys.maxsize)
        self._core, self.info = _open(unbounded, path, load_progress)
        self._intake = Intake(self.tokenizer, self.info, self.config.seed)
        self._outputs = OutputProcessor(self.tokenizer)
        self._numbers = count()
        self._closed = False

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt.

        Args:
            prompts: one or several; each a string or ``{"prompt_token_ids": [...]}``.
            params: for all prompts, or one each; None is the default ``SamplingParams()``.
            progress: called with prompts done and how many there are.

        Returns:
            One output a prompt, in their order.

        Raises:
            InvalidRequestError: a prompt or a parameter is unusable; nothing has been generated then.
        """
        every = [prompts] if isinstance(prompts, str | dict) else list(prompts)
        each = self._params_for(len(every), params)
        started: list[RequestOutput] = []
        try:
            for prompt, own in zip(every, each, strict=True):
                started.append(self._start(prompt, own))
            self._run(started, progress)
        except BaseException:
            for request in started:
                self._abort(request)
            raise
        return started

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, rendered with the model's chat template; else like ``generate``.

        Raises:
            InvalidRequestError: the model has no chat template, or it refuses the messages.
        """
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations: list[Any] = list(messages) if several else [messages]
        prompts = [
            self.chat_prompt(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for conversation in conversations
        ]
        return self.generate(prompts, params, progress=progress)

    def chat_prompt(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, continue_final_message: bool = False
    ) -> Prompt:
        """A conversation as a tokenized prompt."""
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message
        )
        return {"prompt_token_ids": self.tokenizer.encode(text, add_special_tokens=False)}

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Complete one prompt and yield the output as it grows. Closing the iterator ends the request."""
        request = self._start(prompt, params or SamplingParams())
        try:
            finished = False
            while not finished:
                # Whoever generates something else between two outputs advances this request as well.
                if request.finished or self._advance():
                    finished = request.finished
                    self._outputs.pin(request)
                    yield replace(request)
        finally:
            self._abort(request)

    def stats(self) -> EngineStats:
        """Counts of this moment."""
        return self._core.stats()

    def check_integrity(self) -> None:
        """Raise if any invariant of the scheduler is broken; for tests."""
        self._core.check_integrity()

    def shutdown(self) -> None:
        """Stop the engine; nothing can be generated any more."""
        if not self._closed:
            self._closed = True
            self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _params_for(
        self, num_prompts: int, params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * num_prompts
        if len(params) != num_prompts:
            raise InvalidRequestError(
                f"there are {num_prompts} prompts and {len(params)} params: give one for all, or one each", "params"
            )
        return list(params)

    def _start(self, prompt: Prompt, params: SamplingParams) -> RequestOutput:
        if self._closed:
            raise EngineDeadError("this LLM was shut down: make a new one")
        tokenized = self._intake.tokenize(prompt)
        request_id = str(next(self._numbers))
        requests = self._intake.requests(request_id, tokenized.token_ids, params, 0)
        result = self._outputs.add(request_id, tokenized, params, requests)
        try:
            for request in requests:
                self._core.add(request)
        except BaseException:
            self._abort(result)
            raise
        return result

    def _run(self, requests: Sequence[RequestOutput], progress: Callable[[int, int], None] | None) -> None:
        unfinished = {request.request_id for request in requests if not request.finished}
        while unfinished:
            before = len(unfinished)
            for request in self._advance():
                if request.finished:
                    unfinished.discard(request.request_id)
            if progress is not None and len(unfinished) != before:
                progress(len(requests) - len(unfinished), len(requests))

    def _advance(self) -> list[RequestOutput]:
        """Run a step. Returns the requests with news.

        Raises:
            EngineDeadError: requests were lost that cannot begin again.
        """
        try:
            tokens = self._core.step()
        except RequestsLostError as error:
            lost = self._outputs.lost(error.request_ids, others_serve=error.others_serve)
            for request in lost.to_send:
                self._core.add(request)
            if lost.given_up:
                raise
            return []
        processed = self._outputs.process(tokens)
        for name in processed.to_abort:
            self._core.abort(name)
        return processed.changed

    def _abort(self, request: RequestOutput) -> None:
        for name in self._outputs.forget(request):
            self._core.abort(name)


def _open(config: EngineConfig, path: Path, progress: Progress | None) -> tuple[Core, EngineInfo]:
    """What computes, and what it has become."""
    name = model_name(config.model)
    if config.is_supervised:
        replicas = ReplicaCore(config, path, name, progress)
        return replicas, replicas.info
    loaded = load_engine(config, path, name, progress)
    return loaded.core, loaded.info
