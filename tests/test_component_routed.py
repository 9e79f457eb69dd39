"""The real `__main__.py` with a routed POD: which resources it registers, with which inputs and options.

As `test_component.py`, with the stack `routed`.  What an engine does with the options is in `test_engine_routed.py`.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, project_with

from nat_pod.lab.engine.program import DeployError, Deployment, Registration, deploy
from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region.region import Region
from nat_pod.lab.region.store import Limits

POD = "nat-pod-routed"
ROLES = ("natVm1", "natVm1-2", "natVm2")
VMS = ("natVm1-2a", "natVm1-2b", "natVm1a", "natVm1b", "natVm2a", "natVm2b")


@pytest.fixture(scope="module")
def deployed() -> tuple[Region, Deployment]:
    region = Region()
    return region, deploy(REPOSITORY, "routed", region)


def registered(deployment: Deployment, token: str) -> dict[str, Registration]:
    """Registrations of a type by name, the stack's name taken off."""
    return {entry.name.removeprefix(f"{POD}-"): entry for entry in deployment.registrations if entry.type == token}


def ocid(region: Region, token: str, name: str) -> str:
    found = region.find(token, f"{POD}-{name}")
    assert found is not None, name
    return found


def with_settings(directory: Path, **settings: Any) -> Path:
    """A project whose stack `routed` has other settings."""
    document = yaml.safe_load((REPOSITORY / "Pulumi.routed.yaml").read_text(encoding="utf-8"))
    document["config"] |= {f"nat-pod:{key}": value for key, value in settings.items()}
    return project_with(directory, "routed", yaml.safe_dump(document, sort_keys=False))


def test_what_there_is_of_each_kind(deployed: tuple[Region, Deployment]) -> None:
    found: dict[str, list[str]] = {}
    for entry in deployed[1].registrations:
        if entry.type.startswith("oci:") and entry.type != oci.NSG_RULE:
            found.setdefault(entry.type.split(":")[-1], []).append(entry.name.removeprefix(f"{POD}-"))
    roles, subnets = list(ROLES), [*ROLES, "vrouter"]
    assert {kind: sorted(names) for kind, names in found.items()} == {
        "Vcn": [POD],
        "DefaultSecurityList": ["default"],
        "SecurityList": ["vrouter"],
        "Subnet": subnets,
        "RouteTable": ["lpgs", "lpgs-2", *subnets],
        "RouteTableAttachment": subnets,
        "LocalPeeringGateway": ["fern", "hazel", "linden", "maple"],
        "NetworkSecurityGroup": roles,
        "Instance": list(VMS),
        "NetworkLoadBalancer": roles,
        "BackendSet": roles,
        "Listener": roles,
        "Backend": list(VMS),
    }


def test_a_balancer_keeps_addresses_and_moves_flows_without_resetting_them(
    deployed: tuple[Region, Deployment],
) -> None:
    region, deployment = deployed
    balancer = ocid(region, oci.BALANCER, "natVm1")
    assert registered(deployment, oci.BALANCER)["natVm1"].inputs == {
        "compartmentId": "ocid1.compartment.oc1..exampleroutedpod",
        "displayName": f"{POD}-natVm1",
        "subnetId": ocid(region, oci.SUBNET, "natVm1"),
        "assignedPrivateIpv4": "198.18.11.196",
        "isPrivate": True,
        "isPreserveSourceDestination": True,
        "networkSecurityGroupIds": [ocid(region, oci.NSG, "natVm1")],
    }
    assert registered(deployment, oci.BACKEND_SET)["natVm1"].inputs == {
        "networkLoadBalancerId": balancer,
        "name": "natVm1",
        "policy": "THREE_TUPLE",
        "isPreserveSource": True,
        "isInstantFailoverEnabled": True,
        "isInstantFailoverTcpResetEnabled": False,
        "areOperationallyActiveBackendsPreferred": True,
        "isFailOpen": False,
        "healthChecker": {
            "protocol": "HTTP",
            "port": 8198,
            "urlPath": "/",
            "returnCode": 200,
            "intervalInMillis": 1000,
            "timeoutInMillis": 1000,
            "retries": 3,
        },
    }
    assert registered(deployment, oci.LISTENER)["natVm1"].inputs == {
        "networkLoadBalancerId": balancer,
        "name": "all",
        "defaultBackendSetName": "natVm1",
        "protocol": "L3IP",
        "port": 0,
    }


