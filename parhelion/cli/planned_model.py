"""From a model's name to what the planner asks of it: its dimensions, and what one of several ranks calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from parhelion.distributed.devices import PRESETS, DevicePreset, device_of_pack, preset
from parhelion.distributed.kernel_times import REACHED, KernelTimes
from parhelion.distributed.model_size import HeadSize, ModelSize
from parhelion.distributed.step_model import RankCalls
from parhelion.errors import ConfigError, PackError
from parhelion.layers.fusions import ON_GPU
from parhelion.models.checkpoint import read_model_config
from parhelion.ops.argmax import Argmax
from parhelion.ops.contract import Contract
from parhelion.ops.gemm.target import GemmTarget, gemm_target
from parhelion.ops.preferences import preferred
from parhelion.ops.source_hash import source_hashes
from parhelion.ops.top_k_top_p_sampling import TopKTopPSampling
from parhelion.packs.format import Row
from parhelion.packs.location import find_packs, open_pack
from parhelion.packs.lookup import stale_sources
from parhelion.packs.store import StoredPack, read_pack
from parhelion.quantization import UNQUANTIZED
from parhelion.tuning.head_calls import is_head, tuned_head
from parhelion.tuning.model_calls import (
    TunedModel,
    edge_contracts,
    head_ways,
    layer_contracts,
    layer_ways,
    shared_layer_ways,
    shared_under,
    tuned_model,
)
from parhelion.tuning.model_shapes import MODEL_SHAPES

UNTIED = ("qwen3-8b", "qwen3-32b", "llama-3-8b", "qwen2.5-7b")
"""Listed models whose output head is a table of its own (``tie_word_embeddings`` of their ``config.json``)."""


def model_size(model: TunedModel, name: str) -> ModelSize:
    """The dimensions of a model that was asked for by that name or path."""
    shape = model.shape
    listed = shape in MODEL_SHAPES
    return ModelSize(
        name=model.name,
        num_layers=model.num_layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        tied=shape.name not in UNTIED if listed else read_model_config(Path(name)).tie_word_embeddings,
        quantization=model.quantization,
        head_quantization=model.head_quantization,
    )


def with_draft(size: ModelSize, name: str) -> ModelSize:
    """A model beside a draft model, or a head, that was asked for by that name or path.

    Raises:
        ConfigError: there is none of that name, or it is for another model.
    """
    if not is_head(name):
        draft = model_size(tuned_model(name), name)
        if draft.vocab_size != size.vocab_size:
            raise ConfigError(
                f"{name} has {draft.vocab_size} tokens and {size.name} has {size.vocab_size}: a draft model must have "
                "the same vocabulary"
            )
        return replace(size, draft=draft)
    head = tuned_head(name).config
    layer = head.layer
    if (head.target_hidden_size, layer.vocab_size) != (size.hidden_size, size.vocab_size):
        raise ConfigError(f"{name} is a head for another model than {size.name}: give the head of this very model")
    return replace(
        size,
        draft=HeadSize(
            name=name,
            num_layers=layer.num_layers,
            hidden_size=layer.hidden_size,
            intermediate_size=layer.intermediate_size,
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            head_dim=layer.head_dim,
            vocab_size=head.draft_vocab_size,
            tied=True,
            quantization=UNQUANTIZED,
            fused=head.num_features * head.target_hidden_size,
        ),
    )


def calls_of(model: TunedModel, size: ModelSize, target: GemmTarget) -> Callable[[int], RankCalls]:
    """What a rank calls where ``tp`` ranks share each layer; requests are answered greedily."""

    def calls(tp: int) -> RankCalls:
        shard = replace(model, tp=tp)
        heads = head_ways(shard, target)
        of_tokens, of_requests = edge_contracts(shard, target=target)
        # Of several ranks each takes the likeliest of its part of the vocabulary, and then of the ranks' likeliest.
        of_all = (TopKTopPSampling, Argmax) if tp > 1 else TopKTopPSampling
        whole = [each for each in of_requests if isinstance(each, of_all) and each.vocab_size == size.vocab_size]
        of_requests = [each for each in of_requests if each not in (*whole, *heads[0])]
        blocks = tuple(shared_layer_ways(shard, target))
        shared = tuple(shared_under(shard, target, plan) for plan in ON_GPU) if tp > 1 else ()
        ways = _ways(shard, target)
        return RankCalls(ways, blocks, tuple(of_tokens), tuple(of_requests), shared, tuple(heads))

    return calls


def _ways(shard: TunedModel, target: GemmTarget) -> tuple[Counter[Contract], ...]:
    """All layers under each set of fusions; layers that are alike are asked once."""
    if len(set(shard.windows)) > 1:
        return tuple(layer_contracts(shard, target, plan=plan) for plan in ON_GPU)
    first = replace(shard, num_layers=1, windows=shard.windows[:1])
    ways = []
    for plan, later in zip(ON_GPU, layer_ways(shard, target), strict=True):
        counts = layer_contracts(first, target, plan=plan)
        for contract, count in Counter(later).items():
            counts[contract] += (shard.num_layers - 1) * count
        ways.append(counts)
    return tuple(ways)


@dataclass(frozen=True)
class KnownTimes:
    """Kernel times on a device, and where they are from.

    Attributes:
        pack: the name of the pack that they are from; None if they are floors.
        notes: sentences for the user.
    """

    device: DevicePreset
    times: KernelTimes
    pack: str | None
    notes: tuple[str, ...]

    @property
    def target(self) -> GemmTarget:
        """The device's, as configs see it."""
        return gemm_target(self.device.target)


