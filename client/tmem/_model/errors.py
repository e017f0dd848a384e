"""What can go wrong, as one tree. A miss, a refusal and an eviction are outcomes, and not in it.

TmemError
├── ClosedError          the store was closed
├── MismatchError        the arena or the pool exists with other settings; the message names the difference
├── UnknownPoolError     no pool of that name, or it was destroyed
├── UnknownExportError   no export of that name
├── ExhaustedError       a fixed table of the arena is full: pools, objects
├── ArenaError           not an arena, another version, damaged, or the operating system refused
├── CorruptPageError     a persistent page failed its checksum; carries the good pages of the batch
├── LostPageError        the only copy of a page is gone from the store (frontswap)
├── UnavailableError     the server cannot be reached, or did not answer in time, or (shm://) a frozen process holds a
│                        lock: what was asked may have happened
├── DeniedError          the server does not let this client do that
├── InternalError        a fault in the engine itself
└── EngineMissingError   the native part is not installed (an ImportError too)

Arguments that make no sense raise `TypeError` or `ValueError` before anything is touched. The classes are plain Python,
so that they exist without the native part; the engine is handed this module and raises them itself.
"""

from collections.abc import Sequence


class TmemError(Exception):
    """Any error of a store."""


class ClosedError(TmemError):
    """The store was closed."""


class MismatchError(TmemError):
    """The arena or the pool exists with other settings."""


class UnknownPoolError(TmemError):
    """No pool has this name, or the pool was destroyed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"pool {self.name!r} does not exist"


class UnknownExportError(TmemError):
    """No export has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"export {self.name!r} does not exist"


class ExhaustedError(TmemError):
    """A table of the arena whose size is fixed is full."""


class ArenaError(TmemError):
    """The arena cannot be used: `path` is its file (empty for a private one), `why` the reason."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = str(path)
        self.why = why

    def __str__(self) -> str:
        return f"arena {self.path or '(private)'}: {self.why}"


class CorruptPageError(TmemError):
    """Persistent pages whose stored bytes fail their checksum.

    `indices` are the bad ones; `pages` holds the others that the call would have returned, by index.
    """

    def __init__(self, pages: dict[int, bytes], indices: Sequence[int]) -> None:
        super().__init__(pages, indices)
        self.pages = pages
        self.indices = tuple(indices)

    def __str__(self) -> str:
        return f"pages failed their checksum: {', '.join(map(str, self.indices))}"


class LostPageError(TmemError):
    """The only copy of a page is gone from the store. `pages` holds those that the call took out all the same."""

    def __init__(self, message: str, pages: dict[int, bytes] | None = None) -> None:
        super().__init__(message, pages or {})
        self.pages = pages or {}

    def __str__(self) -> str:
        return str(self.args[0])


class UnavailableError(TmemError):
    """The server cannot be reached, or did not answer in time; or (`shm://`) a process that is frozen holds a lock.

    A put or flush that fails so may have been done, for some of its pages.
    """


class DeniedError(TmemError):
    """The server does not let this client do that."""


class InternalError(TmemError):
    """A fault in the engine, which the store outlived. Please report it."""


class EngineMissingError(TmemError, ImportError):
    """The native part, `tmem_engine`, is not installed: only remote stores can be used."""
