"""A Ray cluster of one node for a test, until standard input ends: ``python -m tests.e2e.ray_cluster NUM_CPUS``.

It prints its address, and then, for every line that it reads, how many placement groups hold something.
"""

from __future__ import annotations

import sys

import ray
from ray.util import placement_group_table


def main() -> None:
    context = ray.init(
        num_cpus=int(sys.argv[1]),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        _node_ip_address="127.0.0.1",
    )
    print(context.address_info["gcs_address"], flush=True)
    for _ in sys.stdin:
        held = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        print(len(held), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
