"""The life of a routed POD under the real Pulumi engine: what it plans, and how it replaces NAT VMs without an outage.

As `test_engine.py`, with the stack `routed`: each test starts from a copy of one POD that stands.
"""

import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from routed_pods import of_size, one_gateway
from test_engine import (
    REPOSITORY,
    ROUTED,
    Applied,
    Pod,
    cli,
    copied_program,
    documented,
    held_by,
    next_release,
    planned,
    table,
)

from bench.pods import stack_config
from nat_pod.lab.engine.engine import EngineError, Run
from nat_pod.lab.region.kinds import (
    BACKEND,
    BALANCER,
    INSTANCE,
    LPG,
    PRIVATE_IP,
    ROUTE_TABLE,
)

pytestmark = [pytest.mark.engine, pytest.mark.runs_commands]

__all__ = ["cli"]

VMS = ["natVm1a", "natVm1b", "natVm2a", "natVm2b"]
ONE_AFTER_THE_OTHER = ["natVm1b", "natVm1a", "natVm2b", "natVm2a"]


def test_each_row_of_the_table_is_held_by_a_test() -> None:
    assert held_by(Path(__file__)) == sorted(table(ROUTED))


def add_vrouter(pod: Pod) -> str:
    """The vRouter's owner does his part; returns the OCID of the floating IP."""
    subnet, floating = pod.engine.outputs()["vrouterSubnetId"], pod.config["nat-pod:management"]["vrouter"]
    details = {
        "subnetId": subnet,
        "privateIp": floating.replace(".250", ".251"),
        "assignPublicIp": "false",
        "skipSourceDestCheck": True,
    }
    vm = pod.region.create(
        INSTANCE,
        {
            "compartmentId": "c",
            "availabilityDomain": pod.region.availability_domains[0],
            "shape": "VM.Standard2.1",
            "sourceDetails": {"sourceType": "image", "sourceId": "ocid1.image.oc1..x"},
            "createVnicDetails": details,
        },
        "vrouter",
    )[0]
    attached = pod.region.invoke("oci:Core/getVnicAttachments:getVnicAttachments", {"instanceId": vm})
    vnic = attached["vnicAttachments"][0]["vnicId"]
    return pod.region.create(PRIVATE_IP, {"vnicId": vnic, "ipAddress": floating}, "vrouter floating, POD")[0]


def routed(base: Path, cli: Path) -> Pod:
    """A new POD of the example with a single customer gateway, as docs/engine.md counts its resources."""
    pod = Pod.new(base, cli, "routed")
    pod.config = one_gateway(pod.config)
    pod.save()
    return pod


