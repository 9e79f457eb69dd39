"""`move`: the steps from a POD of the article's delivery to the routed one in its place; `move_page.py` writes them.

Both stand side by side, with the same addresses.  A connection that is open passes through either of them at any time,
one way by this and the other way by that.  A new TCP connection does not: the NAT VM that gets the answer has to have
seen the call.  So a customer and management switch together, for that customer's hosts alone, and nobody else is
touched: management's vRouter leads these hosts' addresses to the new POD by routes of their own, which are longer
prefixes than the one for the whole range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from nat_pod.config.addressing import overlap
from nat_pod.config.aliases import VcnLayout
from nat_pod.config.model import PodConfig
from nat_pod.config.protect import Protect
from nat_pod.config.routed import RoutedConfig
from nat_pod.config.services import ICMP
from nat_pod.config.source_nat import SourceNat
from nat_pod.names import INNER, MANAGEMENT, NAT_VM2, MemberName, natural
from nat_pod.plan.model import PodPlan
from nat_pod.trace.diff import delivered
from nat_pod.trace.flows import declared_flows

NOT_LOOKED_AT = (
    "how many LPGs the customers' VCNs may still have: each needs a second one for a while",
    "the neighbours' route tables and security rules",
    "whether the old POD's NAT VMs run this release's bootstrap",
    "how many load balancers the region has: those of other stacks count against its limit, too",
)
"""What can stop a move and is in no stack file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """A flow whose open connections end in a step: the source that its receiver sees before and after it."""

    sender: MemberName
    receiver: MemberName
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step: who acts, what they do in that order, how to see that it worked, and how to take it back.

    `customer` is the one that switches in it, with the vRouter's routes for its hosts; None in every other step.
    """

    title: str
    who: tuple[str, ...]
    do: tuple[str, ...]
    see: tuple[str, ...]
    back: tuple[str, ...]
    customer: str | None = None
    routes: tuple[str, ...] = ()
    ends: tuple[Ending, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveSheet:
    """The whole way.  `flows`: how many flows the old POD delivers; those that no step ends keep their connections."""

    old: str
    new: str
    policy: SourceNat
    flows: int
    steps: tuple[Step, ...]

    @property
    def ends(self) -> tuple[Ending, ...]:
        """The flows whose open connections end, in the order of the steps."""
        return tuple(ending for step in self.steps for ending in step.ends)


def move_sheet(old: PodConfig, plan: PodPlan, new: RoutedConfig, stacks: tuple[str, str]) -> MoveSheet:
    """The steps from `old`, whose plan is `plan`, to `new`.  stacks: their names."""
    flows = _flows(plan, new)
    names = _Names(old, plan, new, *stacks)
    return MoveSheet(
        old=stacks[0],
        new=stacks[1],
        policy=old.source_nat,
        flows=len(flows),
        steps=(
            names.bring_up(),
            names.vrouter(),
            names.peerings(),
            *(names.switch(name, flows) for name in names.order),
            names.rest(),
            names.destroy(),
        ),
    )


def host_routes(plan: PodPlan, new: RoutedConfig, customer: str) -> tuple[str, ...]:
    """The fewest networks that have every alias of a customer's hosts, and no address of anybody else.

    Anybody else: other members, released aliases, the old POD's NAT VMs and the new VCN.  Addresses that nobody has
    may be in them.
    """
    own = {int(alias) for name, alias in new.book.items() if name.realm == customer}
    others = {int(alias) for name, alias in new.book.items() if name.realm != customer}
    others |= {int(alias) for alias in new.released.values()}
    others |= {int(IPAddress(vnic.primary)) for vnic in plan.vnics_on(NAT_VM2)}
    found = [
        str(network)
        for destination in plan.neighbours[MANAGEMENT]
        for network in _covering(IPNetwork(destination), own, others - own, new.vcn)
    ]
    return tuple(found)


def _covering(network: IPNetwork, own: set[int], others: set[int], apart: IPNetwork) -> Iterator[IPNetwork]:
    inside = {address for address in own if network.first <= address <= network.last}
    if not inside:
        return
    strangers = {address for address in others if network.first <= address <= network.last}
    if not strangers and not overlap(network, apart):
        yield network
        return
    for half in network.subnet(network.prefixlen + 1):
        yield from _covering(half, inside, strangers, apart)


def _flows(plan: PodPlan, new: RoutedConfig) -> dict[tuple[MemberName, MemberName], Ending]:
    """The flows that the old POD delivers, with the source that the receiver sees in it and in the new one.

    In the new one that is the sender's alias, whoever calls.
    """
    traced, declared = delivered(plan), {(flow.sender, flow.receiver) for flow in declared_flows(plan)}
    return {
        (sender, receiver): Ending(sender=sender, receiver=receiver, before=delivery.seen, after=str(new.book[sender]))
        for (sender, receiver), delivery in traced.items()
        if (sender, receiver) in declared and sender in new.book and receiver in new.book
    }


@dataclass(frozen=True, slots=True)
class _Names:
    """What every step names."""

    old: PodConfig
    plan: PodPlan
    new: RoutedConfig
    old_stack: str
    new_stack: str

    @property
    def _gateway(self) -> str:
        return f"the VNIC in {self.new_stack}, gateway {IPAddress(self._vrouter.first + 1)}"

    @property
    def _vrouter(self) -> IPNetwork:
        return VcnLayout(self.new.vcn).vrouter

    def bring_up(self) -> Step:
        old, new = self.old_stack, self.new_stack
        peers = [
            f"{customer.name}'s LPG has its peer: write the peerId of a second LPG of its VCN into Pulumi.{new}.yaml, "
            "or let the customer ask for the peering."
            for customer in self.old.customers
            if customer.peer_id is not None
        ]
        return Step(
            title=f"Bring up POD {new}; {old} stays as it is",
            who=("you",),
            do=(
                f"pulumi preview --stack {old} must report no changes. A NAT VM with an older bootstrap drops "
                "connections that come back to it, so no step could be taken back.",
                *peers,
                f"Pulumi.{new}.yaml has the shape of {old}'s NAT VMs, {self.new.nat_vm.shape}, which had to have a "
                "VNIC for every 29 members. The new ones have one VNIC each: choose a small shape.",
                "python -m nat_pod check",
                f"pulumi up --stack {new}",
            ),
            see=(f"python -m nat_pod status {new} has no finding",),
            back=(
                f"in Pulumi.{new}.yaml write protect: nothing; then pulumi destroy --run-program --stack {new}"
                if self.new.protect is not Protect.NOTHING
                else f"pulumi destroy --run-program --stack {new}",
            ),
        )

    def vrouter(self) -> Step:
        new, vcn = self.new_stack, self.new.vcn
        do = [
            f"Attach a VNIC of each vRouter to the subnet {self._vrouter} of {new}, with its source/destination check "
            f"skipped; the active one has {self.new.management.vrouter} there.",
            f"In its operating system, route {vcn}, {new}'s own range, by {self._gateway}. No other route changes.",
        ]
        if not any(vcn in IPNetwork(destination) for destination in self.plan.neighbours[MANAGEMENT]):
            do.append(f"In management's VCN, route {vcn} to the vRouter.")
        return Step(
            title=f"Give the vRouter a VNIC in {new}",
            who=(MANAGEMENT,),
            do=tuple(do),
            see=(f"the vRouter reaches the first NAT VM2 of {new}: ssh to {VcnLayout(vcn).vm(INNER, 0)} answers",),
            back=("delete the route, then detach the VNICs",),
        )

    @property
    def owner(self) -> MemberName | None:
        """The host whose alias is the address behind which `masquerade` hides all others; None where it hides nobody.

        The vRouter's routes for it lead there what is for every customer that has not switched yet.
        """
        if not self.old.source_nat.shares_addresses:
            return None
        shared = self.plan.primary(NAT_VM2)
        return next(
            (name for name, alias in self.new.book.items() if str(alias) == shared and not name.is_server), None
        )

    @property
    def order(self) -> list[str]:
        """The customers as they switch: the one with that host behind all others."""
        last = None if self.owner is None else self.owner.realm
        return sorted(
            (customer.name for customer in self.new.customers), key=lambda name: (name == last, natural(name))
        )

    def peerings(self) -> Step:
        do = [
            f"Each makes a second LPG in its VCN and peers it with that of {self.new_stack} (pulumi stack output "
            f"lpgIds --stack {self.new_stack}). No route rule leads to it yet."
        ]
        seen = {ending.before for ending in _flows(self.plan, self.new).values() if ending.sender.is_server}
        unknown = sorted({str(alias) for name, alias in self.new.book.items() if name.is_server} - seen, key=natural)
        if self.old.source_nat.shares_addresses and unknown:
            do.append(
                "Its security rules let the servers in under their own addresses, too; until now all came as the "
                f"address of NAT VM1: {', '.join(unknown)}"
            )
        return Step(
            title="A second peering for every customer",
            who=tuple(sorted((customer.name for customer in self.new.customers), key=natural)),
            do=tuple(do),
            see=("both LPGs of each peering show Peered",),
            back=("delete the LPG",),
        )

    def switch(self, customer: str, flows: dict[tuple[MemberName, MemberName], Ending]) -> Step:
        old, new = self.old_stack, self.new_stack
        routes = host_routes(self.plan, self.new, customer)
        do = [
            f"{customer}, in its route tables: {', '.join(self.plan.neighbours[customer])} to the LPG of {new} instead "
            f"of that of {old}."
        ]
        if routes:
            do.append(
                f"{MANAGEMENT}, within seconds, in the vRouter's operating system: route {', '.join(routes)} by "
                f"{self._gateway}. In between, open connections go on and new TCP connections wait for their next try."
            )
        if self.owner is not None and self.owner.realm == customer and len(self.new.customers) > 1:
            do.append(
                f"Do this step only when all other customers have switched: until then management's answers to them go "
                f"to {self.new.book[self.owner]}, which is also the address of {self.owner}."
            )
        return Step(
            title=f"{customer} switches",
            who=(customer, MANAGEMENT) if routes else (customer,),
            do=tuple(do),
            see=(
                *self._tries(customer),
                f"python -m nat_pod status {new} counts flows of {customer}'s hosts, and in status {old} their counts "
                "no longer grow",
            ),
            back=(f"both changes back, in the same order: {customer}'s rules, then the vRouter's routes",),
            customer=customer,
            routes=routes,
            ends=tuple(
                ending
                for ending in flows.values()
                if customer in (ending.sender.realm, ending.receiver.realm) and ending.before != ending.after
            ),
        )

    def _tries(self, customer: str) -> Iterable[str]:
        """A call each way, of a pair that may."""
        pinged = [flow for flow in declared_flows(self.plan) if flow.protocol in (None, ICMP)]
        flows = [flow for flow in pinged if flow.receiver is not None]
        for mine in (True, False):
            for flow in flows:
                realm = flow.sender.realm if mine else flow.receiver.realm if flow.receiver is not None else ""
                if realm == customer:
                    yield f"on {flow.sender}: ping {flow.destination} ({flow.receiver}) is answered"
                    break

    def rest(self) -> Step:
        range_, old = self.old.cidr, self.old_stack
        return Step(
            title="The rest of the range, management last",
            who=(MANAGEMENT,),
            do=(
                f"In the vRouter's operating system, route {range_} by {self._gateway}.",
                "Then delete the routes of the customers' steps: this route covers them.",
            ),
            see=(f"python -m nat_pod status {old}, twice: no member's counts grow",),
            back=(f"add the customers' routes again, then route {range_} by the VNIC in {old}",),
        )

    def destroy(self) -> Step:
        old, new = self.old_stack, self.new_stack
        return Step(
            title=f"Destroy {old}",
            who=("customers", MANAGEMENT, "you"),
            do=(
                f"Wait until nobody will want to go back, say a day. Each customer deletes its LPG to {old}.",
                f"{MANAGEMENT} detaches the vRouters' VNICs from {old}'s subnet {self.old.layout.vrouter}.",
                f"pulumi destroy --stack {old}"
                if self.old.protect is Protect.NOTHING
                else f"In Pulumi.{old}.yaml write protect: nothing; then pulumi destroy --run-program --stack {old}",
                f"Delete Pulumi.{old}.yaml, and the line movesFrom of Pulumi.{new}.yaml.",
            ),
            see=(f"python -m nat_pod check: Pulumi.{new}.yaml is fine, and Pulumi.{old}.yaml is not listed",),
            back=(f"none: this is the last step, and {old} is gone",),
        )
