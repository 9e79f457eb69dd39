"""The VCNs between two machines: source/destination check, route rules, delivery by private IP, security rules.

This is what OCI does to a packet between the VNIC that sends it and the VNIC that receives it.  The sources are in
docs/region.md, "What the simulated region does, and its sources".
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from netaddr import AddrFormatError

from nat_pod.errors import UnknownRuleError
from nat_pod.trace.decisions import (
    Balanced,
    Decision,
    DestinationChecked,
    Direction,
    Down,
    ForBalancer,
    ForeignDestination,
    ForeignSource,
    NobodyHealthy,
    NoPrivateIp,
    NoRoute,
    NotPeered,
    NoTransit,
    NotSecured,
    OutsideVcn,
    RefusedError,
    Secured,
    SourceChecked,
    VcnRouted,
)
from nat_pod.trace.spans import Addresses, FlowKey, Header, Places, Span, number, numbers, prefix_around, runs
from nat_pod.trace.topology import PROTOCOL_NUMBERS, Balancer, Lpg, Route, SecurityRule, Subnet, Topology, Vm, Vnic


@dataclass(frozen=True, slots=True)
class _Crossing:
    """A way through a VCN, whether a stateful rule keeps the flow, and for which packets this holds.

    kept: the packet is a reply that passed only because its request was kept, which says nothing of other packets.
    stateful: at least one of the security rules keeps the flow.
    """

    routed: VcnRouted | Balanced
    leaves: Secured
    enters: Secured
    checked: DestinationChecked
    kept: bool
    stateful: bool
    alike: Header


class Vcns:
    """All VCNs, with what the traced flow has left behind in their stateful security rules.

    down: the names of machines that are down, which load balancers know.
    Raises UnknownRuleError for a route rule or a security rule that has no meaning here.
    """

    def __init__(self, topology: Topology, down: Container[str] = ()) -> None:
        _check_rules(topology)
        self._topology = topology
        self._down = down
        self._vnics = _vnics(topology)
        self._vms = topology.vms | {one.name: one.machine for one in topology.balancers.values()}
        self.places = _places(topology)
        # VNIC with stateful rules -> packets of the flows that they let pass.
        self._tracked: dict[str, set[FlowKey]] = {}
        self._sources = Places(numbers(cidr)[:2] for cidr in topology.peers)
        self._ports = Places(_ports(topology))
        # VNICs for which the same rules hold have the same number.
        kinds: dict[tuple[object, ...], int] = {}
        self._policies = {
            vnic.name: kinds.setdefault((vnic.subnet, vnic.nsgs, vnic.security), len(kinds)) for vnic in self._vnics
        }
        vcns = {vnic.name: topology.subnets[vnic.subnet].vcn for vnic in self._vnics}
        self._holder = {(vcns[vnic.name], number(address)): vnic for vnic in self._vnics for address in vnic.addresses}
        held: dict[str, dict[int, str]] = {vcn: {} for vcn in topology.vcns}
        for (vcn, value), vnic in self._holder.items():
            held[vcn][value] = vnic.name
        self._runs = {vcn: Places(runs(holders)) for vcn, holders in held.items()}
        self._own = {vnic.name: Addresses(map(number, vnic.addresses)) for vnic in self._vnics}
        self._balanced = {one.name: self._choose(one) for one in topology.balancers.values()}
        # Found so far: for the places of source and destination, the way through a VCN.
        self._crossings: dict[tuple[object, ...], _Crossing] = {}

    def forget(self) -> None:
        """Forget all flows: no flow has passed the network yet."""
        self._tracked.clear()

    def through(self, out: Vnic, header: Header, made: list[Decision]) -> tuple[Vnic, Vm]:
        """Take the packet from the VNIC that sends to the one that receives; returns that one and its machine.

        Raises RefusedError where the packet dies.
        """
        arrival, vm = self._across(out, header, made)
        balancer = self._topology.balancers.get(arrival.name)
        if balancer is not None:
            if self._own[arrival.name].has(header.dst):
                raise RefusedError(ForBalancer(balancer))
            arrival, vm = self._across(arrival, header, made, self._balanced[balancer.name])
        if vm.name in self._down:
            raise RefusedError(Down(vm))
        return arrival, vm

    def _across(
        self, out: Vnic, header: Header, made: list[Decision], sent: Balanced | NobodyHealthy | None = None
    ) -> tuple[Vnic, Vm]:
        """From a VNIC to the next one: by route and private IP, or where a load balancer has sent it."""
        if isinstance(sent, NobodyHealthy):
            raise RefusedError(sent)
        if not out.skip_source_dest_check and not self._own[out.name].has(header.src):
            raise RefusedError(ForeignSource(out, header.src.value))
        made.append(SourceChecked(out))
        key = (
            self._policies[out.name],
            None if sent is None else sent.arrival.name,
            self._sources.number(header.src.value),
            self.places.number(header.dst.value),
            header.protocol,
            self._ports.number(header.dport.value),
            header.icmp_type,
        )
        known = self._crossings.get(key)
        if known is None:
            # The header gets its own intervals, so that only this way narrows what is kept, and nothing before it.
            alone = header.alone()
            try:
                known = self._cross(out, alone, made, sent)
            finally:
                header.narrow(alone)
            if not known.kept:
                self._crossings[key] = known
        else:
            header.narrow(known.alike)
            arrival = known.routed.arrival
            leaves, enters = known.leaves, known.enters
            if self._tracked and arrival is not out:
                leaves, enters = self._as_reply(out, header, leaves), self._as_reply(arrival, header, enters)
            made += (known.routed, leaves, enters, known.checked)
        if known.stateful and header.about is None:  # an error opens no flow
            self._track(out, known.leaves, header)
            self._track(known.routed.arrival, known.enters, header)
        return known.checked.vnic, known.checked.vm

    def _cross(self, out: Vnic, header: Header, made: list[Decision], sent: Balanced | None) -> _Crossing:
        """The way through the VCN that rules and private IPs give."""
        routed = self._lead(out, header) if sent is None else sent
        peer = routed.peer if isinstance(routed, VcnRouted) else None
        arrival, receiver = routed.arrival, routed.receiver
        made.append(routed)
        # Who is at the other end is known only inside a VNIC's own VCN; through an LPG there is no NSG to name.
        leaves = self._secure(out, Direction.EGRESS, header, None if peer else arrival, made)
        enters = self._secure(arrival, Direction.INGRESS, header, None if peer else out, made)
        if not arrival.skip_source_dest_check and not self._own[arrival.name].has(header.dst):
            raise RefusedError(ForeignDestination(arrival, header.dst.value))
        checked = DestinationChecked(arrival, receiver)
        made.append(checked)
        rules = (leaves.rule, enters.rule)
        stateful = any(rule is not None and not rule.stateless for rule in rules)
        return _Crossing(routed, leaves, enters, checked, None in rules, stateful, header)

    # --- routing and delivery ----------------------------------------------------------------------------------

    def _lead(self, out: Vnic, header: Header) -> VcnRouted:
        """Where route rules and private IPs lead."""
        subnet = self._topology.subnets[out.subnet]
        # Neighbours in one subnet never meet its route table (OCI docs: intra-VCN routing, not intra-subnet).
        routes = () if prefix_around(header.dst, subnet.cidr) is not None else subnet.routes
        route, peer, arrival = self._route(subnet, routes, header.dst)
        return VcnRouted(subnet, route, peer, arrival, self._vms[arrival.vm])

    def _choose(self, balancer: Balancer) -> Balanced | NobodyHealthy:
        """What a load balancer does with a new flow: a backend that is up is taken for healthy."""
        vcn = self._topology.subnets[balancer.subnet].vcn
        held = {one.address: self._holder.get((vcn, number(one.address))) for one in balancer.backends}
        vnics = {address: vnic for address, vnic in held.items() if vnic is not None}
        up = [address for address, vnic in vnics.items() if vnic.vm not in self._down]
        chosen = balancer.choose(up)
        if chosen is None or chosen not in vnics:
            return NobodyHealthy(balancer)
        others = tuple((self._vms[v.vm], address in up) for address, v in vnics.items() if address != chosen)
        return Balanced(balancer, vnics[chosen], self._vms[vnics[chosen].vm], others)

    def _route(
        self, table: Subnet | Lpg, routes: tuple[Route, ...], dst: Span
    ) -> tuple[Route | None, Lpg | None, Vnic]:
        """The route rule that decides (None: local), the LPG it comes out of (None: stays here), and the receiver."""
        local = self._local(table.vcn, dst)
        best: tuple[int, Route] | None = None
        for route in routes:
            prefix = prefix_around(dst, route.destination)
            if prefix is not None and (best is None or prefix > best[0]):
                best = (prefix, route)
        if best is None or (local is not None and best[0] < local):
            if local is None:
                raise RefusedError(NoRoute(table, dst.value))
            return None, None, self._held(table.vcn, dst)
        route = best[1]
        if route.private_ip is not None:
            return route, None, self._held(table.vcn, Span(number(route.private_ip)))
        lpg = self._topology.lpgs.get(route.lpg or "")
        peer = self._topology.lpgs.get(lpg.peer) if lpg is not None and lpg.peer is not None else None
        if peer is None:
            raise RefusedError(NotPeered(route))
        return route, peer, self._behind(peer, dst)

    def _local(self, vcn: str, dst: Span) -> int | None:
        """The longest prefix of the VCN's own that the address is in."""
        cidrs = self._topology.vcns[vcn].cidrs
        return max((prefix for cidr in cidrs if (prefix := prefix_around(dst, cidr)) is not None), default=None)

    def _behind(self, lpg: Lpg, dst: Span) -> Vnic:
        """Delivery of a packet that comes in by an LPG."""
        if lpg.routes is not None:
            _, peer, arrival = self._route(lpg, lpg.routes, dst)
            if peer is not None:
                raise RefusedError(NoTransit(lpg))
            return arrival
        if self._local(lpg.vcn, dst) is None:
            raise RefusedError(OutsideVcn(lpg, dst.value))
        return self._held(lpg.vcn, dst)

    def _held(self, vcn: str, address: Span) -> Vnic:
        """The VNIC with a private IP."""
        self._runs[vcn].narrow(address)
        vnic = self._holder.get((vcn, address.value))
        if vnic is None:
            raise RefusedError(NoPrivateIp(vcn, address.value))
        return vnic

    # --- security rules ----------------------------------------------------------------------------------------

    def _secure(
        self, vnic: Vnic, direction: Direction, header: Header, other: Vnic | None, made: list[Decision]
    ) -> Secured:
        """What lets the packet pass at a VNIC.  For a reply `made` says so, even where a rule would let it pass too."""
        peer = header.src if direction is Direction.INGRESS else header.dst
        rules = (*vnic.security, *self._topology.subnets[vnic.subnet].security)
        rule = next((r for r in rules if r.direction == direction and _permits(r, peer, header, other)), None)
        secured = Secured(direction, rule)
        # What a machine sends to itself is not a reply to it.
        said = secured if other is vnic else self._as_reply(vnic, header, secured)
        if rule is None:
            if other is not vnic and vnic.name in self._tracked:
                header.pin()
            if said is secured:
                raise RefusedError(NotSecured(vnic, direction, peer.value))
        made.append(said)
        return secured

    def _as_reply(self, vnic: Vnic, header: Header, secured: Secured) -> Secured:
        """The decision; if the packet is the reply of a flow that a stateful rule let pass, it says so."""
        kept = self._tracked.get(vnic.name)
        return secured if kept is None or header.key() not in kept else Secured(secured.direction, None)

    def _track(self, vnic: Vnic, secured: Secured, header: Header) -> None:
        if secured.rule is not None and not secured.rule.stateless:
            self._tracked.setdefault(vnic.name, set()).add(header.reply_key())


