"""`trace --all`: every packet that can be sent into a POD, and each one whose fate is not the declared one.

No packet is left out, and few are traced.  A trace says for which other sources and destinations it also holds, because
nothing on the way told them apart (`spans.Span`).  So one packet of each class is enough, and the classes are laid side
by side until they cover

- for every member, with its own address: all destinations outside its own network;
- for an unknown sender in each network, which may forge: all sources that are not a member's there, times the same
  destinations.  Sources in the network of another customer of the same NAT VM1 are left out: there the POD cannot tell
  customers apart, and the answer goes to whoever has the address (docs/region.md).

Where a policy tells ports apart, each of these is covered from and to every port.

What is declared comes from `flows.py`.  What happens comes from the tracer, which walks the rules and not the stack
file.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import assert_never

from nat_pod.config.delivery import Delivery
from nat_pod.config.services import EVERY_PORT, ICMP, TCP, UDP, Ports, Services
from nat_pod.config.source_nat import SourceNat
from nat_pod.names import ANYWHERE, MANAGEMENT, VROUTER, MemberName
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.trace.chains import OTHER, RuleKey
from nat_pod.trace.classes import Block, Box, cover, size, without
from nat_pod.trace.counter_examples import (
    CUSTOMER_TO_CUSTOMER,
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
    PROTOCOLS,
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
from nat_pod.trace.rule_checks import Protocols, holds_for, unmeant_rules
from nat_pod.trace.spans import Segment, address_text, number, numbers
from nat_pod.trace.topology import VM_NAT, Route, Topology
from nat_pod.trace.walk import Leg, Packet, Trace, Tracer

_SYN = Packet(src="", dst="", protocol=TCP, dport=PORT)
_SEGMENT = replace(_SYN, segment=Segment.GOES_ON)
_DATAGRAM = replace(_SYN, protocol=UDP)
_ECHO = replace(_SYN, protocol=ICMP)
_OTHERS = replace(_SYN, protocol=OTHER)


@dataclass(frozen=True, slots=True)
class _Admitted:
    """Who should get packets of one kind, to which ports; and from which ports, in flows that it may have opened."""

    receiver: MemberName
    forth: tuple[Ports, ...]
    back: tuple[Ports, ...]

    def all_of(self, sports: Block, dports: Block) -> bool:
        """Whether each packet between these ports should arrive."""
        return _within(dports, self.forth) or _within(sports, self.back)

    def any_of(self, sports: Block, dports: Block) -> bool:
        """Whether some packet between these ports should arrive."""
        return _meets(dports, self.forth) or _meets(sports, self.back)


def _within(block: Block, ranges: tuple[Ports, ...]) -> bool:
    return any(ports.first <= block[0] and block[1] <= ports.last for ports in ranges)


def _meets(block: Block, ranges: tuple[Ports, ...]) -> bool:
    return any(ports.first <= block[1] and block[0] <= ports.last for ports in ranges)


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
    rules = unmeant_rules(prover.topology, prover.used)
    found = [*prover.found, *prover.errors.found, *prover.ports.found, *rules]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return Proof(
        counts=counts,
        sweeps=tuple(sweeps),
        errors=errors,
        ways_in=prover.ports.ways_in,
        one_way=prover.ports.ways_of_no_return,
        traced=prover.traced + sum(count.own + count.others + count.none for count in errors) + prover.ports.traced,
        holds_for=holds_for(plan, prover.topology),
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
        self.kinds = _kinds(plan)
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
        for flow, packet, traced in self._both_ways(tracer, declared_flows(self.plan)):
            self.errors.learn(flow, packet, tracer)
            match self.plan.source_nat:
                case SourceNat.MASQUERADE:
                    pass  # all are seen as one address, and nobody is called back by it
                case SourceNat.STATIC:
                    self._called_back(flow, members, traced.request.packet.src, seen)
                case _ as never:
                    assert_never(never)
        self._uses(tracer)

    def _both_ways(self, tracer: Tracer, flows: Iterable[Flow]) -> Iterator[tuple[Flow, Packet, Trace]]:
        """Those of the flows that arrive, each with its packet.  All have to."""
        for flow in flows:
            self.traced += 1
            packet = _packet(_SYN, flow.source, flow.destination, _SYN.sport, _SYN.dport)
            if flow.protocol is not None:
                packet = replace(packet, protocol=flow.protocol, dport=flow.port or _SYN.dport)
            traced = tracer.trace(flow.sender, packet, flow.receiver)
            if traced.disposition is Disposition.DELIVERED:
                yield flow, packet, traced
            else:
                self._not_delivered(flow, traced)

    def _not_delivered(self, flow: Flow, traced: Trace, ports: str = "") -> None:
        what = WRONG_MEMBER if traced.disposition is Disposition.WRONG_MACHINE else NOT_DELIVERED
        self._packet(what, flow, f"{ports}{traced.disposition}: {traced.why}")

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
        governed = bool(self.plan.access.entries)
        for kind in self.kinds:
            self.declared = self._admitted(kind)
            for self.down in [set(), active] if active else [set()]:
                done = kind == _SYN and not self.down
                alike = bool(self.down) and self._standbys_are_alike()
                if not governed and (done or (alike and kind not in (_SYN, _SEGMENT))):
                    continue  # they have been looked at, or can show nothing new
                self.kind, self.tracer = kind, Tracer(self.topology, self.down)
                for pair, admitted in self.declared.items():
                    self._between(flows[pair], admitted)
                self._uses(self.tracer)
                if alike or done:
                    continue
                counted = self.members()
                counts += [] if self.down else counted
                for realm in self.plan.realms:
                    self.unknown(realm)
        self.kind, self.down, self.tracer = _SYN, set(), Tracer(self.topology)
        self.declared = self._admitted(_SYN)
        return tuple(counts) if governed else ()

    def _between(self, flow: Flow, admitted: _Admitted) -> None:
        """Both ways of each packet that should arrive, class by class of its ports."""

        def follow(_: int, __: int, sport: int, dport: int) -> tuple[Trace, Box]:
            self.traced += 1
            packet = _packet(self.kind, flow.source, flow.destination, sport, dport)
            if self.kind.segment is Segment.GOES_ON:  # the other way is a flow of its own here
                leg = self.tracer.request(flow.sender, packet)
                traced = Trace(leg.disposition, leg, None)
            else:
                traced = self.tracer.trace(flow.sender, packet, flow.receiver)
            sports, dports = traced.request.alike_ports
            if traced.reply is not None:
                back, forth = traced.reply.alike_ports
                sports, dports = _both(sports, forth), _both(dports, back)
            return traced, Box(source, destination, sports, dports)

        source, destination = ((number(address),) * 2 for address in (flow.source, flow.destination))
        every_sport, every_dport = self._ports()
        boxes = [Box(source, destination, every_sport, _both(every_dport, ports)) for ports in admitted.forth]
        for dports in (Services(tcp=(Ports(*every_dport),)) - Services(tcp=admitted.forth)).tcp:
            boxes += [Box(source, destination, _both(every_sport, ports), dports) for ports in admitted.back]
        for box, traced in cover(boxes, follow):
            if traced.disposition is not Disposition.DELIVERED:
                self._not_delivered(flow, traced, self._port_words(box))

    def _ports(self) -> tuple[Block, Block]:
        """From and to which ports packets are sent: all where rules may look at them, else one that stands for all."""
        if self.plan.access.entries and self.kind.protocol in (TCP, UDP):
            return EVERY_PORT, EVERY_PORT
        return (self.kind.sport,) * 2, (self.kind.dport,) * 2

    def _admitted(self, kind: Packet) -> dict[tuple[str, str], _Admitted]:
        """By sender and address: who should get packets of this kind.

        In a routed POD a segment passes for each pair of members of which either may open the flow that it is of.
        """
        if kind.protocol == OTHER and self.plan.source_nat.shares_addresses:
            return {}  # of these one shared address can tell no two senders apart
        may = self.plan.access.services
        admitted: dict[tuple[str, str], _Admitted] = {}
        for one in self.plan.slots:
            for other in self.plan.hosts if one.member.is_server else self.plan.servers:
                forth = _ports_of(may(one.member, other.member), kind.protocol)
                back = _ports_of(may(other.member, one.member), kind.protocol)
                back = back if kind.segment is Segment.GOES_ON else ()
                if forth or back:
                    admitted[one.member, other.address(one.member.side)] = _Admitted(other.member, forth, back)
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
        fates: list[list[tuple[Box, Leg]]] = []
        starts: list[int] = []
        receivers = {pair: admitted.receiver for pair, admitted in self.declared.items()}
        for flow in matrix(self.plan, receivers if self.plan.access.entries else None):
            if flow.sender != last:
                last, fates = flow.sender, self._destinations(flow.sender, flow.source)
                starts = [found[0][0].destinations[0] for found in fates]
            address = number(flow.destination)
            block = fates[bisect(starts, address) - 1]
            found = [(box, leg) for box, leg in block if box.destinations[0] <= address <= box.destinations[1]]
            count = pairs.setdefault((flow.sender.realm, flow.why), [0, 0])
            count[all(self._is_meant(flow, box, leg) for box, leg in found)] += 1
        return tuple(
            Count(realm=realm, what=what, pairs=wrong + right, as_declared=right)
            for (realm, what), (wrong, right) in pairs.items()
        )

    def _is_meant(self, flow: Flow, box: Box, leg: Leg) -> bool:
        """Whether packets of a class that go to this flow's address should meet this fate."""
        admitted = self.declared.get((flow.sender, flow.destination))
        if admitted is None or not admitted.any_of(box.sports, box.dports):
            return leg.reached is None
        return leg.reached == admitted.receiver and admitted.all_of(box.sports, box.dports)

    def _destinations(self, sender: MemberName, source: str) -> list[list[tuple[Box, Leg]]]:
        """All destinations from one sender, in the order of their addresses: blocks, and the classes of each.

        A block's first class is the whole of it, of the lowest ports.
        """
        fates: list[list[tuple[Box, Leg]]] = []
        own, (sports, dports) = (number(source),) * 2, self._ports()
        for destinations in self._outside(sender.realm):
            for box, leg in self._classes(sender, [own], [destinations]):
                self._judge(sender, box, leg)
                if (box.sports[0], box.dports[0]) == (sports[0], dports[0]):
                    fates.append([])
                fates[-1].append((box, leg))
        return fates

    def _classes(
        self, sender: MemberName, sources: Iterable[Block], destinations: Iterable[Block]
    ) -> Iterator[tuple[Box, Leg]]:
        """Packets of the kind that is looked at, class by class."""

        def follow(source: int, destination: int, sport: int, dport: int) -> tuple[Leg, Box]:
            self.traced += 1
            packet = _packet(self.kind, address_text(source), address_text(destination), sport, dport)
            leg = self.tracer.request(sender, packet)
            return leg, Box(*leg.alike, *leg.alike_ports)

        to = list(destinations)
        return cover([Box(source, one, *self._ports()) for source in sources for one in to], follow)

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
        for box, leg in self._classes(sender, self._sources(realm), self._outside(realm)):
            self._judge(sender, box, leg)
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
            for protocol in PROTOCOLS if flow.protocol is None else (flow.protocol,):
                self.traced += 1
                packet = replace(
                    _SYN, src=flow.source, dst=flow.destination, protocol=protocol, dport=flow.port or PORT
                )
                leg = self.tracer.request(flow.sender, packet)
                of = (number(flow.source), number(flow.destination), packet.sport, packet.dport)
                self._judge(flow.sender, Box(*((one, one) for one in of)), leg)

    def the_vms(self) -> None:
        """What the NAT VMs answer to one another, and whether the way in is open."""
        self.ports.from_the_vms(self.tracer)
        for operator in strangers_in(self.strangers, MANAGEMENT):
            self.ports.way_in(self.tracer, operator, self.strangers[operator])

    # --- the verdict --------------------------------------------------------------------------------------------

    def _judge(self, sender: MemberName, box: Box, leg: Leg) -> None:
        """Compare a class of packets with what is declared of its sender."""
        sources, destinations = box.sources, box.destinations
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
            if wanted is not None and packets == 1 and wanted.all_of(box.sports, box.dports):
                return  # traced, with its reply, among the declared flows
            among_customers = not sender.is_server and not (receiver is not None and receiver.is_server)
            kind = CUSTOMER_TO_CUSTOMER if among_customers else NOT_DECLARED
        elif isinstance(leg.refusal, AnsweredByNatVm) and box.dports != self._ports()[1]:
            # Not whatever comes: it is a rule for this port that lets it in, as one does with ssh.
            at = _packet(self.kind, "", "", box.sports[0], box.dports[0])
            self.ports.answered(self.tracer, sender, sources, destinations, at)
        elif leg.untranslated is not None or leg.disposition in (Disposition.ANSWERED_BY_NAT_VM, Disposition.LOOP):
            kind = NO_GUARD
        if kind is not None:
            self.found.append(
                CounterExample(
                    kind=kind,
                    sender=sender,
                    source=address_text(sources[0]),
                    destination=destination,
                    why=f"{self._port_words(box)}{leg.fate}",
                    alike=packets - 1,
                )
            )

    def _port_words(self, box: Box) -> str:
        """Which packets of a class are meant, `TCP port 23: `, where the others of its kind may fare otherwise."""
        if (box.sports, box.dports) == self._ports():
            return ""
        said = [
            f"{name} {Ports(*ports)}"
            for name, ports, whole in zip(("from port", "port"), (box.sports, box.dports), self._ports(), strict=True)
            if ports != whole
        ]
        return f"{self.kind.protocol.upper()} {' to '.join(said)}: "

    def _packet(self, kind: str, flow: Flow, why: str) -> None:
        self.found.append(
            CounterExample(kind=kind, sender=flow.sender, source=flow.source, destination=flow.destination, why=why)
        )


