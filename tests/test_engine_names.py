"""`names` under the real Pulumi engine: what it plans, and that a view that somebody attached is not deleted."""

from pathlib import Path

import pytest
from test_engine import Pod, cli, planned

from nat_pod.lab.engine.engine import EngineError
from nat_pod.lab.region import dns
from nat_pod.lab.region.kinds import DNS_RESOLVER, DNS_RRSET, DNS_VIEW, VNIC_ATTACHMENT

pytestmark = [pytest.mark.engine, pytest.mark.runs_commands]

__all__ = ["cli"]

ZONE = "pod1.example.internal"
NAMES = [
    "names-customers",
    "names-customers",
    "names-customers-management/mgmt",
    "names-management",
    "names-management",
    "names-management-customer1/vm1",
    "names-management-customer1/vm2",
    "names-management-customer2/vm2",
]


def test_names_come_and_go_beside_everything_else(tmp_path: Path, cli: Path) -> None:
    pod = Pod.new(tmp_path / "pod", cli)
    pod.engine.up()
    pod.neighbours()
    before = pod.standing()
    pod.change(names={"zone": ZONE})
    # Beside them, as in each new POD's second `up`, comes the route to the vRouter.
    assert planned(pod.engine.up()) == {"create": NAMES, "update": ["natVm2"]}
    assert pod.standing() == before
    named = pod.copy(tmp_path / "named", cli)
    named.engine.expect_no_changes()

    # The owner of customer1's VCN attaches its view.
    vcn = str(pod.region.find("oci:Core/vcn:Vcn", "customer1"))
    (resolver,) = [one for one in pod.region.all(DNS_RESOLVER) if one.facts["attachedVcnId"] == vcn]
    view = pod.engine.outputs()["nameViews"]["customer1"]
    attached = {"resolverId": resolver.ocid, "attachedViews": [{"viewId": view}]}
    pod.region.create(DNS_RESOLVER, attached, "customer1")
    assert dns.answers(pod.region, vcn) == {f"mgmt.management.{ZONE}": ["198.18.0.2"]}

    # A server more is a record more, and nobody attaches anything.
    pod.change(
        management=lambda management: management["servers"].update(logs="10.0.0.200"),
        addresses=lambda book: book.update({"management/logs": {"natVm1": "198.18.0.5", "natVm2": "198.18.0.133"}}),
    )
    assert "names-customers-management/logs" in planned(pod.engine.up())["create"]
    assert dns.answers(pod.region, vcn)[f"logs.management.{ZONE}"] == ["198.18.0.5"]

    # Another zone is another zone in the same view.
    pod.change(names={"zone": "other.internal"})
    pod.engine.up()
    assert pod.engine.outputs()["nameViews"]["customer1"] == view
    assert dns.zones(pod.region, vcn) == ["other.internal"]

    # OCI keeps a view that is attached, and gives it up after that.
    pod.change(names={})
    with pytest.raises(EngineError, match=r"nat-pod-dev-names-customers: 409-Conflict, View .* is referenced by"):
        pod.engine.up()
    pod.region.update(resolver.ocid, {"resolverId": resolver.ocid, "attachedViews": []})
    pod.engine.up()
    assert pod.region.all(DNS_VIEW, DNS_RRSET) == []
    pod.engine.expect_no_changes()

    # They go with the POD, too.
    named.region.delete(str(named.region.find(VNIC_ATTACHMENT, "vrouter-vnic-2")))
    named.engine.destroy()
    assert named.region.all(DNS_VIEW, DNS_RRSET) == []
