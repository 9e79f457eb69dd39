"""The simulated region refuses what OCI refuses, and nothing beside it.

Each row has a request that is refused, OCI's error code, a piece of the text, and the nearest request that is
accepted: a refusal without its twin would also pass if the region refused everything.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region import registry
from nat_pod.lab.region.inputs import UNKNOWN as NOT_KNOWN_YET
from nat_pod.lab.region.inputs import Diff
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region

COMPARTMENT = "ocid1.compartment.oc1..test"
IMAGE = "ocid1.image.oc1..test"
INVALID, UNKNOWN = "400-InvalidParameter", "404-NotAuthorizedOrNotFound"
OVER_LIMIT, CONFLICT = "400-LimitExceeded", "409-Conflict"
NOWHERE = "ocid1.subnet.oc1.uk-london-1.nowhere"


@dataclass
class World:
    """A VCN 198.18.0.0/22 with subnets a (.0/27) and b (.32/27), an NSG and a VM in a; short names for requests."""

    region: Region = field(default_factory=lambda: Region(attach_seconds=0))

    def __post_init__(self) -> None:
        self.pod = self.vcn("198.18.0.0/22")
        self.a = self.subnet(self.pod, "198.18.0.0/27")
        self.b = self.subnet(self.pod, "198.18.0.32/27")
        self.group = self.nsg(self.pod)
        self.vm = self.instance(self.a, "198.18.0.2", createVnicDetails={"skipSourceDestCheck": True})
        self.vnic = self.vnic_of(self.vm)

    def make(self, token: str, inputs: dict[str, Any], name: str = "", **more: Any) -> str:
        return self.region.create(token, {"compartmentId": COMPARTMENT, **inputs}, name, **more)[0]

    def vcn(self, *cidrs: str, **inputs: Any) -> str:
        return self.make(oci.VCN, {"cidrBlocks": list(cidrs), **inputs})

    def subnet(self, vcn: str, cidr: str, **inputs: Any) -> str:
        return self.make(oci.SUBNET, {"vcnId": vcn, "cidrBlock": cidr, "prohibitPublicIpOnVnic": True, **inputs})

    def table(self, vcn: str, *rules: tuple[str, str]) -> str:
        return self.make(oci.ROUTE_TABLE, {"vcnId": vcn, "routeRules": routes(*rules)})

    def use(self, subnet: str, table: str) -> str:
        return self.region.create(oci.ROUTE_TABLE_ATTACHMENT, {"subnetId": subnet, "routeTableId": table})[0]

    def lpg(self, vcn: str, **inputs: Any) -> str:
        return self.make(oci.LPG, {"vcnId": vcn, **inputs})

    def nsg(self, vcn: str) -> str:
        return self.make(oci.NSG, {"vcnId": vcn})

    def rule(self, **inputs: Any) -> str:
        rule = {
            "networkSecurityGroupId": self.group,
            "direction": "INGRESS",
            "protocol": "all",
            "source": "10.0.0.0/24",
            "sourceType": "CIDR_BLOCK",
        }
        return self.region.create(oci.NSG_RULE, {**rule, **inputs})[0]

    def security_list(self, vcn: str, *sources: str, **inputs: Any) -> str:
        rules = [{"protocol": "all", "source": source} for source in sources]
        return self.make(oci.SECURITY_LIST, {"vcnId": vcn, "ingressSecurityRules": rules, **inputs})

    def instance(self, subnet: str, address: str | None = None, **inputs: Any) -> str:
        return self.make(oci.INSTANCE, instance_inputs(subnet, address, **inputs))

    def attach(self, instance: str, subnet: str, address: str | None = None, **details: Any) -> str:
        given = {"subnetId": subnet, **({"privateIp": address} if address else {}), **details}
        return self.region.create(oci.VNIC_ATTACHMENT, {"instanceId": instance, "createVnicDetails": given})[0]

    def ip(self, vnic: str, address: str | None = None, **inputs: Any) -> str:
        given = {"ipAddress": address} if address else {}
        return self.region.create(oci.PRIVATE_IP, {"vnicId": vnic, **given, **inputs})[0]

    def vnic_of(self, instance: str) -> str:
        attached = self.region.invoke("oci:Core/getVnicAttachments:getVnicAttachments", {"instanceId": instance})
        return str(attached["vnicAttachments"][0]["vnicId"])

    def primary_ip(self, vnic: str) -> str:
        ips = self.region.invoke("oci:Core/getPrivateIps:getPrivateIps", {"vnicId": vnic})["privateIps"]
        return str(next(ip["id"] for ip in ips if ip["isPrimary"]))

    def update(self, ocid: str, **changes: Any) -> dict[str, Any]:
        return self.region.update(ocid, {**self.region.get(ocid).inputs, **changes})

    def peer(self, cidr: str = "10.0.0.0/24") -> tuple[str, str]:
        """The POD's LPG and the requestor of a new customer."""
        acceptor = self.lpg(self.pod)
        return acceptor, self.lpg(self.vcn(cidr), peerId=acceptor)


def routes(*rules: tuple[str, str]) -> list[dict[str, str]]:
    return [{"destination": destination, "networkEntityId": target} for destination, target in rules]


def instance_inputs(subnet: str, address: str | None = None, **inputs: Any) -> dict[str, Any]:
    details = {"subnetId": subnet, "assignPublicIp": "false", **inputs.pop("createVnicDetails", {})}
    if address:
        details["privateIp"] = address
    return {
        "compartmentId": COMPARTMENT,
        "availabilityDomain": "any:UK-LONDON-1-AD-1",
        "shape": "VM.Standard2.4",
        "sourceDetails": {"sourceType": "image", "sourceId": IMAGE},
        "createVnicDetails": details,
        **inputs,
    }


@pytest.fixture
def world() -> World:
    return World()


def fill(count: int, step: Callable[[int], object]) -> None:
    for number in range(count):
        step(number)


def nets(count: int) -> list[str]:
    return [f"10.{number // 256}.{number % 256}.0/24" for number in range(count)]


def with_lpgs(w: World, count: int) -> None:
    fill(count, lambda _: w.lpg(w.pod))


def with_secondaries(w: World, count: int) -> str:
    wide = w.instance(w.subnet(w.pod, "198.18.1.0/24"))
    vnic = w.vnic_of(wide)
    fill(count, lambda _: w.ip(vnic))
    return vnic


def with_vnics(w: World, count: int) -> None:
    """Attach VNICs to the VM until it has `count`."""
    fill(count - 1, lambda _: w.attach(w.vm, w.b))


def with_rules(w: World, count: int) -> None:
    fill(count, lambda number: w.rule(source=nets(count)[number]))


def peered_twice(w: World) -> tuple[str, str, str]:
    """The POD's second LPG and two VCNs of which the first is peered with the POD already."""
    w.peer()
    first = w.region.all(oci.VCN)[1].ocid
    return w.lpg(w.pod), first, w.vcn("10.0.1.0/24")


def revoked(w: World) -> str:
    acceptor, requestor = w.peer()
    w.region.delete(requestor)
    return acceptor


