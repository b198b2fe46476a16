"""What CUTLASS offers for ``linear`` on NVIDIA GPUs."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.cutlass_operators import (
    CutlassGemm,
    Epilogue,
    current_target,
    find_operators,
    gemm_arguments,
    why_not_cutlass,
    wrong_sizes,
)
from parhelion.ops.linear.contract import Linear
from parhelion.ops.provider import BaseProvider

_ADD_BIAS = "def epilogue(accum, bias):\n    D = accum + bias\n    return D\n"


class CutlassLinear(BaseProvider):
    """CUTLASS through its Operator API; it compiles each contract at its first calls.

    A bias is added within the kernel where operators have epilogues (Blackwell), and else to a float32 product by a
    second one.
    """

    name = "cutlass"

    def why_not(self, device: torch.device) -> str | None:
        return why_not_cutlass(device)

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, Linear)
        if contract.dtype not in (torch.bfloat16, torch.float16):
            return f"it takes bfloat16 and float16, not {str(contract.dtype).removeprefix('torch.')}"
        return wrong_sizes(contract.in_features, contract.out_features, contract.dtype)

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, Linear)
        gemm = CutlassGemm.on_current_device()
        if contract.bias and not _fuses(contract):
            return _launch_in_two_steps(gemm)

        def launch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            y = x.new_empty((x.size(0), weight.size(0)))
            epilogue = None if bias is None else Epilogue(_ADD_BIAS, {"bias": bias})
            gemm.run(gemm_arguments(x, weight, y, torch.float32, epilogue))
            return y

        return launch


def _launch_in_two_steps(gemm: CutlassGemm) -> Launcher:
    def launch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        sums = x.new_empty((x.size(0), weight.size(0)), dtype=torch.float32)
        gemm.run(gemm_arguments(x, weight, sums, torch.float32))
        return torch.add(sums, bias, out=x.new_empty(sums.shape))

    return launch


def _fuses(contract: Linear) -> bool:
    num_tokens, k, n = 64, contract.in_features, contract.out_features
    x, weight, y, bias = (
        torch.empty(shape, dtype=contract.dtype, device="meta")
        for shape in ((num_tokens, k), (n, k), (num_tokens, n), n)
    )
    arguments = gemm_arguments(x, weight, y, torch.float32, Epilogue(_ADD_BIAS, {"bias": bias}))
    return bool(find_operators(arguments, current_target()))
