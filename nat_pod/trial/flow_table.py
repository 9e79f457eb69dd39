"""Flows that were tried with packets, as the tables of the article's section 5: what arrives, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nat_pod.text import table
from nat_pod.trace.flows import Flow

COLUMNS = {"icmp": "ICMP", "tcp": "HTTP", "udp": "UDP"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A flow that was tried with one protocol, a key of COLUMNS.

    seen: the source that the far end saw.  dies_of: what the tracer predicts.  problems: what is not as declared.
    """

    flow: Flow
    protocol: str
    seen: str | None
    dies_of: str
    problems: tuple[str, ...]


def flow_tables(tried: Sequence[Tried]) -> list[str]:
    """The two tables, and a line for each problem."""
    declared = _by_flow([one for one in tried if one.flow.receiver is not None])
    refused = _by_flow([one for one in tried if one.flow.receiver is None])
    return [
        "Declared flows, with packets",
        table(
            ["from", "to", "address used", *COLUMNS.values(), "the far end saw"],
            [
                [
                    flow.sender,
                    flow.receiver or "",
                    flow.to,
                    *(_mark(each, protocol, "pass") for protocol in COLUMNS),
                    ", ".join(sorted({one.seen for one in each if one.seen is not None})) or "nothing",
                ]
                for flow, each in declared
            ],
        ),
        "",
        "Flows that must not connect, with packets",
        table(
            ["what", "from", "source", "to", *COLUMNS.values(), "dies of"],
            [
                [
                    flow.why,
                    flow.sender,
                    flow.source,
                    flow.to,
                    *(_mark(each, protocol, "refused") for protocol in COLUMNS),
                    each[0].dies_of,
                ]
                for flow, each in refused
            ],
        ),
        "",
        *(
            f"FAIL {one.flow.sender} to {one.flow.to} {COLUMNS[one.protocol].lower()}: {problem}"
            for one in tried
            for problem in one.problems
        ),
    ]


def _by_flow(tried: Sequence[Tried]) -> list[tuple[Flow, list[Tried]]]:
    """What was tried, by flow, in order."""
    grouped: dict[Flow, list[Tried]] = {}
    for one in tried:
        grouped.setdefault(one.flow, []).append(one)
    return list(grouped.items())


def _mark(tried: Sequence[Tried], protocol: str, good: str) -> str:
    for one in tried:
        if one.protocol == protocol:
            return "FAIL" if one.problems else good
    return "-"
