"""What the SDK makes of calls that gRPC says have failed."""

from __future__ import annotations

import grpc
import pytest

import tmem
from tmem._transport.channel import failure


class _Failed(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__()
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.CANCELLED, "CANCELLED"),
        (grpc.StatusCode.UNKNOWN, "Stream removed"),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
    ],
)
def test_a_call_cancelled_by_a_stopping_server_is_unavailable(code: grpc.StatusCode, details: str) -> None:
    found = failure(_Failed(code, details))
    assert (found.code, found.details) == (grpc.StatusCode.UNAVAILABLE.value[0], details)
    assert isinstance(found.exception(), tmem.UnavailableError)


@pytest.mark.parametrize(
    ("code", "details"), [(grpc.StatusCode.UNKNOWN, "a fault of the server"), (grpc.StatusCode.NOT_FOUND, "no pool")]
)
def test_what_a_server_says_by_itself_stays_as_it_is(code: grpc.StatusCode, details: str) -> None:
    assert failure(_Failed(code, details)).code == code.value[0]


def test_a_failure_without_details_is_named_by_its_code() -> None:
    assert failure(_Failed(grpc.StatusCode.DEADLINE_EXCEEDED, "")).details == "deadline exceeded"
