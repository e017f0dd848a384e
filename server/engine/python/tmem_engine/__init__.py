"""The engine of tmem: a compressed page store in one shared-memory arena. Private to `tmem` and `tmemd`.

What everything does is written in `_native.pyi`.
"""

from tmem_engine._native import (
    Engine,
    EnginePool,
    NbdServer,
    NbdSnapshot,
    SanGateway,
    __version__,
    client_name,
    is_loopback,
    pack,
    set_lock_wait,
    unpack,
)

__all__ = [
    "Engine",
    "EnginePool",
    "NbdServer",
    "NbdSnapshot",
    "SanGateway",
    "__version__",
    "client_name",
    "is_loopback",
    "pack",
    "set_lock_wait",
    "unpack",
]
