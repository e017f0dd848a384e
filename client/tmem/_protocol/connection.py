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
    """The options of a connection; see `tmem.connect`."""

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
    """Counters of a connection; all zero without one (embedded, `shm://`).

    Attributes:
        calls: Calls sent to the server, retried ones included.
        failed_calls: Calls that failed or timed out.
        retries: Rounds of calls that were retried.
        reopened: Sessions reopened because the server had dropped them.
        new_epochs: Epochs requested so that no earlier mutation takes effect late.
        breaker_trips: Times the server was found unavailable.
        missed_unavailable: Pages reported as misses because the server was unavailable.
        refused_unavailable: Pages reported as refused because the server was unavailable.
        owed_flushes: Pages and objects whose flush is pending until the server is back.
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
        """Whether calls miss or are refused, rather than raise, while the server is unavailable."""
        return self.options.on_unavailable == "miss"

    def admit(self) -> None:
        """Raise if a call cannot succeed now."""
        if self.closed:
            raise ClosedError("the store is closed")
        if not self.breaker.admits():
            raise UnavailableError(f"{self.address} is unavailable and will be tried again shortly")

    def lost(self, details: str) -> UnavailableError:
        """Note that the server did not answer; the error to raise."""
        self.breaker.trip()
        self.counters.add("breaker_trips")
        return UnavailableError(f"{self.address}: {details}")


def parse_target(address: str) -> str:
    """`HOST:PORT` of a server's address, which may leave out the host (this machine) or the port."""
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
