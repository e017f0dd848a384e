"""`tmem san`: a SAN volume served on this host through a cache on another, until it is told to stop."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tmem.adapters.san import GatewaySettings, open_gateway
from tmem.cli.base.arguments import SIZE
from tmem.cli.base.failures import Failed, Misused
from tmem.cli.base.session import DEFAULT_SERVER, Leaf, Session, pass_session
from tmem.cli.base.text import printable

if TYPE_CHECKING:
    from tmem.adapters.san import Gateway

_FIRST_LOOK = 2.0
_MOMENT = 0.05
_FILE = click.Path(dir_okay=False, path_type=Path)
_IGNORED = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGPOLL", "SIGPWR")


@click.command("san", cls=Leaf)
@click.option("--backing", required=True, metavar="PATH|DEVICE|nbd://...", help="The volume on the SAN.")
@click.option("--pool", required=True, metavar="NAME", help="An ephemeral pool, inclusive or shared.")
@click.option(
    "--listen",
    required=True,
    multiple=True,
    metavar="unix:PATH|tcp:HOST:PORT",
    help="Serve the volume here (repeatable).",
)
@click.option("--shared/--exclusive", default=False, help="Read-only for many hosts, or for this host alone (default).")
@click.option("--volume-id", metavar="ID", help="The volume's name; must be the same on all hosts that share it.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the tokens of warm starts.  [default: /var/lib/tmem/san, or below $XDG_STATE_HOME]",
)
@click.option(
    "--trust-detach",
    is_flag=True,
    help="Start a device or nbd:// volume warm: you vouch that no other host wrote to it.",
)
@click.option("--page-size", type=SIZE, default="4096", show_default=True, help="Page size of the pool.")
@click.option(
    "--max-delay",
    type=click.FloatRange(min=0.001),
    default=0.02,
    show_default=True,
    metavar="SECONDS",
    help="The longest that a read or write waits for the cache.",
)
@click.option(
    "--san-timeout",
    type=click.FloatRange(min=0.1),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="How long an nbd:// SAN may be unreachable before reads and writes fail.",
)
@click.option(
    "--scan", type=SIZE, default="256MiB", show_default=True, help="Do not cache longer sequential reads; 0 caches all."
)
@click.option(
    "--readahead",
    type=SIZE,
    default="1MiB",
    show_default=True,
    help="The most to read ahead of a stream; 0 disables it.",
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=32, show_default=True, help="Concurrent reads of a file."
)
@click.option("--metrics", metavar="HOST:PORT", help="Serve /metrics for Prometheus.")
@click.option("--tls-cert", type=_FILE, help="The gateway's certificate: TLS for clients over TCP.")
@click.option("--tls-key", type=_FILE, help="The private key of the certificate.")
@click.option("--tls-client-ca", type=_FILE, help="Require client certificates signed by these authorities.")
@click.option("--insecure", is_flag=True, help="Serve other machines without TLS.")
@click.option(
    "--buffers", type=SIZE, default="256MiB", show_default=True, help="Memory for the requests of all clients."
)
@pass_session
def san(session: Session, /, listen: tuple[str, ...], page_size: int, **options: object) -> None:
    """Serve a SAN volume with a tmemd pool as its cache. --server is the tmemd's NBD address (TLS with --ca).

    Reads come from the pool if it holds the data, else from the SAN; writes go to the SAN. Whatever happens to the
    tmemd, the volume stays correct and about as fast as the SAN. SIGTERM detaches cleanly.
    """
    if session.options.server == DEFAULT_SERVER:
        raise Misused("set --server to the NBD address of the tmemd that caches: unix:PATH or HOST:PORT (tmemd --nbd)")
    settings = GatewaySettings(
        server=session.options.server,
        listen=listen,
        page_size=page_size,
        tls=session.tls(),
        **options,  # type: ignore[arg-type]
    )
    ended = _signalled()
    try:
        gateway = open_gateway(settings)
    except OSError as error:
        raise Failed(f"the gateway cannot start: {error}") from error
    try:
        _tell(gateway, settings)
        _watch(gateway, ended)
    finally:
        _end(gateway, settings)


def _signalled() -> threading.Event:
    """An event set by SIGTERM and SIGINT. No other signal ends a process that serves a disk to others."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    for name in _IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    return ended


def _tell(gateway: Gateway, settings: GatewaySettings) -> None:
    """Print one line when ready: reads and writes work from now on, with or without the cache."""
    kind = "shared, read-only" if settings.shared else "exclusive, " + ("warm" if gateway.warm else "cold")
    places = ", ".join(gateway.addresses) + (f"; metrics at {gateway.metrics}" if gateway.metrics else "")
    gateway.say(f"ready: {printable(settings.backing)} ({gateway.size:,} bytes, {kind}) at {places}", error=False)


def _watch(gateway: Gateway, ended: threading.Event) -> None:
    """Report whenever the cache or the SAN comes or goes, until the end."""
    first_look = time.monotonic() + _FIRST_LOOK
    while not (ended.is_set() or gateway.wait_cache(_MOMENT) or time.monotonic() > first_look):
        pass
    before: str | None = "?"
    away: str | None = None
    while True:
        if away != (gone := gateway.san_down):
            away = gone
            gateway.say(
                "the SAN is reachable again" if gone is None else f"the SAN is unreachable: {printable(gone)}",
                error=True,
            )
        why = gateway.cache_down
        if (why is None) != (before is None) or before == "?":
            gateway.say("the cache is used" if why is None else f"the cache is not used: {printable(why)}", error=True)
            before = why
        if ended.wait(1.0):
            return


def _end(gateway: Gateway, settings: GatewaySettings) -> None:
    try:
        token = gateway.stop(True)
    except OSError as error:
        gateway.say(f"tmem: the volume may lack the latest writes: {error}", error=True)
        raise click.exceptions.Exit(1) from error
    if not settings.shared:
        gateway.say("detached: the next start is warm" if token else "detached: the next start is cold", error=True)


COMMANDS = (san,)
