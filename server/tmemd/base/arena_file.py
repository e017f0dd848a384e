"""How an arena's file is opened."""

import os

_DESCRIPTORS = "/proc/self/fd/"


def open_arena(path: str, access: int) -> int:
    """A descriptor of an arena's file: of the file itself, never of what a link of that name leads to."""
    follow = 0 if path.startswith(_DESCRIPTORS) else os.O_NOFOLLOW
    return os.open(path, access | follow | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
