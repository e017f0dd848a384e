"""Object ids: 192 bits, given as an int below 2**192 or as up to 24 bytes (shorter ones are zero-padded at the end)."""

import hashlib
from typing import TypeAlias

Oid: TypeAlias = int | bytes


def oid(text: str) -> bytes:
    """The oid of any text: its BLAKE2b hash of 24 bytes, the same in every process and version."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=24).digest()
