"""The real `__main__.py` with the article's stack: which resources it registers, with which inputs and options.

What an engine does with the options (replacement, deletion) is not shown here: Pulumi's mocks only create.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pulumi
import pytest
import yaml
from conftest import REPOSITORY, stack_mapping
from pulumi.runtime import mocks
from pulumi.runtime.stack import run_pulumi_func

from nat_pod.config.model import PodConfig
from nat_pod.errors import ConfigError
from nat_pod.lab.engine.program import DeployError, Deployment, Registration, deploy, run_apart
from nat_pod.lab.region import kinds as oci
from nat_pod.lab.region.region import Region
from nat_pod.lab.region.store import Limits
from nat_pod.oci.args import NatPodArgs
from nat_pod.oci.component import NatPod
from nat_pod.oci.scope import Scope
from nat_pod.pages.handover import handover, with_outputs
from nat_pod.plan.planner import plan_pod

POD = "nat-pod-dev"


@pytest.fixture(scope="module")
def deployed() -> tuple[Region, Deployment]:
    region = Region()
    return region, deploy(REPOSITORY, "dev", region)


def registered(deployment: Deployment, token: str) -> dict[str, Registration]:
    """Registrations of a type by name, the stack's name taken off."""
    return {entry.name.removeprefix(f"{POD}-"): entry for entry in deployment.registrations if entry.type == token}


def inputs(region: Region, token: str, name: str) -> dict[str, Any]:
    ocid = region.find(token, f"{POD}-{name}")
    assert ocid is not None, name
    return region.get(ocid).inputs


def ocid(region: Region, token: str, name: str = "") -> str:
    found = region.find(token, f"{POD}-{name}" if name else POD)
    assert found is not None, name
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the program with its dev stack, to be changed."""
    for name in ("__main__.py", "Pulumi.yaml", "Pulumi.dev.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def change(project: Path, *path: str, value: object) -> None:
    """Set one value of the project's dev stack."""
    file = project / "Pulumi.dev.yaml"
    document = yaml.safe_load(file.read_text())
    inner = document["config"]
    first, *rest = (f"nat-pod:{path[0]}", *path[1:])
    for step in [first, *rest][:-1]:
        inner = inner[step]
    inner[[first, *rest][-1]] = value
    file.write_text(yaml.safe_dump(document))


# What is registered


def test_the_children_are_named_after_the_pod_and_a_stable_key(deployed: tuple[Region, Deployment]) -> None:
    children = [entry for entry in deployed[1].registrations if entry.type.startswith("oci:")]
    assert sorted(f"{entry.type.split(':')[-1]} {entry.name}" for entry in children) == [
        "DefaultSecurityList nat-pod-dev-default",
        "Instance nat-pod-dev-natVm1",
        "Instance nat-pod-dev-natVm2",
        "LocalPeeringGateway nat-pod-dev-customer1",
        "LocalPeeringGateway nat-pod-dev-customer2",
        "NetworkSecurityGroup nat-pod-dev-natVm1",
        "NetworkSecurityGroup nat-pod-dev-natVm2",
        "NetworkSecurityGroupSecurityRule nat-pod-dev-natVm1-egress-customer1",
        "NetworkSecurityGroupSecurityRule nat-pod-dev-natVm1-egress-customer2",
        "NetworkSecurityGroupSecurityRule nat-pod-dev-natVm1-egress-transit",
        "NetworkSecurityGroupSecurityRule nat-pod-dev-natVm1-ingress-customer1",
        "NetworkSecurityGroupSecurityRule nat-pod-dev-natVm1-ingress-customer2",
        "NetworkSecurityGroupSecurityRule nat-pod-dev-natVm1-ingress-transit",
        "NetworkSecurityGroupSecurityRule nat-pod-dev-natVm2-egress-management",
        "NetworkSecurityGroupSecurityRule nat-pod-dev-natVm2-egress-transit",
        "NetworkSecurityGroupSecurityRule nat-pod-dev-natVm2-ingress-management",
        "NetworkSecurityGroupSecurityRule nat-pod-dev-natVm2-ingress-transit",
        "NetworkSecurityGroupSecurityRule nat-pod-dev-natVm2-ingress-vrouter",
        "PrivateIp nat-pod-dev-198.18.0.131",
        "PrivateIp nat-pod-dev-198.18.0.3",
        "RouteTable nat-pod-dev-lpgs",
        "RouteTable nat-pod-dev-natVm1",
        "RouteTable nat-pod-dev-natVm2",
        "RouteTableAttachment nat-pod-dev-natVm1-vnic-1",
        "RouteTableAttachment nat-pod-dev-natVm1-vnic-2",
        "SecurityList nat-pod-dev-vrouter",
        "Subnet nat-pod-dev-natVm1-vnic-1",
        "Subnet nat-pod-dev-natVm1-vnic-2",
        "Subnet nat-pod-dev-natVm2-vnic-1",
        "Subnet nat-pod-dev-natVm2-vnic-2",
        "Subnet nat-pod-dev-vrouter",
        "Vcn nat-pod-dev",
        "VnicAttachment nat-pod-dev-natVm1-vnic-2",
        "VnicAttachment nat-pod-dev-natVm2-vnic-2",
    ]
    component = f"urn:pulumi:dev::nat-pod::pulumi:pulumi:Stack$nat-pod:index:NatPod::{POD}"
    assert {entry.request.parent for entry in children} == {component}


