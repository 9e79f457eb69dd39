"""The sheet for a neighbour: each line is what the tracer finds, on a network set up as the sheet says and no further.

Address plan: the article's (conftest.py), and ten's own.
"""

import json
from dataclasses import replace
from functools import reduce
from operator import getitem

import pytest
from conftest import REPOSITORY, stack_mapping
from netaddr import IPNetwork

from nat_pod.commands.cli import main
from nat_pod.commands.handover import sheet_dict
from nat_pod.config.model import PodConfig
from nat_pod.errors import NatPodError
from nat_pod.names import MemberName
from nat_pod.pages.handover import handover
from nat_pod.pages.handover_page import sheet_markdown
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.rules.netfilter import Ruleset
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology, vrouter_address, with_host
from nat_pod.trace.topology import Route, SecurityRule, Topology
from nat_pod.trace.walk import Packet, Trace, Tracer

MANAGEMENT = "management"


def planned(mapping: dict, **changes: object) -> PodPlan:
    return plan_pod(PodConfig.from_mapping({**mapping, **changes}, "x"), "x")


@pytest.fixture(params=["masquerade", "static"])
def dev_plan(request) -> PodPlan:
    return planned(stack_mapping("dev"), sourceNat=request.param)


@pytest.fixture(params=["masquerade", "static"], scope="module")
def ten_plan(request) -> PodPlan:
    return planned(stack_mapping("ten"), sourceNat=request.param)


def as_the_sheet_says(plan: PodPlan, sheet: dict) -> Topology:
    """The network with the neighbour's routes and security rules from the sheet's JSON, and no others."""
    topology = expected_topology(plan)
    realm = sheet["neighbour"]
    target = {"private_ip": vrouter_address(plan)} if realm == MANAGEMENT else {"lpg": f"{realm}/lpg"}
    subnet = replace(
        topology.subnets[realm],
        routes=tuple(Route(destination=route["destination"], **target) for route in sheet["routes"]),
        security=tuple(
            SecurityRule(
                direction=rule["direction"],
                protocol=rule["protocol"],
                peer=rule["peer"],
                stateless=rule["stateless"],
                icmp_type=rule["icmpType"],
                icmp_code=rule["icmpCode"],
            )
            for rule in sheet["security"]
        ),
    )
    return replace(topology, subnets={**topology.subnets, realm: subnet})


def call(network: Tracer, sender: str, source: str, address: str, receiver: str | None = None) -> Trace:
    return network.trace(sender, Packet(src=source, dst=address, protocol="tcp", dport=443), receiver)


def check_each_line(plan: PodPlan, realm: str) -> int:
    """Every call that the sheet promises, both ways, and every one that it does not; returns how many it promises."""
    sheet = sheet_dict(handover(plan, "x", realm))
    network = Tracer(as_the_sheet_says(plan, sheet))
    real = {slot.member: slot.real for slot in plan.slots}
    promised = 0
    for far, line in sheet["far"].items():
        for near, own in sheet["near"].items():
            if near in line["calledBy"]:
                there = call(network, near, own["real"], line["address"], far)
                assert (there.disposition, there.request.packet.src) == (Disposition.DELIVERED, own["seenAs"])
                promised += 1
            else:
                slot = next(slot for slot in plan.slots if slot.member == far)
                address = slot.nat_vm2 if realm == MANAGEMENT else slot.nat_vm1
                assert call(network, near, own["real"], address).disposition is not Disposition.DELIVERED
            if near in line["calls"]:
                back = call(network, far, real[far], own["calledAt"], near)
                assert (back.disposition, back.request.packet.src) == (Disposition.DELIVERED, line["seenAs"])
                promised += 1
            else:
                assert call(network, far, real[far], own["calledAt"], near).disposition is not Disposition.DELIVERED
    for attempt in sheet["try"]:
        tried = call(network, attempt["on"], real[attempt["on"]], attempt["address"], attempt["answers"])
        assert (tried.disposition, tried.request.packet.src) == (Disposition.DELIVERED, attempt["seenAs"])
    return promised


