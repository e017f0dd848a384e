"""Types of arguments: sizes, and names of pools, which the shell can complete."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

import tmem
from tmem._model.sizes import parse_size
from tmem.cli.base.session import DEFAULT_SERVER
from tmem.cli.base.target import Target

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_COMPLETION_SECONDS = 0.5


class SizeType(click.ParamType[int, Any]):
    """Bytes, or a number with a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value, param.human_readable_name.lower() if param else "size")
        except ValueError as error:
            self.fail(str(error), param, ctx)


class QuotaType(SizeType):
    """A size, or `none`."""

    name = "quota"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return 0 if value == "none" else super().convert(value, param, ctx)


class PoolName(click.ParamType[str, Any]):
    """The name of a pool, completed by asking the server."""

    name = "pool"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        from click.shell_completion import CompletionItem

        server = ctx.find_root().params.get("server") or os.environ.get("TMEM_SERVER") or DEFAULT_SERVER
        with (
            contextlib.suppress(tmem.TmemError, ValueError),
            tmem.connect(server, timeout=_COMPLETION_SECONDS) as store,
        ):
            names = [pool.name for pool in Target(store, server).pools()]
            return [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return []


SIZE = SizeType()
QUOTA = QuotaType()
POOL = PoolName()
OUTPUT = click.Path(dir_okay=False, readable=False, allow_dash=True)
"""A file to write; `tmem.cli.base.output_file` checks it."""

CODECS = "lz4, lz4:1 to 65537, lz4hc, lz4hc:3 to 12, zstd, zstd:-7 to 19, or raw"
