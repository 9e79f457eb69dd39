"""What was decided on a packet's way, in words: every step of it, the hops between machines, and why it died.

A trace first decides (`walk.py`, `vcn.py`, `guest.py`), and is put into words afterwards, when somebody asks.  `trace
--all` and `diff` follow thousands of packets, and for most of them only need to know what became of the packet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from nat_pod.trace.decisions import (
    AnsweredByNatVm,
    AnswersElsewhere,
    Balanced,
    Conntracked,
    Decision,
    Delivered,
    DestinationChecked,
    Direction,
    Down,
    Dropped,
    Filtered,
    ForBalancer,
    ForeignDestination,
    ForeignSource,
    GuestRouted,
    Looped,
    NobodyHealthy,
    NoPrivateIp,
    NoRoute,
    NotForwarding,
    NotPeered,
    NoTransit,
    NotSecured,
    OutsideVcn,
    Owned,
    Refusal,
    Secured,
    SourceChecked,
    VcnRouted,
)
from nat_pod.trace.spans import address_text
from nat_pod.trace.topology import PROTOCOL_NUMBERS, VM_HOST, VM_NAT, Balancer, SecurityRule, Subnet, Vm

_Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Step:
    """One decision on the way.

    machine: where it is made, named as in hops.  A VCN's decisions count as the sender's until the packet reaches a
    VNIC, then as the receiver's.  rule: what decided, as its owner would write it.  chains: those that the packet went
    through.  before, after: source and destination of the header; they differ where it was translated.
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
    """A packet on its way from one machine to the next, with the rules that the sending machine applied."""

    start: Vm
    end: Vm
    src: str
    dst: str
    rules: tuple[str, ...] = ()

    @property
    def at(self) -> str:
        """Both machines: `nat_vm1 -> customer1/vm1`."""
        return f"{self.start.label} -> {self.end.label}"


def hops(sender: Vm, header: _Pair, decisions: Iterable[Decision]) -> tuple[Hop, ...]:
    """The packet between each two machines.  A router changes no packet, and does not count as a machine here.

    sender: the machine that sends; header: source and destination as it sends them.
    """
    made: list[Hop] = []
    rules: tuple[str, ...]
    last, rules = sender, ()
    for decision in decisions:
        match decision:
            case Filtered() | Conntracked():
                header = (decision.src, decision.dst)
                if isinstance(decision, Filtered) and _translates(decision) and decision.verdict.by is not None:
                    rules = (*rules, decision.verdict.by.text)
            case DestinationChecked(_, vm) if vm.kind in (VM_HOST, VM_NAT):
                made.append(Hop(last, vm, *_texts(header), rules))
                last, rules = vm, ()
    return tuple(made)


def steps(header: _Pair, decisions: Iterable[Decision], refusal: Refusal | None) -> tuple[Step, ...]:
    """Every decision as a step, the refusal last.  header: source and destination as the sender sends them."""
    made: list[Step] = []
    machine, vnic, before = "", "", _texts(header)
    ahead: VcnRouted | Balanced | None = None
    chains: tuple[str, ...]
    for decision in decisions:
        after, chains = before, ()
        match decision:
            case GuestRouted():
                machine, vnic = decision.vm.label, decision.vnic.name
            case Balanced():
                machine, vnic, ahead = decision.balancer.machine.label, decision.balancer.name, decision
            case VcnRouted():
                ahead = decision
            case Secured(Direction.INGRESS) if ahead is not None:
                machine, vnic = ahead.receiver.label, ahead.arrival.name
            case Conntracked():
                after = _texts((decision.src, decision.dst))
            case Filtered():
                after, chains = _texts((decision.src, decision.dst)), decision.verdict.chains
        phase, rule = _said(decision, vnic)
        made.append(Step(machine, phase, rule, before, after, chains))
        before = after
    if refusal is not None:
        if ahead is not None and isinstance(refusal, NotSecured | ForeignDestination) and refusal.vnic is ahead.arrival:
            machine = ahead.receiver.label
        chains = refusal.verdict.chains if isinstance(refusal, Dropped) else ()
        made.append(Step(machine, _phase(refusal), sentence(refusal), before, before, chains, passed=False))
    return tuple(made)


def _said(decision: Decision, at: str) -> tuple[str, str]:
    """The phase of a decision, and what decided.  at: the VNIC where the packet is."""
    match decision:
        case GuestRouted(vm, vnic, by):
            return "routing decision" if vm.kind == VM_NAT else "guest route", f"{by} by VNIC {vnic.name}"
        case SourceChecked(vnic):
            return "source check", f"VNIC {vnic.name}: {'skipped' if vnic.skip_source_dest_check else 'own address'}"
        case VcnRouted():
            return "VCN route", f"subnet {decision.subnet.name}: {_route(decision)}"
        case Balanced(_, _, receiver, others):
            rest = "".join(f"; {vm.label} {'stands by' if healthy else 'is down'}" for vm, healthy in others)
            return "load balancer", f"to {receiver.label}{rest}"
        case Secured(direction, rule):
            return _security_phase(direction), f"VNIC {at}: {_security_rule(rule)}"
        case DestinationChecked(vnic, _):
            said = "skipped" if vnic.skip_source_dest_check else "own address"
            return "destination check", f"VNIC {vnic.name}: {said}"
        case Conntracked(known):
            return "conntrack", "known flow, reply direction" if known else "new flow"
        case Filtered(builtin, verdict):
            if verdict.by is not None:
                return builtin, verdict.by.text
            nobody = "no rule of ours; the platform's own rules and policy decide"
            return builtin, "no rule matches" if _translates(decision) else nobody
        case Owned(vm, address):
            return "routing decision", f"{vm.label} itself has {address_text(address)}"
        case Delivered(vm, address):
            return "delivery", f"{vm.label} has {address_text(address)}"
    assert_never(decision)


