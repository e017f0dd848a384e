"""When a store is bypassed, and when it is tried again."""

import itertools

from tmem._files.cache_health import CacheHealth


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def slow_store(clock: Clock) -> CacheHealth:
    health = CacheHealth(clock)
    for _ in range(8):
        health.answered(0.010)
        health.disk_read(0.001)
    return health


def test_a_store_that_failed_is_probed_ever_less_often() -> None:
    clock = Clock()
    health = CacheHealth(clock)
    assert health.admits()
    health.failed()
    assert not health.admits()
    probes = []
    for tick in range(2000):
        clock.now = tick / 100
        if health.probe_due():
            probes.append(clock.now)
            health.failed()
    waits = [later - earlier for earlier, later in itertools.pairwise(probes)]
    assert waits[0] < 0.2
    assert waits == sorted(waits)
    assert 4.9 < waits[-1] < 5.2
    health.answered(0.0001)
    assert health.admits()


def test_only_one_probe_is_due_at_a_time() -> None:
    clock = Clock()
    health = CacheHealth(clock)
    health.failed()
    clock.now = 1.0
    assert [health.probe_due(), health.probe_due()] == [True, False]


def test_a_store_slower_than_the_file_is_bypassed() -> None:
    assert not slow_store(Clock()).admits()


def test_a_store_about_as_quick_as_the_file_is_used_and_spares_it() -> None:
    health = CacheHealth(Clock())
    for _ in range(20):
        health.answered(0.0015)
        health.disk_read(0.001)
    assert health.admits()


def test_one_late_answer_is_no_reason_to_bypass_the_store() -> None:
    health = CacheHealth(Clock())
    for _ in range(20):
        health.answered(0.001)
        health.disk_read(0.001)
    health.answered(5.0)
    assert health.admits()


def test_a_few_slow_answers_prove_nothing() -> None:
    health = CacheHealth(Clock())
    for _ in range(7):
        health.answered(0.010)
        health.disk_read(0.001)
    assert health.admits()


def test_a_quick_store_is_used_even_if_the_file_is_quicker() -> None:
    health = CacheHealth(Clock())
    for _ in range(20):
        health.answered(0.0001)
        health.disk_read(0.000001)
    assert health.admits()


def test_a_slower_file_brings_the_store_back_at_once() -> None:
    health = slow_store(Clock())
    for _ in range(20):
        health.disk_read(0.1)
    assert health.admits()


def test_probes_that_come_back_quickly_bring_a_slow_store_back() -> None:
    clock = Clock()
    health = slow_store(clock)
    tries = 0
    while not health.admits():
        clock.now += 1.0
        if health.probe_due():
            health.answered(0.00001)
            tries += 1
    assert 1 <= tries <= 30
