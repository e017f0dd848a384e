"""The few SVG elements that the pictures are made of, with colours for a light and a dark page."""

from html import escape

_STYLE = """\
    .card { fill: #ffffff; stroke: #d0d7de }
    .box { fill: #f6f8fa; stroke: #8c959f }
    .key { fill: #ddf4ff; stroke: #0969da }
    .bar { fill: #0969da }
    .worse { fill: #bc4c00 }
    .line { stroke: #57606a; fill: none }
    .rule { stroke: #d0d7de; fill: none }
    .tip { fill: #57606a }
    text { fill: #1f2328; font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
    .strong { font-weight: 600 }
    .small { fill: #57606a; font-size: 12px }
    @media (prefers-color-scheme: dark) {
      .card { fill: #0d1117; stroke: #30363d }
      .box { fill: #161b22; stroke: #6e7681 }
      .key { fill: #0c2d6b; stroke: #58a6ff }
      .bar { fill: #58a6ff }
      .worse { fill: #db6d28 }
      .line { stroke: #8b949e }
      .rule { stroke: #30363d }
      .tip { fill: #8b949e }
      text { fill: #e6edf3 }
      .small { fill: #8b949e }
    }"""


def document(width: int, height: int, title: str, parts: list[str]) -> str:
    """A whole picture on a card of its own, readable on any page."""
    body = "\n".join(f"  {part}" for part in parts)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
  <title>{escape(title)}</title>
  <style>
{_STYLE}
  </style>
  <rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>
{body}
</svg>
"""


def rect(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    """A box with round corners."""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"/>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text by its baseline."""
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "line") -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def tip(x: float, y: float, dx: int, dy: int) -> str:
    """The tip of an arrow that points along (dx, dy), one of them 0."""
    back_x, back_y = x - 8 * dx, y - 8 * dy
    sides = f"{back_x - 4 * dy:g},{back_y - 4 * dx:g} {back_x + 4 * dy:g},{back_y + 4 * dx:g}"
    return f'<polygon class="tip" points="{x:g},{y:g} {sides}"/>'