def checked_ip(w: World, *, skip: bool) -> str:
    vnic = w.vnic_of(w.instance(w.b, createVnicDetails={"skipSourceDestCheck": skip}))
    return w.ip(vnic)


def dead_ip(w: World) -> str:
    vm = w.instance(w.b, createVnicDetails={"skipSourceDestCheck": True})
    ip = w.ip(w.vnic_of(vm))
    w.region.delete(vm)
    return ip


Request = Callable[[World], object]
OTHER = "10.9.0.0/16"

REFUSALS: list[tuple[str, Request, str, str, Request]] = [
    # VCNs
    ("VCN: not a CIDR", lambda w: w.vcn("10.0.0/24"), INVALID, "not a CIDR", lambda w: w.vcn("10.0.0.0/24")),
    ("VCN: a bare address", lambda w: w.vcn("10.0.0.0"), INVALID, "not a CIDR", lambda w: w.vcn("10.0.0.0/30")),
    ("VCN: host bits", lambda w: w.vcn("10.0.0.5/24"), INVALID, "host bits", lambda w: w.vcn("10.0.0.0/24")),
    ("VCN: larger than /16", lambda w: w.vcn("10.0.0.0/15"), INVALID, "/16 to a /30", lambda w: w.vcn("10.0.0.0/16")),
    ("VCN: smaller than /30", lambda w: w.vcn("10.0.0.0/31"), INVALID, "/16 to a /30", lambda w: w.vcn("10.0.0.0/30")),
    ("VCN: no CIDR", lambda w: w.vcn(), INVALID, "1 to 16", lambda w: w.vcn("10.0.0.0/16")),
    (
        "VCN: both ways to write a CIDR",
        lambda w: w.vcn("10.0.0.0/16", cidrBlock="10.0.0.0/16"),
        INVALID,
        "not both",
        lambda w: w.make(oci.VCN, {"cidrBlock": "10.0.0.0/16"}),
    ),
    (
        "VCN: its CIDRs overlap",
        lambda w: w.vcn("10.0.0.0/16", "10.0.1.0/24"),
        INVALID,
        "overlaps",
        lambda w: w.vcn("10.0.0.0/16", "10.1.0.0/24"),
    ),
    (
        "VCN: two CIDRs added at once",
        lambda w: w.update(w.pod, cidrBlocks=["198.18.0.0/22", *nets(2)]),
        INVALID,
        "only one",
        lambda w: w.update(w.pod, cidrBlocks=["198.18.0.0/22", *nets(1)]),
    ),
    (
        "VCN: a CIDR taken away under a subnet",
        lambda w: w.update(w.pod, cidrBlocks=["198.18.4.0/22"]),
        CONFLICT,
        "taken from its VCN",
        lambda w: w.update(w.pod, cidrBlocks=["198.18.0.0/23"]),
    ),
    (
        "VCN: unknown input",
        lambda w: w.vcn("10.0.0.0/16", cidr="10.0.0.0/16"),
        INVALID,
        "Unknown property",
        lambda w: w.vcn("10.0.0.0/16", dnsLabel="pod"),
    ),
    (
        "VCN: no compartment",
        lambda w: w.region.create(oci.VCN, {"cidrBlocks": ["10.0.0.0/16"]}),
        INVALID,
        "compartmentId: Missing",
        lambda w: w.vcn("10.0.0.0/16"),
    ),
    # Subnets
    (
        "subnet: outside its VCN",
        lambda w: w.subnet(w.pod, "198.18.4.0/27"),
        INVALID,
        "contained in its VCN",
        lambda w: w.subnet(w.pod, "198.18.3.224/27"),
    ),
    (
        "subnet: overlaps another",
        lambda w: w.subnet(w.pod, "198.18.0.0/26"),
        INVALID,
        "overlaps",
        lambda w: w.subnet(w.pod, "198.18.0.64/26"),
    ),
    (
        "subnet: host bits",
        lambda w: w.subnet(w.pod, "198.18.1.1/27"),
        INVALID,
        "host bits",
        lambda w: w.subnet(w.pod, "198.18.1.0/27"),
    ),
    (
        "subnet: smaller than /30",
        lambda w: w.subnet(w.pod, "198.18.1.0/31"),
        INVALID,
        "/30",
        lambda w: w.subnet(w.pod, "198.18.1.0/30"),
    ),
    (
        "subnet: unknown VCN",
        lambda w: w.subnet(NOWHERE, "10.0.0.0/24"),
        UNKNOWN,
        NOWHERE,
        lambda w: w.subnet(w.vcn("10.0.0.0/24"), "10.0.0.0/24"),
    ),
    (
        "subnet: VCN OCID of another kind",
        lambda w: w.subnet(w.a, "198.18.1.0/27"),
        UNKNOWN,
        "subnet",
        lambda w: w.subnet(w.pod, "198.18.1.0/27"),
    ),
    (
        "subnet: another VCN's route table",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", routeTableId=w.table(w.vcn(OTHER))),
        INVALID,
        "belongs to VCN",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", routeTableId=w.table(w.pod)),
    ),
    (
        "subnet: another VCN's security list",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", securityListIds=[w.security_list(w.vcn(OTHER))]),
        INVALID,
        "belongs to VCN",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", securityListIds=[w.security_list(w.pod)]),
    ),
    (
        "subnet: six security lists",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", securityListIds=[w.security_list(w.pod) for _ in range(6)]),
        OVER_LIMIT,
        "5 security lists",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", securityListIds=[w.security_list(w.pod) for _ in range(5)]),
    ),
    (
        "subnet: availability domain of another region",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", availabilityDomain="x:US-ASHBURN-AD-1"),
        INVALID,
        "availability domain",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", availabilityDomain="x:uk-london-1-AD-2"),
    ),
    (
        "subnet: shrunk under an address",
        lambda w: w.update(w.b, cidrBlock="198.18.0.64/27") if w.ip(w.vnic_of(w.instance(w.b))) else None,
        CONFLICT,
        "in use outside",
        lambda w: w.update(w.b, cidrBlock="198.18.0.32/28"),
    ),
    # Route tables
    (
        "route: same destination twice",
        lambda w: w.table(w.pod, ("10.0.0.0/24", w.lpg(w.pod)), ("10.0.0.0/24", w.lpg(w.pod))),
        INVALID,
        "two route rules",
        lambda w: w.table(w.pod, ("10.0.0.0/24", w.lpg(w.pod)), ("10.0.0.0/25", w.lpg(w.pod))),
    ),
    (
        "route: LPG of another VCN",
        lambda w: w.table(w.pod, (OTHER, w.lpg(w.vcn(OTHER)))),
        INVALID,
        "belongs to VCN",
        lambda w: w.table(w.pod, (OTHER, w.lpg(w.pod))),
    ),
    (
        "route: private IP of another VCN",
        lambda w: w.table(w.vcn(OTHER), ("198.18.0.0/22", checked_ip(w, skip=True))),
        INVALID,
        "another VCN",
        lambda w: w.table(w.pod, (OTHER, checked_ip(w, skip=True))),
    ),
    (
        "route: target with the check on",
        lambda w: w.table(w.pod, (OTHER, checked_ip(w, skip=False))),
        INVALID,
        "SRC/DST check is enabled",
        lambda w: w.table(w.pod, (OTHER, checked_ip(w, skip=True))),
    ),
    (
        "route: target without a VNIC",
        lambda w: w.table(
            w.pod, (OTHER, w.region.create(oci.PRIVATE_IP, {"subnetId": w.b, "lifetime": "RESERVED"})[0])
        ),
        INVALID,
        "no VNIC",
        lambda w: w.table(w.pod, (OTHER, checked_ip(w, skip=True))),
    ),
    (
        "route: target that died with its VNIC",
        lambda w: w.table(w.pod, (OTHER, dead_ip(w))),
        UNKNOWN,
        "privateip",
        lambda w: w.table(w.pod, (OTHER, checked_ip(w, skip=True))),
    ),
    (
        "route: a VNIC as target",
        lambda w: w.table(w.pod, (OTHER, w.vnic)),
        INVALID,
        "Invalid entity type in Id",
        lambda w: w.table(w.pod, (OTHER, w.primary_ip(w.vnic))),
    ),
    (
        "route: destination without prefix",
        lambda w: w.table(w.pod, ("10.0.0.5", w.lpg(w.pod))),
        INVALID,
        "not a CIDR",
        lambda w: w.table(w.pod, ("10.0.0.5/32", w.lpg(w.pod))),
    ),
    (
        "route: 201 rules",
        lambda w: w.table(w.pod, *every_net(w, 201)),
        OVER_LIMIT,
        "200",
        lambda w: w.table(w.pod, *every_net(w, 200)),
    ),
    (
        "route: rule without target",
        lambda w: w.make(oci.ROUTE_TABLE, {"vcnId": w.pod, "routeRules": [{"destination": OTHER}]}),
        INVALID,
        "routeRules[0].networkEntityId: Missing",
        lambda w: w.make(oci.ROUTE_TABLE, {"vcnId": w.pod, "routeRules": routes((OTHER, w.lpg(w.pod)))}),
    ),
    # Local peering gateways
    ("LPG: eleventh", lambda w: with_lpgs(w, 11), OVER_LIMIT, "10 local peering", lambda w: with_lpgs(w, 10)),
    ("LPG: overlapping VCNs", lambda w: w.peer("198.18.2.0/24"), INVALID, "overlap", lambda w: w.peer("198.18.4.0/24")),
    (
        "LPG: peer unknown",
        lambda w: w.lpg(w.pod, peerId=NOWHERE),
        UNKNOWN,
        NOWHERE,
        lambda w: w.lpg(w.vcn(OTHER), peerId=w.lpg(w.pod)),
    ),
    (
        "LPG: peer in the same VCN",
        lambda w: w.lpg(w.pod, peerId=w.lpg(w.pod)),
        INVALID,
        "same VCN",
        lambda w: w.lpg(w.vcn(OTHER), peerId=w.lpg(w.pod)),
    ),
    (
        "LPG: peer already peered",
        lambda w: w.lpg(w.vcn(OTHER), peerId=w.peer()[0]),
        CONFLICT,
        "already been connected",
        lambda w: w.lpg(w.vcn(OTHER), peerId=w.lpg(w.pod)),
    ),
    (
        "LPG: ever-peered one reused",
        lambda w: w.lpg(w.vcn(OTHER), peerId=revoked(w)),
        CONFLICT,
        "already been connected",
        lambda w: w.lpg(w.vcn(OTHER), peerId=w.lpg(w.pod)) if revoked(w) else None,
    ),
    (
        "LPG: second peering of two VCNs",
        lambda w: (lambda own, one, _: w.lpg(one, peerId=own))(*peered_twice(w)),
        CONFLICT,
        "already been established",
        lambda w: (lambda own, _, two: w.lpg(two, peerId=own))(*peered_twice(w)),
    ),
    (
        "LPG: route table with an LPG in it",
        lambda w: w.lpg(w.pod, routeTableId=w.table(w.pod, (OTHER, w.lpg(w.pod)))),
        INVALID,
        "private IPs",
        lambda w: w.lpg(w.pod, routeTableId=w.table(w.pod, (OTHER, checked_ip(w, skip=True)))),
    ),
    (
        "LPG: another VCN's route table",
        lambda w: w.lpg(w.pod, routeTableId=w.table(w.vcn(OTHER))),
        INVALID,
        "belongs to VCN",
        lambda w: w.lpg(w.pod, routeTableId=w.table(w.pod)),
    ),
    (
        "LPG: a rule to an LPG in the table that it has",
        lambda w: w.update(table_of_lpg(w), routeRules=routes((OTHER, w.lpg(w.pod)))),
        INVALID,
        "private IPs",
        lambda w: w.update(table_of_lpg(w), routeRules=routes((OTHER, checked_ip(w, skip=True)))),
    ),
    (
        "route table attachment: another VCN's table",
        lambda w: w.use(w.b, w.table(w.vcn(OTHER))),
        INVALID,
        "belongs to VCN",
        lambda w: w.use(w.b, w.table(w.pod)),
    ),
    ("LPG: empty peerId", lambda w: w.lpg(w.pod, peerId=""), INVALID, "must not be empty", lambda w: w.lpg(w.pod)),
    # Security
    ("NSG: rule 121", lambda w: with_rules(w, 121), OVER_LIMIT, "120 rules", lambda w: with_rules(w, 120)),
    ("NSG: rule without a source", lambda w: w.rule(source=None), INVALID, "needs source", lambda w: w.rule()),
    (
        "NSG: egress rule with a source",
        lambda w: w.rule(direction="EGRESS"),
        INVALID,
        "needs destination",
        lambda w: w.rule(direction="EGRESS", destination=OTHER, destinationType="CIDR_BLOCK"),
    ),
    (
        "NSG: rule without the type of its source",
        lambda w: w.rule(sourceType=None),
        INVALID,
        "sourceType",
        lambda w: w.rule(),
    ),
    ("NSG: direction", lambda w: w.rule(direction="IN"), INVALID, "INGRESS or EGRESS", lambda w: w.rule()),
    (
        "NSG: source with host bits",
        lambda w: w.rule(source="10.0.0.1/24"),
        INVALID,
        "host bits",
        lambda w: w.rule(source="10.0.0.1/32"),
    ),
    (
        "NSG: group of another VCN",
        lambda w: w.rule(source=w.nsg(w.vcn(OTHER)), sourceType="NETWORK_SECURITY_GROUP"),
        INVALID,
        "belongs to VCN",
        lambda w: w.rule(source=w.nsg(w.pod), sourceType="NETWORK_SECURITY_GROUP"),
    ),
    (
        "NSG: unknown group",
        lambda w: w.rule(source=NOWHERE, sourceType="NETWORK_SECURITY_GROUP"),
        UNKNOWN,
        NOWHERE,
        lambda w: w.rule(source=w.group, sourceType="NETWORK_SECURITY_GROUP"),
    ),
    ("NSG: protocol by name", lambda w: w.rule(protocol="tcp"), INVALID, "protocol", lambda w: w.rule(protocol="6")),
    (
        "NSG: ICMP options on TCP",
        lambda w: w.rule(protocol="6", icmpOptions={"type": 3}),
        INVALID,
        "icmpOptions",
        lambda w: w.rule(protocol="1", icmpOptions={"type": 3}),
    ),
    (
        "security list: 201 rules",
        lambda w: w.security_list(w.pod, *nets(201)),
        OVER_LIMIT,
        "200",
        lambda w: w.security_list(w.pod, *nets(200)),
    ),
    (
        "security list: not a CIDR",
        lambda w: w.security_list(w.pod, "10.0.0.0"),
        INVALID,
        "not a CIDR",
        lambda w: w.security_list(w.pod, "10.0.0.0/24"),
    ),
    # Instances
    (
        "VM: public IP by default",
        lambda w: w.instance(w.b, createVnicDetails={"assignPublicIp": None}),
        INVALID,
        "prohibits public IPs",
        lambda w: w.instance(w.b),
    ),
    (
        "VM: address in use",
        lambda w: w.instance(w.a, "198.18.0.2"),
        INVALID,
        "already in use",
        lambda w: w.instance(w.a, "198.18.0.3"),
    ),
    (
        "VM: first address",
        lambda w: w.instance(w.b, "198.18.0.32"),
        INVALID,
        "reserves",
        lambda w: w.instance(w.b, "198.18.0.34"),
    ),
    (
        "VM: second address",
        lambda w: w.instance(w.b, "198.18.0.33"),
        INVALID,
        "reserves",
        lambda w: w.instance(w.b, "198.18.0.34"),
    ),
    (
        "VM: last address",
        lambda w: w.instance(w.b, "198.18.0.63"),
        INVALID,
        "reserves",
        lambda w: w.instance(w.b, "198.18.0.62"),
    ),
    (
        "VM: address of another subnet",
        lambda w: w.instance(w.b, "198.18.0.3"),
        INVALID,
        "not within",
        lambda w: w.instance(w.a, "198.18.0.3"),
    ),
    ("VM: unknown subnet", lambda w: w.instance(NOWHERE), UNKNOWN, NOWHERE, lambda w: w.instance(w.b)),
    (
        "VM: NSG of another VCN",
        lambda w: w.instance(w.b, createVnicDetails={"nsgIds": [w.nsg(w.vcn(OTHER))]}),
        INVALID,
        "belongs to VCN",
        lambda w: w.instance(w.b, createVnicDetails={"nsgIds": [w.group]}),
    ),
    (
        "VM: six NSGs",
        lambda w: w.instance(w.b, createVnicDetails={"nsgIds": [w.nsg(w.pod) for _ in range(6)]}),
        OVER_LIMIT,
        "a VNIC has 5",
        lambda w: w.instance(w.b, createVnicDetails={"nsgIds": [w.nsg(w.pod) for _ in range(5)]}),
    ),
    (
        "VM: unknown shape",
        lambda w: w.instance(w.b, shape="VM.Huge"),
        INVALID,
        "VM.Huge",
        lambda w: w.instance(w.b, shape="VM.Standard2.24"),
    ),
    (
        "VM: flex shape without OCPUs",
        lambda w: w.instance(w.b, shape="VM.Optimized3.Flex"),
        INVALID,
        "ocpus",
        lambda w: w.instance(w.b, shape="VM.Optimized3.Flex", shapeConfig={"ocpus": 12}),
    ),
    (
        "VM: fault domain",
        lambda w: w.instance(w.b, faultDomain="FAULT-DOMAIN-4"),
        INVALID,
        "fault domain",
        lambda w: w.instance(w.b, faultDomain="FAULT-DOMAIN-3"),
    ),
    (
        "VM: no image",
        lambda w: w.instance(w.b, sourceDetails={"sourceType": "image"}),
        INVALID,
        "image",
        lambda w: w.instance(w.b),
    ),
    (
        "VM: subnet in another availability domain",
        lambda w: w.instance(w.subnet(w.pod, "198.18.1.0/27", availabilityDomain="any:UK-LONDON-1-AD-2")),
        INVALID,
        "AD-2",
        lambda w: w.instance(w.subnet(w.pod, "198.18.1.0/27", availabilityDomain="any:UK-LONDON-1-AD-1")),
    ),
    (
        "VM: 32,001 bytes of metadata",
        lambda w: w.instance(w.b, metadata={"a": "x" * 32_000}),
        INVALID,
        "32001",
        lambda w: w.instance(w.b, metadata={"a": "x" * 31_999}),
    ),
    (
        "VM: metadata and extendedMetadata together",
        lambda w: w.instance(w.b, metadata={"a": "x" * 20_000}, extendedMetadata={"b": "x" * 12_000}),
        INVALID,
        "32002",
        lambda w: w.instance(w.b, metadata={"a": "x" * 20_000}, extendedMetadata={"b": "x" * 11_000}),
    ),
    (
        "VM: user_data changed",
        lambda w: w.update(w.instance(w.b, metadata={"user_data": "1"}), metadata={"user_data": "2"}),
        INVALID,
        "The 'user_data' metadata field cannot be updated",
        lambda w: w.update(w.instance(w.b, metadata={"user_data": "1"}), metadata={"user_data": "1", "rules": "2"}),
    ),
    (
        "VM: ssh key added",
        lambda w: w.update(w.vm, metadata={"ssh_authorized_keys": "k"}),
        INVALID,
        "'ssh_authorized_keys'",
        lambda w: w.update(w.vm, metadata={"other": "k"}),
    ),
    (
        "VM: pinned address changed in place",
        lambda w: w.update(w.vm, createVnicDetails={"subnetId": w.a, "privateIp": "198.18.0.9"}),
        INVALID,
        "createVnicDetails.privateIp",
        lambda w: w.update(w.vm, displayName="other"),
    ),
    (
        "VM: smaller shape than its VNICs",
        lambda w: (with_vnics(w, 3), w.update(w.vm, shape="VM.Standard2.1")),
        OVER_LIMIT,
        "3 VNICs",
        lambda w: (with_vnics(w, 2), w.update(w.vm, shape="VM.Standard2.1")),
    ),
    (
        "VM: shape under AVOID_DOWNTIME",
        lambda w: w.update(w.vm, shape="VM.Standard2.24", updateOperationConstraint="AVOID_DOWNTIME"),
        CONFLICT,
        "reboot",
        lambda w: w.update(w.vm, shape="VM.Standard2.24"),
    ),
    (
        "VM: public IP added in a private subnet",
        lambda w: w.update(
            w.vm, createVnicDetails={"subnetId": w.a, "privateIp": "198.18.0.2", "assignPublicIp": "true"}
        ),
        INVALID,
        "prohibits public",
        lambda w: w.update(
            w.vm, createVnicDetails={"subnetId": w.a, "privateIp": "198.18.0.2", "assignPublicIp": "false"}
        ),
    ),
    # VNIC attachments
    ("VNIC: fifth of a VM.Standard2.4", lambda w: with_vnics(w, 5), OVER_LIMIT, "4 VNICs", lambda w: with_vnics(w, 4)),
    (
        "VNIC: public IP",
        lambda w: w.attach(w.vm, w.b, assignPublicIp="true"),
        INVALID,
        "public",
        lambda w: w.attach(w.vm, w.b),
    ),
    ("VNIC: unknown instance", lambda w: w.attach(NOWHERE, w.b), UNKNOWN, NOWHERE, lambda w: w.attach(w.vm, w.b)),
    (
        "VNIC: address in use",
        lambda w: w.attach(w.vm, w.a, "198.18.0.2"),
        INVALID,
        "in use",
        lambda w: w.attach(w.vm, w.a, "198.18.0.3"),
    ),
    (
        "VNIC: assignPublicIp as a boolean",
        lambda w: w.attach(w.vm, w.b, assignPublicIp=False),
        INVALID,
        "expected string",
        lambda w: w.attach(w.vm, w.b, assignPublicIp="false"),
    ),
    (
        "VNIC: the primary one detached",
        lambda w: w.region.delete(attachments(w)[0]),
        INVALID,
        "primary VNIC",
        lambda w: w.region.delete(w.attach(w.vm, w.b)),
    ),
    # Private IPs
    (
        "IP: VNIC that is gone",
        lambda w: w.update(dead_ip_of_attachment(w), displayName="x"),
        UNKNOWN,
        "",
        lambda w: w.ip(w.vnic),
    ),
    ("IP: unknown VNIC", lambda w: w.ip(NOWHERE), UNKNOWN, NOWHERE, lambda w: w.ip(w.vnic)),
    (
        "IP: address in use",
        lambda w: w.ip(w.vnic, "198.18.0.2"),
        INVALID,
        "in use",
        lambda w: w.ip(w.vnic, "198.18.0.3"),
    ),
    (
        "IP: outside the VNIC's subnet",
        lambda w: w.ip(w.vnic, "198.18.0.40"),
        INVALID,
        "not within",
        lambda w: w.ip(w.vnic, "198.18.0.4"),
    ),
    (
        "IP: last address of a /28",
        lambda w: w.ip(w.vnic_of(w.instance(w.subnet(w.pod, "198.18.0.160/29"))), "198.18.0.167"),
        INVALID,
        "reserves",
        lambda w: w.ip(w.vnic_of(w.instance(w.subnet(w.pod, "198.18.0.160/28"))), "198.18.0.167"),
    ),
    (
        "IP: 65th secondary",
        lambda w: with_secondaries(w, 65),
        OVER_LIMIT,
        "64 secondary",
        lambda w: with_secondaries(w, 64),
    ),
    (
        "IP: no free address",
        lambda w: fill(29, lambda _: w.ip(w.vnic)),
        OVER_LIMIT,
        "no free address",
        lambda w: fill(28, lambda _: w.ip(w.vnic)),
    ),
    ("IP: not an address", lambda w: w.ip(w.vnic, "198.18.0"), INVALID, "", lambda w: w.ip(w.vnic, "198.18.0.8")),
    (
        "IP: neither VNIC nor subnet",
        lambda w: w.region.create(oci.PRIVATE_IP, {}),
        INVALID,
        "RESERVED",
        lambda w: w.region.create(oci.PRIVATE_IP, {"subnetId": w.a, "lifetime": "RESERVED"}),
    ),
    (
        "IP: moved to another subnet",
        lambda w: w.update(w.ip(w.vnic), vnicId=w.vnic_of(w.instance(w.b))),
        INVALID,
        "same subnet",
        lambda w: w.update(w.ip(w.vnic), vnicId=w.vnic_of(w.instance(w.a))),
    ),
    (
        "IP: the primary one deleted",
        lambda w: w.region.delete(w.primary_ip(w.vnic)),
        INVALID,
        "primary",
        lambda w: w.region.delete(w.ip(w.vnic)),
    ),
    # Deletion
    (
        "delete: VCN with a subnet",
        lambda w: w.region.delete(w.pod),
        CONFLICT,
        "associated with",
        lambda w: w.region.delete(w.vcn(OTHER)),
    ),
    (
        "delete: VCN with an LPG",
        lambda w: w.region.delete(vcn_with(w, w.lpg)),
        CONFLICT,
        "localpeeringgateway",
        lambda w: w.region.delete(w.vcn(OTHER)),
    ),
    (
        "delete: VCN with a route table",
        lambda w: w.region.delete(vcn_with(w, w.table)),
        CONFLICT,
        "routetable",
        lambda w: w.region.delete(w.vcn(OTHER)),
    ),
    (
        "delete: VCN with an NSG",
        lambda w: w.region.delete(vcn_with(w, w.nsg)),
        CONFLICT,
        "networksecuritygroup",
        lambda w: w.region.delete(w.vcn(OTHER)),
    ),
    (
        "delete: subnet with a VNIC",
        lambda w: w.region.delete(w.a),
        CONFLICT,
        "references the VNIC",
        lambda w: w.region.delete(w.b),
    ),
    (
        "delete: NSG with a VNIC",
        lambda w: w.region.delete(w.group) if w.instance(w.b, createVnicDetails={"nsgIds": [w.group]}) else None,
        CONFLICT,
        "VNICs attached",
        lambda w: w.region.delete(w.group),
    ),
    (
        "delete: route table in use",
        lambda w: w.region.delete(table_in_use(w)),
        CONFLICT,
        "associated with",
        lambda w: w.region.delete(w.table(w.pod)),
    ),
    (
        "delete: route table that is attached",
        lambda w: w.region.delete((table := w.table(w.pod), w.use(w.b, table))[0]),
        CONFLICT,
        "associated with",
        lambda w: w.region.delete((table := w.table(w.pod), w.region.delete(w.use(w.b, table)))[0]),
    ),
    (
        "delete: security list in use",
        lambda w: w.region.delete(
            next(
                iter(
                    w.region.read(w.subnet(w.pod, "198.18.1.0/27", securityListIds=[w.security_list(w.pod)]))[
                        "securityListIds"
                    ]
                )
            )
        ),
        CONFLICT,
        "associated with subnet",
        lambda w: w.region.delete(w.security_list(w.pod)),
    ),
    (
        "delete: LPG that a rule points to",
        lambda w: w.region.delete(target_lpg(w)),
        CONFLICT,
        "in use",
        lambda w: w.region.delete(w.lpg(w.pod)),
    ),
    (
        "delete: gone already",
        lambda w: (w.region.delete(w.b), w.region.delete(w.b)),
        UNKNOWN,
        "",
        lambda w: w.region.delete(w.b),
    ),
    (
        "unknown type",
        lambda w: w.make("oci:Core/drg:Drg", {}),
        "501-NotImplemented",
        "no oci:Core/drg:Drg",
        lambda w: w.nsg(w.pod),
    ),
]


