"""The command `tmemd`, and `python -m tmemd`."""

import sys

from tmemd.base.startup import hold, open_streams


def main() -> int:
    """Be ready for signals first; then import what takes time."""
    hold()
    open_streams()
    from tmemd.app.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
