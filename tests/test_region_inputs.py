"""What the provider makes of inputs: what replaces a resource, what updates it in place, what fails before any call."""

import json
from typing import Any

import pytest
from region_world import instance_inputs, routes

from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region import registry
from nat_pod.lab.region.inputs import UNKNOWN as NOT_KNOWN_YET
from nat_pod.lab.region.inputs import Diff

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