def known_times(device_name: str, pack_name: str = "auto", untuned: bool = False) -> KnownTimes:
    """What is known of kernels on a device.

    Args:
        device_name: a preset's, or a pack's whose device it is.
        pack_name: ``auto`` for one of that device, ``off`` for floors alone, else a pack's name or path.
        untuned: the pack's times of what serves without a pack.

    Raises:
        ConfigError: there is no such device.
        PackError: there is no such pack.
    """
    device, of_device = _device(device_name)
    stored = _pack(device, pack_name, of_device)
    if stored is None:
        if untuned:
            raise ConfigError("--untuned takes its times from a pack, and there is none: name one with --pack")
        note = f"no pack: every kernel is {REACHED:.0%} of what the {device.known_from} limits allow"
        return KnownTimes(device, KernelTimes(device), None, (note + " (floor)",))
    pack = stored.pack
    same = pack.fingerprint.device == device.device
    notes = [
        f"kernels as pack {pack.name} has them, measured on {pack.fingerprint.device}; ops that it does not have at "
        f"{REACHED:.0%} of the {device.known_from} limits (floor)"
    ]
    if not same:
        notes.append(f"all scaled to {device.device} by the {device.known_from} limits")
    if untuned:
        notes.append("as served without a pack")
    notes += [f"{name}: measured with other sources than those here" for name in stale_sources(pack, source_hashes())]
    if untuned:
        times = KernelTimes(device, pack.rows, same, untuned_us)
    else:
        times = KernelTimes(device, pack.rows, same, blocks=pack.blocks)
    return KnownTimes(device, times, pack.name, tuple(notes))


def untuned_us(row: Row) -> float:
    """Microseconds of whom the table of preferences chooses on a GPU without a pack; 0 if nobody measured it."""
    import torch

    first = preferred(row.op, torch.device("cuda"))[0]
    if first == "helion":
        return row.untuned_us
    return next((each.time_us for each in (row.best, *row.runners_up) if each.provider == first), 0.0)


def _device(name: str) -> tuple[DevicePreset, StoredPack | None]:
    if name in {each.name for each in PRESETS}:
        return preset(name), None
    try:
        stored = open_pack(name)
    except PackError:
        return preset(name), None  # which says what there is
    return device_of_pack(stored.pack.fingerprint), stored


def _pack(device: DevicePreset, name: str, of_device: StoredPack | None) -> StoredPack | None:
    if name == "off":
        return None
    if name != "auto":
        return open_pack(name)
    if of_device is not None:
        return of_device
    for path in find_packs():
        try:
            stored = read_pack(path)
        except PackError:
            continue
        if stored.pack.fingerprint.device == device.device:
            return stored
    return None
