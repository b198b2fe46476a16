"""From options to a running engine core: threads, weights, KV cache, worker, scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from parhelion.config import EngineConfig
from parhelion.distributed.group import ALONE, Group
from parhelion.distributed.layouts import why_not_tp
from parhelion.distributed.rendezvous import Place
from parhelion.engine.arithmetic import Arithmetic, choose_arithmetic
from parhelion.engine.build_worker import build_worker, get_ready, kv_cache_size
from parhelion.engine.core import EngineCore, StepExecutor
from parhelion.engine.device.worker import DeviceWorker
from parhelion.engine.drafts.choice import DraftChoice, choose_draft, speculator
from parhelion.engine.host.worker import Worker
from parhelion.engine.kv_storage import KVCacheSize
from parhelion.engine.messages import EngineInfo, Phase
from parhelion.engine.ranks.pipeline_parallel import PipelineWorker, size_of, stage_of
from parhelion.engine.ranks.placement import compute_on, rank_device, rank_threads
from parhelion.engine.ranks.tensor_parallel import OtherRanks, TensorParallelWorker
from parhelion.engine.step_watch import StepWatch, step_timeout
from parhelion.engine.unbuilt import unbuilt_note
from parhelion.errors import ConfigError
from parhelion.layers.fusions import plans
from parhelion.models.checkpoint import open_checkpoint, read_model_config
from parhelion.models.config import ModelConfig
from parhelion.models.decoder import BuildOptions, DecoderModel
from parhelion.models.eagle3 import Eagle3Head
from parhelion.models.eagle3_config import Eagle3Config
from parhelion.models.registry import model_class
from parhelion.models.weights import CheckpointWeights, DummyWeights, Weights
from parhelion.ops.choose_pack import OFF, pack_kernels
from parhelion.ops.collectives.machines import why_no_exchange
from parhelion.ops.gemm.target import target_of_device
from parhelion.ops.resolve import Resolver
from parhelion.platform.cpu import release_freed_memory, resident_memory
from parhelion.platform.device import device_name
from parhelion.platform.memory import peak_resident_memory
from parhelion.quantization import UNQUANTIZED, QuantScheme, choose_head_scheme, choose_scheme
from parhelion.scheduler import SchedulerConfig

Progress = Callable[[int, int], None]


_ONE_STAGE: dict[str, Any] = {"pp": 1, "executor": "auto", "ray_address": None, "interface": None}
"""Options of a model that is not divided into stages."""


@dataclass(frozen=True)
class LoadedEngine:
    """A core that is ready, and what it has become.

    Attributes:
        watch: sees that the core's steps end.
    """

    core: EngineCore
    info: EngineInfo
    watch: StepWatch


def load_engine(
    config: EngineConfig,
    model_path: Path,
    model_name: str,
    progress: Progress | None = None,
    imports_s: float = 0.0,
) -> LoadedEngine:
    """Load a model and build the engine around it.

    Args:
        config: all options.
        model_path: a folder or a ``.gguf`` file.
        model_name: for people and for the API.
        progress: called with tensors read so far and how many there are.
        imports_s: seconds that the process had taken before, for the record.

    Raises:
        CheckpointError: the checkpoint is damaged or not supported.
        ConfigError: an option cannot be had here.
        OutOfMemoryError: too little memory for the KV cache asked for.
        EngineDeadError: another rank ended while it started.
    """
    threads = rank_threads(config)
    # OpenMP keeps a pool of threads for every thread that computes, and throttles all of them once there are more than
    # cores. So one thread does all the computing, from the first weight on.
    thread = ThreadPoolExecutor(1, thread_name_prefix="worker", initializer=torch.set_num_threads, initargs=(threads,))
    try:
        return thread.submit(_load, config, model_path, model_name, thread, threads, progress, imports_s).result()
    except BaseException:
        thread.shutdown(wait=False)
        raise


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device.

    Attributes:
        weight_bytes: as stored.
        phases: of loading it.
    """

    model: DecoderModel
    resolver: Resolver
    arithmetic: Arithmetic
    weight_bytes: int
    phases: tuple[Phase, ...]


