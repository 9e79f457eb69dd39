"""What a POD's neighbours are, as plain values: what the program in `neighbours/` makes, in a lab or in a tenancy.

Per customer a VCN with machines, and management's with the vRouter.  Addresses, CIDRs and the routes to add come from
the plan.  Every network also has a stranger, a host that is in no address book.  Nothing may connect to it, and it can
forge sources: the source/destination check of its VNIC is off, as any owner can switch it off.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from netaddr import IPNetwork

from nat_pod.config.addressing import free_addresses
from nat_pod.files import TOP_LEVEL
from nat_pod.names import MANAGEMENT, VROUTER, MemberName
from nat_pod.plan.model import PodPlan
from nat_pod.trace.expected import neighbour_blocks, vrouter_addresses
from nat_pod.trace.flows import stranger_addresses, strangers_in
from nat_pod.trace.vcn_blocks import block_with, let_in, subnet_names

PROGRAM, PROJECT = TOP_LEVEL / "neighbours", "nat-pod-neighbours"
"""The folder of the Pulumi program that makes them, and of what their VMs boot; and the program's project."""

ROLE, ROUTES = "role", "routes"
"""Freeform tags of the vRouter, whose guest forwards: that it is one, and what it routes by its VNIC in the POD."""

TAG = PROJECT
"""Freeform tag of everything that a neighbour has: the stack whose neighbours these are."""

Metadata = Mapping[str, Mapping[str, str]]
"""By machine: its metadata."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A shape of a VM; ocpus and memory_gbs for a flex one."""

    shape: str
    ocpus: int | None = None
    memory_gbs: int | None = None


