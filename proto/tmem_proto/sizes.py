"""Sizes as people write them: bytes, or a number with a unit.

`K`, `Ki` and `KiB` are 1024 bytes and `kB` is 1000, in any case, and so on to T: a letter alone is a power of 1024, as
for Docker, QEMU and systemd.
"""

import re
from fractions import Fraction

_UNITS = {"": 1, "b": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("", 1024), ("i", 1024), ("ib", 1024), ("b", 1000))
}
_SIZE = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """The number of bytes. A `ValueError` says what was expected."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(
            "expected bytes, or a number with K, M, G or T (as KiB: powers of 1024), or with kB, MB, GB or TB (of 1000)"
        )
    size = Fraction(match[1]) * _UNITS[match[2].lower()]
    if size.denominator != 1:
        raise ValueError("expected a whole number of bytes")
    return int(size)