def every_net(w: World, count: int) -> list[tuple[str, str]]:
    lpg = w.lpg(w.pod)
    return [(net, lpg) for net in nets(count)]


def attachments(w: World) -> list[str]:
    return [record.ocid for record in w.region.all(oci.VNIC_ATTACHMENT)]


def dead_ip_of_attachment(w: World) -> str:
    attachment = w.attach(w.vm, w.b)
    ip = w.ip(w.region.read(attachment)["vnicId"])
    w.region.delete(attachment)
    return ip


def vcn_with(w: World, make: Callable[[str], str]) -> str:
    vcn = w.vcn(OTHER)
    make(vcn)
    return vcn


def table_in_use(w: World) -> str:
    table = w.table(w.pod)
    w.subnet(w.pod, "198.18.1.0/27", routeTableId=table)
    return table


def table_of_lpg(w: World) -> str:
    table = w.table(w.pod)
    w.lpg(w.pod, routeTableId=table)
    return table


def target_lpg(w: World) -> str:
    lpg = w.lpg(w.pod)
    w.table(w.pod, (OTHER, lpg))
    return lpg


def test_an_attached_route_table_holds_until_it_is_detached(world: World) -> None:
    default = world.region.read(world.b)["routeTableId"]
    table = world.table(world.pod)
    attachment = world.use(world.b, table)
    assert world.region.read(world.b)["routeTableId"] == table
    world.update(world.b, displayName="the subnet's own inputs say nothing of it")
    assert world.region.read(world.b)["routeTableId"] == table
    world.region.delete(attachment)
    assert world.region.read(world.b)["routeTableId"] == default


