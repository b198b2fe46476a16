"""What a GPU is called in packs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from parhelion.errors import PackError
from parhelion.ops.device_fingerprint import device_fingerprint
from parhelion.ops.gemm import target
from parhelion.packs.format import Fingerprint


@pytest.fixture
def properties(monkeypatch):
    properties = SimpleNamespace(multi_processor_count=132, total_memory=80 << 30, gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    target._of_gpu.cache_clear()
    yield properties
    target._of_gpu.cache_clear()


def test_an_nvidia_gpu(properties, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    expected = Fingerprint("nvidia", "NVIDIA H100 80GB HBM3", "sm_90", 132, 80 << 30, 3e12)
    assert device_fingerprint(torch.device("cuda"), 3e12) == expected


def test_an_amd_gpu(properties, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "AMD Instinct MI300X")
    expected = Fingerprint("amd", "AMD Instinct MI300X", "gfx942", 132, 80 << 30)
    assert device_fingerprint(torch.device("cuda", 1)) == expected


def test_a_cpu_has_none():
    with pytest.raises(PackError, match="packs are for GPUs, and this device is cpu"):
        device_fingerprint(torch.device("cpu"))