def test_instance(deployed: tuple[Region, Deployment]) -> None:
    region, deployment = deployed
    vm = dict(registered(deployment, oci.INSTANCE)["natVm1"].inputs)
    metadata = vm.pop("metadata")
    assert vm == {
        "compartmentId": "ocid1.compartment.oc1..exampledevpod",
        "availabilityDomain": "nPod:UK-LONDON-1-AD-1",
        "faultDomain": "FAULT-DOMAIN-1",
        "displayName": "nat-pod-dev-natVm1",
        "shape": "VM.Standard2.24",
        "sourceDetails": {"sourceType": "image", "sourceId": "ocid1.image.oc1.uk-london-1.exampleoraclelinux9"},
        "createVnicDetails": {
            "subnetId": ocid(region, oci.SUBNET, "natVm1-vnic-1"),
            "privateIp": "198.18.0.2",
            "displayName": "nat-pod-dev-natVm1-vnic-1",
            "nsgIds": [ocid(region, oci.NSG, "natVm1")],
            "skipSourceDestCheck": True,
            "assignPublicIp": "false",
        },
        "instanceOptions": {"areLegacyImdsEndpointsDisabled": True},
        "availabilityConfig": {"recoveryAction": "RESTORE_INSTANCE"},
        "updateOperationConstraint": "AVOID_DOWNTIME",
    }
    assert set(metadata) == {"user_data", "ssh_authorized_keys", "nat-pod-vm", "nat-pod-rules"}
    assert registered(deployment, oci.INSTANCE)["natVm2"].inputs["faultDomain"] == "FAULT-DOMAIN-2"


def test_attachment(deployed: tuple[Region, Deployment]) -> None:
    region, deployment = deployed
    assert registered(deployment, oci.VNIC_ATTACHMENT)["natVm2-vnic-2"].inputs == {
        "instanceId": ocid(region, oci.INSTANCE, "natVm2"),
        "createVnicDetails": {
            "subnetId": ocid(region, oci.SUBNET, "natVm2-vnic-2"),
            "privateIp": "198.18.0.66",
            "displayName": "nat-pod-dev-natVm2-vnic-2",
            "nsgIds": [ocid(region, oci.NSG, "natVm2")],
            "skipSourceDestCheck": True,
            "assignPublicIp": "false",
        },
    }


def test_secondary_addresses_sit_on_the_vnic_of_their_subnet(deployed: tuple[Region, Deployment]) -> None:
    region, _ = deployed
    address = region.read(ocid(region, oci.PRIVATE_IP, "198.18.0.3"))
    assert address["subnetId"] == ocid(region, oci.SUBNET, "natVm1-vnic-1")
    assert region.read(address["vnicId"])["displayName"] == "nat-pod-dev-natVm1-vnic-1"


