"""A whole comparison: every model, without a server and with one, written as it grows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from parhelion.bench.compare.checkpoint import compared_model, write_tokenizer
from parhelion.bench.compare.device import MemoryMeter, probe
from parhelion.bench.compare.earlier import Earlier
from parhelion.bench.compare.engines import OURS, Engine, ours
from parhelion.bench.compare.offline import Bench, compare_offline
from parhelion.bench.compare.online import compare_online
from parhelion.bench.compare.peer_weights import ITS_OWN, LIKE_OURS, NOT_TAKEN, PeerWeights
from parhelion.bench.compare.results import Comparison, Recorder
from parhelion.bench.compare.settings import OfflineSettings, OnlineSettings
from parhelion.bench.machine import describe_circumstances
from parhelion.errors import ConfigError

Mode = Literal["offline", "online", "both"]

MODES: Mapping[str, Mode] = {"offline": "offline", "online": "online", "both": "both"}
"""By the word that a command line has."""

NOTES = (
    "Ratios are the peer's time over Parhelion's, formed within each round: above 1 Parhelion is the faster.",
    "Both engines are told the same KV cache in bytes, the same sequences and tokens of a step, and no prefix caching.",
    "Offline vLLM is asked for ids alone; Parhelion also spells its ids out as text, at its own expense.",
    "A server's TTFT, TPOT and ITL are its client's, over HTTP on the loopback; both detokenize with one tokenizer.",
)


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Attributes:
        peers: the engines beside Parhelion.
        models: names known here, or folders.
        mode: without servers, with servers, or one after the other.
    """

    peers: tuple[Engine, ...]
    models: tuple[str, ...] = ("qwen3-1.7b", "qwen3-8b")
    mode: Mode = "both"
    offline: OfflineSettings = field(default_factory=OfflineSettings)
    online: OnlineSettings = field(default_factory=OnlineSettings)

    def __post_init__(self) -> None:
        names = [OURS, *(peer.name for peer in self.peers)]
        if len(set(names)) != len(names) or len(names) < 2:
            raise ConfigError(f"the engines are {', '.join(names)}; there must be a peer, and none twice")
        if self.mode != "online" and not any(peer.runner for peer in self.peers):
            raise ConfigError(f"{names[-1]} can only be compared through its server: pass --mode online")
        if self.mode != "offline" and self.offline.sequential and not self.online.rates:
            raise ConfigError(
                "with --sequential the first server cannot know what the second reaches: give the rates (--rate)"
            )


def compare(plan: Plan, output: Path | None, say: Callable[[str], None], us: Engine | None = None) -> Comparison:
    """Measure all of a plan.

    Args:
        output: a JSON file that is written anew after each point; logs go into a folder beside it. What it has of an
            earlier comparison on the same device with the same settings stays, but for what is measured again.
        say: told what is going on.
        us: how Parhelion is started; None is this installation.

    Raises:
        ConfigError: a model or the device cannot be had, or ``output`` is something that this cannot be added to.
    """
    with tempfile.TemporaryDirectory(prefix="parhelion-compare-") as folder:
        models = [compared_model(model, Path(folder)) for model in plan.models]
        peers, notes, weights = plan.peers, list(NOTES), None
        if any(peer.kind == "vllm" for peer in peers) and any(model.load_format == "dummy" for model in models):
            # Said at the start: a comparison that is cut off leaves what it has.
            notes.append(LIKE_OURS if plan.offline.peer_weights else ITS_OWN)
            if plan.offline.peer_weights:
                weights = PeerWeights(Path(folder) / "weights")
                peers = tuple(map(weights.given_to, peers))
        engines = (us or ours(), *peers)
        say("measuring the device")
        device = probe(plan.offline.device, dict(ours().environment))
        meter = MemoryMeter(device.uuid)
        circumstances = describe_circumstances()
        comparison = Comparison(
            device=device.name if device.kind == "cuda" else circumstances.machine.name,
            bandwidth=device.bandwidth,
            versions={},
            command=circumstances.command,
            measured_at=circumstances.measured_at,
            settings=plan.offline,
            online_settings=plan.online,
            alive="one engine at a time" if plan.offline.sequential else "all engines, idle while another is measured",
            memory_source=meter.source,
            notes=notes,
        )
        earlier = None
        if output is not None and output.exists():
            earlier = Earlier(output, comparison, plan.mode != "online", plan.mode != "offline")
        recorder = Recorder(comparison, output)
        logs = _logs_folder(output)
        for model in models:
            bench = Bench(model, plan.offline, device, meter, recorder, logs, say)
            if plan.mode != "online":
                compare_offline([engine for engine in engines if engine.runner], bench)
            if plan.mode != "offline":
                # Written late: offline, a folder without a tokenizer means that nobody detokenizes.
                if model.load_format == "dummy" and model.folder.is_relative_to(folder):
                    write_tokenizer(model.folder, model.shape.vocab_size)
                compare_online([engine for engine in engines if engine.kind != "other"], bench, plan.online)
        if weights is not None and not weights.were_taken:
            comparison.notes.append(NOT_TAKEN)
        if earlier is not None:
            earlier.finish(comparison)
        recorder.write()
    return comparison


def _logs_folder(output: Path | None) -> Path:
    """Beside the result, or, where there is none, a temporary one that is left for the reader of an error."""
    if output is None:
        return Path(tempfile.mkdtemp(prefix="parhelion-compare-logs-"))
    return output.with_name(f"{output.stem}-logs")


def failed_engines(comparison: Comparison) -> Sequence[str]:
    """Engines that were given up with a model, or under a load, each with the reason."""
    offline = [f"{row.engine}, {row.model}: {row.error}" for row in comparison.engines if row.error]
    online = [f"{name}, {row.model}: {why}" for row in comparison.online for name, why in row.errors.items()]
    return [*offline, *dict.fromkeys(online)]
