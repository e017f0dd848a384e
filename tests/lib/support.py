"""Pages to test with, all made from a seed, so that a test can say which page it expects."""

import random
from functools import lru_cache

PAGE = 4096
PATIENCE = 180.0
"""Seconds that what must come is waited for. They end only a test that fails, so a slow machine may need them."""
_WORDS = b"page object handle pool frame arena zpage slot shard cluster oid index codec".split()


@lru_cache(maxsize=4096)
def page(seed: int, size: int = PAGE) -> bytes:
    """A page of words that compresses to about half, and differs from that of any other seed."""
    rng = random.Random(seed)
    text = b" ".join([b"%d" % seed, *rng.choices(_WORDS, k=size // 16), rng.randbytes(size // 4)])
    return text.ljust(size, b".")[:size]


@lru_cache(maxsize=4096)
def noise(seed: int, size: int = PAGE) -> bytes:
    """A page that does not compress."""
    return random.Random(seed).randbytes(size)


def filled(pattern: bytes, size: int = PAGE) -> bytes:
    """A page of one 8-byte pattern."""
    return pattern * (size // len(pattern))


def run(first: int, count: int, size: int = PAGE) -> bytes:
    """The pages of seeds `first` and up, in one buffer."""
    return b"".join(page(seed, size) for seed in range(first, first + count))
