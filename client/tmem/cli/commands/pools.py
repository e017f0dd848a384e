"""`tmem pool`: pools, their settings and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tmem._model.settings import pool_settings
from tmem.cli.archive.exports import PREFIX as EXPORTS
from tmem.cli.base import text
from tmem.cli.base.arguments import CODECS, POOL, QUOTA, SIZE
from tmem.cli.base.output import Column
from tmem.cli.base.session import Session, Tree, pass_session

if TYPE_CHECKING:
    from tmem.cli.base.target import PoolView

_COLUMNS = (
    Column("POOL"),
    Column("KIND", rank=2),
    Column("CODEC", rank=4),
    Column("PAGES", right=True),
    Column("FOOTPRINT", right=True),
    Column("RATIO", right=True, rank=1),
    Column("QUOTA", right=True, rank=3),
    Column("HIT", right=True, rank=6),
    Column("EVICTED", right=True, rank=5),
    Column("WEIGHT", right=True, rank=9),
    Column("PAGE", right=True, rank=8),
    Column("OWNER", rank=7),
    Column("STATE"),
)


@click.group("pool", cls=Tree)
def pool() -> None:
    """Create, list, limit, freeze and remove pools."""


@pool.command("ls")
@pass_session
def ls(session: Session) -> None:
    """List the pools."""
    found = session.target.pools()
    if session.output.as_json:
        session.output.document([one.as_dict() for one in found])
    elif found:
        session.output.table(_COLUMNS, [_row(one) for one in found])
    else:
        session.output.say("no pools; create one with `tmem pool create NAME`")


@pool.command("show")
@click.argument("name", metavar="POOL", type=POOL)
@pass_session
def show(session: Session, name: str) -> None:
    """Show a pool's settings and contents; `tmem stat POOL` shows all statistics."""
    found = session.target.pool(name)
    if session.output.as_json:
        session.output.document(found.as_dict())
        return
    session.output.table((Column(text.printable(name)), Column("")), _facts(found))


@pool.command("create")
@click.argument("name", metavar="POOL")
@click.option("--kind", type=click.Choice(["persistent", "ephemeral"]), default="persistent", show_default=True)
@click.option("--codec", default="lz4", show_default=True, help=f"{CODECS}.")
@click.option("--allocator", type=click.Choice(["zsmalloc", "zbud"]), help="Default: zsmalloc, or zbud if ephemeral.")
@click.option("--page-size", type=SIZE, default="4KiB", show_default=True, help="4KiB to 256KiB, a power of two.")
@click.option("--quota", type=QUOTA, default="none", show_default=True, help="The most memory it may use.")
@click.option(
    "--weight",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Its share of memory among ephemeral pools.",
)
@click.option("--shared", is_flag=True, help="Ephemeral, for many clients: a get keeps the page.")
@click.option("--inclusive", is_flag=True, help="Ephemeral, for one client: a get keeps the page.")
@click.option("--max-zpage", type=SIZE, default=0, help="Refuse pages that compress to more than this.")
@click.option("--owner", default="", help="The client that owns it; default: you.")
@pass_session
def create(session: Session, /, name: str, **options: Any) -> None:
    """Create a pool."""
    made = session.target.create(name, pool_settings(**options))
    if session.output.as_json:
        session.output.document(made.as_dict())
    settings = made.settings
    session.output.say(f"created pool {text.printable(name)!r}: {settings['kind']}, {settings['codec']}")


@pool.command("rm")
@click.argument("name", metavar="POOL", type=POOL)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@pass_session
def rm(session: Session, name: str, yes: bool) -> None:
    """Remove a pool with all its pages."""
    found = session.target.pool(name)
    pages = text.quantity(found.stats["pages"], "page")
    if not yes:
        click.confirm(f"Remove pool {text.printable(name)!r} with {pages}?", abort=True, err=True)
    dropped = session.target.store.find_pool(name).destroy()
    if session.output.as_json:
        session.output.document({"pool": name, "dropped_pages": dropped})
    session.output.say(f"removed pool {text.printable(name)!r} with {text.quantity(dropped, 'page')}")


