"""Network load balancers of the simulated region: what is refused, what is not, and what they occupy."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from region_world import (
    CONFLICT,
    INVALID,
    NOWHERE,
    OVER_LIMIT,
    UNKNOWN,
    Request,
    Row,
    World,
    assert_refused,
    fill,
    table,
)

from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region import registry
from nat_pod.lab.region.file import RegionFile
from nat_pod.lab.region.inputs import Diff
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region
from nat_pod.lab.region.store import Limits

NOT_SIMULATED = "501-NotImplemented"


def target(w: World, subnet: str, *, skip: bool = True) -> str:
    """The OCID of another VM's primary address."""
    return w.primary_ip(w.vnic_of(w.instance(subnet, createVnicDetails={"skipSourceDestCheck": skip})))


def twice(w: World, first: str, second: str) -> str:
    backend_set = w.backend_set()
    w.backend(backend_set, first)
    return w.backend(backend_set, second)


def listened_to(w: World, **inputs: Any) -> str:
    backend_set = w.backend_set()
    w.listener(backend_set, **inputs)
    return backend_set


def delete_both(w: World, backend_set: str, listener: str) -> None:
    w.region.delete(listener)
    w.region.delete(backend_set)


def two_sets(w: World, *names: str) -> list[str]:
    balancer = w.balancer()
    return [w.backend_set(balancer, name=name) for name in names]


def elsewhere(w: World) -> str:
    return w.subnet(w.vcn("10.9.0.0/16"), "10.9.0.0/24")