def rows() -> list[Any]:
    return [pytest.param(*row[1:], id=row[0]) for row in REFUSALS]


@pytest.mark.parametrize(("refused", "code", "text", "accepted"), rows())
def test_refused_and_its_twin_accepted(refused: Request, code: str, text: str, accepted: Request) -> None:
    with pytest.raises(OciError) as caught:
        refused(World())
    assert str(caught.value).startswith(f"{code}, ")
    assert text in caught.value.message
    assert caught.value.source, "a refusal names the document that has its rule"
    accepted(World())


def test_a_refused_request_changes_nothing(world: World) -> None:
    before = world.region.to_json()
    for request in (
        lambda: world.subnet(world.pod, "198.18.0.0/26"),
        lambda: world.update(world.vm, shape="VM.Huge"),
        lambda: world.attach(world.vm, world.a, "198.18.0.2"),
        lambda: world.instance(world.a, "198.18.0.31"),
        lambda: world.region.delete(world.pod),
    ):
        with pytest.raises(OciError):
            request()
    assert world.region.to_json() == before


# Attach and detach


def attach_together(world: World, *pairs: tuple[str, str]) -> list[str]:
    """Attach several VNICs at the same time; what each thread met, "" for success."""
    world.region.attach_seconds = 0.2
    outcomes = [""] * len(pairs)
    barrier = threading.Barrier(len(pairs))

    def work(index: int, instance: str, subnet: str) -> None:
        barrier.wait()
        try:
            world.attach(instance, subnet)
        except OciError as error:
            outcomes[index] = str(error)

    threads = [threading.Thread(target=work, args=(index, *pair)) for index, pair in enumerate(pairs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_two_attaches_at_once_on_one_instance_conflict(world: World) -> None:
    refused = [outcome for outcome in attach_together(world, (world.vm, world.b), (world.vm, world.b)) if outcome]
    assert len(refused) == 1
    assert refused[0].startswith(f"409-Conflict, instance {world.vm} is currently being modified, try again later")


def test_two_instances_attach_in_parallel(world: World) -> None:
    other = world.instance(world.a)
    assert attach_together(world, (world.vm, world.b), (other, world.b)) == ["", ""]


def test_a_second_attach_after_the_first_is_accepted(world: World) -> None:
    world.attach(world.vm, world.b)
    world.attach(world.vm, world.b)
    assert len(attachments(world)) == 3


# What dies with what


def test_private_ips_die_with_their_vnic_and_vnics_with_their_instance(world: World) -> None:
    first, second = world.attach(world.vm, world.b), world.attach(world.vm, world.b)
    vnic = world.region.read(first)["vnicId"]
    ip = world.ip(vnic)
    world.region.delete(first)
    for gone in (first, vnic, ip):
        with pytest.raises(OciError, match=UNKNOWN):
            world.region.read(gone)
    world.region.delete(world.vm)
    with pytest.raises(OciError, match="404"):
        world.region.read(second)
    assert world.region.all(oci.PRIVATE_IP, oci.VNIC, oci.VNIC_ATTACHMENT) == []


def test_a_route_target_may_be_deleted_and_leaves_a_blackhole(world: World) -> None:
    ip = checked_ip(world, skip=True)
    table = world.table(world.pod, (OTHER, ip))
    world.region.delete(ip)
    assert world.region.read(table)["routeRules"][0]["networkEntityId"] == ip


def test_lpg_states(world: World) -> None:
    acceptor, requestor = world.peer()
    assert world.region.read(acceptor)["peeringStatus"] == "PEERED"
    assert world.region.read(acceptor)["peerId"] == requestor
    assert world.region.read(acceptor)["peerAdvertisedCidr"] == "10.0.0.0/24"
    world.region.delete(requestor)
    assert world.region.read(acceptor)["peeringStatus"] == "REVOKED"


def test_the_lpg_limit_can_be_raised() -> None:
    world = World(Region(attach_seconds=0, lpg_limit=20))
    with_lpgs(world, 20)
    with pytest.raises(OciError, match="LimitExceeded"):
        world.lpg(world.pod)


def test_two_customers_behind_one_pod_may_overlap_each_other(world: World) -> None:
    world.peer("10.0.0.0/24")
    world.peer("10.0.0.0/24")


# Defaults


def test_a_subnet_without_lists_has_the_default_list_with_ssh_open_until_it_is_emptied(world: World) -> None:
    default = world.region.read(world.pod)["defaultSecurityListId"]
    assert world.region.read(world.a)["securityListIds"] == [default]
    assert world.region.read(default)["ingressSecurityRules"][0]["tcpOptions"] == {"min": 22, "max": 22}
    managed, state = world.region.create(
        oci.DEFAULT_SECURITY_LIST,
        {"manageDefaultResourceId": default, "ingressSecurityRules": [], "egressSecurityRules": []},
        "empty",
    )
    assert managed == default
    assert state["ingressSecurityRules"] == state["egressSecurityRules"] == []
    assert world.region.find(oci.DEFAULT_SECURITY_LIST, "empty") == default
    world.region.delete(managed)
    assert world.region.read(default)["egressSecurityRules"] == []


def test_a_vnic_route_table_is_ignored_at_attach_and_taken_at_update(world: World) -> None:
    table = world.table(world.pod)
    attachment = world.attach(world.vm, world.b, routeTableId=table)
    assert "routeTableId" not in world.region.read(attachment)["createVnicDetails"]
    wanted = world.region.get(attachment).inputs
    assert world.region.diff(oci.VNIC_ATTACHMENT, world.region.read_inputs(attachment), wanted).update == (
        "createVnicDetails.routeTableId",
    )
    world.region.update(attachment, wanted)
    assert world.region.read(attachment)["createVnicDetails"]["routeTableId"] == table


def test_state_has_the_outputs_that_programs_use(world: World) -> None:
    vcn, vm = world.region.read(world.pod), world.region.read(world.vm)
    attachment = world.region.read(world.attach(world.vm, world.b))
    assert vcn["defaultRouteTableId"].startswith("ocid1.routetable.")
    assert (vm["privateIp"], vm["createVnicDetails"]["privateIp"]) == ("198.18.0.2", "198.18.0.2")
    assert attachment["vnicId"].startswith("ocid1.vnic.")
    assert world.region.read(attachment["vnicId"])["macAddress"].startswith("02:00:17:")


# Diff: in place or replace, as the provider does

VM = instance_inputs("subnet", "198.18.0.2", metadata={"user_data": "u", "nat-pod-rules": "1"})
ATTACHED = {
    "instanceId": "vm",
    "createVnicDetails": {"subnetId": "s", "privateIp": "198.18.0.34", "nsgIds": ["x", "y"]},
}
TABLE = {"compartmentId": "c", "vcnId": "v", "routeRules": routes(("10.0.0.0/24", "1"), ("10.0.1.0/24", "2"))}


def changed(base: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(base))
    *steps, last = path.split("/")
    inner = copy
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return copy


@pytest.mark.parametrize(
    ("token", "old", "new", "diff"),
    [
        pytest.param(
            oci.INSTANCE,
            VM,
            changed(VM, "metadata/nat-pod-rules", "2"),
            Diff(update=("metadata.nat-pod-rules",)),
            id="rules",
        ),
        pytest.param(
            oci.INSTANCE,
            VM,
            changed(VM, "metadata/user_data", "v"),
            Diff(replace=("metadata.user_data",)),
            id="user_data",
        ),
        pytest.param(
            oci.INSTANCE,
            VM,
            changed(VM, "metadata/ssh_authorized_keys", "k"),
            Diff(replace=("metadata.ssh_authorized_keys",)),
            id="ssh key",
        ),
        pytest.param(oci.INSTANCE, VM, changed(VM, "shape", "VM.Standard2.8"), Diff(update=("shape",)), id="shape"),
        pytest.param(
            oci.INSTANCE,
            VM,
            changed(VM, "sourceDetails/sourceId", "ocid1.image.2"),
            Diff(update=("sourceDetails.sourceId",)),
            id="image",
        ),
        pytest.param(
            oci.INSTANCE,
            VM,
            changed(VM, "availabilityDomain", "ANY:UK-LONDON-1-AD-1"),
            Diff(),
            id="domain in another case",
        ),
        pytest.param(
            oci.INSTANCE,
            VM,
            changed(VM, "availabilityDomain", "any:UK-LONDON-1-AD-2"),
            Diff(replace=("availabilityDomain",)),
            id="domain",
        ),
        pytest.param(
            oci.INSTANCE,
            VM,
            changed(VM, "createVnicDetails/privateIp", "198.18.0.3"),
            Diff(replace=("createVnicDetails.privateIp",)),
            id="primary address",
        ),
        pytest.param(
            oci.INSTANCE,
            VM,
            changed(VM, "createVnicDetails/skipSourceDestCheck", True),
            Diff(update=("createVnicDetails.skipSourceDestCheck",)),
            id="check",
        ),
        pytest.param(oci.INSTANCE, changed(VM, "displayName", "x"), VM, Diff(), id="computed input left out"),
        pytest.param(
            oci.VNIC_ATTACHMENT,
            ATTACHED,
            changed(ATTACHED, "createVnicDetails/nsgIds", ["y", "x"]),
            Diff(),
            id="order of a set",
        ),
        pytest.param(
            oci.VNIC_ATTACHMENT,
            ATTACHED,
            changed(ATTACHED, "createVnicDetails/assignPublicIp", "false"),
            Diff(),
            id="default written out",
        ),
        pytest.param(
            oci.VNIC_ATTACHMENT,
            ATTACHED,
            changed(ATTACHED, "createVnicDetails/assignPublicIp", "true"),
            Diff(replace=("createVnicDetails.assignPublicIp",)),
            id="public IP",
        ),
        pytest.param(
            oci.VNIC_ATTACHMENT,
            ATTACHED,
            changed(ATTACHED, "displayName", "x"),
            Diff(replace=("displayName",)),
            id="renamed attachment",
        ),
        pytest.param(
            oci.VNIC_ATTACHMENT,
            ATTACHED,
            {**ATTACHED, "createVnicDetails": {"subnetId": "s", "privateIp": "198.18.0.34"}},
            Diff(update=("createVnicDetails.nsgIds",)),
            id="NSGs left out",
        ),
        pytest.param(
            oci.PRIVATE_IP, {"vnicId": "a"}, {"vnicId": "b"}, Diff(update=("vnicId",)), id="moved IP, not ForceNew"
        ),
        pytest.param(oci.PRIVATE_IP, {"vnicId": "a"}, {}, Diff(update=("vnicId",)), id="VNIC left out"),
        pytest.param(
            oci.PRIVATE_IP,
            {"ipAddress": "10.0.0.2"},
            {"ipAddress": "10.0.0.3"},
            Diff(replace=("ipAddress",)),
            id="other address",
        ),
        pytest.param(
            oci.ROUTE_TABLE,
            TABLE,
            changed(TABLE, "routeRules", list(reversed(TABLE["routeRules"]))),
            Diff(),
            id="order of route rules",
        ),
        pytest.param(
            oci.ROUTE_TABLE,
            TABLE,
            {"compartmentId": "c", "vcnId": "v"},
            Diff(update=("routeRules",)),
            id="route rules left out",
        ),
        pytest.param(
            oci.ROUTE_TABLE, TABLE, changed(TABLE, "vcnId", "w"), Diff(replace=("vcnId",)), id="VCN of a table"
        ),
        pytest.param(
            oci.LPG, {"vcnId": "v"}, {"vcnId": "v", "peerId": "p"}, Diff(replace=("peerId",)), id="peer given later"
        ),
        pytest.param(
            oci.LPG,
            {"vcnId": "v", "peerId": NOT_KNOWN_YET},
            {"vcnId": "v", "peerId": "p"},
            Diff(replace=("peerId",)),
            id="unknown",
        ),
        pytest.param(
            oci.VCN,
            {"cidrBlocks": ["10.0.0.0/16"]},
            {"cidrBlocks": ["10.1.0.0/16"]},
            Diff(update=("cidrBlocks",)),
            id="VCN CIDRs",
        ),
        pytest.param(
            oci.SUBNET,
            {"prohibitPublicIpOnVnic": True},
            {"prohibitPublicIpOnVnic": False},
            Diff(replace=("prohibitPublicIpOnVnic",)),
            id="private subnet",
        ),
        pytest.param(
            oci.NSG_RULE,
            {"networkSecurityGroupId": "a", "source": "x"},
            {"networkSecurityGroupId": "b", "source": "y"},
            Diff(replace=("networkSecurityGroupId",), update=("source",)),
            id="NSG of a rule",
        ),
        pytest.param(
            oci.NSG_RULE, {"source": "x"}, {"source": "x", "stateless": False}, Diff(), id="stateful written out"
        ),
    ],
)
def test_diff(token: str, old: dict[str, Any], new: dict[str, Any], diff: Diff) -> None:
    assert registry.resource(token).diff(old, new) == diff


def test_check_accepts_what_a_preview_does_not_know() -> None:
    inputs = {"instanceId": NOT_KNOWN_YET, "createVnicDetails": {"subnetId": NOT_KNOWN_YET, "nsgIds": [NOT_KNOWN_YET]}}
    assert registry.resource(oci.VNIC_ATTACHMENT).check(inputs) == []
    assert registry.resource(oci.VNIC_ATTACHMENT).check({"instanceId": "i", "createVnicDetails": NOT_KNOWN_YET}) == []


@pytest.mark.parametrize(
    ("token", "inputs", "problem"),
    [
        (oci.SUBNET, {"compartmentId": "c"}, ("vcnId", "Missing required property")),
        (oci.SUBNET, {"compartmentId": "c", "vcnId": 5}, ("vcnId", "expected string, got 5")),
        (
            oci.SUBNET,
            {"compartmentId": "c", "vcnId": "v", "securityListIds": "x"},
            ("securityListIds", "expected list, got 'x'"),
        ),
        (
            oci.ROUTE_TABLE,
            {"compartmentId": "c", "vcnId": "v", "routeRules": [{"networkEntityId": "x", "to": "y"}]},
            ("routeRules[0].to", "Unknown property"),
        ),
        (
            oci.VNIC_ATTACHMENT,
            {"instanceId": "i", "createVnicDetails": {"assignPublicIp": "no"}},
            ("createVnicDetails.assignPublicIp", 'expected "true" or "false", got \'no\''),
        ),
    ],
)
def test_check_finds_what_the_provider_finds_before_any_call(
    token: str, inputs: dict[str, Any], problem: tuple[str, str]
) -> None:
    assert registry.resource(token).check(inputs) == [problem]


def test_the_bridge_leaves_bad_cidrs_to_the_api() -> None:
    assert registry.resource(oci.VCN).check({"compartmentId": "c", "cidrBlocks": ["nonsense"]}) == []


# Identity and state


def test_json_holds_everything(world: World) -> None:
    world.peer()
    text = world.region.to_json()
    again = Region.from_json(text)
    assert again.to_json() == text
    assert again.read(world.vm) == world.region.read(world.vm)
    copy = World.__new__(World)
    copy.__dict__.update(world.__dict__, region=again)
    assert copy.ip(world.vnic) == world.ip(world.vnic), "OCIDs go on where they were"


def test_ocids_and_macs_depend_on_names_and_not_on_order() -> None:
    def made(order: list[str]) -> dict[str, str]:
        region = Region()
        for cidr in order:
            region.create(oci.VCN, {"compartmentId": "c", "cidrBlocks": [cidr]}, cidr)
        return {cidr: str(region.find(oci.VCN, cidr)) for cidr in sorted(order)}

    assert made(["10.0.0.0/16", "10.1.0.0/16"]) == made(["10.1.0.0/16", "10.0.0.0/16"])


def test_a_name_used_again_gives_a_new_ocid(world: World) -> None:
    first = world.make(oci.VCN, {"cidrBlocks": ["10.0.0.0/16"]}, "same")
    world.region.delete(first)
    assert world.region.find(oci.VCN, "same") is None
    assert world.make(oci.VCN, {"cidrBlocks": ["10.0.0.0/16"]}, "same") != first


def test_read_inputs_has_the_owners_shape_and_the_real_values(world: World) -> None:
    written = world.region.get(world.vm).inputs
    assert world.region.read_inputs(world.vm) == written
    world.update(world.vm, displayName="renamed in the console")
    read = world.region.read_inputs(world.vm)
    assert read["displayName"] == "renamed in the console"
    assert set(read) == {*written, "displayName"}


def test_every_state_property_is_one_that_the_sdk_knows(world: World) -> None:
    """An output under a wrong name would reach programs as None."""
    import pulumi_oci

    ocids = [record.ocid for record in world.region.all(*registry.RESOURCES)]
    for ocid in ocids:
        record = world.region.get(ocid)
        resource = getattr(pulumi_oci.core, record.kind.split(":")[-1])
        known = {
            getattr(member.fget, "_pulumi_name", name)
            for name, member in vars(resource).items()
            if isinstance(member, property)
        }
        unknown = set(world.region.read(ocid)) - known - {"id"}
        assert not unknown, f"{record.kind}: {unknown}"


def test_availability_domains_and_shapes(world: World) -> None:
    found = world.region.invoke("oci:Identity/getAvailabilityDomains:getAvailabilityDomains", {"compartmentId": "c"})
    assert [domain["name"] for domain in found["availabilityDomains"]] == list(world.region.availability_domains)
    shapes = world.region.invoke("oci:Core/getShapes:getShapes", {"compartmentId": "c"})["shapes"]
    assert {"name": "VM.Standard2.24", "maxVnicAttachments": 24, "isFlexible": False} in shapes


def test_private_ips_are_found_by_subnet_and_address(world: World) -> None:
    ip = world.ip(world.vnic, "198.18.0.9")

    def found(**args: str) -> list[str]:
        return [
            entry["id"] for entry in world.region.invoke("oci:Core/getPrivateIps:getPrivateIps", args)["privateIps"]
        ]

    assert found(subnetId=world.a, ipAddress="198.18.0.9") == [ip]
    assert found(subnetId=world.b, ipAddress="198.18.0.9") == []
    assert found(vnicId=world.vnic) == [world.primary_ip(world.vnic), ip]
    with pytest.raises(OciError, match="needs subnetId"):
        found(ipAddress="198.18.0.9")


def test_route_tables_are_found_by_compartment_vcn_and_name_default_ones_too(world: World) -> None:
    region = world.region
    other = region.create(oci.VCN, {"compartmentId": "c2", "cidrBlocks": ["10.9.0.0/24"], "displayName": "other"})[0]
    named = {"compartmentId": "c2", "vcnId": other, "displayName": "t", "routeRules": []}
    table = region.create(oci.ROUTE_TABLE, named, "t")[0]
    default = region.read(other)["defaultRouteTableId"]

    def found(**args: str) -> list[str]:
        answer = region.invoke("oci:Core/getRouteTables:getRouteTables", args)
        return [entry["id"] for entry in answer["routeTables"]]

    assert found(compartmentId="c2") == [table, default]
    assert found(compartmentId="c2", vcnId=other, displayName="t", state="Available") == [table]
    assert found(compartmentId="c2", displayName="Default Route Table for other") == [default]
    assert found(compartmentId="c", vcnId=other) == []
    assert found(compartmentId="c2", displayName="T") == []
    assert found(compartmentId="c2", state="TERMINATED") == []
    with pytest.raises(OciError, match="compartmentId is missing"):
        found(vcnId=other)
