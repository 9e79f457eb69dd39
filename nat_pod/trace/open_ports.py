"""`trace --all` looks at what the NAT VMs themselves let in: ssh, and whatever else a rule of INPUT has a port for.

The way in is meant for management: ssh to NAT VM2's own addresses, and from NAT VM2 to NAT VM1's.  A declared server's
packets to an address of NAT VM2 are translated, so where no host owns the slot, its ssh is answered by NAT VM1
(docs/operate.md, "The way in").  Nobody else is answered.

Who gets as far as INPUT is known from TCP port 80 already: nothing before it looks at ports (`Protocols`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import assert_never

from nat_pod.config.delivery import Delivery
from nat_pod.names import MANAGEMENT, SSH, MemberName, Side
from nat_pod.plan.model import PodPlan
from nat_pod.rules.netfilter import Accept, Goto, Rule, Ruleset
from nat_pod.trace.classes import Block, size, sweep
from nat_pod.trace.counter_examples import NO_WAY_IN, OPEN_PORT, CounterExample
from nat_pod.trace.decisions import AnsweredByNatVm, Dropped
from nat_pod.trace.spans import Places, address_text, number, numbers
from nat_pod.trace.topology import VM_NAT, Topology
from nat_pod.trace.walk import ECHO_REQUEST, Leg, Packet, Tracer


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class WayIn:
    """Packets of `sender` are let in by the machine `vm`, at these addresses of its own."""

    sender: str
    vm: str
    addresses: tuple[str, ...]


class OpenPorts:
    """Asks again, at each port that INPUT lets in, whoever was refused there."""

    def __init__(self, plan: PodPlan, topology: Topology) -> None:
        self.found: list[CounterExample] = []
        self.traced = 0
        self._plan = plan
        self._vms = {vm.name: vm for vm in topology.vms.values() if vm.kind == VM_NAT}
        self._primary = {name: topology.vnics[vm.vnics[0]].addresses[0] for name, vm in self._vms.items()}
        self._ports = {name: tuple(dict.fromkeys(_let_in(vm.rules))) for name, vm in self._vms.items()}
        self._pieces = {name: _pieces(vm.rules) for name, vm in self._vms.items()}
        # What no port is open to: NAT VM, whether it came as it was sent, and the pieces of source and destination.
        self._refused: set[tuple[str, bool, int, int]] = set()
        self._one_way: dict[tuple[str, str], set[int]] = {}
        self._answered: dict[tuple[str, str], set[int]] = {}

    @property
    def ways_in(self) -> tuple[WayIn, ...]:
        """Whose ssh is answered where."""
        return _ways(self._answered)

    def goes_one_way(self, tracer: Tracer, sender: str, sources: Block, leg: Leg) -> bool:
        """Whether a routed POD lets such a packet in without answering its sender, whichever of these sources it has.

        There an LPG leads to every address that the VCN itself has.  In the article's POD it does not, and nothing of
        this kind gets in.
        """
        match self._plan.delivery:
            case Delivery.PRIVATE_IPS:
                return False
            case Delivery.ROUTES:
                pass
            case _ as never:
                assert_never(never)
        tried = [sources[0]]
        if isinstance(sender, MemberName):  # what it sends from its own network could come back
            for first, last, _ in map(numbers, self._plan.realms[sender.realm]):
                tried += [max(first, sources[0])] if first <= sources[1] and sources[0] <= last else []
        for source in tried:
            answer = tracer.answer(tracer.request(sender, _from_to(source, leg.sent[1], leg.packet)))
            back = answer.refusal.vm.name if isinstance(answer.refusal, AnsweredByNatVm) else answer.reached
            if back == sender:
                return False
        return True

    def one_way(self, sender: str, receiver: str, address: int) -> None:
        """Packets of this sender get there, and the answer goes to somebody else."""
        self._one_way.setdefault((sender, receiver), set()).add(address)

    @property
    def ways_of_no_return(self) -> tuple[WayIn, ...]:
        """Whose forged packets are let in where, while the answer goes to somebody else."""
        return _ways(self._one_way)

    def ask(self, tracer: Tracer, sender: MemberName, sources: Block, destinations: Block, leg: Leg) -> None:
        """A class of packets of this sender has met the fate of `leg`: ask at the other ports if INPUT dropped it."""
        refusal = leg.refusal
        if not isinstance(refusal, Dropped) or refusal.builtin != "INPUT":
            return
        name, at = refusal.vm.name, self._pieces[refusal.vm.name]
        came_as_sent = leg.sent == (refusal.src, refusal.dst)
        alike = (name, came_as_sent, at.number(refusal.src), at.number(refusal.dst))
        if alike not in self._refused:
            answers = [self._ask(tracer, sender, [sources], [destinations], port) for port in self._ports[name]]
            if not any(answers):
                self._refused.add(alike)

    def answered(self, tracer: Tracer, sender: MemberName, sources: Block, destinations: Block, at: Packet) -> None:
        """Packets of this sender to one port are answered: whether they are meant to be.  at: the port."""
        self._ask(tracer, sender, [sources], [destinations], at)

    def from_the_vms(self, tracer: Tracer) -> None:
        """ssh from each NAT VM to every address of the POD: NAT VM2's is answered by NAT VM1, and no other."""
        pod = [numbers(self._plan.cidr)[:2]]
        for name, address in self._primary.items():
            self._ask(tracer, name, [(number(address),) * 2], pod, Packet(src="", dst="", protocol="tcp", dport=SSH))

    def way_in(self, tracer: Tracer, sender: MemberName, source: str) -> None:
        """Whether both steps of the way in are open, from this machine of management."""
        steps: list[tuple[str, str, str, str]] = [
            (sender, source, to, name) for name, to in self._primary.items() if self._vms[name].side is Side.NAT_VM2
        ]
        for way_in, owner in self._plan.ways_in.items():
            steps += [
                (name, self._primary[name], way_in, owner)
                for name in self._primary
                if self._vms[name].side is Side.NAT_VM2
            ]
        for who, src, to, vm in steps:
            self.traced += 1
            leg = tracer.request(who, Packet(src=src, dst=to, protocol="tcp", dport=SSH))
            if not isinstance(leg.refusal, AnsweredByNatVm) or leg.refusal.vm.name != vm:
                self.found.append(
                    CounterExample(kind=NO_WAY_IN, sender=who, source=src, destination=to, why=f"TCP {SSH}: {leg.fate}")
                )

    def _ask(self, tracer: Tracer, sender: str, sources: list[Block], destinations: list[Block], to: Packet) -> bool:
        """Whether any of these packets is answered at this port; each that should not be is in `found`."""

        def follow(source: int, destination: int) -> Leg:
            self.traced += 1
            return tracer.request(sender, _from_to(source, destination, to))

        answered = False
        for source, destination, leg in sweep(sources, destinations, follow):
            refusal = leg.refusal
            if not isinstance(refusal, AnsweredByNatVm) or refusal.vm.name == sender:
                continue
            answered = True
            if (to.protocol, to.dport) == ("tcp", SSH) and self._is_meant(sender, refusal.vm.side):
                self._answered.setdefault((sender, refusal.vm.name), set()).add(destination[0])
                continue
            if self.goes_one_way(tracer, sender, source, leg):
                self.one_way(sender, refusal.vm.name, destination[0])
                continue
            port = f"ICMP type {to.icmp_type}" if to.protocol == "icmp" else f"{to.protocol.upper()} {to.dport}"
            self.found.append(
                CounterExample(
                    kind=OPEN_PORT,
                    sender=sender,
                    source=address_text(source[0]),
                    destination=address_text(destination[0]),
                    why=f"{port}: {leg.why}",
                    alike=size(source) * size(destination) - 1,
                )
            )
        return answered

    def _is_meant(self, sender: str, side: Side | None) -> bool:
        """Whether this sender's ssh is to be answered by the NAT VMs of this side."""
        match side:
            case Side.NAT_VM1:
                # Only there an address of NAT VM2 leads to one of NAT VM1.
                through = self._plan.servers if self._plan.delivery is Delivery.PRIVATE_IPS else ()
                return sender in {server.member for server in through} or (
                    sender in self._vms and self._vms[sender].side is Side.NAT_VM2
                )
            case Side.NAT_VM2:
                return isinstance(sender, MemberName) and sender.realm == MANAGEMENT
            case None:
                return False
            case _ as never:
                assert_never(never)


