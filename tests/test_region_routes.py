"""Route tables of the simulated region: what is refused, and what is not."""

import pytest
from region_world import (
    CONFLICT,
    INVALID,
    OTHER,
    OVER_LIMIT,
    UNKNOWN,
    Request,
    Row,
    World,
    assert_refused,
    checked_ip,
    dead_ip,
    nets,
    routes,
    table,
)

from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region.refusals import OciError


def every_net(w: World, count: int) -> list[tuple[str, str]]:
    lpg = w.lpg(w.pod)
    return [(net, lpg) for net in nets(count)]


def table_in_use(w: World) -> str:
    table = w.table(w.pod)
    w.subnet(w.pod, "198.18.1.0/27", routeTableId=table)
    return table


REFUSALS: list[Row] = [
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
    (
        "route table attachment: another VCN's table",
        lambda w: w.use(w.b, w.table(w.vcn(OTHER))),
        INVALID,
        "belongs to VCN",
        lambda w: w.use(w.b, w.table(w.pod)),
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
]


@table(REFUSALS)
def test_refused_and_its_twin_accepted(refused: Request, code: str, text: str, accepted: Request) -> None:
    assert_refused(refused, code, text, accepted)


def test_an_attached_route_table_holds_until_it_is_detached(world: World) -> None:
    default = world.region.read(world.b)["routeTableId"]
    table = world.table(world.pod)
    attachment = world.use(world.b, table)
    assert world.region.read(world.b)["routeTableId"] == table
    world.update(world.b, displayName="the subnet's own inputs say nothing of it")
    assert world.region.read(world.b)["routeTableId"] == table
    world.region.delete(attachment)
    assert world.region.read(world.b)["routeTableId"] == default


def test_a_route_target_may_be_deleted_and_leaves_a_blackhole(world: World) -> None:
    ip = checked_ip(world, skip=True)
    table = world.table(world.pod, (OTHER, ip))
    world.region.delete(ip)
    assert world.region.read(table)["routeRules"][0]["networkEntityId"] == ip


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
