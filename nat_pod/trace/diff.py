"""What a change of the stack file does to the flows: two plans -> Difference.

Flows are what the tracer delivers over the compiled rules of each plan, for every pair of a host and a server, declared
or not: the stack file's text is not compared.  Pure; both plans are compiled by the code that runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from nat_pod.config.delivery import Delivery
from nat_pod.config.model import Capacity
from nat_pod.config.renames import Renames
from nat_pod.config.services import EVERYTHING, ICMP, NOTHING, TCP, UDP, Ports, Services, pieces
from nat_pod.config.source_nat import SourceNat
from nat_pod.names import MemberName
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.trace.chains import OTHER
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.flows import PORT, declared_flows, flow_between
from nat_pod.trace.symmetry import alike
from nat_pod.trace.topology import Topology
from nat_pod.trace.walk import EPHEMERAL_PORT, Packet, Tracer

Pair = tuple[MemberName, MemberName]
"""A flow's key: the member that sends and the member that answers."""


class WayHop(NamedTuple):
    """A packet between two machines, by their labels, without the rules that it met."""

    start: str
    end: str
    src: str
    dst: str

    @property
    def at(self) -> str:
        """Both machines: `nat_vm1 -> customer1/vm1`."""
        return f"{self.start} -> {self.end}"

    def renamed(self, new: dict[str, str]) -> WayHop:
        """The same hop with other labels or addresses: {former: new}."""
        return WayHop(*(new.get(word, word) for word in self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a flow is delivered: the address its sender uses, the source the far end sees, and each hop between.

    `services`: the packets that may begin it.
    """

    address: str
    seen: str
    hops: tuple[WayHop, ...]
    services: Services = EVERYTHING


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowChange:
    """A flow before and after; None where it is not delivered."""

    sender: MemberName
    receiver: MemberName
    before: Way | None
    after: Way | None

    @property
    def no_longer(self) -> Services:
        """The packets that it may not begin with any more."""
        return NOTHING if self.before is None else self.before.services - _services(self.after)

    @property
    def now_too(self) -> Services:
        """The packets that it may begin with from now on."""
        return NOTHING if self.after is None else self.after.services - _services(self.before)


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotChange:
    """A pair of addresses that a member takes, gets back, leaves behind or gives up."""

    member: MemberName
    nat_vm1: str
    nat_vm2: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberChange:
    """What flows of one member have in common: with whom, how many, and how they change.

    `called`: the address by which the others call the member, before and after; `seen`: the address that they see of
    it.  Either is None where the flow was not, or is not, and empty where no such flow changes.
    """

    member: MemberName
    others: tuple[MemberName, ...]
    flows: tuple[FlowChange, ...]
    called: tuple[tuple[str | None, str | None], ...]
    seen: tuple[tuple[str | None, str | None], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """From one plan to the next.  Every list is sorted.

    `rerouted`: the sender's address and the source seen are the same, something between or behind them is not (a
    host's real address): nobody has to be told, open connections end.  `taken`, `returned`, `released`, `freed`: slots
    that a member gets, gets back from those kept, leaves behind and kept, and that are free for others again.
    `narrowed`: flows that may not begin any more with some packet that they could begin with; `widened`: those that may
    begin with more, and with all that they could.  `renamed`: customers and members by their former names; they are
    compared under the present ones.
    `moved`: members that come or go, or whose own addresses differ; the change is theirs, and not of who talks to them.
    `outlived`: lost or narrowed flows that may no longer be opened, while their open connections go on.  In a routed
    POD those are the flows whose other end may still call at any port: there the packets of a connection pass for both
    ends (docs/routed.md).
    `routes`: by neighbour, the ranges that it sends to the POD from now on, and those that it need not any more.
    `not_delivered` are declared flows that do not get through, `not_declared` those that get through all the same:
    either is a mistake of nat-pod, not of the stack file.
    """

    before: frozenset[Pair]
    gained: tuple[FlowChange, ...]
    lost: tuple[FlowChange, ...]
    renumbered: tuple[FlowChange, ...]
    rerouted: tuple[FlowChange, ...]
    narrowed: tuple[FlowChange, ...]
    widened: tuple[FlowChange, ...]
    policy: tuple[SourceNat | None, SourceNat]
    capacity: tuple[Capacity | None, Capacity]
    taken: tuple[SlotChange, ...]
    returned: tuple[SlotChange, ...]
    released: tuple[SlotChange, ...]
    freed: tuple[SlotChange, ...]
    renamed: dict[str, str]
    moved: frozenset[MemberName]
    outlived: frozenset[Pair]
    routes: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    not_delivered: tuple[Pair, ...]
    not_declared: tuple[Pair, ...]

    @property
    def ended(self) -> frozenset[Pair]:
        """The flows of before whose open connections end; of narrowed ones those to what they lose."""
        changes = (*self.lost, *self.renumbered, *self.rerouted, *self.narrowed)
        return frozenset((change.sender, change.receiver) for change in changes) - self.outlived


def compare(old: PodPlan | None, new: PodPlan) -> Difference:
    """What becomes of the flows of `old` (None: the POD was not there) in `new`."""
    names = Renames() if old is None else new_names(old, new)
    before = {} if old is None else _rename(delivered(old), names)
    after = delivered(new)
    pairs = sorted(pair for pair in before.keys() | after.keys() if before.get(pair) != after.get(pair))
    changed = [
        FlowChange(sender=pair[0], receiver=pair[1], before=before.get(pair), after=after.get(pair)) for pair in pairs
    ]
    both = [change for change in changed if change.before and change.after]
    moved = [(change, _ends(change.before) == _ends(change.after)) for change in both if not _same_way(change)]
    declared = {
        (flow.sender, flow.receiver): new.access.services(flow.sender, flow.receiver)
        for flow in declared_flows(new)
        if flow.receiver is not None
    }
    slots = _slot_changes(old, new, names)
    return Difference(
        before=frozenset(before),
        gained=tuple(change for change in changed if change.before is None),
        lost=tuple(change for change in changed if change.after is None),
        renumbered=tuple(change for change, same_ends in moved if not same_ends),
        rerouted=tuple(change for change, same_ends in moved if same_ends),
        narrowed=tuple(change for change in both if change.no_longer),
        widened=tuple(change for change in both if not change.no_longer and change.now_too),
        policy=(None if old is None else old.source_nat, new.source_nat),
        capacity=(None if old is None else old.capacity, new.capacity),
        taken=slots["taken"],
        returned=slots["returned"],
        released=slots["released"],
        freed=slots["freed"],
        renamed={str(former): str(name) for former, name in [*names.customers.items(), *names.members.items()]},
        moved=_moved(old, new, names),
        outlived=_outlived(new, before, after),
        routes={} if old is None else _routes(old, new, names),
        not_delivered=tuple(sorted(p for p, services in declared.items() if services - _services(after.get(p)))),
        not_declared=tuple(sorted(p for p, way in after.items() if way.services - declared.get(p, NOTHING))),
    )


def by_member(difference: Difference, changes: Sequence[FlowChange]) -> list[MemberChange]:
    """The changes of some flows, told once for each member that they belong to.

    A flow belongs to the ends that moved; else to those whose address in it is another one (a new source policy); else
    to the host.  So it may be told of both its ends.
    """
    groups: dict[MemberName, list[FlowChange]] = {}
    for change in changes:
        for owner in _owners(difference, change):
            groups.setdefault(owner, []).append(change)
    return [
        MemberChange(
            member=member,
            others=tuple(sorted({flow.sender if flow.receiver == member else flow.receiver for flow in flows})),
            flows=tuple(flows),
            called=_steps((flow for flow in flows if flow.receiver == member), lambda way: way.address),
            seen=_steps((flow for flow in flows if flow.sender == member), lambda way: way.seen),
        )
        for member, flows in sorted(groups.items())
    ]


def _owners(difference: Difference, change: FlowChange) -> list[MemberName]:
    ends = (change.sender, change.receiver)
    moved = [end for end in ends if end in difference.moved]
    if moved or change.before is None or change.after is None:
        return moved or [end for end in ends if not end.is_server]
    seen, called = change.before.seen != change.after.seen, change.before.address != change.after.address
    other = [end for end, differs in zip(ends, (seen, called), strict=True) if differs]
    return other or [end for end in ends if not end.is_server]


def _steps(flows: Iterable[FlowChange], address: Callable[[Way], str]) -> tuple[tuple[str | None, str | None], ...]:
    """The addresses before and after, each pair of them once."""

    def of(way: Way | None) -> str | None:
        return None if way is None else address(way)

    return tuple(dict.fromkeys((of(flow.before), of(flow.after)) for flow in flows))


def with_user_data(plan: PodPlan, user_data: str) -> PodPlan:
    """The plan as it was made with another bootstrap."""
    vms = (replace(vm, metadata={**vm.metadata, "user_data": user_data}) for vm in plan.vms)
    return replace(plan, vms=tuple(vms))


def delivered(plan: PodPlan) -> dict[Pair, Way]:
    """Every flow between a host and a server, in either direction, that arrives and is answered.

    Traced as TCP where no policy governs anything: the rules know no protocols then, and the lab tries the others with
    packets.  With a policy each kind of packet is traced that the rules tell apart.  Of servers that nothing in the
    network tells apart one is traced, and of hosts.
    """
    topology = expected_topology(plan)
    kinds = _kinds(plan, topology)
    tracer = Tracer(topology)
    ways: dict[Pair, Way] = {}
    hosts_alike = [_exchanges(group) for group in alike(topology, plan.hosts, plan.servers)]
    for server, other_servers in map(_exchanges, alike(topology, plan.servers, plan.hosts)):
        for host, other_hosts in hosts_alike:
            for flow in (flow_between(host, server), flow_between(server, host)):
                services, traced = NOTHING, None
                for protocol, port, stands_for in kinds:
                    packet = Packet(src=flow.source, dst=flow.destination, protocol=protocol, dport=port)
                    one = tracer.trace(flow.sender, packet, flow.receiver)
                    if one.disposition is Disposition.DELIVERED:
                        services, traced = services | stands_for, traced or one
                if traced is None:
                    continue
                way = Way(
                    services=_whole(services, plan),
                    address=flow.destination,
                    seen=traced.request.packet.src,
                    hops=tuple(WayHop(hop.start.label, hop.end.label, hop.src, hop.dst) for hop in traced.request.hops),
                )
                for server_like, of_server in other_servers:
                    for host_like, of_host in other_hosts:
                        pair = (host_like, server_like)
                        if flow.sender.is_server:
                            pair = (server_like, host_like)
                        ways[pair] = _said(way, of_server | of_host)
    return ways


def _kinds(plan: PodPlan, topology: Topology) -> list[tuple[str, int, Services]]:
    """Packets by protocol and port, and what each stands for: all that no rule tells apart from it."""
    if not plan.access.entries:
        return [(TCP, PORT, EVERYTHING)]
    asked: dict[str | None, set[Ports]] = {TCP: set(), UDP: set()}
    for rule in topology.rules():
        if rule.match.destination_port is not None:
            asked[rule.match.protocol].add(rule.match.destination_port)
    found = [(TCP, piece.first, Services(tcp=(piece,))) for piece in pieces(asked[TCP])]
    found += [(UDP, piece.first, Services(udp=(piece,))) for piece in pieces(asked[UDP])]
    return [*found, (ICMP, 0, Services(icmp=True)), (OTHER, 0, Services(others=True))]


def _whole(services: Services, plan: PodPlan) -> Services:
    """Under masquerade no other protocol passes, whatever a policy says; who may send the rest may send everything."""
    whole = plan.source_nat.shares_addresses and services | Services(others=True) == EVERYTHING
    return EVERYTHING if whole else services


def _services(way: Way | None) -> Services:
    return NOTHING if way is None else way.services


def _same_way(change: FlowChange) -> bool:
    """Whether only what it may begin with differs."""
    before, after = change.before, change.after
    return before is not None and after is not None and replace(before, services=after.services) == after


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


def _said(way: Way, new: dict[str, str]) -> Way:
    """The way of one pair's flow as that of another pair like it."""
    return Way(
        address=new.get(way.address, way.address),
        seen=new.get(way.seen, way.seen),
        hops=tuple(hop.renamed(new) for hop in way.hops),
        services=way.services,
    )


def _outlived(new: PodPlan, before: dict[Pair, Way], after: dict[Pair, Way]) -> frozenset[Pair]:
    """See `Difference.outlived`."""
    match new.delivery:
        case Delivery.PRIVATE_IPS:
            return frozenset()
        case Delivery.ROUTES:
            less = [pair for pair, way in before.items() if way.services - _services(after.get(pair))]
            return frozenset(
                (sender, receiver)
                for sender, receiver in less
                if (back := after.get((receiver, sender))) is not None
                and (was := before.get((receiver, sender))) is not None
                and replace(was, services=back.services) == back
                and back.services.permits(TCP, EPHEMERAL_PORT)
            )
        case _ as never:
            assert_never(never)


def _ends(way: Way | None) -> tuple[str, str] | None:
    return None if way is None else (way.address, way.seen)


# --- renames ---------------------------------------------------------------------------------------------------------


def new_names(old: PodPlan, new: PodPlan) -> Renames:
    """Who has another name in `new`.  A member whose new name was in use in `old` was not renamed, or long before."""
    customers = {
        former: name
        for former, name in new.renames.customers.items()
        if former in old.customer_cidrs and name not in old.customer_cidrs
    }
    moved = Renames(customers)
    were = {moved.member(slot.member) for slot in old.slots} | {moved.member(name) for name in old.released}
    members = {former: name for former, name in new.renames.members.items() if former in were and name not in were}
    return Renames(customers, members)


def _rename(ways: dict[Pair, Way], names: Renames) -> dict[Pair, Way]:
    """The same flows under the members' new names; otherwise a rename would end them all and begin others."""
    if names == Renames():
        return ways
    labels = {member.label: names.member(member).label for pair in ways for member in pair}
    return {
        (names.member(sender), names.member(receiver)): replace(
            way, hops=tuple(hop.renamed(labels) for hop in way.hops)
        )
        for (sender, receiver), way in ways.items()
    }


def _moved(old: PodPlan | None, new: PodPlan, names: Renames) -> frozenset[MemberName]:
    was = {} if old is None else {names.member(slot.member): slot for slot in old.slots}
    now = {slot.member: slot for slot in new.slots}

    def addresses(slot: SlotPlan | None) -> tuple[str, str, str] | None:
        return None if slot is None else (slot.real, slot.nat_vm1, slot.nat_vm2)

    return frozenset(
        member for member in was.keys() | now.keys() if addresses(was.get(member)) != addresses(now.get(member))
    )


def _routes(old: PodPlan, new: PodPlan, names: Renames) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """A neighbour that comes or goes is left out: it has all of them to add, or to take out."""
    was = {names.realm(realm): destinations for realm, destinations in old.neighbours.items()}
    return {
        realm: (
            tuple(one for one in now if one not in was[realm]),
            tuple(one for one in was[realm] if one not in now),
        )
        for realm, now in new.neighbours.items()
        if realm in was and set(was[realm]) != set(now)
    }


# --- slots -----------------------------------------------------------------------------------------------------------


def _slot_changes(old: PodPlan | None, new: PodPlan, names: Renames) -> dict[str, tuple[SlotChange, ...]]:
    was = _pairs(old, names)
    kept = {} if old is None else {names.member(name): pair for name, pair in old.released.items()}
    now = _pairs(new, Renames())
    # A server and a host may share one pair: it is free when nobody has it and nobody's is kept.
    in_use = Counter([*now.values(), *new.released.values()])
    left = {name: pair for name, pair in {**kept, **was}.items() if in_use[pair] == 0}
    return {
        "taken": _changes({n: p for n, p in now.items() if was.get(n) != p and kept.get(n) != p}),
        "returned": _changes({n: p for n, p in now.items() if n not in was and kept.get(n) == p}),
        "released": _changes({n: p for n, p in new.released.items() if kept.get(n) != p}),
        "freed": _changes(left),
    }


def _pairs(plan: PodPlan | None, names: Renames) -> dict[MemberName, tuple[str, str]]:
    slots = () if plan is None else plan.slots
    return {names.member(slot.member): (slot.nat_vm1, slot.nat_vm2) for slot in slots}


def _changes(pairs: dict[MemberName, tuple[str, str]]) -> tuple[SlotChange, ...]:
    return tuple(SlotChange(member=member, nat_vm1=pair[0], nat_vm2=pair[1]) for member, pair in sorted(pairs.items()))
