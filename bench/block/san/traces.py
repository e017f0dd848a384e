"""What hosts ask of a volume, as lists of requests: a boot, everything once, and skewed reads and writes.

A request is `(write, offset, length)`. The same seed gives the same requests.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections import OrderedDict
from collections.abc import Iterator

from bench.lib.corpus import PAGE

Request = tuple[bool, int, int]

_BURST = 1 << 20
_REQUESTS = (4 << 10, 16 << 10, 32 << 10, 64 << 10)
_SKEW = 0.9
_WRITES = 0.2


def boot(size: int, touched: int, seed: int) -> list[Request]:
    """A boot reads `touched` bytes: sequential bursts of up to 1 MiB at scattered places, nothing twice."""
    rng = random.Random(seed)
    places = rng.sample(range(0, size - _BURST + 1, _BURST), k=size // _BURST)
    requests: list[Request] = []
    for place in places:
        at, end = place, place + rng.choice((_BURST // 8, _BURST // 4, _BURST // 2, _BURST))
        while at < end:
            length = min(rng.choice(_REQUESTS), end - at, touched)
            requests.append((False, at, length))
            at += length
            touched -= length
            if not touched:
                return requests
    return requests


def everything_once(size: int, touched: int, seed: int) -> list[Request]:
    """Pages at random places, none of them twice."""
    places = random.Random(seed).sample(range(size // PAGE), k=touched // PAGE)
    return [(False, place * PAGE, PAGE) for place in places]


def skewed(pages: int, cached: int, count: int, seed: int) -> Iterator[Request]:
    """What a host's own cache lets through of `count` requests, four reads to a write, Zipf 0.9 over so many pages.

    The cache is an LRU of `cached` pages that writes through.
    """
    rng = random.Random(seed)
    order = rng.sample(range(pages), k=pages)
    weights = list(itertools.accumulate(1 / rank**_SKEW for rank in range(1, pages + 1)))
    own: OrderedDict[int, None] = OrderedDict()
    for _ in range(count):
        page = order[min(bisect.bisect(weights, rng.random() * weights[-1]), pages - 1)]
        write, hit = rng.random() < _WRITES, page in own
        own[page] = None
        own.move_to_end(page)
        if len(own) > cached:
            own.popitem(last=False)
        if write or not hit:
            yield write, page * PAGE, PAGE
