"""Reads when certificates expire from their files, by walking through DER up to the validity."""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17


def expiry(path: str) -> float | None:
    """The Unix time at which the first of a file's certificates expires; None if that cannot be read."""
    with suppress(OSError, ValueError, IndexError):
        return min(_not_after(base64.b64decode(block)) for block in _PEM.findall(Path(path).read_bytes()))
    return None


def _not_after(der: bytes) -> float:
    ((_, certificate),) = _elements(der)
    (_, signed), *_ = _elements(certificate)
    fields = list(_elements(signed))
    # Serial number, algorithm and issuer precede the validity, and a version from version 2 on.
    _, validity = fields[4 if fields[0][0] == _VERSION else 3]
    _, (kind, end) = _elements(validity)
    # Two-digit years are 1950 to 2049.
    text = end.decode() if kind != _UTC_TIME else ("19" if end[:2] >= b"50" else "20") + end.decode()
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The sibling elements in a value, each with its tag."""
    at = 0
    while at < len(der):
        kind, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        if at + length > len(der):
            raise ValueError("an element is cut short")
        yield kind, der[at : at + length]
        at += length
