"""The command tree: the options of `tmem` itself, its commands by section, and the handling of errors."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import click

import tmem
from tmem.cli.base import interrupts, streams
from tmem.cli.base.failures import Failed, Misused, explain
from tmem.cli.base.output_file import STANDARD_OUTPUT
from tmem.cli.base.session import DEFAULT_SERVER, Session, Tree, pass_session
from tmem.cli.commands import bench, clients, events, exports, files, maintenance, pools, san, save_restore, stat, top

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

_SECTIONS = {
    "Inspect": ("stat", "top", "events"),
    "Pools": ("pool",),
    "Block devices": ("export", "san"),
    "Files in a pool": ("put", "get", "flush"),
    "Whole pools": ("save", "restore"),
    "Maintenance": ("check", "compact", "relinquish", "client", "worker"),
    "Measure and test": ("bench", "inject", "version"),
}

_EPILOG = """\b
Examples:
  tmem stat                                 all statistics of the store
  tmem pool create photos --codec zstd --quota 2GiB
  tmem put photos cat.jpg ./cat.jpg         then: tmem get photos cat.jpg -o copy.jpg
  tmem --server ram1:7717 top               live; q ends it
  tmem save photos photos.tmem              then: tmem restore photos.tmem --pool copy
  tmem pool ls --json | jq '.[].name'

\b
Every option but --json can be set by a variable: TMEM_SERVER, TMEM_TIMEOUT, TMEM_CA, ...
Exit status: 0 success, 1 failure, 2 invalid command line, 130 interrupted.
"""


class Root(Tree):
    """`tmem` itself: its help has sections, and every failure is one line."""

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **settings)
        except click.UsageError as error:
            raise _in_one_line(error) from error
        except OSError as error:  # of `--help` and `--version`
            if error.errno == errno.EPIPE:
                raise
            raise Failed(f"{STANDARD_OUTPUT}: {error.strerror}") from error

    def invoke(self, ctx: click.Context) -> Any:
        with interrupts.in_order():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        session = ctx.ensure_object(Session)
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _in_one_line(error) from error
        except click.Abort:
            click.echo(err=True)
            raise Failed("aborted: nothing was changed") from None
        except KeyboardInterrupt:
            click.echo(err=True)
            raise click.exceptions.Exit(interrupts.INTERRUPTED) from None
        except MemoryError:
            raise Failed("out of memory") from None
        except (tmem.TmemError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE and error.filename in (None, STANDARD_OUTPUT):
                raise
            raise explain(error, session.address, lambda: _names(session)) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 click's
        for title, names in _SECTIONS.items():
            commands = [(name, self.commands[name].get_short_help_str(100)) for name in names]
            with formatter.section(title):
                formatter.write_dl(commands)


@click.group(
    cls=Root,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": None, "max_content_width": 100},
)
@click.option(
    "--server",
    metavar="ADDRESS",
    envvar="TMEM_SERVER",
    default=DEFAULT_SERVER,
    show_default=True,
    help="A tmemd at HOST:PORT (with TLS: grpcs://HOST:PORT), or a local arena, shm://PATH.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    envvar="TMEM_TIMEOUT",
    help="Time limit of a call; default 10, or 3600 for work on the whole store.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON with exact numbers; events and top print one object per line."
)
@click.option("--ca", type=_FILE, envvar="TMEM_CA", help="Use TLS and trust these certificate authorities.")
@click.option("--cert", type=_FILE, envvar="TMEM_CERT", help="The client's certificate.")
@click.option("--key", type=_FILE, envvar="TMEM_KEY", help="The private key of the certificate.")
@click.version_option(package_name="tmem", message="tmem %(version)s", help="Show the version of this command.")
@pass_session
@click.pass_context
def root(
    context: click.Context,
    session: Session,
    server: str,
    timeout: float | None,
    as_json: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Inspect and manage a tmem store."""
    options = session.options
    options.server, options.timeout, options.json = server, timeout, as_json
    options.ca, options.cert, options.key = ca, cert, key
    context.call_on_close(session.close)


for _module in (bench, maintenance, clients, exports, files, events, stat, save_restore, pools, san, top):
    for _command in _module.COMMANDS:
        root.add_command(_command)


def _in_one_line(error: click.UsageError) -> click.ClickException:
    """What is wrong with the command line and where to read more; requested help stays as it is."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    command = error.ctx.command_path if error.ctx else "tmem"
    return Misused(f"{error.format_message().rstrip('.')}; see `{command} --help`")


def _names(session: Session) -> list[str]:
    return [pool.name for pool in session.target.pools()]


def run() -> None:
    """The command, as a process."""
    try:
        root(prog_name="tmem")
    except SystemExit as ended:
        sys.exit(streams.end(ended.code) if isinstance(ended.code, int) else ended.code)
