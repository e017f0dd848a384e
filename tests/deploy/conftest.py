"""What deploy/ does on a real engine: `make test-deploy`. Not a part of the other tests, for it builds an image."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.stack import IMAGE, Stack, docker, stack, why_not

HERE = Path(__file__).parent


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Left out unless this folder, or something in it, was asked for by name."""
    asked = [Path(config.invocation_params.dir, argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(HERE) for path in asked) else True


@pytest.fixture(scope="session", autouse=True)
def _engine() -> Iterator[None]:
    """An engine that containers can be run on; without one the tests are skipped."""
    if reason := why_not():
        pytest.skip(reason)
    yield
    docker("image", "rm", IMAGE, check=False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack as README's command brings it up, built from this tree."""
    with stack("plain", tmp_path_factory.mktemp("plain")) as running:
        running.compose("up", "--build", "--detach", "--wait")
        yield running
