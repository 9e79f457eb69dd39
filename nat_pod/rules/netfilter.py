"""Netfilter rules as values: what a rule matches and what it does, nothing about text or kernels.

The compiler (`compiler.py`) makes these values, `iptables.py` writes and reads them as text, and the tracer
(`trace/chains.py`) interprets them.  So a rule means the same to all of them.

Facts this module rests on
- Only the first packet of a flow meets the nat table; conntrack repeats the translation for the rest and undoes
  it for replies (netfilter documentation, "NAT HOWTO"; measured, see docs/performance.md).
- A chain entered by goto (`-g`) returns to the caller's caller at its end, so `-g` makes a decision tree: once a
  branch is taken no other branch is looked at.
- Chain names hold at most 28 characters (XT_EXTENSION_MAXNAMELEN is 29 with the final NUL).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nat_pod.config.services import Ports

CHAIN_NAME_LIMIT = 28
OWN_PREFIX = "NATPOD-"


OPENING = "FIN,SYN,RST,ACK SYN"
"""The TCP flags of a segment that opens a connection: of these four SYN alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AboveBound:
    """A sample of new flows, one in `sample` by chance, that finds more than `above` of the sampled ones open.

    The kernel counts by walking a list of the flows counted before; a sample keeps that list short.  A packet that
    matches also sets the mark `name` (see `Marked`).  by_destination: each destination has its own count and mark.
    """

    name: str
    above: int
    sample: int
    by_destination: bool = False

    def __str__(self) -> str:
        """`16128 to one server`, `262144 in all`."""
        return f"{self.above * self.sample} {'to one server' if self.by_destination else 'in all'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Marked:
    """The mark `name` was set in the last `seconds`; by_destination: for the packet's own destination."""

    name: str
    seconds: int
    by_destination: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """Conditions that must all hold.  Networks are canonical text, always with a prefix length ("10.0.0.100/32")."""

    in_interface: str | None = None
    source: str | None = None
    destination: str | None = None
    protocol: str | None = None  # "tcp", "udp" or "icmp"
    source_port: Ports | None = None
    destination_port: Ports | None = None
    icmp_type: int | None = None
    tcp_flags: str | None = None  # which flags are looked at, and which of them are set: OPENING
    ctstate: tuple[str, ...] = ()  # any of INVALID NEW RELATED ESTABLISHED SNAT DNAT, in this order
    opened_from: str | None = None  # of the flow that the packet belongs to: who sent its first packet (--ctorigsrc)
    answered_from: str | None = None  # who answers that flow, behind the translation (--ctreplsrc)
    bound: AboveBound | Marked | None = None  # whether too many flows are open


@dataclass(frozen=True, slots=True)
class Accept:
    """End the table's walk: let the packet pass."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Discard the packet without an answer."""


@dataclass(frozen=True, slots=True)
class Goto:
    """Continue in `chain`; its end returns to the caller of this chain, not to this chain."""

    chain: str


@dataclass(frozen=True, slots=True)
class Dnat:
    """Replace the destination by one address (nat PREROUTING)."""

    to: str


@dataclass(frozen=True, slots=True)
class Snat:
    """Replace the source by one address (nat POSTROUTING)."""

    to: str


@dataclass(frozen=True, slots=True)
class Netmap:
    """Replace a network's prefix and keep the host bits: destination in PREROUTING, source in POSTROUTING."""

    to: str


Target = Accept | Drop | Goto | Dnat | Snat | Netmap


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a chain.

    member: the full name of the member it is for ("customer1/vm1"); "" when it is not for a single member.
    note: what it is for, in a few words without a slash; "" when there is nothing to say.
    A rule is for a member or has a note: a line has room for one comment.  `iptables.py` says how it is written.

    Raises ValueError for a rule with both.
    """

    match: Match
    target: Target
    member: str = field(default="", kw_only=True)
    note: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if self.member and self.note:
            raise ValueError(f"a rule for {self.member} cannot have the note {self.note!r}, too")


@dataclass(frozen=True, slots=True)
class Chain:
    """One of our own chains; its name starts with `NATPOD-`."""

    name: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Hook:
    """Our chain `chain` is entered by the first rule of the built-in chain `builtin`."""

    builtin: str  # PREROUTING, POSTROUTING, FORWARD, INPUT or OUTPUT
    chain: str


@dataclass(frozen=True, slots=True)
class Table:
    """Our part of one netfilter table."""

    name: str  # "filter" or "nat"
    hooks: tuple[Hook, ...]
    chains: tuple[Chain, ...]

    def chain(self, name: str) -> Chain:
        """The chain called `name`.  Raises KeyError when there is none: a jump into nowhere is a bug."""
        for chain in self.chains:
            if chain.name == name:
                return chain
        raise KeyError(name)

    def hooked(self, builtin: str) -> Chain | None:
        """Our chain behind a built-in chain, None when we do not hook it."""
        for hook in self.hooks:
            if hook.builtin == builtin:
                return self.chain(hook.chain)
        return None


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Everything that one NAT VM loads.  `filter` comes first: the guard must stand before the translations do."""

    filter: Table
    nat: Table

    @property
    def tables(self) -> tuple[Table, Table]:
        """Both tables in the order in which they are loaded."""
        return (self.filter, self.nat)

    def rule_count(self) -> int:
        """Number of rules in all chains, hooks apart."""
        return sum(len(chain.rules) for table in self.tables for chain in table.chains)
