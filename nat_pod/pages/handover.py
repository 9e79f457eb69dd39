"""`handover`: what a neighbour's own engineer has to know and to set up; `handover_page.py` writes it as a page.

A neighbour is a customer or management.  The tracer says which addresses the far end sees, on the network that
`expected.py` describes.  A sheet that would promise what the rules do not deliver is not written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from netaddr import IPNetwork

from nat_pod.config.services import Services
from nat_pod.errors import NatPodError, excerpt
from nat_pod.names import MANAGEMENT, VROUTER, MemberName, natural
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.plan.name_views import name_views
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology, security_rule
from nat_pod.trace.flows import flow_between, sample
from nat_pod.trace.topology import SecurityRule
from nat_pod.trace.walk import Packet, Tracer

_OCID = re.compile(r"ocid1\.[a-z0-9]+\.[A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Far:
    """Somebody on the other side.

    `address` is where this side calls it, None when nobody here may.  `seen_as` is the source that its own packets have
    when they arrive here, None when it may call nobody here.  `calls` and `called_by` are members on this side.
    """

    member: MemberName
    address: str | None
    seen_as: str | None
    calls: tuple[MemberName, ...]
    called_by: tuple[MemberName, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """A member of the neighbour: its own address, the one that the other side calls, and the one that it sees."""

    member: MemberName
    real: str
    called_at: str
    seen_as: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """Something to try: who calls which address, what passes, and what the far end sees as the source."""

    sender: MemberName
    receiver: MemberName
    address: str
    seen_as: str
    services: Services


@dataclass(frozen=True, kw_only=True, slots=True)
class NamesInDns:
    """The zone in OCI's private DNS that has names for the far side, one of them, and the OCID of its view if known."""

    zone: str
    example: str
    view_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """All of the page.

    `cidrs`: its networks.
    `ocid`: for a customer that of the POD's LPG, for management that of the vRouter's subnet; None without the
    stack's outputs. `deployed`: whether the outputs are those of this very plan. `peer_id`: the customer's LPG,
    when the POD asks for the peering. `pod` is the POD's range, and `vcn` its VCN's: in a routed POD a small part
    of it, where the NAT VMs are. `passes`: what the policy says of its flows, who opens, to whom, and what.
    `vrouter`: the floating IP in the POD, and the gateway of its subnet there. `names`: None where the stack file
    has no `names`, or none for this neighbour.
    """

    stack: str
    realm: str
    cidrs: tuple[str, ...]
    pod: str
    vcn: str
    passes: tuple[tuple[str, str, str], ...]
    destinations: tuple[str, ...]
    security: tuple[SecurityRule, ...]
    policies: tuple[tuple[str, tuple[str, ...]], ...]
    far: tuple[Far, ...]
    near: tuple[Near, ...]
    attempts: tuple[Attempt, ...]
    peer_id: str | None
    vrouter: tuple[str, str]
    vrouter_subnet: str
    names: NamesInDns | None = None
    ocid: str | None = None
    deployed: bool | None = None

    @property
    def target(self) -> str:
        """Where the neighbour's route rules lead."""
        if self.realm == MANAGEMENT:
            return "the vRouter's floating private IP in the management VCN"
        return "your LPG to the POD"


def handover(plan: PodPlan, stack: str, realm: str) -> Sheet:
    """The sheet for a customer, or for `management`.

    Raises NatPodError for a name that is not a neighbour of this POD.
    """
    if realm not in plan.realms:
        known = ", ".join(plan.realms)
        raise NatPodError(f"{realm}: is not a neighbour of POD {stack}; its neighbours are {known}")
    near = _listed(slot for slot in plan.slots if slot.member.realm == realm)
    far = _listed(plan.hosts if realm == MANAGEMENT else plan.servers)
    network = IPNetwork(next(subnet.cidr for subnet in plan.subnets if subnet.key == VROUTER))
    sees = _Seen(plan)
    near_sheet = tuple(_near(sees, slot, far) for slot in near)
    far_sheet = tuple(_far(sees, slot, near) for slot in far)
    lpg = next((lpg for lpg in plan.lpgs if lpg.customer == realm), None)
    peer_id = None if lpg is None else lpg.peer_id
    return Sheet(
        stack=stack,
        realm=realm,
        cidrs=plan.realms[realm],
        pod=plan.cidr,
        vcn=plan.vcn_cidr,
        destinations=plan.neighbours[realm],
        security=_security(plan, realm),
        policies=_policies(realm, pod_asks=peer_id is not None),
        far=far_sheet,
        near=near_sheet,
        attempts=_attempts(plan, near_sheet, far_sheet),
        passes=_passes(plan, realm),
        peer_id=peer_id,
        vrouter=(plan.vrouter_ip, str(network[1])),
        vrouter_subnet=str(network),
        names=next(
            (
                NamesInDns(zone=view.zone, example=view.records[0].domain)
                for view in name_views(plan)
                if realm in view.realms
            ),
            None,
        ),
    )


