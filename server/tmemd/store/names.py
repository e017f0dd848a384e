"""Names of pools that clients cannot have: those of exports, and the daemon's own."""

EXPORTS = "export/"
"""What the name of an export's pool begins with."""
CATALOGUE = ".exports"
SNAPSHOTS = ".save/"
"""What the name of a snapshot's pool begins with."""


def is_reserved(pool: str) -> bool:
    """Whether a pool's name is one that clients cannot have: an export's, or the daemon's own."""
    return is_the_daemons(pool) or pool.startswith(EXPORTS)


def is_the_daemons(pool: str) -> bool:
    """Whether a pool is the daemon's own, whose pages nobody else changes."""
    return pool.startswith(".")
