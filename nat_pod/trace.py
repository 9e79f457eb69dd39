"""The tracer: one packet's way through a Topology, request and reply, and where and why it dies.

It interprets the compiled rules, not the mapping they were compiled from, and refuses a rule it does not know: a
mistake in the compiler shows here as a packet that goes astray.  It does what OCI and Linux do to the packet:

    machine   route in the guest; for a NAT VM: reverse-path filter, conntrack, PREROUTING, routing decision,
              INPUT or FORWARD, POSTROUTING
    VNIC      source/destination check, security rules
    VCN       route rules of the subnet (or of the LPG it came in by), delivery by private IP

The same flows are sent as real packets in the lab and compared hop by hop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from netaddr import IPAddress, IPNetwork

from nat_pod.iptables import render_rule
from nat_pod.netfilter import Accept, Chain, Dnat, Drop, Goto, Masquerade, Match, Netmap, Rule, Snat, Table
from nat_pod.topology import VM_HOST, VM_NAT, Lpg, Route, SecurityRule, Topology, Vm, Vnic

ECHO_REQUEST, ECHO_REPLY = 8, 0
_PROTOCOL_NUMBERS = {"1": "icmp", "6": "tcp", "17": "udp"}
_EPHEMERAL_PORT = 50000
_MOST_HOPS = 16  # a delivered packet crosses four machines; more is a loop


class Disposition(StrEnum):
    """What becomes of a flow.  `DELIVERED` only when the request reaches its end and the reply comes back."""

    DELIVERED = "delivered"
    NO_MAPPING = "no-mapping"  # dropped by a NAT VM's guard: nothing translated it
    NO_PRIVATE_IP = "no-private-ip"  # the VCN delivers to no VNIC: nobody has that address
    NO_ROUTE = "no-route"
    NOT_PEERED = "not-peered"
    SECURITY_RULE = "security-rule"
    SOURCE_DEST_CHECK = "source-dest-check"
    RP_FILTER = "rp-filter"
    NOT_FORWARDING = "not-forwarding"
    ANSWERED_BY_NAT_VM = "answered-by-nat-vm"
    WRONG_MACHINE = "wrong-machine"
    LOOP = "loop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Packet:
    """The headers that matter.  For ICMP the two ports are the echo identifier."""

    src: str
    dst: str
    protocol: str = "icmp"  # icmp, tcp or udp
    sport: int = _EPHEMERAL_PORT
    dport: int = _EPHEMERAL_PORT
    icmp_type: int | None = None

    def reply(self) -> Packet:
        """The answer to this packet."""
        answered = ECHO_REPLY if self.icmp_type == ECHO_REQUEST else self.icmp_type
        return replace(self, src=self.dst, dst=self.src, sport=self.dport, dport=self.sport, icmp_type=answered)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One decision on the way.  `rule` is what decided, as its owner would write it."""

    at: str
    phase: str
    src: str
    dst: str
    rule: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hop:
    """The packet between two machines that may change it, with the rules that the sender applied."""

    at: str
    src: str
    dst: str
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """One direction of a flow.  `reached` is the machine it ended in, None when it died; `why` is a sentence."""

    hops: tuple[Hop, ...]
    steps: tuple[Step, ...]
    disposition: Disposition
    why: str
    reached: str | None
    packet: Packet  # as it arrived, or as it died


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """A flow: what became of it, and both legs (`reply` None when the request did not arrive)."""

    disposition: Disposition
    why: str
    request: Leg
    reply: Leg | None

    def to_dict(self) -> dict[str, object]:
        """The form of `trace --json`."""
        return {
            "disposition": str(self.disposition),
            "why": self.why,
            "request": [_hop_dict(hop) for hop in self.request.hops],
            "reply": [] if self.reply is None else [_hop_dict(hop) for hop in self.reply.hops],
        }


class UnknownRuleError(Exception):
    """A rule the tracer has no meaning for.  Guessing would make the prediction worthless."""


def trace(topology: Topology, sender: str, packet: Packet, expected: str | None = None) -> Trace:
    """Follow `packet` from the machine `sender`, and the answer back.

    expected: the machine that should answer; another one answering is WRONG_MACHINE.  None: whoever has the address.
    """
    return tracer(topology)(sender, packet, expected)


def tracer(topology: Topology) -> Callable[[str, Packet, str | None], Trace]:
    """`trace` for many flows through one topology: what depends on the topology alone is looked up once."""
    walk = _Walk(topology)

    def trace_one(sender: str, packet: Packet, expected: str | None) -> Trace:
        walk.forget()
        return _trace(walk, sender, packet, expected)

    return trace_one


