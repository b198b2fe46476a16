"""What rank 0 and the other ranks say to each other: msgspec structs, MessagePack on the wire."""

from __future__ import annotations

import msgspec

from parhelion.config import EngineConfig
from parhelion.distributed.interfaces import Interface
from parhelion.distributed.store_messages import StorePlace
from parhelion.engine.messages import AddRequest, EngineFailed
from parhelion.engine.step_result import StepResult
from parhelion.scheduler import StepPlan


class RankOptions(msgspec.Struct, frozen=True):
    """What a rank's process is started with.

    Attributes:
        config: the engine's, for the rank's host.
        model_path: where rank 0 has the model.
        rank: 1 or more.
        address: the ZeroMQ address that rank 0 has bound.
        secret: that proves to rank 0 whom it hears.
        server_key: that proves to the rank whom it talks to, and encrypts what they say; empty on one host.
        life_address: where the rank gives signs of life; empty across hosts, where both ends ask for them on the road
            of their messages.
        interface: of the rank's host, for collectives; None is the loopback's.
        draft_path: where rank 0 has the draft model or head; None: there is none.
        parent: process id of whoever starts the rank.
    """

    config: EngineConfig
    model_path: str
    rank: int
    address: str
    secret: str
    parent: int
    server_key: str = ""
    life_address: str = ""
    interface: Interface | None = None
    draft_path: str | None = None


class Join(msgspec.Struct, tag=True, frozen=True):
    """Join the group through the store in this file, or, across hosts, at this place, and load the model."""

    path: str = ""
    store: StorePlace | None = None


class Serve(msgspec.Struct, tag=True, frozen=True):
    """Make room for so many KV blocks, warm up, and take steps."""

    num_blocks: int
    max_model_len: int


class ExecuteStep(msgspec.Struct, tag=True, frozen=True):
    """Run a step. ``admitted`` are the requests of the plan's admissions, in their order."""

    plan: StepPlan
    admitted: tuple[AddRequest, ...]


class Sampled(msgspec.Struct, tag=True, frozen=True):
    """What a step has sampled, row after row, for the first of several stages."""

    step: int
    token_ids: tuple[int, ...]


class Refused(msgspec.Struct, tag=True, frozen=True):
    """Rank 0 does not know whoever it heard."""

    message: str


class Leave(msgspec.Struct, tag=True, frozen=True):
    """End."""


ToRank = Join | Serve | ExecuteStep | Sampled | Refused | Leave


class Hello(msgspec.Struct, tag=True, frozen=True):
    """A rank's first message; rank 0 hears nobody who has not sent it.

    Attributes:
        host: the machine's name.
    """

    rank: int
    secret: str
    host: str


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """A rank has its part of the model, and room for so many KV blocks."""

    num_blocks: int
    max_model_len: int


class StepDone(msgspec.Struct, tag=True, frozen=True):
    """The last stage of a pipeline has completed a step."""

    step: int
    result: StepResult


FromRank = Hello | Loaded | StepDone | EngineFailed
