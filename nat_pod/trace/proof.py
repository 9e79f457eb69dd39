"""`trace --all`: every packet that can be sent into a POD, and each one whose fate is not the declared one.

No packet is left out, and few are traced.  A trace says for which other sources and destinations it also holds, because
nothing on the way told them apart (`spans.Span`).  So one packet of each class is enough, and the classes are laid side
by side until they cover

- for every member, with its own address: all destinations outside its own network;
- for an unknown sender in each network, which may forge: all sources that are not a member's there, times the same
  destinations.  Sources in the network of another customer of the same NAT VM1 are left out: there the POD cannot tell
  customers apart, and the answer goes to whoever has the address (docs/region.md).

What is declared comes from `flows.py`.  What happens comes from the tracer, which walks the rules and not the stack
file.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import assert_never

from netaddr import IPNetwork

from nat_pod.config.delivery import Delivery
from nat_pod.config.model import SourceNat
from nat_pod.config.services import TCP, Ports, pieces
from nat_pod.names import ANYWHERE, MANAGEMENT, SSH, VROUTER, MemberName
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.rules.iptables import render_rule
from nat_pod.rules.netfilter import Accept, Chain, Drop, Goto, Match, Rule
from nat_pod.trace.chains import OTHER, RuleKey, behind
from nat_pod.trace.classes import Block, size, sweep, without
from nat_pod.trace.counter_examples import (
    CUSTOMER_TO_CUSTOMER,
    DEAD_RULE,
    HIDDEN_RULE,
    KINDS,
    NO_GUARD,
    NO_WAY_BACK,
    NOT_BIJECTIVE,
    NOT_DECLARED,
    NOT_DELIVERED,
    WRONG_MEMBER,
    CounterExample,
)
from nat_pod.trace.decisions import AnsweredByNatVm
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.errors import ErrorCount, ErrorProver
from nat_pod.trace.expected import expected_topology, with_host
from nat_pod.trace.flows import (
    PORT,
    Flow,
    beside,
    declared_flows,
    flow_between,
    matrix,
    refused_flows,
    stranger_addresses,
    strangers_in,
)
from nat_pod.trace.open_ports import OpenPorts, WayIn
from nat_pod.trace.spans import Segment, address_text, number, numbers
from nat_pod.trace.topology import VM_NAT, Route, Topology
from nat_pod.trace.walk import Leg, Packet, Trace, Tracer

_PROTOCOLS = ("icmp", "tcp", "udp")
_SYN = Packet(src="", dst="", protocol="tcp", dport=PORT)
_SEGMENT = replace(_SYN, segment=Segment.GOES_ON)
_DATAGRAM = replace(_SYN, protocol="udp")
_ECHO = replace(_SYN, protocol="icmp")


class Protocols(StrEnum):
    """For which protocols what was found for TCP port 80 holds."""

    ALL = "every protocol and port"
    WITH_PORTS = "ICMP, TCP and UDP, every port; rules drop all other protocols"
    IN_THREE = "every protocol and port: traced were SYNs, TCP segments of flows that go on, and UDP for all others"
    EACH = "every protocol and port: traced was a packet of each kind that rules tell apart"
    TRACED = "TCP port 80 only: rules look at protocols or ports"


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """Pairs of a realm's members (or its stranger) with addresses of the NAT VM, by what is expected of them."""

    realm: str
    what: str
    pairs: int
    as_declared: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Unknown senders of a realm: how many sources and destinations, and the packets that had to be traced."""

    realm: str
    sources: int
    destinations: int
    traced: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What was looked at, and every counter-example.

    `traced`: packets, one per class.  `holds_for`: no rule for forwarded packets looks at a protocol or a port, so
    what holds for TCP port 80 holds for all.
    """

    counts: tuple[Count, ...]
    sweeps: tuple[Sweep, ...]
    errors: tuple[ErrorCount, ...]
    ways_in: tuple[WayIn, ...]
    one_way: tuple[WayIn, ...]
    traced: int
    holds_for: Protocols
    counter_examples: tuple[CounterExample, ...]