@pool.command("freeze")
@click.argument("name", metavar="POOL", type=POOL)
@pass_session
def freeze(session: Session, name: str) -> None:
    """Freeze a pool: puts are refused, and flush the page they would replace. Writes to an export wait.

    A save needs no freeze: `tmem save export/NAME` saves the device as it was at one instant.
    """
    session.target.store.find_pool(name).freeze()
    says = "is frozen: puts are refused, gets and flushes still work"
    if name.startswith(EXPORTS):
        says = f"is frozen: writes and trims wait for `tmem pool thaw {name}`, reads still work"
    _done(session, name, {"frozen": True}, says)


@pool.command("thaw")
@click.argument("name", metavar="POOL", type=POOL)
@pass_session
def thaw(session: Session, name: str) -> None:
    """Thaw a frozen pool."""
    session.target.store.find_pool(name).thaw()
    _done(session, name, {"frozen": False}, "accepts puts again")


@pool.command("quota")
@click.argument("name", metavar="POOL", type=POOL)
@click.argument("size", metavar="SIZE|none", type=QUOTA)
@pass_session
def quota(session: Session, name: str, size: int) -> None:
    """Set the most memory a pool may use, or `none`."""
    session.target.store.find_pool(name).quota = size
    found = session.target.pool(name)
    _done(session, name, {"quota": found.settings["quota"]}, _quota_says(found))


@pool.command("weight")
@click.argument("name", metavar="POOL", type=POOL)
@click.argument("weight", type=click.IntRange(min=1, max=2**32 - 1))
@pass_session
def weigh(session: Session, name: str, weight: int) -> None:
    """Set the weight of an ephemeral pool: its share of the memory."""
    session.target.store.find_pool(name).weight = weight
    _done(session, name, {"weight": weight}, f"has weight {weight}")


def _done(session: Session, name: str, found: dict[str, Any], says: str) -> None:
    if session.output.as_json:
        session.output.document({"pool": name, **found})
    session.output.say(f"pool {text.printable(name)!r} {says}")


def _quota_says(found: PoolView) -> str:
    limit, taken = found.settings["quota"], found.stats["footprint_bytes"]
    if not limit:
        return f"has no quota; it uses {text.size(taken)}"
    if taken <= limit:
        return f"has a quota of {text.size(limit)} and uses {text.size(taken)} of it"
    ends = "every put evicts pages" if found.settings["kind"] == "ephemeral" else "new pages are refused"
    return f"has a quota of {text.size(limit)} and uses {text.size(taken)}: until it is below, {ends}"


def _row(found: PoolView) -> list[str]:
    stats, settings = found.stats, found.settings
    return [
        text.printable(found.name),
        settings["kind"],
        settings["codec"],
        text.count(stats["pages"]),
        text.size(stats["footprint_bytes"]),
        text.ratio(found.whole, stats["footprint_bytes"]),
        text.size(settings["quota"]) if settings["quota"] else text.NONE,
        text.percent(stats["gets_hit"], stats["gets_hit"] + stats["gets_miss"]),
        text.count(stats["evicted_pages"]),
        str(settings["weight"]),
        text.size(found.page_size),
        text.printable(settings["owner"]),
        "frozen" if found.frozen else "",
    ]


def _facts(found: PoolView) -> list[list[str]]:
    stats, settings = found.stats, found.settings
    gets = [name for name in ("shared", "inclusive") if settings[name]]
    kind = settings["kind"] + (f", {gets[0]}" if gets else "")
    share = text.percent(stats["footprint_bytes"], settings["quota"])
    return [
        ["kind", kind],
        ["codec", settings["codec"]],
        ["allocator", settings["allocator"]],
        ["page size", text.size(found.page_size)],
        ["quota", f"{text.size(settings['quota'])}, {share} used" if settings["quota"] else "none"],
        ["weight", str(settings["weight"])],
        ["max zpage", text.size(settings["max_zpage"]) if settings["max_zpage"] else "none"],
        ["owner", text.printable(settings["owner"]) or text.NONE],
        ["state", "frozen" if found.frozen else "accepts puts"],
        ["pages", f"{stats['pages']:,}, {text.size(found.whole)} uncompressed"],
        ["compressed", f"{text.size(stats['payload_bytes'])}, ratio {text.ratio(found.whole, stats['payload_bytes'])}"],
        [
            "footprint",
            f"{text.size(stats['footprint_bytes'])}, ratio {text.ratio(found.whole, stats['footprint_bytes'])}",
        ],
    ]


COMMANDS = (pool,)