def _permits(rule: SecurityRule, peer: Span, header: Header, other: Vnic | None) -> bool:
    if rule.protocol != "all" and PROTOCOL_NUMBERS.get(rule.protocol) != header.protocol:
        return False
    if rule.icmp_type is not None and rule.icmp_type != header.icmp_type:
        return False
    if rule.icmp_code not in (None, header.icmp_code):
        return False
    if rule.destination_ports is not None:
        low, high = rule.destination_ports
        if not header.dport.inside(low, high):
            return False
    if rule.peer_is_nsg:
        return other is not None and rule.peer in other.nsgs
    return prefix_around(peer, rule.peer) is not None


def _ports(topology: Topology) -> set[tuple[int, int]]:
    """The ranges of ports that security rules name."""
    lists = (*(vnic.security for vnic in _vnics(topology)), *(one.security for one in topology.subnets.values()))
    named = {rule.destination_ports for rules in lists for rule in rules}
    return {ports for ports in named if ports is not None}


def _vnics(topology: Topology) -> list[Vnic]:
    """All VNICs, the load balancers' own included."""
    return [*topology.vnics.values(), *(balancer.vnic for balancer in topology.balancers.values())]


def _places(topology: Topology) -> Places:
    """The places: addresses that nothing in the network tells apart, except rules of the NAT VMs.

    Two addresses of one place are in the same prefixes of every route, security rule, subnet and VCN, and the same
    VNICs have them.
    """
    holders: dict[int, str] = {}
    for vnic in _vnics(topology):
        for position, address in enumerate(vnic.addresses):
            # The primary address is a place by itself, because the guest has it.
            value = number(address)
            holders[value] = f"{holders.get(value)} {vnic.name} {position == 0}"
    return Places([numbers(cidr)[:2] for cidr in topology.networks] + runs(holders))


