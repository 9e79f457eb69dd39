"""`protect` under the real Pulumi engine: what it refuses, and each way out as docs/operate.md gives it.

The commands are those that an engineer types, with their previews: these end a refused command before it has touched
anything.
"""

import json
import re
from pathlib import Path

import pytest
from test_engine import Pod, cli, next_release, planned
from test_engine_routed import VMS, release, unhealthy
from test_engine_routed import routed as new_routed

from nat_pod.lab.engine.engine import EngineError
from nat_pod.lab.region.kinds import BALANCER, INSTANCE, LPG, VCN

pytestmark = [pytest.mark.engine, pytest.mark.runs_commands]

__all__ = ["cli"]

URN = "urn:pulumi:dev::nat-pod::nat-pod:index:NatPod$oci:Core/"


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory, cli: Path) -> Pod:
    """dev, which stood before there was the key, and then got it."""
    pod = Pod.new(tmp_path_factory.mktemp("protect") / "pod", cli)
    pod.engine.up()
    pod.change(protect="all")
    # The key alone is no change of a resource, and it holds from this `up` on.
    assert pod.engine.preview().counts == {}
    done = len(pod.region.changes())
    pod.engine.up()
    assert len(pod.region.changes()) == done
    return pod


@pytest.fixture
def pod(standing: Pod, tmp_path: Path, cli: Path) -> Pod:
    return standing.copy(tmp_path / "pod", cli)


def typed(pod: Pod, *arguments: str) -> tuple[bool, str]:
    """A command as it is typed: whether it went through, and all that it said."""
    pod.engine._prepare()
    status, output, complaint = pod.engine._ask(*arguments)
    return status == 0, f"{output}\n{complaint}"


def protected(pod: Pod) -> set[str]:
    return {f"{one['type']} {one['urn'].split('::')[-1]}" for one in state(pod) if one.get("protect")}


def state(pod: Pod) -> list[dict]:
    found: list[dict] = json.loads(pod.engine._query("stack", "export"))["deployment"]["resources"]
    return found


ALL = {
    f"{VCN} nat-pod-dev",
    f"{INSTANCE} nat-pod-dev-natVm1",
    f"{INSTANCE} nat-pod-dev-natVm2",
    f"{LPG} nat-pod-dev-customer1",
    f"{LPG} nat-pod-dev-customer2",
}


def test_destroy_is_refused_and_touches_nothing(pod: Pod) -> None:
    assert protected(pod) == ALL
    done = len(pod.region.changes())
    through, said = typed(pod, "destroy", "--yes")
    assert not through
    # The engine names the way out for each.
    assert f"`pulumi state unprotect '{URN}localPeeringGateway:LocalPeeringGateway::nat-pod-dev-customer1'`" in said
    assert len(pod.region.changes()) == done
    pod.engine.expect_no_changes()


def test_a_pod_is_taken_down_by_the_key_and_the_program(pod: Pod) -> None:
    pod.change(protect="nothing")
    assert not typed(pod, "destroy", "--yes")[0], "without the program it is the state that counts"
    through, said = typed(pod, "destroy", "--yes", "--run-program")
    assert through, said
    assert [record.name for record in pod.region.all(*pod.region.kinds()) if "nat-pod" in record.name] == []


def test_a_release_is_refused_until_the_file_says_network(standing: Pod, tmp_path: Path, cli: Path) -> None:
    pod = standing.copy(tmp_path / "pod", cli, next_release(tmp_path / "release"))
    done = len(pod.region.changes())
    before = {vm: pod.find(INSTANCE, vm) for vm in ("natVm1", "natVm2")}
    with pytest.raises(EngineError, match=r"unable to replace resource .*nat-pod-dev-natVm1") as refused:
        pod.engine.preview()
    # What the pull request shows is whole all the same.
    assert len(planned(refused.value.run)["replace"]) == 6
    assert not typed(pod, "up", "--yes")[0]
    assert len(pod.region.changes()) == done

    pod.change(protect="network")
    assert pod.engine.preview().counts == {"replace": 6, "update": 1}
    pod.engine.up()
    assert {vm: pod.find(INSTANCE, vm) for vm in before}.items().isdisjoint(before.items())
    assert protected(pod) == {name for name in ALL if not name.startswith(INSTANCE)}
    pod.change(protect="all")
    pod.engine.up()
    assert protected(pod) == ALL
    pod.engine.expect_no_changes()


