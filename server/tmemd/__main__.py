"""The command `tmemd`, and `python -m tmemd`."""

import sys

from tmemd.base.startup import hold, open_streams


def main() -> int:
    """Prepare for signals first, then import the rest."""
    hold()
    open_streams()
    from tmemd.app.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
