"""Values of settings, as in a file, a variable or a flag. What makes no sense is a `ValueError` with the reason."""

import ipaddress
import re
from collections.abc import Callable

_UNITS: dict[str, int] = {"": 1, "b": 1} | {
    unit: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in ((f"{prefix}b", 1000), (f"{prefix}ib", 1024))
}


def size(value: object) -> int:
    """Bytes, or a number with a unit."""
    match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", str(value), re.ASCII)
    if isinstance(value, bool | float) or match is None or match[2].lower() not in _UNITS:
        raise ValueError("expected bytes, or a whole number with kB, MB, GB, TB, KiB, MiB, GiB or TiB")
    number: int = int(match[1]) * _UNITS[match[2].lower()]
    return number


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
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    found = words.get(str(value).lower())
    if found is None:
        raise ValueError("expected true or false")
    return found


def address(value: object) -> str:
    """HOST:PORT."""
    host, port = split_address(str(value))
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:7717 or [::1]:7717")
    return str(value)


def block_addresses(value: object) -> tuple[str, ...]:
    """Addresses of an NBD server: a list, or with commas between them."""
    given = names(value) if value else ()
    for one in given:
        kind, _, rest = one.partition(":")
        if kind == "tcp":
            address(rest)
        elif kind != "unix" or not rest:
            raise ValueError("expected unix:PATH or tcp:HOST:PORT, such as unix:/run/tmem.nbd or tcp:127.0.0.1:10809")
    return given


def text(value: object) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("expected text that is not empty")
    return value


def one_of(*words: str) -> Callable[[object], str]:
    """One of these words."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"must be {' or '.join(words)}")
        return str(value)

    return parse


def names(value: object) -> tuple[str, ...]:
    """Several texts: a list in a file, with commas between them elsewhere."""
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
    """Whether only this machine can reach an address. Names are not looked up: of them only `localhost` counts."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
