"""Header blocks of HTTP/2 (RFC 7541), as far as a gRPC client needs them. The dynamic table is declared to be empty.

Strings of a peer that are Huffman-coded are read as empty: gRPC's own servers send what matters here as it is, and who
does not find it in a block has to do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_STATIC_FIELDS = 61
_STATUS = {8: b"200", 9: b"204", 10: b"206", 11: b"304", 12: b"400", 13: b"404", 14: b"500"}
"""The fields of the static table whose value is looked at: `:status`."""
_MOST = 1 << 24


def encode(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Fields as literals that no table keeps."""
    return b"".join(b"\0" + _length(name) + name + _length(value) + value for name, value in fields)


def decode(block: bytes) -> dict[bytes, bytes]:
    """The fields of a block.

    Raises:
        ValueError: It is none, or refers to a table that the peer was told not to keep.
    """
    fields: dict[bytes, bytes] = {}
    at = 0
    try:
        while at < len(block):
            first = block[at]
            if first & 0x80:
                number, at = _integer(block, at, 7)
                name, value = _field(number), _STATUS.get(number, b"")
            elif first & 0xE0 == 0x20:  # the size of the table
                _, at = _integer(block, at, 5)
                continue
            else:
                number, at = _integer(block, at, 6 if first & 0x40 else 4)
                name, at = (_field(number), at) if number else _string(block, at)
                value, at = _string(block, at)
            fields[name] = value
    except IndexError:
        raise ValueError("the header block is cut short") from None
    return fields


def _length(text: bytes) -> bytes:
    rest = len(text) - 127
    if rest < 0:
        return bytes([len(text)])
    digits = bytearray([127])
    while rest > 127:
        digits.append(rest & 127 | 128)
        rest >>= 7
    return bytes(digits) + bytes([rest])


def _field(number: int) -> bytes:
    if not 0 < number <= _STATIC_FIELDS:
        raise ValueError(f"there is no field {number}")
    return b":status" if number in _STATUS else b""


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    number = block[at] & most
    at += 1
    if number < most:
        return number, at
    shift = 0
    while number < _MOST:
        byte = block[at]
        at += 1
        number += (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at
    raise ValueError("a number is too large")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    coded = block[at] & 0x80
    length, at = _integer(block, at, 7)
    end = at + length
    if end > len(block):
        raise ValueError("the header block is cut short")
    return b"" if coded else block[at:end], end
