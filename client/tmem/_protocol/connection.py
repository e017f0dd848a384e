"""What all pools of a connection share: its options, its counters, and its circuit breaker."""

from __future__ import annotations

import random
import re
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from tmem._model.errors import ClosedError, UnavailableError
from tmem._runtime import forks
from tmem._runtime.breaker import LONGEST_WAIT, SHORTEST_WAIT, Breaker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tmem._protocol.messages import Wire

OnUnavailable: TypeAlias = Literal["raise", "miss"]

DEFAULT_PORT = 7717

_SCHEMES = ("grpc://", "grpcs://", "tcp://")
_TARGET = re.compile(r"(?P<host>\[[\w:.%-]+\]|[\w.-]*)(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Options:
    """How a connection behaves; see `tmem.connect`."""

    timeout: float = 10.0
    encoding: Wire = "lz4"
    on_unavailable: OnUnavailable = "raise"

    def __post_init__(self) -> None:
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float):
            raise TypeError(f"timeout must be a number of seconds, not {type(self.timeout).__name__}")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout is {self.timeout}; it must be a number of seconds above 0")
        if self.encoding not in ("lz4", "raw"):
            raise ValueError(f"encoding is {self.encoding!r}; it must be 'lz4' or 'raw'")
        if self.on_unavailable not in ("raise", "miss"):
            raise ValueError(f"on_unavailable is {self.on_unavailable!r}; it must be 'raise' or 'miss'")


@dataclass(frozen=True, slots=True)
class ClientStats:
    """What a connection has counted since it was made; all zero where there is none (embedded, `shm://`).

    Attributes:
        calls: Calls sent to the server, retried ones included.
        failed_calls: Calls that came back with an error, or not in time.
        retries: Rounds of calls that were made again.
        reopened: Sessions opened again because the server had forgotten them.
        new_epochs: Epochs asked for so that no earlier mutation lands late.
        breaker_trips: Times the server was found to be away.
        missed_unavailable: Pages answered as misses because the server was away.
        refused_unavailable: Pages answered as refused because the server was away.
        owed_flushes: Pages and objects whose flush waits for the server to come back.
        acknowledgements_lost: Exclusive gets whose pages the server may still hold.
        corrupt_pages: Pages that failed their checksum.
    """

    calls: int = 0
    failed_calls: int = 0
    retries: int = 0
    reopened: int = 0
    new_epochs: int = 0
    breaker_trips: int = 0
    missed_unavailable: int = 0
    refused_unavailable: int = 0
    owed_flushes: int = 0
    acknowledgements_lost: int = 0
    corrupt_pages: int = 0


class Counters:
    """The counts behind `ClientStats`. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = forks.lock()
        self._counts = asdict(ClientStats())

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._counts[name] += count

    def stats(self) -> ClientStats:
        with self._lock:
            return ClientStats(**self._counts)


class ServerState:
    """What this client knows of a server, without a connection: options, counters, and whether it answers."""

    def __init__(self, address: str, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self.address = address
        self.options = options
        self.clock = clock
        self.breaker = Breaker(clock)
        self.counters = Counters()
        self.closed = False

    @property
    def forgiving(self) -> bool:
        """Whether a server that is away is answered for with misses and refusals."""
        return self.options.on_unavailable == "miss"

    def admit(self) -> None:
        """Raise where there is no sense in a call now."""
        if self.closed:
            raise ClosedError("the store is closed")
        if not self.breaker.admits():
            raise UnavailableError(f"{self.address} is away; it is tried again shortly")

    def lost(self, details: str) -> UnavailableError:
        """The server is taken to be away from now on."""
        self.breaker.trip()
        self.counters.add("breaker_trips")
        return UnavailableError(f"{self.address}: {details}")


def parse_target(address: str) -> str:
    """`HOST:PORT` of a server's address, in which people leave out the host (this machine) or the port."""
    scheme = next((scheme for scheme in _SCHEMES if address.startswith(scheme)), "")
    match = _TARGET.fullmatch(address.removeprefix(scheme).removesuffix("/"))
    host, port = (match["host"] or "localhost", int(match["port"] or DEFAULT_PORT)) if match else ("", 0)
    if not 0 < port < 65536 or (match and not match[0]):
        raise ValueError(
            f"address is {address!r}; expected HOST:PORT (with [ ] around an IPv6 address), grpc://HOST:PORT, "
            "grpcs://HOST:PORT or shm://PATH"
        )
    return f"{host}:{port}"


def backoff(attempt: int) -> float:
    """Seconds to wait before the next attempt: doubled each time, with a random part so that clients spread."""
    delay = min(SHORTEST_WAIT * 2.0 ** min(attempt, 10), LONGEST_WAIT)
    return delay * random.uniform(0.5, 1.0)
