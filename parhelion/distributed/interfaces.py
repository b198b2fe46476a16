"""Network interfaces by name and by address: ranks listen on one of them, and on no other."""

from __future__ import annotations

import socket

import msgspec
import psutil

from parhelion.errors import ConfigError

LOOPBACK = "127.0.0.1"


class Interface(msgspec.Struct, frozen=True):
    """Attributes:
    name: such as ``eth0``.
    address: IPv4, of this host on it.
    """

    name: str
    address: str


def loopback() -> Interface:
    """The one that only this host reaches."""
    return interface_at(LOOPBACK)


def interface_at(address: str) -> Interface:
    """The interface with an address.

    Raises:
        ConfigError: this host has no such address.
    """
    for each in _interfaces():
        if each.address == address:
            return each
    raise ConfigError(f"no network interface has the address {address}; there are {_listed()}")


def interface_named(name: str) -> Interface:
    """The interface with a name.

    Raises:
        ConfigError: this host has no such interface, or no address on it.
    """
    for each in _interfaces():
        if each.name == name:
            return each
    raise ConfigError(f"there is no network interface {name!r} with an IPv4 address; there are {_listed()}")


def _interfaces() -> list[Interface]:
    return [
        Interface(name, address.address)
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET
    ]


def _listed() -> str:
    return ", ".join(f"{each.name} ({each.address})" for each in _interfaces()) or "none"
