"""The lower part of a picture: the packet of its flow on each leg, as a ladder."""

from __future__ import annotations

from nat_pod.names import SIDES
from nat_pod.pages import columns
from nat_pod.pages.journey import Journey, Stretch
from nat_pod.pages.svg import Paper, fit, mono


def draw_ladder(paper: Paper, flow: Journey, y: float) -> float:
    """Draw the packet on each leg, under the machines; returns where the drawing ends."""
    words = f"{flow.sender.member} opens a connection to {flow.receiver.member} at {flow.address}"
    paper.text(columns.MARGIN, y, fit(words, 960, bold=True), "head")
    paper.text(columns.END, y, "bold: changed by the NAT VM before", "quiet", "end")
    top, line = y + 34, y + 96
    rows = 1 + any(stretch.reply for stretch in flow.stretches)
    bottom = line + 44 * rows - 22
    ends = {columns.middle(slot.member): slot for slot in (flow.receiver, flow.sender)}
    for x, slot in ends.items():
        paper.text(x, top, fit(slot.member, 190), "", "middle")
        paper.text(x, top + 17, slot.real, "mono", "middle")
    for side in SIDES:
        paper.text(columns.middle(side), top + 8, side.prose, "", "middle")
    for x in (*ends, *map(columns.middle, SIDES)):
        paper.path(f"M{x} {top + 26:g}V{bottom:g}", "life")
    before: Stretch | None = None
    for stretch in flow.stretches:
        level = line + (44 if stretch.reply else 0)
        if before is None or before.reply != stretch.reply:
            before = None
            paper.text(columns.MARGIN, level + 4, "reply" if stretch.reply else "request", "quiet")
        _rung(paper, stretch, before, level)
        before = stretch
    if flow.dead:
        bottom += 26
        paper.text(columns.MARGIN, bottom, fit(flow.dead, columns.END - columns.MARGIN, bold=True), "dead head")
    return bottom


def _rung(paper: Paper, stretch: Stretch, before: Stretch | None, y: float) -> None:
    start, end = columns.middle(stretch.start), columns.middle(stretch.end)
    kind = "reply" if stretch.reply else "request"
    step = 6 if start < end else -6
    paper.path(f"M{start + step} {y:g}H{end - step}", kind, kind)
    words = [
        f'<tspan class="changed">{new}</tspan>' if before is not None and new != old else new
        for new, old in (
            (stretch.src, stretch.src if before is None else before.src),
            (stretch.dst, stretch.dst if before is None else before.dst),
        )
    ]
    middle = (start + end) / 2
    width = mono(f"{stretch.src} > {stretch.dst}")
    paper.number(middle - width / 2 - 4, y - 13, stretch.number, stretch.style)
    paper.parts.append(
        f'<text x="{middle + 10:g}" y="{y - 9:g}" class="mono" text-anchor="middle">{" &gt; ".join(words)}</text>'
    )
