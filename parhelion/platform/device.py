"""The device that a model runs on: its name, what it can do, what memory it has free."""

from __future__ import annotations

import torch

from parhelion.errors import ConfigError
from parhelion.platform import cpu

FLOAT8_CAPABILITY = (8, 9)
"""The first NVIDIA compute capability with 8-bit floats (Ada)."""


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a device; ``auto`` takes the first GPU, else the CPU.

    Raises:
        ConfigError: no such device is here.
    """
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda" if name == "auto" else name)
        index = device.index or 0
        if index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ConfigError(f"device is {name}, but this machine has {count} GPUs: pass one below cuda:{count}")
        return torch.device("cuda", index)
    if name == "auto":
        return torch.device("cpu")
    raise ConfigError(
        f"device is {name}, but torch sees no GPU here: pass device cpu, or install a torch with GPU support"
    )


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else cpu.fingerprint().name


def has_float8(device: torch.device) -> bool:
    """Whether the device's kernels may use 8-bit floats; a CPU emulates them."""
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    capability: tuple[int, int] = torch.cuda.get_device_capability(device)
    return capability >= FLOAT8_CAPABILITY


def free_memory(device: torch.device) -> int:
    """Bytes that may still be allocated on the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return cpu.free_memory()