def load_model(
    config: EngineConfig,
    model_path: Path,
    progress: Progress | None = None,
    group: Group = ALONE,
    keep_tables: bool = False,
    stage: int = 0,
) -> LoadedModel:
    """Only the model, or this rank's part of it, with no engine around it; see ``load_engine``, ``BuildOptions``.
    ``stage`` is one of ``config.pp``.
    """
    device = rank_device(config, stage * config.tp + group.rank)
    compute_on(device)
    arithmetic = choose_arithmetic(config, device)
    started = time.monotonic()
    pack, notes = pack_kernels(config.pack, device)
    resolver = Resolver(device, arithmetic.kernels, arithmetic.preferences, pack)
    resolver.notes += notes
    opened = time.monotonic()
    with torch.inference_mode():
        model, weight_bytes = _load_model(config, model_path, arithmetic, resolver, progress, group, keep_tables, stage)
    release_freed_memory()
    phases = (Phase("pack", opened - started), Phase("weights", time.monotonic() - opened))
    return LoadedModel(model, resolver, arithmetic, weight_bytes, phases)


def _load(
    config: EngineConfig,
    model_path: Path,
    model_name: str,
    thread: ThreadPoolExecutor,
    threads: int,
    progress: Progress | None,
    imports_s: float,
) -> LoadedEngine:
    # What does not fit is refused before a process is started.
    chosen = choose_draft(config, model_path)
    if config.num_ranks == 1:
        return _load_engine(config, model_path, model_name, chosen, thread, threads, progress, imports_s, None)
    others = OtherRanks(config, model_path, chosen.path if chosen is not None else None)
    try:
        threads = rank_threads(others.config)
        torch.set_num_threads(threads)
        with others.blamed():
            return _load_engine(
                others.config, model_path, model_name, chosen, thread, threads, progress, imports_s, others
            )
    except BaseException:
        others.close()
        raise


def _load_engine(
    config: EngineConfig,
    model_path: Path,
    model_name: str,
    chosen: DraftChoice | None,
    thread: ThreadPoolExecutor,
    threads: int,
    progress: Progress | None,
    imports_s: float,
    others: OtherRanks | None,
) -> LoadedEngine:
    """The engine of this rank, which is the first of several if there are others."""
    started = time.monotonic()
    place = others.place if others is not None else Place()
    own = chosen if config.pp == 1 else None
    loaded = load_model(config, model_path, progress, place.group, needs_tables(own))
    model, resolver, arithmetic = loaded.model, loaded.resolver, loaded.arithmetic
    device = model.device
    on_gpu = device.type != "cpu"
    draft, draft_bytes = load_draft(config, own, loaded)
    if chosen is not None and own is None:
        # What is noted of the draft model where it is loaded is not told here.
        _draft_group(chosen, loaded)
    cost = draft_bytes / max(1, loaded.weight_bytes) if config.pp == 1 else _draft_cost(chosen, model)
    size = kv_cache_size(config, model, draft)
    if others is not None:
        size = others.smallest(size)
    worker = build_worker(config, model, size, resolver, draft, place.links, states_passed_on(chosen, model))
    warming = time.monotonic()
    worker.warm_up()
    if others is not None:
        others.warmed_up()
    warm_up_s = time.monotonic() - warming
    compile_s = warm_up_s if config.compile or (on_gpu and resolver.compiles) else 0.0
    get_ready(config, worker)
    graphs = worker.graphs if isinstance(worker, DeviceWorker) else None
    graph_s = graphs.capture_s if graphs is not None else 0.0
    ranks_s = others.start_s if others is not None else 0.0
    watch = StepWatch(step_timeout(config, on_gpu and not resolver.compiles), others)
    core = EngineCore(
        _scheduler_config(config, size, on_gpu),
        _with_others(worker, others, config.pp),
        # Where the first stage computes in this process, threads would hinder each other.
        overlap=config.overlap and (config.pp == 1 or on_gpu),
        speculation=speculator(config, chosen, cost, on_gpu),
        thread=thread,
        peers=others,
        watch=watch,
    )
    info = EngineInfo(
        model_name=model_name,
        architecture=model.config.architecture,
        dtype=_name(arithmetic.storage_dtype),
        compute_dtype=_name(arithmetic.dtype),
        linear_provider=model.linear_provider,
        device=device_name(device),
        quantization=model.scheme.name,
        lm_head_quantization=model.head_scheme.name,
        kernels=sorted(f"{name}={provider}" for name, them in resolver.chosen.items() for provider in them),
        block_kernels=model.block_kernels,
        kernel_notes=resolver.all_notes(),
        pack=resolver.pack_name,
        launches_per_layer=model.launches_per_layer,
        threads=threads,
        vocab_size=model.config.vocab_size,
        eos_token_ids=list(model.config.eos_token_ids),
        tp=config.tp,
        pp=config.pp,
        dp=config.dp,
        max_model_len=size.max_model_len,
        block_size=config.block_size,
        num_blocks=size.num_blocks,
        kv_cache_bytes=size.total_bytes,
        weight_bytes=loaded.weight_bytes,
        resident_bytes=resident_memory(),
        load_s=time.monotonic() - started + ranks_s,
        peak_host_bytes=peak_resident_memory(),
        compile_s=compile_s,
        num_graphs=graphs.num_graphs if graphs is not None else 0,
        graph_bytes=graphs.memory_bytes if graphs is not None else 0,
        graph_s=graph_s,
        phases=[
            Phase("imports", imports_s),
            Phase("ranks", ranks_s),
            *loaded.phases,
            Phase("first steps", warm_up_s),
            Phase("graphs", graph_s),
        ],
    )
    return LoadedEngine(core, info, watch)


