"""The grammar of injections, and what they do to a call."""

import asyncio
import itertools
import time

import pytest
from grpc import StatusCode

from tmemd.base.errors import InjectedError, NotAllowedError
from tmemd.config import faults
from tmemd.config.faults import Injection, Injections, injections

LOST = Injection(method="Put", code=StatusCode.UNAVAILABLE, after=True)


def parse(text: str) -> Injection:
    (one,) = injections(text)
    return one


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Put:delay=50ms,fraction=0.1", Injection(method="Put", delay_ms=50, fraction=0.1)),
        ("Get:code=UNAVAILABLE", Injection(method="Get", code=StatusCode.UNAVAILABLE)),
        ("Put:code=UNAVAILABLE, after", LOST),
        ("Exchange.put:delay=1.5s", Injection(method="Exchange.put", delay_ms=1500)),
        ("*:code=INTERNAL,fraction=1", Injection(method="*", code=StatusCode.INTERNAL)),
    ],
)
def test_it_reads_and_writes(text: str, meant: Injection) -> None:
    assert parse(text) == meant
    assert parse(str(meant)) == meant
    assert Injection.of(meant.message()) == meant


def test_one_text_may_have_several() -> None:
    assert injections(" Put:code=UNAVAILABLE,after ;;Exchange.put:delay=2s;") == (
        LOST,
        Injection(method="Exchange.put", delay_ms=2000),
    )
    assert injections(["", "*:delay=1ms"]) == (Injection(method="*", delay_ms=1),)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Putt:delay=1s", "nothing can be injected into 'Putt'"),
        (" Put : code=UNAVAILABLE , after ", "nothing can be injected into 'Put '"),
        ("Exchange:delay=1s", "nothing can be injected into 'Exchange'"),
        ("Inject:code=UNAVAILABLE", "nothing can be injected into 'Inject'"),
        ("Put", "'Put' is not a fault"),
        ("Put:fraction=0.5", "neither delay nor code"),
        ("Put:delay=61s", "at most 60000"),
        ("Put:code=NONSENSE", "code is 'NONSENSE'"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        injections(text)


def made(injections: Injections, method: str) -> tuple[int, InjectedError | None]:
    """How often a call was carried out, and what it was answered with."""
    done = itertools.count()

    async def call() -> int:
        return next(done)

    try:
        asyncio.run(injections.around(method, call))
    except InjectedError as error:
        return next(done), error
    return next(done), None


def test_a_code_is_in_place_of_the_call_and_after_it_when_said() -> None:
    count, error = made(Injections((Injection(method="Put", code=StatusCode.ABORTED),)), "Put")
    assert error is not None
    assert (count, error.code, str(error)) == (0, StatusCode.ABORTED, "injected into Put; nothing was done")
    count, error = made(Injections((LOST,)), "Put")
    assert error is not None
    assert (count, error.code) == (1, StatusCode.UNAVAILABLE)


def test_other_methods_are_left_alone_unless_all_are_meant() -> None:
    assert made(Injections((LOST,)), "Exchange.put") == (1, None)
    assert made(Injections((parse("*:code=ABORTED"),)), "Exchange.put")[1] is not None


def test_delays_add_up_and_the_first_code_counts() -> None:
    texts = ("Put:delay=20ms", "*:delay=30ms,code=ABORTED", "Put:code=INTERNAL")
    start = time.monotonic()
    _, error = made(Injections(tuple(map(parse, texts))), "Put")
    assert time.monotonic() - start >= 0.05
    assert error is not None
    assert error.code == StatusCode.ABORTED


def test_a_fraction_of_calls_is_picked() -> None:
    injections = Injections((parse("Put:code=ABORTED,fraction=0.5"),))
    failed = sum(made(injections, "Put")[1] is not None for _ in range(200))
    assert 50 < failed < 150


def test_they_are_replaced_as_a_whole_where_that_is_allowed() -> None:
    injections = Injections(())
    assert injections.replace((LOST,)) == ()
    assert injections.replace(()) == (LOST,)
    with pytest.raises(ValueError, match="at most 64"):
        injections.replace((LOST,) * (faults.MOST + 1))
    with pytest.raises(NotAllowedError):
        Injections(None).replace(())