class NewPod:
    """routed from nothing to its second `up`, and what was planned on the way."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.planned, self.first = pod.engine.preview(), pod.engine.up()
        self.routes_after_first = pod.routes("natVm2")
        self.floating = add_vrouter(pod)
        self.second = pod.engine.up()


@pytest.fixture(scope="module")
def new_pod(tmp_path_factory: pytest.TempPathFactory, cli: Path) -> NewPod:
    return NewPod(routed(tmp_path_factory.mktemp("engine") / "pod", cli))


@pytest.fixture(scope="module")
def standing(new_pod: NewPod) -> Pod:
    """routed after the two `up` of a new POD."""
    return new_pod.pod


@pytest.fixture
def pod(standing: Pod, tmp_path: Path, cli: Path) -> Pod:
    return standing.copy(tmp_path / "pod", cli)


def paths(run: Run) -> dict[str, set[str]]:
    """Name to the inputs that differ, of everything that has the name."""
    found: dict[str, set[str]] = {}
    for step in run.steps:
        if step.paths:
            found.setdefault(step.name.removeprefix("nat-pod-routed-"), set()).update(step.paths)
    return found


# The life of a POD


def test_a_new_pod_is_made_in_two_steps(new_pod: NewPod) -> None:
    assert new_pod.planned.counts == documented("new POD, first `up`", ROUTED)
    (warning,) = new_pod.first.warnings
    assert "No private IP 198.18.11.250 in subnet nat-pod-routed-vrouter yet" in warning
    # Its routes to the hosts do not wait for the vRouter.
    assert [rule["destination"] for rule in new_pod.routes_after_first] == ["198.18.10.0/26"]
    assert new_pod.second.counts == documented("second `up`, once the vRouter is there", ROUTED)
    rules = {rule["destination"]: rule["networkEntityId"] for rule in new_pod.pod.routes("natVm2")}
    assert rules["10.0.0.0/16"] == new_pod.floating
    assert not new_pod.second.warnings


def test_route_tables_lead_to_the_balancers_and_each_subnet_has_its_own(standing: Pod) -> None:
    region = standing.region
    hops = {
        key: {
            rule["destination"]: region.read(rule["networkEntityId"]).get("ipAddress") for rule in standing.routes(key)
        }
        for key in ("lpgs", "natVm1", "natVm2", "vrouter")
    }
    vm1, vm2 = "198.18.11.196", "198.18.11.204"
    customers = dict.fromkeys(["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"])  # to LPGs
    assert hops == {
        "lpgs": {"198.18.8.0/27": vm1},
        "natVm1": {"198.18.8.0/27": vm2, **customers},
        "natVm2": {"198.18.10.0/26": vm1, "10.0.0.0/16": "198.18.11.250"},
        "vrouter": {"198.18.10.0/26": vm2},
    }
    assert standing.engine.outputs()["nextHops"] == {"natVm1": vm1, "natVm2": vm2}
    subnets = {record.name: region.read(record.ocid) for record in region.all("oci:Core/subnet:Subnet")}
    for key in ("natVm1", "natVm2", "vrouter"):
        assert subnets[f"nat-pod-routed-{key}"]["routeTableId"] == standing.find(ROUTE_TABLE, key)


def test_nothing_changed_is_nothing_to_do(pod: Pod) -> None:
    assert not pod.engine.refresh().counts
    assert pod.engine.preview().counts == documented("no change, with or without `refresh`", ROUTED)


def host(pod: Pod, name: str, address: str, alias: str) -> None:
    pod.change(
        customers=lambda customers: customers["fern"]["hosts"].update({name: address}),
        addresses=lambda book: book.update({f"fern/{name}": alias}),
    )


def test_a_host_is_a_matter_of_metadata(pod: Pod) -> None:
    before, balancers = pod.standing(), [record.ocid for record in pod.region.all(BALANCER, BACKEND)]
    host(pod, "late", "10.0.0.7", "198.18.10.42")
    up = pod.engine.up()
    assert up.counts == documented("host added", ROUTED)
    assert set(paths(up)) <= set(VMS)
    assert {path for changed in paths(up).values() for path in changed} == {"metadata.nat-pod-rules"}
    assert pod.standing() == before

    pod.change(
        customers=lambda customers: customers["fern"]["hosts"].pop("late"),
        addresses=lambda book: book.pop("fern/late"),
    )
    up = pod.engine.up()
    assert up.counts == documented("host removed", ROUTED)
    assert {path for changed in paths(up).values() for path in changed} == {"metadata.nat-pod-rules"}
    assert pod.standing() == before
    assert [record.ocid for record in pod.region.all(BALANCER, BACKEND)] == balancers


def test_the_first_host_of_a_block_brings_routes_to_it(pod: Pod) -> None:
    host(pod, "far", "10.0.0.7", "198.18.10.130")
    preview = pod.engine.preview()
    assert preview.counts == documented("the first host of another block of aliases", ROUTED)
    assert {name for name, changed in paths(preview).items() if changed == {"routeRules"}} == {"natVm2", "vrouter"}


def test_a_server_is_a_matter_of_metadata(pod: Pod) -> None:
    pod.change(
        management=lambda management: management["servers"].update(late="10.0.9.9"),
        addresses=lambda book: book.update({"management/late": "198.18.8.6"}),
    )
    preview = pod.engine.preview()
    assert preview.counts == documented("server added", ROUTED)
    assert {path for changed in paths(preview).values() for path in changed} == {"metadata.nat-pod-rules"}


def test_a_customer_brings_its_gateway_and_goes_with_it(pod: Pod, tmp_path: Path, cli: Path) -> None:
    added = Applied.to(
        pod,
        customers=lambda customers: customers.update(willow={"cidr": "10.0.4.0/24", "hosts": {"vm1": "10.0.4.5"}}),
        addresses=lambda book: book.update({"willow/vm1": "198.18.10.43"}),
    )
    assert added.up.counts == documented("customer added, one host", ROUTED)
    assert planned(added.up)["create"] == ["natVm1-egress-willow", "natVm1-ingress-willow", "willow"]
    assert pod.standing() - added.before == {pod.find(LPG, "willow")}
    removed = Applied.to(
        pod,
        customers=lambda customers: customers.pop("willow"),
        addresses=lambda book: book.pop("willow/vm1"),
    )
    assert removed.up.counts == documented("customer removed", ROUTED)
    assert pod.standing() == added.before


def test_a_customer_gateway_comes_and_goes(standing: Pod, tmp_path: Path, cli: Path) -> None:
    """With a customer who overlaps another one. A gateway that goes waits for nobody, and touches no other NAT VM."""
    pod = standing.copy(tmp_path / "pod", cli, patience(copied_program(tmp_path / "program"), 1.0))
    vms = {vm: pod.find(INSTANCE, vm) for vm in VMS}
    willow = {"cidr": pod.config["nat-pod:customers"]["fern"]["cidr"], "hosts": {"vm1": "10.0.0.10"}}
    added = Applied.to(
        pod,
        customers=lambda customers: customers.update(willow=willow),
        gateways={"willow": 2},
        addresses=lambda book: book.update({"willow/vm1": "198.18.10.65"}),
    )
    assert added.up.counts == documented("customer added behind another gateway", ROUTED)
    assert planned(added.up)["update"] == ["natVm2", "natVm2a", "natVm2b", "vrouter"]
    assert added.before < pod.standing()
    for balancer in pod.region.all(BALANCER):
        pod.region.report_health(balancer.ocid, {})  # nobody is called healthy, and nobody waits for that
    pod.config.pop("nat-pod:gateways")
    removed = Applied.to(
        pod,
        customers=lambda customers: customers.pop("willow"),
        addresses=lambda book: book.pop("willow/vm1"),
    )
    assert removed.up.counts == documented("that customer removed", ROUTED)
    assert pod.standing() == added.before
    assert {vm: pod.find(INSTANCE, vm) for vm in vms} == vms


def test_the_standbys_go_and_come_back(standing: Pod, tmp_path: Path, cli: Path) -> None:
    pod = standing.copy(tmp_path / "pod", cli, patience(copied_program(tmp_path / "program"), 1.0))
    for balancer in pod.region.all(BALANCER):
        pod.region.report_health(balancer.ocid, {})  # nobody is called healthy, and nobody waits for that
    before = {vm: pod.find(INSTANCE, vm) for vm in ("natVm1a", "natVm2a")}
    off = Applied.to(pod, standby="false")
    assert off.up.counts == documented("`standby: false`", ROUTED)
    assert pod.region.all(BALANCER, BACKEND) == []
    (rule,) = pod.routes("lpgs")
    assert pod.region.read(rule["networkEntityId"])["ipAddress"] == "198.18.11.194"
    # No route led to the balancers any more when they went.
    names = [name for _, name in off.done]
    assert max(names.index(f"nat-pod-routed-{table}") for table in ("lpgs", "vrouter")) < [
        do for do, _ in off.done
    ].index("delete")
    on = Applied.to(pod, standby="true")
    assert on.up.counts == documented("`standby: true` again", ROUTED)
    assert {vm: pod.find(INSTANCE, vm) for vm in before} == before
    pod.engine.expect_no_changes()


def test_destroy_leaves_nothing(pod: Pod) -> None:
    pod.region.delete(str(pod.region.find(INSTANCE, "vrouter")))
    # The hooks are in the program, so the CLI wants to run it: this is what an engineer reads.
    status, _, complaint = pod.engine._ask("destroy", "--yes", "--skip-preview", "--json")
    assert status != 0
    assert "--run-program" in complaint
    # A standby that is down does not hold it up.
    unhealthy(pod, "natVm1b")
    assert pod.engine.destroy().counts == documented("`destroy --run-program`", ROUTED)
    assert pod.region.kinds() == []


def test_a_full_pod_has_fewer_than_eighty_resources(tmp_path: Path, cli: Path) -> None:
    """Of 435 members, as many as a full POD of the article's delivery in a /22 has, with its 946 resources."""
    pod = routed(tmp_path, cli)
    mapping = of_size(427, servers=8, customers=10)
    assert len(mapping["addresses"]) == 435
    pod.config = stack_config(mapping)
    pod.save()
    pod.engine.up()
    assert len(pod.engine.resources()) < 80
    pod.engine.expect_no_changes()