def _listed(slots: Iterable[SlotPlan]) -> list[SlotPlan]:
    return sorted(slots, key=lambda slot: natural(slot.member))


class _Seen:
    """Who sees whom as what, traced through the compiled rules."""

    def __init__(self, plan: PodPlan) -> None:
        self._plan = plan
        self._tracer = Tracer(expected_topology(plan))

    def may_call(self, sender: SlotPlan, receiver: SlotPlan) -> bool:
        """Whether the stack file declares the flow."""
        return receiver.member in self._plan.access.reach(sender.member)

    def source(self, sender: SlotPlan, receivers: Sequence[SlotPlan]) -> str | None:
        """The source of a member's packets at the far end.  All far ends see the same, so the first one is traced."""
        if not receivers:
            return None
        flow = flow_between(sender, receivers[0])
        protocol, port = sample(self._plan.access.services(sender.member, receivers[0].member))
        packet = Packet(src=flow.source, dst=flow.destination, protocol=protocol, dport=port or 0)
        traced = self._tracer.trace(flow.sender, packet, flow.receiver)
        if traced.disposition is not Disposition.DELIVERED:
            raise NatPodError(
                f"no page was written: the rules do not deliver {flow.sender} to {flow.receiver}: "
                f"{traced.disposition}: {traced.why}; see python -m nat_pod trace"
            )
        return traced.request.hops[-1].src


def _near(sees: _Seen, slot: SlotPlan, far: Sequence[SlotPlan]) -> Near:
    return Near(
        member=slot.member,
        real=slot.real,
        called_at=slot.called,
        seen_as=sees.source(slot, [other for other in far if sees.may_call(slot, other)]),
    )


def _far(sees: _Seen, slot: SlotPlan, near: Sequence[SlotPlan]) -> Far:
    calls = [other for other in near if sees.may_call(slot, other)]
    called_by = [other for other in near if sees.may_call(other, slot)]
    return Far(
        member=slot.member,
        address=slot.called if called_by else None,
        seen_as=sees.source(slot, calls),
        calls=tuple(other.member for other in calls),
        called_by=tuple(other.member for other in called_by),
    )


def _security(plan: PodPlan, realm: str) -> tuple[SecurityRule, ...]:
    """Stateful, as people write them, by the ranges of the route rules.

    Every address by which the other side is called or seen lies in these ranges.  The vRouter forwards packets, so its
    VNIC in the management VCN also meets packets of the servers.
    """
    others = "customers' hosts" if realm == MANAGEMENT else "servers"
    peers = [(cidr, f"calls from the {others}", f"calls to the {others}") for cidr in plan.neighbours[realm]]
    if realm == MANAGEMENT:
        at = "at the vRouter's VNIC:"
        peers += [(cidr, f"{at} servers to the POD", f"{at} the POD to servers") for cidr in plan.management_cidrs]
    rules = []
    for cidr, incoming, outgoing in peers:
        rules.append(SecurityRule(direction="INGRESS", protocol="all", peer=cidr, description=incoming))
        rules.append(SecurityRule(direction="EGRESS", protocol="all", peer=cidr, description=outgoing))
    path_mtu = next(rule for rule in plan.security[VROUTER] if rule.icmp_type is not None)
    return (*rules, replace(security_rule(path_mtu), stateless=False))


