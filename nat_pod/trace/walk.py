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

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from netaddr import IPAddress

from nat_pod.rules.netfilter import Drop
from nat_pod.trace.chains import Addresses, Header, Places, RuleKey, Span, Verdict, Walker, numbers
from nat_pod.trace.topology import VM_HOST, VM_NAT, Lpg, Route, SecurityRule, Topology, Vm, Vnic

ECHO_REQUEST, ECHO_REPLY = 8, 0
_PROTOCOL_NUMBERS = {"1": "icmp", "6": "tcp", "17": "udp"}
_EPHEMERAL_PORT = 50000
_NAT_VMS = {"natVm1": "nat_vm1", "natVm2": "nat_vm2"}
_NEW, _NEW_DNAT = frozenset(("NEW",)), frozenset(("NEW", "DNAT"))
_KNOWN = frozenset(("ESTABLISHED", "DNAT", "SNAT"))
_MOST_HOPS = 16  # a delivered packet crosses four machines; more is a loop


class Disposition(StrEnum):
    """What becomes of a flow.  `DELIVERED` only when the request reaches its end and the reply comes back."""

    DELIVERED = "delivered"
    NO_MAPPING = "no-mapping"
    NO_PRIVATE_IP = "no-private-ip"
    NO_ROUTE = "no-route"
    NOT_PEERED = "not-peered"
    SECURITY_RULE = "security-rule"
    SOURCE_DEST_CHECK = "source-dest-check"
    RP_FILTER = "rp-filter"
    NOT_FORWARDING = "not-forwarding"
    ANSWERED_BY_NAT_VM = "answered-by-nat-vm"
    WRONG_MACHINE = "wrong-machine"
    LOOP = "loop"

    @property
    def meaning(self) -> str:
        """One line for people."""
        return _MEANINGS[self]


