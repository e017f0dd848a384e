import pickle

import pytest

import tmem


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (tmem.UnknownPoolError("swap0"), "pool 'swap0' does not exist"),
        (tmem.ArenaError("/dev/shm/x", "cut short"), "arena /dev/shm/x: cut short"),
        (tmem.ArenaError("", "cut short"), "arena (private): cut short"),
        (tmem.CorruptPageError({1: b"good"}, [2, 3]), "pages failed their checksum: 2, 3"),
    ],
)
def test_errors_read_as_sentences_and_survive_pickling(error: tmem.TmemError, text: str) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert str(error) == str(copy) == text
    assert vars(copy) == vars(error)
