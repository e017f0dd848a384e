"""Opens an arena's file."""

import os

_DESCRIPTORS = "/proc/self/fd/"


def open_arena(path: str, access: int) -> int:
    """A descriptor of the arena's file. Symbolic links are not followed."""
    follow = 0 if path.startswith(_DESCRIPTORS) else os.O_NOFOLLOW
    return os.open(path, access | follow | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
