"""The POD's neighbours, set up in the simulated region as their owners would, by calls to the region.

Per customer a VCN with an LPG, a route table, a security list and a machine per host; the management VCN with its
servers and the vRouter.  Addresses, CIDRs and the routes to add come from the plan, OCIDs from the stack's outputs:
what an owner would be handed.  Every VCN also has a stranger, a host that is in no address book.
Nothing may connect to it, and it may forge: the source/destination check of its VNIC is off.

Order, as for a real POD: `before` (LPGs that the POD shall peer with), `pulumi up`, `build` (which attaches the
vRouter), `pulumi up` again (which adds NAT VM2's route to it).  `bring_up` does all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_never

from netaddr import IPNetwork

from nat_pod.config.addressing import free_addresses
from nat_pod.config.model import PodConfig
from nat_pod.config.routed import RoutedConfig
from nat_pod.config.stack_file import read_stack
from nat_pod.lab.engine.program import Deployment, deploy
from nat_pod.lab.region.inputs import Inputs
from nat_pod.lab.region.kinds import (
    INSTANCE,
    LPG,
    PRIVATE_IP,
    ROUTE_TABLE,
    SECURITY_LIST,
    SUBNET,
    VCN,
    VNIC_ATTACHMENT,
)
from nat_pod.lab.region.region import Region
from nat_pod.names import ANYWHERE, MANAGEMENT, VROUTER, MemberName
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.expected import vrouter_address
from nat_pod.trace.flows import stranger_addresses

ROLE, ROUTES = "role", "routes"
"""Freeform tags of the vRouter, whose guest forwards: that it is one, and what it routes by its VNIC in the POD."""

_HOST_SHAPE = "VM.Standard2.1"
_ROUTER_SHAPE = "VM.Standard2.4"


def stand_up(directory: Path, stack: str) -> tuple[Region, PodPlan, Deployment]:
    """A new region with the POD of a stack and its neighbours; the program runs in this process, under mocks."""
    plan, region = prepare(directory, stack)
    return region, plan, bring_up(plan, region, lambda: deploy(directory, stack, region))


def prepare(directory: Path, stack: str) -> tuple[PodPlan, Region]:
    """A stack's plan, and an empty region with the names and the limits that its file counts on."""
    settings = read_stack(directory, stack)
    config = settings.checked()
    region = Region(str(settings.config.get("oci:region", "uk-london-1")), lpg_limit=config.lpg_limit)
    match config:
        case RoutedConfig():
            region.balancer_limit = config.balancer_limit
        case PodConfig():
            pass  # it needs none
        case _ as never:
            assert_never(never)
    if config.nat_vm.availability_domain is not None:
        # The lab cannot know a tenancy's prefix, but a stack file that pins a domain has it.
        region.domain_prefix = config.nat_vm.availability_domain.split(":")[0]
    return plan_pod(config, stack), region


def bring_up(plan: PodPlan, region: Region, up: Callable[[], Deployment]) -> Deployment:
    """POD and neighbours in the order in which it happens on OCI.

    up: `pulumi up` against `region`.  The deployment returned is the second one's; it warns of nothing when the vRouter
    is in place.
    """
    before(plan, region)
    build(plan, region, up().outputs)
    return up()


def before(plan: PodPlan, region: Region) -> None:
    """What must be there before the POD: the LPGs of customers whose entry in the stack file has a `peerId`."""
    for lpg in plan.lpgs:
        if lpg.peer_id is not None and region.find(LPG, _lpg_name(lpg.customer)) is None:
            vcn = _vcn(plan, region, lpg.customer, plan.customer_cidrs[lpg.customer])
            region.create(
                LPG,
                {"compartmentId": plan.compartment_id, "vcnId": vcn, "displayName": _lpg_name(lpg.customer)},
                _lpg_name(lpg.customer),
                ocid=lpg.peer_id,
            )


