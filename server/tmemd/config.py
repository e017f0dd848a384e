"""The configuration: one frozen object, from a TOML file, the environment (TMEMD_*) and flags, the later winning.

Every field is a key of the file, a variable and a flag: `max_calls`, `TMEMD_MAX_CALLS`, `--max-calls`. What is unknown
or makes no sense is refused with the reason.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tmemd.errors import ConfigError

_UNITS: dict[str, int] = {"": 1, "b": 1} | {
    unit: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in ((f"{prefix}b", 1000), (f"{prefix}ib", 1024))
}


def _size(value: object) -> int:
    match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", str(value), re.ASCII)
    if isinstance(value, bool | float) or match is None or match[2].lower() not in _UNITS:
        raise ValueError("expected bytes, or a whole number with kB, MB, GB, TB, KiB, MiB, GiB or TiB")
    number: int = int(match[1]) * _UNITS[match[2].lower()]
    return number


def _number(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool | float) or re.fullmatch(r"\d+", str(value), re.ASCII) is None:
            raise ValueError("expected a whole number")
        if not low <= int(str(value)) <= high:
            raise ValueError(f"must be {low} to {high}")
        return int(str(value))

    return parse


def _flag(value: object) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    found = words.get(str(value).lower())
    if found is None:
        raise ValueError("expected true or false")
    return found


def _address(value: object) -> str:
    host, port = split_address(str(value))
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:7717 or [::1]:7717")
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("expected text that is not empty")
    return value


def _one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"must be {' or '.join(words)}")
        return str(value)

    return parse


def split_address(address: str) -> tuple[str, str]:
    """Host and port of HOST:PORT or [HOST]:PORT."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address. Names are not looked up: of them only `localhost` counts."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _quarter_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 >> 20 << 20


def _option(parse: Callable[[object], Any], about: str, default: Any = None) -> Any:
    metadata = {"parse": parse, "about": about}
    return field(**{"default_factory" if callable(default) else "default": default}, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the daemon runs with. The `about` of each field says its unit."""

    listen: str = _option(_address, "address of the gRPC services; port 0 is any free one", "127.0.0.1:7717")
    metrics: str | None = _option(_address, "address of the Prometheus exposition; none unless given")
    insecure: bool = _option(_flag, "serve without TLS on an address that other machines reach", False)
    memory: int = _option(_size, "bytes that the arena may use; a quarter of the machine's", _quarter_of_memory)
    arena: str | None = _option(_text, "path of the arena's file; private memory, gone with the daemon, unless given")
    store: str = _option(_one_of("arena", "null"), "arena; or null, which keeps no page, to measure the rest", "arena")
    shards: int | None = _option(_number(1, 1024), "separately locked parts, a power of two; chosen by memory")
    accept_threshold: int = _option(_number(1, 100), "per cent of memory below which a full store accepts again", 90)
    mlock: bool = _option(_flag, "keep the arena from being swapped out", False)
    huge_pages: bool = _option(_flag, "ask for transparent huge pages", False)
    threads: int = _option(_number(1, 256), "threads for long engine calls", lambda: min(8, os.cpu_count() or 1))
    inline_bytes: int = _option(_size, "bytes of pages up to which a call runs on the event loop itself", 64 << 10)
    batch_pages: int = _option(_number(1, 256), "pages a batch may have, of which at most 2 MiB", 256)
    max_message: int = _option(_size, "bytes of the largest message taken", 4 << 20)
    max_calls: int = _option(_number(1, 100_000), "calls and streams under way, all clients together", 256)
    max_streams: int = _option(_number(1, 100_000), "calls and streams under way on one connection", 128)
    max_sessions: int = _option(_number(1, 1_000_000), "sessions open at once", 16384)
    session_idle: int = _option(_number(1, 10**9), "seconds after which an unused session may be ended", 3600)
    max_unacknowledged: int = _option(
        _number(1, 100_000), "exclusive gets of a session that await acknowledgement", 256
    )
    drain: int = _option(_number(0, 3600), "seconds that calls under way have to end when the daemon stops", 10)


OPTIONS = {option.name: option for option in fields(Config)}


def load(flags: Mapping[str, object], environment: Mapping[str, str], path: Path | None = None) -> Config:
    """The configuration from flags over environment over file.

    Raises:
        ConfigError: What is wrong, and where.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values |= _parsed(_read(path), f"{path}: ")
    prefix = "TMEMD_"
    set_here = {name[len(prefix) :].lower(): text for name, text in environment.items() if name.startswith(prefix)}
    values |= _parsed(set_here, "environment: TMEMD_", str.upper)
    values |= _parsed(flags, "--", lambda name: name.replace("_", "-"))
    config = Config(**values)
    _agree(config)
    return config


def dump(config: Config) -> str:
    """The configuration as a file that `load` reads; what is not set is a comment."""
    lines = []
    for name, option in OPTIONS.items():
        value = getattr(config, name)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else text
        lines += [f"# {option.metadata['about']}", f"# {name} =" if value is None else f"{name} = {quoted}"]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _parsed(
    given: Mapping[str, object], where: str, spell: Callable[[str], str] = lambda name: name
) -> dict[str, object]:
    parsed = {}
    for name, value in given.items():
        option = OPTIONS.get(name)
        if option is None:
            raise ConfigError(f"{where}{spell(name)}: there is no such setting")
        try:
            parsed[name] = option.metadata["parse"](value)
        except ValueError as error:
            raise ConfigError(f"{where}{spell(name)} is {value!r}: {error}") from error
    return parsed


def _agree(config: Config) -> None:
    for name in ("listen", "metrics"):
        address = getattr(config, name)
        if address is not None and not config.insecure and not is_loopback(address):
            raise ConfigError(
                f"{name} is {address!r}, which other machines can reach: there is no TLS yet, so anybody there could "
                "read and change every page; give --insecure if that is what you want"
            )
    if config.memory < 1 << 20:
        raise ConfigError(f"memory is {config.memory} bytes; it must be at least 1 MiB")
    if not 64 << 10 <= config.max_message <= 64 << 20:
        raise ConfigError(f"max_message is {config.max_message} bytes; it must be 64 KiB to 64 MiB")
    if config.shards is not None and config.shards & (config.shards - 1):
        raise ConfigError(f"shards is {config.shards}; it must be a power of two")
