"""Raises the open-file limit: each connection takes a file."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from tmemd.base.errors import ConfigError
from tmemd.base.logs import log

if TYPE_CHECKING:
    from tmemd.config.settings import Config

OWN = 64
"""Files that the daemon needs besides connections: arena, certificates, metrics, control channels, event loops."""


def raise_limit(config: Config) -> None:
    """Raise the soft limit to the hard one, for this process and its workers, and warn if that is still too low.

    Every call and stream in flight can have a connection of its own.

    Raises:
        ConfigError: The limit is too low for the daemon itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            log.warning("cannot raise the open-file limit of %d: %s", soft, error)
    needed = config.max_calls + OWN
    if config.nbd:
        needed += 2 * (config.nbd_connections + config.nbd_handshakes)
    if soft != resource.RLIM_INFINITY and soft < OWN:
        raise ConfigError(
            f"the open-file limit is {soft}, and the daemon itself needs {OWN}: raise the limit to "
            f"{needed} or more (LimitNOFILE, ulimit -n)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        log.warning(
            "the open-file limit is %d, and max_calls is %d: raise the limit to %d or more (LimitNOFILE, "
            "ulimit -n), or connections will wait",
            soft,
            config.max_calls,
            needed,
        )
