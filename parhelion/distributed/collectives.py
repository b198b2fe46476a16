"""What exchanging data between GPUs costs: latency by hop and bytes over bandwidth, for rings and trees.

The form and the latencies are those of NCCL's own cost model (NCCL, ``src/graph/tuning.cc``: base and hardware
latencies of NVLink, PCIe and network): an algorithm takes a base latency, a latency for each hop, and its bytes over
the link's bandwidth. Of algorithms (ring, tree) and protocols (low latency at half the bandwidth, simple at all of it)
the quickest is taken, as NCCL does. Of all this one bandwidth was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from parhelion.errors import ConfigError

LINK_FRACTION = 0.63
"""Of a link's datasheet bandwidth that large messages get: NCCL's sum of 256 MiB between two H200s, 284 of 450 GB/s."""

NETWORK_GB_S = 50.0
"""Of each GPU between nodes, where nobody says: 400 Gb/s."""


@dataclass(frozen=True)
class Protocol:
    """How bytes are handed over.

    Attributes:
        base_us: before the first hop.
        ring_us, tree_us: of one hop in a ring or a tree.
        fraction: of the link's bandwidth.
    """

    base_us: float
    ring_us: float
    tree_us: float
    fraction: float


_NVLINK = (Protocol(6.6, 0.6, 0.6, 0.5), Protocol(8.4, 3.4, 4.0, 1.0))
_PCIE = (Protocol(6.6, 1.0, 1.0, 0.5), Protocol(8.4, 5.7, 4.0, 1.0))
_NETWORK = (Protocol(6.6, 2.7, 5.0, 0.5), Protocol(8.4, 14.0, 14.0, 1.0))
"""Low latency and simple: NCCL's base latency of a ring, and its hardware latencies."""


@dataclass(frozen=True)
class Link:
    """What connects the GPUs of a group.

    Attributes:
        name: for people.
        bandwidth: bytes a second that one GPU sends while it receives as many: the datasheet's, of one direction.
        protocols: ways to use it.
        source: where the bandwidth is from.
    """

    name: str
    bandwidth: float
    protocols: tuple[Protocol, ...]
    source: str

    def all_reduce_us(self, num_bytes: float, num_ranks: int) -> float:
        """Microseconds until each rank has the sum of ``num_bytes`` of all.

        Ring: 2 (p - 1) hops and 2 (p - 1) / p of the bytes. Tree: 2 log2(p) hops and twice the bytes.
        """
        if num_ranks == 1:
            return 0.0
        hops, depth = num_ranks - 1, math.ceil(math.log2(num_ranks))
        return min(
            each.base_us
            + min(
                2 * hops * each.ring_us + self._us(each, 2 * hops / num_ranks * num_bytes),
                2 * depth * each.tree_us + self._us(each, 2 * num_bytes),
            )
            for each in self.protocols
        )

    def all_gather_us(self, num_bytes: float, num_ranks: int) -> float:
        """Microseconds until each rank has all parts, ``num_bytes`` together; a reduce-scatter takes as long.

        Ring: p - 1 hops and (p - 1) / p of the bytes.
        """
        if num_ranks == 1:
            return 0.0
        hops = num_ranks - 1
        return min(
            each.base_us + hops * each.ring_us + self._us(each, hops / num_ranks * num_bytes) for each in self.protocols
        )

    def send_us(self, num_bytes: float) -> float:
        """Microseconds until one rank has what another sent."""
        return min(each.base_us + each.ring_us + self._us(each, num_bytes) for each in self.protocols)

    def _us(self, protocol: Protocol, num_bytes: float) -> float:
        return num_bytes / (self.bandwidth * LINK_FRACTION * protocol.fraction) * 1e6


def nvlink(gigabytes_per_s: float, source: str) -> Link:
    """NVLink through switches."""
    return Link("NVLink", gigabytes_per_s * 1e9, _NVLINK, source)


def infinity_fabric(gigabytes_per_s: float, source: str) -> Link:
    """AMD's Infinity Fabric; NVLink's latencies are assumed."""
    return Link("Infinity Fabric", gigabytes_per_s * 1e9, _NVLINK, source)


def pcie(gigabytes_per_s: float, source: str) -> Link:
    """PCI Express."""
    return Link("PCIe", gigabytes_per_s * 1e9, _PCIE, source)


def network(gigabytes_per_s: float, source: str = "given") -> Link:
    """A network with RDMA, so much for each GPU.

    Raises:
        ConfigError: it has no bandwidth.
    """
    if not gigabytes_per_s > 0:
        raise ConfigError(
            f"network is {gigabytes_per_s:g} GB/s for each GPU; it must be above 0, such as 50 (400 Gb/s)"
        )
    return Link("network", gigabytes_per_s * 1e9, _NETWORK, source)


@dataclass(frozen=True)
class Fabric:
    """Nodes of GPUs, linked within and between.

    Attributes:
        inside: between the GPUs of a node.
        between: between nodes, for each GPU.
        gpus_per_node: GPUs of a node.
    """

    inside: Link
    between: Link
    gpus_per_node: int

    def all_reduce_us(self, num_bytes: float, num_ranks: int) -> float:
        """Over ranks that fill their nodes: beyond one node scattered sums inside, all-reduced between, gathered."""
        local = min(num_ranks, self.gpus_per_node)
        if num_ranks <= local:
            return self.inside.all_reduce_us(num_bytes, num_ranks)
        across = self.between.all_reduce_us(num_bytes / local, num_ranks // local)
        return 2 * self.inside.all_gather_us(num_bytes, local) + across

    def all_gather_us(self, num_bytes: float, num_ranks: int) -> float:
        """Likewise: between nodes first, then inside."""
        local = min(num_ranks, self.gpus_per_node)
        if num_ranks <= local:
            return self.inside.all_gather_us(num_bytes, num_ranks)
        return self.between.all_gather_us(num_bytes / local, num_ranks // local) + self.inside.all_gather_us(
            num_bytes, local
        )

    def sends_us(self, num_bytes: float, tp: int, pp: int) -> float:
        """All hand-overs of one step between ``pp`` stages of ``tp`` ranks, which fill their nodes in order."""
        stages_inside = max(1, self.gpus_per_node // tp)
        crossings = -(-pp // stages_inside) - 1
        return crossings * self.between.send_us(num_bytes) + (pp - 1 - crossings) * self.inside.send_us(num_bytes)
