"""The command `tmemd`, and `python -m tmemd`."""

import sys

from tmemd.base.startup import handle_early_signals, open_streams


def main() -> int:
    """Prepare for signals first, then import the rest."""
    handle_early_signals()
    open_streams()
    from tmemd.app.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
