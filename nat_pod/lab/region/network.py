"""VCNs, subnets, route tables and local peering gateways of the simulated region."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from netaddr import IPNetwork

from nat_pod import limits
from nat_pod.config.addressing import overlap
from nat_pod.lab.region.base import Behaviour, Record, conflict, invalid, network, over_limit
from nat_pod.lab.region.oci_types import (
    DEFAULT_ROUTE_TABLE,
    DEFAULT_SECURITY_LIST,
    LPG,
    NSG,
    PRIVATE_IP,
    ROUTE_TABLE,
    ROUTE_TABLE_ATTACHMENT,
    SECURITY_LIST,
    SUBNET,
    VCN,
    VNIC,
    Inputs,
)

if TYPE_CHECKING:
    from nat_pod.lab.region.region import Region

_VCNS = 'OCI docs, "VCNs and Subnets"'
_ROUTES = 'OCI docs, "VCN Route Tables"'
_PEERING = 'OCI docs, "Local VCN Peering"'
_TROUBLE = 'OCI docs, "VCN Troubleshooting"'

CIDRS_PER_VCN = 16
SUBNETS_PER_VCN = 300
ROUTE_TABLES_PER_VCN = 300
LISTS_PER_SUBNET = 5

# What a new VCN's default security list lets in: ssh from anywhere, and what path MTU discovery needs.
_DEFAULT_INGRESS = [
    {"protocol": "6", "source": "0.0.0.0/0", "tcpOptions": {"min": 22, "max": 22}},
    {"protocol": "1", "source": "0.0.0.0/0", "icmpOptions": {"type": 3, "code": 4}},
]
_DEFAULT_EGRESS = [{"protocol": "all", "destination": "0.0.0.0/0"}]


class _Vcn(Behaviour):
    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        cidrs = _vcn_cidrs(inputs)
        vcn = region.add(VCN, name, {"cidrBlocks": [str(cidr) for cidr in cidrs], "state": "AVAILABLE"}, ocid)
        # Named after the VCN's OCID: two VCNs of one name must not change each other's OCIDs.
        table = region.add(DEFAULT_ROUTE_TABLE, vcn.ocid, {"vcnId": vcn.ocid, "routeRules": []})
        security = region.add(
            DEFAULT_SECURITY_LIST,
            vcn.ocid,
            {"vcnId": vcn.ocid, "ingressSecurityRules": _DEFAULT_INGRESS, "egressSecurityRules": _DEFAULT_EGRESS},
        )
        vcn.facts.update(
            cidrBlock=str(cidrs[0]),
            defaultRouteTableId=table.ocid,
            defaultSecurityListId=security.ocid,
            displayName=inputs.get("displayName", name),
        )
        return vcn

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:
        old = [IPNetwork(text) for text in record.facts["cidrBlocks"]]
        new = _vcn_cidrs(inputs)
        added = [cidr for cidr in new if cidr not in old]
        removed = [cidr for cidr in old if cidr not in new]
        if len(added) > 1 or len(removed) > 1:
            raise invalid(
                "only one add/remove or modification of cidr_blocks is allowed at once",
                "terraform-provider-oci, core_vcn_resource.go, updateCidrBlocks",
            )
        for lpg in region.all(LPG):
            if lpg.facts["vcnId"] == record.ocid and lpg.facts["peeringStatus"] == "PEERED":
                peer = region.get(region.get(lpg.facts["peerId"]).facts["vcnId"])
                _refuse_overlap(added, record.ocid, peer)
        for subnet in _of_vcn(region, record.ocid, SUBNET):
            cidr = IPNetwork(subnet.facts["cidrBlock"])
            if not any(cidr in block for block in new):
                raise conflict(f"subnet {subnet.ocid} {cidr} uses a CIDR block that is taken from its VCN", _VCNS)
        record.facts.update(cidrBlocks=[str(cidr) for cidr in new], cidrBlock=str(new[0]))
        record.facts["displayName"] = inputs.get("displayName", record.facts["displayName"])

    def delete(self, region: Region, record: Record) -> None:
        children = _of_vcn(region, record.ocid, SUBNET, LPG, NSG, ROUTE_TABLE, SECURITY_LIST)
        if children:
            raise conflict(
                f"VCN {record.ocid} cannot be deleted, it is associated with {children[0].ocid}"
                + (f" and {len(children) - 1} more" if len(children) > 1 else ""),
                _VCNS,
            )
        region.drop(region.get(record.facts["defaultRouteTableId"]))
        region.drop(region.get(record.facts["defaultSecurityListId"]))
        region.drop(record)


class _Subnet(Behaviour):
    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        vcn = region.get(inputs["vcnId"], VCN)
        facts = self._facts(region, vcn, inputs, None)
        if len(_of_vcn(region, vcn.ocid, SUBNET)) >= SUBNETS_PER_VCN:
            raise over_limit(f"VCN {vcn.ocid} has {SUBNETS_PER_VCN} subnets", _VCNS)
        zone = inputs.get("availabilityDomain")
        if zone is not None:
            region.refuse_unknown_domain(zone)
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
        return region.add(SUBNET, name, facts, ocid)

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:
        vcn = region.get(record.facts["vcnId"], VCN)
        facts = self._facts(region, vcn, inputs, record)
        cidr = IPNetwork(facts["cidrBlock"])
        for ip in _of_subnet(region, record.ocid, PRIVATE_IP):
            if ip.facts["ipAddress"] not in cidr:
                raise conflict(f"private IP {ip.facts['ipAddress']} is in use outside {cidr}", _VCNS)
        record.facts.update(facts, displayName=inputs.get("displayName", record.facts["displayName"]))

    def delete(self, region: Region, record: Record) -> None:
        for kind in (VNIC, PRIVATE_IP):
            users = _of_subnet(region, record.ocid, kind)
            if users:
                raise conflict(
                    f"The Subnet {record.ocid} references the VNIC {users[0].facts.get('vnicId') or users[0].ocid}. "
                    "You must remove the reference to proceed with this operation.",
                    _TROUBLE,
                )
        region.drop(record)

    def _facts(self, region: Region, vcn: Record, inputs: Inputs, old: Record | None) -> Inputs:
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
        for other in _of_vcn(region, vcn.ocid, SUBNET):
            if other is not old and overlap(cidr, IPNetwork(other.facts["cidrBlock"])):
                raise invalid(
                    f"The requested CIDR {cidr} is invalid: subnet {other.ocid} with CIDR "
                    f"{other.facts['cidrBlock']} overlaps with this CIDR.",
                    _VCNS,
                )
        table = region.get(
            inputs.get("routeTableId") or (old or vcn).facts["routeTableId" if old else "defaultRouteTableId"],
            ROUTE_TABLE,
            DEFAULT_ROUTE_TABLE,
        )
        lists = inputs.get("securityListIds")
        if lists is None:
            lists = old.facts["securityListIds"] if old else [vcn.facts["defaultSecurityListId"]]
        if len(lists) > LISTS_PER_SUBNET:
            raise over_limit(f"a subnet has at most {LISTS_PER_SUBNET} security lists", 'OCI docs, "Security Lists"')
        for member in (table, *(region.get(ocid, SECURITY_LIST, DEFAULT_SECURITY_LIST) for ocid in lists)):
            refuse_other_vcn(member, vcn.ocid, "OCI API, CreateSubnet")
        return {
            "cidrBlock": str(cidr),
            "ipv4cidrBlocks": [str(cidr)],
            "routeTableId": table.ocid,
            "securityListIds": sorted(lists),
            "virtualRouterIp": str(cidr[1]),
        }


class _RouteTable(Behaviour):
    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        vcn = region.get(inputs["vcnId"], VCN)
        if len(_of_vcn(region, vcn.ocid, ROUTE_TABLE)) >= ROUTE_TABLES_PER_VCN:
            raise over_limit(f"VCN {vcn.ocid} has {ROUTE_TABLES_PER_VCN} route tables", _ROUTES)
        facts = {
            "vcnId": vcn.ocid,
            "routeRules": self._rules(region, vcn.ocid, inputs),
            "displayName": inputs.get("displayName", name),
            "state": "AVAILABLE",
        }
        return region.add(ROUTE_TABLE, name, facts, ocid)

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:
        rules = self._rules(region, record.facts["vcnId"], inputs)
        if any(lpg.facts.get("routeTableId") == record.ocid for lpg in region.all(LPG)):
            refuse_lpg_targets(record.ocid, rules)
        record.facts["routeRules"] = rules
        record.facts["displayName"] = inputs.get("displayName", record.facts["displayName"])

    def delete(self, region: Region, record: Record) -> None:
        for user in region.all(SUBNET, LPG):
            if user.facts.get("routeTableId") == record.ocid:
                raise conflict(
                    f"The Route Table {record.ocid} is associated with {user.ocid}. You must remove the reference to "
                    "proceed with this operation.",
                    _TROUBLE,
                )
        region.drop(record)

    def _rules(self, region: Region, vcn: str, inputs: Inputs) -> list[Inputs]:
        rules = inputs.get("routeRules", [])
        if len(rules) > limits.ROUTE_RULES_PER_TABLE:
            raise over_limit(f"{len(rules)} route rules, a table has {limits.ROUTE_RULES_PER_TABLE}", _ROUTES)
        seen: set[str] = set()
        for rule in rules:
            destination = rule.get("destination") or rule.get("cidrBlock")
            if destination is None or ("destination" in rule and "cidrBlock" in rule):
                raise invalid("a route rule has either a destination or a cidrBlock", "OCI API, RouteRule")
            if rule["destinationType"] != "CIDR_BLOCK":
                raise invalid(f"destination type {rule['destinationType']} is not simulated", "nat_pod/lab")
            network(destination, "route destination")
            if destination in seen:
                raise invalid(f"two route rules have the destination {destination}", f"{_ROUTES}, step 5")
            seen.add(destination)
            self._refuse_target(region, vcn, rule["networkEntityId"])
        return list(rules)

    def _refuse_target(self, region: Region, vcn: str, target: str) -> None:
        if target.split(".")[1:2] not in (["localpeeringgateway"], ["privateip"]):
            raise invalid(
                f"Invalid entity type in Id {target}: a target here is an LPG or a private IP",
                "terraform-provider-oci issue 681",
            )
        record = region.get(target, LPG, PRIVATE_IP)
        if record.kind == LPG:
            refuse_other_vcn(record, vcn, _ROUTES)
            return
        subnet = region.get(record.facts["subnetId"], SUBNET)
        if subnet.facts["vcnId"] != vcn:
            raise invalid(f"PrivateIp {target} is an invalid route target: it is in another VCN", _ROUTES)
        vnic = record.facts.get("vnicId")
        if not vnic:
            raise invalid(
                f"PrivateIp {target} is an invalid route target: it is attached to no VNIC",
                f"{_ROUTES} (whether OCI takes one is not documented; strict on purpose)",
            )
        if not region.get(vnic, VNIC).facts["skipSourceDestCheck"]:
            raise invalid(
                f"PrivateIP {target} is an invalid route target. {{The Private IP is attached to a VNIC whose "
                "SRC/DST check is enabled.}",
                f"{_ROUTES}; terraform-provider-oci issue 319",
            )


class _RouteTableAttachment(Behaviour):
    """No object of OCI's but a setting of a subnet, with a life of its own at the provider.

    So a route table can lead to something in the very subnet that uses it.
    """

    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        subnet = region.get(inputs["subnetId"], SUBNET)
        table = region.get(inputs["routeTableId"], ROUTE_TABLE, DEFAULT_ROUTE_TABLE)
        refuse_other_vcn(table, subnet.facts["vcnId"], "OCI API, UpdateSubnet")
        subnet.facts["routeTableId"] = table.ocid
        return region.add(
            ROUTE_TABLE_ATTACHMENT,
            name,
            {"subnetId": subnet.ocid, "routeTableId": table.ocid, "displayName": name},
            ocid,
        )

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:
        """Nothing: each of its inputs forces a replacement."""

    def delete(self, region: Region, record: Record) -> None:
        """The subnet gets its VCN's default table back (core_route_table_attachment_resource.go)."""
        subnet = region.get(record.facts["subnetId"], SUBNET)
        if subnet.facts["routeTableId"] == record.facts["routeTableId"]:
            subnet.facts["routeTableId"] = region.get(subnet.facts["vcnId"], VCN).facts["defaultRouteTableId"]
        region.drop(record)