# Replacing NAT VMs


def replacing_all(pod: Pod, change: Callable[[Any], None]) -> Run:
    """The preview of a change of `natVm` that replaces every VM and its backend, and nothing else."""
    pod.change(natVm=change)
    preview = pod.engine.preview()
    assert planned(preview) == {"replace": sorted(VMS * 2)}
    return preview


def test_a_new_ssh_key_replaces_the_vms(pod: Pod) -> None:
    preview = replacing_all(pod, lambda vm: vm.update(sshPublicKey=f"{vm['sshPublicKey']}2"))
    assert preview.counts == documented("ssh key changed", ROUTED)


def test_a_new_shape_which_would_reboot_a_vm_replaces_it(pod: Pod) -> None:
    preview = replacing_all(pod, lambda vm: vm["shape"].update(ocpus=2))
    assert preview.counts == documented("shape changed", ROUTED)


def test_a_new_image_which_would_stop_a_vm_replaces_it(pod: Pod) -> None:
    preview = replacing_all(pod, lambda vm: vm.update(imageId="ocid1.image.oc1.uk-london-1.another"))
    assert preview.counts == documented("image changed", ROUTED)


def targets(pod: Pod) -> dict[str, str]:
    """The private IPs behind the balancers, by NAT VM."""
    return {str(backend.facts["name"]): str(backend.facts["targetId"]) for backend in pod.region.all(BACKEND)}


