"""What a change of the stack file does to the flows: two plans -> Difference.

Flows are what the tracer delivers over the compiled rules of each plan, for every pair of a host and a server, declared
or not: the stack file's text is not compared.  Pure; both plans are compiled by the code that runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from nat_pod.config.model import Capacity, SourceNat
from nat_pod.names import MANAGEMENT
from nat_pod.plan.model import NatVmPlan, PodPlan, SlotPlan
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.flows import declared_flows, flow_between
from nat_pod.trace.symmetry import alike
from nat_pod.trace.walk import Disposition, Packet, Tracer, label

Pair = tuple[str, str]
"""A flow's key: the member that sends and the member that answers."""

_ONE_BY_ONE = (
    "OCI replaces both NAT VMs, one after the other: every flow of the POD stops twice, as long as a launch takes"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a flow is delivered: the address its sender uses, the source the far end sees, and each hop between."""

    address: str
    seen: str
    hops: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowChange:
    """A flow before and after; None where it is not delivered."""

    sender: str
    receiver: str
    before: Way | None
    after: Way | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotChange:
    """A pair of addresses that a member takes, gets back, leaves behind or gives up."""

    member: str
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
    declared = {(flow.sender, str(flow.receiver)) for flow in declared_flows(new)}
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
    first, second = (replace(vm, metadata={**vm.metadata, "user_data": user_data}) for vm in plan.vms)
    return replace(plan, vms=(first, second))


def delivered(plan: PodPlan) -> dict[Pair, Way]:
    """Every flow between a host and a server, in either direction, that arrives and is answered.

    Traced as TCP: the rules know no protocols, and the lab tries the others with packets.  Of servers that nothing in
    the network tells apart one is traced, and of hosts.
    """
    topology = expected_topology(plan)
    tracer = Tracer(topology)
    servers = [slot for slot in plan.slots if slot.member.startswith(f"{MANAGEMENT}/")]
    hosts = [slot for slot in plan.slots if not slot.member.startswith(f"{MANAGEMENT}/")]
    ways: dict[Pair, Way] = {}
    hosts_alike = [_exchanges(group) for group in alike(topology, hosts, servers)]
    for server, other_servers in map(_exchanges, alike(topology, servers, hosts)):
        for host, other_hosts in hosts_alike:
            for flow in (flow_between(host, server), flow_between(server, host)):
                packet = Packet(src=flow.source, dst=flow.destination, protocol="tcp", dport=80)
                traced = tracer.trace(flow.sender, packet, flow.receiver)
                if traced.disposition is not Disposition.DELIVERED:
                    continue
                way = Way(
                    address=flow.destination,
                    seen=traced.request.packet.src,
                    hops=tuple((hop.at, hop.src, hop.dst) for hop in traced.request.hops),
                )
                pair = (flow.sender, str(flow.receiver))
                for other_server in other_servers:
                    for other_host in other_hosts:
                        new = other_server | other_host
                        ways[new[pair[0]], new[pair[1]]] = _said(way, new)
    return ways


def _exchanges(group: list[SlotPlan]) -> tuple[SlotPlan, list[dict[str, str]]]:
    """The first of a group, and for each of it {name or address of the first: its own}."""
    one = group[0]
    return one, [
        {
            one.member: other.member,
            label(one.member): label(other.member),
            one.real: other.real,
            one.nat_vm1: other.nat_vm1,
            one.nat_vm2: other.nat_vm2,
        }
        for other in group
    ]


def _said(way: Way, new: dict[str, str]) -> Way:
    """The way of one pair as that of another pair like it."""
    return Way(
        address=new.get(way.address, way.address),
        seen=new.get(way.seen, way.seen),
        hops=tuple(
            (" -> ".join([new.get(end, end) for end in at.split(" -> ")]), new.get(src, src), new.get(dst, dst))
            for at, src, dst in way.hops
        ),
    )


def _ends(way: Way | None) -> tuple[str, str] | None:
    return None if way is None else (way.address, way.seen)


# --- renamed customers -----------------------------------------------------------------------------------------------


def _renamed(old: PodPlan, new: PodPlan) -> dict[str, str]:
    """{old name: new name} of the customers; a name that was somebody's already is no new one."""
    return {
        lpg.formerly: lpg.customer
        for lpg in new.lpgs
        if lpg.formerly is not None and lpg.formerly in old.customer_cidrs and lpg.customer not in old.customer_cidrs
    }


def _new_name(member: str, names: dict[str, str]) -> str:
    realm, slash, host = member.partition("/")
    return f"{names.get(realm, realm)}{slash}{host}"


def _rename(ways: dict[Pair, Way], names: dict[str, str]) -> dict[Pair, Way]:
    """The same flows under the members' new names; otherwise a rename would end them all and begin others."""
    if not names:
        return ways
    return {
        (_new_name(sender, names), _new_name(receiver, names)): replace(
            way,
            hops=tuple(
                (" -> ".join(_new_name(end, names) for end in at.split(" -> ")), src, dst) for at, src, dst in way.hops
            ),
        )
        for (sender, receiver), way in ways.items()
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


def _pairs(plan: PodPlan | None, names: dict[str, str]) -> dict[str, tuple[str, str]]:
    slots = () if plan is None else plan.slots
    return {_new_name(slot.member, names): (slot.nat_vm1, slot.nat_vm2) for slot in slots}


def _changes(pairs: dict[str, tuple[str, str]]) -> tuple[SlotChange, ...]:
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
