"""The flow that a picture shows, as the tracer sees it: who sends what to whom on each leg, request and reply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nat_pod.config.services import ICMP
from nat_pod.names import MemberName, Side
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.explain import Hop
from nat_pod.trace.flows import declared_flows, flow_between, sample
from nat_pod.trace.topology import Vm
from nat_pod.trace.walk import Packet, Trace, trace

Machine = Side | MemberName
"""What is drawn in a picture: a side, as its NAT VM, or a member."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """A packet between two machines.  `number` counts through both directions."""

    number: int
    reply: bool
    start: Machine
    end: Machine
    src: str
    dst: str

    @property
    def style(self) -> str:
        """The class, in the picture's style sheet, of the filled shapes that belong to it."""
        return "replies" if self.reply else "requests"


@dataclass(frozen=True, kw_only=True, slots=True)
class Journey:
    """A flow between two members as the tracer sees it; `dead` says why it does not get through, or nothing."""

    sender: SlotPlan
    receiver: SlotPlan
    address: str
    stretches: tuple[Stretch, ...]
    dead: str


def first_flow(plan: PodPlan) -> tuple[MemberName, MemberName] | None:
    """The flow that is shown when none is asked for: the first one that the stack file declares."""
    flow = next(iter(declared_flows(plan)), None)
    return None if flow is None or flow.receiver is None else (flow.sender, flow.receiver)


def journey(plan: PodPlan, sender: SlotPlan, receiver: SlotPlan) -> Journey:
    """Trace the flow from one member to another."""
    flow = flow_between(sender, receiver)
    services = plan.access.services(sender.member, receiver.member)
    protocol, port = sample(services) if services else (ICMP, None)
    packet = Packet(src=flow.source, dst=flow.destination, protocol=protocol, dport=port or 0)
    traced = trace(expected_topology(plan), sender.member, packet, receiver.member)
    delivered = traced.disposition is Disposition.DELIVERED
    return Journey(
        sender=sender,
        receiver=receiver,
        address=flow.destination,
        stretches=tuple(_stretches(traced)),
        dead="" if delivered else f"{traced.disposition}: {traced.why}",
    )


def _stretches(traced: Trace) -> Iterator[Stretch]:
    hops: list[tuple[bool, Hop]] = [(False, hop) for hop in traced.request.hops]
    hops += [] if traced.reply is None else [(True, hop) for hop in traced.reply.hops]
    for number, (reply, hop) in enumerate(hops, 1):
        start, end = _machine(hop.start), _machine(hop.end)
        yield Stretch(number=number, reply=reply, start=start, end=end, src=hop.src, dst=hop.dst)


def _machine(vm: Vm) -> Machine:
    """What stands for a machine in a picture.  Raises ValueError for the vRouter, which changes no packet."""
    machine = vm.side or vm.member
    if machine is None:
        raise ValueError(f"{vm.name} has no place of its own on the way of a flow")
    return machine