def _with_others(worker: Worker | DeviceWorker, others: OtherRanks | None, pp: int) -> StepExecutor:
    """This rank's worker, beside those of the other ranks."""
    if others is None:
        return worker
    shared = TensorParallelWorker(worker, others)
    return shared if pp == 1 else PipelineWorker(shared, others, pp, is_quick=isinstance(worker, DeviceWorker))


def needs_tables(chosen: DraftChoice | None) -> bool:
    """Whether the target has to be loaded with ``keep_tables``."""
    return chosen is not None and chosen.head is not None


def states_passed_on(chosen: DraftChoice | None, model: DecoderModel) -> tuple[int, ...]:
    """Layers before which a head reads hidden states that the stages before its own hand to it."""
    if model.stage.count == 1 or chosen is None or chosen.head is None:
        return ()
    return chosen.head.layers_read(model.whole)


def _draft_cost(chosen: DraftChoice | None, model: DecoderModel) -> float:
    """Bytes of weights over the target's, of a draft model that another stage has."""
    if chosen is None:
        return 0.0
    scheme = UNQUANTIZED if chosen.head is not None else choose_scheme(chosen.config.quantization, None)
    draft, target = (size_of(*each) for each in ((chosen.config, scheme), (model.whole, model.scheme)))
    return draft.weight_bytes / target.weight_bytes


def load_draft(
    config: EngineConfig, chosen: DraftChoice | None, target: LoadedModel
) -> tuple[DecoderModel | Eagle3Head | None, int]:
    """The draft model, in the target's arithmetic and for texts as long, and the bytes of its weights. No stages
    divide it.

    The target's ranks share it as they share the target, if its sizes divide as well. If not, each has all of it, and
    rank 0 tells the others what it guesses.
    """
    if chosen is None:
        return None, 0
    group = _draft_group(chosen, target)
    length = config.max_model_len or target.model.config.max_position
    options = replace(
        config, quantization=None, lm_head_quantization=None, compile=False, max_model_len=length, **_ONE_STAGE
    )
    resolver = target.resolver
    of_target = len(resolver.unbuilt)
    with torch.inference_mode():
        draft: DecoderModel | Eagle3Head
        if chosen.head is None:
            draft, num_bytes = _load_model(options, chosen.path, target.arithmetic, resolver, None, group)
        else:
            draft, num_bytes = _load_head(options, chosen.path, chosen.head, target, group)
    target.model.tables = None
    release_freed_memory()
    # That packs are off has been said, and what follows.
    if (own := resolver.unbuilt[of_target:]) and config.pack != OFF:
        whose = "the draft model" if chosen.head is None else "the draft head"
        built_for = target_of_device(resolver.device).name
        resolver.notes.append(unbuilt_note(whose, own, chosen.path, built_for, group.size))
    return draft, num_bytes


def _draft_group(chosen: DraftChoice, target: LoadedModel) -> Group:
    """The ranks that share the draft model."""
    group = target.model.group
    scheme = UNQUANTIZED if chosen.head is not None else choose_scheme(chosen.config.quantization, None)
    reason = why_not_tp(size_of(chosen.config, scheme), group.size)
    if reason is None:
        return group
    target.resolver.notes.append(f"every rank has the whole draft model: {reason}")
    return ALONE


