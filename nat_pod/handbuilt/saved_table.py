"""Somebody's nat table as values: rules, chains, and the lines that could not be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from nat_pod.handbuilt.numeric import ANY, Range

BUILT_IN = ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")


class Action(StrEnum):
    """What a rule does.  `LOG` stands for every target that looks at a packet and lets it go on."""

    DNAT = "DNAT"
    SNAT = "SNAT"
    NETMAP = "NETMAP"
    MASQUERADE = "MASQUERADE"
    ACCEPT = "ACCEPT"
    RETURN = "RETURN"
    JUMP = "jump"
    GOTO = "goto"
    LOG = "LOG"


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedRule:
    """One rule of the nat table.

    line, text: the line's number and text, without counters.  not_source, not_destination: networks behind a `!`.
    to: the new address or network.  chain: the one it jumps to.  narrow: conditions that are not evaluated, as written;
    a rule with such conditions applies only to some of the packets.
    """

    line: int
    text: str
    source: Range = ANY
    destination: Range = ANY
    not_source: Range | None = None
    not_destination: Range | None = None
    in_interface: str | None = None  # "! docker0" when negated
    out_interface: str | None = None
    ctstate: frozenset[str] | None = None
    comment: str = ""
    narrow: str = ""
    action: Action | None = None  # None: it only counts
    to: Range | None = None
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Unread:
    """A line that is not understood, and why."""

    line: int
    text: str
    why: str


@dataclass(slots=True)
class SavedTable:
    """The nat table of one VM: its chains, what could not be read, and the number of rules in other tables."""

    chains: dict[str, list[SavedRule]] = field(default_factory=lambda: {name: [] for name in BUILT_IN})
    unread: list[Unread] = field(default_factory=list)
    other_tables: dict[str, int] = field(default_factory=dict)

    def rules(self) -> Iterator[tuple[str, SavedRule]]:
        """All rules, each with its chain."""
        for name, rules in self.chains.items():
            for rule in rules:
                yield name, rule
