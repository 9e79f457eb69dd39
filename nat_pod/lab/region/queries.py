"""The data sources of the provider that the program uses, answered from the simulated region."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nat_pod import limits
from nat_pod.lab.region.base import invalid
from nat_pod.lab.region.oci_types import (
    DEFAULT_ROUTE_TABLE,
    INSTANCE,
    PRIVATE_IP,
    ROUTE_TABLE,
    VNIC,
    VNIC_ATTACHMENT,
    Inputs,
)

if TYPE_CHECKING:
    from nat_pod.lab.region.region import Region


def _availability_domains(region: Region, args: Inputs) -> Inputs:
    compartment = args.get("compartmentId")
    domains = [
        {"compartmentId": compartment, "id": f"ocid1.availabilitydomain.oc1..{name}", "name": name}
        for name in region.availability_domains
    ]
    return {**args, "id": region.name, "availabilityDomains": domains}


def _private_ips(region: Region, args: Inputs) -> Inputs:
    """By subnetId, vnicId, or subnetId and ipAddress; an address without its subnet says nothing (ListPrivateIps)."""
    if args.get("ipAddress") and not args.get("subnetId"):
        raise invalid("ipAddress needs subnetId", "OCI API, ListPrivateIps")
    if not (args.get("subnetId") or args.get("vnicId")):
        raise invalid("give subnetId or vnicId", "OCI API, ListPrivateIps")
    wanted = {key: args[key] for key in ("subnetId", "ipAddress", "vnicId") if args.get(key)}
    found = [
        {**region.read(record.ocid)}
        for record in region.all(PRIVATE_IP)
        if all(record.facts.get(key) == value for key, value in wanted.items())
    ]
    return {**args, "id": "privateIps", "privateIps": sorted(found, key=lambda ip: str(ip["ipAddress"]))}


def _route_tables(region: Region, args: Inputs) -> Inputs:
    """Of one compartment, the VCNs' default tables among them, by vcnId, displayName and state (ListRouteTables)."""
    if not args.get("compartmentId"):
        raise invalid("compartmentId is missing", "OCI API, ListRouteTables")
    wanted = {key: args[key] for key in ("compartmentId", "vcnId", "displayName") if args.get(key)}
    if args.get("state"):
        wanted["state"] = str(args["state"]).upper()  # case-insensitive, as the provider documents it
    tables = []
    for record in region.all(ROUTE_TABLE, DEFAULT_ROUTE_TABLE):
        vcn = region.read(record.facts["vcnId"])
        default = {
            "compartmentId": vcn["compartmentId"],
            "displayName": f"Default Route Table for {vcn['displayName']}",
            "state": "AVAILABLE",
        }
        state = {**default, **region.read(record.ocid)}
        if all(state[key] == value for key, value in wanted.items()):
            tables.append(state)
    return {**args, "id": "routeTables", "routeTables": tables}


def _vnic_attachments(region: Region, args: Inputs) -> Inputs:
    """By instanceId or vnicId, of one compartment, the primary VNIC first."""
    found = []
    for record in sorted(region.all(VNIC_ATTACHMENT), key=lambda record: int(record.facts["order"])):
        state = region.read(record.ocid)
        wanted = {key: args[key] for key in ("instanceId", "vnicId", "compartmentId") if args.get(key)}
        if all(state.get(key) == value for key, value in wanted.items()):
            found.append({**state, "createVnicDetails": [state["createVnicDetails"]]})
    return {**args, "id": "vnicAttachments", "vnicAttachments": found}


def _vnic(region: Region, args: Inputs) -> Inputs:
    record = region.get(args["vnicId"], VNIC)
    attachment = next(a for a in region.all(VNIC_ATTACHMENT) if a.facts["vnicId"] == record.ocid)
    primary = next(ip for ip in region.all(PRIVATE_IP) if ip.facts["isPrimary"] and ip.facts["vnicId"] == record.ocid)
    domain = region.get(record.facts["instanceId"], INSTANCE).facts["availabilityDomain"]
    return {
        **args,
        **record.facts,
        "id": record.ocid,
        "availabilityDomain": domain,
        "isPrimary": attachment.facts["isPrimary"],
        "privateIpAddress": primary.facts["ipAddress"],
    }


def _shapes(region: Region, args: Inputs) -> Inputs:  # noqa: ARG001
    shapes = [
        {"name": name, "maxVnicAttachments": limits.vnic_limit(name, None), "isFlexible": limits.is_flex(name)}
        for name in limits.known_shapes()
    ]
    return {**args, "id": "shapes", "shapes": shapes}


QUERIES: dict[str, Callable[[Region, Inputs], Inputs]] = {
    "oci:Identity/getAvailabilityDomains:getAvailabilityDomains": _availability_domains,
    "oci:Core/getPrivateIps:getPrivateIps": _private_ips,
    "oci:Core/getRouteTables:getRouteTables": _route_tables,
    "oci:Core/getVnicAttachments:getVnicAttachments": _vnic_attachments,
    "oci:Core/getVnic:getVnic": _vnic,
    "oci:Core/getShapes:getShapes": _shapes,
}
