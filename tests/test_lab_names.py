"""Names in the lab: each host asks its VCN's resolver, and calls by name through both NAT VMs.

What the resolvers answer comes from the views of the deployed region, which the owners of the VCNs attached.
"""

import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, project_with

from nat_pod.lab.apply import packed_topology
from nat_pod.lab.observe import observe
from nat_pod.lab.region.kinds import DNS_RESOLVER, DNS_RRSET
from nat_pod.lab.region.region import Region
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire import sandbox
from nat_pod.plan.model import PodPlan
from nat_pod.trace.flows import declared_flows

pytestmark = pytest.mark.lab

ZONE = "pod1.example.internal"
RESOLVER = "169.254.169.254"


def deployed(directory: Path, **settings: object) -> tuple[Region, PodPlan]:
    """dev with a second server, which customer2 may not call, and with more settings."""
    file = yaml.safe_load((REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8"))
    config = file["config"]
    config["nat-pod:management"]["servers"]["dns"] = "10.0.3.53"
    config["nat-pod:addresses"]["management/dns"] = {"natVm1": "198.18.0.6", "natVm2": "198.18.0.134"}
    config["nat-pod:customers"]["customer2"]["servers"] = ["mgmt"]
    config |= {f"nat-pod:{key}": value for key, value in settings.items()}
    region, plan, deployment = stand_up(project_with(directory, "dev", yaml.safe_dump(file)), "dev")
    assert deployment.warnings == ()
    return region, plan


def ask(lab: sandbox.Lab, host: str, name: str) -> tuple[str, list[str]]:
    """What dig gets on a host: the status, and the addresses."""
    argv = ["dig", f"@{RESOLVER}", "+tries=3", "+time=2", name, "A"]
    said = lab.call("run", vm=host, argv=argv)["stdout"]
    status = re.search(r"status: (\w+)", said)
    found = re.findall(rf"^{re.escape(name)}\.\s+\d+\s+IN\s+A\s+(\S+)$", said, re.MULTILINE)
    return status[1] if status else "nobody answers", found


CALL = """
import sys, urllib.request
print(urllib.request.urlopen(f"http://{sys.argv[1]}/", timeout=5).read().decode())
"""


def calls(lab: sandbox.Lab, host: str, name: str) -> str:
    """Who answers HTTP at the first address that a name has on a host."""
    _, (address, *_) = ask(lab, host, name)
    said = lab.call("run", vm=host, argv=["python3", "-c", CALL, address])
    return str(said["stdout"] or said["stderr"]).strip()


def test_each_host_calls_by_name_whom_it_may_and_nobody_else_has_one(tmp_path):
    region, plan = deployed(tmp_path, names={"zone": ZONE})
    names = {str(slot.member): f"{slot.member.short}.{slot.member.realm}.{ZONE}" for slot in plan.slots}
    declared = {(str(flow.sender), str(flow.receiver)): flow.destination for flow in declared_flows(plan)}
    assert len(declared) == 2 * 2 + 1 + 2 * 3
    with sandbox.Lab(observe(region)) as lab:
        for host in names:
            for other, name in names.items():
                if (host, other) in declared:
                    # It resolves, and through both NAT VMs the right one answers.
                    assert ask(lab, host, name) == ("NOERROR", [declared[host, other]])
                    assert calls(lab, host, name).startswith(f"name={other} ")
                else:
                    # A customer's own hosts, another customer's, and a server that is not for it.
                    assert ask(lab, host, name) == ("NXDOMAIN", []), (host, other)
            assert ask(lab, host, f"nobody.management.{ZONE}") == ("NXDOMAIN", [])
            # Outside the zone this resolver knows nothing, and does not say that there is nothing.
            assert ask(lab, host, "www.example.com") == ("REFUSED", [])


def test_where_no_view_is_attached_nothing_resolves(tmp_path):
    region, _ = deployed(tmp_path, names={"zone": ZONE})
    for one in region.all(DNS_RESOLVER):
        if one.name == "customer2":
            region.update(one.ocid, {"resolverId": one.ocid, "attachedViews": []})
    with sandbox.Lab(observe(region)) as lab:
        assert ask(lab, "customer1/vm1", f"mgmt.management.{ZONE}") == ("NOERROR", ["198.18.0.2"])
        assert ask(lab, "customer2/vm2", f"mgmt.management.{ZONE}") == ("nobody answers", [])


def test_a_running_lab_follows_the_records(tmp_path):
    region, _ = deployed(tmp_path, names={"zone": ZONE})
    name = f"dns.management.{ZONE}"
    with sandbox.Lab(observe(region)) as lab:
        assert ask(lab, "customer1/vm1", name) == ("NOERROR", ["198.18.0.6"])
        region.delete(next(one.ocid for one in region.all(DNS_RRSET) if one.facts["domain"] == name))
        lab.call("apply", topology=packed_topology(observe(region)))
        assert ask(lab, "customer1/vm1", name) == ("NXDOMAIN", [])
        assert ask(lab, "customer1/vm1", f"mgmt.management.{ZONE}") == ("NOERROR", ["198.18.0.2"])


def test_what_is_resolved_is_what_the_region_holds(tmp_path):
    """A record that somebody changed in the console leads elsewhere, whatever the plan says."""
    region, _ = deployed(tmp_path, names={"zone": ZONE})
    name = f"vm1.customer1.{ZONE}"
    (record,) = [one for one in region.all(DNS_RRSET) if one.facts["domain"] == name]
    item = {**record.inputs["items"][0], "rdata": "198.18.0.131"}  # that of customer2/vm2
    region.update(record.ocid, {**record.inputs, "items": [item]})
    with sandbox.Lab(observe(region)) as lab:
        assert ask(lab, "management/mgmt", name) == ("NOERROR", ["198.18.0.131"])
        assert calls(lab, "management/mgmt", name).startswith("name=customer2/vm2 ")
        assert calls(lab, "management/mgmt", f"vm2.customer1.{ZONE}").startswith("name=customer1/vm2 ")


def test_without_names_nobody_needs_a_resolver(tmp_path):
    region, _ = deployed(tmp_path)
    topology = observe(region)
    assert {(vcn.zones, vcn.names) for vcn in topology.vcns.values()} == {((), ())}
    with sandbox.Lab(topology) as lab:
        assert ask(lab, "customer1/vm1", f"mgmt.management.{ZONE}") == ("nobody answers", [])
        assert not any("resolver" in label for label in lab.call("status")["processes"])
