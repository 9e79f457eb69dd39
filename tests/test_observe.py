"""What was deployed, read back as a Topology: equal to what the plan asks for, and different where it was broken."""

import base64
import gzip
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from nat_pod.lab.observe import GONE, observe
from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region.region import Region
from nat_pod.lab.surroundings import build, stand_up
from nat_pod.names import STRANGER
from nat_pod.plan import guest
from nat_pod.plan.bootstrap import render_user_data, unpack_user_data
from nat_pod.plan.model import PodPlan
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.topology import (
    Backend,
    Balancer,
    CheckProtocol,
    HealthCheck,
    Lpg,
    Route,
    SecurityRule,
    Topology,
    Vnic,
)


@pytest.fixture(scope="module")
def stood_up() -> tuple[str, PodPlan]:
    """The dev stack with its neighbours, as JSON: a test that changes the region changes its own copy."""
    region, plan, deployment = stand_up(REPOSITORY, "dev")
    assert deployment.warnings == ()
    return region.to_json(), plan


@pytest.fixture
def region(stood_up: tuple[str, PodPlan]) -> Region:
    return Region.from_json(stood_up[0])


def comparable(topology: Topology) -> Topology:
    """Without MACs, strangers and the vRouter's own addresses, which nobody plans; rules in one order."""

    def ordered(rules: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(sorted(rules, key=repr))

    def planned(vnic: Vnic) -> Vnic:
        addresses = vnic.addresses[-1:] if vnic.vm == "vrouter" else vnic.addresses
        return replace(vnic, mac="", addresses=addresses, security=ordered(vnic.security))

    return Topology(
        vcns=topology.vcns,
        subnets={
            name: replace(subnet, security=ordered(subnet.security), routes=ordered(subnet.routes))
            for name, subnet in topology.subnets.items()
        },
        lpgs=topology.lpgs,
        vnics={name: planned(vnic) for name, vnic in topology.vnics.items() if STRANGER not in name},
        vms={name: vm for name, vm in topology.vms.items() if STRANGER not in name},
        balancers={
            name: replace(one, mac="", backends=ordered(one.backends), security=ordered(one.security))
            for name, one in topology.balancers.items()
        },  # the standby's backend is made first
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "stack", ["dev", pytest.param("ten", marks=pytest.mark.sweep), pytest.param("routed", marks=pytest.mark.sweep)]
)
def test_what_is_deployed_is_what_the_plan_asks_for(stack: str) -> None:
    region, plan, deployment = stand_up(REPOSITORY, stack)
    assert deployment.warnings == ()
    observed, expected = comparable(observe(region)), comparable(expected_topology(plan))
    for part in ("vcns", "subnets", "lpgs", "vnics", "vms", "balancers"):
        assert getattr(observed, part) == getattr(expected, part)


def test_names_addresses_and_macs(region: Region) -> None:
    topology = observe(region)
    assert sorted(topology.vms) == [
        "customer1/stranger",
        "customer1/vm1",
        "customer1/vm2",
        "customer2/stranger",
        "customer2/vm2",
        "management/mgmt",
        "management/stranger",
        "natVm1",
        "natVm2",
        "vrouter",
    ]
    assert topology.vnics["natVm1-vnic-1"].addresses == ("198.18.0.2", "198.18.0.3")
    assert topology.vnics["vrouter-vnic-2"].addresses == ("198.18.0.174", "198.18.0.167")
    assert topology.vms["vrouter"].routes == (("198.18.0.0/22", "vrouter-vnic-2"),)
    macs = {vnic.mac for vnic in topology.vnics.values()}
    assert len(macs) == len(topology.vnics)
    assert all(re.fullmatch(r"02:00:17(:[0-9a-f]{2}){3}", mac) for mac in macs)


@pytest.mark.sweep
def test_two_runs_and_a_copy_give_one_topology(region: Region) -> None:
    again, _, _ = stand_up(REPOSITORY, "dev")
    assert observe(again) == observe(region) == observe(Region.from_json(region.to_json()))


# What was broken shows


def find(region: Region, token: str, name: str) -> str:
    found = region.find(token, name)
    assert found is not None, name
    return found


def change(region: Region, token: str, name: str, **changes: Any) -> None:
    ocid = find(region, token, name)
    region.update(ocid, {**region.get(ocid).inputs, **changes})


def change_vnic(region: Region, token: str, name: str, **changes: Any) -> None:
    details = region.get(find(region, token, name)).inputs["createVnicDetails"]
    change(region, token, name, createVnicDetails={**details, **changes})


def test_a_check_that_was_left_on(region: Region) -> None:
    change_vnic(region, oci.INSTANCE, "nat-pod-dev-natVm1", skipSourceDestCheck=False)
    change_vnic(region, oci.VNIC_ATTACHMENT, "nat-pod-dev-natVm2-vnic-2", skipSourceDestCheck=False)
    off = [name for name, entry in observe(region).vnics.items() if not entry.skip_source_dest_check]
    assert off == [
        "customer1/vm1-vnic-1",
        "customer1/vm2-vnic-1",
        "customer2/vm2-vnic-1",
        "management/mgmt-vnic-1",
        "natVm1-vnic-1",
        "natVm2-vnic-2",
    ]


def test_a_missing_route(region: Region) -> None:
    change(region, oci.ROUTE_TABLE, "nat-pod-dev-natVm1", routeRules=[])
    topology = observe(region)
    assert topology.subnets["natVm1-vnic-1"].routes == ()
    assert topology.subnets["natVm2-vnic-1"].routes == (Route(destination="10.0.0.0/16", private_ip="198.18.0.167"),)


def test_a_route_to_an_address_that_is_gone(region: Region) -> None:
    region.delete(find(region, oci.PRIVATE_IP, "vrouter floating, POD"))
    assert observe(region).subnets["natVm2-vnic-1"].routes == (Route(destination="10.0.0.0/16", private_ip=GONE),)


def test_a_peering_that_the_customer_ended(region: Region) -> None:
    change(region, oci.ROUTE_TABLE, "customer1", routeRules=[])
    region.delete(find(region, oci.LPG, "customer1/lpg"))
    guarded = observe(region).lpgs["pod/customer2"].routes
    assert guarded
    assert observe(region).lpgs == {
        "customer2/lpg": Lpg(name="customer2/lpg", vcn="customer2", peer="pod/customer2"),
        "pod/customer1": Lpg(name="pod/customer1", vcn="pod", peer=None, routes=guarded),
        "pod/customer2": Lpg(name="pod/customer2", vcn="pod", peer="customer2/lpg", routes=guarded),
    }


def test_a_security_rule_that_is_missing(region: Region) -> None:
    before = observe(region).vnics["natVm1-vnic-1"].security
    region.delete(find(region, oci.NSG_RULE, "nat-pod-dev-natVm1-ingress-transit"))
    after = observe(region).vnics["natVm1-vnic-1"].security
    assert set(before) - set(after) == {
        SecurityRule(
            direction="INGRESS",
            protocol="all",
            peer="natVm2",
            peer_is_nsg=True,
            stateless=True,
            description="from transit",
        )
    }


def test_a_vnic_without_its_group(region: Region) -> None:
    change_vnic(region, oci.VNIC_ATTACHMENT, "nat-pod-dev-natVm1-vnic-2", nsgIds=[])
    assert observe(region).vnics["natVm1-vnic-2"].nsgs == ()
    assert observe(region).vnics["natVm1-vnic-2"].security == ()


def test_a_default_security_list_that_was_not_emptied(region: Region) -> None:
    vcn = region.read(find(region, oci.VCN, "nat-pod-dev"))
    rule = {"protocol": "6", "source": "0.0.0.0/0", "tcpOptions": {"min": 22, "max": 22}}
    region.update(
        vcn["defaultSecurityListId"],
        {"manageDefaultResourceId": vcn["defaultSecurityListId"], "ingressSecurityRules": [rule]},
    )
    assert observe(region).subnets["natVm1-vnic-1"].security == (
        SecurityRule(direction="INGRESS", protocol="6", peer="0.0.0.0/0", destination_ports=(22, 22)),
    )


def test_rules_that_the_agent_would_refuse(region: Region) -> None:
    metadata = region.get(find(region, oci.INSTANCE, "nat-pod-dev-natVm1")).inputs["metadata"]
    other = region.get(find(region, oci.INSTANCE, "nat-pod-dev-natVm2")).inputs["metadata"]
    assert observe(region).vms["natVm1"].forwarding
    for document in ("3:damaged", other["nat-pod-rules"]):
        change(region, oci.INSTANCE, "nat-pod-dev-natVm1", metadata={**metadata, "nat-pod-rules": document})
        broken = observe(region).vms["natVm1"]
        assert (broken.rules, broken.forwarding) == (None, False)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("line", "forwarding", "strict"),
    [
        ("nothing at all", True, False),
        ("net.ipv4.ip_forward = 1", False, False),
        ("net.ipv4.conf.all.rp_filter = 0", True, True),
        ("net.ipv4.conf.*.rp_filter = 0", True, True),
    ],
)
def test_a_line_that_the_guests_files_lack(
    monkeypatch: pytest.MonkeyPatch, line: str, forwarding: bool, strict: bool
) -> None:
    config = unpack_user_data(render_user_data()).replace(line, "")
    packed = base64.b64encode(gzip.compress(config.encode(), 9, mtime=0)).decode()
    monkeypatch.setattr(guest, "render_user_data", lambda: packed)
    region, _, _ = stand_up(REPOSITORY, "dev")
    found = observe(region).vms["natVm2"]
    assert (found.forwarding, found.strict_rp_filter) == (forwarding, strict)


