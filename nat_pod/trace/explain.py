"""A trace for people: the hops, the steps of the machine where a flow dies, or every step of the way.

Steps are in the form of a firewall's packet-tracer: at each machine what was asked, what matched, and the header before
and after where it changes.  No line is wider than it is told to be, unless one word is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby

from nat_pod.trace.proof import Proof
from nat_pod.trace.walk import Disposition, Leg, Step, Trace

_LABEL = 27  # "  12. reverse-path filter  "


def trace_text(traced: Trace, title: str, *, every_step: bool, width: int) -> str:
    """`trace` for people.  every_step: the steps of both legs instead of the hops."""
    lines = _wrapped(title, width)
    for name, leg in zip(("request", "reply"), traced.legs, strict=False):
        lines.append(f"  {name}")
        if every_step:
            lines += _step_lines(leg, leg.steps, width)
            continue
        lines += _hop_lines(leg, width)
        if leg.reached is None:
            lines += _step_lines(leg, _last_machine(leg), width)
    return "\n".join([*lines, verdict_text(traced.disposition, traced.why, width)])


def verdict_text(disposition: Disposition, why: str, width: int) -> str:
    """What became of a flow, and, when it is not delivered, what that means."""
    lines = _wrapped(f"=> {disposition}: {why}", width, "   ")
    if disposition is not Disposition.DELIVERED:
        lines += _wrapped(f"   ({disposition.meaning})", width, "    ")
    return "\n".join(lines)


def _hop_lines(leg: Leg, width: int) -> list[str]:
    lines = []
    for number, hop in enumerate(leg.hops, 1):
        for rule in hop.rules:
            lines += _wrapped(f"         {rule}", width, " " * 11)
        lines += _wrapped(f"    {number}. {hop.at}: {hop.src} > {hop.dst}", width, " " * 7)
    return lines


def _last_machine(leg: Leg) -> list[Step]:
    """The steps at the machine where the packet dies, numbered as among all."""
    last = leg.steps[-1].machine
    first = len(leg.steps)
    while first > 0 and leg.steps[first - 1].machine == last:
        first -= 1
    return list(leg.steps[first:])


def _step_lines(leg: Leg, steps: list[Step] | tuple[Step, ...], width: int) -> list[str]:
    lines = []
    number = len(leg.steps) - len(steps)
    for machine, group in groupby(steps, key=lambda step: step.machine):
        made = list(group)
        lines += _wrapped(f"    at {machine}: {' > '.join(made[0].before)}", width, " " * 7)
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
        return [head.rstrip(), *(line for part in parts for line in _wrapped(rest + part, width, rest + "  "))]
    lines = _wrapped(head + parts[0], width, rest + "  ")
    for part in parts[1:]:
        lines += _wrapped(rest + part, width, rest + "  ")
    return lines


def _wrapped(text: str, width: int, rest: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


# --- trace --all -----------------------------------------------------------------------------------------------------

_MOST_SHOWN = 10  # of one kind; --json has them all


def proof_text(proof: Proof, stack: str, width: int) -> str:
    """`trace --all` for people: what was looked at, and what is not as declared."""
    lines = [
        f"POD {stack}: {proof.traced} packets traced",
        "",
        "Members and strangers, to each address that the NAT VM on their side has",
        *_table(
            ("from", "what", "pairs", "as declared"),
            [(count.realm, count.what, f"{count.pairs}", f"{count.as_declared}") for count in proof.counts],
        ),
        "",
        "Unknown senders that forge, outside their own network",
        *_table(
            ("in", "sources", "x destinations", "classes"),
            [(s.realm, f"{s.sources:,}", f"{s.destinations:,}", f"{s.traced}") for s in proof.sweeps],
        ),
        "",
    ]
    held = "every protocol and port" if proof.any_protocol else "TCP port 80 only: rules look at protocols or ports"
    lines += _wrapped(
        "One packet of each class that rules and network tell apart stands for all. Customers are taken to route "
        "everything to the POD. Not looked at: sources in another customer's network, which only OCI can prevent. "
        f"Holds for {held}.",
        width,
        "",
    )
    lines.append("")
    if not proof.counter_examples:
        return "\n".join([*lines, "=> all as declared: no counter-example"])
    for kind, group in groupby(proof.counter_examples, key=lambda one: one.kind):
        found = list(group)
        lines.append(f"{kind} ({len(found)})")
        for one in found[:_MOST_SHOWN]:
            more = f" (and {one.alike:,} more packets like it)" if one.alike else ""
            packet = f" {one.source} > {one.destination}{more}" if one.source else ""
            lines += _wrapped(f"  {one.sender}{packet}: {one.why}", width, "    ")
        if len(found) > _MOST_SHOWN:
            lines.append(f"  and {len(found) - _MOST_SHOWN} more, which --json lists")
    return "\n".join([*lines, f"=> {len(proof.counter_examples)} counter-examples"])


def proof_dict(proof: Proof) -> dict[str, object]:
    """The form of `trace --all --json`."""
    return {
        "traced": proof.traced,
        "anyProtocol": proof.any_protocol,
        "counts": [
            {"realm": c.realm, "what": c.what, "pairs": c.pairs, "asDeclared": c.as_declared} for c in proof.counts
        ],
        "unknownSenders": [
            {"realm": s.realm, "sources": s.sources, "destinations": s.destinations, "classes": s.traced}
            for s in proof.sweeps
        ],
        "counterExamples": [
            {
                "kind": one.kind,
                "sender": one.sender,
                "src": one.source or None,
                "dst": one.destination or None,
                "alike": one.alike,
                "why": one.why,
            }
            for one in proof.counter_examples
        ],
    }


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, numbers to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    numbers = [all(row[column].replace(",", "").isdigit() for row in rows) for column in range(len(header))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in (header, *rows)
    ]
