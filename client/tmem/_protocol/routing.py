"""Which of a server's processes a connection uses. No socket, no clock.

A connection asks once, when it is first used, and stays with the worker that it is given: a worker's process has ended
before another takes its port, so that no message to it lands late. It asks again, at the address it was made with, only
when its worker does not answer, and moves only where nobody serves at the worker's port any more: a server that was
started again may have fewer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tmem._protocol.messages import DEADLINE_EXCEEDED, UNAVAILABLE, Failure

if TYPE_CHECKING:
    from tmem_proto.v1 import admin_pb2 as admin


class Placement:
    """The address of a connection, its worker's where there are several."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.address = home
        self.due = True
        """Whether the server is to be asked, at `home`."""

    def answered(self, reply: admin.ListWorkersResponse | Failure) -> Failure | None:
        """Take the answer to ListWorkers: `address` is where to go. A failure is returned where calls would meet it."""
        self.due = False
        if not isinstance(reply, Failure):
            ports = [worker.port for worker in reply.workers]
            if self._port not in ports or self.address == self.home:
                self._move(ports, reply.suggested_port)
        elif reply.code in (UNAVAILABLE, DEADLINE_EXCEEDED) and self.address == self.home:
            self.due = True
            return reply
        return None

    def failed(self, failure: Failure) -> None:
        """A call failed."""
        if failure.code == UNAVAILABLE and self.address != self.home:
            self.due = True

    @property
    def _port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def _move(self, ports: list[int], suggested: int) -> None:
        if len(ports) > 1 and suggested in ports:
            self.address = f"{self.home.rpartition(':')[0]}:{suggested}"
        else:
            self.address = self.home
