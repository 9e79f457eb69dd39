"""The rule sets that are compared, and the flow that costs most in each.

A POD is of either delivery; the article's lines are of the article's only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from netaddr import IPAddress, IPNetwork, cidr_merge

from bench.line import UDP_PORT, Line, Side, Way
from bench.pods import SLASH_21, SLASH_22, full_pod, routed_pod
from nat_pod import names
from nat_pod.config.model import PodConfig
from nat_pod.config.neighbours import Member
from nat_pod.config.routed import RoutedConfig
from nat_pod.names import GATEWAY, INNER, NAT_VM1, NAT_VM2, SIDES
from nat_pod.rules.article import article_lines
from nat_pod.rules.compiler import compile_rules
from nat_pod.rules.iptables import hooks, render
from nat_pod.rules.netfilter import Dnat, Drop, Goto, Match, Netmap, Rule, Ruleset, Snat, Table
from nat_pod.rules.routed import compile_routed

POLICIES = ("masquerade", "static")
ROUTED = "routed"
ARTICLE = "article"
KINDS = (*POLICIES, ROUTED)
SIZES = {
    **{policy: {1: "198.18.0.0/25", 29: "198.18.0.0/25", 435: SLASH_22, 696: SLASH_21} for policy in POLICIES},
    ROUTED: dict.fromkeys((1, 29, 435, 696, 936), SLASH_22),
}
SIZES[ARTICLE] = SIZES["masquerade"]
FULL = {kind: max(sizes) for kind, sizes in SIZES.items()}
DIRECTIONS = ("to server", "to host")


@dataclass(frozen=True)
class Pod:
    """A POD of some number of slots, and its rules."""

    slots: int
    config: PodConfig | RoutedConfig
    rules: Mapping[str, Ruleset]  # by side: a routed one has one gateway

    @property
    def hosts(self) -> list[Member]:
        """Customers' hosts in the order of the stack file."""
        return [member for member in self.config.members if not member.name.is_server]

    @property
    def servers(self) -> list[Member]:
        """Management servers."""
        return [member for member in self.config.members if member.name.is_server]

    def called(self, member: Member, side: names.Side) -> str:
        """By which address a member is known to the neighbours of a side."""
        if isinstance(self.config, RoutedConfig):
            return self.config.alias(member.name)
        return self.config.layout.address(self.config.book[member.name], side)

    def line(self, name: str, hosts: Iterable[Member], servers: Iterable[Member], texts: Mapping[str, str]) -> Line:
        """A line with these rules on its NAT VMs, and with routes as the POD's VCN has them."""
        here, there = (sorted({str(member.address) for member in members}) for members in (hosts, servers))
        if isinstance(self.config, RoutedConfig):
            primaries = [self.config.layout.vm(role, 0) for role in (GATEWAY, INNER)]
            beyond = [self.config.server_ranges, self.config.host_ranges]
        else:
            pairs = self.config.layout.pairs
            primaries = [str(pairs[0].subnet(side)[2]) for side in SIDES]
            beyond = [tuple(cidr_merge([pair.subnet(side.other) for pair in pairs])) for side in SIDES]
        vm1, vm2 = (
            Side(primary, tuple(map(str, networks)), texts[side])
            for side, primary, networks in zip(SIDES, primaries, beyond, strict=True)
        )
        return Line(name, here, there, vm1, vm2)

    def ways(
        self, name: str, to_server: tuple[Member, Member], to_host: tuple[Member, Member], texts: Mapping[str, str]
    ) -> tuple[Way, Way]:
        """A line of its own, and its two ways.  to_server and to_host: a host and a server, and who calls whom."""
        line = self.line(name, (to_server[0], to_host[0]), (to_server[1], to_host[1]), texts)
        (caller, server), (host, calling) = to_server, to_host
        return (
            Way(line, str(caller.address), self.called(server, NAT_VM1), from_customer=True),
            Way(line, str(calling.address), self.called(host, NAT_VM2), from_customer=False),
        )

    def dearest(self) -> tuple[tuple[Member, Member], tuple[Member, Member]]:
        """The host and server of whose flow the first packet meets most rules, towards the server and towards the host.

        How deep a host's rules lie does not depend on the server's, so first the host is found and then the server.
        """
        to_server, to_host = (self._dearest(calls) for calls in (self.met_to_server, self.met_to_host))
        return to_server, to_host

    def _dearest(self, met: Callable[[Member, Member], int]) -> tuple[Member, Member]:
        host = max(self.hosts, key=lambda host: met(host, self.servers[0]))
        return host, max(self.servers, key=lambda server: met(host, server))

    def met_to_server(self, host: Member, server: Member) -> int:
        """How many rules the first packet is tested against, on both NAT VMs."""
        return self._met(str(host.address), self.called(server, NAT_VM1), server, (NAT_VM1, NAT_VM2))

    def met_to_host(self, host: Member, server: Member) -> int:
        """How many rules the first packet is tested against, on both NAT VMs."""
        return self._met(str(server.address), self.called(host, NAT_VM2), host, (NAT_VM2, NAT_VM1))

    def _met(self, source: str, destination: str, wanted: Member, order: Iterable[names.Side]) -> int:
        packet = _Packet(int(IPAddress(source)), int(IPAddress(destination)), {"NEW"})
        for side in order:
            packet.states = {"NEW"}
            for table, builtin in (("nat", "PREROUTING"), ("filter", "FORWARD"), ("nat", "POSTROUTING")):
                packet.pass_hook(getattr(self.rules[side], table), builtin)
        if packet.destination != int(wanted.address):
            raise ValueError(
                f"{self.slots} slots: a packet from {source} to {destination} does not reach {wanted.name}"
            )
        return packet.met


