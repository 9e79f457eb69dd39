"""Names for the addresses at which members are called, and in which view of OCI's private DNS each name is.

A member has one such address: customers call a server at its NAT VM1 address, management calls a host at its NAT VM2
address.  So its name can be the same everywhere: vm1.customer1, mgmt.management.

What differs is who may know a name: a neighbour's view has those whom it may call, and nobody else.  Management has
one.  The customers that may call every server share one, and each other customer has its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from nat_pod.names import MANAGEMENT, MemberName, servers_first
from nat_pod.plan.model import PodPlan

TTL = 300
"""Seconds that resolvers keep an answer: a member's address does not change, but a member may go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """An A record: the member, its full name without the last dot, and its address."""

    member: MemberName
    domain: str
    address: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NameViewPlan:
    """A private view with its one zone.

    `key` is its identity: another key makes another view, and VCNs that attached this one lose the names.
    `realms`: the neighbours it is for.
    `formerly`: the key that it had before its customer was renamed.
    """

    key: str
    zone: str
    realms: tuple[str, ...]
    records: tuple[Record, ...]
    formerly: str | None = None


def host_name(member: MemberName) -> str:
    """A member's name in a zone: vm1.customer1."""
    return f"{member.short}.{member.realm}"


def whom_it_calls(plan: PodPlan, realm: str) -> tuple[tuple[MemberName, str], ...]:
    """Those whom somebody in a neighbour's network may call, and the address at which they do."""
    if not any(slot.member.realm == realm for slot in plan.slots):
        return ()
    called = plan.hosts if realm == MANAGEMENT else plan.servers
    found = [
        (slot.member, slot.called)
        for slot in called
        if realm == MANAGEMENT or realm in plan.access.callers(slot.member)
    ]
    return tuple(sorted(found, key=lambda one: servers_first(one[0])))


def name_views(plan: PodPlan) -> tuple[NameViewPlan, ...]:
    """The views of a POD; none without `names`.  Nobody gets one in which there would be no name."""
    if plan.zone is None:
        return ()
    zone = plan.zone
    formerly = {lpg.customer: lpg.formerly for lpg in plan.lpgs}
    known = {realm: whom_it_calls(plan, realm) for realm in plan.realms}
    everybody = [realm for realm in plan.customer_cidrs if known[realm] and len(known[realm]) == len(plan.servers)]
    own = [realm for realm in plan.customer_cidrs if known[realm] and realm not in everybody]

    def view(key: str, *realms: str, former: str | None = None) -> NameViewPlan:
        records = tuple(
            Record(member=member, domain=f"{host_name(member)}.{zone}", address=address)
            for member, address in known[realms[0]]
        )
        return NameViewPlan(key=f"names-{key}", zone=zone, realms=realms, records=records, formerly=former)

    views = [view(MANAGEMENT, MANAGEMENT)] if known[MANAGEMENT] else []
    views += [view("customers", *everybody)] if everybody else []
    for realm in own:
        former = formerly[realm]
        views.append(view(f"of-{realm}", realm, former=None if former is None else f"names-of-{former}"))
    return tuple(views)