REFUSALS: list[Row] = [
    ("NLB: no such subnet", lambda w: w.balancer(NOWHERE), UNKNOWN, NOWHERE, lambda w: w.balancer(w.b)),
    (
        "NLB: transparent and public",
        lambda w: w.balancer(isPrivate=False),
        INVALID,
        "private network load balancers only",
        lambda w: w.balancer(isPrivate=True),
    ),
    (
        "NLB: not transparent",
        lambda w: w.balancer(isPreserveSourceDestination=False),
        NOT_SIMULATED,
        "no next hop",
        lambda w: w.balancer(),
    ),
    (
        "NLB: made opaque later",
        lambda w: w.update(w.balancer(), isPreserveSourceDestination=False),
        NOT_SIMULATED,
        "no next hop",
        lambda w: w.update(w.balancer(), displayName="another"),
    ),
    (
        "NLB: address outside its subnet",
        lambda w: w.balancer(w.b, assignedPrivateIpv4="198.18.0.9"),
        INVALID,
        "not within",
        lambda w: w.balancer(w.b, assignedPrivateIpv4="198.18.0.41"),
    ),
    (
        "NLB: address in use",
        lambda w: w.balancer(assignedPrivateIpv4="198.18.0.2"),
        INVALID,
        "in use",
        lambda w: w.balancer(assignedPrivateIpv4="198.18.0.3"),
    ),
    (
        "NLB: address reserved by OCI",
        lambda w: w.balancer(assignedPrivateIpv4="198.18.0.1"),
        INVALID,
        "reserves",
        lambda w: w.balancer(assignedPrivateIpv4="198.18.0.30"),
    ),
    (
        "NLB: its address given to a VM",
        lambda w: w.ip(w.vnic, "198.18.0.9") if w.balancer(assignedPrivateIpv4="198.18.0.9") else None,
        INVALID,
        "in use",
        lambda w: w.ip(w.vnic, "198.18.0.10") if w.balancer(assignedPrivateIpv4="198.18.0.9") else None,
    ),
    (
        "NLB: the fourth of a region",
        lambda w: fill(4, lambda _: w.balancer()),
        OVER_LIMIT,
        "has 3 network load balancers",
        lambda w: fill(3, lambda _: w.balancer()),
    ),
    (
        "NLB: NSG of another VCN",
        lambda w: w.balancer(networkSecurityGroupIds=[w.nsg(w.vcn("10.9.0.0/16"))]),
        INVALID,
        "belongs to VCN",
        lambda w: w.balancer(networkSecurityGroupIds=[w.group]),
    ),
    (
        "NSG of an NLB deleted",
        lambda w: w.region.delete(w.group) if w.balancer(networkSecurityGroupIds=[w.group]) else None,
        CONFLICT,
        "still has VNICs",
        lambda w: w.region.delete(w.group) if w.balancer() else None,
    ),
    (
        "subnet that holds an NLB deleted",
        lambda w: w.region.delete(w.b) if w.balancer(w.b) else None,
        CONFLICT,
        "references the VNIC",
        lambda w: w.region.delete(w.b) if w.balancer(w.a) else None,
    ),
    (
        "private IP of an NLB deleted",
        lambda w: w.region.delete(w.balancer_ip(w.balancer())),
        INVALID,
        "cannot be deleted",
        lambda w: w.region.delete(w.balancer()),
    ),
    (
        "set: policy unknown",
        lambda w: w.backend_set(policy="ROUND_ROBIN"),
        INVALID,
        "none of FIVE_TUPLE",
        lambda w: w.backend_set(policy="FIVE_TUPLE"),
    ),
    (
        "set: source not preserved",
        lambda w: w.backend_set(isPreserveSource=False),
        INVALID,
        "cannot be false",
        lambda w: w.backend_set(isPreserveSource=True),
    ),
    (
        "set: the name twice",
        lambda w: two_sets(w, "vms", "vms"),
        CONFLICT,
        "exists",
        lambda w: two_sets(w, "vms", "more"),
    ),
    (
        "set: no name",
        lambda w: w.backend_set(name=None),
        NOT_SIMULATED,
        "make up",
        lambda w: w.backend_set(name="x"),
    ),
    (
        "check: no port of its own",
        lambda w: w.backend_set(check={"port": None}),
        INVALID,
        "port of its own",
        lambda w: w.backend_set(check={"port": 1}),
    ),
    (
        "check: HTTP without a path",
        lambda w: w.backend_set(check={"urlPath": None}),
        INVALID,
        "needs urlPath",
        lambda w: w.backend_set(check={"urlPath": None, "protocol": "TCP"}),
    ),
    (
        "check: every 999 ms",
        lambda w: w.backend_set(check={"intervalInMillis": 999}),
        INVALID,
        "999 is not from 1000",
        lambda w: w.backend_set(check={"intervalInMillis": 1000}),
    ),
    (
        "check: by UDP",
        lambda w: w.backend_set(check={"protocol": "UDP"}),
        NOT_SIMULATED,
        "UDP",
        lambda w: w.backend_set(check={"protocol": "TCP"}),
    ),
    (
        "set: deleted while a listener uses it",
        lambda w: w.region.delete(listened_to(w)),
        CONFLICT,
        "used by listener all",
        lambda w: delete_both(w, one := w.backend_set(), w.listener(one)),
    ),
    (
        "set: five-tuple behind L3IP",
        lambda w: w.update(listened_to(w), policy="FIVE_TUPLE"),
        INVALID,
        "TWO_TUPLE or THREE_TUPLE",
        lambda w: w.update(listened_to(w, protocol="ANY"), policy="FIVE_TUPLE"),
    ),
    (
        "backend: by address",
        lambda w: w.backend(targetId=None, ipAddress="198.18.0.2"),
        INVALID,
        "given by targetId",
        lambda w: w.backend(targetId=w.primary_ip(w.vnic)),
    ),
    (
        "backend: no such target",
        lambda w: w.backend(target="ocid1.privateip.oc1..gone"),
        INVALID,
        "Invalid backend OCID",
        lambda w: w.backend(target=w.vm),
    ),
    (
        "backend: source/destination check on",
        lambda w: w.backend(target=target(w, w.b, skip=False)),
        INVALID,
        "skips the source/destination check",
        lambda w: w.backend(target=target(w, w.b)),
    ),
    (
        "backend: in another VCN",
        lambda w: w.backend(target=target(w, elsewhere(w))),
        INVALID,
        "another VCN",
        lambda w: w.backend(target=target(w, w.b)),
    ),
    (
        "backend: of a port",
        lambda w: w.backend(port=80),
        INVALID,
        "port 0",
        lambda w: w.backend(port=0),
    ),
    (
        "backend: one VM twice, by instance and by address",
        lambda w: twice(w, w.primary_ip(w.vnic), w.vm),
        CONFLICT,
        "Duplicate backend",
        lambda w: twice(w, w.primary_ip(w.vnic), target(w, w.b)),
    ),
    (
        "backend: drained",
        lambda w: w.backend(isDrain=True),
        NOT_SIMULATED,
        "isDrain",
        lambda w: w.backend(isBackup=True),
    ),
    (
        "listener: port of an L3IP one",
        lambda w: w.listener(port=443),
        INVALID,
        "has port 0",
        lambda w: w.listener(port=0),
    ),
    ("listener: TCP", lambda w: w.listener(protocol="TCP"), NOT_SIMULATED, "", lambda w: w.listener(protocol="ANY")),
    (
        "listener: L3IP before five-tuple",
        lambda w: w.listener(w.backend_set(policy="FIVE_TUPLE")),
        INVALID,
        "TWO_TUPLE",
        lambda w: w.listener(w.backend_set(policy="THREE_TUPLE")),
    ),
    (
        "listener: no such backend set",
        lambda w: w.listener(defaultBackendSetName="others"),
        UNKNOWN,
        "backendSets/others",
        lambda w: w.listener(),
    ),
    (
        "listener: a second one",
        lambda w: w.listener(listened_to(w), name="more"),
        INVALID,
        "no second one",
        lambda w: w.listener(),
    ),
    (
        "listener: proxy protocol",
        lambda w: w.listener(isPpv2enabled=True),
        INVALID,
        "exclude each other",
        lambda w: w.listener(isPpv2enabled=False),
    ),
    (
        "route to an NLB of another VCN",
        lambda w: w.table(w.pod, ("10.0.0.0/24", w.balancer_ip(w.balancer(elsewhere(w))))),
        INVALID,
        "another VCN",
        lambda w: w.table(w.pod, ("10.0.0.0/24", w.balancer_ip(w.balancer()))),
    ),
]


