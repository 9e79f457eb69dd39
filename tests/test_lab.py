"""The whole proof: a stack deployed, built from namespaces, booted, and every flow sent, captured and compared.

Then the proof that it can fail: one thing is taken out of what is deployed, and exactly the flows die that need it.
"""

import base64
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY, project_with

from nat_pod.config import address_book
from nat_pod.config.stack_file import read_stack
from nat_pod.lab import checks
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire import probe, sandbox
from nat_pod.plan.bootstrap import unpack_user_data
from nat_pod.plan.document import read_document, rule_document
from nat_pod.plan.model import PodPlan
from nat_pod.rules import iptables
from nat_pod.trace.topology import Topology

pytestmark = pytest.mark.lab

CASES = {  # the article's, by what a person would call them
    1: ("customer1/vm1", "management/mgmt"),
    2: ("customer2/vm2", "management/mgmt"),
    3: ("management/mgmt", "customer1/vm1"),
    4: ("management/mgmt", "customer2/vm2"),
    5: ("customer1/vm2", "management/mgmt"),
    6: ("management/mgmt", "customer1/vm2"),
}


def project(directory: Path, **replaced: str) -> Path:
    """A copy of the project with other words in Pulumi.dev.yaml; the program and the guest are the real ones."""
    text = (REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    for old, new in replaced.items():
        assert f"{old}: " in text
        text = re.sub(rf"{old}: \S+", f"{old}: {new}", text)
    return project_with(directory, "dev", text)


def deployed(directory: Path, stack: str) -> tuple[PodPlan, Topology]:
    region, plan, deployment = stand_up(directory, stack)
    assert deployment.warnings == ()
    return plan, observe(region)


def check(plan: PodPlan, topology: Topology, real: Topology | None = None) -> checks.Report:
    """Build the lab of `real` (by default of `topology`), and hold its packets to the prediction for `topology`."""
    expected = checks.expectations(plan, topology)
    with sandbox.Lab(real or topology) as lab:
        answers = lab.probe([one.probe() for one in expected], seconds=1.0, capture=True)
    return checks.judge(topology, expected, answers)


@pytest.mark.parametrize("policy", ["masquerade", "static"])
def test_the_article_s_cases_arrive_hop_by_hop_as_traced_and_the_forbidden_flows_reach_nobody(tmp_path, policy):
    plan, topology = deployed(project(tmp_path, sourceNat=policy), "dev")
    report = check(plan, topology)
    assert [problem for verdict in report.verdicts for problem in verdict.problems] == []
    assert report.passed
    arrived = [
        (v.expectation.flow.sender, v.expectation.flow.receiver, v.expectation.protocol, v.answer.seen)
        for v in report.verdicts
        if v.expectation.declared
    ]
    towards_mgmt = {"masquerade": ["198.18.0.130"] * 3, "static": ["198.18.0.130", "198.18.0.66", "198.18.0.131"]}
    seen = dict(zip(["customer1/vm1", "customer1/vm2", "customer2/vm2"], towards_mgmt[policy], strict=True))
    wanted = [
        (sender, receiver, protocol, seen.get(sender, "198.18.0.2"))
        for sender, receiver in CASES.values()
        for protocol in ("icmp", "http", "udp")
    ]
    assert sorted(arrived) == sorted(wanted)
    refused = {v.expectation.flow.why for v in report.verdicts if not v.expectation.declared}
    assert refused == {
        "stranger to a server",
        "customer to a NAT VM's ssh",
        "unmapped address",
        "customer to customer",
        "spoofed transit source",
        "unlisted management host",
    }


def test_ten_customers_sixty_hosts_and_five_servers_pass_all_mappings_both_ways():
    plan, topology = deployed(REPOSITORY, "ten")
    report = check(plan, topology)
    assert [problem for verdict in report.verdicts for problem in verdict.problems] == []
    declared = {v.expectation.flow for v in report.verdicts if v.expectation.declared}
    # 8 customers x 6 hosts x 5 servers, cedar with 2 servers, heron with 1; and 5 servers to 60 hosts.
    assert len(declared) == 8 * 6 * 5 + 6 * 2 + 6 * 1 + 5 * 60
    assert plan.capacity.vnics_used == 3


# --- the lab can fail ------------------------------------------------------------------------------------------------


def change(topology: Topology, part: str, name: str, **changes: object) -> Topology:
    things = dict(getattr(topology, part))
    things[name] = replace(things[name], **changes)
    return replace(topology, **{part: things})


def metadata(topology: Topology, vm: str, **changes: str) -> Topology:
    """The deployed metadata with other values: the guest boots from it, nothing else tells it what to do."""
    old = topology.vms[vm].metadata
    return change(topology, "vms", vm, metadata={**old, **{key.replace("_", "-"): v for key, v in changes.items()}})


def edited_user_data(topology: Topology, vm: str, edit: Callable[[str], str]) -> Topology:
    text = unpack_user_data(topology.vms[vm].metadata["user_data"])
    changed = edit(text)
    assert changed != text
    packed = base64.b64encode(gzip.compress(changed.encode(), mtime=0)).decode()
    old = topology.vms[vm].metadata
    return change(topology, "vms", vm, metadata={**old, "user_data": packed})


def without_rule(topology: Topology, vm: str, word: str) -> Topology:
    """The deployed rule document of a VM without the one rule that has `word` in it."""
    return with_rule(topology, vm, word, instead="")


def with_rule(topology: Topology, vm: str, word: str, *, instead: str) -> Topology:
    """The deployed rule document of a VM with another line in place of the one rule that has `word` in it."""
    document = read_document(topology.vms[vm].metadata["nat-pod-rules"])
    lines = document.rules.splitlines(keepends=True)
    assert len([line for line in lines if word in line]) == 1
    rules = "".join(instead if word in line else line for line in lines)
    hooks = [tuple(hook) for hook in document.hooks]
    text, _ = rule_document(vm, hooks, rules)
    iptables.parse(rules, hooks)
    return metadata(topology, vm, nat_pod_rules=text)


def without_skip_check(topology: Topology) -> Topology:
    return change(topology, "vnics", "natVm2-vnic-1", skip_source_dest_check=False)


def without_a_route_rule(topology: Topology) -> Topology:
    subnet = topology.subnets["natVm1-vnic-1"]
    kept = tuple(route for route in subnet.routes if route.destination != "10.0.1.0/24")
    return change(topology, "subnets", "natVm1-vnic-1", routes=kept)


def without_a_private_ip(topology: Topology) -> Topology:
    vnic = topology.vnics["natVm2-vnic-1"]
    kept = tuple(address for address in vnic.addresses if address != "198.18.0.131")
    assert kept != vnic.addresses
    return change(topology, "vnics", "natVm2-vnic-1", addresses=kept)


def without_a_peering(topology: Topology) -> Topology:
    one = topology.lpgs["pod/customer2"]
    topology = change(topology, "lpgs", "pod/customer2", peer=None)
    return change(topology, "lpgs", str(one.peer), peer=None)


def without_forwarding(topology: Topology) -> Topology:
    return edited_user_data(topology, "natVm2", lambda text: text.replace("net.ipv4.ip_forward = 1", ""))


def with_rp_filter(topology: Topology) -> Topology:
    return edited_user_data(topology, "natVm2", lambda text: re.sub(r"(rp_filter ?= ?)0", r"\g<1>1", text))


def without_a_dnat_rule(topology: Topology) -> Topology:
    return without_rule(topology, "natVm1", "--to-destination 10.0.0.130")


def without_masquerade(topology: Topology) -> Topology:
    return without_rule(topology, "natVm1", "hide the source")


ALL = set(CASES)


@pytest.mark.parametrize(
    ("break_it", "dead"),
    [
        # Case 6 comes in by NAT VM2's second VNIC; its reply leaves by the first with the second's address.
        (without_skip_check, {6}),
        (without_a_route_rule, {2, 4}),
        (without_a_private_ip, {4}),
        (without_a_peering, {2, 4}),
        (without_forwarding, ALL),
        (with_rp_filter, {6}),
        (without_a_dnat_rule, {6}),
        # Towards NAT VM2 the source stays a customer's: NAT VM2's NSG takes none.  Towards customers it stays NAT
        # VM2's address, which customers have no route for (198.18.0.128/27 is not 198.18.0.0/27).
        (without_masquerade, ALL),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_without_one_thing_exactly_the_flows_die_that_need_it(dev_deployed, break_it, dead):
    plan, whole = dev_deployed
    report = check(plan, whole, real=break_it(whole))
    flows = {flow: number for number, flow in CASES.items()}
    for protocol in checks.PROTOCOLS:
        broken = {
            flows[(v.expectation.flow.sender, v.expectation.flow.receiver)]
            for v in report.verdicts
            if v.expectation.declared and v.expectation.protocol == protocol and v.problems
        }
        assert broken == dead, protocol
    assert not any(v.problems for v in report.verdicts if not v.expectation.declared)


def connected_without(dev_deployed: tuple[PodPlan, Topology], break_it: Callable[[Topology], Topology]) -> set[str]:
    plan, whole = dev_deployed
    report = check(plan, whole, real=break_it(whole))
    assert not report.passed
    return {v.expectation.flow.why for v in report.verdicts if not v.expectation.declared and v.answer.ok}


INPUT_GUARD = '-A NATPOD-INPUT -m comment --comment "no mapping translated it" -j DROP'


def with_the_input_guard_open(topology: Topology) -> Topology:
    return with_rule(topology, "natVm1", INPUT_GUARD, instead="-A NATPOD-INPUT -j ACCEPT\n")


def trusting_addresses(topology: Topology) -> Topology:
    """NAT VM1's NSG takes transit from NAT VM2's addresses instead of its VNICs."""
    for name, vnic in topology.vnics.items():
        if vnic.vm == "natVm1":
            security = tuple(
                replace(rule, peer_is_nsg=False, peer="198.18.0.128/25") if rule.peer_is_nsg else rule
                for rule in vnic.security
            )
            topology = change(topology, "vnics", name, security=security)
    return topology


def test_with_its_guard_open_the_nat_vm_answers_for_itself(dev_deployed):
    """A stranger's ping to the server is then answered by NAT VM1: looks fine, is not."""
    assert connected_without(dev_deployed, with_the_input_guard_open) == {
        "customer to a NAT VM's ssh",
        "stranger to a server",
    }


def test_without_the_documents_guard_the_agents_own_still_stands(dev_deployed):
    plan, whole = dev_deployed
    assert check(plan, whole, real=without_rule(whole, "natVm1", INPUT_GUARD)).passed


def test_with_transit_trusted_by_address_one_customer_reaches_another(dev_deployed):
    assert connected_without(dev_deployed, trusting_addresses) == {"spoofed transit source"}


def test_management_reaches_the_ssh_of_nat_vm2_and_a_customer_does_not_reach_that_of_nat_vm1(dev_deployed):
    _, whole = dev_deployed
    with sandbox.Lab(whole) as lab:
        answers = lab.probe(
            [
                probe.Probe(source_vm="management/stranger", destination="198.18.0.130", protocol="http", port=22),
                probe.Probe(source_vm="customer1/stranger", destination="198.18.0.2", protocol="http", port=22),
                probe.Probe(source_vm="customer1/vm1", destination="198.18.0.34", protocol="http", port=22),
            ],
            seconds=1.0,
        )
    assert [(answer.ok, answer.answered_by) for answer in answers] == [(True, "natVm2"), (False, None), (False, None)]


def allocate(path: Path, text: str) -> None:
    """Make a stack file of a text without a book, or with one that lags behind."""
    path.write_text(text, encoding="utf-8")
    config, *_ = read_stack(path.parent, "dev").draft()
    path.write_text(address_book.edit(text, config, address_book.settle(config)), encoding="utf-8")


@pytest.mark.parametrize("policy", ["masquerade", "static"])
def test_the_way_in_to_nat_vm1_leads_through_nat_vm2_as_long_as_no_host_has_its_address(tmp_path, policy):
    """Both TCP connections that `ssh -J` opens, in a POD whose book `allocate` has written and in the article's."""
    legs = [
        probe.Probe(source_vm="management/stranger", destination="198.18.0.130", protocol="http", port=22),
        probe.Probe(source_vm="natVm2", destination="198.18.0.2", protocol="http", port=22),
        # Where a host has the address, what NAT VM2 sends there ends at the host.
        probe.Probe(source_vm="natVm2", destination="198.18.0.2", protocol="http", port=80),
        # What a declared server sends to NAT VM2's is translated, also where nobody has the slot.
        probe.Probe(source_vm="management/mgmt", destination="198.18.0.130", protocol="http", port=22),
    ]

    def answered(plan: PodPlan, topology: Topology) -> list[str | None]:
        with sandbox.Lab(topology) as lab:
            return [answer.answered_by for answer in lab.probe(legs, seconds=1.0)]

    directory = project(tmp_path, sourceNat=policy)
    assert answered(*deployed(directory, "dev")) == ["natVm2", None, "customer1/vm1", None]
    path = directory / "Pulumi.dev.yaml"
    text = path.read_text(encoding="utf-8")
    servers = "    servers:\n      mgmt: 10.0.0.100\n"
    assert servers in text
    # The hosts first, or the server would have the slot, which is in nobody's way.
    allocate(path, text[: text.index("  nat-pod:addresses:")].replace(servers, "    servers: {}\n"))
    allocate(path, path.read_text(encoding="utf-8").replace("    servers: {}\n", servers))
    plan, topology = deployed(directory, "dev")
    assert plan.way_in == "198.18.0.2"
    assert answered(plan, topology) == ["natVm2", "natVm1", None, "natVm1"]


def test_a_changed_document_is_live_after_the_agent_s_next_poll_and_what_was_removed_is_gone(dev_deployed):
    """First boot and re-apply on change: the metadata is updated in place, as `pulumi up` does it."""
    _, whole = dev_deployed
    flow = probe.Probe(source_vm="management/mgmt", destination="198.18.0.66")
    smaller = without_a_dnat_rule(whole)
    with sandbox.Lab(whole) as lab:

        def poll(topology: Topology) -> bool:
            lab.call("metadata", vm="natVm1", metadata=topology.vms["natVm1"].metadata)
            assert lab.call("poll", vm="natVm1")["status"] == 0
            return lab.probe([flow], seconds=1.0)[0].ok

        assert lab.probe([flow], seconds=1.0)[0].ok
        assert not poll(smaller)
        assert poll(whole)
        status = json.loads(lab.call("read", vm="natVm1", path="/run/nat-pod/status.json"))
        assert status["applied"] == read_document(whole.vms["natVm1"].metadata["nat-pod-rules"]).generation


@pytest.fixture(scope="module")
def dev_deployed() -> tuple[PodPlan, Topology]:
    return deployed(REPOSITORY, "dev")
