"""Errors as one line that says what to do, and the exit status they end with."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import click

import tmem
from tmem.cli.base.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NEAR = 3

_REMEDIES = {
    "quota": "the pool has reached its quota: flush pages, or raise it with `tmem pool quota {pool} SIZE`",
    "frozen": "the pool is frozen: thaw it with `tmem pool thaw {pool}`",
    "poor_compression": "the page compresses to more than the pool's max-zpage allows",
    "memory": "the store is full: flush pages, run `tmem compact`, or give tmemd more memory",
    "no_space": "the arena's file system is full: free some space there",
    "unavailable": "the server is unavailable",
}


def remedy(reason: str, pool: str) -> str:
    """What the reason of a refusal means, and the remedy."""
    return f"{reason}: {_REMEDIES.get(reason, 'unknown to this version of tmem').format(pool=pool)}"


class Failed(click.ClickException):
    """The command failed: exit status 1."""

    exit_code = 1

    def show(self, file: object = None) -> None:  # noqa: ARG002 the interface is click's
        click.echo(f"tmem: {printable(self.message)}", err=True)


class Misused(Failed):
    """The command line is invalid: exit status 2."""

    exit_code = 2


def explain(error: Exception, address: str, names: Callable[[], Sequence[str]]) -> Failed:
    """The failure to report for an error. `names` returns the names of the existing pools."""
    if isinstance(error, tmem.UnknownPoolError):
        return Failed(unknown_pool(error.name, names))
    if isinstance(error, tmem.UnknownExportError):
        return Failed(f"{error}: `tmem export ls` lists the exports")
    if isinstance(error, tmem.UnavailableError):
        return Failed(_away(str(error), address))
    if isinstance(error, tmem.DeniedError):
        return Failed(f"{address} does not allow that: {error}")
    if isinstance(error, tmem.TmemError):
        return Failed(str(error))
    if isinstance(error, OSError):
        return Failed(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    return Misused(str(error))


def unknown_pool(name: str, names: Callable[[], Sequence[str]]) -> str:
    """That there is no such pool, with similar names."""
    try:
        known = sorted(names())
    except tmem.TmemError:
        known = []
    near = difflib.get_close_matches(name, known, _NEAR, 0.5) or [one for one in known if name and name in one][:_NEAR]
    if near:
        return f"there is no pool {name!r}; did you mean {' or '.join(repr(one) for one in near)}?"
    if known:
        return f"there is no pool {name!r}; `tmem pool ls` lists all {len(known)}"
    return f"there is no pool {name!r}, nor any other; create it with `tmem pool create {name}`"


def _away(why: str, address: str) -> str:
    reason = why.removeprefix(f"{address}: ")
    lowered = reason.lower()
    if any(word in lowered for word in ("resolution", "name or service", "lookup")):
        return f"cannot resolve the host of {address}: check --server (TMEM_SERVER)"
    if any(word in lowered for word in ("handshake", "ssl_error", "certificate")):
        return f"the TLS handshake with {address} failed: check --ca, --cert and --key: {reason}"
    if "socket closed" in lowered:
        return f"{address} closed the connection: does it use TLS? Give --ca, and --cert and --key if it asks for them"
    if any(word in lowered for word in ("refused", "failed to connect", "unreachable", "tried again", "no route")):
        return (
            f"nothing answers at {address}: is tmemd running? Start it, or choose another with --server (TMEM_SERVER)"
        )
    if any(word in lowered for word in ("deadline", "no answer")):
        return f"{address} did not answer in time: allow more time with --timeout SECONDS"
    return f"{address} cannot be reached: {reason}"
