"""The command `tmem`: look at a store and care for it, from a shell.

    tmem_main, __main__ -> __init__ -> app -> commands/ -> archive/ -> base/

What it prints is for people, or one JSON document with `--json` (JSON lines where it goes on). Exit status 1 is a
failure, 2 a command line that makes no sense.
"""

from __future__ import annotations

import os
import sys

from tmem.cli.base import interrupts, streams

_PACKAGES = ("click", "rich")


def main() -> None:
    """Run the command and exit."""
    streams.fill()
    interrupts.prepare()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it logs is in the errors too
    try:
        from tmem.cli.app import run
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _PACKAGES:
            raise
        print(f"tmem: {missing} is not installed: pip install {missing}", file=sys.stderr)
        sys.exit(2)
    run()
