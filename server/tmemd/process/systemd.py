"""Notifies the service manager by systemd's protocol: one datagram to the socket that it names."""

import os
import socket
import time

from tmemd.base.logs import log


def notify(state: str) -> None:
    """Send a state, such as `READY=1`, if a manager asked for it. A failure is logged."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.connect(address)
            to.sendall(state.encode())
    except OSError as error:
        log.warning("cannot notify the service manager at %s of %s: %s", path, state, error)


def notify_reloading() -> None:
    """The configuration is being reloaded; `READY=1` follows."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