def test_a_customer_leaves_after_its_lpg_was_unprotected(pod: Pod) -> None:
    pod.change(customers=lambda customers: customers.pop("customer2"), addresses=lambda book: book.pop("customer2/vm2"))
    done = len(pod.region.changes())
    through, said = typed(pod, "up", "--yes")
    assert not through
    assert len(pod.region.changes()) == done
    # Its command, as the engine prints it.
    (urn,) = set(re.findall(r"`pulumi state unprotect '(.+)'`", said))
    assert urn == f"{URN}localPeeringGateway:LocalPeeringGateway::nat-pod-dev-customer2"
    assert typed(pod, "state", "unprotect", urn, "--yes")[0]
    pod.engine.up()
    assert pod.region.find(LPG, "nat-pod-dev-customer2") is None
    assert protected(pod) == ALL - {f"{LPG} nat-pod-dev-customer2"}
    pod.engine.expect_no_changes()


def test_a_terminated_vm_comes_back_without_a_word(pod: Pod) -> None:
    """Nothing has to be deleted for it."""
    pod.region.delete(pod.find(INSTANCE, "natVm2"))
    pod.engine.refresh()
    pod.engine.up()
    assert protected(pod) == ALL


def test_everyday_changes_go_through(pod: Pod) -> None:
    pod.change(
        customers=lambda customers: customers["customer1"]["hosts"].pop("vm2"),
        addresses=lambda book: book.pop("customer1/vm2"),
        sourceNat="static",
    )
    pod.engine.up()  # a host that goes takes a VNIC pair along
    assert protected(pod) == ALL


@pytest.fixture(scope="module")
def standing_routed(tmp_path_factory: pytest.TempPathFactory, cli: Path) -> Pod:
    pod = new_routed(tmp_path_factory.mktemp("protect") / "routed", cli)
    pod.change(protect="all")
    pod.engine.up()
    return pod


def test_a_routed_pod_protects_its_balancers_and_all_its_vms(standing_routed: Pod, tmp_path: Path, cli: Path) -> None:
    pod = standing_routed.copy(tmp_path / "pod", cli)
    guarded = protected(pod)
    assert {f"{INSTANCE} nat-pod-routed-{vm}" for vm in VMS} < guarded
    assert {f"{BALANCER} nat-pod-routed-{side}" for side in ("natVm1", "natVm2")} < guarded
    done = len(pod.region.changes())
    assert not typed(pod, "destroy", "--yes", "--run-program")[0]
    pod.change(standby="false")
    assert not typed(pod, "up", "--yes")[0]
    assert len(pod.region.changes()) == done
    pod.change(standby="true")

    # With the program the file counts, which would protect them again.
    assert typed(pod, "state", "unprotect", "--all", "--yes")[0]
    assert not typed(pod, "destroy", "--yes", "--run-program")[0]
    pod.change(protect="nothing")
    through, said = typed(pod, "destroy", "--yes", "--run-program")
    assert through, said
    assert pod.region.kinds() == []


def test_vms_with_standbys_are_replaced_in_turn_when_the_file_says_network(
    standing_routed: Pod, tmp_path: Path, cli: Path
) -> None:
    pod = standing_routed.copy(tmp_path / "pod", cli, release(tmp_path, 0))
    unhealthy(pod, *VMS)  # nobody waits for a VM that is down: how they wait is in test_engine_routed.py
    before = {pod.find(INSTANCE, vm) for vm in VMS}
    assert not typed(pod, "up", "--yes")[0]
    assert {pod.find(INSTANCE, vm) for vm in VMS} == before
    pod.change(protect="network")
    pod.engine.up()
    assert {pod.find(INSTANCE, vm) for vm in VMS}.isdisjoint(before)
    pod.change(protect="all")
    pod.engine.up()
    assert {f"{INSTANCE} nat-pod-routed-{vm}" for vm in VMS} < protected(pod)


def test_one_vm_is_replaced_after_state_unprotect_and_is_protected_again(
    standing_routed: Pod, tmp_path: Path, cli: Path
) -> None:
    pod = standing_routed.copy(tmp_path / "pod", cli)
    unhealthy(pod, *VMS)
    before = {vm: pod.find(INSTANCE, vm) for vm in VMS}
    again = ("up", "--yes", "--target-replace", "**-natVm1b")
    assert not typed(pod, *again)[0]
    urn = "urn:pulumi:routed::nat-pod::nat-pod:index:NatPod$oci:Core/instance:Instance::nat-pod-routed-natVm1b"
    assert typed(pod, "state", "unprotect", urn, "--yes")[0]
    through, said = typed(pod, *again)
    assert through, said
    after = {vm: pod.find(INSTANCE, vm) for vm in VMS}
    assert {vm for vm in VMS if before[vm] != after[vm]} == {"natVm1b"}
    assert {f"{INSTANCE} nat-pod-routed-{vm}" for vm in VMS} < protected(pod)
