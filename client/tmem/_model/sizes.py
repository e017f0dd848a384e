"""Sizes as people write them: bytes, or a number with a unit.

`K`, `Ki` and `KiB` are 1024 bytes and `kB` is 1000, in any case, and so on to T: a letter alone is a power of 1024, as
for Docker, QEMU and systemd. The daemon reads the sizes of its settings by the same rule (`tmemd.base.parsers`).
"""

import re
from fractions import Fraction
from typing import TypeAlias

Size: TypeAlias = int | str

EXPECTED = "expected bytes, or a number with K, M, G or T (as KiB: powers of 1024), or with kB, MB, GB or TB (of 1000)"

_UNITS = {"": 1, "b": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("", 1024), ("i", 1024), ("ib", 1024), ("b", 1000))
}
_SIZE = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(size: Size, name: str) -> int:
    """The number of bytes in `size`; `name` is the argument that an error speaks of."""
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise TypeError(f'{name} must be an int of bytes or a string such as "64MiB", not {type(size).__name__}')
    number = size if isinstance(size, int) else _parse(size, name)
    if number < 0:
        raise ValueError(f"{name} is {number}; a size cannot be negative")
    return number


def format_size(size: int) -> str:
    """The shortest exact form in powers of 1024: `268435456` is `"256MiB"`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return f"{size}B"


def _parse(text: str, name: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{name} is {text!r}; {EXPECTED}")
    size = Fraction(match[1]) * _UNITS[match[2].lower()]
    if size.denominator != 1:
        raise ValueError(f"{name} is {text!r}, which is not a whole number of bytes")
    return int(size)
