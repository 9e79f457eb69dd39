"""Which packets a flow may begin with: protocols and, of TCP and UDP, destination ports.

A `Services` is a set of them in one form, so that equal sets are equal values: ranges of ports do not touch, and what
nat-pod knows by no name of its own (GRE, SCTP, ESP) is in `others`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

ICMP, TCP, UDP = "icmp", "tcp", "udp"
LAST_PORT = 65535
RULE = "must be all, icmp, tcp, udp, or a port or a range of ports of the latter two, e.g. tcp/22 or udp/5000-5010"

_FORM = re.compile(r"(?P<word>all|icmp|tcp|udp)|(?P<protocol>tcp|udp)/(?P<first>[0-9]{1,5})(-(?P<last>[0-9]{1,5}))?")


class Ports(NamedTuple):
    """A range of ports, both ends included."""

    first: int
    last: int

    @classmethod
    def one(cls, port: int) -> Ports:
        """A single port."""
        return cls(port, port)

    def __str__(self) -> str:
        """As people write it, `22` or `5000-5010`."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last


EVERY_PORT = Ports(0, LAST_PORT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """A set of protocols and ports.  tcp, udp: ranges in order, which neither overlap nor touch."""

    tcp: tuple[Ports, ...] = ()
    udp: tuple[Ports, ...] = ()
    icmp: bool = False
    others: bool = False

    def __or__(self, other: Services) -> Services:
        return Services(
            tcp=_joined((*self.tcp, *other.tcp)),
            udp=_joined((*self.udp, *other.udp)),
            icmp=self.icmp or other.icmp,
            others=self.others or other.others,
        )

    def __sub__(self, other: Services) -> Services:
        return Services(
            tcp=_without(self.tcp, other.tcp),
            udp=_without(self.udp, other.udp),
            icmp=self.icmp and not other.icmp,
            others=self.others and not other.others,
        )

    def __bool__(self) -> bool:
        return self != NOTHING

    def __str__(self) -> str:
        """As the stack file says it: `tcp/22, icmp`, `all`, `nothing`."""
        return "nothing" if self == NOTHING else ", ".join(self.texts)

    def permits(self, protocol: str, port: int) -> bool:
        """Whether a flow may begin with a packet of this protocol to this port; of ICMP the port says nothing."""
        match protocol:
            case "tcp" | "udp":
                return any(port in ports for ports in self.of(protocol))
            case "icmp":
                return self.icmp
            case _:
                return self.others

    def of(self, protocol: str) -> tuple[Ports, ...]:
        """The ports of TCP or UDP."""
        return self.tcp if protocol == TCP else self.udp

    @property
    def texts(self) -> tuple[str, ...]:
        """Its parts in the stack file's form."""
        if self == EVERYTHING:
            return ("all",)
        parts = []
        for protocol in (TCP, UDP):
            whole = self.of(protocol) == (EVERY_PORT,)
            parts += [protocol] if whole else [f"{protocol}/{ports}" for ports in self.of(protocol)]
        return (*parts, *([ICMP] if self.icmp else []), *(["other protocols"] if self.others else []))


NOTHING = Services()
EVERYTHING = Services(tcp=(EVERY_PORT,), udp=(EVERY_PORT,), icmp=True, others=True)


def pieces(ranges: Iterable[Ports]) -> list[Ports]:
    """All ports, cut at the ends of these ranges: two ports of one piece are in the same ones of them."""
    edges = {0, LAST_PORT + 1, *(edge for ports in ranges for edge in (ports.first, ports.last + 1))}
    return [Ports(first, beyond - 1) for first, beyond in pairwise(sorted(edges))]


def read(text: str) -> Services | None:
    """One service as the stack file writes it, e.g. `tcp/22`; None when it is not valid (RULE)."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    match found["word"]:
        case "all":
            return EVERYTHING
        case "icmp":
            return Services(icmp=True)
        case "tcp":
            return Services(tcp=(EVERY_PORT,))
        case "udp":
            return Services(udp=(EVERY_PORT,))
    ports = Ports(int(found["first"]), int(found["last"] or found["first"]))
    if not 1 <= ports.first <= ports.last <= LAST_PORT:
        return None
    return Services(tcp=(ports,)) if found["protocol"] == TCP else Services(udp=(ports,))


def _without(ranges: Iterable[Ports], others: Iterable[Ports]) -> tuple[Ports, ...]:
    left = list(ranges)
    for other in others:
        left = [
            part
            for ports in left
            for part in (
                Ports(ports.first, min(ports.last, other.first - 1)),
                Ports(max(ports.first, other.last + 1), ports.last),
            )
            if part.first <= part.last
        ]
    return _joined(left)


def _joined(ranges: Iterable[Ports]) -> tuple[Ports, ...]:
    joined: list[Ports] = []
    for ports in sorted(ranges):
        if joined and ports.first <= joined[-1].last + 1:
            joined[-1] = Ports(joined[-1].first, max(joined[-1].last, ports.last))
        else:
            joined.append(ports)
    return tuple(joined)
