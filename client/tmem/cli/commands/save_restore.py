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
    help="Save all persistent pools and exports to a new folder in FOLDER.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --all: keep the newest N folders and remove older ones.",
)
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    default=MOST_PASSES,
    show_default=True,
    help="The most passes over a pool that keeps changing.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
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
    """Save a persistent pool or an export to a file while it is in use, or all of them at once.

    An export (`export/NAME`) is saved as it was at one instant. Pages of other pools are saved as they were at some
    moment during the save.
    """
    if folder is not None:
        _only("--all FOLDER", "POOL, FILE or --force", pool, file, force or None)
        save_all(session, folder, keep, lambda view, to: _save(session, view, to, passes))
        return
    if pool is None or file is None or keep is not None:
        raise Misused("expected POOL and FILE, or --all FOLDER, optionally with --keep N; see `tmem save --help`")
    if not force and replaces(file):
        raise Misused(f"{file} exists; replace it with --force")
    if is_standard(file):
        session.output.aside_only()
    target = session.target
    view = target.pool(pool)
    if view.settings["kind"] != "persistent":
        raise Failed(
            f"pool {pool!r} is ephemeral, and its pages may vanish at any time: only persistent pools can be saved"
        )
    done = _save(session, view, file, passes)
    if session.output.as_json:
        session.output.document({"pool": pool, "file": str(file), **asdict(done)})
    session.output.say(
        f"saved {text.quantity(done.pages, 'page')} of {text.printable(pool)!r}: {text.size(done.bytes)}"
    )
    if done.paused is not None:
        session.output.say(
            f"the file is the device at one instant; its clients were paused for {done.paused * 1e3:.1f} ms"
        )
    if done.changed:
        session.output.say(
            f"{done.changed:,} changed during the save, which took {text.quantity(done.passes, 'pass', 'passes')}"
        )
    if done.unsettled:
        session.output.say(f"the pool keeps changing: about {done.unsettled:,} pages may have changed since")
    if done.corrupt:
        raise Failed(f"{text.quantity(done.corrupt, 'page')} failed their checksum and are missing from {file}")


@click.command("restore", cls=Leaf)
@click.argument("file", metavar="FILE|-", type=click.Path(exists=True, dir_okay=False, allow_dash=True), required=False)
@click.option(
    "--all", "folder", metavar="FOLDER", type=FOLDER, help="Restore the newest set that `save --all` saved there."
)
@click.option("--as", "name", metavar="NAME", help="Restore under this name instead of the saved one.")
@click.option("--pool", help="Restore to this pool, also the pages of an export.")
@click.option("--merge", is_flag=True, help="Overwrite pages of a pool or export that holds some.")
@pass_session
def restore(
    session: Session, file: str | None, folder: Path | None, name: str | None, pool: str | None, merge: bool
) -> None:
    """Restore a saved pool or export. The whole file is checked before anything is written.

    An export admits no clients while it is restored; one that is in use is left alone.
    """
    if folder is not None:
        _only("--all FOLDER", "FILE, --as or --pool", file, name, pool)
        restore_all(session, folder, lambda one: _restore(session, one, None, None, merge))
        return
    if file is None:
        raise Misused("expected FILE, or --all FOLDER; see `tmem restore --help`")
    if name is not None and pool is not None:
        raise Misused("--as and --pool cannot be combined")
    done = _restore(session, file, name, pool, merge)
    if session.output.as_json:
        session.output.document(asdict(done))


def _only(given: str, others: str, *values: object) -> None:
    if any(value is not None for value in values):
        raise Misused(f"{given} cannot be combined with {others}")


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
    where = "" if done.made else " (existing)"
    session.output.say(f"restored {text.quantity(done.put, 'page')} to {_called(done.pool)}{where}")
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
