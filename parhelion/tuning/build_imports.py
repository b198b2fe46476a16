"""Imported once for all processes that build: what each of them needs and takes seconds to import.

They must not see the devices of this machine: what is built is the same where there are none, and a process that opens
one takes memory of it, and time.
"""

from __future__ import annotations

import os
import sys

HIDDEN = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

for _name in HIDDEN:
    os.environ[_name] = ""
# Nor interpret: tile programs are told when they are defined.
os.environ.pop("HELION_INTERPRET", None)
# Where there is no GPU, Helion asks JAX for other devices, and JAX's own search may end the process.
sys.modules.setdefault("jax", None)  # type: ignore[arg-type]

import helion  # noqa: E402, F401
import torch  # noqa: E402
import triton  # noqa: E402, F401

torch.set_num_threads(1)
