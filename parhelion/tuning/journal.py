"""What a tuner has found out, line by line, so that starting again goes on where it stopped.

A JSON object a line. A ``Head`` says on what and with which sources the lines behind it were made; those of another
device, of other versions or of changed sources are not used. A line that was cut short is ignored.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from parhelion.errors import ConfigError
from parhelion.packs.format import Fingerprint
from parhelion.platform.measure import Summary


class Head(msgspec.Struct, frozen=True, tag="head"):
    """The beginning of a session.

    Attributes:
        fingerprint, source_hashes, versions: as in a pack.
        started_at: ISO 8601, UTC.
    """

    fingerprint: Fingerprint
    source_hashes: dict[str, str]
    versions: dict[str, str]
    started_at: str


class Compiled(msgspec.Struct, frozen=True, tag="compiled"):
    """A config that was compiled.

    Attributes:
        contract: ``Contract.key()``.
        problem: why it cannot be timed; None if it can.
        stack_bytes: that a thread spills at most.
        compile_s: processor seconds.
        at_s: seconds since the session began.
        provider: of the tile programs that the config is for; empty in older journals, of ops that have one.
    """

    contract: str
    bucket: int
    config: Any
    problem: str | None
    stack_bytes: int
    compile_s: float
    at_s: float = 0.0
    provider: str = ""


class Timed(msgspec.Struct, frozen=True, tag="timed"):
    """A trial that was made; see ``Outcome``.

    Attributes:
        rounds, checked: of its job.
        gpu_s: seconds that it took.
    """

    contract: str
    num_tokens: int
    provider: str
    config: Any
    rounds: int
    checked: bool
    time_us: Summary | None
    rel_err: float
    problem: str | None
    workspace_bytes: int
    gpu_s: float
    at_s: float = 0.0


class Step(msgspec.Struct, frozen=True, tag="step"):
    """A step that was tuned.

    Attributes:
        shortlists: what was chosen among, in a form that says whether it is the same.
        choices: contract to position; None if it failed for the ``problem``.
        gpu_s: seconds that it took.
        block_us: microseconds of one block with the choices; None if it failed, or was written before this was kept.
    """

    num_tokens: int
    shortlists: str
    choices: dict[str, int] | None
    problem: str | None
    gpu_s: float
    at_s: float = 0.0
    block_us: float | None = None


class Searched(msgspec.Struct, frozen=True, tag="searched"):
    """What Helion's own search found for a matrix product.

    Attributes:
        seconds: that it was given; ``took_s``: that it took.
        config: of the tile program that serves; None if it failed for the ``problem``.
    """

    contract: str
    num_tokens: int
    seconds: float
    config: Any | None
    problem: str | None
    took_s: float
    at_s: float = 0.0


Entry = Compiled | Timed | Step | Searched
Line = Head | Compiled | Timed | Step | Searched


@dataclass(frozen=True)
class Totals:
    """What all sessions took together; see ``packs.format.Ledger``."""

    tune_s: float
    gpu_s: float
    compile_s: float
    num_compiled: int
    num_dropped: int
    num_timed: int


class Journal:
    """A journal that is read once and added to. Close it, or use it in a ``with``.

    Args:
        path: of the file, which need not exist.
        head: of the session that begins.

    Attributes:
        notes: what of the file is not used and why, a sentence each.

    Raises:
        ConfigError: the file cannot be read or written.
    """

    def __init__(self, path: Path, head: Head) -> None:
        self.notes: list[str] = []
        self._head = head
        self._entries: dict[str, Entry] = {}
        self._elapsed: list[float] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            # What was cut short would run into the next line.
            whole = content.rfind(b"\n") + 1
            self._read(content[:whole], path)
            self._file = io.FileIO(path, "a")
            self._file.truncate(whole)
        except OSError as error:
            raise ConfigError(f"the journal {path} cannot be used: {error.strerror}; name another --output") from error
        self._elapsed.append(0.0)
        self._write(head)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is added."""
        self._file.close()

    def compiled(self, contract: str, bucket: int, config: Any) -> Compiled | None:
        """What is known of compiling a config."""
        found = self._entries.get(_compiled_key(contract, bucket, config))
        return found if isinstance(found, Compiled) else None

    def timed(
        self, contract: str, num_tokens: int, provider: str, config: Any, rounds: int, checked: bool
    ) -> Timed | None:
        """What is known of a trial."""
        found = self._entries.get(_timed_key(contract, num_tokens, provider, config, rounds, checked))
        return found if isinstance(found, Timed) else None

    def step(self, num_tokens: int, shortlists: str) -> Step | None:
        """What is known of a step's tuning."""
        found = self._entries.get(_step_key(num_tokens, shortlists))
        return found if isinstance(found, Step) else None

    def searched(self, contract: str, num_tokens: int, seconds: float) -> Searched | None:
        """What is known of Helion's search."""
        found = self._entries.get(_searched_key(contract, num_tokens, seconds))
        return found if isinstance(found, Searched) else None

    def add(self, entry: Entry) -> None:
        """Write down what was found out."""
        self._keep(entry)
        self._write(entry)

    def totals(self) -> Totals:
        """Of all sessions that are used."""
        entries = list(self._entries.values())
        compiled = [each for each in entries if isinstance(each, Compiled)]
        timed = [each for each in entries if isinstance(each, Timed)]
        steps = [each for each in entries if isinstance(each, Step)]
        searched = [each for each in entries if isinstance(each, Searched)]
        return Totals(
            tune_s=sum(self._elapsed),
            gpu_s=sum(each.gpu_s for each in timed)
            + sum(each.gpu_s for each in steps)
            + sum(each.took_s for each in searched),
            compile_s=sum(each.compile_s for each in compiled),
            num_compiled=len(compiled),
            num_dropped=sum(each.problem is not None for each in compiled),
            num_timed=len(timed),
        )

    def _write(self, line: Line) -> None:
        # At once, so that whatever ends the process leaves whole lines, but for the last.
        self._file.write(msgspec.json.encode(line) + b"\n")

    def _keep(self, entry: Entry) -> None:
        self._entries[_key(entry)] = entry
        self._elapsed[-1] = max(self._elapsed[-1], entry.at_s)

    def _read(self, content: bytes, path: Path) -> None:
        head: Head | None = None
        refused: dict[str, int] = {}
        for line in _lines(content):
            if isinstance(line, Head):
                head = line
                self._elapsed.append(0.0)
            elif (why := self._why_not(head, line)) is not None:
                refused[why] = refused.get(why, 0) + 1
            else:
                self._keep(line)
        self.notes += [f"journal {path}: {count} results are not used: {why}" for why, count in refused.items()]

    def _why_not(self, head: Head | None, entry: Entry) -> str | None:
        """Why an entry under a head says nothing about now; None if it does."""
        if head is None:
            return "nothing says what they were measured on"
        there, here = head.fingerprint, self._head.fingerprint
        if _device(there) != _device(here):
            return (
                f"they are of {there.device} ({there.num_processors} processors), and this is {here.device} "
                f"({here.num_processors})"
            )
        if changed := sorted(set(head.versions.items()) ^ set(self._head.versions.items())):
            return f"they were found with another version of {changed[0][0]}"
        names = sorted(head.source_hashes) if isinstance(entry, Step) else _sources(entry)
        for name in names:
            if head.source_hashes.get(name) != self._head.source_hashes.get(name):
                return f"the sources of {name} have changed since"
        return None


