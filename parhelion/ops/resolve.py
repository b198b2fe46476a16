"""Which provider computes an op here: a plain table, overridden by hand, until measurements decide."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from parhelion.errors import ConfigError
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import Provider, fixed, packs
from parhelion.ops.registry import op

ON_CPU: Mapping[str, tuple[str, ...]] = MappingProxyType({"linear": ("onednn", "torch")})
"""Providers in the order of their worth on a CPU, where that is not just ``torch`` and then ``reference``."""

ON_GPU: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "linear": ("torch", "helion"),
        "scaled_mm": ("torch", "helion"),
        "embedding": ("torch", "helion"),
        "argmax": ("torch", "helion"),
        "top_k_top_p_sampling": ("torch", "helion"),
    }
)
"""The same on a GPU, where that is not just ``helion``, ``torch`` and then ``reference``."""


def preferred(op_name: str, device: torch.device) -> tuple[str, ...]:
    """Names of providers to try in turn; the reference ends every list."""
    if device.type == "cpu":
        return (*ON_CPU.get(op_name, ("torch",)), "reference")
    return (*ON_GPU.get(op_name, ("helion", "torch")), "reference")


def parse_overrides(entries: tuple[str, ...]) -> dict[str, str]:
    """``("rms_norm=torch", ...)`` as op to provider.

    Raises:
        ConfigError: an entry that is not ``op=provider``, or names that do not exist.
    """
    overrides = {}
    for entry in entries:
        op_name, equals, provider_name = entry.partition("=")
        if not equals or not provider_name:
            raise ConfigError(f"kernels has the entry {entry!r}; write op=provider, such as rms_norm=torch")
        op(op_name).provider(provider_name)
        overrides[op_name] = provider_name
    return overrides


class Resolver:
    """Finds each contract's provider once, at load, and remembers who it was.

    Args:
        device: where the model runs.
        overrides: op to provider, as the user asked; one that cannot serve is an error, not a fallback.
        preferences: op to providers to try before the table's own.

    Attributes:
        chosen: op to the names of the providers that serve its contracts here.
        notes: what was passed over and why, a sentence each.
    """

    def __init__(
        self,
        device: torch.device,
        overrides: Mapping[str, str] | None = None,
        preferences: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.device = device
        self.chosen: dict[str, set[str]] = {}
        self.notes: list[str] = []
        self._overrides = dict(overrides or {})
        self._preferences = dict(preferences or {})
        self._providers: dict[Contract, Provider] = {}
        self._launchers: dict[Contract, Launcher] = {}

    def provider(self, contract: Contract) -> Provider:
        """Who serves a contract.

        Raises:
            ConfigError: the provider that the user asked for cannot.
        """
        if contract not in self._providers:
            found = self._asked_for(contract) or self._first_that_serves(contract)
            self._providers[contract] = found
            self.chosen.setdefault(contract.name, set()).add(found.name)
        return self._providers[contract]

    def launcher(self, contract: Contract) -> Launcher:
        """What computes a contract, parameters among its inputs; the same object for equal contracts."""
        if contract not in self._launchers:
            self._launchers[contract] = self.provider(contract).bind(contract)
        return self._launchers[contract]

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        """What computes a contract whose parameters are these; it takes the remaining inputs.

        Layers with equal contracts share what a provider compiled, unless it packs their parameters.
        """
        provider = self.provider(contract)
        if packs(provider):
            return provider.bind(contract, *weights)
        return fixed(self.launcher(contract), weights)

    def _asked_for(self, contract: Contract) -> Provider | None:
        name = self._overrides.get(contract.name)
        if name is None:
            return None
        provider = op(contract.name).provider(name)
        if (why_not := self._why_not(provider, contract)) is not None:
            raise ConfigError(f"kernels has {contract.name}={name}, which cannot serve {contract.key()}: {why_not}")
        return provider

    def _first_that_serves(self, contract: Contract) -> Provider:
        known = op(contract.name)
        existing = {provider.name for provider in known.providers}
        for name in (*self._preferences.get(contract.name, ()), *preferred(contract.name, self.device)):
            if name not in existing:
                continue
            provider = known.provider(name)
            why_not = self._why_not(provider, contract)
            if why_not is None:
                return provider
            note = f"{contract.name}: {name} cannot serve: {why_not}"
            if note not in self.notes:
                self.notes.append(note)
        raise ConfigError(f"no provider can serve {contract.key()} on {self.device}; its providers: {sorted(existing)}")

    def _why_not(self, provider: Provider, contract: Contract) -> str | None:
        return provider.why_not(self.device) or provider.refuses(contract)
