"""Which of a server's processes a connection uses."""

from __future__ import annotations

import pytest

from tmem._protocol.messages import Failure
from tmem._protocol.routing import Placement
from tmem_proto.v1 import admin_pb2 as admin

AWAY, LATE, DENIED, UNIMPLEMENTED = Failure(14, ""), Failure(4, ""), Failure(7, ""), Failure(12, "")


def workers(*ports: int, suggested: int) -> admin.ListWorkersResponse:
    return admin.ListWorkersResponse(workers=[admin.Worker(port=port) for port in ports], suggested_port=suggested)


@pytest.fixture
def placed() -> Placement:
    """A connection that was given the worker on 7719."""
    placement = Placement("ramhost:7717")
    placement.answered(workers(7717, 7718, 7719, suggested=7719))
    return placement


def test_a_connection_goes_where_it_is_told_and_asks_no_more(placed: Placement) -> None:
    assert (placed.address, placed.due) == ("ramhost:7719", False)


@pytest.mark.parametrize("home", ["[::1]:7717", "10.0.0.1:7717", "ramhost.example:7717"])
def test_the_worker_is_on_the_host_that_the_server_was_given_by(home: str) -> None:
    placement = Placement(home)
    placement.answered(workers(7717, 7718, suggested=7718))
    assert placement.address == home[:-1] + "8"


@pytest.mark.parametrize(
    "reply",
    [workers(9000, suggested=9000), workers(suggested=1), workers(7717, 7718, suggested=9), DENIED, UNIMPLEMENTED],
    ids=["one", "none", "nonsense", "denied", "unimplemented"],
)
def test_it_stays_where_there_is_no_choice_or_no_answer(reply: admin.ListWorkersResponse | Failure) -> None:
    placement = Placement("ramhost:7717")
    assert placement.answered(reply) is None
    assert (placement.address, placement.due) == ("ramhost:7717", False)


@pytest.mark.parametrize("failure", [AWAY, LATE])
def test_where_nobody_answers_calls_fail_and_it_asks_again(failure: Failure) -> None:
    placement = Placement("ramhost:7717")
    assert placement.answered(failure) is failure
    assert placement.due


def test_a_worker_that_is_away_is_waited_for_where_it_was(placed: Placement) -> None:
    placed.failed(AWAY)
    assert placed.due
    placed.answered(workers(7717, 7718, 7719, suggested=7718))
    assert (placed.address, placed.due) == ("ramhost:7719", False)


@pytest.mark.parametrize(
    ("reply", "address"),
    [(workers(7717, 7718, suggested=7718), "ramhost:7718"), (workers(7717, suggested=7717), "ramhost:7717")],
)
def test_a_server_started_again_with_fewer_gives_another(
    placed: Placement, reply: admin.ListWorkersResponse, address: str
) -> None:
    placed.failed(AWAY)
    placed.answered(reply)
    assert placed.address == address


def test_without_an_answer_it_stays_with_its_worker(placed: Placement) -> None:
    placed.failed(AWAY)
    assert placed.answered(AWAY) is None
    assert (placed.address, placed.due) == ("ramhost:7719", False)


def test_other_failures_are_no_reason_to_ask(placed: Placement) -> None:
    placed.failed(DENIED)
    placed.failed(LATE)
    assert not placed.due