def _load_head(
    config: EngineConfig, path: Path, head: Eagle3Config, target: LoadedModel, group: Group
) -> tuple[Eagle3Head, int]:
    resolver, tables = target.resolver, target.model.tables
    assert tables is not None, "the target was loaded for a head"
    options = _build_options(config, head.layer, UNQUANTIZED, target.arithmetic, resolver, group)
    if config.load_format == "dummy":
        made = DummyWeights(config.seed, False, UNQUANTIZED, resolver.device, target.arithmetic.dtype)
        return Eagle3Head(head, made, options, *tables, target.model.group), made.num_bytes
    device = resolver.device if resolver.device.type != "cpu" else None
    with open_checkpoint(path, device) as checkpoint:
        stored = CheckpointWeights(checkpoint, None, device)
        return Eagle3Head(head, stored, options, *tables, target.model.group), checkpoint.total_bytes


def _load_model(
    config: EngineConfig,
    path: Path,
    arithmetic: Arithmetic,
    resolver: Resolver,
    progress: Progress | None,
    group: Group,
    keep_tables: bool = False,
    stage: int = 0,
) -> tuple[DecoderModel, int]:
    """The model, and the bytes of its weights as stored."""
    if config.load_format == "dummy":
        found = read_model_config(path)
        scheme = choose_scheme(found.quantization, config.quantization)
        weights = DummyWeights(config.seed, found.tie_word_embeddings, scheme, resolver.device, arithmetic.dtype)
        model = _build(config, found, scheme, weights, arithmetic, resolver, group, keep_tables, stage)
        return model, weights.num_bytes
    on_gpu = resolver.device.type != "cpu"
    with open_checkpoint(path, resolver.device if on_gpu else None) as checkpoint:
        found = checkpoint.config
        scheme = choose_scheme(found.quantization, config.quantization)
        stored = CheckpointWeights(checkpoint, progress, resolver.device if on_gpu else None)
        model = _build(config, found, scheme, stored, arithmetic, resolver, group, keep_tables, stage)
        return model, checkpoint.total_bytes


def _build(
    config: EngineConfig,
    found: ModelConfig,
    scheme: QuantScheme,
    weights: Weights,
    arithmetic: Arithmetic,
    resolver: Resolver,
    group: Group,
    keep_tables: bool,
    stage: int,
) -> DecoderModel:
    if config.max_model_len is not None and config.max_model_len > found.max_position:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but the model was made for {found.max_position} tokens: "
            f"pass at most {found.max_position}"
        )
    options = _build_options(config, found, scheme, arithmetic, resolver, group, keep_tables)
    options = replace(options, stage=stage_of(found, scheme, options.head_scheme, config.pp, stage))
    return model_class(found.architecture)(found, weights, options)


def _build_options(
    config: EngineConfig,
    found: ModelConfig,
    scheme: QuantScheme,
    arithmetic: Arithmetic,
    resolver: Resolver,
    group: Group,
    keep_tables: bool = False,
) -> BuildOptions:
    return BuildOptions(
        dtype=arithmetic.dtype,
        storage_dtype=arithmetic.storage_dtype,
        scheme=scheme,
        head_scheme=choose_head_scheme(config.lm_head_quantization),
        plans=plans(arithmetic.fusion, resolver.device, _can_exchange(found, arithmetic, resolver, group)),
        resolver=resolver,
        block_size=config.block_size,
        max_model_len=config.max_model_len or found.max_position,
        compile_one_token=config.compile,
        group=group,
        keep_tables=keep_tables,
    )


def _can_exchange(found: ModelConfig, arithmetic: Arithmetic, resolver: Resolver, group: Group) -> bool:
    """Whether ranks can hand each other rows inside kernels, if any does so; it is prepared then, never in the middle
    of a step.
    """
    has_none = group.is_alone or resolver.device.type == "cpu" or arithmetic.fusion == "plain"
    if has_none or arithmetic.dtype.itemsize != 2:
        return True
    why_not = why_no_exchange(resolver.device, group.size, found.hidden_size)
    if why_not is not None:
        resolver.notes.append(f"sums over ranks are launches of their own: {why_not}")
    return why_not is None


def _scheduler_config(config: EngineConfig, size: KVCacheSize, on_gpu: bool) -> SchedulerConfig:
    return SchedulerConfig(
        num_blocks=size.num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.token_budget(on_gpu),
        max_model_len=size.max_model_len,
        max_queue_len=config.max_queue_len,
        enable_prefix_caching=config.enable_prefix_caching,
        policy=config.scheduling_policy,
        num_groups=config.pp,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