def test_two_machines_of_one_name_are_refused(region: Region) -> None:
    change(region, oci.INSTANCE, "customer1/vm2", displayName="customer1/vm1")
    with pytest.raises(ValueError, match="the same name"):
        observe(region)


# Surroundings


@pytest.mark.sweep
def test_a_pod_that_requests_the_peering_finds_the_customers_gateway(tmp_path: Path) -> None:
    for name in ("__main__.py", "Pulumi.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    document = yaml.safe_load((REPOSITORY / "Pulumi.dev.yaml").read_text())
    document["config"]["nat-pod:customers"]["customer2"]["peerId"] = "ocid1.localpeeringgateway.oc1..theirs"
    (tmp_path / "Pulumi.dev.yaml").write_text(yaml.safe_dump(document))
    region, plan, _ = stand_up(tmp_path, "dev")
    assert region.read("ocid1.localpeeringgateway.oc1..theirs")["peeringStatus"] == "PEERED"
    assert comparable(observe(region)) == comparable(expected_topology(plan))


@pytest.mark.sweep
def test_a_pinned_availability_domain_has_the_prefix_of_the_users_tenancy(tmp_path: Path) -> None:
    for name in ("__main__.py", "Pulumi.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    document = yaml.safe_load((REPOSITORY / "Pulumi.dev.yaml").read_text())
    document["config"]["nat-pod:natVm"]["availabilityDomain"] = "Uocm:UK-LONDON-1-AD-2"
    (tmp_path / "Pulumi.dev.yaml").write_text(yaml.safe_dump(document))
    region, _, _ = stand_up(tmp_path, "dev")
    assert region.get(find(region, oci.INSTANCE, "nat-pod-dev-natVm1")).facts["availabilityDomain"].startswith("Uocm:")


def test_strangers_are_in_no_address_book(stood_up: tuple[str, PodPlan], region: Region) -> None:
    topology, real = observe(region), {slot.real for slot in stood_up[1].slots}
    strangers = [name for name in topology.vms if name.endswith(STRANGER)]
    assert len(strangers) == 3
    assert not {topology.vnics[f"{name}-vnic-1"].addresses[0] for name in strangers} & real


def test_building_again_changes_nothing(stood_up: tuple[str, PodPlan], region: Region) -> None:
    outputs = {
        "lpgIds": {name: find(region, oci.LPG, f"nat-pod-dev-{name}") for name in ("customer1", "customer2")},
        "vrouterSubnetId": find(region, oci.SUBNET, "nat-pod-dev-vrouter"),
    }
    build(stood_up[1], region, outputs)
    assert region.to_json() == stood_up[0]


# A load balancer


def test_a_balancer_with_its_check_flags_and_backends(region: Region) -> None:
    subnet = find(region, oci.SUBNET, "management")
    vm = find(region, oci.INSTANCE, "vrouter")
    compartment = region.get(vm).inputs["compartmentId"]
    balancer = region.create(
        oci.BALANCER,
        {
            "compartmentId": compartment,
            "displayName": "next hop",
            "subnetId": subnet,
            "isPreserveSourceDestination": True,
            "assignedPrivateIpv4": "10.0.0.200",
        },
    )[0]
    part = {"networkLoadBalancerId": balancer}
    check = {
        "protocol": "HTTP", "port": 81, "urlPath": "/health", "returnCode": 204, "intervalInMillis": 1000, "retries": 2,
    }  # fmt: skip
    flags = {"isInstantFailoverEnabled": True, "isInstantFailoverTcpResetEnabled": False}
    backend_set = {**part, "name": "vms", "policy": "TWO_TUPLE", "healthChecker": check, **flags}
    region.create(oci.BACKEND_SET, backend_set)
    region.create(oci.BACKEND, {**part, "backendSetName": "vms", "targetId": vm, "port": 0, "isBackup": True})
    assert observe(region).balancers == {}, "without a listener it takes no packets"
    listener = {**part, "name": "all", "defaultBackendSetName": "vms", "port": 0, "protocol": "L3IP"}
    region.create(oci.LISTENER, {**listener, "tcpIdleTimeout": 400})

    topology = observe(region)
    vrouter = topology.vnics["vrouter-vnic-1"].addresses[0]
    found = topology.balancers["next hop"]
    assert found == Balancer(
        name="next hop",
        subnet="management",
        address="10.0.0.200",
        mac=found.mac,
        backends=(Backend(address=vrouter, is_backup=True),),
        check=HealthCheck(
            protocol=CheckProtocol.HTTP, port=81, path="/health", return_code=204, interval_millis=1000, retries=2
        ),
        instant_failover=True,
        tcp_reset=False,
        tcp_idle=400,
    )
    assert found.mac not in {vnic.mac for vnic in topology.vnics.values()}
    assert "next hop" not in topology.vnics
    region.delete(vm)
    assert observe(region).balancers["next hop"].backends == (Backend(address=GONE, is_backup=True),)
