"""From a loaded model to a worker that is warm; the same on every rank."""

from __future__ import annotations

from parhelion.config import EngineConfig
from parhelion.distributed.stages import StageLinks
from parhelion.engine.device.worker import DeviceWorker, DeviceWorkerOptions
from parhelion.engine.host.worker import Worker
from parhelion.engine.kv_storage import KVCacheSize, plan_kv_cache
from parhelion.models.decoder import DecoderModel
from parhelion.models.eagle3 import Eagle3Head
from parhelion.ops.resolve import Resolver
from parhelion.platform.device import free_memory


def kv_cache_size(
    config: EngineConfig, model: DecoderModel, draft: DecoderModel | Eagle3Head | None = None
) -> KVCacheSize:
    """How many KV blocks this rank has room for; ranks on CPUs, those of other replicas too, share the host's memory.

    Args:
        config: all options.
        model: with its weights.
        draft: guesses tokens; what this rank computes of it has its keys and values in the same blocks.

    Raises:
        OutOfMemoryError: see ``plan_kv_cache``.
    """
    on_gpu = model.device.type != "cpu"
    free = free_memory(model.device) // (1 if on_gpu else config.num_ranks * config.dp)
    kept = draft.config.layer if isinstance(draft, Eagle3Head) else draft.config if draft is not None else None
    return plan_kv_cache(config, model.config, model.dtype, free, on_gpu, kept)


def build_worker(
    config: EngineConfig,
    model: DecoderModel,
    size: KVCacheSize,
    resolver: Resolver,
    draft: DecoderModel | Eagle3Head | None = None,
    links: StageLinks | None = None,
    passed_on: tuple[int, ...] = (),
) -> Worker | DeviceWorker:
    """The worker of the model's device.

    Args:
        config: all options.
        model: with its weights.
        size: of the KV cache, the same on all ranks.
        resolver: finds the providers of sampling.
        draft: guesses tokens for steps to check.
        links: to the other stages.
        passed_on: layers before which hidden states are taken for a head beside the last stage.
    """
    on_gpu = model.device.type != "cpu"
    if not on_gpu:
        budget = config.token_budget(on_gpu)
        return Worker(model, size, config.block_size, config.max_num_seqs, draft, budget, links, passed_on)
    options = DeviceWorkerOptions(
        config.block_size,
        config.max_num_seqs,
        config.token_budget(on_gpu),
        use_graphs=config.graphs != "off",
        num_guesses=config.num_speculative_tokens if config.speculate != "off" else 0,
    )
    return DeviceWorker(model, size, options, resolver, draft, links, passed_on)


def get_ready(config: EngineConfig, worker: Worker | DeviceWorker) -> None:
    """Capture what shall be captured before the engine is ready. This thread is to run the worker's steps."""
    if not isinstance(worker, DeviceWorker):
        return
    if config.graphs == "startup":
        worker.capture_all()
    worker.stay()
