"""What became of the pages of a put. A refusal is a value with its reason, never an error.

On the way here an outcome is one byte, its code: a number of the protocol's `PutOutcome`, plus 16 where a refusal
flushed an older page. Reasons have the numbers from 4 on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypedDict, overload

Reason: TypeAlias = Literal["quota", "frozen", "poor_compression", "memory", "no_space", "unavailable"]

_STORED, _REPLACED, _REFUSED, _FLUSHED = 1, 2, 4, 16
UNAVAILABLE: Final = 15
"""The client's own: no server refuses a page with it."""
REFUSALS: dict[Reason, str] = {
    "quota": "pool at its quota",
    "frozen": "pool frozen",
    "poor_compression": "too large compressed",
    "memory": "store full",
    "no_space": "file system full",
}
"""What each reason of a server means, in the order of its code."""
_REASONS: dict[Reason, int] = {
    **{reason: code for code, reason in enumerate(REFUSALS, _REFUSED)},
    "unavailable": UNAVAILABLE,
}


class Refusals(TypedDict):
    """Pages refused, by reason."""

    refused_quota: int
    refused_frozen: int
    refused_poor_compression: int
    refused_memory: int
    refused_no_space: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one page of a put. True as a condition when the page was stored.

    Attributes:
        stored: The store has the page.
        replaced: It took the place of an older page of the same key.
        reason: Why the page was refused: `"quota"`, `"frozen"`, `"poor_compression"`, `"memory"`, `"no_space"`, or
            `"unavailable"` where the server is away and the client was told to go on; None when it was stored.
        old_flushed: The put was refused and the older page of the key is gone, so that no get can see it.
    """

    stored: bool
    replaced: bool = False
    reason: Reason | None = None
    old_flushed: bool = False

    @property
    def refused(self) -> bool:
        """The store does not have the page."""
        return not self.stored

    def __bool__(self) -> bool:
        return self.stored


OUTCOMES: dict[int, Outcome] = {
    _STORED: Outcome(stored=True),
    _REPLACED: Outcome(stored=True, replaced=True),
    **{code: Outcome(stored=False, reason=reason) for reason, code in _REASONS.items()},
    **{code + _FLUSHED: Outcome(stored=False, reason=reason, old_flushed=True) for reason, code in _REASONS.items()},
}
"""The outcome of each code."""


class Outcomes(Sequence[Outcome]):
    """What became of a range of pages: item `n` is the outcome of page `first + n`.

    Kept as one byte a page, so that a put of millions of pages costs no objects; the summaries do not make any either.
    """

    __slots__ = ("_codes", "first")

    def __init__(self, first: int, codes: bytes) -> None:
        self.first = first
        self._codes = codes

    @property
    def stored(self) -> int:
        """The number of pages stored."""
        return self._codes.count(_STORED) + self._codes.count(_REPLACED)

    @property
    def refused(self) -> int:
        """The number of pages refused."""
        return len(self._codes) - self.stored

    @property
    def all_stored(self) -> bool:
        """Whether every page was stored; True for an empty range."""
        return self.refused == 0

    @property
    def reasons(self) -> dict[Reason, int]:
        """The number of pages refused by reason, without the reasons that did not occur."""
        counts = {reason: self._count(reason) for reason in _REASONS}
        return {reason: count for reason, count in counts.items() if count}

    @overload
    def __getitem__(self, at: int) -> Outcome: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Outcome]: ...
    def __getitem__(self, at: int | slice) -> Outcome | Sequence[Outcome]:
        if isinstance(at, slice):
            return [OUTCOMES[code] for code in self._codes[at]]
        return OUTCOMES[self._codes[at]]

    def __len__(self) -> int:
        return len(self._codes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outcomes):
            return NotImplemented
        return (self.first, self._codes) == (other.first, other._codes)

    def __hash__(self) -> int:
        return hash((self.first, self._codes))

    def __repr__(self) -> str:
        reasons = "".join(f", {reason}={count}" for reason, count in self.reasons.items())
        return f"<tmem.Outcomes of {len(self)} pages from {self.first}: stored={self.stored}{reasons}>"

    def _count(self, reason: Reason) -> int:
        code = _REASONS[reason]
        return self._codes.count(code) + self._codes.count(code + _FLUSHED)
