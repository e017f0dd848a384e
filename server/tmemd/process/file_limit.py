"""Open files: each connection is one, so the process may have as many as the system allows."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from tmemd.base.errors import ConfigError
from tmemd.base.logs import log

if TYPE_CHECKING:
    from tmemd.config.settings import Config

OWN = 64
"""Files that the daemon needs beside connections: arena, certificates, metrics, control lines, event loops."""


def raise_limit(config: Config) -> None:
    """Raise the soft limit to the hard one, for this process and its workers, and say so where that is still little.

    Every call and stream that may be under way can come on a connection of its own.

    Raises:
        ConfigError: There are too few for the daemon itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            log.warning("the limit of open files stays %d: %s", soft, error)
    needed = config.max_calls + OWN
    if config.nbd:
        needed += 2 * (config.nbd_connections + config.nbd_handshakes)
    if soft != resource.RLIM_INFINITY and soft < OWN:
        raise ConfigError(
            f"only {soft} files can be open, and the daemon itself needs {OWN}: raise the limit of open files to "
            f"{needed} or more (LimitNOFILE, ulimit -n)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        log.warning(
            "only %d files can be open, and max_calls is %d: raise the limit of open files to %d or more (LimitNOFILE, "
            "ulimit -n), or connections wait unserved",
            soft,
            config.max_calls,
            needed,
        )
