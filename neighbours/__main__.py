"""The Pulumi program of a POD's neighbours: their networks and machines, as their owners would set them up.

Per customer a VCN with an LPG, a route table, a security list and small VMs; management's VCN with its servers, and the
vRouter: a VM that forwards, with a second VNIC in the POD's subnet.  What there is to be comes by configuration
(`nat_pod/trial/neighbours.py` writes it), and of the POD only what its owner hands out: its outputs.

It knows nothing of nat-pod's own code, as a neighbour would not.
"""

from importlib.metadata import version
from typing import Any

import pulumi
import pulumi_oci as oci

config = pulumi.Config()
wanted: dict[str, Any] = config.require_object("neighbours")
pod: dict[str, Any] = config.require_object("pod")

COMPARTMENT = wanted["compartmentId"]
# Defined ones only where there are some, so that what OCI itself puts on a resource is not touched.
TAGS: dict[str, Any] = {
    "freeform_tags": wanted["tags"],
    **({"defined_tags": wanted["definedTags"]} if wanted["definedTags"] else {}),
}
MACHINES: dict[str, pulumi.Output[str]] = {}


def availability_domain() -> str:
    """The region's first one.  Asked for by its token, because `oci.identity` takes a second to import."""
    found: Any = pulumi.runtime.invoke(
        "oci:Identity/getAvailabilityDomains:getAvailabilityDomains",
        {"compartmentId": COMPARTMENT},
        pulumi.InvokeOptions(version=version("pulumi-oci")),
    ).value
    return str(found["availabilityDomains"][0]["name"])


DOMAIN = availability_domain()


def common(name: str) -> dict[str, Any]:
    """What every resource of a neighbour has."""
    return {"compartment_id": COMPARTMENT, "display_name": name, **TAGS}


def route_table(
    name: str, vcn: pulumi.Input[str], destinations: list[str], target: pulumi.Input[str]
) -> oci.core.RouteTable:
    """A route table that leads to the POD."""
    rules = [
        oci.core.RouteTableRouteRuleArgs(
            destination=destination, destination_type="CIDR_BLOCK", network_entity_id=target
        )
        for destination in destinations
    ]
    return oci.core.RouteTable(name, vcn_id=vcn, route_rules=rules, **common(name))


def subnets(one: dict[str, Any], vcn: pulumi.Input[str], table: pulumi.Input[str] | None) -> dict[str, oci.core.Subnet]:
    """By name: a subnet over each CIDR block of the VCN."""
    return {name: subnet(name, block, one["inside"], vcn, table) for name, block in one["subnets"].items()}


def subnet(
    name: str, cidr: str, inside: list[str], vcn: pulumi.Input[str], table: pulumi.Input[str] | None
) -> oci.core.Subnet:
    """A subnet, open from the POD and from the neighbour's networks: what it may reach is decided in the POD."""
    sources = (wanted["podCidr"], *inside)
    security = oci.core.SecurityList(
        name,
        vcn_id=vcn,
        ingress_security_rules=[
            oci.core.SecurityListIngressSecurityRuleArgs(protocol="all", source=source) for source in sources
        ],
        egress_security_rules=[oci.core.SecurityListEgressSecurityRuleArgs(protocol="all", destination="0.0.0.0/0")],
        **common(name),
    )
    return oci.core.Subnet(
        name,
        vcn_id=vcn,
        cidr_block=cidr,
        route_table_id=table,
        security_list_ids=[security.id],
        prohibit_public_ip_on_vnic=True,
        **common(name),
    )


def machine(one: dict[str, Any], subnet_id: pulumi.Input[str]) -> oci.core.Instance:
    """A VM.  Whoever owns one can switch its source/destination check off: one that forges or forwards has done so."""
    size = wanted["shape"]
    flex = "ocpus" in size
    vm = oci.core.Instance(
        one["name"],
        availability_domain=DOMAIN,
        shape=size["shape"],
        shape_config=oci.core.InstanceShapeConfigArgs(ocpus=size["ocpus"], memory_in_gbs=size["memoryGbs"])
        if flex
        else None,
        source_details=oci.core.InstanceSourceDetailsArgs(source_type="image", source_id=wanted["imageId"]),
        create_vnic_details=oci.core.InstanceCreateVnicDetailsArgs(
            subnet_id=subnet_id,
            display_name=f"{one['name']}-vnic-1",
            private_ip=one["address"],
            assign_public_ip="false",
            skip_source_dest_check=one["skipsSourceDestCheck"],
            **TAGS,
        ),
        metadata=one["metadata"] or None,
        **{**common(one["name"]), "freeform_tags": {**wanted["tags"], **one["tags"]}},
    )
    MACHINES[one["name"]] = vm.id
    return vm


