"""Devices that can be planned for: what they hold, what they can do at most, and what links them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from parhelion.distributed.collectives import Link, infinity_fabric, nvlink, pcie
from parhelion.errors import ConfigError
from parhelion.packs.format import Fingerprint
from parhelion.platform.ceilings import Ceilings

COPIED, MULTIPLIED = 0.89, 0.78
"""Of a datasheet's bandwidth and FLOP rates, what is measured: on an H100 and an H200 0.90 and 0.89 of the bandwidth,
0.80 of the rate in bfloat16, 0.76 of that in 8-bit floats.
"""


@dataclass(frozen=True)
class DevicePreset:
    """A kind of GPU.

    Attributes:
        name: as ``--device`` takes it.
        device: what it calls itself, as packs have it.
        target: what compilers call its architecture.
        memory_bytes: of the device.
        ceilings: bandwidth and FLOP rates (dense, without sparsity), as they are measured (``platform.ceilings``).
        known_from: whether they were ``measured``, or are what others reach of their ``datasheet``.
        link: between the GPUs of a node.
        source: of the figures.
    """

    name: str
    device: str
    target: str
    memory_bytes: int
    ceilings: Ceilings
    known_from: Literal["measured", "datasheet"]
    link: Link
    source: str


def _rates(
    device: str, bandwidth: float, float32: float, bfloat16: float, float8: float | None, int8: float
) -> Ceilings:
    """TB/s and TFLOP/s as ``Ceilings`` has them."""
    tera = 1e12
    return Ceilings(
        device,
        bandwidth * tera,
        float32 * tera,
        bfloat16 * tera,
        None if float8 is None else float8 * tera,
        int8 * tera,
    )


def _preset(
    name: str,
    device: str,
    target: str,
    memory: float,
    rates: tuple[float, float, float, float | None, float],
    link: Link,
    source: str,
) -> DevicePreset:
    """One that is known from its datasheet."""
    bandwidth, float32, bfloat16, float8, int8 = rates
    reached = _rates(
        device,
        COPIED * bandwidth,
        MULTIPLIED * float32,
        MULTIPLIED * bfloat16,
        None if float8 is None else MULTIPLIED * float8,
        MULTIPLIED * int8,
    )
    said = f"{source}, of which {COPIED:.0%} of the bandwidth and {MULTIPLIED:.0%} of the rates"
    return DevicePreset(name, device, target, int(memory * 1e9), reached, "datasheet", link, said)


PRESETS = (
    DevicePreset(
        "h100",
        "NVIDIA H100 80GB HBM3",
        "sm_90",
        85_017_493_504,
        _rates("NVIDIA H100 80GB HBM3", 3.019, 51.9, 797.0, 1511.0, 949.0),
        "measured",
        nvlink(450, "NVIDIA H100 datasheet: NVLink 900 GB/s, both directions together"),
        "ceilings measured: benchmarks/results/h100_ops.json",
    ),
    DevicePreset(
        "h200",
        "NVIDIA H200",
        "sm_90",
        141_000_000_000,
        _rates("NVIDIA H200", 4.264, 51.9, 789.0, 1499.0, 949.0),
        "measured",
        nvlink(450, "NVIDIA H200 datasheet: NVLink 900 GB/s, both directions together"),
        "ceilings measured, see the floors of the H200's pack; float32 and int8 are the H100's, which has as many "
        "processors",
    ),
    _preset(
        "b200",
        "NVIDIA B200",
        "sm_100",
        180,
        (7.7, 75.0, 2250.0, 4500.0, 4500.0),
        nvlink(900, "NVIDIA HGX B200 datasheet: NVLink 1.8 TB/s, both directions together"),
        "NVIDIA HGX B200 datasheet",
    ),
    _preset(
        "a100",
        "NVIDIA A100-SXM4-80GB",
        "sm_80",
        80,
        (2.039, 19.5, 312.0, None, 624.0),
        nvlink(300, "NVIDIA A100 datasheet: NVLink 600 GB/s, both directions together"),
        "NVIDIA A100 datasheet",
    ),
    _preset(
        "l40s",
        "NVIDIA L40S",
        "sm_89",
        48,
        (0.864, 91.6, 362.0, 733.0, 733.0),
        pcie(32, "NVIDIA L40S datasheet: PCIe 4.0 x16, 64 GB/s both directions together"),
        "NVIDIA L40S datasheet",
    ),
    _preset(
        "mi300x",
        "AMD Instinct MI300X",
        "gfx942",
        192,
        (5.3, 163.4, 1307.0, 2615.0, 2615.0),
        infinity_fabric(448, "AMD MI300X datasheet: 7 Infinity Fabric links of 128 GB/s, both directions together"),
        "AMD Instinct MI300X datasheet",
    ),
    _preset(
        "mi355x",
        "AMD Instinct MI355X",
        "gfx950",
        288,
        (8.0, 157.3, 2517.0, 5033.0, 5033.0),
        infinity_fabric(537.6, "AMD MI355X datasheet: 7 Infinity Fabric links of 153.6 GB/s, both directions together"),
        "AMD Instinct MI355X datasheet",
    ),
)


def preset(name: str) -> DevicePreset:
    """A device by name.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    for each in PRESETS:
        if each.name == name:
            return each
    known = ", ".join(each.name for each in PRESETS)
    raise ConfigError(f"there is no device {name!r}; there are {known}, and the devices of packs by the packs' names")


def preset_of(device: str) -> DevicePreset | None:
    """The preset of a device by the name that its driver gives it, if there is one."""
    return next((each for each in PRESETS if each.device == device), None)


def device_of_pack(mark: Fingerprint) -> DevicePreset:
    """What a pack was measured on: the preset of that device, or one of its target with the pack's own figures.

    Raises:
        ConfigError: no preset has its target.
    """
    known = preset_of(mark.device)
    if known is not None:
        return known
    for each in PRESETS:
        if each.target == mark.target:
            bandwidth = mark.bandwidth or each.ceilings.bandwidth
            return replace(
                each,
                name=mark.device or mark.target,
                device=mark.device,
                memory_bytes=mark.memory_bytes or each.memory_bytes,
                ceilings=replace(each.ceilings, device=mark.device, bandwidth=bandwidth),
                source=f"memory and bandwidth of the pack's device, FLOP rates and links of {each.name}",
            )
    raise ConfigError(
        f"no device of target {mark.target} is known, which the pack is for: pass --device with one of "
        f"{', '.join(each.name for each in PRESETS)}"
    )
