"""One line that says what is being done, for whoever watches a terminal."""

import sys


def progress(text: str) -> None:
    """Say it in place of what was said before."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text} ...")
        sys.stderr.flush()


def done() -> None:
    """Clear the line."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
