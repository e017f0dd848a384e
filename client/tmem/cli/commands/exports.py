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
    """Make, list, allow, resize, drain and remove block devices that the server exports over NBD."""


@export.command("create")
@click.argument("name", metavar="EXPORT")
@click.option("--size", type=SIZE, required=True, help="Of the device, a multiple of 4 KiB.")
@click.option("--reserve", type=SIZE, default=0, help="Memory that it is sure of; without it the size is a promise.")
@click.option("--codec", default="lz4", show_default=True, help=f"{CODECS}.")
@click.option(
    "--block-size",
    type=SIZE,
    default="4KiB",
    show_default=True,
    help="Compressed together: to 256KiB; larger is denser, and slower for requests smaller than it.",
)
@click.option("--multi-conn", is_flag=True, help="Let several connections have it open at once; else one.")
@click.option("--allow", multiple=True, metavar="IDENTITY", help="Who may open it, and may be repeated; '*': anyone.")
@pass_session
def create(session: Session, /, allow: tuple[str, ...], **options: Any) -> None:
    """Make a block device, empty."""
    spec = export_spec(**options, allow=allow or None)
    made = session.patient().ask(lambda link: export_ops.create(link, spec))
    if session.output.as_json:
        session.output.document(asdict(made))
        return
    blocks = f" in blocks of {text.size(made.block_size)}"
    sure = f", {text.size(made.reserve)} of memory reserved" if made.reserve else ""
    session.output.say(f"made export {made.name!r}: {text.size(made.size)}, {made.codec}{blocks}{sure}")
    _, addresses = session.target.ask(export_ops.listing)
    if not addresses:
        session.output.remark("the server has no NBD address: start tmemd with --nbd to serve it")


@export.command("ls")
@pass_session
def ls(session: Session) -> None:
    """List the exports with what they hold and who has them open."""
    found, addresses = session.target.ask(export_ops.listing)
    if session.output.as_json:
        session.output.document({"exports": [asdict(one) for one in found], "addresses": addresses})
        return
    if found:
        session.output.table(_COLUMNS, [_row(one) for one in found])
        for one in found:
            if one.damaged:
                session.output.remark(
                    f"export {one.name!r} is not served, as its record is damaged: give it its size again with "
                    "`tmem export resize`, then `tmem export allow`; or remove it"
                )
    else:
        session.output.say("no exports; `tmem export create NAME --size SIZE` makes one")
    session.output.remark(f"served on {', '.join(addresses)}" if addresses else "not served: tmemd has no --nbd")


@export.command("rm")
@click.argument("name", metavar="EXPORT")
@click.option("--force", is_flag=True, help="Cut its clients off.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def rm(session: Session, name: str, force: bool, yes: bool) -> None:
    """Remove an export and everything it holds."""
    found = _find(session, name)
    held = _held(found)
    if not yes:
        click.confirm(f"Remove export {text.printable(name)!r}, which holds {held}?", abort=True, err=True)
    dropped = session.patient().ask(lambda link: export_ops.remove(link, name, force))
    if session.output.as_json:
        session.output.document({"export": name, "dropped_pages": dropped})
    session.output.say(f"removed export {name!r} with {text.quantity(dropped, 'page')}")


@export.command("resize")
@click.argument("name", metavar="EXPORT")
@click.argument("size", type=SIZE)
@pass_session
def resize(session: Session, name: str, size: int) -> None:
    """Give an export another size; smaller only where nothing is held beyond it. Clients see it when they reconnect."""
    made = session.patient().ask(lambda link: export_ops.resize(link, name, size))
    if session.output.as_json:
        session.output.document(asdict(made))
    session.output.say(f"export {name!r} has {text.size(made.size)}")


@export.command("drain")
@click.argument("name", metavar="EXPORT")
@click.option("--undo", is_flag=True, help="Let clients in again.")
@click.option("--wait", type=click.FloatRange(min=0), default=0, metavar="SECONDS", help="For its clients to go.")
@pass_session
def drain(session: Session, name: str, undo: bool, wait: float) -> None:
    """Let no new client in, and say who is still there and what is held; status 1 while a client is."""
    found = session.target.ask(lambda link: export_ops.drain(link, name, undo))
    until = time.monotonic() + wait
    while found.clients and not undo and time.monotonic() < until:
        time.sleep(min(_LOOK_EVERY, max(until - time.monotonic(), 0)))
        found = _find(session, name)
    if session.output.as_json:
        session.output.document(asdict(found))
    session.output.say(f"export {name!r} {_drained(found)}")
    if found.clients and not undo:
        raise Failed(f"{text.quantity(len(found.clients), 'client')} still there: swapoff, then nbd-client -d")


@export.command("allow")
@click.argument("name", metavar="EXPORT")
@click.argument("clients", metavar="IDENTITY", nargs=-1)
@click.option("--undo", is_flag=True, help="Let them no longer: their connections end.")
@click.option("--anyone", is_flag=True, help="Let anyone whom the server's address lets in.")
@pass_session
def allow(session: Session, name: str, clients: tuple[str, ...], undo: bool, anyone: bool) -> None:
    """Let clients open an export, by the names in their certificates; where anyone might, only these from now on."""
    found = session.patient().ask(lambda link: export_ops.allow(link, name, clients, undo, anyone))
    if session.output.as_json:
        session.output.document(asdict(found))
    session.output.say(f"export {name!r} may be opened by {_allowed(found)}")


def _allowed(found: Export) -> str:
    if found.allowed is None:
        return "anyone"
    return ", ".join(map(text.printable, found.allowed)) or "nobody"


def _drained(found: Export) -> str:
    if not found.draining:
        return "lets clients in"
    held = f"{_held(found)} is held" if found.pages else "nothing is held"
    if found.clients:
        return f"lets no new client in; {_clients(found)} has it open, {held}"
    return f"is drained: nobody has it open, {held}; `tmem export rm` removes it"


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