@table(REFUSALS)
def test_refused_and_its_twin_accepted(refused: Request, code: str, text: str, accepted: Request) -> None:
    assert_refused(refused, code, text, accepted)


def test_its_address_is_that_of_a_vnic_of_the_service_without_the_check(world: World) -> None:
    balancer = world.balancer(world.b, assignedPrivateIpv4="198.18.0.62", networkSecurityGroupIds=[world.group])
    state = world.region.read(balancer)
    assert (state["state"], state["ipAddresses"][0]["ipAddress"]) == ("ACTIVE", "198.18.0.62")
    ip = world.region.read(world.balancer_ip(balancer))
    vnic = world.region.read(ip["vnicId"])
    assert (vnic["skipSourceDestCheck"], vnic["nsgIds"], vnic["instanceId"]) == (True, [world.group], None)


def test_the_address_is_free_again_and_the_route_leads_nowhere_when_it_is_deleted(world: World) -> None:
    balancer = world.balancer(world.b, assignedPrivateIpv4="198.18.0.62")
    backend_set = world.backend_set(balancer)
    parts = [backend_set, world.backend(backend_set), world.listener(backend_set)]
    world.table(world.pod, ("10.0.0.0/24", world.balancer_ip(balancer)))
    world.region.delete(balancer)
    for gone in (balancer, *parts):
        with pytest.raises(OciError, match="404"):
            world.region.read(gone)
    world.balancer(world.b, assignedPrivateIpv4="198.18.0.62")