_MEANINGS = {
    Disposition.DELIVERED: "the request reaches its end, and the reply comes back to the sender",
    Disposition.NO_MAPPING: "a NAT VM's guard drops it: no rule translates this source and destination",
    Disposition.NO_PRIVATE_IP: "the VCN has nobody to deliver to: no VNIC has that address",
    Disposition.NO_ROUTE: "no route rule leads to that address",
    Disposition.NOT_PEERED: "the route leads to an LPG whose peering does not stand",
    Disposition.SECURITY_RULE: "no security rule of the VNIC or its subnet lets it pass",
    Disposition.SOURCE_DEST_CHECK: "the VNIC's source/destination check is on, and the address is not its own",
    Disposition.RP_FILTER: "the kernel drops it: it would answer by another VNIC (rp_filter)",
    Disposition.NOT_FORWARDING: "it reaches a machine that it is not for, and that does not forward",
    Disposition.ANSWERED_BY_NAT_VM: "the NAT VM itself takes it: looks like an answer, is none",
    Disposition.WRONG_MACHINE: "another machine than the one asked for answers, or gets the reply",
    Disposition.LOOP: "it goes round and never arrives",
}


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
        return Packet(
            src=self.dst,
            dst=self.src,
            protocol=self.protocol,
            sport=self.dport,
            dport=self.sport,
            icmp_type=answered,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One decision on the way.

    machine: the box it is made at, as in hops; a VCN's decisions are the sender's before the packet reaches a VNIC,
    then the receiver's.  rule: what decided, as its owner would write it.  chains: those the packet went through.
    before, after: the header, source and destination; they differ where it was translated.
    passed: False where it dies.
    """

    machine: str
    phase: str
    rule: str
    before: tuple[str, str]
    after: tuple[str, str]
    chains: tuple[str, ...] = ()
    passed: bool = True


class Hop(NamedTuple):
    """The packet between two machines that may change it, with the rules that the sender applied."""

    at: str
    src: str
    dst: str
    rules: tuple[str, ...] = ()


class Leg(NamedTuple):
    """One direction of a flow.  `reached` is the machine it ended in, None when it died; `why` is a sentence.

    `alike`: source and destination intervals (first, last); each packet of them that this sender may send meets the
    same decisions.  `untranslated`: a NAT VM passed it on without a translation.  `steps` is empty unless asked for.
    """

    hops: tuple[Hop, ...]
    steps: tuple[Step, ...]
    disposition: Disposition
    why: str
    reached: str | None
    packet: Packet  # as it arrived, or as it died
    alike: tuple[tuple[int, int], tuple[int, int]]
    untranslated: str | None = None


class Trace(NamedTuple):
    """A flow: what became of it, and both legs (`reply` None when the request did not arrive)."""

    disposition: Disposition
    why: str
    request: Leg
    reply: Leg | None

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The request, and the reply if there is one."""
        return (self.request,) if self.reply is None else (self.request, self.reply)

    def to_dict(self, *, steps: bool = False) -> dict[str, object]:
        """The form of `trace --json`, and with `steps` of `trace --steps --json`."""
        entry: dict[str, object] = {
            "disposition": str(self.disposition),
            "why": self.why,
            "request": [_hop_dict(hop) for hop in self.request.hops],
            "reply": [] if self.reply is None else [_hop_dict(hop) for hop in self.reply.hops],
        }
        if steps:
            entry["steps"] = [_step_dict(step, leg is self.reply) for leg in self.legs for step in leg.steps]
        return entry


def trace(topology: Topology, sender: str, packet: Packet, expected: str | None = None) -> Trace:
    """Follow `packet` from the machine `sender`, and the answer back, with every step.

    expected: the machine that should answer; another one answering is WRONG_MACHINE.  None: whoever has the address.
    """
    return Tracer(topology).trace(sender, packet, expected, steps=True)


class Tracer:
    """`trace` for many flows through one topology: what depends on the topology alone is looked up once."""

    def __init__(self, topology: Topology) -> None:
        self._walk = _Walk(topology)

    def trace(self, sender: str, packet: Packet, expected: str | None = None, *, steps: bool = False) -> Trace:
        """Request and reply; no flow passed the network before."""
        request = self.request(sender, packet, steps=steps)
        if request.reached is None:
            return Trace(disposition=request.disposition, why=request.why, request=request, reply=None)
        if expected is not None and request.reached != expected:
            why = f"{label(request.reached)} has that address too and answers, not {label(expected)}"
            return Trace(disposition=Disposition.WRONG_MACHINE, why=why, request=request, reply=None)
        reply = self._walk.leg(request.reached, request.packet.reply(), steps)
        if reply.reached is None:
            return Trace(disposition=reply.disposition, why=f"the reply: {reply.why}", request=request, reply=reply)
        back = reply.packet
        if reply.reached != sender or (back.dst, back.src) != (packet.src, packet.dst):
            why = f"the reply reaches {label(reply.reached)} as {back.src} > {back.dst}"
            return Trace(disposition=Disposition.WRONG_MACHINE, why=why, request=request, reply=reply)
        return Trace(disposition=Disposition.DELIVERED, why="both ways arrive", request=request, reply=reply)

    def request(self, sender: str, packet: Packet, *, steps: bool = False) -> Leg:
        """The request alone."""
        if packet.protocol == "icmp" and packet.icmp_type is None:
            packet = replace(packet, icmp_type=ECHO_REQUEST)
        self._walk.forget()
        return self._walk.leg(sender, packet, steps)

    @property
    def used(self) -> dict[str, frozenset[RuleKey]]:
        """By NAT VM the rules that a packet matched so far."""
        return {vm: frozenset(walker.used) for vm, walker in self._walk.walkers.items()}


def label(vm: str) -> str:
    """A machine's name in hops: nat_vm1, nat_vm2, the server's bare name, customer1/vm1."""
    return _NAT_VMS.get(vm) or vm.removeprefix("management/")


def _hop_dict(hop: Hop) -> dict[str, str]:
    entry = {"at": hop.at, "src": hop.src, "dst": hop.dst}
    if hop.rules:
        entry["rule"] = "; ".join(hop.rules)
    return entry


def _step_dict(step: Step, reply: bool) -> dict[str, object]:
    entry: dict[str, object] = {
        "leg": "reply" if reply else "request",
        "at": step.machine,
        "phase": step.phase,
        "rule": step.rule,
        "before": {"src": step.before[0], "dst": step.before[1]},
        "after": {"src": step.after[0], "dst": step.after[1]},
        "passed": step.passed,
    }
    if step.chains:
        entry["chains"] = list(step.chains)
    return entry


class _DeadError(Exception):
    """The packet ends here."""

    def __init__(self, disposition: Disposition, phase: str, why: str, chains: tuple[str, ...] = ()) -> None:
        super().__init__(why)
        self.disposition = disposition
        self.phase = phase
        self.why = why
        self.chains = chains


def _places(topology: Topology) -> Places:
    """The addresses that nothing in the network but the rules of the NAT VMs tells apart.

    Two of one place are in the same prefixes of every route, security rule, subnet and VCN, and the same VNICs have
    them.
    """
    holders: dict[int, str] = {}
    for vnic in topology.vnics.values():
        for position, address in enumerate(vnic.addresses):
            # The primary address is one by itself: it is what the guest has.
            value = int(IPAddress(address))
            holders[value] = f"{holders.get(value)} {vnic.name} {position == 0}"
    return Places([numbers(cidr)[:2] for cidr in topology.networks] + _runs(holders))


def _runs(holders: dict[int, str]) -> list[tuple[int, int]]:
    """Addresses in a row that the same VNIC has."""
    runs: list[tuple[int, int]] = []
    for address in sorted(holders):
        if runs and runs[-1][1] == address - 1 and holders[address - 1] == holders[address]:
            runs[-1] = (runs[-1][0], address)
        else:
            runs.append((address, address))
    return runs


@dataclass(frozen=True, slots=True)
class _Crossing:
    """A way through a VCN: the VNIC that receives, where a stateful rule keeps the flow, and for which packets.

    kept: a reply that passed only because its request was kept, which says nothing of other packets.
    """

    arrival: Vnic
    leaves: bool
    enters: bool
    kept: bool
    src: Span
    dst: Span


@dataclass(frozen=True, slots=True)
class _Way:
    """Where a VCN sends a packet: the VNIC, whether through an LPG, and the rule in words."""

    arrival: Vnic
    via_lpg: bool
    how: str


class _Walk:
    """The network with the state that a flow leaves behind in it."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        # NAT VM -> {packet as it arrives: packet as it leaves}, both directions: conntrack.
        self.conntrack: dict[str, dict[tuple[str, int, int, int, int], tuple[int, int]]] = {}
        # VNIC with stateful rules -> packets of flows they let pass.
        self.tracked: dict[str, set[tuple[str, int, int, int, int]]] = {}
        self.walkers = {vm.name: Walker(vm.rules) for vm in topology.vms.values() if vm.rules is not None}
        self.places = _places(topology)
        self.sources = Places(numbers(cidr)[:2] for cidr in topology.peers)
        # VNICs that the same rules hold for, numbered.
        kinds: dict[tuple[object, ...], int] = {}
        self.policies = {
            vnic.name: kinds.setdefault((vnic.subnet, vnic.nsgs, vnic.security), len(kinds))
            for vnic in topology.vnics.values()
        }
        self.values: dict[str, int] = {}
        vcns = {vnic.name: topology.subnets[vnic.subnet].vcn for vnic in topology.vnics.values()}
        self.holder = {
            (vcns[vnic.name], self.value(address)): vnic
            for vnic in topology.vnics.values()
            for address in vnic.addresses
        }
        self.runs = {
            vcn: Places(_runs({address: vnic.name for (held, address), vnic in self.holder.items() if held == vcn}))
            for vcn in topology.vcns
        }
        self.texts: dict[int, str] = {}
        self.prefixes: dict[str, tuple[int, int, int]] = {}
        self.local = {vm.name: self._local_addresses(vm) for vm in topology.vms.values()}
        self.own = {vnic.name: Addresses(map(self.value, vnic.addresses)) for vnic in topology.vnics.values()}
        # What is known already: for the place of a destination the VNIC that a guest sends by, and for the places of
        # source and destination a way through a VCN.
        self.guests: dict[tuple[str, int], tuple[Vnic, str, Span]] = {}
        self.crossings: dict[tuple[object, ...], _Crossing] = {}

    def forget(self) -> None:
        """Make the network one that no flow has passed yet."""
        self.conntrack.clear()
        self.tracked.clear()

    def text(self, value: int) -> str:
        if value not in self.texts:
            self.texts[value] = str(IPAddress(value))
        return self.texts[value]

    def value(self, address: str) -> int:
        if address not in self.values:
            self.values[address] = int(IPAddress(address))
        return self.values[address]

    def inside(self, address: Span, cidr: str) -> int | None:
        """The prefix length of `cidr` when it contains the address, else None."""
        if cidr not in self.prefixes:
            self.prefixes[cidr] = numbers(cidr)
        first, last, prefix = self.prefixes[cidr]
        return prefix if address.inside(first, last) else None

    def pair(self, header: Header) -> tuple[str, str]:
        return self.text(header.src.value), self.text(header.dst.value)

    def leg(self, sender: str, packet: Packet, with_steps: bool) -> Leg:
        header = Header(
            Span(self.value(packet.src)),
            Span(self.value(packet.dst)),
            packet.protocol,
            packet.sport,
            packet.dport,
            packet.icmp_type,
        )
        steps = _Steps(self, header) if with_steps else None
        hops: list[Hop] = []
        vm = self.topology.vms[sender]
        last = sender
        rules: tuple[str, ...] = ()
        reached = untranslated = None
        disposition, why = Disposition.DELIVERED, ""
        try:
            out = self.guest_route(vm, header, steps)
            for _ in range(_MOST_HOPS):
                arrival = self.through_vcn(out, header, steps)
                vm = self.topology.vms[arrival.vm]
                if vm.kind in (VM_HOST, VM_NAT):
                    src, dst = self.pair(header)
                    hops.append(Hop(at=f"{label(last)} -> {label(vm.name)}", src=src, dst=dst, rules=rules))
                    last, rules = vm.name, ()
                if vm.kind == VM_NAT:
                    out, rules, translated = self.nat(vm, arrival, header, steps)
                    if not translated:
                        untranslated = vm.name
                elif self.is_local(vm, header):
                    reached = vm.name
                    if steps is not None:
                        steps.add("delivery", f"{label(vm.name)} has {self.text(header.dst.value)}")
                    break
                else:
                    if not vm.forwarding:
                        raise _DeadError(
                            Disposition.NOT_FORWARDING,
                            "delivery",
                            f"{label(vm.name)} has no address {self.text(header.dst.value)} and forwards nothing",
                        )
                    out = self.guest_route(vm, header, steps)
            else:
                raise _DeadError(Disposition.LOOP, "routing decision", f"still on its way after {_MOST_HOPS} machines")
        except _DeadError as dead:
            disposition, why = dead.disposition, dead.why
            if steps is not None:
                steps.add(dead.phase, why, chains=dead.chains, passed=False)
        src, dst = self.pair(header)
        return Leg(
            hops=tuple(hops),
            steps=() if steps is None else tuple(steps.made),
            disposition=disposition,
            why=why,
            reached=reached,
            packet=Packet(
                src=src,
                dst=dst,
                protocol=header.protocol,
                sport=header.sport,
                dport=header.dport,
                icmp_type=header.icmp_type,
            ),
            alike=(header.src.origin(), header.dst.origin()),
            untranslated=untranslated,
        )

    # --- the VCN -----------------------------------------------------------------------------------------------

    def through_vcn(self, out: Vnic, header: Header, steps: _Steps | None) -> Vnic:
        """From the VNIC that sends to the VNIC that receives."""
        if steps is not None:
            steps.machine = label(out.vm)
        if not out.skip_source_dest_check and not self.own[out.name].has(header.src):
            raise _DeadError(
                Disposition.SOURCE_DEST_CHECK,
                "source check",
                f"VNIC {out.name} may send only from its own addresses ({', '.join(out.addresses)}), "
                f"not from {self.text(header.src.value)}: the source/destination check is on",
            )
        if steps is not None:
            off = "skipped" if out.skip_source_dest_check else "own address"
            steps.add("source check", f"VNIC {out.name}: {off}")
        key = (
            self.policies[out.name],
            self.sources.number(header.src),
            self.places.number(header.dst),
            header.protocol,
            header.dport,
            header.icmp_type,
        )
        known = self.crossings.get(key)
        if known is None or steps is not None:
            # With intervals of its own, so that what is kept is narrowed by this one way and nothing before it.
            alone = header.alone()
            try:
                known = self.cross(out, alone, steps)
            finally:
                header.src.narrow(alone.src.low, alone.src.high)
                header.dst.narrow(alone.dst.low, alone.dst.high)
            if not known.kept:
                self.crossings[key] = known
        else:
            header.src.narrow(known.src.low, known.src.high)
            header.dst.narrow(known.dst.low, known.dst.high)
        if known.leaves:
            self.tracked.setdefault(out.name, set()).add(header.reply_key())
        if known.enters:
            self.tracked.setdefault(known.arrival.name, set()).add(header.reply_key())
        return known.arrival

    def cross(self, out: Vnic, header: Header, steps: _Steps | None) -> _Crossing:
        """The way through the VCN as rules and private IPs give it."""
        way = self.way(out, header)
        if steps is not None:
            steps.add("VCN route", f"subnet {out.subnet}: {way.how}")
        # A VNIC sees who is at the other end only inside its own VCN; through an LPG there is no NSG to name.
        arrival = way.arrival
        leaves = self.secure(out, "EGRESS", header, None if way.via_lpg else arrival, steps)
        if steps is not None:
            steps.machine = label(arrival.vm)
        enters = self.secure(arrival, "INGRESS", header, None if way.via_lpg else out, steps)
        if not arrival.skip_source_dest_check and not self.own[arrival.name].has(header.dst):
            raise _DeadError(
                Disposition.SOURCE_DEST_CHECK,
                "destination check",
                f"VNIC {arrival.name} takes only packets for its own addresses, not for "
                f"{self.text(header.dst.value)}: the source/destination check is on",
            )
        if steps is not None:
            what = "skipped" if arrival.skip_source_dest_check else "own address"
            steps.add("destination check", f"VNIC {arrival.name}: {what}")
        return _Crossing(
            arrival=arrival,
            leaves=leaves is not None and not leaves.stateless,
            enters=enters is not None and not enters.stateless,
            kept=leaves is None or enters is None,
            src=header.src,
            dst=header.dst,
        )

    def way(self, out: Vnic, header: Header) -> _Way:
        """Where the VCN of `out` sends it."""
        subnet = self.topology.subnets[out.subnet]
        # Neighbours in one subnet never meet its route table (OCI docs: intra-VCN routing, not intra-subnet).
        routes = () if self.inside(header.dst, subnet.cidr) is not None else subnet.routes
        return self.route(subnet.vcn, routes, header.dst, f"subnet {subnet.name}")

    def route(self, vcn: str, routes: tuple[Route, ...], dst: Span, where: str) -> _Way:
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
                why = f"{where} has no route rule for {self.text(dst.value)}"
                raise _DeadError(Disposition.NO_ROUTE, "VCN route", why)
            return _Way(self.held(vcn, dst), False, f"local to VCN {vcn}")
        route = best[1]
        if route.private_ip is not None:
            how = f"{route.destination} via private IP {route.private_ip}"
            return _Way(self.held(vcn, Span(self.value(route.private_ip))), False, how)
        lpg = self.topology.lpgs.get(route.lpg or "")
        peer = self.topology.lpgs.get(lpg.peer) if lpg is not None and lpg.peer is not None else None
        if peer is None or lpg is None:
            why = f"{route.destination} via LPG {route.lpg}, which is not peered"
            raise _DeadError(Disposition.NOT_PEERED, "VCN route", why)
        return _Way(self.behind(peer, dst), True, f"{route.destination} via LPG {lpg.name} to VCN {peer.vcn}")

    def behind(self, lpg: Lpg, dst: Span) -> Vnic:
        """Delivery of a packet that comes in by an LPG."""
        if lpg.routes is not None:
            way = self.route(lpg.vcn, lpg.routes, dst, f"LPG {lpg.name}")
            if way.via_lpg:
                why = f"LPG {lpg.name} leads to another LPG: OCI does not transit"
                raise _DeadError(Disposition.NO_ROUTE, "VCN route", why)
            return way.arrival
        if all(self.inside(dst, cidr) is None for cidr in self.topology.vcns[lpg.vcn].cidrs):
            why = f"{self.text(dst.value)} is not in VCN {lpg.vcn} behind LPG {lpg.name}"
            raise _DeadError(Disposition.NO_ROUTE, "VCN route", why)
        return self.held(lpg.vcn, dst)

    def held(self, vcn: str, address: Span) -> Vnic:
        """The VNIC with a private IP."""
        self.runs[vcn].narrow(address)
        vnic = self.holder.get((vcn, address.value))
        if vnic is None:
            why = f"no VNIC in VCN {vcn} has the private IP {self.text(address.value)}"
            raise _DeadError(Disposition.NO_PRIVATE_IP, "VCN route", why)
        return vnic

    def secure(
        self, vnic: Vnic, direction: str, header: Header, other: Vnic | None, steps: _Steps | None
    ) -> SecurityRule | None:
        """The security rule of one VNIC in one direction that lets the packet pass; raises when there is none.

        None: none does, but a stateful one let the request pass.
        """
        phase = f"security {direction.lower()}"
        peer = header.src if direction == "INGRESS" else header.dst
        rules = (*vnic.security, *self.topology.subnets[vnic.subnet].security)
        rule = next((r for r in rules if r.direction == direction and self.permitted(r, peer, header, other)), None)
        # What a machine sends to itself is no reply to it.
        kept = None if other is vnic else self.tracked.get(vnic.name)
        if kept is not None and (rule is None or steps is not None):
            header.src.pin()
            header.dst.pin()
            if header.key() in kept:
                if steps is not None:
                    steps.add(phase, f"VNIC {vnic.name}: reply of a flow that a stateful rule let pass")
                return None
        if rule is None:
            side = "from" if direction == "INGRESS" else "to"
            raise _DeadError(
                Disposition.SECURITY_RULE,
                phase,
                f"no {direction.lower()} security rule of VNIC {vnic.name} lets a packet {side} "
                f"{self.text(peer.value)} pass",
            )
        if steps is not None:
            words = "" if rule.protocol == "all" else f" {_PROTOCOL_NUMBERS.get(rule.protocol, rule.protocol)}"
            kind = "stateless" if rule.stateless else "stateful"
            said = f" ({rule.description})" if rule.description else ""
            steps.add(phase, f"VNIC {vnic.name}: {rule.peer}{words} {kind}{said}")
        return rule

    def permitted(self, rule: SecurityRule, peer: Span, header: Header, other: Vnic | None) -> bool:
        if rule.protocol != "all" and _PROTOCOL_NUMBERS.get(rule.protocol) != header.protocol:
            return False
        if rule.icmp_type is not None and rule.icmp_type != header.icmp_type:
            return False
        if rule.destination_ports is not None:
            low, high = rule.destination_ports
            if not low <= header.dport <= high:
                return False
        if rule.peer_is_nsg:
            return other is not None and rule.peer in other.nsgs
        return self.inside(peer, rule.peer) is not None

    # --- the guest ---------------------------------------------------------------------------------------------

    def guest_route(self, vm: Vm, header: Header, steps: _Steps | None) -> Vnic:
        """The VNIC by which a machine sends: its own routes, its subnets, else the primary VNIC."""
        vnic, how = self.leaving(vm, header.dst)
        if steps is not None:
            steps.machine = label(vm.name)
            steps.add("routing decision" if vm.kind == VM_NAT else "guest route", f"{how} by VNIC {vnic.name}")
        return vnic

    def leaving(self, vm: Vm, address: Span) -> tuple[Vnic, str]:
        key = (vm.name, self.places.number(address))
        if key not in self.guests:
            alone = Span(address.value)
            best, found, how = -1, self.topology.vnics[vm.vnics[0]], "default route"
            connected = [(self.topology.subnets[self.topology.vnics[name].subnet].cidr, name) for name in vm.vnics]
            for cidr, name in [*connected, *vm.routes]:
                prefix = self.inside(alone, cidr)
                if prefix is not None and prefix > best:
                    best, found, how = prefix, self.topology.vnics[name], f"{cidr}"
            self.guests[key] = (found, how, alone)
        vnic, how, alone = self.guests[key]
        address.narrow(alone.low, alone.high)
        return vnic, how

    def is_local(self, vm: Vm, header: Header) -> bool:
        return self.local[vm.name].has(header.dst)

    def _local_addresses(self, vm: Vm) -> Addresses:
        """Addresses the guest itself has.  A NAT VM's secondary private IPs are not configured in the guest."""
        vnics = [self.topology.vnics[name] for name in vm.vnics]
        kept = slice(1) if vm.kind == VM_NAT else slice(None)
        return Addresses(self.value(address) for vnic in vnics for address in vnic.addresses[kept])

    def nat(self, vm: Vm, arrival: Vnic, header: Header, steps: _Steps | None) -> tuple[Vnic, tuple[str, ...], bool]:
        """A NAT VM's netfilter changes the header: the VNIC it leaves by, the rules, and whether anything did."""
        name = label(vm.name)
        if vm.strict_rp_filter:
            back, _ = self.leaving(vm, header.src)
            if back.name != arrival.name:
                raise _DeadError(
                    Disposition.RP_FILTER,
                    "reverse-path filter",
                    f"{name} took it on {arrival.name} but would answer by {back.name}: rp_filter drops it",
                )
        flows = self.conntrack.get(vm.name)
        known = None
        if flows is not None:
            # What comes by a second time is compared as it is: nothing is said of other packets.
            header.src.pin()
            header.dst.pin()
            known = flows.get(header.key())
        original, answer = header.key(), header.reply_key()
        applied: list[str] = []
        if known is not None:
            state = _KNOWN
            header.src.become(known[0])
            header.dst.become(known[1])
            if steps is not None:
                steps.add("conntrack", "known flow, reply direction")
        else:
            state = _NEW
            if steps is not None:
                steps.add("conntrack", "new flow")
            verdict = self.rules(vm, "nat", "PREROUTING", header, state)
            hit = verdict.hit
            if hit is not None:
                hit.translate(header.dst)
                state = _NEW_DNAT
                applied.append(hit.text)
            if steps is not None:
                steps.add("PREROUTING", "no rule matches" if hit is None else hit.text, chains=verdict.chains)
        if self.is_local(vm, header):
            if steps is not None:
                steps.add("routing decision", f"{name} itself has {self.text(header.dst.value)}")
            self.filter(vm, "INPUT", header, state, steps)
            raise _DeadError(
                Disposition.ANSWERED_BY_NAT_VM,
                "delivery",
                f"{self.text(header.dst.value)} is {name} itself, and its INPUT rules let the packet in",
            )
        if not vm.forwarding:
            why = f"{name} does not forward: net.ipv4.ip_forward is not 1"
            raise _DeadError(Disposition.NOT_FORWARDING, "routing decision", why)
        out = self.guest_route(vm, header, steps)
        self.filter(vm, "FORWARD", header, state, steps)
        translated = known is not None or "DNAT" in state
        if known is None:
            verdict = self.rules(vm, "nat", "POSTROUTING", header, state)
            hit = verdict.hit
            if hit is not None:
                hit.translate(header.src)
                applied.append(hit.text)
            if steps is not None:
                steps.add("POSTROUTING", "no rule matches" if hit is None else hit.text, chains=verdict.chains)
            flows = self.conntrack.setdefault(vm.name, {})
            flows[original] = (header.src.value, header.dst.value)
            flows[header.reply_key()] = (answer[1], answer[2])
        return out, tuple(applied), translated

    def rules(self, vm: Vm, table: str, builtin: str, header: Header, state: frozenset[str]) -> Verdict:
        walker = self.walkers.get(vm.name)
        return Verdict(None, ()) if walker is None else walker.verdict(table, builtin, header, state)

    def filter(self, vm: Vm, builtin: str, header: Header, state: frozenset[str], steps: _Steps | None) -> None:
        verdict = self.rules(vm, "filter", builtin, header, state)
        hit = verdict.hit
        if hit is not None and isinstance(hit.rule.target, Drop):
            src, dst = self.pair(header)
            raise _DeadError(
                Disposition.NO_MAPPING,
                builtin,
                f"{label(vm.name)} drops {src} > {dst} in {builtin}: {hit.rule.note or hit.text}",
                verdict.chains,
            )
        if steps is not None:
            nobody = "no rule of ours; the platform's own rules and policy decide"
            steps.add(builtin, nobody if hit is None else hit.text, chains=verdict.chains)


class _Steps:
    """The steps of one leg, as they are made."""

    def __init__(self, walk: _Walk, header: Header) -> None:
        self.machine = ""
        self.made: list[Step] = []
        self._walk = walk
        self._header = header
        self._last = walk.pair(header)

    def add(self, phase: str, rule: str, *, chains: tuple[str, ...] = (), passed: bool = True) -> None:
        """One decision; the header is looked at after it."""
        now = self._walk.pair(self._header)
        self.made.append(Step(self.machine, phase, rule, self._last, now, chains, passed))
        self._last = now
