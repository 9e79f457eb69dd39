"""A small network in the simulated region, and how a refusal is held, for the tests of all its types.

Each row of a table has a request that is refused, OCI's error code, a piece of the text, and the nearest request that
is accepted: a refusal without its twin would also pass if the region refused everything.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region
from nat_pod.lab.region.store import Limits

COMPARTMENT = "ocid1.compartment.oc1..test"
IMAGE = "ocid1.image.oc1..test"
INVALID, UNKNOWN = "400-InvalidParameter", "404-NotAuthorizedOrNotFound"
OVER_LIMIT, CONFLICT = "400-LimitExceeded", "409-Conflict"
NOWHERE = "ocid1.subnet.oc1.uk-london-1.nowhere"
OTHER = "10.9.0.0/16"


@dataclass
class World:
    """A VCN 198.18.0.0/22 with subnets a (.0/27) and b (.32/27), an NSG and a VM in a; short names for requests."""

    region: Region = field(default_factory=lambda: Region(limits=Limits(attach_seconds=0)))

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

    def balancer(self, subnet: str | None = None, **inputs: Any) -> str:
        given = {"displayName": "balancer", "subnetId": subnet or self.a, "isPreserveSourceDestination": True}
        return self.make(oci.BALANCER, {**given, **inputs})

    def backend_set(self, balancer: str | None = None, check: dict[str, Any] | None = None, **inputs: Any) -> str:
        checker = {"protocol": "HTTP", "port": 8080, "urlPath": "/health", **(check or {})}
        given = {"networkLoadBalancerId": balancer or self.balancer(), "name": "vms", "policy": "TWO_TUPLE"}
        return self.region.create(oci.BACKEND_SET, {**given, "healthChecker": checker, **inputs})[0]

    def backend(self, backend_set: str | None = None, target: str | None = None, **inputs: Any) -> str:
        facts = self.region.get(backend_set or self.backend_set()).facts
        given = {
            "networkLoadBalancerId": facts["networkLoadBalancerId"],
            "backendSetName": facts["name"],
            "targetId": target or self.primary_ip(self.vnic),
            "port": 0,
        }
        return self.region.create(oci.BACKEND, {**given, **inputs})[0]

    def listener(self, backend_set: str | None = None, **inputs: Any) -> str:
        facts = self.region.get(backend_set or self.backend_set()).facts
        given = {
            "networkLoadBalancerId": facts["networkLoadBalancerId"],
            "defaultBackendSetName": facts["name"],
            "name": "all",
            "port": 0,
            "protocol": "L3IP",
        }
        return self.region.create(oci.LISTENER, {**given, **inputs})[0]

    def balancer_ip(self, balancer: str) -> str:
        """The OCID of a balancer's address, found as a program finds it: by subnet and address."""
        state = self.region.read(balancer)
        args = {"subnetId": state["subnetId"], "ipAddress": state["ipAddresses"][0]["ipAddress"]}
        return str(self.region.invoke("oci:Core/getPrivateIps:getPrivateIps", args)["privateIps"][0]["id"])

    def update(self, ocid: str, **changes: Any) -> dict[str, Any]:
        return self.region.update(ocid, {**self.region.get(ocid).inputs, **changes})

    def peer(self, cidr: str = "10.0.0.0/24") -> tuple[str, str]:
        """The POD's LPG and the requestor of a new customer."""
        acceptor = self.lpg(self.pod)
        return acceptor, self.lpg(self.vcn(cidr), peerId=acceptor)


Request = Callable[[World], object]
Row = tuple[str, Request, str, str, Request]
"""Name, refused request, OCI's code, words of its text, accepted request."""


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


def fill(count: int, step: Callable[[int], object]) -> None:
    for number in range(count):
        step(number)


def nets(count: int) -> list[str]:
    return [f"10.{number // 256}.{number % 256}.0/24" for number in range(count)]


def attachments(w: World) -> list[str]:
    return [record.ocid for record in w.region.all(oci.VNIC_ATTACHMENT)]


def checked_ip(w: World, *, skip: bool) -> str:
    vnic = w.vnic_of(w.instance(w.b, createVnicDetails={"skipSourceDestCheck": skip}))
    return w.ip(vnic)


def dead_ip(w: World) -> str:
    vm = w.instance(w.b, createVnicDetails={"skipSourceDestCheck": True})
    ip = w.ip(w.vnic_of(vm))
    w.region.delete(vm)
    return ip


def table(rows: list[Row]) -> pytest.MarkDecorator:
    """Parametrizes a test with `refused, code, text, accepted` of each row."""
    return pytest.mark.parametrize(
        ("refused", "code", "text", "accepted"), [pytest.param(*row[1:], id=row[0]) for row in rows]
    )


def assert_refused(refused: Request, code: str, text: str, accepted: Request) -> None:
    """A request meets its refusal, which names its source, and its twin is accepted."""
    with pytest.raises(OciError) as caught:
        refused(World())
    assert str(caught.value).startswith(f"{code}, ")
    assert text in caught.value.message
    assert caught.value.source, "a refusal names the document that has its rule"
    accepted(World())
