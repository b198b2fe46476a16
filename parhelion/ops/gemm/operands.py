"""What the contracts that are GEMMs have in common, as far as configs care."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch

from parhelion.ops.contract import Contract


@dataclass(frozen=True)
class Operands:
    """x [M, in_features] and a weight [out_features, in_features].

    Attributes:
        x_dtype, weight_dtype: as they come.
        group: how much of K has one scale; None if scales are not by group.
    """

    in_features: int
    out_features: int
    x_dtype: torch.dtype
    weight_dtype: torch.dtype
    group: int | None = None


class GemmContract(Contract):
    """A contract that is one GEMM."""

    @property
    @abstractmethod
    def operands(self) -> Operands:
        """What is multiplied."""
