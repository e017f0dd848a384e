"""Two network namespaces, and between them a link that delays, reorders, duplicates, loses and cuts as it is told.

The link is two TUN devices whose packets a thread carries across: it takes root and TUN, and none of the queueing
disciplines that a kernel may lack. Programs are put into a namespace by what stands before their command line; Unix
sockets work across.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_SET_INTERFACE = 0x400454CA
_TUN_WITHOUT_HEADER = 0x1001
_PACKET = 65536
_NETWORK = 0x40000000
_numbers = itertools.count()


class Link:
    """What joins the namespaces `near` and `far`. Its settings hold for packets that come from now on."""

    def __init__(self, near: str, far: str, net: str, seed: int = 1) -> None:
        self.near, self.far = near, far
        self.near_address, self.far_address = f"{net}.1", f"{net}.2"
        self.delay = 0.0
        """Seconds that a packet takes, each way."""
        self.jitter = 0.0
        """Seconds that a packet may take more, at random: so one is overtaken by others."""
        self.duplicates = 0.0
        """The part of packets that arrive twice."""
        self.loss = 0.0
        """The part of packets that never arrive."""
        self.cut = False
        """No packet arrives; those that are on their way are lost."""
        self.carried = 0
        self.waiting = 0
        """Packets that are on their way."""
        self._dice = random.Random(seed)
        self._devices = [self._device(near, self.near_address, self.far_address)]
        self._devices.append(self._device(far, self.far_address, self.near_address))
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def inside(self, namespace: str) -> list[str]:
        """What stands before a command that is to run in a namespace."""
        return ["ip", "netns", "exec", namespace]

    def enter(self, namespace: str) -> None:
        """Put this thread into a namespace for good: sockets that it makes are there, whoever uses them then."""
        with open(f"/run/netns/{namespace}") as place:
            if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _NETWORK):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))

    def close(self) -> None:
        os.close(self._woken)
        self._thread.join()
        for opened in (self._wake, *self._devices):
            os.close(opened)

    def _device(self, namespace: str, address: str, peer: str) -> int:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        name = f"tmem{os.getpid() % 10000}-{next(_numbers)}"
        fcntl.ioctl(device, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _TUN_WITHOUT_HEADER))
        _ip("link", "set", name, "netns", namespace)
        _ip("-n", namespace, "addr", "add", address, "peer", peer, "dev", name)
        _ip("-n", namespace, "link", "set", name, "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        return device

    def _carry(self) -> None:
        near, far = self._devices
        other = {near: far, far: near}
        due: list[tuple[float, int, int, bytes]] = []
        while True:
            wait = max(due[0][0] - time.monotonic(), 0) if due else None
            ready, _, _ = select.select([*self._devices, self._wake], [], [], wait)
            if self._wake in ready:
                return
            for device in ready:
                packet = os.read(device, _PACKET)
                if self._dice.random() < self.loss:
                    continue
                for _ in range(2 if self._dice.random() < self.duplicates else 1):
                    when = time.monotonic() + self.delay + self.jitter * self._dice.random()
                    heapq.heappush(due, (when, next(_numbers), other[device], packet))
            while due and due[0][0] <= time.monotonic():
                _, _, device, packet = heapq.heappop(due)
                if not self.cut:
                    os.write(device, packet)
                    self.carried += 1
            self.waiting = len(due)


@contextmanager
def link() -> Iterator[Link]:
    """A link between two new namespaces; the test is skipped where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
        pytest.skip("a network of one's own needs root, ip and /dev/net/tun")
    number = next(_numbers)
    names = [f"tmem-{os.getpid()}-{number}-{side}" for side in ("near", "far")]
    with ExitStack() as stack:
        for name in names:
            made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"no network namespace can be made: {made.stderr.strip()}")
            stack.callback(_ip, "netns", "del", name)
        made_link = Link(names[0], names[1], f"10.213.{number % 250}")
        stack.callback(made_link.close)
        yield made_link


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
