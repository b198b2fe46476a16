"""Which provider computes an op here: by hand, else as a pack measured it, else by a plain table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from parhelion.errors import ConfigError
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.pack_kernels import PackKernels, TunedLaunch
from parhelion.ops.preferences import COMPILING, preferred
from parhelion.ops.provider import Provider, fixed, packs
from parhelion.ops.registry import COLLECTIVES, op
from parhelion.ops.ways import Way


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
        pack: what was measured on such a device; None if there is no such pack.

    Attributes:
        chosen: op to the names of the providers that serve its contracts here.
        notes: what was passed over and why, a sentence each.
        unbuilt: the contracts of which tile programs serve and no pack has rows, but for those that the user asked tile
            programs for by hand: they compile when a size of M is first met.
    """

    def __init__(
        self,
        device: torch.device,
        overrides: Mapping[str, str] | None = None,
        preferences: Mapping[str, tuple[str, ...]] | None = None,
        pack: PackKernels | None = None,
    ) -> None:
        self.device = device
        self.chosen: dict[str, set[str]] = {}
        self.notes: list[str] = []
        self.unbuilt: list[Contract] = []
        self._overrides = dict(overrides or {})
        self._preferences = dict(preferences or {})
        self._providers: dict[Contract, Provider] = {}
        self._launchers: dict[Contract, Launcher] = {}
        self._pack = pack
        self._tuned: dict[Contract, TunedLaunch | None] = {}
        self._compiling: set[str] = set()

    @property
    def pack_name(self) -> str:
        """The pack's name; empty without one."""
        return self._pack.name if self._pack is not None else ""

    @property
    def compiles(self) -> bool:
        """Whether any provider in use compiles at its first calls."""
        return bool(self._compiling)

    def all_notes(self) -> list[str]:
        """What was passed over and why, the pack's own notes first."""
        return [*(self._pack.all_notes() if self._pack is not None else ()), *self.notes]

    def served_by(self, contract: Contract) -> tuple[str, ...]:
        """The names of the providers that compute a contract, at one size of M or another."""
        tuned = self._from_pack(contract)
        return tuned.providers if tuned is not None else (self.provider(contract).name,)

    def served_at(self, contract: Contract, num_tokens: int) -> str:
        """The name of the provider that computes a contract at M = ``num_tokens``."""
        tuned = self._from_pack(contract)
        return tuned.provider_at(num_tokens) if tuned is not None else self.provider(contract).name

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        """Microseconds of one launch, as the pack says who serves there; None if nobody measured it."""
        served = None if self._pack is None or contract.name in self._overrides else self._pack
        return None if served is None else served.time_us(contract, num_tokens)

    def block_us(self, way: Way, num_tokens: int) -> float | None:
        """Microseconds of a whole block, as the pack serves it; None if nobody measured that."""
        overridden = any(contract.name in self._overrides for contract in way)
        return None if self._pack is None or overridden else self._pack.block_us(way, num_tokens)

    def provider(self, contract: Contract) -> Provider:
        """Who serves a contract where no pack says otherwise.

        Raises:
            ConfigError: the provider that the user asked for cannot.
        """
        if contract not in self._providers:
            found = self._asked_for(contract) or self._first_that_serves(contract)
            self._providers[contract] = found
        return self._providers[contract]

    def launcher(self, contract: Contract) -> Launcher:
        """What computes a contract, parameters among its inputs; the same object for equal contracts."""
        tuned = self._from_pack(contract)
        if tuned is not None:
            return tuned
        if contract not in self._launchers:
            provider = self.provider(contract)
            self._launchers[contract] = provider.bind(contract)
            self._chose(contract, (provider.name,))
            if provider.name in COMPILING:
                self._compiling.add(provider.name)
            if provider.name == "helion" and contract.name not in self._overrides:
                self.unbuilt.append(contract)
        return self._launchers[contract]

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        """What computes a contract whose parameters are these; it takes the remaining inputs.

        Layers with equal contracts share what a provider compiled, unless it packs their parameters.
        """
        tuned = self._from_pack(contract)
        if tuned is not None:
            return tuned.bind(*weights)
        provider = self.provider(contract)
        if packs(provider):
            self._chose(contract, (provider.name,))
            return provider.bind(contract, *weights)
        return fixed(self.launcher(contract), weights)

    def _from_pack(self, contract: Contract) -> TunedLaunch | None:
        """What the pack has for a contract, unless the user asked for a provider by hand. It has no collectives."""
        if self._pack is None or contract.name in self._overrides or contract.name in COLLECTIVES:
            return None
        if contract not in self._tuned:
            tuned = self._pack.launcher(contract, self.provider(contract)) if self._pack.holds(contract) else None
            if tuned is not None:
                self._chose(contract, tuned.providers)
            else:
                note = f"{contract.key()} is not in pack {self._pack.name}: {self.provider(contract).name} serves it"
                self.notes.append(note)
            self._tuned[contract] = tuned
        return self._tuned[contract]

    def _chose(self, contract: Contract, names: tuple[str, ...]) -> None:
        self.chosen.setdefault(contract.name, set()).update(names)

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
