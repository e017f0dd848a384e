"""The current connection, and retired ones: each of these is closed when its last user is done.

No locks: appending to a list, taking from it and removing from it are each one step. Whoever acquires a connection then
checks that it is still the current one, so that a retired one without users never gets any.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Generic, TypeVar


class Counted:
    """A connection, with a token for each of its users."""

    def __init__(self) -> None:
        self.users: list[None] = []


C = TypeVar("C", bound=Counted)


class Connections(Generic[C]):
    """The caller closes: `release` and `replace` return the connections that are to be closed now."""

    def __init__(self, connection: C) -> None:
        self.current = connection
        self._retired: list[C] = []

    def acquire(self) -> C:
        """The current connection, in use until `release`."""
        while True:
            connection = self.current
            connection.users.append(None)
            if connection is self.current:
                return connection
            connection.users.pop()

    def release(self, connection: C) -> list[C]:
        connection.users.pop()
        return self._unused() if self._retired else []

    def replace(self, connection: C) -> list[C]:
        """Use another connection from now on."""
        retired, self.current = self.current, connection
        if retired is not connection:
            self._retired.append(retired)
        return self._unused()

    def all(self) -> list[C]:
        return [self.current, *self._retired]

    def _unused(self) -> list[C]:
        """Retired connections that nobody uses; each is given to one caller."""
        found = []
        for connection in tuple(self._retired):
            if not connection.users:
                with suppress(ValueError):  # another was given it
                    self._retired.remove(connection)
                    found.append(connection)
        return found
