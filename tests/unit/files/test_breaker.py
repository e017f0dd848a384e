"""When a store is gone around, and when it is tried again."""

import itertools

from tmem._files.breaker import Guard


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def slow_guard(clock: Clock) -> Guard:
    guard = Guard(clock)
    for _ in range(8):
        guard.answered(0.010)
        guard.disk_read(0.001)
    return guard


def test_a_store_that_failed_is_probed_ever_less_often() -> None:
    clock = Clock()
    guard = Guard(clock)
    assert guard.admits()
    guard.failed()
    assert not guard.admits()
    probes = []
    for tick in range(2000):
        clock.now = tick / 100
        if guard.probe_due():
            probes.append(clock.now)
            guard.failed()
    waits = [later - earlier for earlier, later in itertools.pairwise(probes)]
    assert waits[0] < 0.2
    assert waits == sorted(waits)
    assert 4.9 < waits[-1] < 5.2
    guard.answered(0.0001)
    assert guard.admits()


def test_only_one_probe_is_due_at_a_time() -> None:
    clock = Clock()
    guard = Guard(clock)
    guard.failed()
    clock.now = 1.0
    assert [guard.probe_due(), guard.probe_due()] == [True, False]


def test_a_store_slower_than_the_file_is_gone_around() -> None:
    assert not slow_guard(Clock()).admits()


def test_a_store_about_as_quick_as_the_file_is_used_and_spares_it() -> None:
    guard = Guard(Clock())
    for _ in range(20):
        guard.answered(0.0015)
        guard.disk_read(0.001)
    assert guard.admits()


def test_one_answer_that_was_held_up_is_no_reason_to_go_around() -> None:
    guard = Guard(Clock())
    for _ in range(20):
        guard.answered(0.001)
        guard.disk_read(0.001)
    guard.answered(5.0)
    assert guard.admits()


def test_a_few_slow_answers_prove_nothing() -> None:
    guard = Guard(Clock())
    for _ in range(7):
        guard.answered(0.010)
        guard.disk_read(0.001)
    assert guard.admits()


def test_a_store_quick_enough_to_harm_nobody_is_used_though_the_file_is_quicker() -> None:
    guard = Guard(Clock())
    for _ in range(20):
        guard.answered(0.0001)
        guard.disk_read(0.000001)
    assert guard.admits()


def test_a_file_that_became_slower_brings_the_store_back_at_once() -> None:
    guard = slow_guard(Clock())
    for _ in range(20):
        guard.disk_read(0.1)
    assert guard.admits()


def test_probes_that_come_back_quickly_bring_a_slow_store_back() -> None:
    clock = Clock()
    guard = slow_guard(clock)
    tries = 0
    while not guard.admits():
        clock.now += 1.0
        if guard.probe_due():
            guard.answered(0.00001)
            tries += 1
    assert 1 <= tries <= 30
