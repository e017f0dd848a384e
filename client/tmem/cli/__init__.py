"""The command `tmem`: inspect and manage a store from a shell.

    tmem_main, __main__ -> __init__ -> app -> commands/ -> archive/ -> base/

It prints for people, or with `--json` one JSON document (JSON lines if output continues). Exit status 1 is a failure,
2 an invalid command line.
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
