"""Reserved names of pools: those of exports, and the daemon's own."""

EXPORTS = "export/"
"""Prefix of the pools of exports."""
CATALOGUE = ".exports"
SNAPSHOTS = ".save/"
"""Prefix of the pools of snapshots."""


def is_reserved(pool: str) -> bool:
    """Whether a name is reserved for exports or the daemon."""
    return is_the_daemons(pool) or pool.startswith(EXPORTS)


def is_the_daemons(pool: str) -> bool:
    """Whether a pool belongs to the daemon, and nobody else may change it."""
    return pool.startswith(".")
