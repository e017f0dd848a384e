"""One run of the command: the options that all commands share, and the store, opened when it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tmem
from tmem.cli.base.output import Output
from tmem.cli.base.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_SERVER = "127.0.0.1:7717"
DEFAULT_TIMEOUT = 10.0
PATIENCE = 3600.0
"""Seconds allowed for work on a whole store, unless `--timeout` is given."""

_SHM = "shm://"


@dataclass
class Options:
    """The options of every command."""

    server: str = DEFAULT_SERVER
    timeout: float | None = None
    json: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


class Session:
    """A run of the command. The store is opened once and closed at the end."""

    def __init__(self) -> None:
        self.options = Options()
        self._opened: list[tmem.Store] = []

    @cached_property
    def output(self) -> Output:
        return Output(self.options.json)

    @property
    def address(self) -> str:
        return self.options.server

    @cached_property
    def target(self) -> Target:
        return self._open(DEFAULT_TIMEOUT)

    def patient(self) -> Target:
        """The target, for calls that may take long."""
        return self._open(PATIENCE)

    def connection(self, encoding: str) -> tmem.Store:
        """A connection of its own, whose pages travel so; an arena is the same store again."""
        if encoding not in ("lz4", "raw"):
            return self.target.store
        return self._connect(DEFAULT_TIMEOUT, encoding=encoding)

    def close(self) -> None:
        for store in self._opened:
            store.close()

    def _open(self, timeout: float) -> Target:
        """A connection that was seen to work: one that does not is an error at once, not after many tries."""
        target = Target(self._connect(timeout), self.address)
        target.probe()
        return target

    def _connect(self, timeout: float, **more: Any) -> tmem.Store:
        store = tmem.connect(self.address, timeout=self.options.timeout or timeout, tls=self.tls(), **more)
        self._opened.append(store)
        return store

    def tls(self) -> tmem.Tls | None:
        """What the options say of TLS, if they do."""
        options = self.options
        if self.address.startswith(_SHM) or not (options.ca or options.cert or options.key):
            return None
        return tmem.Tls(ca=options.ca, cert=options.cert, key=options.key)


pass_session = click.make_pass_decorator(Session, ensure=True)


class Leaf(click.Command):
    """A command. Every one takes `--server` and `--json`, which may also stand before it."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params += [
            click.Option(
                ["--server"],
                metavar="ADDRESS",
                expose_value=False,
                callback=_set("server"),
                help="As for `tmem` itself.",
            ),
            click.Option(
                ["--json"],
                is_flag=True,
                expose_value=False,
                callback=_set("json"),
                help="Print JSON with exact numbers.",
            ),
        ]


class Tree(click.Group):
    """Commands under one name."""

    command_class = Leaf
    group_class = type


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.ensure_object(Session).options, name, value)

    return callback