def test_subnets_and_their_tables(deployed: tuple[Region, Deployment]) -> None:
    region, _ = deployed
    for key, cidr, side in (
        ("natVm1-vnic-1", "198.18.0.0/27", "natVm1"),
        ("natVm1-vnic-2", "198.18.0.32/27", "natVm1"),
        ("natVm2-vnic-1", "198.18.0.128/27", "natVm2"),
        ("natVm2-vnic-2", "198.18.0.64/27", "natVm2"),
    ):
        table = ocid(region, oci.ROUTE_TABLE, side)
        assert inputs(region, oci.SUBNET, key) == {
            "compartmentId": "ocid1.compartment.oc1..exampledevpod",
            "vcnId": ocid(region, oci.VCN),
            "cidrBlock": cidr,
            "displayName": f"nat-pod-dev-{key}",
            "prohibitPublicIpOnVnic": True,
            **({"routeTableId": table} if side == "natVm2" else {}),
        }
        assert region.read(ocid(region, oci.SUBNET, key))["routeTableId"] == table
    vrouter = inputs(region, oci.SUBNET, "vrouter")
    assert "routeTableId" not in vrouter
    assert vrouter["securityListIds"] == [ocid(region, oci.SECURITY_LIST, "vrouter")]
    default_table = region.read(ocid(region, oci.VCN))["defaultRouteTableId"]
    assert region.read(ocid(region, oci.SUBNET, "vrouter"))["routeTableId"] == default_table
    assert region.read(default_table)["routeRules"] == []


def test_nat_vm1_routes_each_customer_to_its_lpg(deployed: tuple[Region, Deployment]) -> None:
    region, _ = deployed
    rules = inputs(region, oci.ROUTE_TABLE, "natVm1")["routeRules"]
    assert [(rule["destination"], rule["networkEntityId"]) for rule in rules] == [
        ("10.0.0.0/24", ocid(region, oci.LPG, "customer1")),
        ("10.0.1.0/24", ocid(region, oci.LPG, "customer2")),
    ]


def test_what_customers_send_past_nat_vm1_is_led_to_it(deployed: tuple[Region, Deployment]) -> None:
    region, _ = deployed
    for customer in ("customer1", "customer2"):
        assert inputs(region, oci.LPG, customer)["routeTableId"] == ocid(region, oci.ROUTE_TABLE, "lpgs")
    rules = inputs(region, oci.ROUTE_TABLE, "lpgs")["routeRules"]
    assert {region.read(rule["networkEntityId"])["ipAddress"] for rule in rules} == {"198.18.0.2"}
    # NAT VM2's subnets and the vRouter's; not NAT VM1's, whose declared flows do not depend on this table.
    assert [rule["destination"] for rule in rules] == ["198.18.0.64/27", "198.18.0.128/27", "198.18.0.160/28"]


def test_security(deployed: tuple[Region, Deployment]) -> None:
    region, _ = deployed
    default = region.read(region.read(ocid(region, oci.VCN))["defaultSecurityListId"])
    assert default["ingressSecurityRules"] == default["egressSecurityRules"] == []
    assert inputs(region, oci.NSG_RULE, "natVm1-ingress-transit") == {
        "networkSecurityGroupId": ocid(region, oci.NSG, "natVm1"),
        "direction": "INGRESS",
        "protocol": "all",
        "source": ocid(region, oci.NSG, "natVm2"),
        "sourceType": "NETWORK_SECURITY_GROUP",
        "stateless": True,
        "description": "from transit",
    }
    assert inputs(region, oci.NSG_RULE, "natVm2-egress-management") == {
        "networkSecurityGroupId": ocid(region, oci.NSG, "natVm2"),
        "direction": "EGRESS",
        "protocol": "all",
        "destination": "10.0.0.0/16",
        "destinationType": "CIDR_BLOCK",
        "stateless": True,
        "description": "to management",
    }
    assert inputs(region, oci.NSG_RULE, "natVm2-ingress-vrouter") == {
        "networkSecurityGroupId": ocid(region, oci.NSG, "natVm2"),
        "direction": "INGRESS",
        "protocol": "1",
        "source": "198.18.0.160/28",
        "sourceType": "CIDR_BLOCK",
        "stateless": True,
        "description": "errors of the vRouter",
    }
    vrouter = inputs(region, oci.SECURITY_LIST, "vrouter")
    assert [rule["source"] for rule in vrouter["ingressSecurityRules"]] == [
        "10.0.0.0/16",
        "198.18.0.128/27",
        "198.18.0.64/27",
        "0.0.0.0/0",
    ]
    assert vrouter["ingressSecurityRules"][-1]["icmpOptions"] == {"type": 3, "code": 4}
    assert all(rule["stateless"] for key in ("ingress", "egress") for rule in vrouter[f"{key}SecurityRules"])