def _trace(walk: _Walk, sender: str, packet: Packet, expected: str | None) -> Trace:
    if packet.protocol == "icmp" and packet.icmp_type is None:
        packet = replace(packet, icmp_type=ECHO_REQUEST)
    request = walk.leg(sender, packet)
    if request.reached is None:
        return Trace(disposition=request.disposition, why=request.why, request=request, reply=None)
    if expected is not None and request.reached != expected:
        why = f"{label(request.reached)} has that address too and answers, not {label(expected)}"
        return Trace(disposition=Disposition.WRONG_MACHINE, why=why, request=request, reply=None)
    reply = walk.leg(request.reached, request.packet.reply())
    if reply.reached is None:
        return Trace(disposition=reply.disposition, why=f"the reply: {reply.why}", request=request, reply=reply)
    back = reply.packet.reply()
    if reply.reached != sender or (back.src, back.dst) != (packet.src, packet.dst):
        why = f"the reply reaches {label(reply.reached)} as {reply.packet.src} > {reply.packet.dst}"
        return Trace(disposition=Disposition.WRONG_MACHINE, why=why, request=request, reply=reply)
    return Trace(disposition=Disposition.DELIVERED, why="both ways arrive", request=request, reply=reply)


def label(vm: str) -> str:
    """A machine's name in hops: nat_vm1, nat_vm2, the server's bare name, customer1/vm1."""
    return {"natVm1": "nat_vm1", "natVm2": "nat_vm2"}.get(vm, vm.removeprefix("management/"))


def _hop_dict(hop: Hop) -> dict[str, str]:
    entry = {"at": hop.at, "src": hop.src, "dst": hop.dst}
    if hop.rules:
        entry["rule"] = "; ".join(hop.rules)
    return entry


class _DeadError(Exception):
    """The packet ends here."""

    def __init__(self, disposition: Disposition, why: str) -> None:
        super().__init__(why)
        self.disposition = disposition
        self.why = why


