"""Inside the machines: a guest's routes, and on a NAT VM reverse-path filter, conntrack and netfilter.

What Linux does to a packet from the VNIC it comes in by to the VNIC it leaves by.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from nat_pod.errors import UnknownRuleError
from nat_pod.rules.netfilter import Drop
from nat_pod.trace.chains import FALLS_THROUGH, PreparedRules, RuleKey, Verdict
from nat_pod.trace.decisions import (
    AnsweredByNatVm,
    AnswersElsewhere,
    Conntracked,
    Decision,
    Dropped,
    Filtered,
    GuestRouted,
    NotForwarding,
    Owned,
    RefusedError,
)
from nat_pod.trace.spans import Addresses, FlowKey, Header, Places, Segment, Span, number, prefix_around
from nat_pod.trace.topology import VM_HOST, VM_NAT, VM_ROUTER, Topology, Vm, Vnic

_States = frozenset[str]
_NEW, _NEW_DNAT = frozenset(("NEW",)), frozenset(("NEW", "DNAT"))
_INVALID = frozenset(("INVALID",))
# By whether the flow's destination and its source are translated.
_ESTABLISHED, _RELATED = (
    {
        (dnat, snat): frozenset([state, *["DNAT"] * dnat, *["SNAT"] * snat])
        for dnat in (False, True)
        for snat in (False, True)
    }
    for state in ("ESTABLISHED", "RELATED")
)


class _Entry(NamedTuple):
    """What conntrack holds for one way of a flow: source and destination as a packet leaves, and the flow's ends.

    translated: whether the flow's destination and its source are, seen from the one who opened it.
    """

    src: int
    dst: int
    opened_from: int
    answered_from: int
    translated: tuple[bool, bool]


class Tracked(NamedTuple):
    """One way of the traced flow on a NAT VM: its packet as it arrives there, and what the guards tell it apart by.

    An ICMP error belongs to the flow if it quotes the inverse of this packet and goes to the same destination.
    """

    vm: str
    packet: FlowKey
    told_apart: tuple[object, ...]


class Guests:
    """All machines, with what the traced flow has left behind in their conntrack.

    places: the addresses that the network tells apart.
    Raises UnknownRuleError for a kind of machine, or a rule of a NAT VM, that has no meaning here.
    """

    def __init__(self, topology: Topology, places: Places) -> None:
        self._topology = topology
        self._places = places
        # NAT VM -> {packet as it arrives: what becomes of it}, both directions.
        self._conntrack: dict[str, dict[FlowKey, _Entry]] = {}
        self._rules = {vm.name: PreparedRules(vm.rules) for vm in topology.vms.values() if vm.rules is not None}
        self._local = {vm.name: self._addresses(vm) for vm in topology.vms.values()}
        # Found so far: for the place of a destination, the VNIC by which a guest sends.
        self._routes: dict[tuple[str, int], tuple[GuestRouted, Span]] = {}

    def forget(self) -> None:
        """Forget all flows: no flow has passed the machines yet."""
        self._conntrack.clear()

    @property
    def used(self) -> dict[str, frozenset[RuleKey]]:
        """By NAT VM, the rules that any packet has matched so far."""
        return {vm: frozenset(rules.used) for vm, rules in self._rules.items()}

    def is_local(self, vm: Vm, header: Header) -> bool:
        """Whether the destination is one of the guest's own addresses."""
        return self._local[vm.name].has(header.dst)

    def route(self, vm: Vm, address: Span) -> GuestRouted:
        """The VNIC by which a machine sends: by its own routes, then its subnets, otherwise the primary VNIC."""
        key = (vm.name, self._places.number(address.value))
        known = self._routes.get(key)
        if known is None:
            alone = Span(address.value)
            vnics, subnets = self._topology.vnics, self._topology.subnets
            best, found, by = -1, vm.vnics[0], "default route"
            connected = [(subnets[vnics[name].subnet].cidr, name) for name in vm.vnics]
            for cidr, name in [*connected, *vm.routes]:
                prefix = prefix_around(alone, cidr)
                if prefix is not None and prefix > best:
                    best, found, by = prefix, name, cidr
            known = self._routes[key] = (GuestRouted(vm, vnics[found], by), alone)
        routed, alone = known
        address.narrow(alone.low, alone.high)
        return routed

    def _addresses(self, vm: Vm) -> Addresses:
        """Addresses that the guest itself has.  A NAT VM's secondary private IPs are not configured in the guest."""
        if vm.kind not in (VM_HOST, VM_NAT, VM_ROUTER):
            raise UnknownRuleError(f"machine {vm.name}, a {vm.kind}", "it is a host, a NAT VM or a router")
        vnics = [self._topology.vnics[name] for name in vm.vnics]
        kept = slice(1) if vm.kind == VM_NAT else slice(None)
        return Addresses(number(address) for vnic in vnics for address in vnic.addresses[kept])

    # --- a NAT VM ----------------------------------------------------------------------------------------------

    def translate(self, vm: Vm, arrival: Vnic, header: Header, made: list[Decision]) -> tuple[Vnic, bool]:
        """Let a NAT VM's netfilter change the header; returns the VNIC it leaves by, and whether it was translated.

        Raises RefusedError where the packet dies.
        """
        self._filter_reverse_path(vm, arrival, header)
        if header.about is not None:
            return self._error(vm, header, header.about, made)
        flows = self._conntrack.get(vm.name)
        known = None
        if flows is not None:
            # A packet that comes by a second time is compared exactly, which says nothing about other packets.
            header.pin()
            known = flows.get(header.key())
        if known is not None:
            header.src.become(known.src)
            header.dst.become(known.dst)
            made.append(Conntracked(True, known.src, known.dst))
            return self._forward(vm, header, _ESTABLISHED[known.translated], made), True
        made.append(Conntracked(False, header.src.value, header.dst.value))
        if header.protocol == "tcp" and header.segment is Segment.ANSWERS:
            # To a NAT VM that has not seen the SYN a SYN-ACK is INVALID, and is not translated.
            return self._forward(vm, header, _INVALID, made), False
        original = header.key()
        state = _NEW
        verdict = self._verdict(vm, "nat", "PREROUTING", header, state)
        if verdict.by is not None:
            verdict.by.translate(header.dst)
            state = _NEW_DNAT
        made.append(Filtered("PREROUTING", verdict, header.src.value, header.dst.value))
        out = self._forward(vm, header, state, made)
        verdict = self._verdict(vm, "nat", "POSTROUTING", header, state)
        if verdict.by is not None:
            verdict.by.translate(header.src)
        made.append(Filtered("POSTROUTING", verdict, header.src.value, header.dst.value))
        self._track(vm, original, header)
        return out, state is _NEW_DNAT or header.src.value != original[1]

    def send(self, vm: Vm, header: Header, made: list[Decision]) -> None:
        """A packet that a NAT VM writes itself: an answer, or the first of a flow of its own."""
        original = header.key()
        if original in self._conntrack.get(vm.name, {}):
            self._guard(vm, "OUTPUT", header, _ESTABLISHED[False, False], made)
            return
        self._guard(vm, "OUTPUT", header, _NEW, made)
        verdict = self._verdict(vm, "nat", "POSTROUTING", header, _NEW)
        if verdict.by is not None:
            verdict.by.translate(header.src)
        made.append(Filtered("POSTROUTING", verdict, header.src.value, header.dst.value))
        self._track(vm, original, header)

    def _track(self, vm: Vm, original: FlowKey, header: Header) -> None:
        """Remember a flow by its first packet, as it came and as it leaves."""
        _, src, dst, _, _ = original
        ends = (src, header.dst.value)
        translated = (header.dst.value != dst, header.src.value != src)
        flows = self._conntrack.setdefault(vm.name, {})
        flows[original] = _Entry(header.src.value, header.dst.value, *ends, translated)
        flows[header.reply_key()] = _Entry(dst, src, *ends, translated)

    def _error(self, vm: Vm, header: Header, about: FlowKey, made: list[Decision]) -> tuple[Vnic, bool]:
        """An ICMP error: it goes where a packet of its flow would go, and says no more than that it is about that flow.

        Its source becomes that of such a packet if the flow's source is translated that way, whoever wrote it.  It
        never meets the nat table.  An error whose flow is unknown, or that goes elsewhere than the flow, is INVALID
        (kernel, nf_conntrack_inet_error and nf_nat_icmp_reply_translation).
        """
        known = self._conntrack.get(vm.name, {}).get(about)
        if known is None or about[2] != header.dst.value:
            made.append(Conntracked(False, header.src.value, header.dst.value))
            return self._forward(vm, header, _INVALID, made), False
        header.dst.pin()
        protocol, source, _, sport, dport = about
        header.about = (protocol, known.src, known.dst, sport, dport)
        header.ends = (known.opened_from, known.answered_from)
        header.dst.become(known.dst)
        made.append(Conntracked(True, header.src.value, header.dst.value))
        out = self._forward(vm, header, _RELATED[known.translated], made)
        if known.src != source:
            header.src.become(known.src)
            made.append(Conntracked(True, header.src.value, header.dst.value))
        return out, True

    def tracked(self) -> Iterator[Tracked]:
        """What the NAT VMs know of the traced flow."""
        for name, flows in self._conntrack.items():
            rules = self._rules.get(name)
            for packet, entry in flows.items():
                guard = "INPUT" if self._local[name].holds(entry.dst) else "FORWARD"
                apart: tuple[object, ...] = (guard, entry.translated)
                if rules is not None:
                    apart += rules.told_apart(guard, entry.opened_from, entry.answered_from, entry.dst)
                yield Tracked(name, packet, apart)

    def _filter_reverse_path(self, vm: Vm, arrival: Vnic, header: Header) -> None:
        if vm.strict_rp_filter:
            back = self.route(vm, header.src).vnic
            if back.name != arrival.name:
                raise RefusedError(AnswersElsewhere(vm, arrival, back))

    def _forward(self, vm: Vm, header: Header, state: _States, made: list[Decision]) -> Vnic:
        """From the routing decision to the end of FORWARD."""
        if self.is_local(vm, header):
            self._take(vm, header, state, made)
        if not vm.forwarding:
            raise RefusedError(NotForwarding(vm, header.dst.value))
        routed = self.route(vm, header.dst)
        made.append(routed)
        self._guard(vm, "FORWARD", header, state, made)
        return routed.vnic

    def _take(self, vm: Vm, header: Header, state: _States, made: list[Decision]) -> NoReturn:
        """The packet is for the NAT VM itself, where no packet should end."""
        made.append(Owned(vm, header.dst.value))
        self._guard(vm, "INPUT", header, state, made)
        if state is _NEW:
            self._track(vm, header.key(), header)
        raise RefusedError(AnsweredByNatVm(vm, header.dst.value))

    def _guard(self, vm: Vm, builtin: str, header: Header, state: _States, made: list[Decision]) -> None:
        verdict = self._verdict(vm, "filter", builtin, header, state)
        if verdict.by is not None and isinstance(verdict.by.rule.target, Drop):
            raise RefusedError(Dropped(vm, builtin, verdict, header.src.value, header.dst.value))
        made.append(Filtered(builtin, verdict, header.src.value, header.dst.value))

    def _verdict(self, vm: Vm, table: str, builtin: str, header: Header, state: _States) -> Verdict:
        rules = self._rules.get(vm.name)
        return FALLS_THROUGH if rules is None else rules.verdict(table, builtin, header, state)
