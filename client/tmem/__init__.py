"""tmem: spare memory as a fast, compressed page store.

```python
with tmem.open(memory="256MiB") as store:
    pool = store.pool("swap0", kind="persistent")
    pool.put(1, {7: page, 8: page})  # {7: Outcome(stored=True, ...), 8: ...}
    pool.get(1, [7, 8, 9])  # {7: b"...", 8: b"..."}: 9 was a miss
```
"""

from tmem._files.cached_file import CachedFile, open_cached
from tmem._files.stats import FileStats
from tmem._model.errors import (
    ArenaError,
    ClosedError,
    CorruptPageError,
    DeniedError,
    EngineMissingError,
    ExhaustedError,
    InternalError,
    LostPageError,
    MismatchError,
    TmemError,
    UnavailableError,
    UnknownExportError,
    UnknownPoolError,
)
from tmem._model.oid import oid
from tmem._model.outcome import Outcome, Outcomes
from tmem._open import connect, open
from tmem._pool import Pool
from tmem._protocol.connection import ClientStats
from tmem._store import Store
from tmem._transport.tls import Tls
from tmem.adapters.cleancache import Cleancache
from tmem.adapters.frontswap import Frontswap

__version__: str

__all__ = [
    "ArenaError",
    "CachedFile",
    "Cleancache",
    "ClientStats",
    "ClosedError",
    "CorruptPageError",
    "DeniedError",
    "EngineMissingError",
    "ExhaustedError",
    "FileStats",
    "Frontswap",
    "InternalError",
    "LostPageError",
    "MismatchError",
    "Outcome",
    "Outcomes",
    "Pool",
    "Store",
    "Tls",
    "TmemError",
    "UnavailableError",
    "UnknownExportError",
    "UnknownPoolError",
    "connect",
    "oid",
    "open",
    "open_cached",
]


def __getattr__(name: str) -> str:
    """The version of the distribution, read only when it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tmem")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