def attach_names(name: str, vcn: pulumi.Input[str]) -> None:
    """Let a VCN's resolver answer from the private view that the POD has for its owner, if it has one."""
    view = pod["nameViews"].get(name)
    if view is not None:
        found = oci.core.get_cnv_dns_resolver_association_output(vcn_id=vcn)
        oci.dns.Resolver(
            name,
            resolver_id=found.dns_resolver_id,
            scope="PRIVATE",
            attached_views=[oci.dns.ResolverAttachedViewArgs(view_id=view)],
            display_name=name,
            **TAGS,
        )


def customer(one: dict[str, Any]) -> None:
    """A customer, with an LPG that requests the peering, or with an earlier one that accepts it."""
    name, pod_lpg = one["name"], pod["lpgIds"][one["name"]]
    if one["peerId"] is None:
        blocks = [*one["subnets"].values()]
        vcn: pulumi.Input[str] = oci.core.Vcn(name, cidr_blocks=blocks, **common(name)).id
        lpg = oci.core.LocalPeeringGateway(f"{name}/lpg", vcn_id=vcn, peer_id=pod_lpg, **common(f"{name}/lpg"))
    else:
        lpg = oci.core.LocalPeeringGateway.get(f"{name}/lpg", one["peerId"])
        vcn = lpg.vcn_id
    attach_names(name, vcn)
    table = route_table(name, vcn, one["destinations"], lpg.id)
    networks = subnets(one, vcn, table.id)
    for each in one["machines"]:
        machine(each, networks[each["subnet"]].id)


def management(one: dict[str, Any]) -> None:
    """Management.  Its route table leads to an address of the vRouter, in the very subnet that uses the table.

    So its subnets are made without it.
    """
    name = one["name"]
    vcn = oci.core.Vcn(name, cidr_blocks=[*one["subnets"].values()], **common(name))
    attach_names(name, vcn.id)
    networks = subnets(one, vcn.id, None)
    floating = vrouter(one["vrouter"], networks[one["vrouter"]["machine"]["subnet"]].id)
    table = route_table(name, vcn.id, one["destinations"], floating.id)
    for key, network in networks.items():
        oci.core.RouteTableAttachment(key, subnet_id=network.id, route_table_id=table.id)
    for each in one["machines"]:
        machine(each, networks[each["subnet"]].id)


def vrouter(one: dict[str, Any], subnet_id: pulumi.Input[str]) -> oci.core.PrivateIp:
    """The vRouter with a VNIC in each VCN; returns its floating address in the management VCN.

    Both floating addresses are secondary private IPs, so that a pair of vRouters could pass them on.
    """
    vm = machine(one["machine"], subnet_id)
    attachment = oci.core.VnicAttachment(
        "vrouter-vnic-2",
        instance_id=vm.id,
        create_vnic_details=oci.core.VnicAttachmentCreateVnicDetailsArgs(
            subnet_id=pod["vrouterSubnetId"],
            display_name="vrouter-vnic-2",
            private_ip=one["ownInPod"],  # left to OCI, it could be the floating one
            assign_public_ip="false",
            skip_source_dest_check=True,
            **TAGS,
        ),
    )
    attached = oci.core.get_vnic_attachments_output(compartment_id=COMPARTMENT, instance_id=vm.id)
    primary = attached.apply(
        # OCI does not document the order of this list; the subnet tells which VNIC is the primary one.
        lambda found: next(each.vnic_id for each in found.vnic_attachments if each.subnet_id != pod["vrouterSubnetId"])
    )
    oci.core.PrivateIp("vrouter floating, POD", vnic_id=attachment.vnic_id, ip_address=one["floatingInPod"], **TAGS)
    return oci.core.PrivateIp("vrouter floating, management", vnic_id=primary, ip_address=one["floating"], **TAGS)


for each in wanted["customers"]:
    customer(each)
management(wanted["management"])
pulumi.export("machineIds", MACHINES)
