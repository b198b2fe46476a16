"""What kind of GPU this is, as packs name it."""

from __future__ import annotations

import torch

from parhelion.errors import PackError
from parhelion.ops.gemm.target import target_of_device
from parhelion.packs.format import Fingerprint


def device_fingerprint(device: torch.device, bandwidth: float = 0.0) -> Fingerprint:
    """The fingerprint of a GPU.

    Args:
        device: which.
        bandwidth: bytes a second of a copy, of ``measure_ceilings``; 0 if nothing was measured.

    Raises:
        PackError: the device is no GPU: packs hold binaries for GPUs.
    """
    if device.type != "cuda":
        raise PackError(f"packs are for GPUs, and this device is {device}: pass a cuda device")
    device = torch.device("cuda", device.index or 0)
    properties = torch.cuda.get_device_properties(device)
    return Fingerprint(
        vendor="nvidia" if torch.version.hip is None else "amd",
        device=torch.cuda.get_device_name(device),
        target=target_of_device(device).name,
        num_processors=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        bandwidth=bandwidth,
    )
