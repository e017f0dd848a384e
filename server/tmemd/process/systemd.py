"""Tells the service manager what became of the daemon: systemd's protocol, one datagram to the socket it names."""

import os
import socket
import time

from tmemd.base.logs import log


def notify(state: str) -> None:
    """Send a state, such as `READY=1`. Does nothing where no manager asked; a manager that cannot be told is logged."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.connect(address)
            to.sendall(state.encode())
    except OSError as error:
        log.warning("the service manager at %s cannot be told %s: %s", path, state, error)


def notify_reloading() -> None:
    """The configuration is being read again; `READY=1` is to follow."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
