"""Which pages will be asked for next, from those that were: sequential, strided and interleaved streams.

A stream begins where three of the latest requests are equally far apart, whatever came between them; where that is
far, a fourth must agree. It goes the way that the majority of its last steps went (Boyer and Moore's vote, as in Leap),
so that one odd step does not end it. It is followed up to a depth that doubles with each batch, as the requests show
that the last one paid. What was fetched and never asked for lowers the depth of all streams, down to nothing; then a
stream is tried now and then.
"""

from __future__ import annotations

import threading
from collections import deque

_RECENT = 16
_STREAMS = 8
_STEPS = 8
_NEAR = 8
_SKIPPED = 4
_START = 4
_JUDGED = 32
_REST = 256


class _Stream:
    def __init__(self, last: int, step: int) -> None:
        self.last = last
        self.steps: deque[int] = deque([step, step], maxlen=_STEPS)
        self.step = step
        self.depth = _START
        self.ahead: set[int] = set()
        # Three requests some pages apart prove more than three that are far apart.
        self.sure = abs(step) <= _NEAR

    def move(self, first: int) -> None:
        self.sure = first - self.last == self.step
        self.steps.append(first - self.last)
        self.last = first
        self.step = _majority(self.steps) or self.step

    def distance(self, first: int) -> int:
        """0 where it was expected; the farther, the less it belongs here."""
        return abs(first - self.last - self.step)

    def takes(self, first: int) -> bool:
        """Whether a request is one of this stream: nearly where it was expected, or some steps farther."""
        steps, off = divmod(first - self.last, self.step)
        return self.distance(first) <= _NEAR or (not off and 0 < steps <= _SKIPPED)


class Streams:
    """The streams of one file. Safe to use from many threads."""

    def __init__(self, limit: int) -> None:
        """Reads at most `limit` pages ahead of each stream; 0 disables it."""
        self._most = limit
        self._limit = limit
        self._lock = threading.Lock()
        self._recent: deque[int] = deque(maxlen=_RECENT)
        self._streams: deque[_Stream] = deque(maxlen=_STREAMS)
        self._used = self._wasted = 0
        self._rested = 0

    def advise(self, first: int, count: int, end: int) -> list[int]:
        """Note a request for `count` pages from `first`. The pages below `end` to fetch now, the most urgent first."""
        with self._lock:
            if not self._most or (self._recent and self._recent[-1] == first):
                return []
            stream = self._stream(first)
            self._recent.append(first)
            if stream is None or not stream.sure or not self._allowed():
                return []
            return self._ahead(stream, first, count, end)

    def judge(self, used: int = 0, wasted: int = 0) -> None:
        """Tell what became of pages that were fetched ahead."""
        with self._lock:
            self._used += used
            self._wasted += wasted
            total = self._used + self._wasted
            if total < _JUDGED:
                return
            if 4 * self._used >= 3 * total:
                self._limit = min(self._most, max(_START, 2 * self._limit))
            elif 2 * self._used < total:
                self._limit = self._limit // 2 if self._limit > _START else 0
            self._used = self._wasted = 0

    def _stream(self, first: int) -> _Stream | None:
        nearest = min(self._streams, key=lambda stream: stream.distance(first), default=None)
        if nearest is not None and nearest.takes(first):
            nearest.move(first)
            self._streams.remove(nearest)
        else:
            nearest = self._begun(first)
            if nearest is None:
                return None
        self._streams.appendleft(nearest)
        return nearest

    def _begun(self, first: int) -> _Stream | None:
        """The stream whose third request this is, if it is one's."""
        known = set(self._recent)
        for earlier in reversed(self._recent):
            step = first - earlier
            if step and earlier - step in known:
                return _Stream(first, step)
        return None

    def _allowed(self) -> bool:
        if self._limit:
            return True
        self._rested += 1
        if self._rested < _REST:
            return False
        self._rested = 0
        self._limit = min(_START, self._most)
        return True

    def _ahead(self, stream: _Stream, first: int, count: int, end: int) -> list[int]:
        depth = min(stream.depth, self._limit)
        wanted = [page for page in _following(stream.step, first, count, depth) if 0 <= page < end]
        new = [page for page in wanted if page not in stream.ahead]
        # Half of what was fetched is still ahead: wait, and fetch a batch worth its while.
        if not new or (stream.ahead and 2 * len(new) < depth and len(wanted) == depth):
            return []
        stream.ahead = set(wanted)
        stream.depth = min(2 * depth, self._most)
        return new


def _following(step: int, first: int, count: int, depth: int) -> list[int]:
    """The `depth` pages that requests like this one reach next, `step` apart."""
    if 0 < step <= count:
        return list(range(first + count, first + count + depth))
    if -count <= step < 0:
        return list(range(first - 1, first - 1 - depth, -1))
    pages: list[int] = []
    at = first
    while len(pages) < depth:
        at += step
        pages.extend(range(at, at + count))
    return pages[:depth]


def _majority(steps: deque[int]) -> int:
    """The step that more than half of them are; 0 where none is."""
    candidate = votes = 0
    for step in steps:
        if not votes:
            candidate = step
        votes += 1 if step == candidate else -1
    return candidate if 2 * steps.count(candidate) > len(steps) else 0
