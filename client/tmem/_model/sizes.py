"""Sizes as arguments: bytes, or text such as "64MiB" (`tmem_proto.sizes` has the units)."""

from typing import TypeAlias

from tmem_proto import sizes

Size: TypeAlias = int | str


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
    try:
        return sizes.parse_size(text)
    except ValueError as error:
        raise ValueError(f"{name} is {text!r}; {error}") from None
