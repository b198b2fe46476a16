"""A small pack's rows and models to plan with."""

from __future__ import annotations

from dataclasses import replace

from parhelion.distributed.collectives import Fabric, network
from parhelion.distributed.devices import PRESETS, DevicePreset
from parhelion.distributed.model_size import ModelSize
from parhelion.ops.contract import Contract
from parhelion.packs.format import Candidate, Row
from parhelion.quantization import FP8_PER_TOKEN, UNQUANTIZED, QuantScheme

H100 = PRESETS[0]
FABRIC = Fabric(H100.link, network(50), 8)
QWEN3_8B = ModelSize("qwen3-8b", 36, 4096, 12288, 32, 8, 128, 151936, False, UNQUANTIZED)


def qwen3_8b(quantization: QuantScheme = FP8_PER_TOKEN) -> ModelSize:
    return replace(QWEN3_8B, quantization=quantization)


def row(
    contract: Contract, num_tokens: int, time_us: float, device: DevicePreset = H100, untuned_us: float = 0.0
) -> Row:
    """A measured row, its floor that of the device."""
    work = contract.traffic(num_tokens)
    return Row(
        op=contract.name,
        contract=contract.key(),
        num_tokens=num_tokens,
        best=Candidate("helion", None, time_us, time_us, time_us),
        floor_us=1e6 * device.ceilings.floor_s(work.bytes, work.flops, work.unit),
        measured_at=num_tokens,
        untuned_us=untuned_us,
    )
