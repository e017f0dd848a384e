"""The command `tmemd`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import tmemd.polling  # noqa: F401 - before anything that imports gRPC
from tmemd import __version__
from tmemd.config import OPTIONS, dump, load
from tmemd.descriptors import raise_limit
from tmemd.errors import ConfigError, TmemdError, WorkerError
from tmemd.logs import log_to_stderr
from tmemd.notify import notify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tmemd.config import Config

NULL = "PAGES ARE NOT KEPT: with --store null puts are dropped and gets answer zeros, to measure all but the store"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; its exit status. 2: settings, an address or an arena that are no use; 1: workers keep dying."""
    given = vars(_parser().parse_args(arguments))
    path, print_config = given.pop("config", None), given.pop("print_config", False)
    log_to_stderr()
    try:
        config = load(given, os.environ, path)
        if print_config:
            sys.stdout.write(dump(config))
            return 0
        raise_limit(config)
        _run(config)
    except WorkerError as error:
        print(f"tmemd: {error}", file=sys.stderr)
        return 2 if error.tries == 1 else 1
    except (ConfigError, TmemdError, ValueError) as error:
        print(f"tmemd: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tmemd",
        description="Serve spare memory as a compressed page store over gRPC.",
        epilog="Settings may also stand in the file, with underscores, and in the environment, as TMEMD_NAME.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"tmemd {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    parser.add_argument("--print-config", action="store_true", help="print the settings as such a file, and end")
    for name, option in OPTIONS.items():
        if option.metadata["file_only"]:
            continue
        flag, about = "--" + name.replace("_", "-"), option.metadata["about"].replace("%", "%%")
        if option.type in (bool, "bool"):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=about)
        elif name == "nbd":
            parser.add_argument(flag, action="append", metavar="ADDRESS", help=about)
        elif name == "inject":
            parser.add_argument(flag, action="append", nargs="?", const="", metavar="INJECTION", help=about)
        else:
            parser.add_argument(flag, metavar="VALUE", help=about)
    return parser


def _run(config: Config) -> None:
    """Serve until asked to stop. Each way imports only what it needs."""
    if config.workers > 1:
        from tmemd.supervisor import supervise

        asyncio.run(
            supervise(config, lambda workers: _announce(config, workers.metrics_url, workers.addresses, config.nbd))
        )
    else:
        import uvloop

        from tmemd.daemon import serve

        uvloop.run(
            serve(
                config,
                lambda daemon: _announce(config, daemon.metrics_url, [daemon.address], daemon.exports.addresses),
            )
        )


def _announce(config: Config, metrics_url: str | None, addresses: Sequence[str], exports: Sequence[str]) -> None:
    """The line `listening on` is the last: calls are answered."""
    first, *others = addresses
    where = config.arena or "private memory, gone when the daemon ends"
    print(f"tmemd {__version__}: " + (NULL if config.store == "null" else f"{config.memory >> 20} MiB in {where}"))
    if metrics_url:
        print(f"metrics on {metrics_url}")
    if exports:
        print(f"exports on {', '.join(exports)}")
    if config.inject is not None:
        print("CALLS MAY BE DELAYED OR FAILED ON PURPOSE (--inject):", *config.inject)
    print(_trust(config))
    if others:
        print(f"{len(others)} more workers on {', '.join(others)}")
    print(f"listening on {first}", flush=True)
    notify("READY=1")


def _trust(config: Config) -> str:
    if config.tls_client_ca is not None:
        return "TLS: clients are known by their certificates"
    if config.tls_cert is not None:
        return "TLS without client certificates: clients are local or network, by their address"
    return "no TLS: whoever reaches the address can read and change every page"
