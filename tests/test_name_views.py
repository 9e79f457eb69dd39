"""Names in OCI's private DNS (`names`): which views there are, what is in each, and what the region makes of them."""

from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, real_stack, stack_mapping
from routed_pods import small

from nat_pod.config import any_config
from nat_pod.lab.engine.program import deploy
from nat_pod.lab.region import dns
from nat_pod.lab.region.kinds import DNS_RESOLVER, DNS_RRSET, DNS_VIEW, DNS_ZONE
from nat_pod.lab.region.refusals import OciError
from nat_pod.lab.region.region import Region
from nat_pod.lab.surroundings import before, stand_up
from nat_pod.names import MANAGEMENT, NAMESPACE
from nat_pod.pages.handover import handover, with_outputs
from nat_pod.pages.handover_page import sheet_markdown
from nat_pod.pages.zone import names_for
from nat_pod.plan.model import PodPlan
from nat_pod.plan.name_views import name_views
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.flows import declared_flows

ZONE = "pod1.example.internal"


def planned(mapping: dict, zone: str | None = ZONE) -> PodPlan:
    return plan_pod(any_config.read({**mapping, **({} if zone is None else {"names": {"zone": zone}})}, "x"), "x")


def restricted() -> dict:
    """dev with a second server, which customer2 may not call."""
    mapping = stack_mapping("dev")
    mapping["management"]["servers"]["dns"] = "10.0.3.53"
    mapping["addresses"]["management/dns"] = {"natVm1": "198.18.0.6", "natVm2": "198.18.0.134"}
    mapping["customers"]["customer2"]["servers"] = ["mgmt"]
    return mapping


def project(directory: Path, stack: str, mapping: dict | None = None, **settings: object) -> Path:
    text = yaml.safe_load(real_stack(stack))["config"]
    if mapping is not None:
        text = {key: value for key, value in text.items() if not key.startswith(NAMESPACE)}
        text |= {f"{NAMESPACE}:{key}": value for key, value in mapping.items()}
    text |= {f"{NAMESPACE}:{key}": value for key, value in settings.items()}
    for name in ("Pulumi.yaml", "__main__.py", "nat_pod", "cloud-init"):
        if not (directory / name).exists():
            (directory / name).symlink_to(REPOSITORY / name)
    (directory / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump({"config": text}), encoding="utf-8")
    return directory


@pytest.mark.parametrize("mapping", [stack_mapping("dev"), stack_mapping("ten"), small(), restricted()])
def test_a_view_has_the_names_of_those_whom_its_neighbours_call_and_no_others(mapping):
    plan = planned(mapping)
    views = name_views(plan)
    assert sorted(realm for view in views for realm in view.realms) == sorted(plan.realms)
    for view in views:
        assert view.zone == ZONE
        for realm in view.realms:
            used = {flow.receiver: flow.destination for flow in declared_flows(plan) if flow.sender.realm == realm}
            assert {record.member: record.address for record in view.records} == used
            # The same names and addresses as the zone file has.
            assert tuple((one.member, one.address) for one in view.records) == names_for(plan, "x", realm).addresses
    # As few as possible: nobody has a view for himself that another one has as well.
    assert len({view.records for view in views}) == len(views)


def test_customers_share_a_view_until_one_may_not_call_every_server():
    assert [(view.key, view.realms) for view in name_views(planned(stack_mapping("dev")))] == [
        ("names-management", (MANAGEMENT,)),
        ("names-customers", ("customer1", "customer2")),
    ]
    views = {view.key: view for view in name_views(planned(restricted()))}
    assert [(key, view.realms) for key, view in views.items()] == [
        ("names-management", (MANAGEMENT,)),
        ("names-customers", ("customer1",)),
        ("names-of-customer2", ("customer2",)),
    ]
    assert [record.domain for record in views["names-of-customer2"].records] == [f"mgmt.management.{ZONE}"]
    assert [record.domain for record in views["names-management"].records] == [
        f"vm1.customer1.{ZONE}",
        f"vm2.customer1.{ZONE}",
        f"vm2.customer2.{ZONE}",
    ]