def prove(plan: PodPlan, topology: Topology | None = None) -> Proof:
    """Trace everything.  topology: the network to trace through, the plan's own unless given."""
    prover = _Prover(plan, expected_topology(plan) if topology is None else topology)
    prover.declared_flows()
    counts = prover.members()
    sweeps = [done for realm in plan.realms if (done := prover.unknown(realm)) is not None]
    counts = _added(counts, prover.other_kinds())
    prover.refused_flows()
    errors = prover.errors.prove()
    prover.the_vms()
    prover.rules()
    found = [*prover.found, *prover.errors.found, *prover.ports.found]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return Proof(
        counts=counts,
        sweeps=tuple(sweeps),
        errors=errors,
        ways_in=prover.ports.ways_in,
        one_way=prover.ports.ways_of_no_return,
        traced=prover.traced + sum(count.own + count.others + count.none for count in errors) + prover.ports.traced,
        holds_for=prover.holds_for(),
        counter_examples=tuple(
            sorted(dict.fromkeys(found), key=lambda one: (order[one.kind], one.sender, one.destination))
        ),
    )


def _whatever_customers_route(topology: Topology, plan: PodPlan) -> Topology:
    """The network in which each customer routes everything but its own to its LPG: its route tables are its own."""
    subnets = dict(topology.subnets)
    for name, subnet in topology.subnets.items():
        lpgs = {route.lpg for route in subnet.routes if route.lpg is not None}
        if subnet.vcn in plan.customer_cidrs:
            anywhere = tuple(Route(destination=ANYWHERE, lpg=lpg) for lpg in sorted(lpgs))
            subnets[name] = replace(subnet, routes=(*subnet.routes, *anywhere))
    return replace(topology, subnets=subnets)