def _ways(found: dict[tuple[str, str], set[int]]) -> tuple[WayIn, ...]:
    return tuple(
        WayIn(sender=sender, vm=vm, addresses=tuple(map(address_text, sorted(addresses))))
        for (sender, vm), addresses in found.items()
    )


def _from_to(source: int, destination: int, to: Packet) -> Packet:
    return replace(to, src=address_text(source), dst=address_text(destination))


def _behind_input(rules: Ruleset | None) -> Iterator[Rule]:
    """The rules that a new packet for the NAT VM itself can meet."""
    ahead = [] if rules is None else [rules.filter.hooked("INPUT")]
    while rules is not None and ahead:
        chain = ahead.pop()
        for rule in () if chain is None else chain.rules:
            if rule.match.in_interface is not None or (rule.match.ctstate and "NEW" not in rule.match.ctstate):
                continue
            yield rule
            if isinstance(rule.target, Goto):
                ahead.append(rules.filter.chain(rule.target.chain))


def _let_in(rules: Ruleset | None) -> Iterator[Packet]:
    """A packet for each protocol and port that a rule behind INPUT accepts new packets of."""
    for rule in _behind_input(rules):
        match = rule.match
        if isinstance(rule.target, Accept) and match.protocol is not None:
            asked = Packet(src="", dst="", protocol=match.protocol)
            if match.protocol == "icmp":
                yield replace(asked, icmp_type=ECHO_REQUEST)
            else:
                yield replace(
                    asked,
                    sport=asked.sport if match.source_port is None else match.source_port.first,
                    dport=asked.dport if match.destination_port is None else match.destination_port.first,
                )


def _pieces(rules: Ruleset | None) -> Places:
    """The addresses that the rules behind INPUT tell apart."""
    named = [network for rule in _behind_input(rules) for network in (rule.match.source, rule.match.destination)]
    return Places(numbers(network)[:2] for network in named if network is not None)