def test_without_the_key_there_are_none_and_nobody_gets_an_empty_one():
    assert name_views(planned(stack_mapping("dev"), None)) == ()
    mapping = stack_mapping("dev")
    mapping["customers"]["customer2"]["hosts"] = {}
    del mapping["addresses"]["customer2/vm2"]
    assert [view.realms for view in name_views(planned(mapping))] == [(MANAGEMENT,), ("customer1",)]


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["dev", pytest.param("routed", marks=pytest.mark.sweep)])
def test_the_region_holds_them_and_a_vcn_answers_once_a_view_is_attached(tmp_path, stack):
    region, plan, deployed = stand_up(project(tmp_path, stack, names={"zone": ZONE}), stack)
    views = deployed.outputs["nameViews"]
    assert set(views) == set(plan.realms)
    planned_views = name_views(plan)
    assert len(region.all(DNS_VIEW)) == len(region.all(DNS_ZONE)) == len(set(views.values())) == len(planned_views)
    assert len(region.all(DNS_RRSET)) == sum(len(view.records) for view in planned_views)
    vcns = {one.name: one.ocid for one in region.all("oci:Core/vcn:Vcn")}
    for realm, ocid in views.items():
        # The neighbours' owners did so.
        (resolver,) = [one for one in region.all(DNS_RESOLVER) if one.facts["attachedVcnId"] == vcns[realm]]
        assert resolver.facts["attachedViews"] == [{"viewId": ocid}]
        calls = {flow.receiver: flow.destination for flow in declared_flows(plan) if flow.sender.realm == realm}
        assert dns.answers(region, vcns[realm]) == {
            f"{member.short}.{member.realm}.{ZONE}": [address] for member, address in calls.items()
        }
        assert dns.zones(region, vcns[realm]) == [ZONE]
        region.update(resolver.ocid, {"resolverId": resolver.ocid, "attachedViews": []})
        assert (dns.answers(region, vcns[realm]), dns.zones(region, vcns[realm])) == ({}, [])
    (pod,) = [ocid for name, ocid in vcns.items() if name.startswith("nat-pod-")]
    assert dns.zones(region, pod) == [], "in the POD itself nobody asks for names"


@pytest.mark.slow
def test_where_a_pod_gives_its_names_up_the_labs_owners_detach_them_before(tmp_path):
    region, plan, _ = stand_up(project(tmp_path, "dev", names={"zone": ZONE}), "dev")
    (view, *_) = region.all(DNS_VIEW)
    before(plan, region)
    with pytest.raises(OciError, match="is referenced by"):
        region.delete(view.ocid)
    before(planned(stack_mapping("dev"), None), region)
    for zone in region.all(DNS_ZONE):
        region.delete(zone.ocid)
    region.delete(view.ocid)


@pytest.mark.slow
def test_a_stack_without_the_key_makes_what_it_made_before(tmp_path):
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    made = {}
    for name, settings in (("with", {"names": {"zone": ZONE}}), ("without", {})):
        deployment = deploy(project(tmp_path / name, "dev", **settings), "dev", Region())
        made[name] = {(one.type, one.name): one.inputs for one in deployment.registrations if ":Dns/" not in one.type}
        assert ("nameViews" in deployment.outputs) == (name == "with")
    assert made["with"] == made["without"]


@pytest.mark.slow
def test_a_renamed_customer_keeps_its_view_by_an_alias(tmp_path):
    mapping = restricted()
    mapping["customers"]["acme"] = {**mapping["customers"].pop("customer2"), "formerly": "customer2"}
    mapping["addresses"]["acme/vm2"] = mapping["addresses"].pop("customer2/vm2")
    registered = deploy(project(tmp_path, "dev", mapping, names={"zone": ZONE}), "dev", Region()).registrations
    aliased = {
        one.name: [alias.spec.name for alias in one.request.aliases] for one in registered if ":Dns/" in one.type
    }
    assert aliased["nat-pod-dev-names-of-acme"] == ["nat-pod-dev-names-of-customer2"]
    assert aliased["nat-pod-dev-names-of-acme-management/mgmt"] == ["nat-pod-dev-names-of-customer2-management/mgmt"]
    assert not aliased["nat-pod-dev-names-customers"]


@pytest.mark.slow
def test_the_page_says_how_to_attach_it_and_that_nobody_has_to(tmp_path):
    plan = plan_pod(any_config.read({**stack_mapping("dev"), "names": {"zone": ZONE}}, "dev"), "dev")
    without = sheet_markdown(
        handover(plan_pod(any_config.read(stack_mapping("dev"), "dev"), "dev"), "dev", "customer1")
    )
    assert "Names" not in without
    sheet = handover(plan, "dev", "customer1")
    page = sheet_markdown(sheet)
    assert "## Names, if you want them" in page
    assert "see `pulumi stack output nameViews --stack dev`" in page.replace("\n", " ")
    assert f"dig +short mgmt.management.{ZONE}" in page
    outputs = deploy(project(tmp_path, "dev", names={"zone": ZONE}), "dev", Region()).outputs
    known = with_outputs(sheet, plan, outputs, "outputs.json")
    view = outputs["nameViews"]["customer1"]
    assert f"""--attached-views '[{{"viewId": "{view}"}}]'""" in sheet_markdown(known)
    with pytest.raises(Exception, match=r"has no OCID at nameViews\.customer1"):
        with_outputs(sheet, plan, {**outputs, "nameViews": {}}, "outputs.json")
