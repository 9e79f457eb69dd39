"""VNICs of the simulated region, attached and detached: what is refused, and what is not."""

import threading

import pytest
from region_world import (
    INVALID,
    NOWHERE,
    OVER_LIMIT,
    UNKNOWN,
    Request,
    Row,
    World,
    assert_refused,
    attachments,
    fill,
    table,
)

from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.store import Limits


def with_vnics(w: World, count: int) -> None:
    """Attach VNICs to the VM until it has `count`."""
    fill(count - 1, lambda _: w.attach(w.vm, w.b))


REFUSALS: list[Row] = [
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
]


@table(REFUSALS)
def test_refused_and_its_twin_accepted(refused: Request, code: str, text: str, accepted: Request) -> None:
    assert_refused(refused, code, text, accepted)


def attach_together(world: World, *pairs: tuple[str, str]) -> list[str]:
    """Attach several VNICs at the same time; what each thread met, "" for success."""
    world.region.limits = Limits(attach_seconds=0.2)
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
