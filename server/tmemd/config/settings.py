"""The configuration: one frozen object, from a TOML file, the environment (TMEMD_*) and flags; later sources win.

Every field is a key of the file, a variable and a flag: `max_calls`, `TMEMD_MAX_CALLS`, `--max-calls`. Unknown names
and invalid values are refused with the reason.
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
from tmemd.base.os_errors import why_unreadable
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
    """All settings of the daemon. The `about` of each field names its unit."""

    listen: str = _option(address, "address to serve gRPC on; port 0 picks a free one", "127.0.0.1:7717")
    workers: int = _option(number(1, 64), "worker processes, each on its own port, counting up from that of listen", 1)
    worker_timeout: int = _option(
        seconds(0, 10**6),
        "seconds without a heartbeat after which a worker is killed and replaced; 0 disables this",
        60,
    )
    nbd: tuple[str, ...] = _option(
        block_addresses, "addresses to serve NBD exports on, each unix:PATH or tcp:HOST:PORT; none by default", ()
    )
    nbd_poll: int = _option(
        number(0, 1000), "microseconds that an NBD connection polls for its next request before it sleeps", 0
    )
    nbd_connections: int = _option(number(1, 100_000), "most NBD connections with an open export", 512)
    nbd_client_connections: int = _option(
        number(1, 100_000),
        "most of these from one client, known by the name in its certificate, else by its address",
        256,
    )
    nbd_handshakes: int = _option(
        number(1, 100_000),
        "most NBD connections that have not opened an export yet; beyond that the oldest is closed",
        64,
    )
    nbd_handshake_timeout: int = _option(number(1, 3600), "seconds that an NBD connection has to open an export", 10)
    nbd_buffers: int = _option(
        size,
        "bytes that large NBD requests and replies of all connections may hold at once; further ones wait",
        256 << 20,
    )
    metrics: str | None = _option(address, "address to serve Prometheus metrics on; none by default")
    metrics_clients: tuple[str, ...] = _option(
        names, "clients that may read the metrics besides admins, identified by their certificates", ()
    )
    tls_cert: str | None = _option(text, "PEM file of the server's certificate and its chain; plain text without one")
    tls_key: str | None = _option(text, "PEM file of its key")
    tls_client_ca: str | None = _option(
        text, "PEM file of the authorities for client certificates; without it clients need none"
    )
    admins: tuple[str, ...] | None = _option(
        names,
        "administrators, by client name; by default local, with insecure also network, with tls_client_ca nobody",
    )
    insecure: bool = _option(flag, "serve without TLS on addresses that other machines can reach", False)
    memory: int = _option(
        memory_size, "bytes that the arena may use; by default chosen from what the machine and the container have", 0
    )
    arena: str | None = _option(
        text, "path of the arena's file; by default private memory, which is gone when the daemon ends"
    )
    store: str = _option(
        one_of("arena", "null"), "arena, or null, which keeps no pages, to measure everything else", "arena"
    )
    shards: int | None = _option(
        number(1, 1024), "separately locked parts of the arena, a power of two; by default chosen from memory"
    )
    accept_threshold: int = _option(
        number(1, 100), "percentage of memory below which a full store accepts pages again", 90
    )
    mlock: bool = _option(flag, "lock the arena in memory", False)
    lock_memory: bool = _option(flag, "lock all of the daemon's memory, including the arena; needs CAP_IPC_LOCK", False)
    io_flusher: bool = _option(
        flag,
        "never let an allocation wait for swap that the daemon itself serves; needs CAP_SYS_RESOURCE",
        False,
    )
    commit_reserves: bool = _option(
        flag, "commit the memory of every reserve when it is made, and keep it committed", False
    )
    huge_pages: bool = _option(flag, "ask for transparent huge pages", False)
    compact_every: int = _option(
        seconds(0, 10**6), "seconds between checks whether to compact; 0 disables compaction", 10
    )
    threads: int = _option(
        number(1, 256), "threads for long engine calls, per worker", lambda: min(8, os.cpu_count() or 1)
    )
    inline_bytes: int = _option(
        size,
        "most bytes of pages that a call may handle on the event loop; bytes to compress count four times",
        1 << 20,
    )
    batch_pages: int = _option(number(1, 256), "most pages in a batch, which holds at most 2 MiB", 256)
    max_message: int = _option(size, "bytes of the largest message accepted", 4 << 20)
    max_waiting: int = _option(
        number(0, 100_000), "most long engine calls queued for a thread; further ones are refused", 256
    )
    max_client_waiting: int = _option(number(0, 100_000), "most of these from one client", 192)
    max_calls: int = _option(number(1, 100_000), "most calls and streams in flight per worker", 512)
    max_client_calls: int = _option(
        number(1, 100_000), "most calls and streams of one client in flight per worker", 384
    )
    max_streams: int = _option(number(1, 100_000), "most calls and streams in flight per connection", 128)
    keepalive: int = _option(seconds(1, 10**6), "seconds of silence before a keepalive ping is sent to a client", 60)
    keepalive_timeout: int = _option(
        seconds(1, 10**6), "seconds to wait for the answer before closing the connection", 20
    )
    ping_interval: int = _option(seconds(0, 10**6), "fewest seconds between keepalive pings from a client", 10)
    connection_idle: int = _option(seconds(1, 10**6), "seconds without a call before a connection is closed", 1800)
    exchange_idle: int = _option(seconds(1, 10**6), "seconds without a command before a stream is ended", 1800)
    max_sessions: int = _option(
        number(1, 1_000_000),
        "most open sessions; beyond that the client with the most loses its least recently used one",
        16384,
    )
    session_idle: int = _option(seconds(1, 10**9), "seconds before an unused session may be ended", 3600)
    max_unacknowledged: int = _option(number(1, 100_000), "most unacknowledged exclusive gets per session", 256)
    max_watchers: int = _option(
        number(1, 10_000), "most watchers of events; a quarter of them are reserved for administrators", 16
    )
    max_client_watchers: int = _option(number(1, 10_000), "most watchers of one client that is not an administrator", 4)
    watch_events: int = _option(
        number(1, 1_000_000), "most events queued for a watcher; beyond that the oldest are dropped", 4096
    )
    inject: tuple[Injection, ...] | None = _option(
        injections,
        "for tests: faults to inject into calls, as METHOD:PART,... with the parts delay=50ms, code=UNAVAILABLE, after "
        "(carry out the call, then answer the code) and fraction=0.1; METHOD is Put, Exchange.put, * and the like; "
        "separate several with semicolons. Empty: inject nothing, but let administrators inject at run time",
    )
    clients: Mapping[str, ClientSettings] = _option(
        parse_clients,
        "tables [clients.NAME] with quota (most bytes that the quotas of its pools may add up to), weight (of its new "
        "pools, and the most it may give them) and shared (patterns of others' shared pools that it may use)",
        lambda: MappingProxyType({}),
        file_only=True,
    )
    drain: int = _option(seconds(0, 3600), "seconds that calls in flight have to finish when the daemon stops", 10)
    log_format: str = _option(one_of(*FORMATS), "text, or json with one object per line", "text")
    log_level: str = _option(one_of(*LEVELS), "lowest level to log: debug, info, warning or error", "info")

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
        raise ConfigError(why_unreadable(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _parsed(
    given: Mapping[str, object], where: str, spell: Callable[[str], str] = lambda name: name, in_file: bool = False
) -> dict[str, object]:
    parsed = {}
    for name, value in given.items():
        option = OPTIONS.get(name)
        if option is None:
            raise ConfigError(f"{where}{spell(name)}: unknown setting")
        if option.metadata["file_only"] and not in_file:
            raise ConfigError(f"{where}{spell(name)}: it can only be set in the file")
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
        raise ConfigError("nbd needs an arena: store 'null' keeps no pages")
    if not 64 << 10 <= config.max_message <= 64 << 20:
        raise ConfigError(f"max_message is {config.max_message} bytes; it must be 64 KiB to 64 MiB")
    if config.shards is not None and config.shards & (config.shards - 1):
        raise ConfigError(f"shards is {config.shards}; it must be a power of two")


def _agree_on_tls(config: Config) -> None:
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("tls_cert and tls_key belong together: set both or neither")
    if config.tls_client_ca is not None and config.tls_cert is None:
        raise ConfigError("tls_client_ca needs TLS: set tls_cert and tls_key too")
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
