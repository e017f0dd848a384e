"""Messages that are serialized by hand, so that their pages are not copied into one after another."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """A message that is serialized already, in parts: its pages were not copied into one message after another."""

    parts: tuple[bytes, ...]


def varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)
