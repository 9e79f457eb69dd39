"""Local peering gateways of the simulated region: what is refused, and what is not."""

import pytest
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
    checked_ip,
    fill,
    routes,
    table,
)

from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region
from nat_pod.lab.region.store import Limits


def with_lpgs(w: World, count: int) -> None:
    fill(count, lambda _: w.lpg(w.pod))


def peered_twice(w: World) -> tuple[str, str, str]:
    """The POD's second LPG and two VCNs of which the first is peered with the POD already."""
    w.peer()
    first = w.region.all(oci.VCN)[1].ocid
    return w.lpg(w.pod), first, w.vcn("10.0.1.0/24")


def revoked(w: World) -> str:
    acceptor, requestor = w.peer()
    w.region.delete(requestor)
    return acceptor


def table_of_lpg(w: World) -> str:
    table = w.table(w.pod)
    w.lpg(w.pod, routeTableId=table)
    return table


def target_lpg(w: World) -> str:
    lpg = w.lpg(w.pod)
    w.table(w.pod, (OTHER, lpg))
    return lpg


REFUSALS: list[Row] = [
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
    ("LPG: empty peerId", lambda w: w.lpg(w.pod, peerId=""), INVALID, "must not be empty", lambda w: w.lpg(w.pod)),
    (
        "delete: LPG that a rule points to",
        lambda w: w.region.delete(target_lpg(w)),
        CONFLICT,
        "in use",
        lambda w: w.region.delete(w.lpg(w.pod)),
    ),
]


@table(REFUSALS)
def test_refused_and_its_twin_accepted(refused: Request, code: str, text: str, accepted: Request) -> None:
    assert_refused(refused, code, text, accepted)


def test_lpg_states(world: World) -> None:
    acceptor, requestor = world.peer()
    assert world.region.read(acceptor)["peeringStatus"] == "PEERED"
    assert world.region.read(acceptor)["peerId"] == requestor
    assert world.region.read(acceptor)["peerAdvertisedCidr"] == "10.0.0.0/24"
    world.region.delete(requestor)
    assert world.region.read(acceptor)["peeringStatus"] == "REVOKED"


def test_the_lpg_limit_can_be_raised() -> None:
    world = World(Region(limits=Limits(attach_seconds=0, lpgs=20)))
    with_lpgs(world, 20)
    with pytest.raises(OciError, match="LimitExceeded"):
        world.lpg(world.pod)


def test_two_customers_behind_one_pod_may_overlap_each_other(world: World) -> None:
    world.peer("10.0.0.0/24")
    world.peer("10.0.0.0/24")
