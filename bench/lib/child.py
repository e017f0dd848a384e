"""Client processes that are told what to do line by line, and answer with a line of JSON each time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Self


class Child:
    """`python -m MODULE ARGUMENTS`, waiting for orders. Gone after its `with` block; deaf to the terminal."""

    def __init__(self, module: str, *arguments: object) -> None:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def order(self, order: Any) -> None:
        """Say what is to be done."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a client process has ended with status {self._process.wait()}")
        return json.loads(line)

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def orders() -> Iterator[Any]:
    """The child's side: what it is told, until nobody is there any more."""
    for line in sys.stdin:
        yield json.loads(line)


def reply(answer: Any) -> None:
    """The child's side: an answer."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def obey(work: Callable[[Any], Any]) -> None:
    """The child's side: carry out each order and answer it."""
    for order in orders():
        reply(work(order))