def test_lpgs_are_acceptors(deployed: tuple[Region, Deployment]) -> None:
    assert all("peerId" not in entry.inputs for entry in registered(deployed[1], oci.LPG).values())


def test_a_peer_id_makes_the_pod_the_requestor(project: Path) -> None:
    change(project, "customers", "customer1", "peerId", value="ocid1.localpeeringgateway.oc1..theirs")
    region = Region()
    vcn = region.create(oci.VCN, {"compartmentId": "c", "cidrBlocks": ["10.0.0.0/24"]})[0]
    theirs = region.create(oci.LPG, {"compartmentId": "c", "vcnId": vcn}, ocid="ocid1.localpeeringgateway.oc1..theirs")[
        0
    ]
    deployment = deploy(project, "dev", region)
    assert region.read(theirs)["peeringStatus"] == "PEERED"
    assert region.read(theirs)["peerId"] == deployment.outputs["lpgIds"]["customer1"]


# Options: what only an engine acts on


def urn(kind: str, name: str) -> str:
    return f"urn:pulumi:dev::nat-pod::nat-pod:index:NatPod${kind}::{POD}-{name}"


def test_pinned_addresses_are_freed_before_they_are_taken_again(deployed: tuple[Region, Deployment]) -> None:
    for token in (oci.INSTANCE, oci.VNIC_ATTACHMENT, oci.PRIVATE_IP):
        for entry in registered(deployed[1], token).values():
            assert entry.request.deleteBeforeReplace, entry.name
    # An LPG must not: a route rule still points to it when its turn comes.
    assert not any(entry.request.deleteBeforeReplace for entry in registered(deployed[1], oci.LPG).values())


def test_what_dies_with_its_owner_says_so(deployed: tuple[Region, Deployment]) -> None:
    _, deployment = deployed
    attachments, addresses = registered(deployment, oci.VNIC_ATTACHMENT), registered(deployment, oci.PRIVATE_IP)
    assert attachments["natVm1-vnic-2"].request.deletedWith == urn(oci.INSTANCE, "natVm1")
    assert addresses["198.18.0.3"].request.deletedWith == urn(oci.INSTANCE, "natVm1")
    assert {tuple(entry.request.replaceOnChanges) for entry in addresses.values()} == {("vnicId",)}


@pytest.mark.slow
def test_attachments_of_one_vm_are_chained_and_of_two_vms_are_not() -> None:
    deployment = deploy(REPOSITORY, "ten", Region(limits=Limits(attach_seconds=0)))
    found = {
        entry.name.removeprefix("nat-pod-ten-"): {urn.split("::")[-1] for urn in entry.request.dependencies}
        for entry in deployment.registrations
        if entry.type == oci.VNIC_ATTACHMENT
    }
    assert "nat-pod-ten-natVm1-vnic-2" in found["natVm1-vnic-3"]
    assert "nat-pod-ten-natVm2-vnic-2" in found["natVm2-vnic-3"]
    assert not any("natVm2" in name for key in found if key.startswith("natVm1") for name in found[key])


@pytest.mark.sweep
def test_the_chain_is_what_avoids_the_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    deploy(REPOSITORY, "ten", Region(limits=Limits(attach_seconds=0.1)))
    options = Scope.options
    monkeypatch.setattr(Scope, "options", lambda scope, depends_on=None, **more: options(scope, **more))
    with pytest.raises(DeployError, match=r"409-Conflict, instance .* is currently being modified"):
        deploy(REPOSITORY, "ten", Region(limits=Limits(attach_seconds=0.1)))


# Two steps


@pytest.mark.slow
def test_the_route_to_the_vrouter_comes_with_the_second_up() -> None:
    region = Region()
    first = deploy(REPOSITORY, "dev", region)
    assert len(first.warnings) == 1
    assert "No private IP 198.18.0.167 in subnet nat-pod-dev-vrouter yet" in first.warnings[0]
    assert "10.0.0.0/16" in first.warnings[0]
    assert "`pulumi up` again" in first.warnings[0]
    table = ocid(region, oci.ROUTE_TABLE, "natVm2")
    assert region.read(table)["routeRules"] == []

    floating = vrouter(region, first.outputs["vrouterSubnetId"], skip=True)
    second = deploy(REPOSITORY, "dev", region)
    assert second.warnings == ()
    assert second.outputs == first.outputs
    assert region.read(table)["routeRules"] == [
        {"destination": "10.0.0.0/16", "destinationType": "CIDR_BLOCK", "networkEntityId": floating}
    ]


