"""`tmem stat` and `tmem version`: every number with its unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import tmem
from tmem.cli.base import text
from tmem.cli.base.arguments import POOL
from tmem.cli.base.failures import Failed
from tmem.cli.base.output import Column
from tmem.cli.base.session import Leaf, Session, pass_session
from tmem.cli.base.units import grouped, unit_of

if TYPE_CHECKING:
    from tmem.cli.base.target import PoolView, Status

_COLUMNS = (Column(""), Column("", right=True), Column(""), Column("", right=True, rank=2), Column("", rank=1))
_CLASSES = tuple(
    Column(title, right=True, rank=rank)
    for title, rank in (("CLASS", 0), ("OBJECTS", 0), ("CAPACITY", 0), ("FULL", 0), ("ZSPAGES", 2), ("FREEABLE", 1))
)


@click.command("stat", cls=Leaf)
@click.argument("name", metavar="[POOL]", type=POOL, required=False)
@click.option("--classes", is_flag=True, help="Also show the size classes of the pool's allocator.")
@pass_session
def stat(session: Session, name: str | None, classes: bool) -> None:
    """Show all statistics of the store or of a pool."""
    if name is None:
        status = session.target.status()
        if not status.store:
            raise Failed(
                "only administrators may see the store's statistics; `tmem stat POOL` shows those of your pools"
            )
        _store(session, status)
    else:
        _pool(session, session.target.pool(name), classes)


@click.command("version", cls=Leaf)
@pass_session
def version(session: Session) -> None:
    """Show the versions of this command and of the server."""
    session.output.say(f"tmem {tmem.__version__}")
    server = session.target.status().version
    session.output.say(f"{'tmemd' if session.target.served else 'engine'} {server} at {session.address}")
    if session.output.as_json:
        session.output.document({"tmem": tmem.__version__, "server": server})


def _store(session: Session, status: Status) -> None:
    if session.output.as_json:
        session.output.document(
            {
                "store": status.store,
                "daemon": status.daemon,
                "version": status.version,
                "arena": status.arena,
                "accept_threshold_percent": status.accept_threshold,
                "client": status.client,
                "administrator": status.administrator,
            }
        )
        return
    used, memory = status.store["used_bytes"], status.store["memory_bytes"]
    where = status.arena or "private memory"
    session.output.say(f"{session.address}: {text.size(used)} of {text.size(memory)} in {text.printable(where)}")
    if status.client:
        session.output.say(
            f"you are {text.printable(status.client)!r}{', an administrator' if status.administrator else ''}"
        )
    groups = grouped(status.store)
    if status.daemon:
        groups["Daemon"] = [(name, value, unit_of(name), "") for name, value in sorted(status.daemon.items())]
    _show(session, groups)


def _pool(session: Session, found: PoolView, with_classes: bool) -> None:
    if session.output.as_json:
        session.output.document(found.as_dict())
        return
    state = "frozen" if found.frozen else "accepts puts"
    session.output.say(f"{text.printable(found.name)}: {found.settings['kind']}, {found.settings['codec']}, {state}")
    numbers = {name: value for name, value in found.stats.items() if isinstance(value, int)}
    _show(session, grouped(numbers))
    classes = found.stats["classes"]
    if classes and with_classes:
        session.output.say("\nSize classes (bytes, objects, frames)", "bold")
        rows = [
            [
                str(one["size"]),
                text.count(one["objects"]),
                text.count(one["capacity"]),
                text.percent(one["objects"], one["capacity"]),
                text.count(one["zspages"]),
                text.count(one["freeable_frames"]),
            ]
            for one in classes
        ]
        session.output.table(_CLASSES, rows)


def _show(session: Session, groups: dict[str, list[tuple[str, int, str, str]]]) -> None:
    sections = {
        group: [[name, *_shown(value, unit), about] for name, value, unit, about in entries]
        for group, entries in groups.items()
    }
    session.output.sections(_COLUMNS, sections)


def _shown(value: int, unit: str) -> tuple[str, str, str]:
    """Value, unit and the exact number where the value is not."""
    if unit == "yes/no":
        return ("yes" if value else "no"), "", ""
    if unit == "bytes":
        number, _, scale = text.size(value).partition(" ")
        return number, scale, f"{value:,}" if scale != "B" else ""
    number, _, scale = text.count(value).partition(" ")
    return number, f"{scale} {unit}".strip(), f"{value:,}" if scale else ""


COMMANDS = (stat, version)