def _lines(content: bytes) -> Iterator[Line]:
    decoder = msgspec.json.Decoder(Line)
    for line in content.split(b"\n"):
        try:
            yield decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue


def _sources(entry: Compiled | Timed | Searched) -> list[str]:
    """What the hashes of an entry's sources stand under; the second has none but where a provider has its own."""
    op = entry.contract.partition("(")[0]
    return [op] if isinstance(entry, Searched) else [op, f"{op}.{entry.provider}"]


def _device(fingerprint: Fingerprint) -> tuple[object, ...]:
    """Without the bandwidth: measured twice, it is not twice the same."""
    return fingerprint.vendor, fingerprint.device, fingerprint.target, fingerprint.num_processors


def _key(entry: Entry) -> str:
    if isinstance(entry, Compiled):
        return _compiled_key(entry.contract, entry.bucket, entry.config)
    if isinstance(entry, Step):
        return _step_key(entry.num_tokens, entry.shortlists)
    if isinstance(entry, Searched):
        return _searched_key(entry.contract, entry.num_tokens, entry.seconds)
    return _timed_key(entry.contract, entry.num_tokens, entry.provider, entry.config, entry.rounds, entry.checked)


def _compiled_key(contract: str, bucket: int, config: Any) -> str:
    return _text("compiled", contract, bucket, config)


def _timed_key(contract: str, num_tokens: int, provider: str, config: Any, rounds: int, checked: bool) -> str:
    return _text("timed", contract, num_tokens, provider, config, rounds, checked)


def _step_key(num_tokens: int, shortlists: str) -> str:
    return _text("step", num_tokens, shortlists)


def _searched_key(contract: str, num_tokens: int, seconds: float) -> str:
    return _text("searched", contract, num_tokens, seconds)


def _text(*values: object) -> str:
    return msgspec.json.encode(values, order="sorted").decode()
