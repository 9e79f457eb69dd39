"""docs/new-flow.svg: what a new flow costs against the number of mappings, from the table in results.md.

    python -m bench.plot

`make bench` runs it after the measurement, so that the picture and the table are of the same run.  Standard library
only; the picture follows its reader's light or dark theme (prefers-color-scheme), as docs/pod.svg does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
RESULTS = _HERE / "results.md"
PLOT = _HERE.parent / "docs" / "new-flow.svg"

WIDTH, HEIGHT = 640, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 622, 66, 372  # the axes, in pixels of the picture
MOST_SLOTS, MOST_COST = 940, 24
_X_TICKS = (1, 29, 435, 696, 936)
_Y_TICKS = (0, 4, 8, 12, 16, 20, 24)

# | article 696 to host | 69.24 | 17.07 (16.92-17.32) | ...: the second column of figures, times plain routing.
_ROW = re.compile(r"\| (\w+) (\d+) to (host|server) \| [\d.]+ \| ([\d.]+) \(([\d.]+)-([\d.]+)\) \|")


@dataclass(frozen=True, slots=True)
class Cost:
    """A new flow, as a multiple of plain routing: the median, and the least and greatest median of a run's parts."""

    rules: str
    slots: int
    towards: str
    median: float
    least: float
    greatest: float


def costs(results: str) -> list[Cost]:
    """The rows of the table "New flows" of results.md.  Raises ValueError when there is none."""
    table = results.partition("\n## New flows\n")[2].partition("\n## ")[0]
    found = [
        Cost(rules, int(slots), towards, float(median), float(least), float(greatest))
        for rules, slots, towards, median, least, greatest in _ROW.findall(table)
    ]
    if not found:
        raise ValueError(f"{RESULTS.name} has no row like: | static 696 to host | 9.19 | 2.30 (2.27-2.33) | ...")
    return found


def draw(found: Iterable[Cost]) -> str:
    """The picture.  A browser shows the <title> of a point that the mouse is on."""
    lines: dict[tuple[str, str], list[Cost]] = {}
    for cost in found:
        lines.setdefault((cost.rules, cost.towards), []).append(cost)
    article = {towards: points for (rules, towards), points in lines.items() if rules == "article"}
    ours = [points for (rules, _), points in lines.items() if rules != "article"]
    ends = [points[-1].median for points in ours]
    parts = [_HEAD, *_axes()]
    for points in article.values():
        parts += _line("article", points)
    for points in ours:
        parts += _line("ours", points)
    for towards, points in article.items():
        x, y = _x(points[-1].slots) + 10, _y(points[-1].median) + 6
        parts.append(_text("label article-text", x, y, f"to {towards}s: {points[-1].median:.1f}", "start"))
    parts.append(_text("label article-text", _x(430), _y(17), "the article's rules", "end"))
    said = f"nat-pod, both deliveries, both ways: {min(ends):.1f} to {max(ends):.1f}"
    parts.append(_text("label ours-text", _x(MOST_SLOTS), _y(3.7), said, "end"))
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    """Write the picture again from results.md."""
    PLOT.write_text(draw(costs(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"{PLOT.relative_to(_HERE.parent)}: written")
    return 0


_HEAD = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"
width="{WIDTH}" height="{HEIGHT}" role="img">
<title>What a new flow costs, against the number of mappings</title>
<style>
text {{ font-family: system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1f2328; font-size: 17px }}
.title {{ font-size: 20px; font-weight: 600 }}
.quiet {{ fill: #59636e }}
.label {{ font-weight: 600 }}
.label, .halo {{ paint-order: stroke; stroke: #ffffff; stroke-width: 5px; stroke-linejoin: round }}
.paper {{ fill: #ffffff }}
.grid {{ stroke: #d1d9e0 }}
.plain {{ stroke: #59636e; stroke-dasharray: 4 4 }}
.article {{ fill: none; stroke: #bc4c00; stroke-width: 2.5 }}
.ours {{ fill: none; stroke: #0969da; stroke-width: 2.5 }}
circle.article {{ fill: #bc4c00; stroke: none }}
circle.ours {{ fill: #0969da; stroke: none }}
.article-text {{ fill: #bc4c00 }}
.ours-text {{ fill: #0969da }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3 }}
.quiet {{ fill: #9198a1 }}
.paper {{ fill: #0d1117 }}
.label, .halo {{ stroke: #0d1117 }}
.grid {{ stroke: #3d444d }}
.plain {{ stroke: #9198a1 }}
.article {{ stroke: #f0883e }}
.ours {{ stroke: #4493f8 }}
circle.article {{ fill: #f0883e }}
circle.ours {{ fill: #4493f8 }}
.article-text {{ fill: #f0883e }}
.ours-text {{ fill: #4493f8 }}
}}
</style>
<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>
<text class="title" x="14" y="27">A new flow, as a multiple of plain routing</text>
<text class="quiet" x="14" y="50">first UDP packet through both NAT VMs</text>"""


def _axes() -> list[str]:
    parts = []
    for cost in _Y_TICKS:
        parts.append(f'<path class="grid" d="M{_LEFT} {_y(cost)}H{_RIGHT}"/>')
        parts.append(_text("quiet y-tick", _LEFT - 10, _y(cost) + 6, str(cost), "end"))
    parts.append(f'<path class="plain" d="M{_LEFT} {_y(1)}H{_RIGHT}"/>')
    parts.append(_text("quiet halo", _x(232), _y(1) + 6, "plain routing", "middle"))
    for slots in _X_TICKS:
        # 1 and 29 are close together: one number would lie on the other.
        parts.append(f'<path class="grid" d="M{_x(slots)} {_BOTTOM}v6"/>')
        nudge = -3 if slots == _X_TICKS[0] else 4 if slots == _X_TICKS[1] else 0
        parts.append(_text("quiet x-tick", _x(slots) + nudge, _BOTTOM + 25, str(slots), "middle"))
    middle = (_LEFT + _RIGHT) / 2
    parts.append(_text("quiet", middle, _BOTTOM + 52, "mappings (slots in use)", "middle"))
    return parts


def _line(kind: str, points: list[Cost]) -> list[str]:
    way = " ".join(f"{_x(cost.slots)},{_y(cost.median)}" for cost in points)
    parts = [f'<polyline class="{kind}" points="{way}"/>']
    for cost in points:
        said = f"{cost.rules} {cost.slots} to {cost.towards}: {cost.median:.2f} ({cost.least:.2f}-{cost.greatest:.2f})"
        parts.append(f'<path class="{kind}" d="M{_x(cost.slots)} {_y(cost.least)}V{_y(cost.greatest)}"/>')
        parts.append(
            f'<circle class="{kind}" cx="{_x(cost.slots)}" cy="{_y(cost.median)}" r="4"><title>{said}</title></circle>'
        )
    return parts


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text}</text>'


def _x(slots: float) -> float:
    return round(_LEFT + (_RIGHT - _LEFT) * slots / MOST_SLOTS, 2)


def _y(cost: float) -> float:
    return round(_BOTTOM - (_BOTTOM - _TOP) * cost / MOST_COST, 2)


if __name__ == "__main__":
    sys.exit(main())