class _Prover:
    def __init__(self, plan: PodPlan, topology: Topology) -> None:
        self.plan = plan
        self.strangers = stranger_addresses(plan)
        for name, address in self.strangers.items():
            topology = with_host(topology, name, address)
        topology = _whatever_customers_route(topology, plan)
        self.topology = topology
        self.tracer = Tracer(topology)
        self.kind = _SYN
        self.down: set[str] = set()
        self._hostile_tracers: dict[frozenset[str], Tracer] = {}
        self.kinds = _kinds(plan, self._forwarding())
        self.declared = self._admitted(_SYN)
        self.used: dict[str, frozenset[RuleKey]] = {}
        self.traced = 0
        self.found: list[CounterExample] = []
        self.ports = OpenPorts(plan, topology)
        self.errors = ErrorProver(plan, topology, self.ports)

    # --- what is declared ---------------------------------------------------------------------------------------

    def declared_flows(self) -> None:
        """Both ways of each declared flow, and whether members and addresses correspond one to one."""
        tracer = Tracer(self.topology)
        members = {slot.member: slot for slot in self.plan.slots}
        seen: dict[tuple[str, str], str] = {}
        for flow, packet, traced in self._both_ways(tracer, declared_flows(self.plan), _SYN):
            self.errors.learn(flow, packet, tracer)
            match self.plan.source_nat:
                case SourceNat.MASQUERADE:
                    pass  # all are seen as one address, and nobody is called back by it
                case SourceNat.STATIC:
                    self._called_back(flow, members, traced.request.packet.src, seen)
                case _ as never:
                    assert_never(never)
        self._uses(tracer)

    def _both_ways(self, tracer: Tracer, flows: Iterable[Flow], kind: Packet) -> Iterator[tuple[Flow, Packet, Trace]]:
        """Those of the flows that arrive, each with its packet.  All have to."""
        for flow in flows:
            self.traced += 1
            packet = _packet(kind, flow.source, flow.destination)
            if flow.protocol is not None:
                packet = replace(packet, protocol=flow.protocol, dport=flow.port or kind.dport)
            if kind.segment is Segment.GOES_ON:  # the other way is a flow of its own here
                leg = tracer.request(flow.sender, packet)
                traced = Trace(leg.disposition, leg, None)
            else:
                traced = tracer.trace(flow.sender, packet, flow.receiver)
            if traced.disposition is Disposition.DELIVERED:
                yield flow, packet, traced
                continue
            what = WRONG_MEMBER if traced.disposition is Disposition.WRONG_MACHINE else NOT_DELIVERED
            self._packet(what, flow, f"{traced.disposition}: {traced.why}")

    def _uses(self, tracer: Tracer) -> None:
        """Remember which rules the declared flows have met."""
        for vm, used in tracer.used.items():
            self.used[vm] = self.used.get(vm, frozenset()) | used

    def other_kinds(self) -> tuple[Count, ...]:
        """Every other kind of packet, and in a routed POD all of them with each role's active NAT VM dead.

        Returns the counts of the other kinds where a policy tells them apart; elsewhere they are those of the first.
        """
        if self.kinds == [_SYN]:
            return ()
        flows: dict[tuple[str, str], Flow] = {}
        for one in self.plan.slots:
            for other in self.plan.hosts if one.member.is_server else self.plan.servers:
                flow = flow_between(one, other)
                flows[flow.sender, flow.destination] = flow
        active = {one.vm for balancer in self.plan.balancers for one in balancer.backends if not one.is_backup}
        counts: list[Count] = []
        for kind in self.kinds:
            self.declared = self._admitted(kind)
            for self.down in [set(), active] if active else [set()]:
                alike = bool(self.down) and self._standbys_are_alike()
                shown = alike and kind not in (_SYN, _SEGMENT) and not self.plan.access.entries
                if (kind == _SYN and not self.down) or shown:
                    continue  # they have been looked at, or can show nothing new
                self.kind, self.tracer = kind, Tracer(self.topology, self.down)
                for _ in self._both_ways(self.tracer, [flows[pair] for pair in self.declared], kind):
                    pass
                self._uses(self.tracer)
                if alike:
                    continue
                counted = self.members()
                counts += [] if self.down else counted
                for realm in self.plan.realms:
                    self.unknown(realm)
        self.kind, self.down, self.tracer = _SYN, set(), Tracer(self.topology)
        self.declared = self._admitted(_SYN)
        return tuple(counts) if self.plan.access.entries else ()

    def _admitted(self, kind: Packet) -> dict[tuple[str, str], MemberName | None]:
        """By sender and address: who should get packets of this kind.

        In a routed POD a segment passes for each pair of members of which either may open the flow that it is of.
        """
        if kind.protocol == OTHER and self.plan.source_nat is SourceNat.MASQUERADE:
            return {}  # of these one shared address can tell no two senders apart
        may = self.plan.access.services
        admitted: dict[tuple[str, str], MemberName | None] = {}
        for one in self.plan.slots:
            for other in self.plan.hosts if one.member.is_server else self.plan.servers:
                passes = may(one.member, other.member).permits(kind.protocol, kind.dport)
                if kind.segment is Segment.GOES_ON:
                    passes = passes or may(other.member, one.member).permits(kind.protocol, kind.sport)
                if passes:
                    admitted[one.member, other.address(one.member.side)] = other.member
        return admitted

    def _standbys_are_alike(self) -> bool:
        """Whether the NAT VMs of each role run the same rules; then one of them shows what both refuse."""
        vms = [vm for vm in self.topology.vms.values() if vm.kind == VM_NAT]
        return all(vm.rules == other.rules for vm in vms for other in vms if vm.role == other.role)

    def _called_back(
        self, flow: Flow, members: dict[MemberName, SlotPlan], source: str, seen: dict[tuple[str, str], str]
    ) -> None:
        """Whether the source that the receiver sees is only the sender's, and leads back to it."""
        if flow.receiver is None:
            return
        sender, receiver = members[flow.sender], members[flow.receiver]
        other = seen.setdefault((receiver.member, source), sender.member)
        back = flow_between(receiver, sender).destination
        if other != sender.member:
            self._packet(NOT_BIJECTIVE, flow, f"{receiver.member} sees it as {source}, and {other} too")
        elif source != back:
            self._packet(NO_WAY_BACK, flow, f"{receiver.member} sees {source}; it calls {sender.member} at {back}")

    def members(self) -> tuple[Count, ...]:
        """Each member and stranger with its own address, to all destinations; the counts are those of the matrix."""
        pairs: dict[tuple[str, str], list[int]] = {}
        last: MemberName | None = None
        fates, starts = [], []
        for flow in matrix(self.plan, self.declared if self.plan.access.entries else None):
            if flow.sender != last:
                last, fates = flow.sender, self._destinations(flow.sender, flow.source)
                starts = [low for (low, _), _ in fates]
            reached = fates[bisect(starts, number(flow.destination)) - 1][1].reached
            count = pairs.setdefault((flow.sender.realm, flow.why), [0, 0])
            count[reached == flow.receiver] += 1
        return tuple(
            Count(realm=realm, what=what, pairs=wrong + right, as_declared=right)
            for (realm, what), (wrong, right) in pairs.items()
        )

    def _destinations(self, sender: MemberName, source: str) -> list[tuple[Block, Leg]]:
        """All destinations from one sender, class by class, in the order of their addresses."""
        fates, own = [], (number(source),) * 2
        for destinations in self._outside(sender.realm):
            for _, block, leg in sweep([own], [destinations], partial(self._request, sender)):
                self._judge(sender, own, block, leg)
                fates.append((block, leg))
        return fates

    # --- who is unknown -----------------------------------------------------------------------------------------

    def unknown(self, realm: str) -> Sweep | None:
        """A sender of this realm that is not in the address book and forges any source that is not somebody else's.

        One of the realm's strangers stands for all, since the source may be any.  None when the networks have no room
        for one, because all their addresses are members'.
        """
        sender = next(iter(strangers_in(self.strangers, realm)), None)
        if sender is None:
            return None
        self.tracer = self._hostile()
        before, sources = self.traced, sum(map(size, self._sources(realm)))
        for block, to, leg in sweep(self._sources(realm), self._outside(realm), partial(self._request, sender)):
            self._judge(sender, block, to, leg)
        destinations = sum(map(size, self._outside(realm)))
        return Sweep(realm=realm, sources=sources, destinations=destinations, traced=self.traced - before)

    def _hostile(self) -> Tracer:
        """A tracer of the network in which strangers forge sources, one for each set of machines that are down."""
        down = frozenset(self.down)
        if down not in self._hostile_tracers:
            hostile = {
                name: replace(vnic, skip_source_dest_check=True)
                for name, vnic in self.topology.vnics.items()
                if vnic.vm in self.strangers
            }
            topology = replace(self.topology, vnics={**self.topology.vnics, **hostile})
            self._hostile_tracers[down] = Tracer(topology, down)
        return self._hostile_tracers[down]

    def _sources(self, realm: str) -> list[Block]:
        """The sources to forge: all but the members' of the realm and the networks of its gateway's other customers."""
        taken = [(number(slot.real),) * 2 for slot in self.plan.slots if slot.member.realm == realm]
        return without([*taken, *(numbers(cidr)[:2] for cidr in beside(self.plan, realm))])

    def _outside(self, realm: str) -> list[Block]:
        """All destinations but those in the realm's own networks, where the POD has no say."""
        return without(numbers(cidr)[:2] for cidr in self.plan.realms[realm])

    def refused_flows(self) -> None:
        """The lab's refused flows, with each protocol: among them ssh to a NAT VM and forged transit sources."""
        self.tracer = self._hostile()
        for flow in refused_flows(self.plan):
            for protocol in _PROTOCOLS if flow.protocol is None else (flow.protocol,):
                self.traced += 1
                packet = replace(
                    _SYN, src=flow.source, dst=flow.destination, protocol=protocol, dport=flow.port or PORT
                )
                leg = self.tracer.request(flow.sender, packet)
                source, destination = number(flow.source), number(flow.destination)
                self._judge(flow.sender, (source, source), (destination, destination), leg)

    def the_vms(self) -> None:
        """What the NAT VMs answer to one another, and whether the way in is open."""
        self.ports.from_the_vms(self.tracer)
        for operator in strangers_in(self.strangers, MANAGEMENT):
            self.ports.way_in(self.tracer, operator, self.strangers[operator])

    # --- the verdict --------------------------------------------------------------------------------------------

    def _request(self, sender: MemberName, source: int, destination: int) -> Leg:
        self.traced += 1
        return self.tracer.request(sender, _packet(self.kind, address_text(source), address_text(destination)))

    def _judge(self, sender: MemberName, sources: Block, destinations: Block, leg: Leg) -> None:
        """Compare a class of packets with what is declared of its sender."""
        self.ports.ask(self.tracer, sender, sources, destinations, leg)
        packets = size(sources) * size(destinations)
        destination = address_text(destinations[0])
        kind = None
        if leg.reached is not None:
            wanted = self.declared.get((sender, destination))
            receiver = self.topology.vms[leg.reached].member
            if leg.reached == VROUTER and sender.is_server:
                return  # the vRouter's own address in the POD: management's own machine
            if leg.reached == VROUTER and self.ports.goes_one_way(self.tracer, sender, sources, leg):
                self.ports.one_way(sender, VROUTER, destinations[0])
                return
            if wanted is not None and packets == 1:
                return  # traced, with its reply, among the declared flows
            among_customers = not sender.is_server and not (receiver is not None and receiver.is_server)
            kind = CUSTOMER_TO_CUSTOMER if among_customers else NOT_DECLARED
        elif isinstance(leg.refusal, AnsweredByNatVm) and (self.kind.protocol, self.kind.dport) == (TCP, SSH):
            self.ports.ask_ssh(self.tracer, sender, sources, destinations)  # this kind of packet is ssh
        elif leg.untranslated is not None or leg.disposition in (Disposition.ANSWERED_BY_NAT_VM, Disposition.LOOP):
            kind = NO_GUARD
        if kind is not None:
            self.found.append(
                CounterExample(
                    kind=kind,
                    sender=sender,
                    source=address_text(sources[0]),
                    destination=destination,
                    why=leg.fate,
                    alike=packets - 1,
                )
            )

    def _packet(self, kind: str, flow: Flow, why: str) -> None:
        self.found.append(
            CounterExample(kind=kind, sender=flow.sender, source=flow.source, destination=flow.destination, why=why)
        )

    # --- the rules ----------------------------------------------------------------------------------------------

    def rules(self) -> None:
        """Rules that cannot be meant: an earlier one matches all that they match, or no declared flow meets them."""
        for vm, table, chain in self._chains():
            used = self.used.get(vm, frozenset())
            for index, rule in enumerate(chain.rules):
                if RuleKey(table, chain.name, index) in used:
                    continue
                text = render_rule(chain.name, rule)
                hiding = next((earlier for earlier in chain.rules[:index] if _covers(earlier.match, rule.match)), None)
                if hiding is not None:
                    self._rule(HIDDEN_RULE, vm, f"{text} (behind {render_rule(chain.name, hiding)})")
                elif table == "nat" and not isinstance(rule.target, Goto | Accept):  # those let nobody pass
                    self._rule(DEAD_RULE, vm, text)

    def holds_for(self) -> Protocols:
        """For which protocols the traced packets stand: by what the rules that a forwarded packet meets look at."""
        forward = [vm.rules.filter.hooked("FORWARD") for vm in self.topology.vms.values() if vm.rules is not None]
        met = self._forwarding()
        if self.plan.access.entries:
            return Protocols.EACH if all(rule.match.icmp_type is None for rule in met) else Protocols.TRACED
        if all(rule.match.protocol is None for rule in met):
            return Protocols.ALL
        if self.plan.delivery is Delivery.ROUTES and all(_is_one_of_three(rule.match) for rule in met):
            return Protocols.IN_THREE
        alike = [
            [replace(rule, match=replace(rule.match, protocol=None)) for rule in met if rule.match.protocol == protocol]
            for protocol in _PROTOCOLS
        ]
        return (
            Protocols.WITH_PORTS
            if alike == [alike[0]] * len(alike) and all(map(_refuses_others, forward))
            else Protocols.TRACED
        )

    def _forwarding(self) -> list[Rule]:
        """The rules that a forwarded packet may meet."""
        met = [rule for _, table, chain in self._chains() if table == "nat" for rule in chain.rules]
        return met + [
            rule
            for vm in self.topology.vms.values()
            if vm.rules is not None
            for chain in behind(vm.rules.filter, "FORWARD")
            for rule in chain.rules
        ]

    def _chains(self) -> Iterator[tuple[str, str, Chain]]:
        for vm in self.topology.vms.values():
            for table in () if vm.rules is None else vm.rules.tables:
                for chain in table.chains:
                    yield vm.name, table.name, chain

    def _rule(self, kind: str, vm: str, text: str) -> None:
        self.found.append(CounterExample(kind=kind, sender=vm, source="", destination="", why=text))


