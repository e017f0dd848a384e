"""`tmem client` and `tmem worker`: who uses a server, and the processes that serve."""

from __future__ import annotations

from dataclasses import asdict

import click

from tmem._protocol import admin_ops
from tmem.cli.base import text
from tmem.cli.base.output import Column
from tmem.cli.base.session import Session, Tree, pass_session

_CLIENTS = (
    Column("CLIENT"),
    Column("POOLS", right=True),
    Column("PAGES", right=True),
    Column("FOOTPRINT", right=True),
    Column("QUOTA", right=True),
    Column("WEIGHT", right=True, rank=2),
    Column("SESSIONS", right=True, rank=1),
    Column("MAY"),
)
_WORKERS = (
    Column("WORKER", right=True),
    Column("PORT", right=True),
    Column("PROCESS", right=True),
    Column("REPLACED", right=True),
    Column(""),
)


@click.group("client", cls=Tree)
def client() -> None:
    """List, freeze and thaw the clients of a server."""


@client.command("ls")
@pass_session
def clients(session: Session) -> None:
    """List the clients with their limits and usage."""
    found = session.target.ask(admin_ops.clients)
    if session.output.as_json:
        session.output.document([asdict(one) for one in found])
        return
    rows = [
        [
            text.printable(one.name),
            str(one.pools),
            text.count(one.pages),
            text.size(one.footprint_bytes),
            text.size(one.quota) if one.quota else text.NONE,
            str(one.weight),
            str(one.sessions),
            "administrate" if one.administrator else "",
        ]
        for one in found
    ]
    session.output.table(_CLIENTS, rows)


@client.command("freeze")
@click.argument("name", metavar="CLIENT")
@pass_session
def freeze(session: Session, name: str) -> None:
    """Freeze all pools of a client."""
    _freeze(session, name, True)


@client.command("thaw")
@click.argument("name", metavar="CLIENT")
@pass_session
def thaw(session: Session, name: str) -> None:
    """Thaw all pools of a client."""
    _freeze(session, name, False)


@click.group("worker", cls=Tree)
def worker() -> None:
    """List the worker processes of a server."""


@worker.command("ls")
@pass_session
def workers(session: Session) -> None:
    """List the worker processes."""
    found = session.target.ask(admin_ops.workers)
    if session.output.as_json:
        session.output.document([asdict(one) for one in found])
        return
    rows = [
        [str(one.number), str(one.port), str(one.process), str(one.replaced), "yours" if one.suggested else ""]
        for one in found
    ]
    session.output.table(_WORKERS, rows)


def _freeze(session: Session, name: str, frozen: bool) -> None:
    session.target.ask(lambda server: admin_ops.freeze_client(server, name, frozen))
    if session.output.as_json:
        session.output.document({"client": name, "frozen": frozen})
    session.output.say(f"the pools of {text.printable(name)!r} {'are frozen' if frozen else 'accept puts again'}")


COMMANDS = (client, worker)
