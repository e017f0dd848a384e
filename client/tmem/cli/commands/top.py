"""`tmem top`: a store, live. On a terminal one screen is redrawn in place; q or Ctrl-C ends it."""

from __future__ import annotations

import select
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.live import Live
from rich.text import Text

import tmem
from tmem.cli.base.session import Leaf, Session, pass_session
from tmem.cli.commands.top_sample import Sample, as_dict, lines, of_pools

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUMMARY_LINES = 4
_KEYS = "q ends"


@click.command("top", cls=Leaf)
@click.option("--interval", type=click.FloatRange(min=0.05), default=1.0, show_default=True, metavar="SECONDS")
@click.option("--iterations", type=click.IntRange(min=1), metavar="N", help="Stop after N updates.")
@click.option("--once", is_flag=True, help="The same as --iterations 1.")
@pass_session
def top(session: Session, interval: float, iterations: int | None, once: bool) -> None:
    """Watch a store live: rates, hits, evictions by cause, footprint and compression of each pool.

    Rates are pages a second. EV.MEM, EV.QUOTA and EV.RELINQ are evictions for memory, by a quota, and to give memory
    back. On a terminal q or Ctrl-C ends it; in a pipe, or with --iterations, it prints one look after another.
    """
    times = 1 if once else iterations
    try:
        if times is None and sys.stdout.isatty() and sys.stdin.isatty() and not session.output.as_json:
            _live(session, interval)
        else:
            _print(session, interval, times)
    except KeyboardInterrupt:
        return


def look(session: Session) -> Sample:
    """How the store is now."""
    target = session.target
    clock = time.monotonic()
    pools = target.pools()
    latency = time.monotonic() - clock
    status = target.status()
    return Sample(clock, time.time(), latency, status if status.store else of_pools(pools), pools)


def _print(session: Session, interval: float, times: int | None) -> None:
    before = look(session)
    done = 0
    while times is None or done < times:
        time.sleep(interval)
        now = look(session)
        if session.output.as_json:
            session.output.line(as_dict(now, before))
        else:
            for line in lines(now, before, session.address, session.output.width):
                session.output.say(line)
            if times is None or done + 1 < times:
                session.output.say("")
        before, done = now, done + 1


def _live(session: Session, interval: float) -> None:
    console = session.output.console
    before, now = None, look(session)
    with _keys(), Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as screen:
        trouble = ""
        while True:
            shown = lines(now, before, session.address, console.width)[: console.height - 1]
            screen.update(_styled([*shown, trouble or _KEYS]), refresh=True)
            if _pressed(interval) in ("q", "Q", "\x03"):
                return
            try:
                before, now, trouble = now, look(session), ""
            except tmem.UnavailableError as error:
                trouble = f"away: {error}"


def _styled(shown: list[str]) -> Text:
    """Bold headings: the first line, and that of the table."""
    text = Text(no_wrap=True, overflow="crop")
    for number, line in enumerate(shown):
        style = "bold" if number in (0, _SUMMARY_LINES + 1) else "dim" if number == len(shown) - 1 else ""
        text.append(line + "\n", style)
    return text


@contextmanager
def _keys() -> Iterator[None]:
    """Keys are read as they are pressed, and not echoed."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed(seconds: float) -> str:
    """The key that is pressed within that time, if any; the end of input is as good as q."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return (sys.stdin.read(1) or "q") if ready else ""


COMMANDS = (top,)
