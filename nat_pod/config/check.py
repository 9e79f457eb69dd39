"""What holds across the keys of a stack file: networks that may not overlap, limits, the vRouter in its subnet."""

from __future__ import annotations

from collections.abc import Mapping

from netaddr import IPAddress, IPNetwork

from nat_pod import limits
from nat_pod.config.addressing import can_be_a_vcns, overlap, reserved_by_oci
from nat_pod.config.neighbours import CustomerConfig, ManagementConfig, cidr_paths
from nat_pod.config.reader import Reader
from nat_pod.names import MANAGEMENT, NAMESPACE

# Never a target: a mapping to 169.254.169.254 hands the NAT VM's own metadata, with its instance certificates, to a
# remote peer (measured); the others are not unicast addresses of a VCN.
NEVER_MAPPED = tuple(IPNetwork(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))

_SIZES = (
    "must be a /8 to a /32 (a VCN's CIDR is a /16 to a /30; a network behind it may be larger or smaller), "
    "e.g. 10.0.0.0/24"
)


def check_networks(
    reader: Reader,
    cidr: IPNetwork | None,
    management: ManagementConfig | None,
    customers: tuple[CustomerConfig, ...] | None,
    *,
    gateways: bool = False,
) -> None:
    """Peered VCNs may not overlap, nor may customers of one NAT VM1, which has one route table for them all.

    gateways: whether the POD can have several customer gateways; then `gateways.py` decides which customer is in which.
    """
    of_management = [] if management is None else cidr_paths(MANAGEMENT, management.cidrs)
    of_customers = [
        (customer.name, *place) for customer in customers or () for place in cidr_paths(customer.name, customer.cidrs)
    ]
    for realm, path, network in [*((MANAGEMENT, *place) for place in of_management), *of_customers]:
        if network.prefixlen not in limits.NETWORK_PREFIXES:
            reader.add(path, str(network), _SIZES)
            continue
        for never in NEVER_MAPPED:
            if overlap(network, never):
                reader.add(path, str(network), f"overlaps {never}, which is never the address of a VM in a VCN")
        if cidr is not None and overlap(network, cidr):
            why = "OCI refuses to peer the two"
            if realm == MANAGEMENT:
                why = "the vRouter could not tell the two apart"
            elif not can_be_a_vcns(network):
                why = "packets to it would not leave the POD's VCN"
            reader.add(path, str(network), f"overlaps the POD's own range {cidr}; {why}")
    for index, (realm, path, network) in enumerate([] if gateways else of_customers):
        for other_realm, other_path, other in of_customers[:index]:
            if realm != other_realm and overlap(network, other):
                reader.add(
                    path,
                    str(network),
                    f"overlaps {NAMESPACE}:{other_path} ({other}); in one POD customers may overlap management, "
                    "not each other: move one to another POD, or see delivery: routes",
                )


def check_lpgs(reader: Reader, customers: object, lpg_limit: int) -> None:
    """Each customer needs an LPG.  customers: as written, so that a customer with a mistake counts too."""
    raised = limits.LPGS_PER_VCN_RAISED
    if isinstance(customers, Mapping) and len(customers) > lpg_limit:
        reader.add(
            "customers",
            f"{len(customers)} customers",
            f"a VCN has {lpg_limit} local peering gateways, one per customer"
            + (f"; set nat-pod:lpgLimit: {raised} if Oracle raised your limit, or" if lpg_limit < raised else ";")
            + " move customers to another POD",
        )


def check_vrouter(reader: Reader, vrouter: IPAddress, subnet: IPNetwork) -> None:
    """The vRouter's floating IP must be one that OCI gives to a VNIC in its subnet."""
    path = "management.vrouter"
    if vrouter not in subnet:
        usable = f"{IPAddress(subnet.first + 2)} to {IPAddress(subnet.last - 1)}"
        reader.add(path, str(vrouter), f"is outside the vRouter's subnet {subnet}; usable are {usable}")
        return
    reserved = reserved_by_oci(vrouter, subnet)
    if reserved:
        reader.add(path, str(vrouter), reserved)
