"""GEMMs of NVIDIA's CUTLASS Operator API: package ``nvidia-cutlass-operators``, in beta; written against version 0.3.0.

The API finds the kernels ("operators") that can compute a product on a GPU, compiles one with CuTe DSL in a second or
two, and launches it on a stream. What is compiled serves every M. Each launch describes its tensors anew in Python,
which costs the host time, and more of it with an epilogue; a captured graph pays for it once.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from parhelion.errors import ConfigError
from parhelion.ops.provider import needs_cuda

PACKAGE = "nvidia-cutlass-operators"
"""What pip knows it by; it brings the module ``cutlass.operators``."""

_ALIGNMENT_BYTES = 16
# Products that a streaming multiprocessor's tensor cores do in the time of loading one element of an operand from the
# second-level cache: about 100 on Hopper and on Blackwell, of FP8 and of bfloat16.
_PRODUCTS_PER_LOAD = 100


@dataclass(frozen=True)
class Epilogue:
    """What is done to the sums before they are stored, within the same kernel. Operators for Blackwell have it.

    Attributes:
        source: of a Python function that takes ``accum`` and the tensors by name and returns ``D``, which is stored.
            It is parsed, not run: see the API's ``EpilogueArguments``.
        tensors: [N] or column-major [M, 1] with M a multiple of 4 (of 16 bytes).
    """

    source: str
    tensors: Mapping[str, torch.Tensor]


def why_not_cutlass(device: torch.device) -> str | None:
    """None if the API is installed and the GPU is one that it has tensor-core kernels for; else why not."""
    return needs_cuda(device, (9, 0)) or _missing_package()


def wrong_sizes(in_features: int, out_features: int, dtype: torch.dtype) -> str | None:
    """None if rows of K operands and of N results are whole lines of 16 bytes; else what sizes it takes."""
    of_k, of_n = _ALIGNMENT_BYTES // dtype.itemsize, _ALIGNMENT_BYTES // 2
    if in_features % of_k == 0 and out_features % of_n == 0:
        return None
    return (
        f"it takes in_features that are multiples of {of_k} and out_features that are multiples of {of_n}, "
        f"not {in_features} and {out_features}"
    )


def can_ask() -> bool:
    """Whether operators can be looked up: the API is installed and a GPU is there to look for."""
    return torch.cuda.is_available() and _missing_package() is None


def current_target() -> str:
    """The current GPU as the API names it, such as ``90a``.

    The kernels that use Hopper's or Blackwell's tensor cores exist for that one architecture, with the ``a``; for plain
    ``90`` the API finds Ampere's, and none for FP8.
    """
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}a"


def gemm_arguments(
    a: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    accumulator: torch.dtype,
    epilogue: Epilogue | None = None,
) -> Any:
    """The API's description of ``out = a @ weight.T``; tensors on the device ``meta`` will do to look for operators.

    Args:
        a: [M, K].
        weight: [N, K], contiguous, of the dtype of ``a``.
        out: [M, N], contiguous.
        accumulator: what sums are kept in: float32, or int32 for INT8.
        epilogue: applied to the sums, if there is one.
    """
    api = _api()
    fused = None if epilogue is None else api.EpilogueArguments(epilogue.source, D=out, **epilogue.tensors)
    return api.GemmArguments(a.contiguous(), weight.t(), out, accumulator_type=accumulator, epilogue=fused)


def find_operators(arguments: Any, target: str) -> list[Any]:
    """The operators that can compute it on a GPU, without those that need a workspace (in 0.3.0 none does)."""
    found = _api().get_operators(arguments, target_sm=target)
    return [each for each in found if each.get_workspace_size(arguments).size_bytes == 0]


def likely_fastest(operators: list[Any], num_tokens: int, out_features: int, num_processors: int) -> Any:
    """The operator with the least estimated time; the API ranks them itself only for some Blackwell GPUs.

    Kernels written for the newest architecture come first. Then the estimate: each wave of tiles takes a tile's
    products, and its loads at what products cost. Among equals the smallest cluster wins, which wastes least at the
    edges, and then the API's own order.
    """

    def cost(operator: Any) -> tuple[int, float, int]:
        design = operator.metadata.design
        rows, columns = design.tile_shape[:2]
        # Two processors share such a tile, each with half of its rows.
        sharing = 2 if getattr(design, "use_2cta_mma", False) else 1
        blocks = -(-num_tokens // rows) * -(-out_features // columns) * sharing
        waves = -(-blocks // num_processors)
        tile = (rows * columns + _PRODUCTS_PER_LOAD * (rows + columns)) / sharing
        return -operator.designed_for_min_cc, waves * tile, design.cluster_shape[0] * design.cluster_shape[1]

    return min(operators, key=cost)


class CutlassGemm:
    """Launches the products of one contract on the current GPU.

    For each power of two up to which M is rounded, an operator is chosen at the first call, and compiled unless another
    M has chosen it too. So a first call takes seconds and may not be captured; later ones wait for nothing.

    Args:
        target: of ``current_target``.
        num_processors: the GPU's streaming multiprocessors.
    """

    def __init__(self, target: str, num_processors: int) -> None:
        self._target = target
        self._num_processors = num_processors
        self._chosen: dict[int, tuple[Any, Any]] = {}
        self._compiled: dict[str, tuple[Any, Any]] = {}

    @classmethod
    def on_current_device(cls) -> CutlassGemm:
        """For the GPU that is current."""
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return cls(current_target(), properties.multi_processor_count)

    def run(self, arguments: Any) -> None:
        """Launch on the current stream; ``arguments`` are of ``gemm_arguments`` and differ by nothing but M.

        Raises:
            ConfigError: no operator takes them.
        """
        bucket = (arguments.problem_size.M - 1).bit_length()
        if bucket not in self._chosen:
            self._chosen[bucket] = self._choose(arguments, 1 << bucket)
        operator, artifact = self._chosen[bucket]
        # What the artifact was compiled for was checked then, and the kernel's entry checks tensors anyway.
        operator.run(arguments, artifact, stream=torch.cuda.current_stream(), assume_supported_args=True)

    def _choose(self, arguments: Any, num_tokens: int) -> tuple[Any, Any]:
        operators = find_operators(arguments, self._target)
        size = arguments.problem_size
        if not operators:
            raise ConfigError(
                f"CUTLASS has no operator for M={size.M}, N={size.N}, K={size.K} on sm_{self._target}: "
                "choose another provider with --kernels"
            )
        operator = likely_fastest(operators, num_tokens, size.N, self._num_processors)
        name = operator.metadata.operator_name
        if name not in self._compiled:
            self._compiled[name] = operator, operator.compile(arguments, target_sm=self._target)
        return self._compiled[name]


def _api() -> Any:
    return importlib.import_module("cutlass.operators")


def _missing_package() -> str | None:
    # Looking for the module would import its parent, all of CuTe DSL.
    try:
        importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return f"the package cutlass.operators is not installed: pip install {PACKAGE}"
    return None
