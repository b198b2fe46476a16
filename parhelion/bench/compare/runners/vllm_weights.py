"""A plugin for vLLM: dummy weights like Parhelion's. It stands alone: it needs torch, vLLM and nothing else.

vLLM draws dummy weights between -0.001 and 0.001. As FP8 numbers, the smallest of which is 0.002, 98% of them are
zeros, and what products with zeros take is no measure of what a model's take. Here linear weights get codes of all
sizes, norms are ones, and what is computed with them stays of a usual size.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

FILLED = "PARHELION_FILLED_WEIGHTS"
"""The variable that names a file, to which a line is added for each module that was filled."""

DEVIATION = 0.02
"""Of weights; of codes it is a quarter of the largest."""

CODE_DEVIATIONS = 4.0
SEED = 1234


def register() -> None:
    """What vLLM calls in each of its processes, before it loads a model."""
    loader: Any = import_module("vllm.model_executor.model_loader.dummy_loader")
    loader.initialize_dummy_weights = fill


def fill(module: Any, *_: Any) -> None:
    """In the place of vLLM's ``initialize_dummy_weights``: the parameters of a module and of those inside it."""
    import torch

    names = []
    for name, parameter in module.named_parameters():
        data = parameter.data
        # What has no dimension is a scale of the KV cache, which stays as it is.
        if data.device.type == "meta" or not data.is_floating_point() or data.ndim == 0:
            continue
        # Without names that say what is drawn, equal sizes get equal numbers, as they do in vLLM.
        generator = torch.Generator(device=data.device).manual_seed(SEED)
        last = name.rpartition(".")[2]
        if data.element_size() == 1:
            most = torch.finfo(data.dtype).max
            codes = torch.empty(data.shape, dtype=torch.float16, device=data.device)
            codes.normal_(0, most / CODE_DEVIATIONS, generator=generator).clamp_(-most, most)
            data.copy_(codes)
        elif "scale" in last:
            data.fill_(DEVIATION * CODE_DEVIATIONS / 448)
        elif last == "bias":
            data.zero_()
        elif data.ndim == 1:
            data.fill_(1)
        else:
            data.normal_(0, DEVIATION, generator=generator)
        names.append(name)
    if names and FILLED in os.environ:
        with open(os.environ[FILLED], "a") as file:
            file.write(f"{type(module).__name__}: {', '.join(names)}\n")
