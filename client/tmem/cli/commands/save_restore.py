"""`tmem save` and `tmem restore`: a pool's persistent pages to a file, and back."""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from tmem.cli.archive.exports import PREFIX
from tmem.cli.archive.format import Reader
from tmem.cli.archive.restore import Restored, destination
from tmem.cli.archive.restore import restore as restore_pages
from tmem.cli.archive.save import MOST_PASSES
from tmem.cli.archive.save import save as save_pages
from tmem.cli.archive.sets import restore_all, save_all
from tmem.cli.base import text
from tmem.cli.base.arguments import OUTPUT, POOL
from tmem.cli.base.failures import Failed, Misused, remedy
from tmem.cli.base.output_file import STANDARD, is_standard, replaces
from tmem.cli.base.session import Leaf, Session, pass_session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tmem.cli.archive.save import Saved
    from tmem.cli.base.target import PoolView

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("save", cls=Leaf)
@click.argument("pool", type=POOL, required=False)
@click.argument("file", metavar="FILE|-", type=OUTPUT, required=False)
@click.option(
    "--all",
    "folder",
    metavar="FOLDER",
    type=FOLDER,
    help="All persistent pools and exports, to a new folder here.",
)
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="With --all: remove older ones, all but N.")
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    default=MOST_PASSES,
    show_default=True,
    help="At most so many, to keep up with what changes.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@pass_session
def save(
    session: Session,
    pool: str | None,
    file: str | None,
    folder: Path | None,
    keep: int | None,
    passes: int,
    force: bool,
) -> None:
    """Save the pages of a persistent pool to a file, while it is in use; or all pools and exports at once.

    Every page of the file was in the pool at some moment of the save, and what nobody touched meanwhile is as it was.
    An export is saved as it was at one instant.
    """
    if folder is not None:
        _only("--all FOLDER", "POOL, FILE or --force", pool, file, force or None)
        save_all(session, folder, keep, lambda view, to: _save(session, view, to, passes))
        return
    if pool is None or file is None or keep is not None:
        raise Misused("name POOL and FILE, or --all FOLDER with or without --keep N; see `tmem save --help`")
    if not force and replaces(file):
        raise Misused(f"{file} exists; --force replaces it")
    if is_standard(file):
        session.output.aside_only()
    target = session.target
    view = target.pool(pool)
    if view.settings["kind"] != "persistent":
        raise Failed(f"pool {pool!r} is ephemeral: its pages may be gone at any time, so there is nothing to save")
    done = _save(session, view, file, passes)
    if session.output.as_json:
        session.output.document({"pool": pool, "file": str(file), **asdict(done)})
    session.output.say(
        f"saved {text.quantity(done.pages, 'page')} of {text.printable(pool)!r}: {text.size(done.bytes)}"
    )
    if done.paused is not None:
        session.output.say(f"it is the device of one instant; its clients waited {done.paused * 1e3:.1f} ms for it")
    if done.changed:
        session.output.say(
            f"{done.changed:,} changed meanwhile, seen in {text.quantity(done.passes, 'pass', 'passes')}"
        )
    if done.unsettled:
        session.output.say(f"the pool goes on changing: about {done.unsettled:,} pages may have changed since")
    if done.corrupt:
        raise Failed(f"{text.quantity(done.corrupt, 'page')} failed their checksum and are not in {file}")


@click.command("restore", cls=Leaf)
@click.argument("file", metavar="FILE|-", type=click.Path(exists=True, dir_okay=False, allow_dash=True), required=False)
@click.option("--all", "folder", metavar="FOLDER", type=FOLDER, help="What `save --all` saved there, the newest.")
@click.option("--as", "name", metavar="NAME", help="Under this name in place of the saved one: a pool, or an export.")
@click.option("--pool", help="To the pool of this name, an export's pages too: those alone.")
@click.option("--merge", is_flag=True, help="Put over what the pool or export holds.")
@pass_session
def restore(
    session: Session, file: str | None, folder: Path | None, name: str | None, pool: str | None, merge: bool
) -> None:
    """Put back a saved pool, or a saved export as an export. The file is checked as a whole before anything is put.

    An export lets nobody in while it is restored; one that a client has open is left alone.
    """
    if folder is not None:
        _only("--all FOLDER", "FILE, --as or --pool", file, name, pool)
        restore_all(session, folder, lambda one: _restore(session, one, None, None, merge))
        return
    if file is None:
        raise Misused("name FILE, or --all FOLDER; see `tmem restore --help`")
    if name is not None and pool is not None:
        raise Misused("--as and --pool exclude each other")
    done = _restore(session, file, name, pool, merge)
    if session.output.as_json:
        session.output.document(asdict(done))


def _only(given: str, others: str, *values: object) -> None:
    if any(value is not None for value in values):
        raise Misused(f"{given} goes without {others}")


def _save(session: Session, view: PoolView, file: str, passes: int) -> Saved:
    with session.output.progress(f"saving {text.printable(view.name)}", view.stats["pages"]) as progress:
        return save_pages(session.target, view, file, progress, passes)


def _restore(session: Session, file: str, name: str | None, pool: str | None, merge: bool) -> Restored:
    with seekable(file) as source:
        reader = Reader(source, "standard input" if file == STANDARD else file)
        totals = reader.check()
        saved: str = reader.header["pool"]
        if name is not None and saved.startswith(PREFIX):
            pool = PREFIX + name.removeprefix(PREFIX)
        into = pool or name or saved
        with destination(session.target, reader, into, merge, session.output.remark) as (opened, made):
            with session.output.progress(f"restoring {text.printable(into)}", totals.pages) as progress:
                done = restore_pages(reader, opened, made, progress)
            if done.refused:
                _refused(file, done)
    where = "" if done.made else ", which was there"
    session.output.say(f"put {text.quantity(done.put, 'page')} to {_called(done.pool)}{where}")
    return done


def _called(pool: str) -> str:
    kind, name = ("export", pool.removeprefix(PREFIX)) if pool.startswith(PREFIX) else ("pool", pool)
    return f"{kind} {text.printable(name)!r}"


def _refused(file: str, done: Restored) -> None:
    reasons = "; ".join(f"{count:,} for {remedy(reason, done.pool)}" for reason, count in done.refused.items())
    raise Failed(f"{text.quantity(sum(done.refused.values()), 'page')} of {file} were refused: {reasons}")


@contextmanager
def seekable(file: str) -> Iterator[BinaryIO]:
    """A file to be read twice; what comes through a pipe is kept in a temporary one meanwhile, which has no name."""
    with open(sys.stdin.fileno() if file == STANDARD else file, "rb", closefd=file != STANDARD) as source:
        if source.seekable():
            yield source
            return
        with tempfile.TemporaryFile() as kept:
            shutil.copyfileobj(source, kept, 1 << 20)
            yield kept


COMMANDS = (save, restore)
