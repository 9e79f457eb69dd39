"""Private IPs of the simulated region: what is refused, and what is not."""

import pytest
from region_world import INVALID, NOWHERE, OVER_LIMIT, UNKNOWN, Request, Row, World, assert_refused, fill, table

from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region.refusals import OciError


def with_secondaries(w: World, count: int) -> str:
    wide = w.instance(w.subnet(w.pod, "198.18.1.0/24"))
    vnic = w.vnic_of(wide)
    fill(count, lambda _: w.ip(vnic))
    return vnic


def dead_ip_of_attachment(w: World) -> str:
    attachment = w.attach(w.vm, w.b)
    ip = w.ip(w.region.read(attachment)["vnicId"])
    w.region.delete(attachment)
    return ip


REFUSALS: list[Row] = [
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
]


@table(REFUSALS)
def test_refused_and_its_twin_accepted(refused: Request, code: str, text: str, accepted: Request) -> None:
    assert_refused(refused, code, text, accepted)


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