@dataclass
class _Walk:
    """The network with the state that a flow leaves behind in it."""

    topology: Topology
    # NAT VM -> {packet as it arrives: packet as it leaves}, both directions: conntrack.
    conntrack: dict[str, dict[tuple[str, str, str, int, int], tuple[str, str]]] = field(default_factory=dict)
    # VNICs with stateful rules: (vnic, packet) of flows they let pass.
    tracked: set[tuple[str, tuple[str, str, str, int, int]]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.holder = {
            (self.topology.subnets[vnic.subnet].vcn, address): vnic
            for vnic in self.topology.vnics.values()
            for address in vnic.addresses
        }
        self.networks: dict[str, tuple[int, int, int]] = {}
        self.numbers: dict[str, int] = {}

    def forget(self) -> None:
        """Make the network one that no flow has passed yet."""
        self.conntrack.clear()
        self.tracked.clear()

    def inside(self, address: str, cidr: str) -> int | None:
        """The prefix length of `cidr` when it contains `address`, else None."""
        if cidr not in self.networks:
            network = IPNetwork(cidr)
            self.networks[cidr] = (network.first, network.last, network.prefixlen)
        if address not in self.numbers:
            self.numbers[address] = int(IPAddress(address))
        first, last, prefix = self.networks[cidr]
        return prefix if first <= self.numbers[address] <= last else None

    def leg(self, sender: str, packet: Packet) -> Leg:
        hops: list[Hop] = []
        steps: list[Step] = []
        vm = self.topology.vms[sender]
        last = sender
        rules: tuple[str, ...] = ()
        reached = None
        disposition, why = Disposition.DELIVERED, ""
        try:
            out = self.guest_route(vm, packet.dst)
            for _ in range(_MOST_HOPS):
                arrival = self.through_vcn(out, packet, steps)
                vm = self.topology.vms[arrival.vm]
                if vm.kind in (VM_HOST, VM_NAT):
                    at = f"{label(last)} -> {label(vm.name)}"
                    hops.append(Hop(at=at, src=packet.src, dst=packet.dst, rules=rules))
                    last, rules = vm.name, ()
                if vm.kind == VM_NAT:
                    out, packet, rules = self.nat(vm, arrival, packet, steps)
                elif packet.dst in self.local_addresses(vm):
                    reached = vm.name
                    break
                else:
                    if not vm.forwarding:
                        raise _DeadError(
                            Disposition.NOT_FORWARDING,
                            f"{label(vm.name)} has no address {packet.dst} and forwards nothing",
                        )
                    out = self.guest_route(vm, packet.dst)
            else:
                raise _DeadError(Disposition.LOOP, f"still on its way after {_MOST_HOPS} machines")
        except _DeadError as dead:
            disposition, why = dead.disposition, dead.why
            steps.append(Step(at=label(vm.name), phase="dropped", src=packet.src, dst=packet.dst, rule=why))
        return Leg(
            hops=tuple(hops), steps=tuple(steps), disposition=disposition, why=why, reached=reached, packet=packet
        )

    # --- the VCN -----------------------------------------------------------------------------------------------

    def through_vcn(self, out: Vnic, packet: Packet, steps: list[Step]) -> Vnic:
        """From the VNIC that sends to the VNIC that receives."""

        def step(at: str, phase: str, rule: str) -> None:
            steps.append(Step(at=at, phase=phase, src=packet.src, dst=packet.dst, rule=rule))

        if not out.skip_source_dest_check and packet.src not in out.addresses:
            raise _DeadError(
                Disposition.SOURCE_DEST_CHECK,
                f"VNIC {out.name} may send only from its own addresses ({', '.join(out.addresses)}), "
                f"not from {packet.src}: the source/destination check is on",
            )
        step(out.name, "source/destination check", "off" if out.skip_source_dest_check else "own address")
        subnet = self.topology.subnets[out.subnet]
        # Neighbours in one subnet never meet its route table (OCI docs: intra-VCN routing, not intra-subnet).
        routes = () if self.inside(packet.dst, subnet.cidr) is not None else subnet.routes
        arrival, via_lpg, how = self.route(subnet.vcn, routes, packet.dst, f"subnet {subnet.name}")
        step(subnet.name, "route", how)
        # A VNIC sees who is at the other end only inside its own VCN; through an LPG there is no NSG to name.
        self.secure(out, "EGRESS", packet, None if via_lpg else arrival, step)
        self.secure(arrival, "INGRESS", packet, None if via_lpg else out, step)
        if not arrival.skip_source_dest_check and packet.dst not in arrival.addresses:
            raise _DeadError(
                Disposition.SOURCE_DEST_CHECK,
                f"VNIC {arrival.name} takes only packets for its own addresses, not for {packet.dst}: "
                "the source/destination check is on",
            )
        step(arrival.name, "delivery", f"private IP {packet.dst}" if packet.dst in arrival.addresses else "as next hop")
        return arrival

    def route(self, vcn: str, routes: tuple[Route, ...], dst: str, where: str) -> tuple[Vnic, bool, str]:
        """Who gets it: the VNIC, whether through an LPG, and the rule in words."""
        local = max(
            (prefix for cidr in self.topology.vcns[vcn].cidrs if (prefix := self.inside(dst, cidr)) is not None),
            default=None,
        )
        best: tuple[int, Route] | None = None
        for route in routes:
            prefix = self.inside(dst, route.destination)
            if prefix is not None and (best is None or prefix > best[0]):
                best = (prefix, route)
        if best is None or (local is not None and best[0] < local):
            if local is None:
                raise _DeadError(Disposition.NO_ROUTE, f"{where} has no route rule for {dst}")
            return self.held(vcn, dst), False, f"local to VCN {vcn}"
        route = best[1]
        if route.private_ip is not None:
            return self.held(vcn, route.private_ip), False, f"{route.destination} via private IP {route.private_ip}"
        lpg = self.topology.lpgs.get(route.lpg or "")
        peer = self.topology.lpgs.get(lpg.peer) if lpg is not None and lpg.peer is not None else None
        if peer is None or lpg is None:
            raise _DeadError(Disposition.NOT_PEERED, f"{route.destination} via LPG {route.lpg}, which is not peered")
        return self.behind(peer, dst), True, f"{route.destination} via LPG {lpg.name} to VCN {peer.vcn}"

    def behind(self, lpg: Lpg, dst: str) -> Vnic:
        """Delivery of a packet that comes in by an LPG."""
        if lpg.routes is not None:
            arrival, again, _ = self.route(lpg.vcn, lpg.routes, dst, f"LPG {lpg.name}")
            if again:
                raise _DeadError(Disposition.NO_ROUTE, f"LPG {lpg.name} leads to another LPG: OCI does not transit")
            return arrival
        if all(self.inside(dst, cidr) is None for cidr in self.topology.vcns[lpg.vcn].cidrs):
            raise _DeadError(Disposition.NO_ROUTE, f"{dst} is not in VCN {lpg.vcn} behind LPG {lpg.name}")
        return self.held(lpg.vcn, dst)

    def held(self, vcn: str, address: str) -> Vnic:
        """The VNIC with a private IP."""
        vnic = self.holder.get((vcn, address))
        if vnic is None:
            raise _DeadError(Disposition.NO_PRIVATE_IP, f"no VNIC in VCN {vcn} has the private IP {address}")
        return vnic

    def secure(
        self, vnic: Vnic, direction: str, packet: Packet, other: Vnic | None, step: Callable[[str, str, str], None]
    ) -> None:
        """Security rules of one VNIC in one direction; raises when none lets the packet pass."""
        if (vnic.name, _tuple(packet)) in self.tracked:
            step(vnic.name, f"security {direction.lower()}", "reply of a flow that a stateful rule let pass")
            return
        rules = (*vnic.security, *self.topology.subnets[vnic.subnet].security)
        for rule in rules:
            if rule.direction == direction and self.secures(rule, direction, packet, other):
                if not rule.stateless:
                    self.tracked.add((vnic.name, _tuple(packet.reply())))
                words = "" if rule.protocol == "all" else f" {_PROTOCOL_NUMBERS.get(rule.protocol, rule.protocol)}"
                step(vnic.name, f"security {direction.lower()}", f"{rule.peer}{words} {rule.description}".strip())
                return
        side = f"from {packet.src}" if direction == "INGRESS" else f"to {packet.dst}"
        raise _DeadError(
            Disposition.SECURITY_RULE,
            f"no {direction.lower()} security rule of VNIC {vnic.name} lets a packet {side} pass",
        )

    def secures(self, rule: SecurityRule, direction: str, packet: Packet, other: Vnic | None) -> bool:
        if rule.protocol != "all" and _PROTOCOL_NUMBERS.get(rule.protocol) != packet.protocol:
            return False
        if rule.icmp_type is not None and rule.icmp_type != packet.icmp_type:
            return False
        if rule.destination_ports is not None:
            low, high = rule.destination_ports
            if not low <= packet.dport <= high:
                return False
        if rule.peer_is_nsg:
            return other is not None and rule.peer in other.nsgs
        return self.inside(packet.src if direction == "INGRESS" else packet.dst, rule.peer) is not None

    # --- the guest ---------------------------------------------------------------------------------------------

    def guest_route(self, vm: Vm, dst: str) -> Vnic:
        """The VNIC by which a machine sends towards `dst`: its own routes, its subnets, else the primary VNIC."""
        best = (-1, self.topology.vnics[vm.vnics[0]])
        connected = [(self.topology.subnets[self.topology.vnics[name].subnet].cidr, name) for name in vm.vnics]
        for cidr, name in [*connected, *vm.routes]:
            prefix = self.inside(dst, cidr)
            if prefix is not None and prefix > best[0]:
                best = (prefix, self.topology.vnics[name])
        return best[1]

    def local_addresses(self, vm: Vm) -> set[str]:
        """Addresses the guest itself has.  A NAT VM's secondary private IPs are not configured in the guest."""
        vnics = [self.topology.vnics[name] for name in vm.vnics]
        if vm.kind == VM_NAT:
            return {vnic.addresses[0] for vnic in vnics}
        return {address for vnic in vnics for address in vnic.addresses}

    def nat(self, vm: Vm, arrival: Vnic, packet: Packet, steps: list[Step]) -> tuple[Vnic, Packet, tuple[str, ...]]:
        """A NAT VM's netfilter: the VNIC and the packet that leave, and the rules that changed it."""
        name = label(vm.name)

        def step(phase: str, rule: str) -> None:
            steps.append(Step(at=name, phase=phase, src=packet.src, dst=packet.dst, rule=rule))

        back = self.guest_route(vm, packet.src)
        if vm.strict_rp_filter and back.name != arrival.name:
            raise _DeadError(
                Disposition.RP_FILTER,
                f"{name} took it on {arrival.name} but would answer by {back.name}: rp_filter drops it",
            )
        flows = self.conntrack.setdefault(vm.name, {})
        known = flows.get(_tuple(packet))
        applied = []
        if known is not None:
            state = {"ESTABLISHED", "DNAT", "SNAT"}
            translated = replace(packet, src=known[0], dst=known[1])
            step("conntrack", f"known flow, becomes {translated.src} > {translated.dst}")
        else:
            state = {"NEW"}
            translated = packet
            hit = self.first_match(vm, "nat", "PREROUTING", packet, state)
            if hit is not None:
                translated = replace(packet, dst=_new_address(hit[1].target, packet.dst))
                state.add("DNAT")
                applied.append(render_rule(hit[0].name, hit[1]))
                step("PREROUTING", applied[-1])
        original, packet = packet, translated
        if packet.dst in self.local_addresses(vm):
            self.filter(vm, "INPUT", packet, state, step)
            raise _DeadError(
                Disposition.ANSWERED_BY_NAT_VM, f"{packet.dst} is {name} itself, and its INPUT rules let the packet in"
            )
        if not vm.forwarding:
            raise _DeadError(Disposition.NOT_FORWARDING, f"{name} does not forward: net.ipv4.ip_forward is not 1")
        self.filter(vm, "FORWARD", packet, state, step)
        out = self.guest_route(vm, packet.dst)
        if known is None:
            hit = self.first_match(vm, "nat", "POSTROUTING", packet, state)
            if hit is not None:
                target = hit[1].target
                new = out.addresses[0] if isinstance(target, Masquerade) else _new_address(target, packet.src)
                packet = replace(packet, src=new)
                applied.append(render_rule(hit[0].name, hit[1]))
                step("POSTROUTING", applied[-1])
            flows[_tuple(original)] = (packet.src, packet.dst)
            flows[_tuple(packet.reply())] = (original.dst, original.src)
        return out, packet, tuple(applied)

    def filter(self, vm: Vm, builtin: str, packet: Packet, state: set[str], step: Callable[[str, str], None]) -> None:
        hit = self.first_match(vm, "filter", builtin, packet, state)
        if hit is None:
            step(builtin, "no rule of ours; the platform's own rules and policy decide")
            return
        text = render_rule(hit[0].name, hit[1])
        if isinstance(hit[1].target, Drop):
            raise _DeadError(
                Disposition.NO_MAPPING,
                f"{label(vm.name)} drops {packet.src} > {packet.dst} in {builtin}: {hit[1].comment or text}",
            )
        step(builtin, text)

    def first_match(
        self, vm: Vm, table_name: str, builtin: str, packet: Packet, state: set[str]
    ) -> tuple[Chain, Rule] | None:
        """The first terminating rule behind a built-in chain, None when the packet falls through."""
        if vm.rules is None:
            return None
        table: Table = vm.rules.nat if table_name == "nat" else vm.rules.filter
        chain = table.hooked(builtin)
        while chain is not None:
            entered = chain
            chain = None
            for rule in entered.rules:
                if not self.matches(rule.match, packet, state):
                    continue
                match rule.target:
                    case Goto(name):
                        chain = table.chain(name)
                    case Accept() | Drop() if table_name == "filter":
                        return entered, rule
                    case Dnat() if table_name == "nat" and builtin == "PREROUTING":
                        return entered, rule
                    case Snat() | Masquerade() if table_name == "nat" and builtin == "POSTROUTING":
                        return entered, rule
                    case Netmap() if table_name == "nat":
                        return entered, rule
                    case _:
                        raise UnknownRuleError(f"{render_rule(entered.name, rule)} in {builtin} of {table_name}")
                break
        return None

    def matches(self, match: Match, packet: Packet, state: set[str]) -> bool:
        unknown = set(match.ctstate) - {"NEW", "ESTABLISHED", "RELATED", "INVALID", "DNAT", "SNAT"}
        if unknown:
            raise UnknownRuleError(f"ctstate {', '.join(sorted(unknown))}")
        return (
            (match.in_interface is None)  # only lo is ever named, and a packet on the wire is not from lo
            and (match.source is None or self.inside(packet.src, match.source) is not None)
            and (match.destination is None or self.inside(packet.dst, match.destination) is not None)
            and (match.protocol is None or match.protocol == packet.protocol)
            and (match.source_port is None or match.source_port == packet.sport)
            and (match.destination_port is None or match.destination_port == packet.dport)
            and (match.icmp_type is None or match.icmp_type == packet.icmp_type)
            and (not match.ctstate or bool(state & set(match.ctstate)))
        )


def _tuple(packet: Packet) -> tuple[str, str, str, int, int]:
    """What conntrack knows a packet by."""
    return (packet.protocol, packet.src, packet.dst, packet.sport, packet.dport)


def _new_address(target: object, address: str) -> str:
    """The address a translation gives."""
    match target:
        case Dnat(to) | Snat(to):
            return to
        case Netmap(to):
            network = IPNetwork(to)
            return str(IPAddress(network.first | (int(IPAddress(address)) & int(network.hostmask))))
    raise UnknownRuleError(f"{target} is no address translation")
