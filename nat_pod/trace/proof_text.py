"""`trace --all` as text and as JSON: what was looked at, and what is not as declared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from nat_pod.text import some, table, wrapped_lines
from nat_pod.trace.open_ports import WayIn
from nat_pod.trace.proof import Proof

_MOST_SHOWN = 10  # of one kind; --json has them all
_MOST_NAMED = 3


def proof_text(proof: Proof, stack: str, width: int) -> str:
    """`trace --all` for people: what was looked at, and what is not as declared."""
    lines = [
        f"POD {stack}: {proof.traced} packets traced",
        "",
        "From members and strangers to every address of the NAT VM on their side",
        table(
            ("from", "what", "pairs", "as declared"),
            [(count.realm, count.what, f"{count.pairs}", f"{count.as_declared}") for count in proof.counts],
            numbers=True,
        ),
        "",
        "From unknown senders that forge sources, to everything outside their own network",
        table(
            ("in", "sources", "x destinations", "classes"),
            [(s.realm, f"{s.sources:,}", f"{s.destinations:,}", f"{s.traced}") for s in proof.sweeps],
            numbers=True,
        ),
        "",
        "ICMP errors: about flows of the writer's network, of others, and about none",
        table(
            ("in", "own", "others'", "no flow"),
            [(e.realm, f"{e.own}", f"{e.others}", f"{e.none}") for e in proof.errors],
            numbers=True,
        ),
        "",
        "ssh that a NAT VM answers: TCP 22, to every address of the POD",
        table(("at", "of", "from"), _ways(proof.ways_in)),
        *([] if proof.ways_in else ["  nobody's"]),
        "",
        *_one_way(proof),
    ]
    lines += wrapped_lines(
        "One packet was traced for each class of packets that the rules and the network treat alike. Assumed: each "
        "customer routes everything to the POD, and is below its bound of open flows. "
        "Not looked at: sources in another customer's network, which only OCI can prevent. "
        f"Holds for {proof.holds_for}. An ICMP error has to arrive if it is about a flow of its writer's network, "
        "and must not otherwise.",
        width,
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
            lines += wrapped_lines(f"  {one.sender}{packet}: {one.why}", width, "    ")
        if len(found) > _MOST_SHOWN:
            lines.append(f"  and {len(found) - _MOST_SHOWN} more, which --json lists")
    return "\n".join([*lines, f"=> {len(proof.counter_examples)} counter-examples"])


def _one_way(proof: Proof) -> list[str]:
    """What only OCI can prevent: nobody is answered, and a packet gets in all the same."""
    if not proof.one_way:
        return []
    return [
        "Let in, and answered to the owner of the source: only OCI can prevent it",
        table(("at", "of", "from"), _ways(proof.one_way)),
        "",
    ]


def _ways(ways: Sequence[WayIn]) -> list[tuple[str, str, str]]:
    """A row for each machine and the addresses at which it lets the same senders in."""
    senders: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for way in ways:
        senders.setdefault((way.vm, way.addresses), []).append(way.sender)
    return [(some(addresses, _MOST_NAMED), vm, some(names, _MOST_NAMED)) for (vm, addresses), names in senders.items()]


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
        "oneWay": [{"from": w.sender, "to": w.vm, "at": list(w.addresses)} for w in proof.one_way],
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
