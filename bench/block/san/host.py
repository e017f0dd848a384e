"""A host that uses a volume: it plays a trace against an NBD server, request by request, and says how long each took.

A process of its own: `python -m bench.block.san.host SOCKET`. An order has the name of a function of
`traces`, its arguments, and the image with which all that is read is compared; an order of nothing is answered at once.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.block.san import traces
from bench.block.wire import Connection
from bench.lib.child import obey


@dataclass
class Played:
    """Seconds for all, seconds of each read, and how many reads did not give what the volume has."""

    seconds: float = 0.0
    reads: list[float] = field(default_factory=list)
    wrong: int = 0


def play(path: str, trace: str, arguments: list[int], image: str) -> Played:
    """All requests of a trace, one after another. Writes give pages new content, which later reads must give back."""
    requests: list[traces.Request] = list(getattr(traces, trace)(*arguments))
    original, written = Path(image).read_bytes(), dict[int, bytes]()
    played = Played()
    with Connection(path) as connection:
        begun = time.perf_counter()
        for number, (write, offset, length) in enumerate(requests):
            if write:
                written[offset] = number.to_bytes(8, "big") + original[offset + 8 : offset + length]
                connection.write(offset, written[offset])
                continue
            asked = time.perf_counter()
            data = connection.read(offset, length)
            played.reads.append(time.perf_counter() - asked)
            played.wrong += data != written.get(offset, original[offset : offset + length])
        played.seconds = time.perf_counter() - begun
    return played


def _obey(order: dict[str, Any] | None) -> dict[str, Any]:
    return asdict(Played() if order is None else play(sys.argv[1], **order))


if __name__ == "__main__":
    obey(_obey)
