"""What an address is in a POD: whose, and to whom.

One address may be several things: 198.18.0.2 of the article's POD is NAT VM1's own, what customers call a server by,
and a host's between the two NAT VMs.  A real address may be several members', since that is what a POD is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from netaddr import IPAddress, IPNetwork

from nat_pod.names import MANAGEMENT, VROUTER, Side
from nat_pod.plan.model import PodPlan, SlotPlan


class Use(StrEnum):
    """What an address is."""

    CALLED = "called"
    """Others call a member by it."""
    BETWEEN = "between"
    """A member's, on the wire between the two NAT VMs alone."""
    REAL = "real"
    """A member's own, which its owner gave it."""
    SOURCE = "source"
    """Under `masquerade`: the source of every packet from the other side."""
    NAT_VM = "natVm"
    """A NAT VM's own: the primary address of a VNIC."""
    BALANCER = "balancer"
    VROUTER = "vrouter"
    RELEASED = "released"
    """A member's that is gone; kept back."""
    NETWORK = "network"
    """In the network of a customer or of management, and no member's."""
    FREE = "free"
    """In the POD's range, and nobody's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """One thing that an address is.

    who: the member, NAT VM, role or network whose it is; "" for nobody.  others: who calls it so (CALLED), who sees it
    (SOURCE).  seen: whether those that call a member so also see it so.  also: the
    member's other address: its real one, or for a real address the one at which it is reached.
    """

    address: str
    use: Use
    who: str
    others: tuple[str, ...] = ()
    seen: bool = False
    also: str = ""


def holders(plan: PodPlan, asked: IPNetwork) -> list[Holder]:
    """Everything that an address is, or the addresses of a network are, in the order of the addresses.

    A network's free addresses, and those of its members' networks that are nobody's, are not listed: an address is
    asked for as a /32.
    """
    found = [holder for holder in _all(plan) if IPAddress(holder.address) in asked]
    if asked.prefixlen == 32 and not found:
        found = list(_nobodys(plan, asked.ip))
    order = list(Use)
    return sorted(found, key=lambda holder: (int(IPAddress(holder.address)), order.index(holder.use), holder.who))


def _all(plan: PodPlan) -> Iterator[Holder]:
    for slot in plan.slots:
        yield from _of_member(plan, slot)
    yield from _sources(plan)
    for vm in plan.vms:
        for vnic in vm.vnics:
            yield Holder(address=vnic.primary, use=Use.NAT_VM, who=vm.key)
    for balancer in plan.balancers:
        yield Holder(address=balancer.address, use=Use.BALANCER, who=str(balancer.role))
    yield Holder(address=plan.vrouter_ip, use=Use.VROUTER, who=VROUTER)
    for member, addresses in plan.released.items():
        for address in dict.fromkeys(addresses):
            yield Holder(address=address, use=Use.RELEASED, who=str(member))


def _of_member(plan: PodPlan, slot: SlotPlan) -> Iterator[Holder]:
    name, by, between = str(slot.member), slot.called, slot.address(slot.member.side)
    seen = not plan.source_nat.shares_addresses
    others = plan.access.callers(slot.member) if slot.member.is_server else (MANAGEMENT,)
    yield Holder(address=by, use=Use.CALLED, who=name, others=others, seen=seen, also=slot.real)
    if between != by:
        yield Holder(address=between, use=Use.BETWEEN, who=name, also=slot.real)
    yield Holder(address=slot.real, use=Use.REAL, who=name, others=others, also=by)


def _sources(plan: PodPlan) -> Iterator[Holder]:
    if plan.source_nat.shares_addresses:
        customers = tuple(plan.customer_cidrs)
        yield Holder(address=plan.primary(Side.NAT_VM1), use=Use.SOURCE, who=MANAGEMENT, others=customers)
        yield Holder(address=plan.primary(Side.NAT_VM2), use=Use.SOURCE, who="customers", others=(MANAGEMENT,))


def _nobodys(plan: PodPlan, address: IPAddress) -> Iterator[Holder]:
    if address in IPNetwork(plan.cidr):
        yield Holder(address=str(address), use=Use.FREE, who="")
    for realm, cidrs in plan.realms.items():
        for cidr in cidrs:
            if address in IPNetwork(cidr):
                yield Holder(address=str(address), use=Use.NETWORK, who=realm, also=cidr)