def test_what_the_service_fills_in(world: World) -> None:
    backend_set = world.backend_set()
    backend = world.backend(backend_set, world.vm)
    state = world.region.read(backend_set)
    assert (state["isFailOpen"], state["isInstantFailoverEnabled"], state["isInstantFailoverTcpResetEnabled"]) == (
        False,
        False,
        True,
    )
    check = state["healthChecker"]
    assert (check["intervalInMillis"], check["retries"], check["timeoutInMillis"]) == (10_000, 3, 3_000)
    assert (state["backends"][0]["name"], state["backends"][0]["ipAddress"]) == (f"{world.vm}.0", "198.18.0.2")
    assert backend == f"{backend_set}/backends/{world.vm}.0"
    assert world.region.read(world.listener(backend_set))["tcpIdleTimeout"] == 360


def test_health_is_that_of_the_address_and_balancers_are_listed(world: World) -> None:
    balancer = world.balancer()
    backend_set = world.backend_set(balancer)
    backend = world.region.read(world.backend(backend_set, target(world, world.b)))

    def status() -> str:
        args = {"networkLoadBalancerId": balancer, "backendSetName": "vms", "backendName": backend["name"]}
        return str(world.region.invoke("oci:NetworkLoadBalancer/getBackendHealth:getBackendHealth", args)["status"])

    assert status() == "OK"
    vnic = world.region.read(backend["targetId"])["vnicId"]
    world.region.delete(world.region.read(vnic)["instanceId"])
    assert status() == "CRITICAL"
    world.region.report_health(balancer, {backend["targetId"]: True})
    assert status() == "CRITICAL", "whatever was said, the address is gone"
    listed = "oci:NetworkLoadBalancer/getNetworkLoadBalancers:getNetworkLoadBalancers"
    compartment = world.region.get(balancer).inputs["compartmentId"]

    def found(**args: str) -> list[str]:
        answer = world.region.invoke(listed, {"compartmentId": compartment, **args})
        return [one["id"] for one in answer["networkLoadBalancerCollections"][0]["items"]]

    assert found(displayName="balancer", state="active") == [balancer]
    assert found(displayName="other") == []


def statuses(region: Region, backend_set: str) -> dict[str, str]:
    """Of each backend that the data sources list, by name."""
    _, balancer, _, name = backend_set.split("/")
    args = {"networkLoadBalancerId": balancer, "backendSetName": name}
    listed = region.invoke("oci:NetworkLoadBalancer/getBackends:getBackends", args)["backendCollections"][0]["items"]
    health = "oci:NetworkLoadBalancer/getBackendHealth:getBackendHealth"
    return {
        backend["name"]: str(region.invoke(health, {**args, "backendName": backend["name"]})["status"])
        for backend in listed
    }


def test_health_is_what_was_said_of_a_vm_and_does_not_pass_to_its_successor(world: World) -> None:
    balancer = world.balancer()
    backend_set = world.backend_set(balancer)
    other = world.backend_set(balancer, name="others")
    first, second = target(world, world.b), target(world, world.b)
    world.backend(backend_set, first, name="a")
    replaced = world.backend(backend_set, second, name="b")
    assert statuses(world.region, other) == {}
    assert statuses(world.region, backend_set) == {"a": "OK", "b": "OK"}, "nobody said anything"

    world.region.report_health(balancer, {first: False, second: True})
    assert statuses(world.region, backend_set) == {"a": "CRITICAL", "b": "OK"}
    world.region.delete(replaced)
    assert statuses(world.region, backend_set) == {"a": "CRITICAL"}
    third = target(world, world.b)
    world.backend(backend_set, third, name="b")
    assert statuses(world.region, backend_set) == {"a": "CRITICAL", "b": "UNKNOWN"}
    world.region.report_health(balancer, {first: True, third: True})
    assert statuses(world.region, backend_set) == {"a": "OK", "b": "OK"}

    copied = Region.from_json(world.region.to_json())
    assert statuses(copied, backend_set) == {"a": "OK", "b": "OK"}
    copied.report_health(balancer, {third: True})
    assert statuses(copied, backend_set) == {"a": "UNKNOWN", "b": "OK"}
    with pytest.raises(OciError, match=UNKNOWN):
        copied.report_health(NOWHERE, {})