def withdraw(plan: PodPlan, region: Region) -> None:
    """Take away the hosts and servers that the plan no longer has, or has at another address."""
    addresses = {str(slot.member): slot.real for slot in plan.slots}
    addresses |= {str(name): address for name, address in stranger_addresses(plan).items()}
    for instance in region.all(INSTANCE):
        name = instance.name
        if "/" in name and addresses.get(name) != region.read(instance.ocid)["privateIp"]:
            region.delete(instance.ocid)


def withdraw_customers(plan: PodPlan, region: Region) -> None:
    """Take away the networks of customers that the plan no longer has; the POD's LPGs to them are gone by now."""
    for lpg in region.all(LPG):
        customer = lpg.name.removesuffix("/lpg")
        if lpg.name == _lpg_name(customer) and customer not in plan.customer_cidrs:
            kinds = (SUBNET, ROUTE_TABLE, LPG, SECURITY_LIST, VCN)
            names = {kind: _lpg_name(customer) if kind == LPG else customer for kind in kinds}
            # The table's rules lead to the LPG, which stays as long as they do.
            table = region.find(ROUTE_TABLE, customer)
            if table is not None:
                region.update(table, {**region.get(table).inputs, "routeRules": []})
            for kind in kinds:
                found = region.find(kind, names[kind])
                if found is not None:
                    region.delete(found)


def build(plan: PodPlan, region: Region, outputs: dict[str, Any]) -> None:
    """Set up all neighbours.  outputs: the stack's.  Repeating it with another plan changes and adds in place."""
    for lpg in plan.lpgs:
        _customer(plan, region, lpg.customer, outputs["lpgIds"][lpg.customer])
    _management(plan, region, outputs["vrouterSubnetId"])
    for slot in plan.slots:
        _host(plan, region, slot.member, slot.real)
    for stranger, address in stranger_addresses(plan).items():
        if region.find(INSTANCE, stranger) is None:
            _host(plan, region, stranger, address, hostile=True)


def _customer(plan: PodPlan, region: Region, customer: str, pod_lpg: str) -> None:
    vcn = _vcn(plan, region, customer, plan.customer_cidrs[customer])
    lpg = region.find(LPG, _lpg_name(customer))
    if lpg is None:  # the usual case: the customer requests, the POD accepts
        lpg = _stand(region, LPG, plan, _lpg_name(customer), {"vcnId": vcn, "peerId": pod_lpg})
    rules = [_rule(destination, lpg) for destination in plan.neighbours[customer]]
    table = _stand(region, ROUTE_TABLE, plan, customer, {"vcnId": vcn, "routeRules": rules})
    _subnet(plan, region, customer, plan.customer_cidrs[customer], vcn, table)


def _management(plan: PodPlan, region: Region, vrouter_subnet: str) -> None:
    vcn = _vcn(plan, region, MANAGEMENT, plan.management_cidr)
    table = region.find(ROUTE_TABLE, MANAGEMENT) or _stand(region, ROUTE_TABLE, plan, MANAGEMENT, {"vcnId": vcn})
    subnet = _subnet(plan, region, MANAGEMENT, plan.management_cidr, vcn, table)
    floating = _vrouter(plan, region, subnet, vrouter_subnet)
    rules = [_rule(destination, floating) for destination in plan.neighbours[MANAGEMENT]]
    _stand(region, ROUTE_TABLE, plan, MANAGEMENT, {"vcnId": vcn, "routeRules": rules})


def _vrouter(plan: PodPlan, region: Region, subnet: str, pod_subnet: str) -> str:
    """The vRouter with a VNIC in each VCN; returns the OCID of its floating address in the management VCN.

    Both floating addresses are secondary private IPs, so that a pair of vRouters can pass them on.
    """
    floating, primary = _vrouter_addresses(plan)
    instance = _instance(plan, region, VROUTER, subnet, primary, router=True, skip_check=True)
    # Left to OCI, the VNIC's own address could be the floating one.
    pod_cidr = next(subnet.cidr for subnet in plan.subnets if subnet.key == VROUTER)
    own = next(free_addresses(IPNetwork(pod_cidr), {plan.vrouter_ip}))
    attachment = _stand(
        region,
        VNIC_ATTACHMENT,
        None,
        f"{VROUTER}-vnic-2",
        {"instanceId": instance, "createVnicDetails": _vnic(f"{VROUTER}-vnic-2", pod_subnet, own, skip_check=True)},
    )
    pod_vnic = region.read(attachment)["vnicId"]
    attached = region.invoke("oci:Core/getVnicAttachments:getVnicAttachments", {"instanceId": instance})
    primary_vnic = attached["vnicAttachments"][0]["vnicId"]
    _stand(region, PRIVATE_IP, None, "vrouter floating, POD", {"vnicId": pod_vnic, "ipAddress": plan.vrouter_ip})
    return _stand(
        region, PRIVATE_IP, None, "vrouter floating, management", {"vnicId": primary_vnic, "ipAddress": floating}
    )


