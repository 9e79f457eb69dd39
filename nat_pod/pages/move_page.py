"""The steps of a move as text for a terminal of 80 columns, or as a page in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nat_pod.pages.move import NOT_LOOKED_AT, MoveSheet, Step
from nat_pod.text import count, wrapped_lines


def sheet_text(sheet: MoveSheet) -> str:
    """The sheet for a terminal."""
    lines = [
        f"Move of {sheet.old} to {sheet.new}: {count(len(sheet.steps), 'step')}",
        *wrapped_lines(_summary(sheet), 80, "  ", "  "),
    ]
    for number, step in enumerate(sheet.steps, 1):
        lines += ["", f"{number}. {step.title} ({_who(step)})"]
        for name, entries in _parts(step):
            for place, entry in enumerate(entries):
                lines += wrapped_lines(entry, 80, " " * 9, f"   {name if place == 0 else '':<5} ")
    return "\n".join([*lines, "", *wrapped_lines(_unseen(), 80, "  ", "  ")])


def sheet_page(sheet: MoveSheet) -> str:
    """The sheet in Markdown."""
    parts = [f"# Move of POD `{sheet.old}` to `{sheet.new}`", _summary(sheet)]
    for number, step in enumerate(sheet.steps, 1):
        parts.append(f"## {number}. {step.title}")
        parts.append(f"Who: {_who(step)}")
        for name, entries in _parts(step):
            parts.append(f"**{name.capitalize()}**")
            parts.append("\n".join(f"{place}. {entry}" for place, entry in enumerate(entries, 1)))
    return "\n\n".join([*parts, _unseen()])


def _who(step: Step) -> str:
    shown = step.who if len(step.who) <= 3 else (*step.who[:2], f"{len(step.who) - 2} more")
    return ", ".join(shown)


def _parts(step: Step) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "do", step.do
    if step.ends:
        yield "ends", (_ends(step),)
    yield "see", step.see
    yield "back", step.back


def _summary(sheet: MoveSheet) -> str:
    ended = len(sheet.ends)
    if ended == 0:
        return (
            f"Every neighbour keeps the addresses it knows, and all {sheet.flows} flows keep their open connections, "
            "in each step and when it is taken back."
        )
    kept = sheet.flows - ended
    text = (
        f"Every neighbour keeps the addresses it knows. {sheet.old} has sourceNat: {sheet.policy}: the open "
        f"connections of {ended} of {sheet.flows} flows end, in the step in which their customer switches, because "
        "their receivers see the sender's own address from then on."
    )
    if kept and sheet.policy.shares_addresses:
        text += (
            f" In the other {kept} flows receivers see that address already; of these a connection ends only where the "
            "NAT VM had to give it another port."
        )
    return text


def _ends(step: Step) -> str:
    seen = Counter((ending.receiver.realm, ending.before) for ending in step.ends)
    groups = [f"{count(number, 'flow')} that {realm} sees as {before}" for (realm, before), number in seen.items()]
    return (
        f"the open connections of {' and of '.join(groups)}; new ones have their sender's own address, and end if "
        "the step is taken back"
    )


def _unseen() -> str:
    return f"Not looked at: {'; '.join(NOT_LOOKED_AT)}."
