"""What a change of the stack file does to the flows: two plans -> Difference.

Flows are what the tracer delivers over the compiled rules of each plan, for every pair of a host and a server, declared
or not: the stack file's text is not compared.  Pure; both plans are compiled by the code that runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

from nat_pod.config.model import Capacity, SourceNat
from nat_pod.names import MemberName
from nat_pod.plan.model import NatVmPlan, PodPlan, SlotPlan
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.flows import declared_flows, flow_between
from nat_pod.trace.symmetry import alike
from nat_pod.trace.walk import Packet, Tracer

Pair = tuple[MemberName, MemberName]
"""A flow's key: the member that sends and the member that answers."""

_ONE_BY_ONE = (
    "OCI replaces both NAT VMs, one after the other: every flow of the POD stops twice, as long as a launch takes"
)


class DeliveryHop(NamedTuple):
    """A packet between two machines, by their labels, without the rules that it met."""

    start: str
    end: str
    src: str
    dst: str

    @property
    def at(self) -> str:
        """Both machines: `nat_vm1 -> customer1/vm1`."""
        return f"{self.start} -> {self.end}"

    def renamed(self, new: dict[str, str]) -> DeliveryHop:
        """The same hop with other labels or addresses: {former: new}."""
        return DeliveryHop(*(new.get(word, word) for word in self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """How a flow is delivered: the address its sender uses, the source the far end sees, and each hop between."""

    address: str
    seen: str
    hops: tuple[DeliveryHop, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowChange:
    """A flow before and after; None where it is not delivered."""

    sender: MemberName
    receiver: MemberName
    before: Delivery | None
    after: Delivery | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotChange:
    """A pair of addresses that a member takes, gets back, leaves behind or gives up."""

    member: MemberName
    nat_vm1: str
    nat_vm2: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Risk:
    """Something that `pulumi up` does to the machines or the peerings, and what that means.

    replaces_vm: both NAT VMs are made anew, so every flow ends.
    """

    what: str
    means: str
    replaces_vm: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """From one plan to the next.  Every list is sorted.

    `rerouted`: the sender's address and the source seen are the same, something between or behind them is not (a
    host's real address): nobody has to be told, open connections end.  `taken`, `returned`, `released`, `freed`: slots
    that a member gets, gets back from those kept, leaves behind and kept, and that are free for others again.
    `not_delivered` are declared flows that do not get through, `not_declared` those that get through all the same:
    either is a mistake of nat-pod, not of the stack file.
    """

    flows: int  # before
    gained: tuple[FlowChange, ...]
    lost: tuple[FlowChange, ...]
    renumbered: tuple[FlowChange, ...]
    rerouted: tuple[FlowChange, ...]
    policy: tuple[SourceNat | None, SourceNat]
    capacity: tuple[Capacity | None, Capacity]
    taken: tuple[SlotChange, ...]
    returned: tuple[SlotChange, ...]
    released: tuple[SlotChange, ...]
    freed: tuple[SlotChange, ...]
    risks: tuple[Risk, ...]
    not_delivered: tuple[Pair, ...]
    not_declared: tuple[Pair, ...]

    @property
    def ending(self) -> int:
        """Flows whose open connections end."""
        if any(risk.replaces_vm for risk in self.risks):
            return self.flows
        return len(self.lost) + len(self.renumbered) + len(self.rerouted)

    @property
    def harmless(self) -> bool:
        """Nothing is lost or renumbered, and all that is declared gets through."""
        return not (self.lost or self.renumbered or self.not_delivered or self.not_declared)


def compare(old: PodPlan | None, new: PodPlan) -> Difference:
    """What becomes of the flows of `old` (None: the POD was not there) in `new`."""
    names = {} if old is None else _renamed(old, new)
    before = {} if old is None else _rename(delivered(old), names)
    after = delivered(new)
    pairs = sorted(pair for pair in before.keys() | after.keys() if before.get(pair) != after.get(pair))
    changed = [
        FlowChange(sender=pair[0], receiver=pair[1], before=before.get(pair), after=after.get(pair)) for pair in pairs
    ]
    both = [
        (change, _ends(change.before) == _ends(change.after)) for change in changed if change.before and change.after
    ]
    declared = {(flow.sender, flow.receiver) for flow in declared_flows(new) if flow.receiver is not None}
    slots = _slot_changes(old, new, names)
    return Difference(
        flows=len(before),
        gained=tuple(change for change in changed if change.before is None),
        lost=tuple(change for change in changed if change.after is None),
        renumbered=tuple(change for change, same_ends in both if not same_ends),
        rerouted=tuple(change for change, same_ends in both if same_ends),
        policy=(None if old is None else old.source_nat, new.source_nat),
        capacity=(None if old is None else old.capacity, new.capacity),
        taken=slots["taken"],
        returned=slots["returned"],
        released=slots["released"],
        freed=slots["freed"],
        risks=() if old is None else (*_vm_risks(old, new), *_peering_risks(old, new, names)),
        not_delivered=tuple(sorted(declared - after.keys())),
        not_declared=tuple(sorted(after.keys() - declared)),
    )


def with_user_data(plan: PodPlan, user_data: str) -> PodPlan:
    """The plan as it was made with another bootstrap."""
    vms = (replace(vm, metadata={**vm.metadata, "user_data": user_data}) for vm in plan.vms)
    return replace(plan, vms=tuple(vms))


def delivered(plan: PodPlan) -> dict[Pair, Delivery]:
    """Every flow between a host and a server, in either direction, that arrives and is answered.

    Traced as TCP: the rules know no protocols, and the lab tries the others with packets.  Of servers that nothing in
    the network tells apart one is traced, and of hosts.
    """
    topology = expected_topology(plan)
    tracer = Tracer(topology)
    deliveries: dict[Pair, Delivery] = {}
    hosts_alike = [_exchanges(group) for group in alike(topology, plan.hosts, plan.servers)]
    for server, other_servers in map(_exchanges, alike(topology, plan.servers, plan.hosts)):
        for host, other_hosts in hosts_alike:
            for flow in (flow_between(host, server), flow_between(server, host)):
                packet = Packet(src=flow.source, dst=flow.destination, protocol="tcp", dport=80)
                traced = tracer.trace(flow.sender, packet, flow.receiver)
                if traced.disposition is not Disposition.DELIVERED:
                    continue
                delivery = Delivery(
                    address=flow.destination,
                    seen=traced.request.packet.src,
                    hops=tuple(
                        DeliveryHop(hop.start.label, hop.end.label, hop.src, hop.dst) for hop in traced.request.hops
                    ),
                )
                for server_like, of_server in other_servers:
                    for host_like, of_host in other_hosts:
                        pair = (host_like, server_like)
                        if flow.sender.is_server:
                            pair = (server_like, host_like)
                        deliveries[pair] = _said(delivery, of_server | of_host)
    return deliveries


def _exchanges(group: list[SlotPlan]) -> tuple[SlotPlan, list[tuple[MemberName, dict[str, str]]]]:
    """The first of a group, and each of it with {label or address of the first: its own}."""
    one = group[0]
    return one, [
        (
            other.member,
            {
                one.member.label: other.member.label,
                one.real: other.real,
                one.nat_vm1: other.nat_vm1,
                one.nat_vm2: other.nat_vm2,
            },
        )
        for other in group
    ]


def _said(delivery: Delivery, new: dict[str, str]) -> Delivery:
    """The delivery of one pair as that of another pair like it."""
    return Delivery(
        address=new.get(delivery.address, delivery.address),
        seen=new.get(delivery.seen, delivery.seen),
        hops=tuple(hop.renamed(new) for hop in delivery.hops),
    )


def _ends(delivery: Delivery | None) -> tuple[str, str] | None:
    return None if delivery is None else (delivery.address, delivery.seen)


# --- renamed customers -----------------------------------------------------------------------------------------------


def _renamed(old: PodPlan, new: PodPlan) -> dict[str, str]:
    """{old name: new name} of the customers; a name that was somebody's already is no new one."""
    return {
        lpg.formerly: lpg.customer
        for lpg in new.lpgs
        if lpg.formerly is not None and lpg.formerly in old.customer_cidrs and lpg.customer not in old.customer_cidrs
    }


def _new_name(member: MemberName, names: dict[str, str]) -> MemberName:
    return MemberName(names[member.realm], member.short) if member.realm in names else member


def _rename(deliveries: dict[Pair, Delivery], names: dict[str, str]) -> dict[Pair, Delivery]:
    """The same flows under the members' new names; otherwise a rename would end them all and begin others."""
    if not names:
        return deliveries
    labels = {member.label: _new_name(member, names).label for pair in deliveries for member in pair}
    return {
        (_new_name(sender, names), _new_name(receiver, names)): replace(
            delivery, hops=tuple(hop.renamed(labels) for hop in delivery.hops)
        )
        for (sender, receiver), delivery in deliveries.items()
    }


# --- slots -----------------------------------------------------------------------------------------------------------


def _slot_changes(old: PodPlan | None, new: PodPlan, names: dict[str, str]) -> dict[str, tuple[SlotChange, ...]]:
    was = _pairs(old, names)
    kept = {} if old is None else {_new_name(name, names): pair for name, pair in old.released.items()}
    now = _pairs(new, {})
    # A server and a host may share one pair: it is free when nobody has it and nobody's is kept.
    in_use = Counter([*now.values(), *new.released.values()])
    left = {name: pair for name, pair in {**kept, **was}.items() if in_use[pair] == 0}
    return {
        "taken": _changes({n: p for n, p in now.items() if was.get(n) != p and kept.get(n) != p}),
        "returned": _changes({n: p for n, p in now.items() if n not in was and kept.get(n) == p}),
        "released": _changes({n: p for n, p in new.released.items() if kept.get(n) != p}),
        "freed": _changes(left),
    }


def _pairs(plan: PodPlan | None, names: dict[str, str]) -> dict[MemberName, tuple[str, str]]:
    slots = () if plan is None else plan.slots
    return {_new_name(slot.member, names): (slot.nat_vm1, slot.nat_vm2) for slot in slots}


def _changes(pairs: dict[MemberName, tuple[str, str]]) -> tuple[SlotChange, ...]:
    return tuple(SlotChange(member=member, nat_vm1=pair[0], nat_vm2=pair[1]) for member, pair in sorted(pairs.items()))


# --- machines and peerings -------------------------------------------------------------------------------------------


def _vm_risks(old: PodPlan, new: PodPlan) -> list[Risk]:
    """What replaces an instance: docs/engine.md, "What the engine plans"."""
    first = list(zip(old.vms, new.vms, strict=True))

    def differs(key: str) -> bool:
        return any(was.metadata[key] != now.metadata[key] for was, now in first)

    def primary(vm: NatVmPlan) -> str:
        return vm.vnics[0].primary

    risks = []
    if differs("user_data"):
        risks.append(Risk(what="new bootstrap (user_data)", means=_ONE_BY_ONE, replaces_vm=True))
    if differs("ssh_authorized_keys"):
        risks.append(Risk(what="new natVm.sshPublicKey", means=_ONE_BY_ONE, replaces_vm=True))
    if old.availability_domain != new.availability_domain:
        what = f"natVm.availabilityDomain {_or_default(old)} -> {_or_default(new)}"
        risks.append(Risk(what=what, means=f"unless that is the same one, {_ONE_BY_ONE}", replaces_vm=True))
    for was, now in first:
        if primary(was) != primary(now):
            what = f"primary address of {now.key} {primary(was)} -> {primary(now)}"
            risks.append(Risk(what=what, means=_ONE_BY_ONE, replaces_vm=True))
    if (old.shape, old.ocpus, old.memory_gbs) != (new.shape, new.ocpus, new.memory_gbs):
        means = (
            "`pulumi up` is refused (409), because it would reboot both NAT VMs; "
            "change one VM after the other in the console, then run: pulumi refresh"
        )
        risks.append(Risk(what=f"natVm.shape {_shape(old)} -> {_shape(new)}", means=means))
    if old.image_id != new.image_id:
        means = "no new VM: OCI exchanges the boot volume, which stops the VM, or refuses to (not tried on a tenancy)"
        risks.append(Risk(what="new natVm.imageId", means=means))
    return risks


def _or_default(plan: PodPlan) -> str:
    return plan.availability_domain or "the region's first"


def _shape(plan: PodPlan) -> str:
    return plan.shape if plan.ocpus is None else f"{plan.shape} ({plan.ocpus} OCPUs, {plan.memory_gbs} GB)"


def _peering_risks(old: PodPlan, new: PodPlan, names: dict[str, str]) -> list[Risk]:
    was = {names.get(lpg.customer, lpg.customer): lpg for lpg in old.lpgs}
    now = {lpg.customer: lpg for lpg in new.lpgs}
    risks = [
        Risk(what=f"LPG of {customer} is deleted", means="the customer's own LPG is of no more use to it afterwards")
        for customer in sorted(was.keys() - now.keys())
    ]
    risks += [
        Risk(
            what=f"LPG of {customer} is replaced",
            means="an LPG that was peered cannot be peered again: the customer makes a new one too, and peers anew",
        )
        for customer in sorted(was.keys() & now.keys())
        if was[customer].peer_id != now[customer].peer_id
    ]
    return risks
