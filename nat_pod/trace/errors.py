"""`trace --all` looks at ICMP errors: whose arrive, and that no other reaches anybody.

An ICMP error quotes the packet that it is about, and conntrack finds the flow by the quotation alone.  So whoever
guesses a flow can write one.  What is declared:

- An error about a declared flow that comes from the network of one of its ends, or from the vRouter, reaches the other
  end: path MTU discovery and traceroute need it.
- No other error reaches anybody, be it about somebody else's flow or about none, and no NAT VM believes it.  A NAT VM
  believes what management says about the ssh that management opened.

Few errors are traced.  For each network first come errors about no flow: all sources and destinations, class by class.
They show by which of them an error gets into a NAT VM.  Each of these ways is then tried with one flow of each group
that the NAT VMs' guards do not tell apart.  Behind its first NAT VM an error has the addresses of its flow's own
packets, and these have been traced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import assert_never

from nat_pod.config.delivery import Delivery
from nat_pod.names import MANAGEMENT, SSH, STRANGER, VROUTER, MemberName, Side
from nat_pod.plan.model import PodPlan
from nat_pod.trace.classes import Block, size, sweep, without
from nat_pod.trace.counter_examples import BELIEVED_ERROR, ERROR_LOST, FOREIGN_ERROR, NO_GUARD, CounterExample
from nat_pod.trace.decisions import AnsweredByNatVm, Conntracked
from nat_pod.trace.flows import Flow, beside
from nat_pod.trace.open_ports import OpenPorts
from nat_pod.trace.spans import UNREACHABLE, FlowKey, Places, address_text, number, numbers
from nat_pod.trace.topology import VM_NAT, Topology, Vm
from nat_pod.trace.walk import NOBODYS, Leg, Packet, Tracer

EXCEEDED = 11
OTHER_ERRORS = (4, 5, EXCEEDED, 12)
"""What conntrack takes for an error beside "unreachable": source quench, redirect, time exceeded, parameter problem."""
OWN, OTHERS, NONE = "own", "others", "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorCount:
    """Errors that were traced, one a class, with a writer in `realm`: about flows of its own, others', and none."""

    realm: str
    own: int
    others: int
    none: int


@dataclass(frozen=True, slots=True)
class _Known:
    """A flow that NAT VMs know: its first packet, and the networks that it is a flow of.  name: as it is reported."""

    name: str
    sender: str
    packet: Packet
    realms: frozenset[str]


@dataclass(slots=True)
class _Group:
    """Flows that one NAT VM's guard does not tell apart.

    examples: by the place of the address that an error has to be sent to, a flow, and its packet that goes that way.
    """

    realms: frozenset[str]
    examples: dict[int, tuple[_Known, FlowKey]] = field(default_factory=dict)


