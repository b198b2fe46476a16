"""transformers reads a GGUF file several times, and maps the names of its tensors hundreds of times, for each of which
gguf takes long; here it does so once. gguf takes a file's fields one by one out of a memory map, which is slow at that.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import gguf
import numpy as np
import pytest


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """While it lasts, a file that was read is remembered, and so is a model's map of names; all of it is in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        patch.setattr(np, "memmap", lambda path, mode, dtype=np.uint8: np.fromfile(path, dtype))
        yield