@pytest.mark.parametrize(("realm", "calls"), [("customer1", 4), ("customer2", 2), (MANAGEMENT, 6)])
def test_each_line_of_a_sheet_of_the_articles_pod_is_what_the_tracer_finds(dev_plan, realm, calls):
    assert check_each_line(dev_plan, realm) == calls


@pytest.mark.parametrize(
    ("realm", "calls"),
    # Six hosts and five servers, each way; cedar may call two servers, heron one.
    [
        pytest.param("amber", 60, marks=pytest.mark.sweep),
        ("cedar", 42),
        pytest.param("heron", 36, marks=pytest.mark.sweep),
        pytest.param("juniper", 60, marks=pytest.mark.sweep),
        pytest.param(MANAGEMENT, 300 + 8 * 30 + 12 + 6, marks=pytest.mark.sweep),
    ],
)
def test_each_line_of_a_sheet_of_ten_customers_is_what_the_tracer_finds(ten_plan, realm, calls):
    assert check_each_line(ten_plan, realm) == calls


def test_a_network_set_up_by_less_than_the_sheet_does_not_work(dev_plan):
    """So the test above can fail: take a line out of the sheet, and a flow dies of it."""
    sheet = sheet_dict(handover(dev_plan, "x", "customer1"))
    for key in ("routes", "security"):
        for index, line in enumerate(sheet[key]):
            if line.get("icmpType") is None:
                poorer = {**sheet, key: [*sheet[key][:index], *sheet[key][index + 1 :]]}
                network = Tracer(as_the_sheet_says(dev_plan, poorer))
                there = call(network, "customer1/vm1", "10.0.0.100", "198.18.0.2", "management/mgmt")
                back = call(network, "management/mgmt", "10.0.0.100", "198.18.0.130", "customer1/vm1")
                assert {there.disposition, back.disposition} != {Disposition.DELIVERED}


