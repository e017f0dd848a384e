"""`tmem put`, `get` and `flush`: files in a pool."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, BinaryIO

import click

from tmem.cli.archive.stored_file import RefusedError, file_chunks, put_file, read_label, remove_file
from tmem.cli.base import text
from tmem.cli.base.arguments import OUTPUT, POOL
from tmem.cli.base.failures import Failed, remedy
from tmem.cli.base.output_file import BY_UMASK, STANDARD, is_standard, writing
from tmem.cli.base.session import Leaf, Session, pass_session

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tmem.cli.archive.stored_file import Label
    from tmem.cli.base.target import PoolView


@click.command("put", cls=Leaf)
@click.argument("pool", type=POOL)
@click.argument("name")
@click.argument("file", metavar="FILE|-", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@pass_session
def put(session: Session, pool: str, name: str, file: str) -> None:
    """Store a file in a pool under a name, replacing any file of that name; - is standard input."""
    before = session.target.pool(pool)
    opened = session.target.store.find_pool(pool)
    with _source(file) as source:
        total = None if file == STANDARD else -(-os.fstat(source.fileno()).st_size // opened.page_size)
        with session.output.progress(f"putting {text.printable(name)}", total) as done:
            remove_file(opened, name)
            begun = session.target.pool(pool)
            try:
                label = put_file(opened, name, source, done)
            except RefusedError as error:
                raise Failed(f"{error}: {remedy(error.reason, pool)}; nothing of the file was kept") from None
    _shrunk(session, label, before.page_size, begun, session.target.pool(pool))


@click.command("get", cls=Leaf)
@click.argument("pool", type=POOL)
@click.argument("name")
@click.option(
    "-o", "--output", metavar="FILE|-", type=OUTPUT, default=STANDARD, help="Write here; default: standard output."
)
@pass_session
def get(session: Session, pool: str, name: str, output: str) -> None:
    """Retrieve a stored file. This removes it from an ephemeral pool that is neither shared nor inclusive."""
    with writing(output, BY_UMASK) as sink:
        opened = session.target.store.find_pool(pool)
        label = read_label(opened, name)
        if label is None:
            raise Failed(f"there is no file {name!r} in pool {pool!r}")
        pages = label.pages(opened.page_size)
        with session.output.progress(f"getting {text.printable(name)}", pages) as done:
            for chunk in file_chunks(opened, name, label):
                sink.write(chunk)
                done(-(-len(chunk) // opened.page_size))
    if not is_standard(output):
        if session.output.as_json:
            session.output.document({"pool": pool, "name": name, "bytes": label.length, "file": output})
        session.output.say(f"wrote {text.size(label.length)} to {text.printable(output)}")


@click.command("flush", cls=Leaf)
@click.argument("pool", type=POOL)
@click.argument("name")
@pass_session
def flush(session: Session, pool: str, name: str) -> None:
    """Remove a file from a pool; a missing file is no error."""
    found = remove_file(session.target.store.find_pool(pool), name)
    if session.output.as_json:
        session.output.document({"pool": pool, "name": name, "flushed_pages": found})
    gone = f"flushed {text.quantity(found, 'page')} of {text.printable(name)!r}"
    session.output.say(gone if found else f"{text.printable(name)!r} was not there")


def _source(file: str) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if file == STANDARD else open(file, "rb")


def _shrunk(session: Session, label: Label, page_size: int, before: PoolView, after: PoolView) -> None:
    """Report what was stored and its compressed size, which is certain only if nobody else changed the pool."""
    pages = label.pages(page_size) + 1
    changes = {name: after.stats[name] - before.stats[name] for name in ("pages", "puts_stored", "evicted_pages")}
    alone = changes == {"pages": pages, "puts_stored": pages, "evicted_pages": 0}
    payload = after.stats["payload_bytes"] - before.stats["payload_bytes"] if alone else None
    if session.output.as_json:
        session.output.document({"name": label.name, "bytes": label.length, "pages": pages, "payload_bytes": payload})
    says = f"stored {text.size(label.length)} as {text.quantity(pages, 'page')}"
    if payload is not None:
        shrunk = text.ratio(label.length, payload)
        session.output.say(f"{says}, {text.size(payload)} compressed, ratio {shrunk}")
    else:
        ratio = text.ratio(after.whole, after.stats["payload_bytes"])
        session.output.say(f"{says}; the ratio of the pool, which others use too, is {ratio}")


COMMANDS = (put, get, flush)