LAB_SHAPE = Shape(shape="VM.Standard2.1")
"""Of a lab's neighbours: nobody pays for them, and two VNICs are what a vRouter needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A VM of a neighbour, in the subnet with this name."""

    name: str
    address: str
    subnet: str
    skips_source_dest_check: bool
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """A customer, or management.  subnets: by name, one over each CIDR block of its VCN.  inside: whom they let in.

    destinations: what its route table leads to the POD.  peer_id: of a customer whose LPG was there before the POD, its
    OCID.
    """

    name: str
    subnets: Mapping[str, str]
    inside: tuple[str, ...]
    destinations: tuple[str, ...]
    machines: tuple[Machine, ...]
    peer_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Vrouter:
    """The vRouter: its floating address in either VCN, and its own one in the POD's."""

    machine: Machine
    floating: str
    floating_in_pod: str
    own_in_pod: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """All neighbours of a POD."""

    stack: str
    compartment_id: str
    image_id: str
    shape: Shape
    pod_cidr: str
    defined_tags: Mapping[str, str]
    customers: tuple[Neighbour, ...]
    management: Neighbour
    vrouter: Vrouter

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Every VM."""
        networks = (*self.customers, self.management)
        return (*(machine for network in networks for machine in network.machines), self.vrouter.machine)

    def config(self, outputs: Mapping[str, Any], *, names: bool = False) -> dict[str, object]:
        """The program's configuration.  outputs: the POD's, of which its owner hands these out.

        names: whether the owners of VCNs attach the POD's private views, if it has some.
        """
        pod = {name: outputs[name] for name in ("lpgIds", "vrouterSubnetId")}
        pod["nameViews"] = outputs.get("nameViews", {}) if names else {}
        return {f"{PROJECT}:neighbours": self.document(), f"{PROJECT}:pod": pod}

    def document(self) -> dict[str, Any]:
        """What the program in `neighbours/` reads."""
        return {
            "compartmentId": self.compartment_id,
            "imageId": self.image_id,
            "shape": _without_none(
                {"shape": self.shape.shape, "ocpus": self.shape.ocpus, "memoryGbs": self.shape.memory_gbs}
            ),
            "podCidr": self.pod_cidr,
            "tags": {TAG: self.stack},
            "definedTags": dict(self.defined_tags),
            "customers": [{**_network(customer), "peerId": customer.peer_id} for customer in self.customers],
            "management": {
                **_network(self.management),
                "vrouter": {
                    "machine": _machine(self.vrouter.machine),
                    "floating": self.vrouter.floating,
                    "floatingInPod": self.vrouter.floating_in_pod,
                    "ownInPod": self.vrouter.own_in_pod,
                },
            },
        }


def neighbours_of(
    plan: PodPlan,
    stack: str,
    *,
    shape: Shape = LAB_SHAPE,
    only: Container[MemberName] | None = None,
    metadata: Metadata | None = None,
    route_everything: bool = False,
) -> Neighbours:
    """The neighbours of a POD.

    only: the members that get a machine; all of them without it.  metadata: by a machine's name.  route_everything:
    customers lead the POD's whole range to it, as any of them can, and not only what they were told to.
    """
    given = metadata or {}
    strangers = stranger_addresses(plan)
    floating, own = vrouter_addresses(plan)
    subnets = {
        realm: {name: block for block, name in subnet_names(realm, cidrs, neighbour_blocks(plan, realm)).items()}
        for realm, cidrs in plan.realms.items()
    }

    def machine(realm: str, name: str, address: str, *, skips: bool, tags: Mapping[str, str] | None = None) -> Machine:
        block = block_with(subnets[realm].values(), address)
        return Machine(
            name=name,
            address=address,
            subnet=next(subnet for subnet, cidr in subnets[realm].items() if cidr == block),
            skips_source_dest_check=skips,
            tags=tags or {},
            metadata=given.get(name, {}),
        )

    def network(name: str, peer_id: str | None = None) -> Neighbour:
        members = [slot for slot in plan.slots if slot.member.realm == name and (only is None or slot.member in only)]
        machines = [machine(name, slot.member, slot.real, skips=False) for slot in members]
        machines += [machine(name, one, strangers[one], skips=True) for one in strangers_in(strangers, name)]
        leads = (plan.cidr,) if route_everything and name != MANAGEMENT else plan.neighbours[name]
        # Of a network with only parts in the VCN, those in which a machine stands.
        used = {one.subnet for one in machines} | {router.subnet for router in [vrouter] if name == MANAGEMENT}
        kept = {key: block for key, block in subnets[name].items() if key in used or block in plan.realms[name]}
        return Neighbour(
            name=name,
            subnets=kept,
            inside=let_in(plan.realms[name], subnets[name].values()),
            destinations=leads,
            machines=tuple(machines),
            peer_id=peer_id,
        )

    vrouter = machine(MANAGEMENT, VROUTER, own, skips=True, tags={ROLE: VROUTER, ROUTES: plan.cidr})
    pod_subnet = next(subnet.cidr for subnet in plan.subnets if subnet.key == VROUTER)
    return Neighbours(
        stack=stack,
        compartment_id=plan.compartment_id,
        image_id=plan.image_id,
        shape=shape,
        pod_cidr=plan.cidr,
        defined_tags=plan.tags.defined,  # a tenancy may take nothing without them
        customers=tuple(network(lpg.customer, lpg.peer_id) for lpg in plan.lpgs),
        management=network(MANAGEMENT),
        vrouter=Vrouter(
            machine=vrouter,
            floating=floating,
            floating_in_pod=plan.vrouter_ip,
            own_in_pod=next(free_addresses(IPNetwork(pod_subnet), {plan.vrouter_ip})),
        ),
    )


def _network(one: Neighbour) -> dict[str, Any]:
    return {
        "name": one.name,
        "subnets": dict(one.subnets),
        "inside": list(one.inside),
        "destinations": list(one.destinations),
        "machines": [_machine(machine) for machine in one.machines],
    }


def _machine(one: Machine) -> dict[str, Any]:
    return {
        "name": one.name,
        "address": one.address,
        "subnet": one.subnet,
        "skipsSourceDestCheck": one.skips_source_dest_check,
        "tags": dict(one.tags),
        "metadata": dict(one.metadata),
    }


def _without_none(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}
