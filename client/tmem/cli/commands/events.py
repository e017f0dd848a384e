"""`tmem events` and `tmem inject`: watching a server's events, and injecting faults into its calls."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

import click

import tmem
from tmem._protocol import admin_ops
from tmem.cli.base import text
from tmem.cli.base.arguments import POOL
from tmem.cli.base.output import Column
from tmem.cli.base.session import Leaf, Session, pass_session
from tmem_proto.faults import codes, parse
from tmem_proto.v1 import admin_pb2 as admin

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tmem._protocol.admin_ops import Event

_NOUNS = {
    "evicted": "page",
    "refused": "page",
    "corrupt": "page",
    "recovered": "shard",
    "missed": "event",
    "export_attached": "client",
    "export_detached": "client",
    "export_refused": "client",
}
_EXAMPLES = """\b
Examples:
  tmem inject Put:delay=50ms
  tmem inject Get:code=UNAVAILABLE,fraction=0.1 Exchange.put:code=UNAVAILABLE,after
  tmem inject
"""
_COLUMNS = (Column("METHOD"), Column("DELAY", right=True), Column("CODE"), Column("OF CALLS", right=True), Column(""))


@click.command("events", cls=Leaf)
@click.option("--pool", type=POOL, help="Show events of this pool only.")
@click.option("--follow", "-f", is_flag=True, help="Keep watching until Ctrl-C.")
@click.option("--seconds", type=click.FloatRange(min=0), default=10.0, show_default=True, help="How long to watch.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many events.")
@pass_session
def events(session: Session, pool: str | None, follow: bool, seconds: float, count: int | None) -> None:
    """Watch events as they happen: evictions, refusals, recoveries, changes of pools and exports."""
    if pool is not None:
        session.target.pool(pool)
    store = session.target.store
    watching = closing(cast("Generator[Event, None, None]", store.events(pool)))
    timer = threading.Timer(seconds, store.close)
    if not follow:
        timer.start()
    seen = 0
    try:
        with watching as stream:
            for seen, event in enumerate(_until_closed(stream), start=1):
                _tell(session, event)
                if seen == count:
                    break
    except KeyboardInterrupt:
        pass
    finally:
        timer.cancel()
    if not seen and not follow:
        session.output.say(f"no events within {seconds:g} s")


@click.command("inject", cls=Leaf, epilog=_EXAMPLES)
@click.argument("faults", metavar="[METHOD:PART,PART...]...", nargs=-1)
@pass_session
def inject(session: Session, faults: tuple[str, ...]) -> None:
    """Inject faults: delay or fail calls, to test clients. Only a daemon started with --inject allows it.

    The given faults replace all earlier ones; without any, injection ends. METHOD is Put, Exchange.put or the like, or
    * for all. PARTs are those of tmemd --inject: delay=50ms (or 1.5s), code=UNAVAILABLE, `after` to fail a call once it
    has been carried out, as if the reply were lost, and fraction=0.1 for a tenth of the calls. One argument may hold
    several faults, separated by semicolons.
    """
    wanted = [fault for given in faults for fault in parse(given)]
    before = session.target.ask(lambda server: admin_ops.inject(server, wanted))
    if session.output.as_json:
        session.output.document(
            {"faults": [_as_dict(one) for one in wanted], "before": [_as_dict(one) for one in before]}
        )
        return
    if wanted:
        session.output.table(_COLUMNS, [_row(one) for one in wanted])
    else:
        session.output.say("no faults are injected")
    if before:
        session.output.say(f"removed {text.quantity(len(before), 'earlier fault')}")


def _code_name(number: int) -> str:
    return {code: name for name, code in codes().items()}.get(number, "OK" if number == 0 else str(number))


def _until_closed(stream: Iterator[Event]) -> Iterator[Event]:
    """The events until the timer closes the store."""
    try:
        yield from stream
    except tmem.ClosedError:
        return


def _tell(session: Session, event: Event) -> None:
    if session.output.as_json:
        session.output.line(asdict(event))
        return
    what = event.kind.replace("_", " ")
    if event.kind in _NOUNS:
        what += f" {text.quantity(event.count, _NOUNS[event.kind])}"
    elif event.kind == "export_resized":
        what += f" to {text.size(event.count)}"
    parts = [text.moment(event.time), f"{text.printable(event.pool) or '(store)':<20}", what]
    if event.cause:
        parts.append(f"({text.printable(event.cause)})")
    if event.client:
        parts.append(f"of {text.printable(event.client)}")
    session.output.say("  ".join(parts))


def _row(fault: admin.Injection) -> list[str]:
    return [
        text.printable(fault.method),
        f"{fault.delay_ms} ms" if fault.delay_ms else text.NONE,
        _code_name(fault.code) if fault.code else text.NONE,
        f"{100 * (fault.fraction or 1):g} %",
        "after the call" if fault.after else "",
    ]


def _as_dict(fault: admin.Injection) -> dict[str, object]:
    return {
        "method": fault.method,
        "delay_ms": fault.delay_ms,
        "code": _code_name(fault.code),
        "fraction": fault.fraction or 1.0,
        "after": fault.after,
    }


COMMANDS = (events, inject)
