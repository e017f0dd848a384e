"""Varints, for messages that are serialized by hand."""


def varint(number: int) -> bytes:
    """A number in groups of seven bits, the lowest first."""
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)
