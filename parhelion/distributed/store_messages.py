"""What ranks and the store that they meet at say to each other: msgspec structs, MessagePack on the wire."""

from __future__ import annotations

import msgspec


class StorePlace(msgspec.Struct, frozen=True):
    """Where the store is, and what it takes to be heard there.

    Attributes:
        address: ZeroMQ's.
        server_key: by which ranks know the store, and without which nothing can be said there; printable.
        secret: which every request carries.
        host: the machine's name.
    """

    address: str
    server_key: str
    secret: str
    host: str


class Set(msgspec.Struct, tag=True, frozen=True):
    """Let a key have a value."""

    key: str
    value: bytes


class Add(msgspec.Struct, tag=True, frozen=True):
    """Add to a key's number, which is 0 at first, and say the sum."""

    key: str
    amount: int


class CompareSet(msgspec.Struct, tag=True, frozen=True):
    """Let a key that has the expected value, or none where nothing is expected, have another; say which it has then."""

    key: str
    expected: bytes
    desired: bytes


class Get(msgspec.Struct, tag=True, frozen=True):
    """Wait until all keys are there, for so many seconds, or for ever, and say their values."""

    keys: tuple[str, ...]
    timeout_s: float | None


class Check(msgspec.Struct, tag=True, frozen=True):
    """Say 1 if all keys are there, else 0."""

    keys: tuple[str, ...]


class Delete(msgspec.Struct, tag=True, frozen=True):
    """Forget a key; say 1 if it was there, else 0."""

    key: str


class Count(msgspec.Struct, tag=True, frozen=True):
    """Say how many keys there are."""


Request = Set | Add | CompareSet | Get | Check | Delete | Count


class Asked(msgspec.Struct, frozen=True):
    """A request, and whose it is.

    Attributes:
        secret: see ``StorePlace``.
        rank, host: of whoever asks, for those who wait for it.
    """

    secret: str
    rank: int
    host: str
    request: Request


class Values(msgspec.Struct, tag=True, frozen=True):
    """Of the keys that were asked for."""

    values: tuple[bytes, ...] = ()


class Number(msgspec.Struct, tag=True, frozen=True):
    """A sum, a count, or 1 for yes."""

    value: int


class Missing(msgspec.Struct, tag=True, frozen=True):
    """Keys that nobody has set in time.

    Attributes:
        hosts: of the ranks that have asked for anything yet.
    """

    keys: tuple[str, ...]
    hosts: dict[int, str]


class Failed(msgspec.Struct, tag=True, frozen=True):
    """Why there is no answer."""

    message: str


Answer = Values | Number | Missing | Failed