def _route(routed: VcnRouted) -> str:
    route, peer = routed.route, routed.peer
    if route is None:
        return f"local to VCN {routed.subnet.vcn}"
    if peer is None:
        return f"{route.destination} via private IP {route.private_ip}"
    return f"{route.destination} via LPG {route.lpg} to VCN {peer.vcn}"


def _security_rule(rule: SecurityRule | None) -> str:
    if rule is None:
        return "reply of a flow that a stateful rule let pass"
    words = "" if rule.protocol == "all" else f" {PROTOCOL_NUMBERS.get(rule.protocol, rule.protocol)}"
    kind = "stateless" if rule.stateless else "stateful"
    said = f" ({rule.description})" if rule.description else ""
    return f"{rule.peer}{words} {kind}{said}"


def _security_phase(direction: Direction) -> str:
    return f"security {direction.lower()}"


def _translates(decision: Filtered) -> bool:
    """Whether the chains are those of the nat table."""
    return decision.builtin in ("PREROUTING", "POSTROUTING")


def _phase(refusal: Refusal) -> str:
    """The phase in which the packet died."""
    match refusal:
        case ForeignSource():
            return "source check"
        case ForeignDestination():
            return "destination check"
        case NoRoute() | NoTransit() | OutsideVcn() | NotPeered() | NoPrivateIp():
            return "VCN route"
        case NobodyHealthy() | ForBalancer():
            return "load balancer"
        case NotSecured():
            return _security_phase(refusal.direction)
        case AnswersElsewhere():
            return "reverse-path filter"
        case Dropped():
            return refusal.builtin
        case NotForwarding():
            return "routing decision" if refusal.vm.kind == VM_NAT else "delivery"
        case AnsweredByNatVm() | Down():
            return "delivery"
        case Looped():
            return "routing decision"
    assert_never(refusal)


def sentence(refusal: Refusal) -> str:
    """Why the packet died."""
    match refusal:
        case ForeignSource(vnic, address):
            return (
                f"VNIC {vnic.name} may send only from its own addresses ({', '.join(vnic.addresses)}), "
                f"not from {address_text(address)}: the source/destination check is on"
            )
        case ForeignDestination(vnic, address):
            return (
                f"VNIC {vnic.name} takes only packets for its own addresses, not for "
                f"{address_text(address)}: the source/destination check is on"
            )
        case NoRoute(table, address):
            kind = "subnet" if isinstance(table, Subnet) else "LPG"
            return f"{kind} {table.name} has no route rule for {address_text(address)}"
        case NoTransit(lpg):
            return f"LPG {lpg.name} leads to another LPG: OCI does not transit"
        case OutsideVcn(lpg, address):
            return f"{address_text(address)} is not in VCN {lpg.vcn} behind LPG {lpg.name}"
        case NotPeered(route):
            return f"{route.destination} via LPG {route.lpg}, which is not peered"
        case NoPrivateIp(vcn, address):
            return f"no VNIC in VCN {vcn} has the private IP {address_text(address)}"
        case NobodyHealthy(balancer):
            return f"load balancer {balancer.name} has no healthy backend ({_addresses(balancer)})"
        case ForBalancer(balancer):
            return f"{balancer.address} is load balancer {balancer.name} itself, which takes nothing"
        case Down(vm):
            return f"{vm.label} is down"
        case NotSecured(vnic, direction, address):
            side = "from" if direction is Direction.INGRESS else "to"
            rule = f"{direction.lower()} security rule of VNIC {vnic.name}"
            return f"no {rule} lets a packet {side} {address_text(address)} pass"
        case AnswersElsewhere() | Dropped() | AnsweredByNatVm() | NotForwarding():
            return _in_a_machine(refusal)
        case Looped(machines):
            return f"still on its way after {machines} machines"
    assert_never(refusal)


def _addresses(balancer: Balancer) -> str:
    return ", ".join(backend.address for backend in balancer.backends)


def _in_a_machine(refusal: AnswersElsewhere | Dropped | AnsweredByNatVm | NotForwarding) -> str:
    """Why the packet died inside a machine."""
    name = refusal.vm.label
    match refusal:
        case AnswersElsewhere(_, arrival, back):
            return f"{name} took it on {arrival.name} but would answer by {back.name}: rp_filter drops it"
        case Dropped(_, builtin, verdict, src, dst):
            by = "" if verdict.by is None else verdict.by.rule.note or verdict.by.text
            return f"{name} drops {' > '.join(_texts((src, dst)))} in {builtin}: {by}"
        case AnsweredByNatVm(_, address):
            return f"{address_text(address)} is {name} itself, and its INPUT rules let the packet in"
        case NotForwarding(vm, address):
            if vm.kind == VM_NAT:
                return f"{name} does not forward: net.ipv4.ip_forward is not 1"
            return f"{name} has no address {address_text(address)} and forwards nothing"
    assert_never(refusal)


def _texts(header: _Pair) -> tuple[str, str]:
    return address_text(header[0]), address_text(header[1])
