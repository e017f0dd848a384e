"""Draws every picture beside this file: `make pictures`."""

from pathlib import Path

from docs.pictures import badges, chart, overview

HERE = Path(__file__).parent
PICTURES = {
    "overview.svg": overview.draw,
    "chart.svg": chart.draw,
    "licence.svg": badges.licence,
    "python.svg": badges.python,
    "platform.svg": badges.platform,
}


def main() -> None:
    """Write each picture that has changed."""
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw())


if __name__ == "__main__":
    main()
