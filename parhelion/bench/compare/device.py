"""The device that is shared: how fast it copies, and how much of its memory is in use, whoever uses it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import msgspec

from parhelion.config import child_environment
from parhelion.errors import ConfigError

_PROBE_S = 300.0
_SMI_S = 20.0


class Probe(msgspec.Struct, frozen=True):
    """A device, measured.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        name: what it calls itself.
        bandwidth: bytes a second of a copy, read and written bytes added.
        uuid: of a GPU, as nvidia-smi takes it; empty if not known.
        rates: FLOPs a second of large matrix products, by bytes of an operand's element; without what it has no
            products of.
    """

    kind: str
    name: str
    bandwidth: float
    uuid: str
    rates: dict[int, float] = {}


def probe(device: str, environment: dict[str, str]) -> Probe:
    """Measure a device in a process of its own, so that this one holds none of its memory.

    Raises:
        ConfigError: the device cannot be had; the message ends with what was said.
    """
    command = [sys.executable, "-m", "parhelion.bench.compare.device", device]
    done = subprocess.run(command, capture_output=True, env=child_environment(environment), timeout=_PROBE_S)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ConfigError(f"the device {device!r} could not be measured: {' '.join(said)}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Probe)


@dataclass(frozen=True)
class MemoryMeter:
    """Memory in use on one device, of all processes together.

    Attributes:
        uuid: of the GPU; empty for a device without memory of its own.
    """

    uuid: str

    @property
    def source(self) -> str:
        """Where the figures come from, in words."""
        if not self.uuid:
            return "not measured: the device has no memory of its own"
        return (
            "growth of nvidia-smi's memory.used during the engine's own turns; "
            "allocators keep what they took, so that this is the peak"
        )

    def used_bytes(self) -> int | None:
        """Bytes in use now; None where that cannot be told."""
        if not self.uuid:
            return None
        query = ["nvidia-smi", "-i", self.uuid, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(query, capture_output=True, check=True, timeout=_SMI_S)
            return int(done.stdout.split()[0]) << 20
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            return None


def _measure(device: str) -> Probe:
    import torch

    from parhelion.platform.ceilings import measure_ceilings
    from parhelion.platform.device import choose_device

    chosen = choose_device(device)
    ceilings = measure_ceilings(chosen)
    by_width = {1: ceilings.float8, 2: ceilings.bfloat16, 4: ceilings.float32}
    rates = {width: rate for width, rate in by_width.items() if rate is not None}
    if chosen.type != "cuda":
        return Probe(chosen.type, ceilings.device, ceilings.bandwidth, "", rates)
    uuid = str(getattr(torch.cuda.get_device_properties(chosen), "uuid", ""))
    named = f"GPU-{uuid.removeprefix('GPU-')}" if uuid else ""
    return Probe("cuda", ceilings.device, ceilings.bandwidth, named, rates)


if __name__ == "__main__":
    print(msgspec.json.encode(_measure(sys.argv[1])).decode())