@pytest.fixture
def vrouter_gone(monkeypatch: pytest.MonkeyPatch) -> Callable[[Region], None]:
    """Makes a region's next look-ups of the floating address find nobody, as in the middle of a fail-over."""

    def patch(region: Region) -> None:
        answer = region.invoke

        def without(token: str, args: dict[str, Any]) -> dict[str, Any]:
            found = answer(token, args)
            return {**found, "privateIps": []} if args.get("ipAddress") == "198.18.0.167" else found

        monkeypatch.setattr(region, "invoke", without)

    return patch


@pytest.mark.slow
def test_a_route_that_stands_stays_when_the_vrouter_is_not_found(vrouter_gone: Callable[[Region], None]) -> None:
    region = Region()
    floating = vrouter(region, deploy(REPOSITORY, "dev", region).outputs["vrouterSubnetId"], skip=True)
    deploy(REPOSITORY, "dev", region)
    table = ocid(region, oci.ROUTE_TABLE, "natVm2")
    before = region.read(table)["routeRules"]
    assert before
    vrouter_gone(region)

    (warning,) = deploy(REPOSITORY, "dev", region).warnings
    assert region.read(table)["routeRules"] == before
    assert warning == (
        "No private IP 198.18.0.167 in subnet nat-pod-dev-vrouter at the moment. NAT VM2 keeps the route that it has, "
        f"10.0.0.0/16 to {floating}. It leads nowhere until a vRouter has the address: after a fail-over, run "
        "`pulumi preview` again; if this warning stays, the vRouter's owner attaches a VNIC to that subnet with its "
        "source/destination check skipped and this address as a private IP; then run `pulumi up` again."
    )


@pytest.mark.slow
def test_a_rule_added_by_hand_is_not_taken_over_with_the_one_that_stays(
    vrouter_gone: Callable[[Region], None],
) -> None:
    region = Region()
    floating = vrouter(region, deploy(REPOSITORY, "dev", region).outputs["vrouterSubnetId"], skip=True)
    deploy(REPOSITORY, "dev", region)
    table = ocid(region, oci.ROUTE_TABLE, "natVm2")
    own = region.read(table)["routeRules"]
    by_hand = {"destination": "172.16.0.0/12", "destinationType": "CIDR_BLOCK", "networkEntityId": floating}
    region.update(table, {**region.get(table).inputs, "routeRules": [by_hand, *own]})
    vrouter_gone(region)
    deploy(REPOSITORY, "dev", region)
    assert region.read(table)["routeRules"] == own


@pytest.mark.slow
def test_a_new_network_of_management_waits_for_the_vrouter_and_the_old_route_stays(
    project: Path, vrouter_gone: Callable[[Region], None]
) -> None:
    region = Region()
    vrouter(region, deploy(project, "dev", region).outputs["vrouterSubnetId"], skip=True)
    deploy(project, "dev", region)
    table = ocid(region, oci.ROUTE_TABLE, "natVm2")
    before = region.read(table)["routeRules"]
    change(project, "management", "cidr", value="10.0.0.0/17")
    vrouter_gone(region)
    (warning,) = deploy(project, "dev", region).warnings
    assert region.read(table)["routeRules"] == before
    assert "NAT VM2 keeps the route that it has, 10.0.0.0/16 to " in warning
    assert ", and there is none to 10.0.0.0/17. " in warning


@pytest.fixture
def nat_vm1_gone(monkeypatch: pytest.MonkeyPatch) -> Callable[[Region], None]:
    """Makes a region's next look-ups list every address of NAT VM1's first VNIC but the primary one."""

    def patch(region: Region) -> None:
        answer = region.invoke

        def without(token: str, args: dict[str, Any]) -> dict[str, Any]:
            found = answer(token, args)
            if "privateIps" not in found:
                return found
            return {**found, "privateIps": [ip for ip in found["privateIps"] if ip["ipAddress"] != "198.18.0.2"]}

        monkeypatch.setattr(region, "invoke", without)

    return patch


