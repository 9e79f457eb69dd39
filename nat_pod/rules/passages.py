"""What a sender may open, as the few questions that a chain asks: by protocol and port, then by receiver.

Two servers, of which one takes everything and the other tcp/22 only:

    -p tcp --dport 22   both of them
    everything else     the first

A packet takes the first passage that it fits and no other, because chains are entered by goto.  So each passage has
all receivers to whom its packets may go.  Ports that no receiver treats in a way of its own need no passage.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from nat_pod.config.services import EVERY_PORT, ICMP, TCP, UDP, Ports, Services, pieces
from nat_pod.errors import NatPodError
from nat_pod.names import MemberName
from nat_pod.rules.netfilter import Chain, Goto, Match

PASSAGE = "NATPOD-P"
"""Chains of a policy: numbered, because what they let pass has no other name."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_MOST = len(_DIGITS) ** 2 - 1  # behind the number of a chain stands the network of a branch


@dataclass(frozen=True, slots=True)
class Passage:
    """Whom packets of a protocol (None: any) to these ports (None: any) may go to."""

    protocol: str | None
    ports: Ports | None
    receivers: tuple[MemberName, ...]

    @property
    def match(self) -> Match:
        """What its packets have in common."""
        return Match(protocol=self.protocol, destination_port=self.ports)

    @property
    def answers(self) -> Match:
        """What the answers to its packets have in common."""
        return Match(protocol=self.protocol, source_port=self.ports)


def passages(reach: Mapping[MemberName, Services]) -> tuple[Passage, ...]:
    """In the order in which they have to be asked.  The argument is by receiver: what it may be sent."""
    rest = tuple(receiver for receiver, services in reach.items() if services.others)
    found: list[Passage] = []
    for protocol in (TCP, UDP):
        ranges = {receiver: services.of(protocol) for receiver, services in reach.items()}
        other = tuple(receiver for receiver, ports in ranges.items() if ports == (EVERY_PORT,))
        for ports, receivers in _pieces(ranges):
            if receivers != other:
                found.append(Passage(protocol, ports, receivers))
        if other != rest:
            found.append(Passage(protocol, None, other))
    pinged = tuple(receiver for receiver, services in reach.items() if services.icmp)
    if pinged != rest:
        found.append(Passage(ICMP, None, pinged))
    if rest:
        found.append(Passage(None, None, rest))
    return tuple(found)


def _pieces(ranges: Mapping[MemberName, tuple[Ports, ...]]) -> list[tuple[Ports, tuple[MemberName, ...]]]:
    """The ports in as few pieces as there are sets of receivers, each piece with those that take it."""
    found: list[tuple[Ports, tuple[MemberName, ...]]] = []
    for piece in pieces(ports for mine in ranges.values() for ports in mine):
        receivers = tuple(name for name, mine in ranges.items() if any(piece.first in ports for ports in mine))
        if found and found[-1][1] == receivers:
            found[-1] = (Ports(found[-1][0].first, piece.last), receivers)
        else:
            found.append((piece, receivers))
    return found


class PolicyChains:
    """The chains of one VM's policy: each made once, whoever leads there, and numbered as they are asked for.

    known: chains that the VM has anyway, by what they are for.
    """

    def __init__(self, known: Mapping[Hashable, str]) -> None:
        self.chains: list[Chain] = []
        self._names = dict(known)
        self._made = 0

    def name(self, what: Hashable, make: Callable[[str], list[Chain]]) -> str:
        """The name of the chain for `what`.  make: given that name, the chain itself and what is below it.

        Raises NatPodError for a policy that needs more chains than names can tell apart.
        """
        if what not in self._names:
            self._made += 1
            if self._made > _MOST:
                raise NatPodError(f"nat-pod:policy: takes more than {_MOST} chains on a NAT VM; say the same in fewer")
            self._names[what] = name = f"{PASSAGE}{_number(self._made)}"
            self.chains += make(name)
        return self._names[what]

    def leads_to(self, chain: str) -> bool:
        """Whether one of its chains leads to this one."""
        return any(rule.target == Goto(chain) for one in self.chains for rule in one.rules)


def _number(value: int) -> str:
    high, low = divmod(value, len(_DIGITS))
    return f"{_DIGITS[high] if high else ''}{_DIGITS[low]}"