def _kinds(plan: PodPlan, rules: list[Rule]) -> list[Packet]:
    """The packets that stand for all others of their kind, the SYN to port 80 first.

    Without a policy no rule looks at a port, and a routed POD's at nothing but whether a packet is a SYN.  With one
    there is a packet for each set of ports that the rules tell apart, of every protocol.
    """
    match plan.delivery:
        case Delivery.PRIVATE_IPS:
            kinds, segments = [_SYN], [_SYN]
        case Delivery.ROUTES:
            kinds, segments = [_SYN, _DATAGRAM, _SEGMENT], [_SYN, _SEGMENT]
        case _ as never:
            assert_never(never)
    if not plan.access.entries:
        return kinds
    found = [
        replace(kind, sport=sport, dport=dport)
        for kind in (*segments, _DATAGRAM)
        for sport in _told_apart([r.match.source_port for r in rules if r.match.protocol == kind.protocol], kind.sport)
        for dport in _told_apart(
            [r.match.destination_port for r in rules if r.match.protocol == kind.protocol], kind.dport
        )
    ]
    return [*found, _ECHO, Packet(src="", dst="", protocol=OTHER)]


def _told_apart(asked: list[Ports | None], usual: int) -> list[int]:
    """A port for each set of ports that these ranges tell apart, `usual` for those that are in the same ones as it."""
    ranges = [ports for ports in asked if ports is not None]
    first: dict[frozenset[int], int] = {}
    for port in (usual, *(piece.first for piece in pieces(ranges))):
        first.setdefault(frozenset(at for at, ports in enumerate(ranges) if port in ports), port)
    return list(first.values())