def test_what_is_said_not_to_work_does_not(dev_plan):
    """Addresses of the POD that are in no table, somebody who is in none, real addresses, and other customers."""
    sheet = sheet_dict(handover(dev_plan, "x", "customer1"))
    topology = as_the_sheet_says(dev_plan, sheet)
    stranger = MemberName("customer1", "10.0.0.77")
    network = Tracer(with_host(topology, stranger, "10.0.0.77"))
    listed = {line["address"] for line in sheet["far"].values()}
    addresses = {str(address) for subnet in dev_plan.subnets for address in IPNetwork(subnet.cidr)}
    addresses |= {"10.0.1.100", "10.0.200.1"}
    assert len(addresses - listed) > 100
    for address in addresses:
        assert call(network, stranger, "10.0.0.77", address).disposition is not Disposition.DELIVERED
        for host in sheet["near"]:
            traced = call(network, host, sheet["near"][host]["real"], address)
            assert (traced.disposition is Disposition.DELIVERED) == (address in listed)


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)

    def call_main(*arguments):
        status = main(arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call_main


SHEETS = [
    ("dev", "customer1"),
    ("dev", MANAGEMENT),
    ("ten", "heron"),
    ("routed", "linden"),
    ("routed", MANAGEMENT),
]


@pytest.mark.parametrize(("stack", "realm"), SHEETS)
def test_a_sheet_is_the_golden_one(run, golden, stack, realm):
    status, out, err = run("handover", stack, realm)
    assert (status, err) == (0, "")
    golden(f"handover-{stack}-{realm}.md", out)
    status, out, err = run("handover", stack, realm, "--json")
    assert (status, err) == (0, "")
    golden(f"handover-{stack}-{realm}.json", out)


@pytest.mark.parametrize(("stack", "realm"), SHEETS)
def test_a_page_reads_at_80_columns_but_for_statements_and_is_ascii(run, stack, realm):
    _, out, _ = run("handover", stack, realm)
    assert out.isascii()
    statements = ("Allow ", "Endorse ", "Admit ", "Define ")
    long = [line for line in out.splitlines() if len(line) > 80 and not line.startswith((*statements, "|"))]
    assert long == []


def test_what_stands_in_the_json_stands_on_the_page(ten_plan):
    for realm in ("cedar", "juniper", MANAGEMENT):
        sheet = handover(ten_plan, "x", realm)
        page = sheet_markdown(sheet)
        for far in sheet.far:
            assert f"| {far.member if realm == MANAGEMENT else far.member.short} | " in page
            assert far.address is None or f"| {far.address} | " in page
        for near in sheet.near:
            assert f"| {near.member.short} | {near.real} | {near.called_at} | {near.seen_as} |" in page
        assert all(destination in page for destination in sheet.destinations)


@pytest.mark.parametrize("asks", ["customer", "pod"])
def test_the_statements_are_those_of_the_documents(asks):
    """docs/deploy.md has both sides' for customer1 asking; with a peerId the parts are exchanged."""
    documented = (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8")
    mapping = stack_mapping("dev")
    if asks == "pod":
        mapping["customers"]["customer1"]["peerId"] = "ocid1.localpeeringgateway.oc1..customer1"
    sheet = handover(planned(mapping), "x", "customer1")
    lines = [line for _, statements in sheet.policies for line in statements]
    assert len(lines) == 8
    for line in lines:
        if asks == "pod":
            line = line.replace("tenancy isv", "tenancy CUSTOMER").replace("..isv", "..CUSTOMER")
            line = line.replace("compartment customer1", "compartment ISV").replace(
                "compartment pods", "compartment customer1"
            )
            line = line.replace("compartment ISV", "compartment pods").replace("CUSTOMER", "customer1")
            line = line.replace("nat-pod-deployers", "customer1-network")
        assert line in documented
    for _, statements in handover(planned(mapping), "x", MANAGEMENT).policies:
        assert all(line in documented for line in statements)


def test_when_the_pod_asks_the_page_names_the_customers_lpg(run):
    mapping = stack_mapping("dev")
    mapping["customers"]["customer1"]["peerId"] = "ocid1.localpeeringgateway.oc1..customer1"
    sheet = handover(planned(mapping), "x", "customer1")
    assert "from your LPG `ocid1.localpeeringgateway.oc1..customer1`;" in " ".join(sheet_markdown(sheet).split())
    assert sheet_dict(sheet)["peering"]["requestor"] == "pod"


@pytest.fixture
def apart() -> PodPlan:
    """customer1 may call nobody, customer2 has no hosts."""
    mapping = stack_mapping("dev")
    mapping["customers"]["customer1"]["servers"] = []
    mapping["customers"]["customer2"]["hosts"] = {}
    del mapping["addresses"]["customer2/vm2"]
    return planned(mapping)


def test_a_customer_who_may_call_nobody_is_told_so_and_by_whom_it_is_called(apart):
    page = sheet_markdown(handover(apart, "x", "customer1"))
    assert "| mgmt | not for you | 198.18.0.2 |" in page
    assert "| vm1 | 10.0.0.100 | 198.18.0.130 | - |" in page
    assert "Packets from your hosts to mgmt, which are not in your list of servers." in page


def test_a_customer_who_may_call_nobody_has_one_call_to_try_and_a_sheet_that_holds(apart):
    assert sheet_markdown(handover(apart, "x", "customer1")).count("ping -c 3") == 1
    assert check_each_line(apart, "customer1") == 2


def test_a_customer_without_hosts_has_nothing_to_try(apart):
    page = sheet_markdown(handover(apart, "x", "customer2"))
    assert "ping -c 3" not in page
    assert "## 6. What does not work" in page


def test_no_sheet_is_written_on_rules_that_do_not_do_what_it_would_say(dev):
    plan = planned(dev)
    nat = plan.vms[1].rules.nat
    nat = replace(nat, chains=tuple(replace(chain, rules=()) for chain in nat.chains))
    without = Ruleset(nat=nat, filter=plan.vms[1].rules.filter)
    broken = replace(plan, vms=(plan.vms[0], replace(plan.vms[1], rules=without)))
    with pytest.raises(NatPodError, match=r"^no page was written: the rules do not deliver customer1/vm1 to m"):
        handover(broken, "x", "customer1")


@pytest.mark.parametrize("realm", ["customer9", "customer1/vm1", "pod", ""])
def test_somebody_who_is_no_neighbour_is_answered_with_those_that_are(run, realm):
    sentence = f"{realm}: is not a neighbour of POD dev; its neighbours are customer1, customer2, management\n"
    assert run("handover", "dev", realm) == (1, "", sentence)


# --- the stack's outputs ---------------------------------------------------------------------------------------------

LPG = "ocid1.localpeeringgateway.oc1.uk-london-1.aaaa"
SUBNET = "ocid1.subnet.oc1.uk-london-1.bbbb"


def outputs(generations: dict[str, str]) -> dict:
    return {"lpgIds": {"customer1": LPG}, "vrouterSubnetId": SUBNET, "generations": generations}


@pytest.fixture
def current(run) -> dict:
    return outputs(json.loads(run("plan", "dev", "--json")[1])["generations"])


def test_with_the_outputs_the_page_names_what_is_deployed(run, tmp_path, current):
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(current), encoding="utf-8")
    status, page, err = run("handover", "dev", "customer1", "--outputs", str(path))
    assert (status, err) == (0, "")
    assert f"The POD's LPG: `{LPG}`." in page.replace("\n", " ")
    assert "Not deployed" not in page


@pytest.mark.parametrize(
    ("neighbour", "path_to_it", "ocid"),
    [("customer1", ("peering", "lpgId"), LPG), (MANAGEMENT, ("vrouter", "subnet", "id"), SUBNET)],
)
def test_with_the_outputs_json_has_the_ocid(run, tmp_path, current, neighbour, path_to_it, ocid):
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(current), encoding="utf-8")
    sheet = json.loads(run("handover", "dev", neighbour, "--outputs", str(path), "--json")[1])
    assert sheet["deployed"] is True
    assert reduce(getitem, path_to_it, sheet) == ocid