class ErrorProver:
    """Collects flows that are traced, and then tries everybody's errors about them.

    topology: with strangers, and whatever customers route.  ports: what is let in one way only is noted there.
    """

    def __init__(self, plan: PodPlan, topology: Topology, ports: OpenPorts) -> None:
        self.found: list[CounterExample] = []
        self._ports = ports
        self._plan = plan
        self._writers = _writers(plan, topology)
        vnics = dict(topology.vnics)
        for writer in self._writers.values():
            for name in topology.vms[writer].vnics:
                vnics[name] = replace(vnics[name], skip_source_dest_check=True)
        self._topology = replace(topology, vnics=vnics)
        self._tracer = Tracer(self._topology)
        self._types = _types(topology)
        self._places = Places((number(address),) * 2 for vnic in vnics.values() for address in vnic.addresses[:1])
        self._groups: dict[tuple[object, ...], _Group] = {}
        self._own: dict[tuple[object, ...], tuple[Flow, Packet]] = {}
        self._count: Counter[tuple[str, str]] = Counter()

    def learn(self, flow: Flow, packet: Packet, tracer: Tracer) -> None:
        """A declared flow, which `tracer` has just traced: it is kept if it is the first of its kind."""
        assert flow.receiver is not None
        realms = frozenset((flow.sender.realm, flow.receiver.realm))
        kind = self._keep(_Known(f"{flow.sender} > {flow.receiver}", flow.sender, packet, realms), tracer)
        self._own.setdefault((flow.sender.realm, *kind), (flow, packet))

    def _keep(self, known: _Known, tracer: Tracer) -> list[object]:
        """Put each way of a flow into its group; returns what all the guards tell the flow apart by."""
        kind: list[object] = []
        for tracked in tracer.tracked():
            key = (known.realms, tracked.vm, *tracked.told_apart)
            kind.append(key)
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = _Group(known.realms)
            group.examples.setdefault(self._places.number(tracked.packet[2]), (known, tracked.packet))
        return kind

    def prove(self) -> tuple[ErrorCount, ...]:
        """Try the errors; returns how many of each kind.  Those whose fate is not the declared one are in `found`."""
        self._flows_of_the_vms()
        ways = {realm: self._about_no_flow(realm) for realm in self._writers}
        self._about_others(ways)
        for flow, packet in self._own.values():
            self._about_own(flow, packet)
        return tuple(
            ErrorCount(realm=realm, **{what: self._count[realm, what] for what in (OWN, OTHERS, NONE)})
            for realm in self._writers
        )

    # --- flows of the NAT VMs themselves ------------------------------------------------------------------------

    def _flows_of_the_vms(self) -> None:
        """What the NAT VMs have among themselves, ssh and ping, and management's ssh to NAT VM2."""
        vms = [vm for vm in self._topology.vms.values() if vm.kind == VM_NAT]
        operators = [self._topology.vms[writer] for realm, writer in self._writers.items() if realm == MANAGEMENT]
        pairs = [(vm, other) for vm in vms for other in vms if other.side is not vm.side]
        pairs += [(operator, vm) for operator in operators for vm in vms if vm.side is Side.NAT_VM2]
        for sender, receiver in pairs:
            source, to = (self._topology.vnics[vm.vnics[0]].addresses[0] for vm in (sender, receiver))
            for packet in (Packet(src=source, dst=to, protocol="tcp", dport=SSH), Packet(src=source, dst=to)):
                self._flow_of_a_vm(sender, receiver, packet)

    def _flow_of_a_vm(self, sender: Vm, receiver: Vm, packet: Packet) -> None:
        traced = self._tracer.trace(sender.name, packet)
        reached = None if traced.request.reached is None else self._topology.vms[traced.request.reached].member
        realms = frozenset(member.realm for member in (sender.member, reached) if member is not None)
        self._keep(_Known(f"{sender.name} > {receiver.name}", sender.name, packet, realms), self._tracer)

    # --- errors -------------------------------------------------------------------------------------------------

    def _about_no_flow(self, realm: str) -> dict[int, list[Block]]:
        """Errors that quote what nobody sent, from all sources to all destinations.

        Returns which of them get into a NAT VM: by the place of the destination, their sources.
        """
        writer = self._writers[realm]
        ways: dict[int, set[Block]] = {}
        self._tracer.forget()
        for kind in self._types:
            follow = self._follower(realm, NONE, writer, NOBODYS, kind)
            for sources, destinations, leg in sweep(*_anywhere(self._plan, realm), follow):
                if any(isinstance(decision, Conntracked) for decision in leg.decisions):
                    ways.setdefault(self._places.number(destinations[0]), set()).add(sources)
                if leg.untranslated is not None:
                    self._find(NO_GUARD, writer, sources, destinations, leg, "no flow")
                elif isinstance(leg.refusal, AnsweredByNatVm):
                    self._find(BELIEVED_ERROR, writer, sources, destinations, leg, "no flow")
        return {place: sorted(blocks) for place, blocks in ways.items()}

    def _about_others(self, ways: dict[str, dict[int, list[Block]]]) -> None:
        """Errors about flows that have no end in the writer's network, by each of its ways into a NAT VM."""
        tries: dict[_Known, dict[tuple[str, Block, FlowKey], None]] = {}
        for group in self._groups.values():
            for realm in ways.keys() - group.realms:
                asked: dict[Block, tuple[_Known, FlowKey]] = {}
                for place, example in group.examples.items():
                    for sources in ways[realm].get(place, ()):
                        asked.setdefault(sources, example)
                for sources, (known, packet) in asked.items():
                    tries.setdefault(known, {})[realm, sources, packet] = None
        for known, errors in tries.items():
            self._tracer.trace(known.sender, known.packet)
            for realm, sources, packet in errors:
                for kind in self._types:
                    self._about_another(realm, sources, known, packet, kind)

    def _about_another(self, realm: str, sources: Block, known: _Known, packet: FlowKey, kind: int) -> None:
        writer, to = self._writers[realm], (packet[2], packet[2])
        for block, _, leg in sweep([sources], [to], self._follower(realm, OTHERS, writer, packet, kind)):
            if leg.reached is not None:
                self._find(FOREIGN_ERROR, writer, block, to, leg, known.name)
            elif isinstance(leg.refusal, AnsweredByNatVm):
                if self._could_be_an_end(block, known):
                    self._ports.one_way(writer, leg.refusal.vm.name, packet[2])
                else:
                    self._find(BELIEVED_ERROR, writer, block, to, leg, known.name)

    def _could_be_an_end(self, sources: Block, known: _Known) -> bool:
        """Whether these sources belong to a network of the flow, and nothing in a routed POD can tell that they do not.

        There an LPG leads to every address that the VCN itself has, and a NAT VM knows management by its addresses.
        """
        match self._plan.delivery:
            case Delivery.PRIVATE_IPS:
                return False
            case Delivery.ROUTES:
                networks = [numbers(cidr)[:2] for realm in known.realms for cidr in self._plan.realms[realm]]
                return any(first <= sources[0] and sources[1] <= last for first, last in networks)
            case _ as never:
                assert_never(never)

    def _about_own(self, flow: Flow, packet: Packet) -> None:
        """Errors about a declared flow, from the networks of both its ends: they have to arrive at the other end."""
        traced = self._tracer.trace(flow.sender, packet, flow.receiver)
        assert flow.receiver is not None
        for end, other, sent in (
            (flow.sender, flow.receiver, packet),
            (flow.receiver, flow.sender, traced.request.packet.reply()),
        ):
            key = sent.key()
            for writer, sources in self._routers(end.realm):
                for kind in (UNREACHABLE, EXCEEDED):
                    follow = self._follower(end.realm, OWN, writer, key, kind)
                    for block, to, leg in sweep([sources], [(key[2], key[2])], follow):
                        if leg.reached != other:
                            self._find(ERROR_LOST, writer, block, to, leg, f"{flow.sender} > {flow.receiver}")

    def _routers(self, realm: str) -> Iterator[tuple[str, Block]]:
        """Who writes errors in a realm, and from which addresses: anybody there, and management's vRouter."""
        for cidr in self._plan.realms[realm]:
            yield self._writers[realm], numbers(cidr)[:2]
        if realm == MANAGEMENT:
            yield VROUTER, (number(self._plan.vrouter_ip),) * 2

    def _follower(self, realm: str, what: str, writer: str, about: FlowKey, kind: int) -> Callable[[int, int], Leg]:
        """Follows errors of this writer, about the flow with this packet, of this ICMP type."""

        def follow(source: int, destination: int) -> Leg:
            self._count[realm, what] += 1
            error = Packet(src=address_text(source), dst=address_text(destination), icmp_type=kind)
            return self._tracer.error(writer, error, about)

        return follow

    def _find(self, kind: str, writer: str, sources: Block, destinations: Block, leg: Leg, about: str) -> None:
        self.found.append(
            CounterExample(
                kind=kind,
                sender=writer,
                source=address_text(sources[0]),
                destination=address_text(destinations[0]),
                why=f"about {about}: {leg.fate}",
                alike=size(sources) * size(destinations) - 1,
            )
        )


def _writers(plan: PodPlan, topology: Topology) -> dict[str, MemberName]:
    """In each realm a machine that writes errors: a stranger, or a member where there is no room for a stranger."""
    writers: dict[str, MemberName] = {}
    for vm in topology.vms.values():
        if vm.member is not None and (vm.member.realm not in writers or vm.member.short == STRANGER):
            writers[vm.member.realm] = vm.member
    return {realm: writers[realm] for realm in plan.realms if realm in writers}


def _types(topology: Topology) -> list[int]:
    """The types of errors that stand for all: the one that the network knows, and those that a rule asks for."""
    asked = {rule.match.icmp_type for rule in topology.rules()}
    return [UNREACHABLE, *(kind for kind in OTHER_ERRORS if kind in asked)]


def _anywhere(plan: PodPlan, realm: str) -> tuple[list[Block], list[Block]]:
    """All sources but those of other customers of its gateway, and all destinations but those in the realm's own."""
    sources = without(numbers(cidr)[:2] for cidr in beside(plan, realm))
    return sources, without(numbers(cidr)[:2] for cidr in plan.realms[realm])