def _added(counts: tuple[Count, ...], more: tuple[Count, ...]) -> tuple[Count, ...]:
    """The counts of several kinds of packets as one."""
    added: dict[tuple[str, str], Count] = {}
    for count in (*counts, *more):
        key = (count.realm, count.what)
        was = added.get(key, Count(realm=count.realm, what=count.what, pairs=0, as_declared=0))
        added[key] = replace(was, pairs=was.pairs + count.pairs, as_declared=was.as_declared + count.as_declared)
    return tuple(added.values())


def _is_one_of_three(match: Match) -> bool:
    """Whether a condition is the same for all SYNs, for all other TCP segments, and for all that is not TCP."""
    unasked = (match.source_port, match.destination_port, match.icmp_type)
    return match.protocol in (None, "tcp") and unasked == (None, None, None)


def _refuses_others(forward: Chain | None) -> bool:
    """Whether a new, translated packet of a protocol that no rule names is dropped."""
    for rule in () if forward is None else forward.rules:
        states = rule.match.ctstate
        if rule.match.protocol is None and (not states or not {"NEW", "DNAT"}.isdisjoint(states)):
            return isinstance(rule.target, Drop)
    return False


def _packet(kind: Packet, source: str, destination: str) -> Packet:
    """A packet of this kind.  `replace` would take as long as a tenth of the trace."""
    return Packet(
        src=source, dst=destination, protocol=kind.protocol, sport=kind.sport, dport=kind.dport, segment=kind.segment
    )


def _covers(earlier: Match, later: Match) -> bool:
    """Whether every packet that `later` matches is matched by `earlier` too."""

    def holds(network: str | None, inside: str | None) -> bool:
        return network is None or (inside is not None and IPNetwork(inside) in IPNetwork(network))

    exact = ("in_interface", "protocol", "source_port", "destination_port", "icmp_type", "tcp_flags", "bound")
    return (
        holds(earlier.source, later.source)
        and holds(earlier.destination, later.destination)
        and holds(earlier.opened_from, later.opened_from)
        and holds(earlier.answered_from, later.answered_from)
        and all(getattr(earlier, name) in (None, getattr(later, name)) for name in exact)
        and (not earlier.ctstate or (bool(later.ctstate) and set(later.ctstate) <= set(earlier.ctstate)))
    )