def test_backends_are_the_nat_vms_addresses_and_the_second_one_stands_by(deployed: tuple[Region, Deployment]) -> None:
    region, deployment = deployed
    backends = {key: entry.inputs for key, entry in registered(deployment, oci.BACKEND).items()}
    assert {
        key: (one["backendSetName"], one["name"], one["port"], one["isBackup"]) for key, one in backends.items()
    } == {
        "natVm1a": ("natVm1", "natVm1a", 0, False),
        "natVm1b": ("natVm1", "natVm1b", 0, True),
        "natVm1-2a": ("natVm1-2", "natVm1-2a", 0, False),
        "natVm1-2b": ("natVm1-2", "natVm1-2b", 0, True),
        "natVm2a": ("natVm2", "natVm2a", 0, False),
        "natVm2b": ("natVm2", "natVm2b", 0, True),
    }
    assert {key: region.read(one["targetId"])["ipAddress"] for key, one in backends.items()} == {
        "natVm1a": "198.18.11.194",
        "natVm1b": "198.18.11.195",
        "natVm1-2a": "198.18.11.210",
        "natVm1-2b": "198.18.11.211",
        "natVm2a": "198.18.11.202",
        "natVm2b": "198.18.11.203",
    }


def test_the_vms_of_a_role_are_apart_and_the_active_ones_together(deployed: tuple[Region, Deployment]) -> None:
    vms = {key: entry.inputs for key, entry in registered(deployed[1], oci.INSTANCE).items()}
    assert {key: vm["faultDomain"] for key, vm in vms.items()} == {
        "natVm1a": "FAULT-DOMAIN-1",
        "natVm1b": "FAULT-DOMAIN-2",
        "natVm1-2a": "FAULT-DOMAIN-1",
        "natVm1-2b": "FAULT-DOMAIN-2",
        "natVm2a": "FAULT-DOMAIN-1",
        "natVm2b": "FAULT-DOMAIN-2",
    }
    for role in ROLES:
        assert vms[f"{role}a"]["metadata"]["nat-pod-rules"] == vms[f"{role}b"]["metadata"]["nat-pod-rules"]
        assert vms[f"{role}a"]["metadata"]["nat-pod-side"] == role
    assert vms["natVm1a"]["shapeConfig"] == {"ocpus": 1, "memoryInGbs": 8}


# Options: what only an engine acts on


def test_each_vm_waits_for_those_before_it_and_for_their_backends(deployed: tuple[Region, Deployment]) -> None:
    """Only so is there a backend whose health a hook can ask for, when the next VM's turn comes."""
    waits = {
        key: {urn.split("$")[-1].removeprefix("oci:") for urn in entry.request.dependencies}
        for key, entry in registered(deployed[1], oci.INSTANCE).items()
    }
    order = ["natVm1b", "natVm1a", "natVm1-2b", "natVm1-2a", "natVm2b", "natVm2a"]
    for number, key in enumerate(order):
        earlier = {
            f"{kind}::{POD}-{vm}"
            for vm in order[:number]
            for kind in ("Core/instance:Instance", "NetworkLoadBalancer/backend:Backend")
        }
        assert {
            wait for wait in waits[key] if "Instance" in wait or "Backend:" in wait or "backend:" in wait
        } == earlier


def test_a_hook_stands_before_each_backend_and_nowhere_else(deployed: tuple[Region, Deployment]) -> None:
    hooks = {
        (entry.type, entry.name.removeprefix(f"{POD}-")): list(entry.request.hooks.before_delete)
        for entry in deployed[1].registrations
        if entry.request.hooks.before_delete
    }
    # The name is in the state of stacks that stand: another one would keep them from deleting anything.
    assert hooks == {(oci.BACKEND, vm): [f"{POD}-other-nat-vm-is-healthy"] for vm in VMS}


