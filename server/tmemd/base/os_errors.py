"""Explains errors of the operating system, which leave out who asked and for what."""

from __future__ import annotations

import errno
import os
import pwd
import socket
import stat
from contextlib import suppress
from pathlib import Path

from tmemd.base.parsers import split_address


def why_unreadable(path: str | Path, error: OSError) -> str:
    """Why a file cannot be read; for missing permission, who owns it and who asked."""
    why = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        why += _of_permission(Path(path))
    return f"{path}: {why}"


def why_unbound(address: str) -> str:
    """Why an address cannot be bound, found by trying."""
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, where in found:
            with socket.socket(family, kind, protocol) as tried:
                tried.bind(where)
                tried.listen()
    except OSError as error:
        return error.strerror or str(error)
    return "the address is taken or not ours"


def _of_permission(path: Path) -> str:
    here = f"tmemd runs as {_named(os.geteuid())}"
    with suppress(OSError):
        its = path.stat()
        return f" (mode {stat.S_IMODE(its.st_mode):04o}, owner {_named(its.st_uid)}; {here})"
    for folder in reversed(path.absolute().parents):
        if not os.access(folder, os.X_OK):
            return f" (folder {folder} may not be entered; {here})"
    return f" ({here})"


def _named(user: int) -> str:
    try:
        return f"{pwd.getpwuid(user).pw_name}, uid {user}"
    except KeyError:
        return f"uid {user}"