class _Lpg(Behaviour):
    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        vcn = region.get(inputs["vcnId"], VCN)
        table = self._table(region, vcn.ocid, inputs.get("routeTableId"))
        if len(_of_vcn(region, vcn.ocid, LPG)) >= region.lpg_limit:
            raise over_limit(f"VCN {vcn.ocid} has {region.lpg_limit} local peering gateways", _PEERING)
        peer = region.get(inputs["peerId"], LPG) if "peerId" in inputs else None
        if peer is not None:
            self._refuse_peering(region, vcn, peer)
        facts = {
            "vcnId": vcn.ocid,
            "routeTableId": table,
            "displayName": inputs.get("displayName", name),
            "state": "AVAILABLE",
            "peeringStatus": "NEW",
            "isCrossTenancyPeering": False,
        }
        lpg = region.add(LPG, name, facts, ocid)
        for one, other in ((lpg, peer), (peer, lpg)):
            if one is not None and other is not None:
                cidrs = region.get(other.facts["vcnId"]).facts["cidrBlocks"]
                one.facts.update(
                    peeringStatus="PEERED",
                    peerId=other.ocid,
                    peerAdvertisedCidr=cidrs[0],
                    peerAdvertisedCidrDetails=list(cidrs),
                )
        return lpg

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:
        if inputs.get("routeTableId") is not None:
            record.facts["routeTableId"] = self._table(region, record.facts["vcnId"], inputs["routeTableId"])
        record.facts["displayName"] = inputs.get("displayName", record.facts["displayName"])

    def delete(self, region: Region, record: Record) -> None:
        for table in region.all(ROUTE_TABLE, DEFAULT_ROUTE_TABLE):
            if any(rule["networkEntityId"] == record.ocid for rule in table.facts["routeRules"]):
                raise conflict(
                    f"Local Peering Gateway {record.ocid} is associated with one or more entities that are in use: "
                    f"{table.ocid}",
                    _TROUBLE,
                )
        region.drop(record)
        for other in region.all(LPG):
            if other.facts.get("peerId") == record.ocid:
                other.facts["peeringStatus"] = "REVOKED"

    def _table(self, region: Region, vcn: str, ocid: str | None) -> str | None:
        if ocid is None:
            return None
        table = region.get(ocid, ROUTE_TABLE, DEFAULT_ROUTE_TABLE)
        refuse_other_vcn(table, vcn, _PEERING)
        refuse_lpg_targets(ocid, table.facts["routeRules"])
        return ocid

    def _refuse_peering(self, region: Region, vcn: Record, peer: Record) -> None:
        if peer.facts["peeringStatus"] != "NEW":
            raise conflict(f"Local Peering Gateway {peer.ocid} has already been connected", _TROUBLE)
        other = region.get(peer.facts["vcnId"], VCN)
        if other.ocid == vcn.ocid:
            raise invalid(f"Local Peering Gateway {peer.ocid} is in the same VCN", _PEERING)
        for lpg in _of_vcn(region, vcn.ocid, LPG):
            if lpg.facts["peeringStatus"] == "PEERED" and region.get(lpg.facts["peerId"]).facts["vcnId"] == other.ocid:
                raise conflict(f"A peering with VCN {other.ocid} has already been established", _TROUBLE)
        _refuse_overlap([IPNetwork(cidr) for cidr in vcn.facts["cidrBlocks"]], vcn.ocid, other)


