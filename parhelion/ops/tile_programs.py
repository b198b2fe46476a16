"""An op's tile programs by provider: where their ``launch.py`` is, and which of them a config is for.

Nearly every op has those of one provider, in its own folder. An op may have a second implementation in another folder,
which the provider names (``GluonProvider("decode_attention")``) and whose ``Config`` is a type of its own.
"""

from __future__ import annotations

from typing import Any

from parhelion.ops.contract import Contract
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.launching import LaunchModule, launch_module
from parhelion.ops.registry import op
from parhelion.packs.format import TILE_PROGRAMS


def folder_of(op_name: str, provider: str) -> str:
    """The folder of ``parhelion/ops`` from which a provider of an op has its tile programs."""
    named = next((each for each in op(op_name).providers if each.name == provider), None)
    return getattr(named, "folder", None) or op_name


def programs_module(op_name: str, provider: str) -> LaunchModule:
    """The ``launch.py`` of a provider's tile programs."""
    return launch_module(folder_of(op_name, provider))


def provider_of(op_name: str, config: Any) -> str:
    """The provider of the tile programs that a config is for: of an op that has two, the one whose ``Config`` it is."""
    own = op(op_name).tile_programs
    others = (each for each in providers_of(op_name) if each != own)
    return next((each for each in others if type(config) is programs_module(op_name, each).Config), own)


def module_for(op_name: str, config: Any) -> LaunchModule:
    """The ``launch.py`` of the tile programs that a config is for."""
    return programs_module(op_name, provider_of(op_name, config))


def all_candidates(contract: Contract, bucket: int, target: GemmTarget) -> list[Any]:
    """The configs worth trying of all tile programs of an op, those of its own folder first."""
    modules = [programs_module(contract.name, each) for each in providers_of(contract.name)]
    return [config for module in modules for config in module.candidates(contract, bucket, target)]


def providers_of(op_name: str) -> list[str]:
    """The providers of an op's tile programs, the one of its own folder first."""
    return [each.name for each in op(op_name).providers if each.name in TILE_PROGRAMS]
