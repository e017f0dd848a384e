"""`tmem export`: block devices over NBD, their sizes, and who has them open."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import tmem
from tmem._model.settings import export_spec
from tmem._protocol import export_ops
from tmem.cli.base import text
from tmem.cli.base.arguments import CODECS, SIZE
from tmem.cli.base.failures import Failed
from tmem.cli.base.output import Column
from tmem.cli.base.session import Session, Tree, pass_session

if TYPE_CHECKING:
    from tmem._protocol.export_ops import Export

_COLUMNS = (
    Column("EXPORT"),
    Column("SIZE", right=True),
    Column("HELD", right=True),
    Column("FOOTPRINT", right=True, rank=1),
    Column("RESERVE", right=True, rank=2),
    Column("CODEC", rank=5),
    Column("BLOCK", right=True, rank=6),
    Column("READ", right=True, rank=3),
    Column("WRITTEN", right=True, rank=4),
    Column("CLIENTS"),
    Column("MAY OPEN", rank=4),
    Column("STATE"),
)
_LOOK_EVERY = 0.5


@click.group("export", cls=Tree)
def export() -> None:
    """Create, list, resize, drain and remove block devices that the server exports over NBD."""


@export.command("create")
@click.argument("name", metavar="EXPORT")
@click.option("--size", type=SIZE, required=True, help="Size of the device, a multiple of 4KiB.")
@click.option(
    "--reserve", type=SIZE, default=0, help="Memory set aside for it; without, writes can fail when memory runs out."
)
@click.option("--codec", default="lz4", show_default=True, help=f"{CODECS}.")
@click.option(
    "--block-size",
    type=SIZE,
    default="4KiB",
    show_default=True,
    help="Compression unit, up to 256KiB: larger is denser, but slower for smaller requests.",
)
@click.option("--multi-conn", is_flag=True, help="Allow several connections at once; default: one.")
@click.option("--allow", multiple=True, metavar="IDENTITY", help="Who may open it (repeatable); '*' is anyone.")
@pass_session
def create(session: Session, /, allow: tuple[str, ...], **options: Any) -> None:
    """Create an empty block device."""
    spec = export_spec(**options, allow=allow or None)
    made = session.patient().ask(lambda server: export_ops.create(server, spec))
    if session.output.as_json:
        session.output.document(asdict(made))
        return
    blocks = f" in blocks of {text.size(made.block_size)}"
    sure = f", {text.size(made.reserve)} of memory reserved" if made.reserve else ""
    session.output.say(f"created export {made.name!r}: {text.size(made.size)}, {made.codec}{blocks}{sure}")
    _, addresses = session.target.ask(export_ops.listing)
    if not addresses:
        session.output.remark("not served: tmemd was started without --nbd")


@export.command("ls")
@pass_session
def ls(session: Session) -> None:
    """List the exports, their contents and their connected clients."""
    found, addresses = session.target.ask(export_ops.listing)
    if session.output.as_json:
        session.output.document({"exports": [asdict(one) for one in found], "addresses": addresses})
        return
    if found:
        session.output.table(_COLUMNS, [_row(one) for one in found])
        for one in found:
            if one.damaged:
                session.output.remark(
                    f"export {one.name!r} is not served because its record is damaged: set its size again with "
                    "`tmem export resize`, then use `tmem export allow`; or remove it"
                )
    else:
        session.output.say("no exports; create one with `tmem export create NAME --size SIZE`")
    session.output.remark(
        f"served on {', '.join(addresses)}" if addresses else "not served: tmemd was started without --nbd"
    )


@export.command("rm")
@click.argument("name", metavar="EXPORT")
@click.option("--force", is_flag=True, help="Disconnect its clients.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@pass_session
def rm(session: Session, name: str, force: bool, yes: bool) -> None:
    """Remove an export with all its data."""
    found = _find(session, name)
    held = _held(found)
    if not yes:
        click.confirm(f"Remove export {text.printable(name)!r}, which holds {held}?", abort=True, err=True)
    dropped = session.patient().ask(lambda server: export_ops.remove(server, name, force))
    if session.output.as_json:
        session.output.document({"export": name, "dropped_pages": dropped})
    session.output.say(f"removed export {name!r} with {text.quantity(dropped, 'page')}")


@export.command("resize")
@click.argument("name", metavar="EXPORT")
@click.argument("size", type=SIZE)
@pass_session
def resize(session: Session, name: str, size: int) -> None:
    """Resize an export. It shrinks only if the part cut off is empty. Clients see the size when they reconnect."""
    made = session.patient().ask(lambda server: export_ops.resize(server, name, size))
    if session.output.as_json:
        session.output.document(asdict(made))
    session.output.say(f"export {name!r} is now {text.size(made.size)}")


@export.command("drain")
@click.argument("name", metavar="EXPORT")
@click.option("--undo", is_flag=True, help="Admit clients again.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0,
    metavar="SECONDS",
    help="Wait this long for its clients to disconnect.",
)
@pass_session
def drain(session: Session, name: str, undo: bool, wait: float) -> None:
    """Admit no new clients, and list those still connected; exit status 1 while there are any."""
    found = session.target.ask(lambda server: export_ops.drain(server, name, undo))
    until = time.monotonic() + wait
    while found.clients and not undo and time.monotonic() < until:
        time.sleep(min(_LOOK_EVERY, max(until - time.monotonic(), 0)))
        found = _find(session, name)
    if session.output.as_json:
        session.output.document(asdict(found))
    session.output.say(f"export {name!r} {_drained(found)}")
    if found.clients and not undo:
        raise Failed(
            f"{text.quantity(len(found.clients), 'client')} still connected: run swapoff, then nbd-client -d there"
        )


@export.command("allow")
@click.argument("name", metavar="EXPORT")
@click.argument("clients", metavar="IDENTITY", nargs=-1)
@click.option("--undo", is_flag=True, help="Revoke access: their connections are closed.")
@click.option("--anyone", is_flag=True, help="Allow everyone who can reach the server's NBD address.")
@pass_session
def allow(session: Session, name: str, clients: tuple[str, ...], undo: bool, anyone: bool) -> None:
    """Allow clients, by the names in their certificates, to open an export. An export open to anyone is so no more."""
    found = session.patient().ask(lambda server: export_ops.allow(server, name, clients, undo, anyone))
    if session.output.as_json:
        session.output.document(asdict(found))
    session.output.say(f"export {name!r} may be opened by {_allowed(found)}")


def _allowed(found: Export) -> str:
    if found.allowed is None:
        return "anyone"
    return ", ".join(map(text.printable, found.allowed)) or "nobody"


def _drained(found: Export) -> str:
    if not found.draining:
        return "admits clients"
    held = f"it holds {_held(found)}" if found.pages else "it is empty"
    if found.clients:
        return f"admits no new clients; still connected: {_clients(found)}; {held}"
    return f"is drained: no client has it open, and {held}; `tmem export rm` removes it"


def _find(session: Session, name: str) -> Export:
    for one in session.target.ask(export_ops.exports):
        if one.name == name:
            return one
    raise tmem.UnknownExportError(name)


def _held(found: Export) -> str:
    return text.size(found.pages * found.block_size)


def _clients(found: Export) -> str:
    return ", ".join(text.printable(one.identity or one.address) for one in found.clients)


def _row(found: Export) -> list[str]:
    counters: Any = found.counters
    return [
        found.name,
        text.size(found.size),
        _held(found),
        text.size(found.footprint_bytes),
        text.size(found.reserve) if found.reserve else text.NONE,
        found.codec,
        text.size(found.block_size),
        text.size(counters.get("read_bytes", 0)),
        text.size(counters.get("written_bytes", 0)),
        _clients(found) or text.NONE,
        _allowed(found),
        "damaged" if found.damaged else "draining" if found.draining else "",
    ]


COMMANDS = (export,)
