"""Elements of an SVG file: text, boxes, lines, and how wide a text is.

The file is complete in itself, and follows the reader's light or dark theme.
"""

from __future__ import annotations

from html import escape

_MONO = 0.61  # the width of a letter of an address, of its size: the widest of the fonts asked for

_STYLE = """\
text { font-family: system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1f2328; font-size: 13px }
.mono { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace; font-size: 12px }
.title { font-size: 20px; font-weight: 600 }
.head { font-weight: 600 }
.quiet { fill: #59636e; font-size: 12px }
.changed { font-weight: 700 }
.paper { fill: #ffffff }
.net { fill: #f6f8fa; stroke: #afb8c1 }
.pod { fill: #eaf3ff; stroke: #0969da; stroke-width: 1.5 }
.vm { fill: #ffffff; stroke: #0969da }
.row { fill: #f6f8fa }
.cell { fill: #ffffff }
.used { fill: #fff8c5; stroke: #d4a72c }
.lpg { fill: #ffffff; stroke: #57606a }
.link { fill: none; stroke: #afb8c1 }
.life { stroke: #afb8c1; stroke-dasharray: 2 4 }
.request { fill: none; stroke: #1a7f37; stroke-width: 2 }
.reply { fill: none; stroke: #8250df; stroke-width: 2; stroke-dasharray: 7 4 }
.requests { fill: #1a7f37 }
.replies { fill: #8250df }
.dead { fill: #cf222e }
.number { fill: #ffffff; font-size: 11px; font-weight: 700 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.quiet { fill: #9198a1 }
.paper { fill: #0d1117 }
.net { fill: #151b23; stroke: #656c76 }
.pod { fill: #10203a; stroke: #4493f8 }
.vm { fill: #0d1117; stroke: #4493f8 }
.row { fill: #151b23 }
.cell { fill: #0d1117 }
.used { fill: #3b2e0a; stroke: #bb8009 }
.lpg { fill: #0d1117; stroke: #9198a1 }
.link, .life { stroke: #656c76 }
.request { stroke: #3fb950 }
.reply { stroke: #ab7df8 }
.requests { fill: #3fb950 }
.replies { fill: #ab7df8 }
.dead { fill: #f85149 }
.number { fill: #0d1117 }
}"""


def fit(text: str, pixels: float, size: float = 13, bold: bool = False) -> str:
    """`text`, cut off where it would not fit."""
    if width(text, size, bold) <= pixels:
        return text
    while text and width(f"{text}…", size, bold) > pixels:
        text = text[:-1]
    return f"{text}…"


def width(text: str, size: float, bold: bool) -> float:
    """The width of a text in the widest of the fonts asked for, DejaVu Sans."""
    letters = sum(0.98 if letter in "mwMW…" else 0.42 if letter in "fijlrt-./,: " else 0.66 for letter in text)
    return size * (letters + 0.08 * len(text) * bold)


def mono(text: str) -> float:
    """The width of an address."""
    return len(text) * 12 * _MONO


class Paper:
    """The elements of the drawing, in the order in which they are painted."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "start") -> None:
        """One line.  style: a class of the style sheet.  anchor: which end of the line is at x."""
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        kind = f' class="{style}"' if style else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{kind}{where}>{escape(words, quote=False)}</text>')

    def box(self, x: float, y: float, width: float, height: float, style: str, radius: float = 6) -> None:
        """A rectangle with round corners; x and y are its upper left one."""
        self.parts.append(
            f'<rect class="{style}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"/>'
        )

    def path(self, points: str, style: str, marker: str = "") -> None:
        """A line, as SVG writes its points.  marker: the arrow head at its end, `request` or `reply`."""
        end = f' marker-end="url(#{marker})"' if marker else ""
        self.parts.append(f'<path class="{style}" d="{points}"{end}/>')

    def number(self, x: float, y: float, number: int, style: str) -> None:
        """A number in a filled circle."""
        self.parts.append(f'<circle class="{style}" cx="{x:g}" cy="{y:g}" r="8"/>')
        self.text(x, y + 4, str(number), "number", "middle")


def bend(x1: float, y1: float, x2: float, y2: float, off: float = 0) -> str:
    """From where the pen is, (x1, y1), to (x2, y2): leaves and arrives level.

    off: how far below its pair the line runs; on a slope it is kept as far to the side.
    """
    middle = (x1 + x2) / 2 - (off if (x2 - x1) * (y2 - y1) > 0 else -off)
    return f"C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"


def _arrow(name: str, style: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path class="{style}" d="M0 0L10 5L0 10z"/></marker>'
    )


def document(title: str, width: int, height: float, parts: list[str]) -> str:
    """The text of the file: the background below all parts, and the arrow heads of requests and replies."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}" '
            f'height="{height:g}" role="img">',
            f"<title>{escape(title, quote=False)}</title>",
            f"<style>\n{_STYLE}\n</style>",
            f"<defs>{_arrow('request', 'requests')}{_arrow('reply', 'replies')}</defs>",
            f'<rect class="paper" width="{width}" height="{height:g}"/>',
            *parts,
            "</svg>",
            "",
        ]
    )
