"""Programs that end in order: an interrupt or a termination unwinds them, so that nothing is left behind."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns, or with the status that a shell gives to a signal."""
    signal.signal(signal.SIGTERM, _unwind)
    try:
        status = main()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    sys.exit(status)


def _unwind(signum: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)