def _vrouter_addresses(plan: PodPlan) -> tuple[str, str]:
    """The vRouter's floating and own address in the management VCN."""
    floating = vrouter_address(plan)
    taken = {slot.real for slot in plan.slots} | set(stranger_addresses(plan).values())
    return floating, next(free_addresses(IPNetwork(plan.management_cidr), taken | {floating}))


def _host(plan: PodPlan, region: Region, member: MemberName, address: str, *, hostile: bool = False) -> None:
    """A machine of a neighbour.  A hostile one has switched its source/destination check off, as any owner can."""
    subnet = region.find(SUBNET, member.realm)
    if subnet is None:
        raise ValueError(f"{member}: {member.realm} has no VCN here")
    _instance(plan, region, member, subnet, address, router=False, skip_check=hostile)


def _instance(
    plan: PodPlan, region: Region, name: str, subnet: str, address: str, *, router: bool, skip_check: bool
) -> str:
    return _stand(
        region,
        INSTANCE,
        plan,
        name,
        {
            "availabilityDomain": region.availability_domains[0],
            "shape": _ROUTER_SHAPE if router else _HOST_SHAPE,
            "sourceDetails": {"sourceType": "image", "sourceId": plan.image_id},
            "createVnicDetails": _vnic(f"{name}-vnic-1", subnet, address, skip_check=skip_check),
            "freeformTags": {ROLE: VROUTER, ROUTES: plan.cidr} if router else {},
        },
    )


def _vnic(name: str, subnet: str, address: str, *, skip_check: bool) -> Inputs:
    return {
        "displayName": name,
        "subnetId": subnet,
        "privateIp": address,
        "assignPublicIp": "false",
        "skipSourceDestCheck": skip_check,
    }


def _vcn(plan: PodPlan, region: Region, name: str, cidr: str) -> str:
    return _stand(region, VCN, plan, name, {"cidrBlocks": [cidr]})


def _subnet(plan: PodPlan, region: Region, name: str, cidr: str, vcn: str, table: str) -> str:
    """One subnet over the whole VCN, open from the POD and within: what it may reach is decided in the POD."""
    ingress = [{"protocol": "all", "source": source} for source in (plan.cidr, cidr)]
    egress = [{"protocol": "all", "destination": ANYWHERE}]
    security = _stand(
        region,
        SECURITY_LIST,
        plan,
        name,
        {"vcnId": vcn, "ingressSecurityRules": ingress, "egressSecurityRules": egress},
    )
    return _stand(
        region,
        SUBNET,
        plan,
        name,
        {
            "vcnId": vcn,
            "cidrBlock": cidr,
            "routeTableId": table,
            "securityListIds": [security],
            "prohibitPublicIpOnVnic": True,
        },
    )


def _stand(region: Region, type_token: str, plan: PodPlan | None, name: str, inputs: Inputs) -> str:
    """Create a resource, or bring the one of this name to these inputs; returns its OCID."""
    if plan is not None:
        inputs = {"compartmentId": plan.compartment_id, "displayName": name, **inputs}
    known = region.find(type_token, name)
    if known is None:
        return region.create(type_token, inputs, name)[0]
    region.update(known, inputs)
    return known


def _rule(destination: str, target: str) -> Inputs:
    return {"destination": destination, "destinationType": "CIDR_BLOCK", "networkEntityId": target}


def _lpg_name(customer: str) -> str:
    return f"{customer}/lpg"
