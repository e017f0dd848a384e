"""The clients in the configuration: the tables `[clients.NAME]` of its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from tmemd.base.parsers import names, number, size

MOST_NAME_BYTES = 64
"""Of a client's name: as many as the owner of a pool may have."""

_PARSERS = {"quota": size, "weight": number(1, 2**32 - 1), "shared": names}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What one client may have."""

    quota: int = 0
    """Most bytes that the quotas of its pools may add up to; 0 is no quota."""
    weight: int = 1
    """Weight of its new pools, and the most it may give them."""
    shared: tuple[str, ...] = ()
    """Patterns of the names of others' shared pools that it may use."""

    def may_share(self, pool: str) -> bool:
        return any(fnmatchcase(pool, pattern) for pattern in self.shared)


Clients = Mapping[str, ClientSettings]
UNNAMED = ClientSettings()
"""Settings of a client without a table."""


def check_client(name: str) -> None:
    """Raise ValueError for an invalid client name."""
    if not 0 < len(name.encode()) <= MOST_NAME_BYTES or not name.isprintable():
        raise ValueError(f"{name!r} is not a valid client name: it must be 1 to {MOST_NAME_BYTES} printable bytes")


def parse_clients(value: object) -> Clients:
    """Parse the tables as TOML has them. An invalid one is a `ValueError`."""
    if not isinstance(value, Mapping):
        raise ValueError("expected tables such as [clients.alice]")
    return MappingProxyType({name: _client(name, table) for name, table in value.items()})


def dump_clients(clients: Clients) -> str:
    """The tables as TOML, for `parse_clients` to read back."""
    return "".join(
        f"\n[clients.{json.dumps(name, ensure_ascii=False)}]\nquota = {client.quota}\nweight = {client.weight}\n"
        f"shared = {json.dumps(client.shared, ensure_ascii=False)}\n"
        for name, client in clients.items()
    )


def _client(name: str, table: object) -> ClientSettings:
    check_client(name)
    if not isinstance(table, Mapping):
        raise ValueError(f"{name} must be a table")
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _PARSERS:
            known = ", ".join(field.name for field in fields(ClientSettings))
            raise ValueError(f"{name} has no setting {key!r}; there are {known}")
        try:
            found[key] = _PARSERS[key](value)
        except ValueError as error:
            raise ValueError(f"{key} of {name} is {value!r}: {error}") from error
    return ClientSettings(**found)
