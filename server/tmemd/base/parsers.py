"""Parses values of settings from a file, a variable or a flag. An invalid one is a `ValueError` with the reason."""

import ipaddress
import re
from collections.abc import Callable

from tmem_proto.sizes import parse_size

_SECONDS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_EVERYWHERE = "0.0.0.0"


def size(value: object) -> int:
    """Bytes, or a number with a unit."""
    return parse_size("" if isinstance(value, bool | float) else str(value))


def memory_size(value: object) -> int:
    """Bytes, enough for an arena."""
    found = size(value)
    if found < 1 << 20:
        raise ValueError("it must be at least 1 MiB")
    return found


def seconds(low: int, high: int) -> Callable[[object], int]:
    """A whole number of seconds from `low` to `high`, or of minutes, hours or days: `90`, `90s`, `5m`, `1h`."""
    within = number(low, high)

    def parse(value: object) -> int:
        match = re.fullmatch(r"\s*(\d{1,12})\s*([A-Za-z]*)\s*", str(value), re.ASCII)
        if isinstance(value, bool | float) or match is None or match[2].lower() not in _SECONDS:
            raise ValueError("expected whole seconds, or a whole number with s, m, h or d")
        return within(int(match[1]) * _SECONDS[match[2].lower()])

    return parse


def number(low: int, high: int) -> Callable[[object], int]:
    """A whole number from `low` to `high`."""

    def parse(value: object) -> int:
        if isinstance(value, bool | float) or re.fullmatch(r"\d+", str(value), re.ASCII) is None:
            raise ValueError("expected a whole number")
        if not low <= int(str(value)) <= high:
            raise ValueError(f"must be {low} to {high}")
        return int(str(value))

    return parse


def flag(value: object) -> bool:
    """True or false."""
    words = {**dict.fromkeys(("true", "1", "yes", "on"), True), **dict.fromkeys(("false", "0", "no", "off"), False)}
    found = words.get(str(value).lower())
    if found is None:
        raise ValueError("expected true or false")
    return found


def address(value: object) -> str:
    """HOST:PORT; without a host, or with `*`, every address of the machine."""
    host, port = split_address(str(value).strip())
    if ":" not in str(value) or not _is_port(port) or any(map(str.isspace, host)):
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:7717, [::1]:7717, or :7717 for every address")
    return join_address(_EVERYWHERE if host in ("", "*") else host, int(port))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535


def block_addresses(value: object) -> tuple[str, ...]:
    """Addresses of an NBD server: a list, or separated by commas."""
    return tuple(map(_block_address, names(value) if value else ()))


def _block_address(one: str) -> str:
    kind, _, rest = one.partition(":")
    if kind == "tcp":
        return f"tcp:{address(rest)}"
    if kind != "unix" or not rest:
        raise ValueError("expected unix:PATH or tcp:HOST:PORT, such as unix:/run/tmem.nbd or tcp:127.0.0.1:10809")
    return one


def text(value: object) -> str:
    """Non-empty text."""
    if not isinstance(value, str) or not value:
        raise ValueError("expected non-empty text")
    return value


def one_of(*words: str) -> Callable[[object], str]:
    """One of these words."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"must be {' or '.join(words)}")
        return str(value)

    return parse


def names(value: object) -> tuple[str, ...]:
    """Names: a list in a file, separated by commas elsewhere."""
    given = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(given, list):
        raise ValueError("expected a list of names")
    return tuple(text(name) for name in given)


def split_address(address: str) -> tuple[str, str]:
    """Host and port of HOST:PORT or [HOST]:PORT."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port


def join_address(host: str, port: int) -> str:
    """HOST:PORT, or [HOST]:PORT where the host has colons."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address. Host names are not resolved; only `localhost` counts."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
