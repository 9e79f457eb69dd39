"""A packet's addresses and ports while the tracer follows it, and for which others its way is the same.

A `Span` is one address or port of a packet, with the interval around it that nothing has told apart from it so far.
Every test narrows the interval, so what happens to this packet happens to every packet of the interval.  That makes a
proof over all addresses and ports possible without trying each one (`proof.py`).

Addresses are numbers here: a trace compares thousands of them, and making text costs more than the comparison.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from netaddr import IPNetwork

from nat_pod import ipv4

LAST_ADDRESS = 2**32 - 1
UNREACHABLE, FRAGMENTATION_NEEDED = 3, 4
"""The type and the code of the ICMP error that path MTU discovery lives by."""
_KEPT = 1 << 16  # addresses and networks of a full POD, which are looked at again and again


class Span:
    """An address as it is now, and the interval (`low` to `high`) of those that met the same decisions so far."""

    __slots__ = ("_fixed", "_moved", "high", "low", "value")

    def __init__(self, value: int) -> None:
        self.value = value
        self.low, self.high = 0, LAST_ADDRESS
        self._moved = 0
        self._fixed: tuple[int, int] | None = None

    def inside(self, first: int, last: int) -> bool:
        """Whether the address is one of `first` to `last`; the interval then lies on one side of that border."""
        if self.value < first:
            self.narrow(0, first - 1)
            return False
        if self.value > last:
            self.narrow(last + 1, LAST_ADDRESS)
            return False
        self.narrow(first, last)
        return True

    def narrow(self, low: int, high: int) -> None:
        """Only `low` to `high`, among which the address is, are treated like it."""
        if low > self.low:
            self.low = low
        if high < self.high:
            self.high = high

    def become(self, value: int) -> None:
        """A translation to one address: from here on the whole interval is that address."""
        if self._fixed is None:
            self._fixed = self.origin()
        self.value = value
        self.low, self.high = 0, LAST_ADDRESS

    def move(self, network: int, host_bits: int) -> None:
        """A translation of a prefix: the host bits are kept, so the interval moves along."""
        block = self.value & ~host_bits
        self.narrow(block, block | host_bits)
        by = network - block
        self.value, self.low, self.high = self.value + by, self.low + by, self.high + by
        self._moved += by

    def pin(self) -> None:
        """This address and no other."""
        self.narrow(self.value, self.value)

    def origin(self) -> tuple[int, int]:
        """The interval in terms of the address that the packet started with."""
        return self._fixed or (self.low - self._moved, self.high - self._moved)


class Segment(Enum):
    """What a packet is in its flow.  Rules and conntrack look at it for TCP."""

    OPENS = "the first of a flow: of TCP a SYN"
    ANSWERS = "the first answer: of TCP a SYN-ACK"
    GOES_ON = "of TCP a segment without SYN, which a NAT VM that takes over may meet first"


FlowKey = tuple[str, int, int, int, int]
"""Protocol, source, destination and both ports."""


@dataclass(slots=True)
class Header:
    """What a rule can look at.  For ICMP the two ports are the echo identifier.

    about: of an ICMP error the inverse of the packet that it quotes, which is how conntrack finds the flow: a packet of
    that flow which goes the error's way.  ends: on a NAT VM that knows this flow, who opened it and who answers it.
    """

    src: Span
    dst: Span
    protocol: str
    sport: Span
    dport: Span
    icmp_type: int | None
    about: FlowKey | None = None
    ends: tuple[int, int] | None = None
    segment: Segment = Segment.OPENS

    @property
    def icmp_code(self) -> int:
        """Of "unreachable" the code is that of path MTU discovery; the other types that are traced have none."""
        return FRAGMENTATION_NEEDED if self.icmp_type == UNREACHABLE else 0

    def alone(self) -> Header:
        """The same header with intervals of its own, that nothing has narrowed yet."""
        src, dst, sport, dport = (Span(one.value) for one in (self.src, self.dst, self.sport, self.dport))
        return Header(src, dst, self.protocol, sport, dport, self.icmp_type, self.about, self.ends, self.segment)

    def narrow(self, other: Header) -> None:
        """It stands for no more packets than another header that has the same addresses and ports."""
        self.src.narrow(other.src.low, other.src.high)
        self.dst.narrow(other.dst.low, other.dst.high)
        self.sport.narrow(other.sport.low, other.sport.high)
        self.dport.narrow(other.dport.low, other.dport.high)

    def pin(self) -> None:
        """It stands for itself and no other packet; an answer also for answers to the same request at other ports.

        Only the ports of the request and those of its answer are compared exactly, and they are the same.
        """
        self.src.pin()
        self.dst.pin()
        if self.segment is not Segment.ANSWERS:
            self.sport.pin()
            self.dport.pin()

    def key(self) -> FlowKey:
        """What conntrack knows a packet by."""
        return (self.protocol, self.src.value, self.dst.value, self.sport.value, self.dport.value)

    def reply_key(self) -> FlowKey:
        """What conntrack knows its answer by."""
        return (self.protocol, self.dst.value, self.src.value, self.dport.value, self.sport.value)


class Places:
    """Intervals of addresses, numbered: the pieces into which a set of networks cuts the address space; or of ports.

    Two addresses of one piece are inside the same ones of these networks.
    """

    def __init__(self, networks: Iterable[tuple[int, int]]) -> None:
        edges = {0, LAST_ADDRESS + 1}
        for first, last in networks:
            edges |= {first, last + 1}
        self._edges = sorted(edges)
        self._known: dict[int, int] = {}

    def narrow(self, span: Span) -> None:
        """Let an address stand for no more than the piece that it is in."""
        place = self.number(span.value)
        span.narrow(self._edges[place - 1], self._edges[place] - 1)

    def number(self, value: int) -> int:
        """The number of the piece that an address is in."""
        place = self._known.get(value)
        if place is None:
            place = self._known[value] = bisect(self._edges, value)
        return place


def runs(holders: Mapping[int, object]) -> list[tuple[int, int]]:
    """First and last of each run of addresses with the same owner.  The argument maps addresses to owners."""
    found: list[tuple[int, int]] = []
    for address in sorted(holders):
        if found and found[-1][1] == address - 1 and holders[address - 1] == holders[address]:
            found[-1] = (found[-1][0], address)
        else:
            found.append((address, address))
    return found


class Addresses:
    """A set of single addresses."""

    def __init__(self, values: Iterable[int]) -> None:
        self._order = sorted(set(values))
        self._runs: dict[int, tuple[int, int]] = {}
        for first, last in runs(dict.fromkeys(self._order)):
            self._runs |= dict.fromkeys(range(first, last + 1), (first, last))

    def holds(self, value: int) -> bool:
        """Whether the address is in the set."""
        return value in self._runs

    def has(self, span: Span) -> bool:
        """Whether the address is in the set.  It then stands for the addresses around it of which the same is true."""
        run = self._runs.get(span.value)
        if run is not None:
            span.narrow(*run)
            return True
        place = bisect(self._order, span.value)
        span.narrow(
            self._order[place - 1] + 1 if place else 0,
            self._order[place] - 1 if place < len(self._order) else LAST_ADDRESS,
        )
        return False


@lru_cache(_KEPT)
def number(address: str) -> int:
    """An address as a number."""
    return ipv4.number(address)


@lru_cache(_KEPT)
def address_text(value: int) -> str:
    """A number as an address."""
    return ipv4.dotted(value)


@lru_cache(_KEPT)
def numbers(cidr: str) -> tuple[int, int, int]:
    """A network's first and last address and its prefix length."""
    network = IPNetwork(cidr, version=4)
    return network.first, network.last, network.prefixlen


def prefix_around(span: Span, cidr: str) -> int | None:
    """The prefix length of `cidr` when it contains the address, else None."""
    first, last, prefix = numbers(cidr)
    return prefix if span.inside(first, last) else None