def _kinds(plan: PodPlan) -> list[Packet]:
    """The packets that stand for all others of their kind, the SYN first.

    Without a policy no rule looks at a port, and a routed POD's at nothing but whether a packet is a SYN.  With one the
    rules tell protocols apart, and ports (`_Prover._ports`).
    """
    match plan.delivery:
        case Delivery.PRIVATE_IPS:
            kinds, segments = [_SYN], [_SYN]
        case Delivery.ROUTES:
            kinds, segments = [_SYN, _DATAGRAM, _SEGMENT], [_SYN, _SEGMENT]
        case _ as never:
            assert_never(never)
    return [*segments, _DATAGRAM, _ECHO, _OTHERS] if plan.access.entries else kinds


def _ports_of(services: Services, protocol: str) -> tuple[Ports, ...]:
    """The ports to which packets of a protocol may go; of one without ports all, or none."""
    if protocol in (TCP, UDP):
        return services.of(protocol)
    return (EVERY_PORT,) if services.permits(protocol, 0) else ()


def _both(one: Block, other: Block) -> Block:
    """What two blocks have in common."""
    return max(one[0], other[0]), min(one[1], other[1])


def _added(counts: tuple[Count, ...], more: tuple[Count, ...]) -> tuple[Count, ...]:
    """The counts of several kinds of packets as one."""
    added: dict[tuple[str, str], Count] = {}
    for count in (*counts, *more):
        key = (count.realm, count.what)
        was = added.get(key, Count(realm=count.realm, what=count.what, pairs=0, as_declared=0))
        added[key] = replace(was, pairs=was.pairs + count.pairs, as_declared=was.as_declared + count.as_declared)
    return tuple(added.values())


def _packet(kind: Packet, source: str, destination: str, sport: int, dport: int) -> Packet:
    """A packet of this kind.  `replace` would take as long as a tenth of the trace."""
    return Packet(src=source, dst=destination, protocol=kind.protocol, sport=sport, dport=dport, segment=kind.segment)