def unhealthy(pod: Pod, *down: str) -> None:
    """Somebody looked at every NAT VM that is there, and all are well but these."""
    for balancer in pod.region.all(BALANCER):
        side = balancer.name.removeprefix("nat-pod-routed-")
        seen = {target: vm not in down for vm, target in targets(pod).items() if vm.startswith(side)}
        pod.region.report_health(balancer.ocid, seen)


def release(tmp_path: Path, seconds: float) -> Path:
    """The next release, whose program waits no longer than so many seconds."""
    return patience(next_release(tmp_path / "release"), seconds)


def patience(directory: Path, seconds: float) -> Path:
    """A copy of the program, which now waits for a balancer no longer than so many seconds, and asks often."""
    module = directory / "nat_pod" / "oci" / "replacement.py"
    text = module.read_text(encoding="utf-8")
    for name, value in (("PATIENCE_SECONDS", seconds), ("_PAUSE_SECONDS", 0.2)):
        text, found = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        assert found == 1
    module.write_text(text, encoding="utf-8")
    return directory


def test_a_new_bootstrap_replaces_each_vm_when_the_other_is_healthy(standing: Pod, tmp_path: Path, cli: Path) -> None:
    pod = standing.copy(tmp_path / "pod", cli, release(tmp_path, 60))
    unhealthy(pod)
    preview = pod.engine.preview()
    assert preview.counts == documented("bootstrap changed", ROUTED)
    stop = threading.Event()

    def look() -> None:
        """As balancers do: after a moment a new VM is known to be well."""
        known = targets(pod)
        while not stop.wait(0.3):
            if targets(pod) != known:
                time.sleep(0.7)
                known = targets(pod)
                unhealthy(pod)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        _, done = pod.apply()
    finally:
        stop.set()
        looker.join()
    assert [name for do, name in done if do == "create" and name in {f"nat-pod-routed-{vm}" for vm in VMS}] == [
        f"nat-pod-routed-{vm}" for vm in ONE_AFTER_THE_OTHER for _ in ("instance", "backend")
    ]
    # Between a side's two VMs somebody has looked at the first: the other's backend is not taken out before.
    for first, other in (("natVm1b", "natVm1a"), ("natVm2b", "natVm2a")):
        made = len(done) - 1 - done[::-1].index(("create", f"nat-pod-routed-{first}"))
        assert ("health", f"nat-pod-routed-{first[:-1]}") in done[
            made : done.index(("delete", f"nat-pod-routed-{other}"))
        ]
    pod.engine.expect_no_changes()


def test_a_standby_that_never_becomes_healthy_leaves_the_other_vm_alone(
    standing: Pod, tmp_path: Path, cli: Path
) -> None:
    pod = standing.copy(tmp_path / "pod", cli, release(tmp_path, 1.5))
    unhealthy(pod)
    before = {vm: pod.find(INSTANCE, vm) for vm in VMS}
    with pytest.raises(EngineError) as refused:
        pod.engine.up()
    assert (
        "natVm1a was left alone, because its balancer does not call the other NAT VM of its side healthy: natVm1b "
        "UNKNOWN, after 0 minutes. Look at the other one: `python -m nat_pod status routed`, then its serial console"
    ) in str(refused.value)
    assert "Traceback" not in str(refused.value)
    after = {vm: pod.find(INSTANCE, vm) for vm in VMS}
    assert {vm for vm in VMS if before[vm] != after[vm]} == {"natVm1b"}
    assert {str(backend.facts["name"]) for backend in pod.region.all(BACKEND)} == set(VMS)
    # A preview waits for nobody.  The next `up` is held up in the same way, and says for what.
    assert planned(pod.engine.preview())["replace"] == sorted(2 * [vm for vm in VMS if vm != "natVm1b"])
    status, events, _ = pod.engine._ask("up", "--yes", "--skip-preview", "--json")
    assert status != 0
    assert "natVm1a is replaced as soon as its balancer calls the other NAT VM healthy: natVm1b UNKNOWN, 0 s" in events
    # It goes on once somebody has found the VM well.
    unhealthy(pod)
    with pytest.raises(EngineError, match="natVm2a was left alone"):  # here nobody looks at natVm2b
        pod.engine.up()
    assert pod.find(INSTANCE, "natVm1a") != before["natVm1a"]
    assert pod.find(INSTANCE, "natVm2a") == before["natVm2a"]


