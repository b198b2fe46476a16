"""What the harness and a runner say to each other: a JSON object a line; see ``runners/engine_runner.py``."""

from __future__ import annotations

from typing import Any

import msgspec


class Load(msgspec.Struct, frozen=True, tag_field="do", tag="load"):
    """Import the engine and make it ready.

    Attributes:
        kv_cache_memory: bytes of the KV cache.
        memory_share: of the device, which must be free for an engine that asks for a share.
        pack, graphs: Parhelion's own options.
        guessing: vLLM's ``speculative_config``, with acceptance that can be imposed; None guesses nothing ahead.
    """

    model: str
    load_format: str
    device: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_memory: int
    memory_share: float
    seed: int
    pack: str
    graphs: str
    guessing: dict[str, Any] | None = None


class Generate(msgspec.Struct, frozen=True, tag_field="do", tag="generate"):
    """Complete so many random prompts, drawn from the seed, to their full length."""

    batch: int
    input_length: int
    output_length: int
    seed: int


class Decode(msgspec.Struct, frozen=True, tag_field="do", tag="decode"):
    """The same, timed while all of them decode; of vLLM alone.

    Attributes:
        acceptance: share of the guesses that count, of those whose turn comes; None where nothing is guessed.
    """

    batch: int
    input_length: int
    output_length: int
    seed: int
    acceptance: float | None


class Info(msgspec.Struct, frozen=True, tag_field="do", tag="info"):
    """Describe the engine."""


class Quit(msgspec.Struct, frozen=True, tag_field="do", tag="quit"):
    """End."""


Request = Load | Generate | Decode | Info | Quit


class Loaded(msgspec.Struct, frozen=True):
    """Seconds of importing the engine and of making it, as its own process measured them."""

    import_s: float
    load_s: float


class Generated(msgspec.Struct, frozen=True):
    """One batch.

    Attributes:
        seconds: from handing the prompts over to having all tokens.
        tokens: generated, of all prompts together.
        prompt_checksum: CRC-32 of the prompts' ids; equal for equal prompts.
    """

    seconds: float
    tokens: int
    prompt_checksum: int


class Decoded(msgspec.Struct, frozen=True):
    """One batch, from when all prompts have a token until the first of them has all.

    Attributes:
        tokens: gained in that time, by all prompts together.
        rows: times that a prompt gained any.
    """

    seconds: float
    tokens: int
    rows: int


class EngineFacts(msgspec.Struct, frozen=True):
    """What an engine says of itself.

    Attributes:
        versions: of packages, by name.
        device: as the engine calls it.
        kv_cache_bytes: of its KV cache; None if it does not say.
        kernels: ``op=provider`` for every op; empty where the engine has no such list.
        pack: where kernels came from; empty if from no pack.
        notes: what was passed over, and why.
        block_kernels: ``op=provider`` for each call of a block, in order, by the size of a step that it serves, as the
            engine lists them: sizes in between are served as the next larger one.
    """

    versions: dict[str, str] = {}
    device: str = ""
    kv_cache_bytes: int | None = None
    kernels: list[str] = []
    pack: str = ""
    notes: list[str] = []
    block_kernels: dict[int, list[str]] = {}

    def block_at(self, num_tokens: int) -> list[str]:
        """What serves a block of a step of so many tokens; empty if the engine does not say."""
        sizes = sorted(self.block_kernels)
        return self.block_kernels[next((size for size in sizes if size >= num_tokens), sizes[-1])] if sizes else []


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The request failed; the traceback is in the log."""

    error: str


class Done(msgspec.Struct, frozen=True):
    """It quits."""
