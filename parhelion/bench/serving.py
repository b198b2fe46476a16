"""A load generator: requests arrive at a server over HTTP, and each is timed as its client sees it."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import httpx
import msgspec

from parhelion.bench.report import Measurement
from parhelion.bench.workload import random_prompts
from parhelion.errors import ConfigError, ParhelionError
from parhelion.platform.measure import summarize
from parhelion.types import TokensPrompt

_ERROR_CHARACTERS = 200
# Ids that any vocabulary has: the generator knows nothing of the model behind the address.
_VOCAB_SIZE = 1000


@dataclass(frozen=True)
class ServingSettings:
    """Lengths in tokens, rates in requests a second, objectives in milliseconds.

    ``request_rate`` is the mean of Poisson arrivals; infinity sends all at once, and ``concurrency`` then bounds how
    many are in flight. A request is good when its TTFT and its TPOT keep both objectives (goodput: Zhong et al., 2024).
    """

    num_requests: int = 100
    prompt_length: int = 128
    output_length: int = 64
    request_rate: float = math.inf
    concurrency: int = 16
    ttft_objective_ms: float = 1000.0
    tpot_objective_ms: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_requests", "prompt_length", "output_length", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.request_rate > 0:
            raise ConfigError(f"request_rate is {self.request_rate}; it must be above 0 (inf sends all at once)")


@dataclass
class RequestRecord:
    """One request as its client saw it: moments in seconds on one clock."""

    sent: float = 0.0
    chunks: list[float] = field(default_factory=list)
    ended: float = 0.0
    output_tokens: int = 0
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.chunks[0] - self.sent

    @property
    def e2e_s(self) -> float:
        return self.ended - self.sent

    @property
    def tpot_s(self) -> float:
        """Seconds per output token after the first."""
        return (self.chunks[-1] - self.chunks[0]) / max(self.output_tokens - 1, 1)

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between one chunk and the next (inter-token latency, where a chunk is a token)."""
        return [after - before for before, after in pairwise(self.chunks)]


class _Choice(msgspec.Struct):
    text: str = ""


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


@dataclass(frozen=True)
class ClientShare:
    """What one of several clients sends: of as many requests as there are clients the one with its own number, again
    and again; together they keep ``concurrency``.

    Attributes:
        number: of this client. num_clients: in all.
        start: when the first request arrives, by ``time.perf_counter``; None: at once.
    """

    number: int = 0
    num_clients: int = 1
    start: float | None = None

    def concurrency(self, settings: ServingSettings) -> int:
        """Requests that this client has in flight at most."""
        whole, more = divmod(settings.concurrency, self.num_clients)
        return whole + (self.number < more)


async def generate_load(
    url: str,
    model: str,
    settings: ServingSettings,
    api_key: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    share: ClientShare | None = None,
) -> list[RequestRecord]:
    """Send all requests, or a client's share of them, and return their records, in order of sending; a request that
    failed has its ``error`` set.
    """
    share = share or ClientShare()
    prompts = random_prompts(
        count=settings.num_requests, length=settings.prompt_length, vocab_size=_VOCAB_SIZE, seed=settings.seed
    )
    concurrency = share.concurrency(settings)
    in_flight = asyncio.Semaphore(concurrency)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=concurrency)
    ended = 0
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=None, trust_env=False) as client:
        start = time.perf_counter() if share.start is None else share.start

        async def one(prompt: TokensPrompt, delay: float) -> RequestRecord:
            nonlocal ended
            await asyncio.sleep(start + delay - time.perf_counter())
            async with in_flight:
                record = await send_request(client, model, prompt, settings.output_length)
            ended += 1
            if progress is not None:
                progress(ended, settings.num_requests)
            return record

        arrivals = list(zip(prompts, arrival_times(settings), strict=True))[share.number :: share.num_clients]
        return list(await asyncio.gather(*(one(prompt, delay) for prompt, delay in arrivals)))