# --- what has no meaning here ----------------------------------------------------------------------------------------


def _check_rules(topology: Topology) -> None:
    """Raise UnknownRuleError for a rule that a packet's headers do not decide, instead of passing over it."""
    lists = {id(subnet.security): (f"subnet {subnet.name}", subnet.security) for subnet in topology.subnets.values()}
    lists |= {id(vnic.security): (f"VNIC {vnic.name}", vnic.security) for vnic in _vnics(topology)}
    for owner, rules in lists.values():
        for rule in rules:
            known = _misfit(rule)
            if known:
                line = f"security rule of {owner}, {rule.direction} {rule.protocol} {rule.peer} ({rule.description})"
                raise UnknownRuleError(line, known)
    tables: list[Subnet | Lpg] = [*topology.subnets.values(), *topology.lpgs.values()]
    for table in tables:
        for route in table.routes or ():
            if (route.lpg is None) == (route.private_ip is None) or not _is_network(route.destination):
                target = route.lpg or route.private_ip
                raise UnknownRuleError(
                    f"route rule of {table.name}, {route.destination} via {target}",
                    "it leads from one IPv4 network to one LPG or one private IP",
                )


def _misfit(rule: SecurityRule) -> str:
    """What a security rule would have to be to be understood; "" for one that is."""
    if rule.direction not in list(Direction):
        return "it is for INGRESS or EGRESS"
    if rule.protocol != "all" and not (rule.protocol.isdecimal() and int(rule.protocol) < 256):
        return "its protocol is all or a number, e.g. 6"
    if rule.destination_ports is not None and PROTOCOL_NUMBERS.get(rule.protocol) not in ("tcp", "udp"):
        return "ports go with TCP (6) or UDP (17)"
    if (rule.icmp_type, rule.icmp_code) != (None, None) and rule.protocol != "1":
        return "an ICMP type goes with ICMP (1)"
    if rule.icmp_code is not None and rule.icmp_type is None:
        return "an ICMP code goes with its type"
    if not rule.peer_is_nsg and not _is_network(rule.peer):
        return "the other end is an IPv4 network or an NSG"
    return ""


def _is_network(text: str) -> bool:
    try:
        numbers(text)
    except (AddrFormatError, ValueError):
        return False
    return True
