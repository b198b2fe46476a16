"""The road that both kinds of completion share: admission, the engine, and the answer in one piece or as a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from parhelion.server.connection import Connection
from parhelion.server.context import ServingContext
from parhelion.server.outputs import MergedOutputs
from parhelion.server.streaming import EventWriter, stream_outputs
from parhelion.server.threads import beside_the_loop
from parhelion.server.usage import note_usage
from parhelion.types import RequestOutput, SamplingParams


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request that is ready to run.

    Attributes:
        id: of the answer; prefix of the engine's request ids.
        prompts: token ids of each prompt.
        params: how to sample.
        priority: for the scheduler.
        writer: makes the events of a stream; None answers in one piece.
        whole: makes the answer in one piece from the final outputs, in the order of the prompts.
    """

    id: str
    prompts: Sequence[list[int]]
    params: SamplingParams
    priority: int
    writer: EventWriter | None
    whole: Callable[[Sequence[RequestOutput]], bytes]


async def serve_job(
    context: ServingContext, connection: Connection, num_prompts: int, prepare: Callable[[], Awaitable[Job]]
) -> None:
    """Admit the request, prepare it (which tokenizes, so only once admitted), run it, and answer.

    Raises:
        ClientDisconnectedError: the client left; what ran for it is aborted.
        ParhelionError: anything that went wrong before an answer began.
    """

    async def work() -> None:
        await _run(context, connection, await prepare())

    context.check_alive()
    with context.admission.admit(num_prompts):
        await connection.run_while_connected(work())


async def _run(context: ServingContext, connection: Connection, job: Job) -> None:
    outputs = MergedOutputs(
        context.engine,
        job.prompts,
        job.params,
        request_id=job.id,
        priority=job.priority,
        whole=job.writer is None,
        metrics=context.metrics,
        arrival=connection.record.arrival,
    )
    try:
        async with outputs:
            with context.admission.watched(outputs):
                if job.writer is not None:
                    await stream_outputs(outputs, job.writer, connection, context.metrics)
                    return
                while await outputs.next():
                    pass
        final = [outputs.latest[index] for index in range(len(job.prompts))]
        await connection.send_json(await beside_the_loop(_num_logprobs(final), partial(job.whole, final)))
    finally:
        note_usage(connection.record, outputs.latest.values())


def _num_logprobs(outputs: Sequence[RequestOutput]) -> int:
    """Tokens of which an answer tells log-probabilities, which is most of the work of writing it."""
    generated = sum(len(one.logprobs or ()) for output in outputs for one in output.outputs)
    return generated + sum(len(output.prompt_logprobs or ()) for output in outputs)