@pytest.mark.slow
def test_the_lpgs_keep_their_rules_when_nat_vm1_is_not_found(nat_vm1_gone: Callable[[Region], None]) -> None:
    region = Region()
    vrouter(region, deploy(REPOSITORY, "dev", region).outputs["vrouterSubnetId"], skip=True)
    table = ocid(region, oci.ROUTE_TABLE, "lpgs")
    before = region.read(table)["routeRules"]
    assert before
    nat_vm1_gone(region)
    (warning,) = deploy(REPOSITORY, "dev", region).warnings
    assert region.read(table)["routeRules"] == before
    assert warning == (
        "No private IP 198.18.0.2 on NAT VM1's first VNIC at the moment. The LPGs keep the route rules that they have; "
        "run `pulumi up` again."
    )


def test_a_new_pod_whose_nat_vm1_is_not_found_is_not_left_without_the_lpgs_rules(
    nat_vm1_gone: Callable[[Region], None],
) -> None:
    """Customers would get past NAT VM1."""
    region = Region()
    nat_vm1_gone(region)
    with pytest.raises(DeployError) as refused:
        deploy(REPOSITORY, "dev", region)
    assert str(refused.value) == (
        "nat-pod dev: No private IP 198.18.0.2 on NAT VM1's first VNIC, so the route rules of the LPGs have no target; "
        "run `pulumi up` again."
    )


@pytest.mark.slow
def test_a_vrouter_with_the_check_on_is_refused_in_ocis_words() -> None:
    region = Region()
    first = deploy(REPOSITORY, "dev", region)
    vrouter(region, first.outputs["vrouterSubnetId"], skip=False)
    with pytest.raises(DeployError, match="SRC/DST check is enabled"):
        deploy(REPOSITORY, "dev", region)


def vrouter(region: Region, subnet: str, *, skip: bool) -> str:
    """A machine of the vRouter's owner with the floating address; returns the private IP's OCID."""
    vm = region.create(
        oci.INSTANCE,
        {
            "compartmentId": "c",
            "availabilityDomain": region.availability_domains[0],
            "shape": "VM.Standard2.1",
            "sourceDetails": {"sourceType": "image", "sourceId": "ocid1.image.oc1..x"},
            "createVnicDetails": {"subnetId": subnet, "assignPublicIp": "false", "skipSourceDestCheck": skip},
        },
    )[0]
    attached = region.invoke("oci:Core/getVnicAttachments:getVnicAttachments", {"instanceId": vm})
    vnic = attached["vnicAttachments"][0]["vnicId"]
    return region.create(oci.PRIVATE_IP, {"vnicId": vnic, "ipAddress": "198.18.0.167"})[0]


@pytest.mark.slow
def test_a_change_of_rules_replaces_no_vm(project: Path) -> None:
    region = Region()
    first = deploy(project, "dev", region)
    change(project, "customers", "customer1", "hosts", "vm3", value="10.0.0.131")
    change(project, "addresses", "customer1/vm3", value={"natVm1": "198.18.0.4", "natVm2": "198.18.0.132"})
    second = deploy(project, "dev", region)
    assert second.outputs["natVmIds"] == first.outputs["natVmIds"]
    assert second.outputs["generations"]["natVm1"] != first.outputs["generations"]["natVm1"]
    assert region.read(ocid(region, oci.PRIVATE_IP, "198.18.0.132"))["ipState"] == "ASSIGNED"


