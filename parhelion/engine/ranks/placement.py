"""Where replicas and ranks run: GPUs by number, and each its share of a CPU's cores."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import torch

from parhelion.config import EngineConfig
from parhelion.engine.ranks.start import LocalHosts, RankHosts
from parhelion.errors import ConfigError
from parhelion.platform.cores import usable_cores
from parhelion.platform.device import choose_device


def replica_config(config: EngineConfig, replica: int) -> EngineConfig:
    """The options of one replica: on GPUs it begins behind the ranks of the one before it.

    Raises:
        ConfigError: no such device is here, or there are fewer GPUs than all ranks of all replicas need.
    """
    if config.dp == 1 or config.executor == "ray":
        return config
    device = choose_device(config.device)
    if device.type == "cpu":
        return config
    _check_gpus(config, device, config.dp * config.num_ranks)
    return replace(config, device=f"{device.type}:{(device.index or 0) + replica * config.num_ranks}")


def rank_device(config: EngineConfig, rank: int) -> torch.device:
    """The device of a rank: the first takes the replica's device, and each other one the next. Ray gives each its own.

    Raises:
        ConfigError: no such device is here, or there are fewer GPUs than ranks.
    """
    device = choose_device(config.device)
    if config.num_ranks == 1 or device.type == "cpu" or config.executor == "ray":
        return device
    _check_gpus(config, device, config.num_ranks)
    return torch.device(device.type, (device.index or 0) + rank)


def compute_on(device: torch.device) -> None:
    """Make it the current device of this thread: binaries are loaded for, and programs launched on, that one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def rank_threads(config: EngineConfig) -> int:
    """CPU threads of each rank of each replica."""
    return config.threads or max(1, usable_cores() // (config.num_ranks * config.dp))


def rank_hosts(config: EngineConfig) -> RankHosts:
    """The machines that an engine's ranks run on.

    Raises:
        ConfigError: Ray is asked for and is not installed, or its cluster has no room.
    """
    if config.executor != "ray":
        return LocalHosts(config)
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("executor is ray, and ray is not installed here: pip install 'parhelion[ray]'")
    # Only who asks for it waits for its import.
    from parhelion.engine.ranks.ray_hosts import RayHosts

    return RayHosts(config)


def _check_gpus(config: EngineConfig, first: torch.device, needed: int) -> None:
    there = torch.cuda.device_count()
    if (first.index or 0) + needed <= there:
        return
    sizes = (("dp", config.dp), ("tp", config.tp), ("pp", config.pp))
    several = {name: size for name, size in sizes if size > 1}
    asked = " and ".join(f"{name} is {size}" for name, size in several.items())
    raise ConfigError(
        f"{asked}, which takes {needed} GPUs from {first} on, but this machine has {there} GPUs, and every rank needs "
        f"its own: lower {' or '.join(several)}, or pass device cpu"
    )
