"""Faults to inject into calls, as people write them: `METHOD:PART,PART...`, several parted by semicolons.

    delay=50ms      wait so long (ms or s) before the call is looked at
    code=NAME       answer with this status in place of the call, such as UNAVAILABLE
    after           carry the call out first, then answer with the code: as if the reply were lost
    fraction=0.1    of calls, picked at random; all unless given

METHOD is a unary method such as `Put`, a command of a stream such as `Exchange.put`, or `*` for every one. The daemon
knows which methods there are, and how long a delay may be.
"""

from __future__ import annotations

import re
from functools import cache

from tmem_proto.v1 import admin_pb2 as admin

_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)", re.ASCII)
_FRACTION = re.compile(r"\d{0,9}\.?\d{1,9}", re.ASCII)


def parse(given: str) -> list[admin.Injection]:
    """The faults that are written so."""
    return [_fault(one.strip()) for one in given.split(";") if one.strip()]


@cache
def codes() -> dict[str, int]:
    """The numbers of gRPC's codes, success apart."""
    import grpc

    return {code.name: code.value[0] for code in grpc.StatusCode if code.value[0]}


def _fault(given: str) -> admin.Injection:
    method, colon, rest = given.partition(":")
    parts = [part.strip() for part in rest.split(",") if part.strip()]
    if not (method and colon and parts):
        raise ValueError(f"{given!r} is not a fault: expected METHOD:PART,PART... such as Put:delay=50ms,fraction=0.1")
    found = admin.Injection(method=method)
    for part in parts:
        key, _, value = part.partition("=")
        if key not in _READERS:
            raise ValueError(f"{part!r} is not one of delay=TIME, code=NAME, after, fraction=NUMBER")
        field, read = _READERS[key]
        if getattr(found, field):
            raise ValueError(f"{key} appears twice in {given!r}")
        setattr(found, field, read(value))
    if found.after and not found.code:
        raise ValueError(f"{given!r} has `after` but no code")
    return found


def _delay(value: str) -> int:
    match = _DELAY.fullmatch(value)
    if match is None:
        raise ValueError(f"delay is {value!r}; it must be like 50ms or 1.5s")
    return round(float(match[1]) * (1000 if match[2] == "s" else 1))


def _code(value: str) -> int:
    if value not in codes():
        raise ValueError(f"code is {value!r}; it must be one of {', '.join(codes())}")
    return codes()[value]


def _fraction(value: str) -> float:
    if _FRACTION.fullmatch(value) is None or not 0 < float(value) <= 1:
        raise ValueError(f"fraction is {value!r}; it must be a number above 0, and at most 1")
    return float(value)


def _after(value: str) -> bool:
    if value:
        raise ValueError("after has no value")
    return True


_READERS = {
    "delay": ("delay_ms", _delay),
    "code": ("code", _code),
    "fraction": ("fraction", _fraction),
    "after": ("after", _after),
}
