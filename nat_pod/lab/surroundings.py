"""The POD's neighbours in the simulated region: the program in `neighbours/`, run against it.

Addresses, CIDRs and the routes to add come from the plan, OCIDs from the stack's outputs: what an owner would be
handed.

Order, as for a real POD: `before` (LPGs that the POD shall peer with), `pulumi up`, `build` (which attaches the
vRouter), `pulumi up` again (which adds NAT VM2's route to it).  `bring_up` does all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, assert_never

from netaddr import IPNetwork

from nat_pod.config.addressing import clash
from nat_pod.config.model import PodConfig
from nat_pod.config.routed import RoutedConfig
from nat_pod.config.stack_file import read_stack
from nat_pod.errors import NatPodError
from nat_pod.lab.engine.program import Deployment, deploy, run_program
from nat_pod.lab.region import registry
from nat_pod.lab.region.kinds import (
    DNS_RESOLVER,
    INSTANCE,
    LPG,
    ROUTE_TABLE,
    ROUTE_TABLE_ATTACHMENT,
    SECURITY_LIST,
    SUBNET,
    VCN,
)
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region
from nat_pod.lab.region.store import Limits
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.expected import neighbour_blocks
from nat_pod.trial.neighbours import PROGRAM, PROJECT, TAG, Neighbours, neighbours_of


def stand_up(directory: Path, stack: str) -> tuple[Region, PodPlan, Deployment]:
    """A new region with the POD of a stack and its neighbours; both programs run in this process, under mocks."""
    plan, region = prepare(directory, stack)
    return region, plan, bring_up(plan, region, lambda: deploy(directory, stack, region))


def prepare(directory: Path, stack: str) -> tuple[PodPlan, Region]:
    """A stack's plan, and an empty region with the names and the limits that its file counts on."""
    settings = read_stack(directory, stack)
    config = settings.checked()
    limits = Limits(lpgs=config.lpg_limit)
    match config:
        case RoutedConfig():
            limits = replace(limits, balancers=config.balancer_limit)
        case PodConfig():
            pass  # it needs none
        case _ as never:
            assert_never(never)
    if config.nat_vm.availability_domain is not None:
        # The lab cannot know a tenancy's prefix, but a stack file that pins a domain has it.
        limits = replace(limits, domain_prefix=config.nat_vm.availability_domain.split(":")[0])
    return plan_pod(config, stack), Region(str(settings.config.get("oci:region", "uk-london-1")), limits)


def bring_up(plan: PodPlan, region: Region, up: Callable[[], Deployment]) -> Deployment:
    """POD and neighbours in the order in which it happens on OCI.

    up: `pulumi up` against `region`.  The deployment returned is the second one's; it warns of nothing when the vRouter
    is in place.
    """
    before(plan, region)
    build(plan, region, up().outputs)
    return up()


def before(plan: PodPlan, region: Region) -> None:
    """What is done before the POD: the LPGs of customers whose entry in the stack file has a `peerId` are made.

    Where the POD gives its names up, the owners of VCNs detach its views; OCI would not delete them.
    """
    for resolver in region.all(DNS_RESOLVER):
        if plan.zone is None and resolver.facts["attachedViews"]:
            region.update(resolver.ocid, {**resolver.inputs, "attachedViews": []})
    for lpg in plan.lpgs:
        name = f"{lpg.customer}/lpg"
        if lpg.peer_id is not None and region.find(LPG, name) is None:
            common = {"compartmentId": plan.compartment_id, "freeformTags": {TAG: ""}}
            cidrs = neighbour_blocks(plan, lpg.customer)
            vcn, _ = region.create(VCN, {**common, "cidrBlocks": [*cidrs], "displayName": lpg.customer}, lpg.customer)
            region.create(LPG, {**common, "vcnId": vcn, "displayName": name}, name, ocid=lpg.peer_id)


def build(plan: PodPlan, region: Region, outputs: Mapping[str, Any]) -> None:
    """Set up all neighbours.  outputs: the stack's.  Repeating it with another plan changes, adds and takes away.

    Under mocks always: these are other people's, and of them only the result is of interest here.  Mocks delete
    nothing.  So what is no longer wanted goes first, and its addresses are free for those that come.
    """
    wanted = neighbours_of(plan, "lab")
    _withdraw(wanted, region)
    _recut(wanted, region)
    run_program(PROGRAM, PROJECT, wanted.stack, wanted.config(outputs, names=True), region)


def _withdraw(wanted: Neighbours, region: Region) -> None:
    """Take away machines that nobody wants any more, or at another address, and the networks of customers who left."""
    addresses = {machine.name: machine.address for machine in wanted.machines}
    for vm in region.all(INSTANCE):
        if _neighbours(vm.inputs) and addresses.get(vm.name) != region.read(vm.ocid)["privateIp"]:
            region.delete(vm.ocid)
    networks = {wanted.management.name, *(customer.name for customer in wanted.customers)}
    for vcn in region.all(VCN):
        if not _neighbours(vcn.inputs) or vcn.name in networks:
            continue
        for table in region.in_vcn(vcn.ocid, ROUTE_TABLE):
            # Its rules lead to the LPG, which stays as long as they do.
            region.update(table.ocid, {**table.inputs, "routeRules": []})
        owned = [record for record in region.all(*registry.RESOURCES) if record.inputs.get("vcnId") == vcn.ocid]
        delete_all(region, [*(record.ocid for record in owned), vcn.ocid])


def _recut(wanted: Neighbours, region: Region) -> None:
    """Give each VCN that stands the CIDR blocks that are wanted, as far as one can go without the other.

    OCI's provider adds or takes away one at a time.  A block that changes its size is left to the program.
    """
    for one in (*wanted.customers, wanted.management):
        vcn = next((record for record in region.all(VCN) if record.name == one.name), None)
        if vcn is None:
            continue
        gone = [r for r in region.in_vcn(vcn.ocid, SUBNET, SECURITY_LIST) if r.name not in (one.name, *one.subnets)]
        attached = [r for r in region.all(ROUTE_TABLE_ATTACHMENT) if r.name in {each.name for each in gone}]
        delete_all(region, [record.ocid for record in (*attached, *gone)])
        want, blocks = list(one.subnets.values()), list(vcn.facts["cidrBlocks"])
        used = {subnet.facts["cidrBlock"] for subnet in region.in_vcn(vcn.ocid, SUBNET)}
        for block in [*blocks]:
            if block not in want and block not in used and len(blocks) > 1:
                blocks.remove(block)
                region.update(vcn.ocid, {**vcn.inputs, "cidrBlocks": [*blocks]})
        for block in want:
            if block not in blocks and clash([IPNetwork(block)], [IPNetwork(other) for other in blocks]) is None:
                blocks.append(block)
                region.update(vcn.ocid, {**vcn.inputs, "cidrBlocks": [*blocks]})


def _neighbours(inputs: Mapping[str, Any]) -> bool:
    """Whether a resource is a neighbour's and not the POD's."""
    return TAG in (inputs.get("freeformTags") or {})


def delete_all(region: Region, ocids: list[str]) -> None:
    """Delete resources that need one another, whatever their order.  Raises NatPodError when some are still needed."""
    while ocids:
        left: list[str] = []
        why: OciError | None = None
        for ocid in ocids:
            try:
                region.delete(ocid)
            except OciError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    continue  # it went with another one, as a private IP does with its VNIC
                left.append(ocid)
                why = error
        if len(left) == len(ocids):
            raise NatPodError(str(why))
        ocids = left