def _passes(plan: PodPlan, realm: str) -> tuple[tuple[str, str, str], ...]:
    entries = [entry for entry in plan.access.entries if realm in (entry.sender.realm, entry.receiver.realm)]
    return tuple((str(entry.sender), str(entry.receiver), str(entry.allow)) for entry in entries)


def _attempts(plan: PodPlan, near: Sequence[Near], far: Sequence[Far]) -> tuple[Attempt, ...]:
    """One call in each direction in which a call is allowed."""
    mine = {member.member: member for member in near}
    out = [(mine[other.called_by[0]], other) for other in far if other.called_by]
    back = [(other, mine[other.calls[0]]) for other in far if other.calls]
    attempts = [(one.member, two.member, two.address, one.seen_as) for one, two in out[:1]]
    attempts += [(two.member, one.member, one.called_at, two.seen_as) for two, one in back[:1]]
    return tuple(
        Attempt(
            sender=sender,
            receiver=receiver,
            address=address,
            seen_as=seen_as,
            services=plan.access.services(sender, receiver),
        )
        for sender, receiver, address, seen_as in attempts
        if address is not None and seen_as is not None
    )


def _policies(realm: str, *, pod_asks: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The neighbour's own IAM statements, by case.  docs/deploy.md has those of both sides."""
    if realm == MANAGEMENT:
        return (
            (
                "for the vRouter's VNIC in the POD's subnet",
                (
                    "Allow group vrouter-owners to use subnets in compartment pods",
                    "Allow group vrouter-owners to manage vnics in compartment pods",
                    "Allow group vrouter-owners to manage private-ips in compartment pods",
                ),
            ),
        )
    asks, its_compartment, other = f"{realm}-network", realm, "pods"
    if pod_asks:
        asks, its_compartment, other = "nat-pod-deployers", "pods", realm
    same = (
        f"Allow group {asks} to manage local-peering-from in compartment {its_compartment}",
        f"Allow group {asks} to manage local-peering-to in compartment {other}",
        f"Allow group {asks} to inspect vcns in compartment {other}",
        f"Allow group {asks} to inspect local-peering-gateways in compartment {other}",
    )
    if pod_asks:
        own: tuple[str, ...] = (
            "Define tenancy isv as ocid1.tenancy.oc1..isv",
            f"Define group {asks} as ocid1.group.oc1..{asks}",
            f"Admit group {asks} of tenancy isv to manage local-peering-to in compartment {realm}",
            f"Admit group {asks} of tenancy isv to associate local-peering-gateways in tenancy isv "
            f"with local-peering-gateways in compartment {realm}",
        )
    else:
        own = (
            "Define tenancy isv as ocid1.tenancy.oc1..isv",
            f"Allow group {asks} to manage local-peering-from in compartment {realm}",
            f"Endorse group {asks} to manage local-peering-to in tenancy isv",
            f"Endorse group {asks} to associate local-peering-gateways in compartment {realm} "
            "with local-peering-gateways in tenancy isv",
        )
    return (("in the same tenancy as the POD", same), ("in a tenancy of your own (your side)", own))


# --- the stack's outputs ---------------------------------------------------------------------------------------------


def with_outputs(sheet: Sheet, plan: PodPlan, outputs: Mapping[str, object], source: str) -> Sheet:
    """The sheet with the OCIDs of the deployed POD.

    outputs: what `pulumi stack output --json` prints.  source: the file's name, for messages.
    Raises NatPodError for outputs without those OCIDs.
    """
    value = _ocid_at(outputs, ("vrouterSubnetId",) if sheet.realm == MANAGEMENT else ("lpgIds", sheet.realm), source)
    names = sheet.names
    if names is not None:
        names = replace(names, view_id=_ocid_at(outputs, ("nameViews", sheet.realm), source))
    generations = {vm.key: vm.generation for vm in plan.vms}
    return replace(sheet, ocid=value, names=names, deployed=outputs.get("generations") == generations)


def _ocid_at(outputs: Mapping[str, object], place: tuple[str, ...], source: str) -> str:
    value: object = outputs
    for key in place:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, str) or not _OCID.fullmatch(value):
        raise NatPodError(
            f"--outputs {excerpt(source)}: has no OCID at {'.'.join(place)}; give the output of "
            "`pulumi stack output --json` of a POD that was deployed with it"
        )
    return value
