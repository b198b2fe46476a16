"""Fixtures that many tests share."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parhelion.models.resolve import resolve_model
from tests.forked_processes import forked_processes

LONGEST = (
    "tuning/test_programs.py",
    "e2e/test_smollm2.py",
    "e2e/test_tensor_parallel.py",
    "tuning/test_matrix.py",
    "e2e/test_replicas.py",
    "e2e/test_pipeline_parallel.py",
    "e2e/test_compile.py",
    "e2e/test_hanging.py",
    "bench/test_tp_benchmark.py",
    "bench/test_faults.py",
    "bench/test_gpu_speculation.py",
    "e2e/test_ray.py",
    "tuning/test_gpu_worker.py",
    "layers/test_one_token.py",
)
"""Files that take tens of seconds. They come first, for a file's tests run in one process: it would keep the others
waiting at the end."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported meanwhile stays to the end: later collections of garbage need not look at its many objects, nor
    so often at those of tile programs, which stay as well.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()
    # What counts its objects at the end finds none left.
    atexit.register(gc.unfreeze)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    place = {folder / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True, scope="session")
def _forked_processes() -> Iterator[None]:
    with forked_processes():
        yield


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's GGUF file, pulled into the home folder unless it is there."""
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama with a tokenizer."""
    return _tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def patient_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with room for answers of thousands of tokens: seconds in which a test can do something to an engine."""
    return _tiny_llama(tmp_path_factory.mktemp("patient-llama"), max_position_embeddings=8192)


def _tiny_llama(folder: Path, **overrides: Any) -> Path:
    # transformers takes a second to import.
    from tests.e2e.tiny_models import TINY_MODELS, write_byte_tokenizer

    replace(TINY_MODELS[0], overrides=overrides).write(folder)
    write_byte_tokenizer(folder)
    return folder
