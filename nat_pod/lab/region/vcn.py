"""VCNs with what comes with each, and their subnets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from netaddr import IPNetwork

from nat_pod import limits
from nat_pod.config.addressing import overlap
from nat_pod.lab.region.inputs import InputRules, Inputs
from nat_pod.lab.region.kinds import (
    DEFAULT_ROUTE_TABLE,
    DEFAULT_SECURITY_LIST,
    DNS_RESOLVER,
    LPG,
    NSG,
    PRIVATE_IP,
    ROUTE_TABLE,
    SECURITY_LIST,
    SUBNET,
    VCN,
    VNIC,
)
from nat_pod.lab.region.refusals import conflict, invalid, network, over_limit
from nat_pod.lab.region.resource import ObjectKind, Resource
from nat_pod.lab.region.store import Record, Store, refuse_other_vcn

_VCNS = 'OCI docs, "VCNs and Subnets"'
_PEERING = 'OCI docs, "Local VCN Peering"'
_TROUBLE = 'OCI docs, "VCN Troubleshooting"'

CIDRS_PER_VCN = 16
SUBNETS_PER_VCN = 300
LISTS_PER_SUBNET = 5

# What a new VCN's default security list lets in: ssh from anywhere, and what path MTU discovery needs.
_DEFAULT_INGRESS = [
    {"protocol": "6", "source": "0.0.0.0/0", "tcpOptions": {"min": 22, "max": 22}},
    {"protocol": "1", "source": "0.0.0.0/0", "icmpOptions": {"type": 3, "code": 4}},
]
_DEFAULT_EGRESS = [{"protocol": "all", "destination": "0.0.0.0/0"}]


class _Vcn(Resource):
    kind = VCN
    ocid_type = "vcn"
    rules = InputRules(
        source="core_vcn_resource.go",
        replace=frozenset({"cidrBlock", "dnsLabel"}),
        ignore_case=frozenset({"dnsLabel"}),
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        cidrs = _vcn_cidrs(inputs)
        vcn = store.add(VCN, name, {"cidrBlocks": [str(cidr) for cidr in cidrs], "state": "AVAILABLE"}, ocid)
        # Named after the VCN's OCID: two VCNs of the same name must not change each other's OCIDs.
        table = store.add(DEFAULT_ROUTE_TABLE, vcn.ocid, {"vcnId": vcn.ocid, "routeRules": []})
        security = store.add(
            DEFAULT_SECURITY_LIST,
            vcn.ocid,
            {"vcnId": vcn.ocid, "ingressSecurityRules": _DEFAULT_INGRESS, "egressSecurityRules": _DEFAULT_EGRESS},
        )
        store.add(DNS_RESOLVER, vcn.ocid, {"attachedVcnId": vcn.ocid, "attachedViews": [], "state": "ACTIVE"})
        vcn.facts.update(
            cidrBlock=str(cidrs[0]),
            defaultRouteTableId=table.ocid,
            defaultSecurityListId=security.ocid,
            displayName=inputs.get("displayName", name),
        )
        return vcn

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        old = [IPNetwork(text) for text in record.facts["cidrBlocks"]]
        new = _vcn_cidrs(inputs)
        added = [cidr for cidr in new if cidr not in old]
        removed = [cidr for cidr in old if cidr not in new]
        if len(added) > 1 or len(removed) > 1:
            raise invalid(
                "only one add/remove or modification of cidr_blocks is allowed at once",
                "terraform-provider-oci, core_vcn_resource.go, updateCidrBlocks",
            )
        for lpg in store.all(LPG):
            if lpg.facts["vcnId"] == record.ocid and lpg.facts["peeringStatus"] == "PEERED":
                peer = store.get(store.get(lpg.facts["peerId"]).facts["vcnId"])
                refuse_overlap(added, record.ocid, peer)
        for subnet in store.in_vcn(record.ocid, SUBNET):
            cidr = IPNetwork(subnet.facts["cidrBlock"])
            if not any(cidr in block for block in new):
                raise conflict(f"subnet {subnet.ocid} {cidr} uses a CIDR block that is taken from its VCN", _VCNS)
        record.facts.update(cidrBlocks=[str(cidr) for cidr in new], cidrBlock=str(new[0]))
        record.facts["displayName"] = inputs.get("displayName", record.facts["displayName"])

    def delete(self, store: Store, record: Record) -> None:
        children = store.in_vcn(record.ocid, SUBNET, LPG, NSG, ROUTE_TABLE, SECURITY_LIST)
        if children:
            raise conflict(
                f"VCN {record.ocid} cannot be deleted: it is associated with {children[0].ocid}"
                + (f" and {len(children) - 1} more" if len(children) > 1 else ""),
                _VCNS,
            )
        store.drop(store.get(record.facts["defaultRouteTableId"]))
        store.drop(store.get(record.facts["defaultSecurityListId"]))
        for resolver in store.all(DNS_RESOLVER):
            if resolver.facts["attachedVcnId"] == record.ocid:
                store.drop(resolver)
        store.drop(record)


class _Subnet(Resource):
    kind = SUBNET
    ocid_type = "subnet"
    rules = InputRules(
        source="core_subnet_resource.go",
        replace=frozenset(
            {"vcnId", "availabilityDomain", "dnsLabel", "prohibitInternetIngress", "prohibitPublicIpOnVnic"}
        ),
        sets=frozenset({"securityListIds"}),
        ignore_case=frozenset({"availabilityDomain", "dnsLabel"}),
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        vcn = store.get(inputs["vcnId"], VCN)
        facts = self._facts(store, vcn, inputs, None)
        if len(store.in_vcn(vcn.ocid, SUBNET)) >= SUBNETS_PER_VCN:
            raise over_limit(f"VCN {vcn.ocid} has {SUBNETS_PER_VCN} subnets", _VCNS)
        zone = inputs.get("availabilityDomain")
        if zone is not None:
            store.refuse_unknown_domain(zone)
        if inputs.get("prohibitInternetIngress") is not None and inputs.get("prohibitPublicIpOnVnic") is not None:
            raise invalid("give prohibitInternetIngress or prohibitPublicIpOnVnic, not both", "OCI API, CreateSubnet")
        prohibited = bool(inputs.get("prohibitInternetIngress") or inputs.get("prohibitPublicIpOnVnic"))
        facts.update(
            vcnId=vcn.ocid,
            state="AVAILABLE",
            displayName=inputs.get("displayName", name),
            prohibitInternetIngress=prohibited,
            prohibitPublicIpOnVnic=prohibited,
            dhcpOptionsId=inputs.get("dhcpOptionsId", ""),
        )
        return store.add(SUBNET, name, facts, ocid)

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        vcn = store.get(record.facts["vcnId"], VCN)
        facts = self._facts(store, vcn, inputs, record)
        cidr = IPNetwork(facts["cidrBlock"])
        for ip in store.in_subnet(record.ocid, PRIVATE_IP):
            if ip.facts["ipAddress"] not in cidr:
                raise conflict(f"private IP {ip.facts['ipAddress']} is in use outside {cidr}", _VCNS)
        record.facts.update(facts, displayName=inputs.get("displayName", record.facts["displayName"]))

    def delete(self, store: Store, record: Record) -> None:
        for kind in (VNIC, PRIVATE_IP):
            users = store.in_subnet(record.ocid, kind)
            if users:
                raise conflict(
                    f"The Subnet {record.ocid} references the VNIC {users[0].facts.get('vnicId') or users[0].ocid}. "
                    "You must remove the reference to proceed with this operation.",
                    _TROUBLE,
                )
        store.drop(record)

    def _facts(self, store: Store, vcn: Record, inputs: Inputs, old: Record | None) -> Inputs:
        blocks = inputs.get("ipv4cidrBlocks") or ([inputs["cidrBlock"]] if "cidrBlock" in inputs else [])
        if len(blocks) != 1:
            raise invalid(
                "a subnet needs one IPv4 CIDR block (several are not simulated)", "OCI API, CreateSubnet; nat_pod/lab"
            )
        cidr = network(blocks[0], "subnet CIDR")
        if not any(cidr in IPNetwork(block) for block in vcn.facts["cidrBlocks"]):
            raise invalid(
                f"The requested CIDR {cidr} is invalid: subnet CIDR must be contained in its VCN's CIDR "
                f"{', '.join(vcn.facts['cidrBlocks'])}",
                _VCNS,
            )
        if cidr.prefixlen > limits.VCN_PREFIXES[-1]:
            raise invalid(f"subnet CIDR {cidr} must be a /30 or larger", _VCNS)
        for other in store.in_vcn(vcn.ocid, SUBNET):
            if other is not old and overlap(cidr, IPNetwork(other.facts["cidrBlock"])):
                raise invalid(
                    f"The requested CIDR {cidr} is invalid: subnet {other.ocid} with CIDR "
                    f"{other.facts['cidrBlock']} overlaps with this CIDR.",
                    _VCNS,
                )
        table = store.get(
            inputs.get("routeTableId") or (old or vcn).facts["routeTableId" if old else "defaultRouteTableId"],
            ROUTE_TABLE,
            DEFAULT_ROUTE_TABLE,
        )
        lists = inputs.get("securityListIds")
        if lists is None:
            lists = old.facts["securityListIds"] if old else [vcn.facts["defaultSecurityListId"]]
        if len(lists) > LISTS_PER_SUBNET:
            raise over_limit(f"a subnet has at most {LISTS_PER_SUBNET} security lists", 'OCI docs, "Security Lists"')
        for member in (table, *(store.get(ocid, SECURITY_LIST, DEFAULT_SECURITY_LIST) for ocid in lists)):
            refuse_other_vcn(member, vcn.ocid, "OCI API, CreateSubnet")
        return {
            "cidrBlock": str(cidr),
            "ipv4cidrBlocks": [str(cidr)],
            "routeTableId": table.ocid,
            "securityListIds": sorted(lists),
            "virtualRouterIp": str(cidr[1]),
        }


def _vcn_cidrs(inputs: Inputs) -> list[IPNetwork]:
    if "cidrBlock" in inputs and "cidrBlocks" in inputs:
        raise invalid("give cidrBlock or cidrBlocks, not both", "OCI API, CreateVcn")
    texts: list[Any] = inputs.get("cidrBlocks") or [text for text in [inputs.get("cidrBlock")] if text]
    if not 1 <= len(texts) <= CIDRS_PER_VCN:
        raise invalid(f"a VCN has 1 to {CIDRS_PER_VCN} CIDR blocks, got {len(texts)}", _VCNS)
    cidrs = [network(text, "VCN CIDR") for text in texts]
    for index, cidr in enumerate(cidrs):
        if cidr.prefixlen not in limits.VCN_PREFIXES:
            raise invalid(f"VCN CIDR {cidr} must be a /16 to a /30", "OCI API, CreateVcn")
        if any(overlap(cidr, other) for other in cidrs[:index]):
            raise invalid(f"VCN CIDR {cidr} overlaps another CIDR of the VCN", _VCNS)
    return cidrs


def refuse_overlap(cidrs: Iterable[IPNetwork], vcn: str, other: Record) -> None:
    """400 for CIDRs of a VCN that overlap those of a VCN with which it is, or is about to be, peered."""
    for cidr in cidrs:
        for text in other.facts["cidrBlocks"]:
            if overlap(cidr, IPNetwork(text)):
                raise invalid(f"VCN {vcn} {cidr} and VCN {other.ocid} {text} overlap and cannot be peered", _PEERING)


KINDS: tuple[ObjectKind, ...] = (_Vcn(), _Subnet())
