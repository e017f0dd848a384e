"""The connection in use, and those that were left: each is closed when the last that began on it is done.

No locks: appending to a list, taking from it and removing from it are each one step. Whoever begins looks again whether
the connection is still the present one, so that one without users that was left has none later.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Generic, TypeVar


class Used:
    """A connection, and a token for each thing under way on it."""

    def __init__(self) -> None:
        self.users: list[None] = []


C = TypeVar("C", bound=Used)


class Present(Generic[C]):
    """Closing is for the caller: `done` and `move` give the connections that are now to be closed."""

    def __init__(self, connection: C) -> None:
        self.connection = connection
        self._left: list[C] = []

    def begin(self) -> C:
        """The present connection, in use until `done`."""
        while True:
            connection = self.connection
            connection.users.append(None)
            if connection is self.connection:
                return connection
            connection.users.pop()

    def done(self, connection: C) -> list[C]:
        connection.users.pop()
        return self._unused() if self._left else []

    def move(self, connection: C) -> list[C]:
        """Use another connection from now on."""
        left, self.connection = self.connection, connection
        if left is not connection:
            self._left.append(left)
        return self._unused()

    def all(self) -> list[C]:
        return [self.connection, *self._left]

    def _unused(self) -> list[C]:
        """Left connections that nobody uses; each is given to one caller."""
        found = []
        for connection in tuple(self._left):
            if not connection.users:
                with suppress(ValueError):  # another was given it
                    self._left.remove(connection)
                    found.append(connection)
        return found