@dataclass
class _Packet:
    """The first packet of a UDP flow, on its way."""

    source: int
    destination: int
    states: set[str]
    met: int = 0

    def pass_hook(self, table: Table, builtin: str) -> None:
        """Walk the chains behind a built-in chain."""
        chain = table.hooked(builtin)
        while chain is not None:
            entered, chain = chain, None
            for rule in entered.rules:
                self.met += 1
                if self._hit(rule.match):
                    chain = table.chain(rule.target.chain) if isinstance(rule.target, Goto) else None
                    self._take(rule)
                    break

    def _hit(self, match: Match) -> bool:
        for network, address in ((match.source, self.source), (match.destination, self.destination)):
            if network is not None:
                first, last = _ends(network)
                if not first <= address <= last:
                    return False
        return (
            (not match.ctstate or not self.states.isdisjoint(match.ctstate))
            and match.protocol in (None, "udp")
            and (match.destination_port is None or UDP_PORT in match.destination_port)
            and (match.bound, match.in_interface, match.source_port) == (None,) * 3
        )

    def _take(self, rule: Rule) -> None:
        match rule.target:
            case Drop():
                self.destination = 0
            case Dnat(to):
                self.destination = int(IPAddress(to))
                self.states.add("DNAT")
            case Snat(to):
                self.source = int(IPAddress(to))
                self.states.add("SNAT")
            case Netmap(to) if rule.match.source is not None:
                self.source += _ends(to)[0] - _ends(rule.match.source)[0]
                self.states.add("SNAT")
            case Netmap(to) if rule.match.destination is not None:
                self.destination += _ends(to)[0] - _ends(rule.match.destination)[0]
                self.states.add("DNAT")


@cache
def _ends(network: str) -> tuple[int, int]:
    parsed = IPNetwork(network)
    return parsed.first, parsed.last


ALLOWED = ["tcp/7", "tcp/22", "tcp/443", "udp/1-1000", "icmp"]
"""What a policy lets pass here; what is timed is udp/1 and above, tcp/7 and echoes."""


def policed(kind: str, slots: int) -> Pod:
    """The same POD with a policy: every second customer may do ALLOWED in both directions, the others everything."""
    stack = _stack(kind, slots)
    customers = sorted(stack["customers"])[::2]
    stack["policy"] = [
        {"from": one, "to": other, "allow": ALLOWED}
        for customer in customers
        for one, other in ((customer, names.MANAGEMENT), (names.MANAGEMENT, customer))
    ]
    return _pod(kind, slots, stack)


def pod(kind: str, slots: int) -> Pod:
    """A POD that uses `slots` slots (a routed one: has so many members): 8 servers, and the hosts of 10 customers.

    With one slot it is one of each; in the article's delivery they share it.  936 members fill a routed /22: the
    servers have a block of 32 aliases for themselves.
    """
    return _pod(kind, slots, _stack(kind, slots))


def _stack(kind: str, slots: int) -> dict[str, Any]:
    if kind == ROUTED:
        return routed_pod(hosts=1, servers=1) if slots == 1 else routed_pod(hosts=slots - 8, servers=8)
    stack = full_pod(SIZES[kind][slots], source_nat=kind)
    if slots == 1:
        (customer, entry), *_ = stack["customers"].items()
        (host, real), *_ = entry["hosts"].items()
        (server, address), *_ = stack["management"]["servers"].items()
        stack["customers"] = {customer: {**entry, "hosts": {host: real}}}
        stack["management"]["servers"] = {server: address}
        shared = stack["addresses"][f"management/{server}"]
        stack["addresses"] = {f"management/{server}": shared, f"{customer}/{host}": shared}
    return stack


def _pod(kind: str, slots: int, stack: dict[str, Any]) -> Pod:
    if kind == ROUTED:
        routed = RoutedConfig.from_mapping(stack, "bench")
        return Pod(slots, routed, {str(role): rules for role, rules in compile_routed(routed).items()})
    config = PodConfig.from_mapping(stack, "bench")
    return Pod(slots, config, {str(side): rules for side, rules in compile_rules(config).items()})


def loaded(rules: Ruleset) -> str:
    """What the agent gives iptables-restore on a VM that has no rules yet."""
    text = render(rules)
    for table, builtin, chain in hooks(rules):
        text = re.sub(
            rf"(^\*{table}$.*?)(^COMMIT$)", rf"\1-I {builtin} 1 -j {chain}\n\2", text, count=1, flags=re.M | re.S
        )
    return text


def articles(of: Pod, side: names.Side) -> str:
    """The article's lines for the same members, as iptables-restore takes them.  A routed POD has none."""
    assert isinstance(of.config, PodConfig)
    lines = (line.removeprefix("iptables -t nat ").replace(" -o ens3 ", " ") for line in article_lines(of.config, side))
    return "\n".join(["*nat", *lines, "COMMIT", ""])
