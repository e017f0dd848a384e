"""The command `tmemd`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import tmemd.process.grpc_polling  # noqa: F401 - before anything that imports gRPC
from tmemd import __version__
from tmemd.base.errors import ConfigError, TmemdError, WorkerError
from tmemd.base.log_streams import BackgroundWriter
from tmemd.base.logs import log, log_fatal, log_to_stderr
from tmemd.base.startup import ignore
from tmemd.config.settings import OPTIONS, dump, load, service_links
from tmemd.process.arena_lock import is_older
from tmemd.process.arena_memory import MemoryLimits, check, choose, detect, in_mib
from tmemd.process.file_limit import raise_limit
from tmemd.process.systemd import notify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tmemd.config.settings import Config

NULL = "PAGES ARE NOT KEPT: with --store null puts are dropped and gets answer zeros, to measure all but the store"

# What the daemon needs besides the SDK, by the module it imports.
_PACKAGES = {
    "grpc_channelz": "grpcio-channelz",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "prometheus_client": "prometheus-client",
    "uvloop": "uvloop",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; its exit status.

    2: unusable settings, address or arena; 1: workers keep dying; 130: SIGINT before it served.
    """
    given = vars(_parser().parse_args(arguments))
    path, print_config = given.pop("config", None), given.pop("print_config", False)

    def read() -> Config:
        return _with_memory(load(given, os.environ, path))

    try:
        said = load(given, os.environ, path)
        config = _with_memory(said)
        if print_config:
            sys.stdout.write(dump(config))
            sys.stdout.flush()
            return 0
        log_to_stderr(style=config.log_format, level=config.log_level)
        if links := service_links(os.environ):
            log.info("ignored %s: not settings, but variables of a service named tmemd", ", ".join(links))
        if missing := [package for module, package in _PACKAGES.items() if find_spec(module) is None]:
            raise TmemdError(f"not installed: pip install {' '.join(missing)}")
        _check_memory(config, chosen=not said.memory)
        raise_limit(config)
        return _run(config, read)
    except WorkerError as error:
        log_fatal(str(error))
        return 2 if error.tries == 1 else 1
    except (ConfigError, TmemdError, ValueError, OSError) as error:
        log_fatal(str(error))
        return 2


def _with_memory(config: Config) -> Config:
    return config if config.memory else replace(config, memory=_chosen(config.arena)[0])


@cache
def _chosen(arena: str | None) -> tuple[int, str]:
    """The default memory, and why. Decided once: reloading the configuration does not change it."""
    if is_older(arena):  # another daemon may serve it: attaching now would migrate it
        quarter = choose(MemoryLimits(detect(None).machine, None))[0]
        return quarter, f"as {arena} is of an earlier version, which took a quarter of the machine's"
    if arena is not None and os.path.exists(arena):
        from tmemd.store.engine_store import memory_of

        if held := memory_of(arena):
            return held, f"as {arena} was made with"
    return choose(detect(arena))


def _check_memory(config: Config, chosen: bool) -> None:
    """Log how much memory is used, and warn where there may be less."""
    if config.store == "null":
        return
    if chosen:
        memory, why = _chosen(config.arena)
        log.info("memory is not set: using %s, %s", in_mib(memory), why)
    for warning in check(detect(config.arena), config):
        log.warning("%s", warning)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tmemd",
        description="Serves spare memory as a compressed page store over gRPC and NBD.",
        epilog="Every setting can also be set in the file, with underscores, and in the environment, as TMEMD_NAME.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"tmemd {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings in force as such a file, and exit"
    )
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


def _run(config: Config, read: Callable[[], Config]) -> int:
    """Serve until asked to stop; the exit status. Each way imports only what it needs."""
    said = BackgroundWriter(1)
    try:
        if config.workers > 1:
            from tmemd.workers.supervisor import supervise

            return asyncio.run(
                supervise(
                    config, lambda each: _announce(said, config, each.metrics_url, each.addresses, config.nbd), read
                )
            )
        import uvloop

        from tmemd.app.daemon import serve

        return uvloop.run(
            serve(
                config,
                lambda each: _announce(said, config, each.metrics_url, [each.address], each.exports.addresses),
                read,
            )
        )
    finally:
        # The loop's handlers are gone, and a repeated signal must not kill a daemon that has stopped in order.
        ignore(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        said.flush()


def _announce(
    said: BackgroundWriter, config: Config, metrics_url: str | None, addresses: Sequence[str], exports: Sequence[str]
) -> None:
    """Print what is served. The line `listening on` is the last: calls are answered."""
    first, *others = addresses
    where = config.arena or "private memory, gone when the daemon ends"
    lines = [f"tmemd {__version__}: " + (NULL if config.store == "null" else f"{config.memory >> 20} MiB in {where}")]
    if metrics_url:
        lines.append(f"metrics on {metrics_url}")
    if exports:
        lines.append(f"exports on {', '.join(exports)}")
    if config.inject is not None:
        lines.append(" ".join(("CALLS MAY BE DELAYED OR FAILED ON PURPOSE (--inject):", *map(str, config.inject))))
    lines.append(_trust(config))
    if others:
        lines.append(f"{len(others)} more workers on {', '.join(others)}")
    lines.append(f"listening on {first}")
    said.write("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
    notify("READY=1")


def _trust(config: Config) -> str:
    if config.tls_client_ca is not None:
        return "TLS: clients are known by their certificates"
    if config.tls_cert is not None:
        return "TLS without client certificates: clients are local or network, by their address"
    return "no TLS: whoever reaches the address can read and change every page"