def test_outputs_of_another_state_of_the_stack_file_are_told(run, tmp_path, current):
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(outputs({**current["generations"], "natVm2": "another"})), encoding="utf-8")
    assert "**Not deployed yet**" in run("handover", "dev", "customer1", "--outputs", str(path))[1]


NOT_JSON, NO_OCID = "is not JSON: ", "has no OCID at lpgIds.customer1; give the output of `pulumi stack output --json`"
BAD_OUTPUTS = {
    "a torn file": (
        "{",
        f"{NOT_JSON}Expecting property name enclosed in double quotes: line 1 column 2 (char 1); give",
    ),
    "bytes": (b"\xff", f"{NOT_JSON}Expecting value: line 1 column 1 (char 0); give"),
    "nested beyond reason": ("[" * 100_000, NOT_JSON),
    "a list": ("[]", "is not a JSON object; give"),
    "another stack's": ('{"lpgIds": {"customer7": "ocid1.a.b"}}', NO_OCID),
    "a word for the LPGs": ('{"lpgIds": "none"}', NO_OCID),
    "an LPG that is none": ('{"lpgIds": {"customer1": "`x`"}}', NO_OCID),
}


@pytest.mark.parametrize("name", BAD_OUTPUTS)
def test_outputs_that_are_none_are_a_sentence(run, tmp_path, name):
    content, words = BAD_OUTPUTS[name]
    path = tmp_path / "outputs.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, out, err = run("handover", "dev", "customer1", "--outputs", str(path))
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"--outputs {path}: {words}")


def test_outputs_that_are_not_there_are_a_sentence(run, tmp_path):
    path = tmp_path / "none.json"
    sentence = f"{path}: cannot be read: No such file or directory\n"
    assert run("handover", "dev", "customer1", "--outputs", str(path)) == (1, "", sentence)