def test_a_dead_vm_is_replaced_before_the_one_that_works(standing: Pod, tmp_path: Path, cli: Path) -> None:
    """natVm1b took over from natVm1a, which is down: natVm1b must not go, and natVm1a needs not wait for anybody."""
    pod = standing.copy(tmp_path / "pod", cli, release(tmp_path, 1.0))
    unhealthy(pod, "natVm1a")
    before = {vm: pod.find(INSTANCE, vm) for vm in VMS}
    with pytest.raises(EngineError, match=r"natVm1b was left alone.*natVm1a CRITICAL") as refused:
        pod.engine.up()
    assert {vm: pod.find(INSTANCE, vm) for vm in VMS} == before
    assert "`pulumi up --target '**nat-pod-routed-NAME'`" in str(refused.value)

    pod.engine._operate("up", "--target", "**nat-pod-routed-natVm1a")
    after = {vm: pod.find(INSTANCE, vm) for vm in VMS}
    assert {vm for vm in VMS if before[vm] != after[vm]} == {"natVm1a"}
    unhealthy(pod)
    with pytest.raises(EngineError, match="natVm2a was left alone"):  # nobody looks at natVm2b
        pod.engine.up()
    assert pod.find(INSTANCE, "natVm1b") != before["natVm1b"]


def test_vms_that_all_are_down_wait_for_nobody(standing: Pod, tmp_path: Path, cli: Path) -> None:
    """A bootstrap that keeps them all from working is mended by the next one."""
    pod = standing.copy(tmp_path / "pod", cli, release(tmp_path, 0))
    unhealthy(pod, *VMS)
    pod.engine.up()
    pod.engine.expect_no_changes()


def test_a_standby_that_somebody_terminated_comes_back(pod: Pod) -> None:
    before = {vm: pod.find(INSTANCE, vm) for vm in VMS}
    pod.region.delete(pod.find(INSTANCE, "natVm1b"))
    with pytest.raises(EngineError, match=r"somebody terminated its VM: run `pulumi refresh`, then `pulumi up`"):
        pod.engine.preview()
    pod.engine.refresh()
    preview = pod.engine.preview()
    assert planned(preview) == {"create": ["natVm1b"], "replace": ["natVm1b"]}  # the VM, and its place in the balancer
    pod.engine.up()
    assert {vm for vm in VMS if pod.find(INSTANCE, vm) != before[vm]} == {"natVm1b"}
    pod.engine.expect_no_changes()


def test_one_vm_can_be_replaced_by_its_name_under_the_same_condition(standing: Pod, tmp_path: Path, cli: Path) -> None:
    pod = standing.copy(tmp_path / "pod", cli, release(tmp_path, 1.0))
    shutil.copy(REPOSITORY / "cloud-init" / "user-data.b64", pod.engine.directory / "cloud-init" / "user-data.b64")
    before = {vm: pod.find(INSTANCE, vm) for vm in VMS}
    unhealthy(pod, "natVm1a")
    with pytest.raises(EngineError, match=r"natVm1b was left alone.*natVm1a CRITICAL"):
        pod.engine._operate("up", "--target-replace", "**-natVm1b")
    assert {vm: pod.find(INSTANCE, vm) for vm in VMS} == before
    pod.engine._operate("up", "--target-replace", "**-natVm1a")
    after = {vm: pod.find(INSTANCE, vm) for vm in VMS}
    assert {vm for vm in VMS if before[vm] != after[vm]} == {"natVm1a"}
    pod.engine.expect_no_changes()


def test_metadata_changes_although_the_standby_is_dead(pod: Pod) -> None:
    unhealthy(pod, "natVm1b", "natVm2b")
    host(pod, "late", "10.0.0.7", "198.18.10.42")
    pod.engine.up()
    pod.engine.expect_no_changes()
