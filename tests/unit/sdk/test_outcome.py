import pytest

from tmem import Outcome, Outcomes
from tmem._model.outcome import OUTCOMES

STORED, REPLACED, QUOTA, QUOTA_FLUSHED, FROZEN = 0, 1, 2, 3, 4


def test_an_outcome_is_true_when_stored() -> None:
    assert Outcome(stored=True)
    assert not Outcome(stored=False, reason="quota")
    assert Outcome(stored=False, reason="quota").refused


def test_codes_stand_for_outcomes() -> None:
    assert OUTCOMES[STORED] == Outcome(stored=True)
    assert OUTCOMES[REPLACED] == Outcome(stored=True, replaced=True)
    assert OUTCOMES[QUOTA] == Outcome(stored=False, reason="quota")
    assert OUTCOMES[QUOTA_FLUSHED] == Outcome(stored=False, reason="quota", old_flushed=True)
    reasons = ["frozen", "poor_compression", "memory", "no_space", "unavailable"]
    assert [outcome.reason for outcome in OUTCOMES[4::2]] == reasons


def test_outcomes_summarise_and_index() -> None:
    outcomes = Outcomes(100, bytes([STORED, QUOTA, REPLACED, QUOTA_FLUSHED, FROZEN]))
    assert (outcomes.first, len(outcomes), outcomes.stored, outcomes.refused) == (100, 5, 2, 3)
    assert outcomes.reasons == {"quota": 2, "frozen": 1}
    assert not outcomes.all_stored
    assert outcomes[1] == Outcome(stored=False, reason="quota")
    assert outcomes[-1].reason == "frozen"
    assert list(outcomes[:2]) == list(outcomes)[:2]
    with pytest.raises(IndexError):
        outcomes[5]


def test_outcomes_of_nothing_are_all_stored() -> None:
    assert Outcomes(0, b"").all_stored


def test_equal_outcomes_are_equal() -> None:
    assert Outcomes(1, b"\0\1") == Outcomes(1, b"\0\1") != Outcomes(2, b"\0\1")
    assert hash(Outcomes(1, b"\0")) == hash(Outcomes(1, b"\0"))


def test_outcomes_say_what_they_are() -> None:
    assert repr(Outcomes(7, bytes([STORED, QUOTA]))) == "<tmem.Outcomes of 2 pages from 7: stored=1, quota=1>"
