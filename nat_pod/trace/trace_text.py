"""A trace as text: the hops, the steps of the machine where a flow dies, or every step of the way.

Steps have the form of a firewall's packet-tracer: at each machine, what was asked, what matched, and the header before
and after where it changes.  No line is wider than asked for, unless a single word is.
"""

from __future__ import annotations

from itertools import groupby

from nat_pod.text import wrapped_lines
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.explain import Step
from nat_pod.trace.walk import Leg, Trace

_LABEL = 27  # "  12. reverse-path filter  "


def trace_text(traced: Trace, title: str, *, every_step: bool, width: int) -> str:
    """`trace` for people.  every_step: the steps of both legs instead of the hops."""
    lines = wrapped_lines(title, width, "  ")
    for name, leg in zip(("request", "reply"), traced.legs, strict=False):
        lines.append(f"  {name}")
        if every_step:
            lines += _step_lines(leg.steps, 0, width)
            continue
        lines += _hop_lines(leg, width)
        if leg.reached is None:
            lines += _step_lines(leg.steps[_last_machine(leg.steps) :], len(leg.hops), width)
    return "\n".join([*lines, verdict_text(traced.disposition, traced.why, width)])


def verdict_text(disposition: Disposition, why: str, width: int) -> str:
    """What became of a flow and, if it is not delivered, what that means."""
    lines = wrapped_lines(f"=> {disposition}: {why}", width, "   ")
    if disposition is not Disposition.DELIVERED:
        lines += wrapped_lines(f"   ({disposition.meaning})", width, "    ")
    return "\n".join(lines)


def _hop_lines(leg: Leg, width: int) -> list[str]:
    lines = []
    for number, hop in enumerate(leg.hops, 1):
        for rule in hop.rules:
            lines += wrapped_lines(f"         {rule}", width, " " * 11)
        lines += wrapped_lines(f"    {number}. {hop.at}: {hop.src} > {hop.dst}", width, " " * 7)
    return lines


def _last_machine(steps: tuple[Step, ...]) -> int:
    """The number, from 0, of the first step at the machine where the packet dies."""
    first = len(steps)
    while first > 0 and steps[first - 1].machine == steps[-1].machine:
        first -= 1
    return first


def _step_lines(steps: tuple[Step, ...], number: int, width: int) -> list[str]:
    """The steps, numbered on from `number`: that of the last hop above them, 0 where none is."""
    lines = []
    for machine, group in groupby(steps, key=lambda step: step.machine):
        made = list(group)
        lines += wrapped_lines(f"    at {machine}: {' > '.join(made[0].before)}", width, " " * 7)
        for step in made:
            number += 1
            lines += _one_step(number, step, width)
    return lines


def _one_step(number: int, step: Step, width: int) -> list[str]:
    head = f"{number:5}. {step.phase}".ljust(_LABEL) + "  "
    # In a terminal that is too narrow for two columns the decision goes below its name.
    rest = " " * len(head) if width >= 2 * _LABEL else " " * 7
    parts = [] if not step.chains else [" > ".join(step.chains)]
    parts.append(step.rule if step.passed else f"DROPPED: {step.rule}")
    if step.before != step.after:
        parts += [f"before {' > '.join(step.before)}", f"after  {' > '.join(step.after)}"]
    if width < 2 * _LABEL:
        return [head.rstrip(), *(line for part in parts for line in wrapped_lines(rest + part, width, rest + "  "))]
    lines = wrapped_lines(head + parts[0], width, rest + "  ")
    for part in parts[1:]:
        lines += wrapped_lines(rest + part, width, rest + "  ")
    return lines
