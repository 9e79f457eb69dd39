"""Instances of the simulated region: what is refused, and what is not."""

from region_world import (
    CONFLICT,
    INVALID,
    NOWHERE,
    OTHER,
    OVER_LIMIT,
    UNKNOWN,
    Request,
    Row,
    World,
    assert_refused,
    fill,
    table,
)


def with_vnics(w: World, count: int) -> None:
    """Attach VNICs to the VM until it has `count`."""
    fill(count - 1, lambda _: w.attach(w.vm, w.b))


REFUSALS: list[Row] = [
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
]


@table(REFUSALS)
def test_refused_and_its_twin_accepted(refused: Request, code: str, text: str, accepted: Request) -> None:
    assert_refused(refused, code, text, accepted)


def test_availability_domains_and_shapes(world: World) -> None:
    found = world.region.invoke("oci:Identity/getAvailabilityDomains:getAvailabilityDomains", {"compartmentId": "c"})
    assert [domain["name"] for domain in found["availabilityDomains"]] == list(world.region.availability_domains)
    shapes = world.region.invoke("oci:Core/getShapes:getShapes", {"compartmentId": "c"})["shapes"]
    assert {"name": "VM.Standard2.24", "maxVnicAttachments": 24, "isFlexible": False} in shapes
