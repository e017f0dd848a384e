"""`tmem save` and `tmem restore`: a pool's persistent pages to a file, and back."""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, BinaryIO

import click

from tmem.cli import text
from tmem.cli.arguments import OUTPUT, POOL
from tmem.cli.failures import Failed, Misused, remedy
from tmem.cli.outfile import STANDARD, is_standard, replaces
from tmem.cli.pagesfile import Reader
from tmem.cli.restoring import pool_for
from tmem.cli.restoring import restore as restore_pages
from tmem.cli.saving import MOST_PASSES
from tmem.cli.saving import save as save_pages
from tmem.cli.session import Leaf, Session, pass_session

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command("save", cls=Leaf)
@click.argument("pool", type=POOL)
@click.argument("file", metavar="FILE|-", type=OUTPUT)
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    default=MOST_PASSES,
    show_default=True,
    help="At most so many, to keep up with what changes.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@pass_session
def save(session: Session, pool: str, file: str, passes: int, force: bool) -> None:
    """Save the pages of a persistent pool to a file, while the pool is in use.

    Every page of the file was in the pool at some moment of the save, and what nobody touched meanwhile is as it was.
    """
    if not force and replaces(file):
        raise Misused(f"{file} exists; --force replaces it")
    if is_standard(file):
        session.output.aside_only()
    target = session.target
    view = target.pool(pool)
    if view.settings["kind"] != "persistent":
        raise Failed(f"pool {pool!r} is ephemeral: its pages may be gone at any time, so there is nothing to save")
    with session.output.progress(f"saving {text.printable(pool)}", view.stats["pages"]) as progress:
        done = save_pages(target, view, file, progress, passes)
    if session.output.as_json:
        session.output.document({"pool": pool, "file": str(file), **asdict(done)})
    session.output.say(
        f"saved {text.quantity(done.pages, 'page')} of {text.printable(pool)!r}: {text.size(done.bytes)}"
    )
    if done.changed:
        session.output.say(
            f"{done.changed:,} changed meanwhile, seen in {text.quantity(done.passes, 'pass', 'passes')}"
        )
    if done.unsettled:
        session.output.say(f"the pool goes on changing: about {done.unsettled:,} pages may have changed since")
    if done.corrupt:
        raise Failed(f"{text.quantity(done.corrupt, 'page')} failed their checksum and are not in {file}")


@click.command("restore", cls=Leaf)
@click.argument("file", metavar="FILE|-", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--pool", help="Restore to this pool; else to the one of the saved name.")
@click.option("--merge", is_flag=True, help="Put over what the pool holds.")
@pass_session
def restore(session: Session, file: str, pool: str | None, merge: bool) -> None:
    """Put back the pages of a saved pool. The file is checked as a whole before anything is put."""
    with seekable(file) as source:
        reader = Reader(source, "standard input" if file == STANDARD else file)
        totals = reader.check()
        opened, made = pool_for(session.target, reader, pool or reader.header["pool"], merge)
        with session.output.progress(f"restoring {text.printable(opened.name)}", totals.pages) as progress:
            done = restore_pages(reader, opened, made, progress)
    if session.output.as_json:
        session.output.document(asdict(done))
    into = "" if done.made else ", which was there"
    session.output.say(f"put {text.quantity(done.put, 'page')} to pool {text.printable(done.pool)!r}{into}")
    if done.refused:
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
