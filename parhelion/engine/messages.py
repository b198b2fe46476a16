"""What the front end and the engine say to each other: msgspec structs, MessagePack on the wire."""

from __future__ import annotations

import msgspec

from parhelion.config import EngineConfig
from parhelion.types import EngineStats, FinishReason, ReplicaState, SamplingParams


class ProcessOptions(msgspec.Struct, frozen=True):
    """What the engine's process is started with.

    Attributes:
        requests_address, outputs_address, life_address: ZeroMQ addresses that the front end has bound; at the last one
            it asks for signs of life.
        parent: process id of the front end.
        replica: which of ``config.dp`` it is.
    """

    config: EngineConfig
    model_path: str
    model_name: str
    requests_address: str
    outputs_address: str
    life_address: str
    parent: int
    replica: int = 0


class AddRequest(msgspec.Struct, tag=True, frozen=True):
    """One completion to compute.

    Attributes:
        request_id: unique among unfinished requests; ``siblings_of`` tells those of one user's request.
        prompt_token_ids: at least one id.
        params: as the user gave them; ``n`` and the stop strings are the front end's business.
        seed: of this completion's random numbers.
        stop_token_ids: ids that end the text, end-of-sequence ids included unless they are ignored.
        max_tokens: already cut to the model's length.
        priority: lower runs first under the priority policy.
        arrival: seconds on the monotonic clock.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    stop_token_ids: list[int]
    max_tokens: int
    priority: int
    arrival: float


def siblings_of(request_id: str) -> str:
    """What the names of all completions of one user's request have in common; see ``Intake``."""
    return request_id.rpartition("/")[0]


class AbortRequests(msgspec.Struct, tag=True, frozen=True):
    """Forget these requests and free their blocks; unknown ids are ignored."""

    request_ids: list[str]


class GetStats(msgspec.Struct, tag=True, frozen=True):
    """Answered with ``StatsReply`` of the same number."""

    number: int


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """End the engine."""


ToEngine = AddRequest | AbortRequests | GetStats | Shutdown


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position.

    Attributes:
        token_id, logprob, rank: of the token that is there; rank 1 is the likeliest.
        top_ids, top_logprobs: the likeliest tokens, in order.
    """

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class TokenOutput(msgspec.Struct, frozen=True, array_like=True):
    """One new token of one request.

    Attributes:
        finish_reason, stop_token_id: set on the last.
        logprob: if asked for.
        prompt_logprobs: with the first token, if asked for; the first position has none.
        num_cached_tokens: prompt tokens taken from the prefix cache.
    """

    request_id: str
    token_id: int
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    num_cached_tokens: int = 0


class Outputs(msgspec.Struct, tag=True, frozen=True):
    """All new tokens of one step."""

    tokens: list[TokenOutput]


class RequestRejected(msgspec.Struct, tag=True, frozen=True):
    """The engine did not take a request.

    Attributes:
        queue_full: too many are waiting; else the request itself is at fault.
        message, param: for the user.
    """

    request_id: str
    queue_full: bool
    message: str
    param: str | None


class RequestsLost(msgspec.Struct, tag=True, frozen=True):
    """What ran these requests has ended, or there is nobody to run them.

    Attributes:
        request_ids: all that were unfinished.
        message: why, for the user.
        others_serve: sent again, they would run elsewhere.
    """

    request_ids: list[str]
    message: str
    others_serve: bool


class ReplicaStates(msgspec.Struct, tag=True, frozen=True):
    """All replicas as they are from now on."""

    replicas: list[ReplicaState]


class StatsReply(msgspec.Struct, tag=True, frozen=True):
    """The engine's counts at this moment."""

    number: int
    stats: EngineStats


class Phase(msgspec.Struct, frozen=True, array_like=True):
    """A part of the start, and the seconds that it took."""

    name: str
    seconds: float


class EngineInfo(msgspec.Struct, tag=True, frozen=True):
    """What the engine has become once it is ready; also its first message.

    Attributes:
        model_name: for people and for the API.
        architecture: of the model.
        dtype: of the weights.
        compute_dtype: of the arithmetic.
        device: what the device calls itself.
        quantization: the scheme of the linear layers.
        lm_head_quantization: the scheme of the output head.
        linear_provider: who multiplies in the linear layers.
        kernels: ``op=provider`` for every op in use.
        block_kernels: ``op=provider`` for each call of one block, in order, by size of M (the step's tokens); sizes in
            between are served as the next larger one, all larger ones as the largest.
        kernel_notes: providers and packs that were passed over, and why.
        pack: where the choice of kernels and their binaries come from; empty if from no pack.
        launches_per_layer: ops that one block of the model launches.
        threads: intra-op CPU threads.
        tp: ranks that share every layer.
        pp: stages of consecutive layers. What is said of memory, blocks aside, is said of the first rank of the first.
        dp: replicas that share the requests. What is said of an engine is said of the first of them.
        vocab_size: of the model.
        max_model_len: tokens of a request, prompt and output together.
        block_size, num_blocks: of the KV cache.
        kv_cache_bytes: of all blocks.
        weight_bytes: of the checkpoint as stored.
        resident_bytes: of the engine's process when it became ready; untouched KV blocks are not in it.
        load_s: seconds from the start to being ready.
        peak_host_bytes: most memory that the engine's process has held so far.
        compile_s: seconds of that spent compiling.
        phases: of the start, in order: imports (of the engine's own process, from its creation), ranks (the other
            processes, if any), pack, weights, first steps (where what is missing compiles), graphs.
        num_graphs, graph_bytes, graph_s: CUDA graphs captured at the start, their memory and their time.
    """

    model_name: str
    architecture: str
    dtype: str
    compute_dtype: str
    linear_provider: str
    device: str
    quantization: str
    lm_head_quantization: str
    kernels: list[str]
    block_kernels: dict[int, list[str]]
    kernel_notes: list[str]
    pack: str
    launches_per_layer: int
    threads: int
    tp: int
    pp: int
    dp: int
    vocab_size: int
    eos_token_ids: list[int]
    max_model_len: int
    block_size: int
    num_blocks: int
    kv_cache_bytes: int
    weight_bytes: int
    resident_bytes: int
    load_s: float
    peak_host_bytes: int
    compile_s: float
    num_graphs: int
    graph_bytes: int
    graph_s: float
    phases: list[Phase]


class LoadProgress(msgspec.Struct, tag=True, frozen=True):
    """Tensors read so far, while the model loads."""

    done: int
    total: int


class EngineFailed(msgspec.Struct, tag=True, frozen=True):
    """The engine's last message, or one of its ranks': it cannot start or cannot go on.

    Attributes:
        kind: name of the error's class.
        message: for the user.
    """

    kind: str
    message: str


FromEngine = (
    Outputs | RequestRejected | RequestsLost | ReplicaStates | StatsReply | EngineInfo | LoadProgress | EngineFailed
)