def refuse_other_vcn(record: Record, vcn: str, source: str) -> None:
    """400 for an object that belongs to another VCN."""
    if record.facts["vcnId"] != vcn:
        raise invalid(f"{record.ocid} belongs to VCN {record.facts['vcnId']}, not to {vcn}", source)


def refuse_lpg_targets(table: str, rules: list[Inputs]) -> None:
    """400 for a route table of an LPG that leads anywhere but to a private IP (or a DRG, which is not simulated)."""
    if any(rule["networkEntityId"].split(".")[1] != "privateip" for rule in rules):
        raise invalid(f"the route table {table} of an LPG may only have private IPs and DRGs as targets", _PEERING)


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


def _refuse_overlap(cidrs: Iterable[IPNetwork], vcn: str, other: Record) -> None:
    for cidr in cidrs:
        for text in other.facts["cidrBlocks"]:
            if overlap(cidr, IPNetwork(text)):
                raise invalid(f"VCN {vcn} {cidr} and VCN {other.ocid} {text} overlap and cannot be peered", _PEERING)


def _of_vcn(region: Region, vcn: str, *kinds: str) -> list[Record]:
    return [record for record in region.all(*kinds) if record.facts["vcnId"] == vcn]


def _of_subnet(region: Region, subnet: str, kind: str) -> list[Record]:
    return [record for record in region.all(kind) if record.facts["subnetId"] == subnet]


BEHAVIOURS: dict[str, Behaviour] = {
    VCN: _Vcn(),
    SUBNET: _Subnet(),
    ROUTE_TABLE: _RouteTable(),
    ROUTE_TABLE_ATTACHMENT: _RouteTableAttachment(),
    LPG: _Lpg(),
}
