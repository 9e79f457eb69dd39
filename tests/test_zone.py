"""Names for the addresses at which members are called: /etc/hosts lines and zone files."""

import re

import pytest
from conftest import REPOSITORY

from nat_pod.config.stack_file import read_stack
from nat_pod.names import MANAGEMENT, MemberName
from nat_pod.pages.handover import handover
from nat_pod.pages.zone import Names, hosts_lines, names_for, names_of_pod, zone_file
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.flows import declared_flows


def planned(stack: str) -> PodPlan:
    return plan_pod(read_stack(REPOSITORY, stack).checked(), stack)


def test_lines_for_a_customer_for_management_and_for_the_pod(run, golden):
    shown = [
        run("handover", "dev", "customer1", "--hosts-file"),
        run("handover", "dev", "management", "--hosts-file"),
        run("plan", "dev", "--hosts-file"),
        run("plan", "dev", "--zone-file", "pod1.example.internal"),
        run("handover", "dev", "customer1", "--zone-file", "POD1.example.internal."),
    ]
    assert [(status, err) for status, _, err in shown] == [(0, "")] * len(shown)
    golden("names-dev.txt", "\n".join(out for _, out, _ in shown))


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["dev", "ten", "routed"])
def test_a_name_leads_to_the_address_that_its_flows_use_and_everybody_has_one(stack):
    plan = planned(stack)
    for realm in plan.realms:
        named = dict(names_for(plan, stack, realm).addresses)
        used = {flow.receiver: flow.destination for flow in declared_flows(plan) if flow.sender.realm == realm}
        assert named == used
        # As the page has it, which traces them.
        assert named == {far.member: far.address for far in handover(plan, stack, realm).far if far.address is not None}
    assert dict(names_of_pod(plan, stack).addresses) == {slot.member: slot.called for slot in plan.slots}


def test_a_zone_file_has_a_record_per_member_and_no_name_twice():
    plan = planned("routed")
    text = zone_file(names_of_pod(plan, "routed"), "pods.example.com")
    records = re.findall(r"^(\S+) +IN A (\S+)$", text, re.MULTILINE)
    assert len(records) == len({name for name, _ in records}) == len({address for _, address in records}) == 45
    assert ("mgmt.management", "198.18.8.4") in records
    assert text.startswith(
        "; POD routed: every member, at the address where its callers reach it\n$ORIGIN pods.example.com.\n$TTL 300\n"
    )


@pytest.mark.parametrize(
    ("zone", "said"),
    [
        ("", "nothing: is not the name of a zone"),
        (".", "nothing: is not the name of a zone"),
        ("a..b", "a..b: is not the name of a zone"),
        ("a-.example", "is not the name of a zone; labels are letters, digits and dashes, e.g. pod1.example.internal"),
        ("a b.example", "is not the name of a zone"),
        ("x" * 64 + ".example", "is not the name of a zone"),
        (".".join(["x" * 60] * 4), "has 259 characters; a name may have at most 253"),
    ],
)
def test_what_is_no_zone_is_refused(run, zone, said):
    status, out, err = run("plan", "dev", "--zone-file", zone)
    assert (status, out) == (1, "")
    assert said in err


def test_nobody_to_call_is_no_name_and_no_error():
    nobody = Names(about="POD x: whom y may call", addresses=())
    assert hosts_lines(nobody) == "# POD x: whom y may call"
    assert " IN A " not in zone_file(nobody, "example.com")
    one = Names(about="x", addresses=((MemberName(MANAGEMENT, "mgmt"), "198.18.0.2"),))
    assert hosts_lines(one).splitlines()[1] == "198.18.0.2  mgmt.management"