@pytest.mark.slow
def test_with_standbys_a_vm_is_replaced_where_it_would_be_stopped(
    deployed: tuple[Region, Deployment], tmp_path: Path
) -> None:
    stopping = {"sourceDetails", "shape", "shapeConfig", "faultDomain"}
    vms = registered(deployed[1], oci.INSTANCE).values()
    assert [set(vm.request.replaceOnChanges) for vm in vms] == [stopping] * 6
    alone = deploy(with_settings(tmp_path, standby=False), "routed", Region())
    assert [set(vm.request.replaceOnChanges) for vm in registered(alone, oci.INSTANCE).values()] == [set()] * 3


# Without standbys, and what is refused


@pytest.mark.slow
def test_without_standbys_routes_lead_to_the_vms(tmp_path: Path) -> None:
    region = Region()
    deployment = deploy(with_settings(tmp_path, standby=False), "routed", region)
    assert set(registered(deployment, oci.INSTANCE)) == {"natVm1a", "natVm1-2a", "natVm2a"}
    assert not registered(deployment, oci.BALANCER)
    assert deployment.outputs["nextHops"] == {
        "natVm1": "198.18.11.194", "natVm1-2": "198.18.11.210", "natVm2": "198.18.11.202",
    }  # fmt: skip
    for table, address in (("lpgs", "198.18.11.194"), ("lpgs-2", "198.18.11.210")):
        (rule,) = region.read(ocid(region, oci.ROUTE_TABLE, table))["routeRules"]
        assert region.read(rule["networkEntityId"])["ipAddress"] == address


def test_an_lpg_has_the_route_table_of_its_customers_gateway(deployed: tuple[Region, Deployment]) -> None:
    region, deployment = deployed
    tables = {key: entry.inputs["routeTableId"] for key, entry in registered(deployment, oci.LPG).items()}
    first, second = (ocid(region, oci.ROUTE_TABLE, table) for table in ("lpgs", "lpgs-2"))
    assert tables == {"fern": first, "hazel": first, "linden": first, "maple": second}
    # And back: each gateway has one route to 10.0.0.0/24, which fern and maple both are.
    for role, customer in (("natVm1", "fern"), ("natVm1-2", "maple")):
        rules = region.read(ocid(region, oci.ROUTE_TABLE, role))["routeRules"]
        (rule,) = [rule for rule in rules if rule["destination"] == "10.0.0.0/24"]
        assert rule["networkEntityId"] == ocid(region, oci.LPG, customer)


def test_outputs(deployed: tuple[Region, Deployment]) -> None:
    region, deployment = deployed
    outputs = deployment.outputs
    assert outputs["natVmIds"] == {vm: ocid(region, oci.INSTANCE, vm) for vm in VMS}
    assert outputs["balancerIds"] == {role: ocid(region, oci.BALANCER, role) for role in ROLES}
    assert outputs["nextHops"] == {"natVm1": "198.18.11.196", "natVm1-2": "198.18.11.212", "natVm2": "198.18.11.204"}
    assert outputs["generations"]["natVm1a"] == outputs["generations"]["natVm1b"]
    assert outputs["addressBook"]["fern/app"] == {"natVm1": "198.18.10.1", "natVm2": "198.18.10.1"}
    assert outputs["routesToAdd"]["fern"]["destinations"] == ["198.18.8.0/23"]


@pytest.mark.slow
def test_a_region_without_room_for_a_balancer_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"400-LimitExceeded.*1 network load balancers"):
        deploy(with_settings(tmp_path), "routed", Region(limits=Limits(balancers=1)))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sourceNat": "static", "lpgLimit": 1}, ["nat-pod:sourceNat", "nat-pod:customers"]),
        ({"balancerLimit": 1}, ["nat-pod:balancerLimit"]),
    ],
    ids=["foreign and over a limit", "too few balancers"],
)
def test_a_bad_stack_file_ends_in_its_problems_and_makes_nothing(
    tmp_path: Path, settings: dict[str, Any], named: list[str]
) -> None:
    region = Region()
    with pytest.raises(DeployError) as refused:
        deploy(with_settings(tmp_path, **settings), "routed", region)
    assert [path for path in named if path not in str(refused.value)] == []
    assert region.kinds() == []
