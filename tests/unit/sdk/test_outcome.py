from typing import get_args

import pytest

from tmem import Outcome, Outcomes
from tmem._model.outcome import OUTCOMES, UNAVAILABLE, Reason, Refusals
from tmem_proto.v1 import tmem_pb2 as pb

STORED, REPLACED, QUOTA, QUOTA_FLUSHED, FROZEN = 1, 2, 4, 20, 5


def test_an_outcome_is_true_when_stored() -> None:
    assert Outcome(stored=True)
    assert not Outcome(stored=False, reason="quota")
    assert Outcome(stored=False, reason="quota").refused


def test_codes_stand_for_outcomes() -> None:
    assert OUTCOMES[STORED] == Outcome(stored=True)
    assert OUTCOMES[REPLACED] == Outcome(stored=True, replaced=True)
    assert OUTCOMES[QUOTA] == Outcome(stored=False, reason="quota")
    assert OUTCOMES[QUOTA_FLUSHED] == Outcome(stored=False, reason="quota", old_flushed=True)


def test_every_outcome_of_the_protocol_has_its_code() -> None:
    codes = {name.removeprefix("PUT_OUTCOME_").lower(): code for name, code in pb.PutOutcome.items()}
    refused = {name.removeprefix("refused_"): code for name, code in codes.items() if name.startswith("refused_")}
    for reason, code in refused.items():
        assert (OUTCOMES[code].reason, OUTCOMES[code].old_flushed) == (reason, False)
        assert (OUTCOMES[code + 16].reason, OUTCOMES[code + 16].old_flushed) == (reason, True)
    assert set(get_args(Reason)) == {*refused, "unavailable"}
    assert {f"refused_{reason}" for reason in refused} == Refusals.__annotations__.keys()
    assert UNAVAILABLE not in pb.PutOutcome.values()
    assert OUTCOMES[pb.PUT_OUTCOME_STORED].stored
    assert OUTCOMES[pb.PUT_OUTCOME_REPLACED].replaced


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
    assert Outcomes(1, b"\1\2") == Outcomes(1, b"\1\2") != Outcomes(2, b"\1\2")
    assert hash(Outcomes(1, b"\1")) == hash(Outcomes(1, b"\1"))


def test_outcomes_say_what_they_are() -> None:
    assert repr(Outcomes(7, bytes([STORED, QUOTA]))) == "<tmem.Outcomes of 2 pages from 7: stored=1, quota=1>"