def arrival_times(settings: ServingSettings) -> list[float]:
    """Seconds from the start at which each request arrives: a Poisson process of the given rate, from the seed."""
    generator = random.Random(settings.seed)
    now = 0.0
    times = []
    for _ in range(settings.num_requests):
        times.append(now)
        now += 0.0 if math.isinf(settings.request_rate) else generator.expovariate(settings.request_rate)
    return times


async def send_request(
    client: httpx.AsyncClient, model: str, prompt: TokensPrompt, output_length: int
) -> RequestRecord:
    """Stream one greedy completion to its full length and note when each chunk came."""
    body = {
        "model": model,
        "prompt": list(prompt["prompt_token_ids"]),
        "max_tokens": output_length,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    record = RequestRecord(sent=time.perf_counter())
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                text = (await response.aread()).decode(errors="replace")
                record.error = f"status {response.status_code}: {text[:_ERROR_CHARACTERS]}"
            else:
                await _read_events(response, record)
    except httpx.HTTPError as error:
        record.error = f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS]
    record.ended = time.perf_counter()
    if not record.error and not record.chunks:
        record.error = "the stream ended without a token"
    return record


async def _read_events(response: httpx.Response, record: RequestRecord) -> None:
    """Note when events come, and read them once all are there: whoever reads them at once comes late to the next."""
    events: list[tuple[float, bytes]] = []
    rest = b""
    async for data in response.aiter_bytes():
        now = time.perf_counter()
        *whole, rest = (rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        events += [(now, event) for event in whole]
    for came, event in events:
        if not event.startswith(b"data: ") or event == b"data: [DONE]":
            continue
        chunk = msgspec.json.decode(event[6:], type=_Chunk)
        if chunk.error is not None:
            record.error = bytes(chunk.error).decode(errors="replace")[:_ERROR_CHARACTERS]
        if chunk.choices:
            record.chunks.append(came)
        if chunk.usage is not None:
            record.output_tokens = chunk.usage.completion_tokens


def summarize_load(records: Sequence[RequestRecord], settings: ServingSettings) -> list[Measurement]:
    """Latencies over the requests, rates over the whole run.

    Raises:
        ParhelionError: no request succeeded; the message holds the first one's error.
    """
    good = [record for record in records if not record.error]
    if not good:
        raise ParhelionError(f"none of {len(records)} requests succeeded; the first one said: {records[0].error}")
    wall_s = wall_seconds(records)
    gaps = [1e3 * gap for record in good for gap in record.gaps_s]
    case = describe_load(settings)

    def latency(quantity: str, values: Sequence[float]) -> Measurement:
        return Measurement(case, quantity, "ms", summarize(values or [0.0]))

    def rate(quantity: str, count: float) -> Measurement:
        return Measurement(case, quantity, "1/s", summarize([count / wall_s]))

    return [
        latency("TTFT", [1e3 * record.ttft_s for record in good]),
        latency("TPOT", [1e3 * record.tpot_s for record in good]),
        latency("ITL", gaps),
        latency("end to end", [1e3 * record.e2e_s for record in good]),
        rate("requests", len(good)),
        rate("generated tokens", sum(record.output_tokens for record in good)),
        rate("goodput", count_good(records, settings)),
        Measurement(case, "failed requests", "count", summarize([float(len(records) - len(good))])),
    ]


def wall_seconds(records: Sequence[RequestRecord]) -> float:
    """From when the first request was sent until the last one had ended."""
    return max(record.ended for record in records) - min(record.sent for record in records)


def count_good(records: Sequence[RequestRecord], settings: ServingSettings) -> int:
    """Requests that succeeded and kept both objectives."""
    return sum(
        1e3 * record.ttft_s <= settings.ttft_objective_ms and 1e3 * record.tpot_s <= settings.tpot_objective_ms
        for record in records
        if not record.error
    )


def describe_load(settings: ServingSettings) -> str:
    """The case in words."""
    arrival = "at once" if math.isinf(settings.request_rate) else f"at {settings.request_rate:g}/s"
    lengths = f"prompt {settings.prompt_length}, output {settings.output_length}"
    return f"{settings.num_requests} requests {arrival}, {settings.concurrency} in flight, {lengths}"
