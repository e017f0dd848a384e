"""The configuration: one frozen object, from a TOML file, the environment (TMEMD_*) and flags, the later winning.

Every field is a key of the file, a variable and a flag: `max_calls`, `TMEMD_MAX_CALLS`, `--max-calls`. What is unknown
or makes no sense is refused with the reason.
"""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tmemd.base.errors import ConfigError
from tmemd.base.logs import FORMATS, LEVELS
from tmemd.base.os_errors import unreadable
from tmemd.base.parsers import (
    address,
    block_addresses,
    flag,
    is_loopback,
    memory_size,
    names,
    number,
    one_of,
    seconds,
    size,
    split_address,
    text,
)
from tmemd.base.trusted_files import check_writers
from tmemd.config.clients import ClientSettings, dump_clients, parse_clients
from tmemd.config.faults import Injection, injections


def _option(parse: Callable[[object], Any], about: str, default: Any = None, file_only: bool = False) -> Any:
    metadata = {"parse": parse, "about": about, "file_only": file_only}
    return field(**{"default_factory" if callable(default) else "default": default}, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the daemon runs with. The `about` of each field says its unit."""

    listen: str = _option(address, "address of the gRPC services; port 0 is any free one", "127.0.0.1:7717")
    workers: int = _option(
        number(1, 64), "processes that serve, each on a port of its own from that of listen upwards", 1
    )
    worker_timeout: int = _option(
        seconds(0, 10**6), "seconds without a sign of life after which a worker is killed and replaced; 0 is never", 60
    )
    nbd: tuple[str, ...] = _option(
        block_addresses, "addresses of the NBD exports, each unix:PATH or tcp:HOST:PORT; none unless given", ()
    )
    nbd_poll: int = _option(
        number(0, 1000), "microseconds for which an NBD connection looks for its next request before it sleeps", 0
    )
    nbd_connections: int = _option(number(1, 100_000), "NBD connections that have an export open at once", 512)
    nbd_client_connections: int = _option(
        number(1, 100_000), "those of one client: the name in its certificate, else its address", 256
    )
    nbd_handshakes: int = _option(
        number(1, 100_000), "NBD connections that have opened no export yet; beyond it the oldest is closed", 64
    )
    nbd_handshake_timeout: int = _option(
        number(1, 3600), "seconds from connecting over NBD until an export must be open", 10
    )
    nbd_buffers: int = _option(
        size,
        "bytes that large NBD requests and replies may hold at once, of all connections; what wants more waits",
        256 << 20,
    )
    metrics: str | None = _option(address, "address of the Prometheus exposition; none unless given")
    metrics_clients: tuple[str, ...] = _option(
        names, "clients that may read the metrics besides admins, where certificates tell who they are", ()
    )
    tls_cert: str | None = _option(
        text, "file of the certificate of the address, PEM, with its chain; plain text unless given"
    )
    tls_key: str | None = _option(text, "file of its key")
    tls_client_ca: str | None = _option(
        text, "file of the certificates that vouch for clients' own; clients need none unless given"
    )
    admins: tuple[str, ...] | None = _option(
        names,
        "clients that may do everything; local unless given, with insecure network too, with tls_client_ca nobody",
    )
    insecure: bool = _option(flag, "serve without TLS on an address that other machines reach", False)
    memory: int = _option(
        memory_size, "bytes that the arena may use; chosen by what the machine and the container have, unless given", 0
    )
    arena: str | None = _option(text, "path of the arena's file; private memory, gone with the daemon, unless given")
    store: str = _option(one_of("arena", "null"), "arena; or null, which keeps no page, to measure the rest", "arena")
    shards: int | None = _option(number(1, 1024), "separately locked parts, a power of two; chosen by memory")
    accept_threshold: int = _option(number(1, 100), "per cent of memory below which a full store accepts again", 90)
    mlock: bool = _option(flag, "keep the arena from being swapped out", False)
    lock_memory: bool = _option(
        flag, "keep all of the daemon's memory from being swapped out, the arena's too; it takes CAP_IPC_LOCK", False
    )
    io_flusher: bool = _option(
        flag,
        "have no allocation wait for writes to swap that the daemon itself serves; it takes CAP_SYS_RESOURCE",
        False,
    )
    commit_reserves: bool = _option(
        flag, "have the memory behind every reserve committed when it is made, and keep it", False
    )
    huge_pages: bool = _option(flag, "ask for transparent huge pages", False)
    compact_every: int = _option(
        seconds(0, 10**6), "seconds between looks whether moving pages together would free memory; 0 is never", 10
    )
    threads: int = _option(number(1, 256), "threads for long engine calls", lambda: min(8, os.cpu_count() or 1))
    inline_bytes: int = _option(
        size,
        "bytes of pages up to which a call runs on the event loop itself; those to be compressed count 4 times",
        1 << 20,
    )
    batch_pages: int = _option(number(1, 256), "pages a batch may have, of which at most 2 MiB", 256)
    max_message: int = _option(size, "bytes of the largest message taken", 4 << 20)
    max_waiting: int = _option(number(0, 100_000), "long engine calls that wait for a thread; more are refused", 256)
    max_client_waiting: int = _option(number(0, 100_000), "those of one client", 192)
    max_calls: int = _option(number(1, 100_000), "calls and streams under way with a worker, of all clients", 512)
    max_client_calls: int = _option(number(1, 100_000), "calls and streams of one client under way with a worker", 384)
    max_streams: int = _option(number(1, 100_000), "calls and streams under way on one connection", 128)
    keepalive: int = _option(
        seconds(1, 10**6), "seconds of silence after which a client is asked for a sign of life", 60
    )
    keepalive_timeout: int = _option(
        seconds(1, 10**6), "seconds it has to give one, until its connection is closed", 20
    )
    ping_interval: int = _option(seconds(0, 10**6), "seconds between a client's own such questions, at least", 10)
    connection_idle: int = _option(seconds(1, 10**6), "seconds without a call after which a connection is closed", 1800)
    exchange_idle: int = _option(seconds(1, 10**6), "seconds without a command after which a stream is ended", 1800)
    max_sessions: int = _option(
        number(1, 1_000_000),
        "sessions open at once; beyond it the client with the most loses its longest unused",
        16384,
    )
    session_idle: int = _option(seconds(1, 10**9), "seconds after which an unused session may be ended", 3600)
    max_unacknowledged: int = _option(number(1, 100_000), "exclusive gets of a session that await acknowledgement", 256)
    max_watchers: int = _option(
        number(1, 10_000), "watchers of events at once; a quarter of them are for administrators alone", 16
    )
    max_client_watchers: int = _option(number(1, 10_000), "those of one client that is no administrator", 4)
    watch_events: int = _option(number(1, 1_000_000), "events that wait for a watcher; older ones are dropped", 4096)
    inject: tuple[Injection, ...] | None = _option(
        injections,
        "for tests: delays and errors put into calls, as METHOD:PART,... of delay=50ms, code=UNAVAILABLE, after (carry "
        "out, then answer the code), fraction=0.1; METHOD is like Put, Exchange.put or *; several by semicolons. Given "
        "empty it injects nothing, and lets administrators inject at run time",
    )
    clients: Mapping[str, ClientSettings] = _option(
        parse_clients,
        "tables [clients.NAME] with quota (bytes that the quotas of its pools may come to), weight (of its new pools, "
        "and the most it may give them) and shared (patterns of the names of others' shared pools that it may use)",
        lambda: MappingProxyType({}),
        file_only=True,
    )
    drain: int = _option(seconds(0, 3600), "seconds that calls under way have to end when the daemon stops", 10)
    log_format: str = _option(one_of(*FORMATS), "text or json, an object a line", "text")
    log_level: str = _option(one_of(*LEVELS), "least level that is logged: debug, info, warning or error", "info")

    @property
    def administrators(self) -> frozenset[str]:
        """The clients that may do everything. Where certificates tell clients apart, whoever else is local is none."""
        if self.admins is not None:
            return frozenset(self.admins)
        if self.tls_client_ca is not None:
            return frozenset()
        return frozenset(("local", "network") if self.insecure else ("local",))


OPTIONS = {option.name: option for option in fields(Config)}

_PREFIX = "TMEMD_"
_FILE = "TMEMD_CONFIG"
_MOST_TEXT = 4 << 20
_LINKS = [
    (re.compile(rf"TMEMD(?:_[A-Z0-9_]+)?_{of_name}"), re.compile(of_value))
    for of_name, of_value in (
        (r"SERVICE_HOST", ""),
        (r"SERVICE_PORT(?:_[A-Z0-9_]+)?", r"\d+$"),
        (r"PORT", r"(?:tcp|udp|sctp)://"),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)", r"(?:tcp|udp|sctp)://"),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)_(?:PROTO|PORT|ADDR)", ""),
        (r"NAME", "/"),
    )
]


def load(flags: Mapping[str, object], environment: Mapping[str, str], path: Path | None = None) -> Config:
    """The configuration from flags over environment over file.

    Raises:
        ConfigError: What is wrong, and where.
    """
    values: dict[str, Any] = {}
    path = path or file_of(environment)
    if path is not None:
        values |= _parsed(_read(path), f"{path}: ", in_file=True)
    spared = {_FILE, *service_links(environment)}
    set_here = {
        name[len(_PREFIX) :].lower(): text
        for name, text in environment.items()
        if name.startswith(_PREFIX) and name not in spared
    }
    values |= _parsed(set_here, f"environment: {_PREFIX}", str.upper)
    values |= _parsed(flags, "--", lambda name: name.replace("_", "-"))
    config = Config(**values)
    _agree(config)
    return config


def file_of(environment: Mapping[str, str]) -> Path | None:
    """The file that the environment names."""
    return Path(named) if (named := environment.get(_FILE)) else None


def service_links(environment: Mapping[str, str]) -> list[str]:
    """Variables that Kubernetes, or a container link, sets for a service whose name begins with `tmemd`.

    They are known by their form, value included: `TMEMD_PORT=7717` is a mistake of somebody's.
    """
    return [
        name
        for name, value in environment.items()
        if name.startswith(_PREFIX) and name[len(_PREFIX) :].lower() not in OPTIONS and _is_link(name, value)
    ]


def _is_link(name: str, value: str) -> bool:
    return any(of_name.fullmatch(name) and of_value.match(value) for of_name, of_value in _LINKS)


def dump(config: Config) -> str:
    """The configuration as a file that `load` reads; what is not set is a comment."""
    lines = []
    for name, option in OPTIONS.items():
        if option.metadata["file_only"]:
            continue
        value = getattr(config, name) or None if name == "memory" else getattr(config, name)
        lines += [f"# {option.metadata['about']}", f"# {name} =" if value is None else f"{name} = {_written(value)}"]
    about = OPTIONS["clients"].metadata["about"]
    return "\n".join([*lines, f"# {about}"]) + "\n" + dump_clients(config.clients)


def restore(dumped: str) -> Config:
    """The configuration that `dump` wrote."""
    values: dict[str, Any] = _parsed(tomllib.loads(dumped), "", in_file=True)
    return Config(**values)


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_written(str(one)) for one in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            try:
                check_writers(file, path)
            except ValueError as error:
                raise ConfigError(str(error)) from error
            text = file.read(_MOST_TEXT + 1)
        if len(text) > _MOST_TEXT:
            raise ConfigError(f"{path}: it is longer than {_MOST_TEXT >> 20} MiB")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise ConfigError(unreadable(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _parsed(
    given: Mapping[str, object], where: str, spell: Callable[[str], str] = lambda name: name, in_file: bool = False
) -> dict[str, object]:
    parsed = {}
    for name, value in given.items():
        option = OPTIONS.get(name)
        if option is None:
            raise ConfigError(f"{where}{spell(name)}: there is no such setting")
        if option.metadata["file_only"] and not in_file:
            raise ConfigError(f"{where}{spell(name)}: it can only stand in the file")
        try:
            parsed[name] = option.metadata["parse"](value)
        except ValueError as error:
            raise ConfigError(f"{where}{spell(name)} is {value!r}: {error}") from error
    return parsed


def _agree(config: Config) -> None:
    _agree_on_tls(config)
    if (last := int(split_address(config.listen)[1]) + config.workers - 1) > 65535:
        raise ConfigError(f"workers is {config.workers}: the last one's port would be {last}")
    if config.workers > 1 and config.store != "arena":
        raise ConfigError(f"workers is {config.workers}: several processes share an arena, not store {config.store!r}")
    if config.store == "null" and config.arena is not None:
        raise ConfigError(f"store is 'null', which has no arena, but arena is {config.arena!r}: give one of the two")
    if config.nbd and config.store == "null":
        raise ConfigError("nbd is for a store in an arena: store 'null' keeps no page")
    if not 64 << 10 <= config.max_message <= 64 << 20:
        raise ConfigError(f"max_message is {config.max_message} bytes; it must be 64 KiB to 64 MiB")
    if config.shards is not None and config.shards & (config.shards - 1):
        raise ConfigError(f"shards is {config.shards}; it must be a power of two")


def _agree_on_tls(config: Config) -> None:
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("tls_cert and tls_key are a pair: give both or none")
    if config.tls_client_ca is not None and config.tls_cert is None:
        raise ConfigError("tls_client_ca is for TLS: give tls_cert and tls_key too")
    if config.insecure and config.tls_cert is not None:
        raise ConfigError("insecure is for serving without TLS: give it or tls_cert, not both")
    for each in config.nbd:
        kind, _, where = each.partition(":")
        if kind == "tcp" and not config.insecure and config.tls_cert is None and not is_loopback(where):
            raise ConfigError(
                f"nbd is {each!r}, which other machines can reach: give tls_cert and tls_key (and tls_client_ca, so "
                "that only clients with certificates get in); or insecure, if anybody there may change every export"
            )
    for name in ("listen", "metrics"):
        address = getattr(config, name)
        if address is not None and not config.insecure and config.tls_cert is None and not is_loopback(address):
            raise ConfigError(
                f"{name} is {address!r}, which other machines can reach: give tls_cert and tls_key (and tls_client_ca, "
                "to know clients by their certificates); or insecure, if anybody there may read and change every page"
            )
