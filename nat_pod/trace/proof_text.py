"""`trace --all` as text and as JSON: what was looked at, and what is not as declared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from nat_pod.trace.open_ports import WayIn
from nat_pod.trace.proof import Proof
from nat_pod.trace.trace_text import wrapped

_MOST_SHOWN = 10  # of one kind; --json has them all
_MOST_ADDRESSES = 3


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
        "ICMP errors: about flows of the writer's network, of others, and about none",
        *_table(
            ("in", "own", "others'", "no flow"),
            [(e.realm, f"{e.own}", f"{e.others}", f"{e.none}") for e in proof.errors],
        ),
        "",
        "ssh that a NAT VM answers: TCP 22, to every address of the POD",
        *_table(("from", "by", "at"), [(way.sender, way.vm, _addresses(way)) for way in proof.ways_in]),
        *([] if proof.ways_in else ["  nobody's"]),
        "",
    ]
    lines += wrapped(
        "One packet of each class that rules and network tell apart stands for all. Customers are taken to route "
        "everything to the POD. Not looked at: sources in another customer's network, which only OCI can prevent. "
        f"Holds for {proof.holds_for}. An ICMP error is to arrive if it is about a flow of its writer's network, "
        "and no other is.",
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
            lines += wrapped(f"  {one.sender}{packet}: {one.why}", width, "    ")
        if len(found) > _MOST_SHOWN:
            lines.append(f"  and {len(found) - _MOST_SHOWN} more, which --json lists")
    return "\n".join([*lines, f"=> {len(proof.counter_examples)} counter-examples"])


def _addresses(way: WayIn) -> str:
    more = len(way.addresses) - _MOST_ADDRESSES
    return ", ".join(way.addresses[:_MOST_ADDRESSES]) + (f" and {more} more" if more > 0 else "")


def proof_dict(proof: Proof) -> dict[str, object]:
    """The form of `trace --all --json`."""
    return {
        "traced": proof.traced,
        "holdsFor": proof.holds_for.name,
        "counts": [
            {"realm": c.realm, "what": c.what, "pairs": c.pairs, "asDeclared": c.as_declared} for c in proof.counts
        ],
        "unknownSenders": [
            {"realm": s.realm, "sources": s.sources, "destinations": s.destinations, "classes": s.traced}
            for s in proof.sweeps
        ],
        "errors": [{"realm": e.realm, "own": e.own, "others": e.others, "none": e.none} for e in proof.errors],
        "waysIn": [{"from": w.sender, "by": w.vm, "at": list(w.addresses)} for w in proof.ways_in],
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
