"""The command `tmem` as the shell starts it: Ctrl-C ends it with status 130 and no traceback from the first import on.

It is a package of its own because the imports of `tmem` are among those that may be interrupted.
"""

import sys


def main() -> None:
    """Run the command and exit."""
    try:
        import os
        import signal

        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(130))
        from tmem.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