@pytest.mark.slow
def test_the_primary_vnic_is_found_whatever_else_oci_lists(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OCI lists attachments in no order, and detached ones for a while; another VNIC would be refused the address."""
    region = Region()
    deploy(project, "dev", region)
    invoke = region.invoke

    def unsorted(token: str, args: dict[str, Any]) -> dict[str, Any]:
        answer = invoke(token, args)
        if "vnicAttachments" in answer:
            *others, last = reversed(answer["vnicAttachments"])
            answer["vnicAttachments"] = [{**last, "state": "DETACHED", "vnicId": "ocid1.vnic.gone"}, *others, last]
        return answer

    monkeypatch.setattr(region, "invoke", unsorted)
    deploy(project, "dev", region)


@pytest.mark.slow
def test_another_compartment_ends_in_a_sentence(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region()
    deploy(project, "dev", region)
    invoke = region.invoke

    def as_before(token: str, args: dict[str, Any]) -> dict[str, Any]:
        """A preview asks while the VMs are still where they were."""
        moved = "vnicAttachments" in (answer := invoke(token, args)) and args["compartmentId"].endswith("another")
        return {**answer, "vnicAttachments": []} if moved else answer

    monkeypatch.setattr(region, "invoke", as_before)
    change(project, "compartmentId", value="ocid1.compartment.oc1..another")
    with pytest.raises(DeployError) as refused:
        deploy(project, "dev", region)
    assert str(refused.value) in {
        f'nat-pod dev: Pulumi.dev.yaml: 1 problem\n  nat-pod:compartmentId: "ocid1.compartment.oc1..another": OCI '
        f"lists no VNIC of nat-pod-dev-{vm} in this compartment, and a POD does not move: write the compartment that "
        "it is in, or make a new POD in this one (`python -m nat_pod new-pod NAME`). If it is in this one, somebody "
        "terminated its VM: run `pulumi refresh`, then `pulumi up`"
        for vm in ("natVm1", "natVm2")
    }


def test_one_name_twice_is_refused_as_the_engine_does(project: Path) -> None:
    vcn = 'oci.core.Vcn("a", compartment_id="c", cidr_blocks=["10.0.0.0/16"])'
    twice = f"import pulumi_oci as oci\n{vcn}\n{vcn}\n"
    (project / "__main__.py").write_text(twice)
    with pytest.raises(DeployError, match=r"Duplicate resource URN .*::a"):
        deploy(project, "dev", Region())


@pytest.mark.slow
def test_a_replacement_is_left_to_the_engine(project: Path) -> None:
    region = Region()
    deploy(project, "dev", region)
    change(project, "natVm", "sshPublicKey", value="ssh-ed25519 AAAA new@example")
    with pytest.raises(DeployError, match="'ssh_authorized_keys' metadata field cannot be updated"):
        deploy(project, "dev", region)


# Preview


def test_a_first_preview_knows_no_ids_and_asks_and_warns_nothing(dev: dict[str, object]) -> None:
    calls: list[str] = []
    warned: list[str] = []

    class Unknown(mocks.Mocks):
        def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
            return (None if args.custom else ""), args.inputs

        def call(self, args: mocks.MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]]]:
            calls.append(args.token.split(":")[-1])
            return {"availabilityDomains": [{"name": "x:UK-LONDON-1-AD-1", "id": "i", "compartmentId": "c"}]}, []

    async def preview() -> None:
        mocks.set_mocks(Unknown(), preview=True)
        await run_pulumi_func(lambda: NatPod("pod", cast("NatPodArgs", dev)) and None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pulumi.log, "warn", lambda message, **_: warned.append(message))
        run_apart(preview)
    assert calls == ["getAvailabilityDomains"]
    assert warned == []


# Outputs and errors


def test_outputs(deployed: tuple[Region, Deployment]) -> None:
    region, deployment = deployed
    outputs = dict(deployment.outputs)
    generations = outputs.pop("generations")
    assert set(generations) == {"natVm1", "natVm2"}
    assert outputs == {
        "vcnId": ocid(region, oci.VCN),
        "natVmIds": {vm: ocid(region, oci.INSTANCE, vm) for vm in ("natVm1", "natVm2")},
        "lpgIds": {name: ocid(region, oci.LPG, name) for name in ("customer1", "customer2")},
        "vrouterSubnetId": ocid(region, oci.SUBNET, "vrouter"),
        "addressBook": {
            "management/mgmt": {"natVm1": "198.18.0.2", "natVm2": "198.18.0.130"},
            "customer1/vm1": {"natVm1": "198.18.0.2", "natVm2": "198.18.0.130"},
            "customer1/vm2": {"natVm1": "198.18.0.34", "natVm2": "198.18.0.66"},
            "customer2/vm2": {"natVm1": "198.18.0.3", "natVm2": "198.18.0.131"},
        },
        "routesToAdd": {
            "customer1": {
                "destinations": ["198.18.0.0/27"],
                "target": "the customer VCN's own LPG, peered with lpgId as its peer_id",
                "lpgId": ocid(region, oci.LPG, "customer1"),
            },
            "customer2": {
                "destinations": ["198.18.0.0/27"],
                "target": "the customer VCN's own LPG, peered with lpgId as its peer_id",
                "lpgId": ocid(region, oci.LPG, "customer2"),
            },
            "management": {
                "destinations": ["198.18.0.128/27", "198.18.0.64/27"],
                "target": "the vRouter's floating private IP in the management VCN",
            },
        },
    }


def test_the_outputs_are_what_handover_reads(deployed: tuple[Region, Deployment]) -> None:
    region, deployment = deployed
    plan = plan_pod(PodConfig.from_mapping(stack_mapping("dev"), "dev"), "dev")
    for neighbour, expected in (
        ("customer2", ocid(region, oci.LPG, "customer2")),
        ("management", ocid(region, oci.SUBNET, "vrouter")),
    ):
        sheet = with_outputs(handover(plan, "dev", neighbour), plan, deployment.outputs, "outputs")
        assert (sheet.ocid, sheet.deployed) == (expected, True)


def test_a_pinned_availability_domain_and_a_flex_shape(project: Path) -> None:
    change(project, "natVm", "availabilityDomain", value="abcd:UK-LONDON-1-AD-3")
    change(project, "natVm", "shape", value={"shape": "VM.Optimized3.Flex", "ocpus": 12, "memoryGbs": 48})
    deployment = deploy(project, "dev", Region(limits=Limits(domain_prefix="abcd")))
    vm = registered(deployment, oci.INSTANCE)["natVm1"].inputs
    assert vm["availabilityDomain"] == "abcd:UK-LONDON-1-AD-3"
    assert (vm["shape"], vm["shapeConfig"]) == ("VM.Optimized3.Flex", {"ocpus": 12, "memoryInGbs": 48})


@pytest.mark.parametrize("name", ["abcd:UK-LONDON-1-AD-4", "abcd:US-ASHBURN-AD-1", "nPod:UK-LONDON-1-AD-1"])
def test_a_domain_that_the_region_does_not_have_is_refused_before_anything_is_made(project: Path, name: str) -> None:
    change(project, "natVm", "availabilityDomain", value=name)
    region = Region(limits=Limits(domain_prefix="abcd"))
    with pytest.raises(DeployError) as refused:
        deploy(project, "dev", region)
    assert str(refused.value) == (
        f'nat-pod dev: Pulumi.dev.yaml: 1 problem\n  nat-pod:natVm.availabilityDomain: "{name}": is not an '
        "availability domain of this region; your tenancy names them: abcd:UK-LONDON-1-AD-1, abcd:UK-LONDON-1-AD-2, "
        "abcd:UK-LONDON-1-AD-3"
    )
    assert region.kinds() == []


def test_a_domain_is_known_in_any_case_and_stays_as_it_is_written(project: Path) -> None:
    change(project, "natVm", "availabilityDomain", value="NPOD:uk-london-1-ad-2")
    vm = registered(deploy(project, "dev", Region()), oci.INSTANCE)["natVm1"].inputs
    assert vm["availabilityDomain"] == "NPOD:uk-london-1-ad-2"


def test_a_bad_stack_file_ends_in_its_problems(project: Path) -> None:
    change(project, "cidr", value="198.18.0.0/33")
    with pytest.raises((ConfigError, DeployError)) as caught:
        deploy(project, "dev", Region())
    assert "nat-pod:cidr" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("value", ["static", {"policy": "static"}, None], ids=str)
def test_a_mistyped_key_is_refused_although_it_need_not_be_there(project: Path, value: object) -> None:
    """Ignored, it would leave the POD with `masquerade`, the default, and nobody would know."""
    change(project, "sourceNatt", value=value)
    region = Region()
    with pytest.raises(DeployError, match="nat-pod:sourceNatt: is not a setting of nat-pod; did you mean sourceNat"):
        deploy(project, "dev", region)
    assert region.kinds() == []


@pytest.mark.slow
def test_runs_leave_nothing_behind() -> None:
    deploy(REPOSITORY, "dev", Region())
    before = Path.cwd(), set(threading.enumerate())
    with pytest.raises(DeployError):
        deploy(REPOSITORY, "dev", Region(limits=Limits(lpgs=1)))
    assert (Path.cwd(), set(threading.enumerate())) == before
