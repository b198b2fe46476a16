"""From options to a running engine core: threads, weights, KV cache, worker, scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from parhelion.config import EngineConfig, read_environment
from parhelion.engine.core import EngineCore
from parhelion.engine.kv_storage import KVCacheSize, plan_kv_cache
from parhelion.engine.messages import EngineInfo
from parhelion.engine.worker import Worker
from parhelion.errors import ConfigError
from parhelion.models.checkpoint import Checkpoint, open_checkpoint
from parhelion.models.decoder import DecoderModel, Providers
from parhelion.models.registry import model_class
from parhelion.models.weights import CheckpointWeights, DummyWeights, Weights
from parhelion.ops.elementwise import ElementwiseOps, inductor_ops, inductor_unavailable, torch_ops
from parhelion.ops.linear import Provider, choose, choose_auto
from parhelion.platform.compiler import cache_compiled_code
from parhelion.platform.cpu import free_memory, release_freed_memory, resident_memory, usable_cores
from parhelion.scheduler import SchedulerConfig

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LoadedEngine:
    """A core that is ready, and what it has become."""

    core: EngineCore
    info: EngineInfo


def load_engine(
    config: EngineConfig, model_path: Path, model_name: str, progress: Progress | None = None
) -> LoadedEngine:
    """Load a model and build the engine around it.

    Args:
        config: all options.
        model_path: a folder or a ``.gguf`` file.
        model_name: for people and for the API.
        progress: called with tensors read so far and how many there are.

    Raises:
        CheckpointError: the checkpoint is damaged or not supported.
        ConfigError: an option cannot be had here.
        OutOfMemoryError: too little memory for the KV cache asked for.
    """
    threads = config.threads or usable_cores()
    # OpenMP keeps a pool of threads for every thread that computes, and throttles all of them once there are more than
    # cores. So one thread does all the computing, from the first weight on.
    thread = ThreadPoolExecutor(1, thread_name_prefix="worker", initializer=torch.set_num_threads, initargs=(threads,))
    try:
        return thread.submit(_load, config, model_path, model_name, thread, threads, progress).result()
    except BaseException:
        thread.shutdown(wait=False)
        raise


def _load(
    config: EngineConfig,
    model_path: Path,
    model_name: str,
    thread: ThreadPoolExecutor,
    threads: int,
    progress: Progress | None,
) -> LoadedEngine:
    started = time.monotonic()
    providers = Providers(_linear_provider(config), _elementwise_ops(config))
    with open_checkpoint(model_path) as checkpoint:
        model = _load_model(config, checkpoint, providers, progress)
        weight_bytes = checkpoint.total_bytes
    release_freed_memory()
    size = plan_kv_cache(config, model.config, model.dtype, free_memory())
    worker = Worker(model, size, config.block_size, config.max_num_seqs)
    warming = time.monotonic()
    worker.warm_up()
    compile_s = time.monotonic() - warming if config.compile else 0.0
    core = EngineCore(_scheduler_config(config, size), worker, overlap=config.overlap, thread=thread)
    info = EngineInfo(
        model_name=model_name,
        architecture=model.config.architecture,
        dtype=_name(providers.linear.weight_dtype),
        compute_dtype=_name(providers.linear.activation_dtype),
        linear_provider=providers.linear.name,
        elementwise_provider=providers.elementwise.name,
        threads=threads,
        vocab_size=model.config.vocab_size,
        eos_token_ids=list(model.config.eos_token_ids),
        max_model_len=size.max_model_len,
        block_size=config.block_size,
        num_blocks=size.num_blocks,
        kv_cache_bytes=size.total_bytes,
        weight_bytes=weight_bytes,
        resident_bytes=resident_memory(),
        load_s=time.monotonic() - started,
        compile_s=compile_s,
    )
    return LoadedEngine(core, info)


def _linear_provider(config: EngineConfig) -> Provider:
    if config.dtype == "auto":
        return choose_auto()
    dtype: torch.dtype = getattr(torch, config.dtype)
    return choose(dtype)


def _elementwise_ops(config: EngineConfig) -> ElementwiseOps:
    if not config.compile:
        return torch_ops()
    if (why_not := inductor_unavailable()) is not None:
        raise ConfigError(f"compile is not to be had here: {why_not}, or leave compile out")
    cache_compiled_code(read_environment().home / "inductor")
    return inductor_ops()


def _load_model(
    config: EngineConfig, checkpoint: Checkpoint, providers: Providers, progress: Progress | None
) -> DecoderModel:
    model_config = checkpoint.config
    if config.max_model_len is not None and config.max_model_len > model_config.max_position:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but the model was made for {model_config.max_position} tokens: "
            f"pass at most {model_config.max_position}"
        )
    weights: Weights
    if config.load_format == "dummy":
        weights = DummyWeights(config.seed, model_config.tie_word_embeddings)
    else:
        weights = CheckpointWeights(checkpoint, progress)
    max_model_len = config.max_model_len or model_config.max_position
    return model_class(model_config.architecture)(model_config, weights, providers, max_model_len)


def _scheduler_config(config: EngineConfig, size: KVCacheSize) -> SchedulerConfig:
    return SchedulerConfig(
        num_blocks=size.num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=size.max_model_len,
        max_queue_len=config.max_queue_len,
        enable_prefix_caching=config.enable_prefix_caching,
        policy=config.scheduling_policy,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
