"""The daemon's errors, with the gRPC status of each. The engine is handed this module and raises from it.

TmemdError
├── ClosedError           the store was closed: the daemon is stopping
├── MismatchError         the arena or the pool exists with other settings; the message names the difference
├── UnknownPoolError      no pool of that name, or it was destroyed
├── OtherPoolError        the pool of that name is not the one of that id
├── PoolExistsError       a pool of that name exists
├── UnknownExportError    no export of that name
├── ExportExistsError     an export of that name exists
├── BusyError             the export is in use
├── DamagedExportError    the record of the export cannot be read
├── SnapshotError         the snapshot of an export has ended, and why
├── UnknownSessionError   no session has that id: the daemon restarted, or the session was idle for too long
├── UnauthenticatedError  the client's certificate does not identify it
├── DeniedError           the client may not do that
├── ExhaustedError        a fixed table of the arena is full
├── LimitError            a limit of the daemon is reached
├── ArenaError            not an arena, another version, damaged, or the operating system refused
├── UnavailableError      another process holds a lock of the arena and does not release it; nothing was changed
├── NotAllowedError       the daemon was not started with that allowed
├── InjectedError         injected on purpose, with its own status
├── RelayedError          worker 0's answer to another worker, with its own status
├── CorruptPageError      persistent pages failed their checksum (gets answer this as an outcome)
├── InternalError         an internal error of the engine
├── ConfigError           the configuration is invalid; never reaches the wire
└── WorkerError           a worker cannot serve; never reaches the wire

An invalid call is a `ValueError`.
"""

from collections.abc import Sequence

from grpc import StatusCode


class TmemdError(Exception):
    """The base of the daemon's errors."""


class ClosedError(TmemdError):
    """The store was closed."""


class MismatchError(TmemdError):
    """The arena or the pool exists with other settings."""


class UnknownPoolError(TmemdError):
    """No pool has this name, or the pool was destroyed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"pool {name!r} does not exist")


class OtherPoolError(TmemdError):
    """The pool of this name does not have this id: the pool of that id is gone."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"pool {name!r} is not pool {number}, which no longer exists")


class PoolExistsError(TmemdError):
    """A pool of this name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(f"pool {name!r} exists")


class UnknownExportError(TmemdError):
    """No export has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"export {name!r} does not exist")


class ExportExistsError(TmemdError):
    """An export of this name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(f"export {name!r} exists")


class BusyError(TmemdError):
    """The export is in use, or holds data that would be lost."""


class DamagedExportError(TmemdError):
    """The record of this export cannot be read, and why."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"the record of export {name!r} cannot be read: {why}; resize it, or remove it")


class SnapshotError(TmemdError):
    """The snapshot of an export has ended."""


class UnknownSessionError(TmemdError):
    """No session has this id."""

    def __init__(self) -> None:
        super().__init__("unknown session: open the pool again")


class UnauthenticatedError(TmemdError):
    """The client's certificate does not identify it."""


class DeniedError(TmemdError):
    """The client may not do that."""


class ExhaustedError(TmemdError):
    """A fixed-size table of the arena is full."""


class LimitError(TmemdError):
    """A limit of the daemon is reached."""


class ArenaError(TmemdError):
    """The arena cannot be used: its file (empty for a private one), and why."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"arena {path or '(private)'}: {why}")


class UnavailableError(TmemdError):
    """A lock of the arena could not be taken. `waited`: the full lock timeout has passed."""

    lock = -1
    waited = True


class NotAllowedError(TmemdError):
    """The daemon was not started with that allowed."""


class InjectedError(TmemdError):
    """An error injected into a call. `code` is the status to answer with."""

    def __init__(self, method: str, code: StatusCode, after: bool) -> None:
        done = "the call was carried out" if after else "nothing was done"
        super().__init__(f"injected into {method}; {done}")
        self.code = code


class RelayedError(TmemdError):
    """Worker 0's error for a call relayed from another worker. `code` is the status to answer with."""

    def __init__(self, code: StatusCode, why: str) -> None:
        super().__init__(why)
        self.code = code


class CorruptPageError(TmemdError):
    """Persistent pages whose stored bytes fail their checksum."""

    def __init__(self, pages: dict[int, bytes], indices: Sequence[int]) -> None:  # noqa: ARG002 the engine gives both
        super().__init__(f"pages failed their checksum: {', '.join(map(str, indices))}")


class InternalError(TmemdError):
    """An internal error of the engine, which the store survived."""


class ConfigError(TmemdError):
    """The configuration is invalid."""


class WorkerError(TmemdError):
    """A worker cannot serve: its number, how many of its processes have tried, and why."""

    def __init__(self, number: int, tries: int, why: str) -> None:
        super().__init__(
            f"worker {number} cannot serve{f' ({tries} processes have tried)' if tries > 1 else ''}: {why}"
        )
        self.tries = tries


STATUS: dict[type[Exception], StatusCode] = {
    ValueError: StatusCode.INVALID_ARGUMENT,
    ClosedError: StatusCode.UNAVAILABLE,
    MismatchError: StatusCode.FAILED_PRECONDITION,
    UnknownPoolError: StatusCode.NOT_FOUND,
    OtherPoolError: StatusCode.NOT_FOUND,
    PoolExistsError: StatusCode.ALREADY_EXISTS,
    UnknownExportError: StatusCode.NOT_FOUND,
    ExportExistsError: StatusCode.ALREADY_EXISTS,
    BusyError: StatusCode.FAILED_PRECONDITION,
    DamagedExportError: StatusCode.FAILED_PRECONDITION,
    SnapshotError: StatusCode.FAILED_PRECONDITION,
    UnknownSessionError: StatusCode.NOT_FOUND,
    UnauthenticatedError: StatusCode.UNAUTHENTICATED,
    DeniedError: StatusCode.PERMISSION_DENIED,
    ExhaustedError: StatusCode.RESOURCE_EXHAUSTED,
    LimitError: StatusCode.RESOURCE_EXHAUSTED,
    ArenaError: StatusCode.UNAVAILABLE,
    UnavailableError: StatusCode.UNAVAILABLE,
    NotAllowedError: StatusCode.FAILED_PRECONDITION,
    CorruptPageError: StatusCode.DATA_LOSS,
    InternalError: StatusCode.INTERNAL,
}
"""Errors and their gRPC statuses. Any other error is INTERNAL, without its text."""


def status_of(error: Exception) -> tuple[StatusCode, str]:
    """The status to answer an error with, and its text."""
    code = error.code if isinstance(error, InjectedError | RelayedError) else STATUS.get(type(error))
    return (StatusCode.INTERNAL, "an internal error; see the daemon's log") if code is None else (code, str(error))