def test_what_is_said_of_health_is_known_to_everybody_who_has_the_regions_file(tmp_path: Path) -> None:
    shared = RegionFile.make(tmp_path / "region", Region())
    world = World(shared)
    backend_set = world.backend_set()
    world.backend(backend_set, world.vm, name="a")
    shared.report_health(backend_set.split("/")[1], {world.vm: False})
    assert statuses(RegionFile(shared.path), backend_set) == {"a": "CRITICAL"}


def test_a_region_with_balancers_is_the_same_as_json(world: World) -> None:
    world.backend(world.backend_set())
    text = world.region.to_json()
    assert Region.from_json(text).to_json() == text


# --- one change at a time --------------------------------------------------------------------------------------------


def together(world: World, *changes: Callable[[], object]) -> list[str]:
    """Make changes at the same time; what each met, "" for success."""
    world.region.limits = Limits(attach_seconds=0.2)
    outcomes = [""] * len(changes)
    barrier = threading.Barrier(len(changes))

    def work(index: int) -> None:
        barrier.wait()
        try:
            changes[index]()
        except OciError as error:
            outcomes[index] = str(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(changes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def one_set(world: World) -> str:
    backend_set = world.backend_set()
    world.backend(backend_set)
    return backend_set


@pytest.mark.parametrize(
    "change",
    [
        lambda w, one: w.listener(one),
        lambda w, one: w.update(one, isFailOpen=True),
        lambda w, one: w.update(w.region.get(one).facts["networkLoadBalancerId"], displayName="x"),
        lambda w, one: w.region.delete(f"{one}/backends/{w.primary_ip(w.vnic)}.0"),
    ],
    ids=["create", "update", "update of itself", "delete"],
)
def test_a_second_change_of_one_balancer_meets_409(world: World, change: Callable[[World, str], object]) -> None:
    backend_set = one_set(world)
    other = target(world, world.b)
    outcomes = together(
        world, lambda: world.backend(backend_set, other, isBackup=True), lambda: change(world, backend_set)
    )
    refused = [outcome for outcome in outcomes if outcome]
    assert len(refused) == 1
    assert refused[0].startswith("409-Conflict, Invalid State Transition of NLB lifeCycle state from Updating to")


def test_two_balancers_change_at_the_same_time(world: World) -> None:
    first, second = one_set(world), one_set(world)
    assert together(world, lambda: world.listener(first), lambda: world.listener(second)) == ["", ""]


# --- what the provider makes of inputs -------------------------------------------------------------------------------

NLB = {"compartmentId": "c", "displayName": "n", "subnetId": "s", "isPreserveSourceDestination": True}
SET = {"networkLoadBalancerId": "n", "name": "vms", "policy": "TWO_TUPLE", "healthChecker": {"protocol": "TCP"}}
BACKEND = {"networkLoadBalancerId": "n", "backendSetName": "vms", "targetId": "t", "port": 0}
LISTENER = {
    "networkLoadBalancerId": "n",
    "name": "all",
    "defaultBackendSetName": "vms",
    "port": 0,
    "protocol": "L3IP",
}


@pytest.mark.parametrize(
    ("token", "old", "changes", "diff"),
    [
        (oci.BALANCER, NLB, {"displayName": "m"}, Diff(update=("displayName",))),
        (oci.BALANCER, NLB, {"subnetId": "t"}, Diff(replace=("subnetId",))),
        (oci.BALANCER, NLB, {"assignedPrivateIpv4": "10.0.0.4"}, Diff(replace=("assignedPrivateIpv4",))),
        (oci.BALANCER, NLB | {"assignedPrivateIpv4": "10.0.0.4"}, {"assignedPrivateIpv4": None},
         Diff(replace=("assignedPrivateIpv4",))),
        (oci.BALANCER, NLB, {"isPrivate": True}, Diff()),
        (oci.BALANCER, NLB, {"isPrivate": False}, Diff(replace=("isPrivate",))),
        (oci.BALANCER, NLB, {"isPreserveSourceDestination": False}, Diff(update=("isPreserveSourceDestination",))),
        (oci.BALANCER, NLB | {"networkSecurityGroupIds": ["a", "b"]}, {"networkSecurityGroupIds": ["b", "a"]}, Diff()),
        (oci.BALANCER, NLB | {"networkSecurityGroupIds": ["a"]}, {"networkSecurityGroupIds": None},
         Diff(update=("networkSecurityGroupIds",))),
        (oci.BACKEND_SET, SET, {"name": "x"}, Diff(replace=("name",))),
        (oci.BACKEND_SET, SET, {"policy": "THREE_TUPLE"}, Diff(update=("policy",))),
        (oci.BACKEND_SET, SET, {"healthChecker": {"protocol": "TCP", "retries": 3}}, Diff()),
        (oci.BACKEND_SET, SET, {"healthChecker": {"protocol": "TCP", "retries": 2}},
         Diff(update=("healthChecker.retries",))),
        (oci.BACKEND_SET, SET, {"isInstantFailoverEnabled": True}, Diff(update=("isInstantFailoverEnabled",))),
        (oci.BACKEND, BACKEND, {"targetId": "u"}, Diff(replace=("targetId",))),
        (oci.BACKEND, BACKEND, {"isBackup": True}, Diff(update=("isBackup",))),
        (oci.LISTENER, LISTENER, {"name": "x"}, Diff(replace=("name",))),
        (oci.LISTENER, LISTENER, {"protocol": "ANY"}, Diff(update=("protocol",))),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) and len(value) == 1 else None,
)  # fmt: skip
def test_diff(token: str, old: dict[str, Any], changes: dict[str, Any], diff: Diff) -> None:
    assert registry.resource(token).diff(old, {**old, **changes}) == diff


@pytest.mark.parametrize(
    ("token", "required"),
    [
        (oci.BALANCER, {"compartmentId", "displayName", "subnetId"}),
        (oci.BACKEND_SET, {"healthChecker", "networkLoadBalancerId", "policy"}),
        (oci.BACKEND, {"backendSetName", "networkLoadBalancerId", "port"}),
        (oci.LISTENER, {"defaultBackendSetName", "networkLoadBalancerId", "port", "protocol"}),
    ],
)
def test_required_inputs(token: str, required: set[str]) -> None:
    assert {path for path, _ in registry.resource(token).check({})} == required


# --- through the engine ----------------------------------------------------------------------------------------------

PROGRAM = """
import pulumi_oci as oci
import pulumi

COMPARTMENT = "ocid1.compartment.oc1..example"
settings = pulumi.Config()
vcn = oci.core.Vcn("vcn", compartment_id=COMPARTMENT, cidr_blocks=["198.18.0.0/24"], display_name="vcn")
subnet = oci.core.Subnet("subnet", compartment_id=COMPARTMENT, vcn_id=vcn.id, cidr_block="198.18.0.0/28",
                         prohibit_public_ip_on_vnic=True)
balancer = oci.networkloadbalancer.NetworkLoadBalancer(
    "balancer", compartment_id=COMPARTMENT, display_name="balancer", subnet_id=subnet.id, is_private=True,
    is_preserve_source_destination=True, assigned_private_ipv4=settings.get("address") or "198.18.0.14",
    opts=pulumi.ResourceOptions(delete_before_replace=True))
backend_set = oci.networkloadbalancer.BackendSet(
    "set", network_load_balancer_id=balancer.id, name="vms", policy="TWO_TUPLE", is_instant_failover_enabled=True,
    is_instant_failover_tcp_reset_enabled=False, are_operationally_active_backends_preferred=True,
    health_checker={"protocol": "HTTP", "port": 8080, "url_path": "/health", "return_code": 200,
                    "interval_in_millis": settings.get_int("interval") or 1000, "retries": 2})
vms = []
for number in (0, 1):
    vm = oci.core.Instance(
        f"vm{number}", compartment_id=COMPARTMENT, availability_domain="nPod:UK-LONDON-1-AD-1",
        shape="VM.Standard2.1", source_details={"source_type": "image", "source_id": "ocid1.image.oc1..example"},
        create_vnic_details={"subnet_id": subnet.id, "assign_public_ip": "false", "skip_source_dest_check": True})
    oci.networkloadbalancer.Backend(
        f"backend{number}", network_load_balancer_id=balancer.id, backend_set_name=backend_set.name,
        target_id=vm.id, port=0, is_backup=number == 1)
oci.networkloadbalancer.Listener("listener", network_load_balancer_id=balancer.id, name="all", port=0, protocol="L3IP",
                                 default_backend_set_name=backend_set.name)
ips = oci.core.get_private_ips_output(
    subnet_id=subnet.id, ip_address=balancer.ip_addresses.apply(lambda found: found[0].ip_address))
oci.core.RouteTable("table", compartment_id=COMPARTMENT, vcn_id=vcn.id, route_rules=[
    {"destination": "198.18.2.0/24", "destination_type": "CIDR_BLOCK",
     "network_entity_id": ips.private_ips[0].id}])
"""


@pytest.mark.engine
@pytest.mark.runs_commands
def test_the_engine_makes_updates_and_destroys_one(tmp_path: Path) -> None:
    """Both backends and the listener at the same time, as parallel as the engine is: the provider takes turns."""
    from nat_pod.lab.engine.engine import Engine, find_cli

    cli = find_cli()
    if cli is None:
        pytest.skip("no Pulumi CLI: .ci/pulumi/install makes sure there is one")
    project = tmp_path / "project"
    project.mkdir()
    (project / "Pulumi.yaml").write_text(
        "name: balancer\nruntime:\n  name: python\n  options: {toolchain: pip, virtualenv: .venv}\n"
    )
    (project / "__main__.py").write_text(PROGRAM)
    config = {"oci:region": "uk-london-1"}

    def configure(**settings: object) -> None:
        lines = {**config, **{f"balancer:{key}": value for key, value in settings.items()}}
        (project / "Pulumi.one.yaml").write_text(
            "config:\n" + "".join(f"  {key}: {value}\n" for key, value in lines.items())
        )

    configure()
    region = RegionFile.make(tmp_path / "region", Region("uk-london-1", Limits(attach_seconds=0.3)))
    engine = Engine(project, "one", region.path, cli)
    engine.up()
    engine.expect_no_changes()
    (balancer,) = region.all(oci.BALANCER)
    (backend_set,) = region.all(oci.BACKEND_SET)
    assert [one["isBackup"] for one in region.read(backend_set.ocid)["backends"]].count(True) == 1
    (table,) = region.all(oci.ROUTE_TABLE)
    target_ip = region.read(table.facts["routeRules"][0]["networkEntityId"])
    assert target_ip["ipAddress"] == "198.18.0.14"

    configure(interval=2000)
    assert engine.up().counts == {"update": 1}
    assert region.read(backend_set.ocid)["healthChecker"]["intervalInMillis"] == 2000

    configure(interval=2000, address="198.18.0.13")
    replaced = engine.up()
    assert {step.name for step in replaced.steps if "replace" in step.op} == {
        "balancer", "set", "backend0", "backend1", "listener",
    }  # fmt: skip
    assert region.all(oci.BALANCER)[0].ocid != balancer.ocid

    assert engine.destroy().errors == ()
    assert region.kinds() == []
