"""`whois`: what an address is in a POD.  Address plan: the article's, and Pulumi.routed.yaml."""

import json
import re

import pytest
from conftest import REPOSITORY, project_with, real_stack, stack_mapping
from netaddr import IPNetwork

from nat_pod.commands.cli import main
from nat_pod.config.any_config import read
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire.probe import Probe
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.plan.conntrack import behind, read_entries
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.plan.whois import Use, holders
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.flows import declared_flows
from nat_pod.trace.walk import Packet, Tracer


def planned(name: str, **changes: object) -> PodPlan:
    return plan_pod(read({**stack_mapping(name), **changes}, name), name)


def found(plan: PodPlan, asked: str) -> list[tuple[str, str]]:
    return [(str(one.use), one.who) for one in holders(plan, IPNetwork(asked))]


DEV = {
    # What customers call mgmt by is also vm1's between the NAT VMs, NAT VM1's own, and every server's source.
    "198.18.0.2": [
        ("called", "management/mgmt"),
        ("between", "customer1/vm1"),
        ("source", "management"),
        ("natVm", "natVm1"),
    ],
    "198.18.0.66": [("called", "customer1/vm2"), ("natVm", "natVm2")],
    "198.18.0.34": [("between", "customer1/vm2"), ("natVm", "natVm1")],
    "198.18.0.3": [("between", "customer2/vm2")],
    "198.18.0.131": [("called", "customer2/vm2")],
    "10.0.0.100": [("real", "customer1/vm1"), ("real", "management/mgmt")],
    "10.0.1.100": [("real", "customer2/vm2")],
    "198.18.0.167": [("vrouter", "vrouter")],
    "198.18.3.9": [("free", "")],
    "10.0.0.7": [("network", "customer1"), ("network", "management")],
    "10.0.9.9": [("network", "management")],
    "192.0.2.1": [],
}


@pytest.mark.parametrize(("asked", "wanted"), DEV.items(), ids=DEV.keys())
def test_an_address_of_the_articles_pod(asked, wanted):
    assert found(planned("dev"), asked) == wanted


ROUTED = {
    "198.18.8.4": [("called", "management/mgmt")],
    "10.0.0.100": [("real", "fern/web"), ("real", "management/mgmt"), ("real", "maple/web")],
    "198.18.11.194": [("natVm", "natVm1a")],
    "198.18.11.250": [("vrouter", "vrouter")],
}


@pytest.mark.parametrize(("asked", "wanted"), ROUTED.items(), ids=ROUTED.keys())
def test_an_address_of_a_routed_pod(asked, wanted):
    assert found(planned("routed"), asked) == wanted


def test_a_load_balancers_address_is_its_own():
    plan = planned("routed")
    for balancer in plan.balancers:
        assert found(plan, balancer.address) == [("balancer", str(balancer.role))]


def test_a_released_address_is_kept_back():
    mapping = stack_mapping("dev")
    mapping["customers"]["customer1"]["hosts"].pop("vm2")
    mapping["addresses"]["customer1/vm2"] |= {"released": True}
    plan = plan_pod(read(mapping, "dev"), "dev")
    assert found(plan, "198.18.0.66") == [("released", "customer1/vm2")]


def test_all_members_of_a_network_are_listed_and_its_free_addresses_are_not():
    assert found(planned("routed"), "198.18.8.0/29") == [
        ("called", f"management/{name}") for name in ("backup", "dns", "logs", "mgmt", "patch")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("stack", "policy"), [("dev", "masquerade"), ("dev", "static"), ("routed", None)])
def test_who_calls_and_who_sees_an_address_is_what_the_tracer_delivers(stack, policy):
    """Each declared flow: its sender is among those that call its destination so, and is seen as `whois` says."""
    plan = planned(stack, **({"sourceNat": policy} if policy else {}))
    tracer = Tracer(expected_topology(plan))
    for flow in declared_flows(plan):
        (held,) = [one for one in holders(plan, IPNetwork(flow.destination)) if one.use is Use.CALLED]
        assert held.who == flow.receiver
        assert flow.sender.realm in held.others
        traced = tracer.trace(flow.sender, Packet(src=flow.source, dst=flow.destination), flow.receiver)
        assert traced.disposition is Disposition.DELIVERED
        seen = holders(plan, IPNetwork(traced.request.packet.src))
        if held.seen:
            assert [one.who for one in seen if one.use is Use.CALLED and one.seen] == [flow.sender]
        else:
            (source,) = [one for one in seen if one.use is Use.SOURCE]
            assert flow.receiver.realm in source.others


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(["whois", *arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_all_pods_of_the_directory_are_asked_and_one_with_problems_is_named(tmp_path, monkeypatch, capsys):
    text = (REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    project_with(tmp_path, "dev", text)
    (tmp_path / "Pulumi.broken.yaml").write_text(text.replace("198.18.0.0/22", "198.18.0.0/33"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "198.18.0.66")
    assert status == 0
    assert "198.18.0.66  dev  customer1/vm2  10.0.0.130; management uses this address\n" in out
    assert out.endswith("left out, because of problems: Pulumi.broken.yaml; run: python -m nat_pod check\n")
    status, out, _ = run(capsys, "192.0.2.1", "--json")
    assert (status, json.loads(out)) == (1, {"found": [], "notAsked": ["broken"]})
    status, out, _ = run(capsys, "192.0.2.1")
    assert (status, out.splitlines()[0]) == (1, "192.0.2.1: no POD knows it")


@pytest.mark.parametrize("text", ["10.0.0", "10.0.0.1/24", "customer1/vm1", "::1", "10.0.0.0/33", ""])
def test_what_is_no_address_is_refused(tmp_path, monkeypatch, capsys, text):
    project_with(tmp_path, "dev", (REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, text)
    assert status == 2
    assert "is not an IPv4 address or network, e.g. 198.18.0.66 or 10.0.0.0/24" in err


# --- a port, under masquerade -----------------------------------------------------------------------------------------

# As conntrack-tools 1.4.7 and /proc/net/nf_conntrack write them; customer1/vm2 and customer2/vm2 call mgmt's port 80.
VM1 = """\
tcp      6 86399 ESTABLISHED src=10.0.0.130 dst=198.18.0.2 sport=5000 dport=80 src=198.18.0.130 dst=198.18.0.2 \
sport=80 dport=1024 [ASSURED] mark=0 use=1
ipv4     2 tcp      6 9 TIME_WAIT src=10.0.1.100 dst=198.18.0.2 sport=5000 dport=80 src=198.18.0.130 dst=198.18.0.2 \
sport=80 dport=1025 [ASSURED] mark=0 zone=0 use=2
udp      17 29 src=10.0.1.100 dst=198.18.0.2 sport=5000 dport=9 src=198.18.0.130 dst=198.18.0.2 sport=9 dport=1024 use=1
"""
VM2 = """\
tcp      6 86399 ESTABLISHED src=198.18.0.2 dst=198.18.0.130 sport=1024 dport=80 src=10.0.0.100 dst=198.18.0.130 \
sport=80 dport=2048 [ASSURED] mark=0 use=1
tcp      6 9 TIME_WAIT src=198.18.0.2 dst=198.18.0.130 sport=1025 dport=80 src=10.0.0.100 dst=198.18.0.130 sport=80 \
dport=2049 [ASSURED] mark=0 use=1
udp      17 29 src=198.18.0.2 dst=198.18.0.130 sport=1024 dport=9 src=10.0.0.100 dst=198.18.0.130 sport=9 dport=2048
tcp 6 9 CLOSE src=198.18.0.130 dst=10.0.0.100 sport=2050 dport=80 src=10.0.0.100 dst=198.18.0.130 sport=80 dport=2050
icmp     1 29 src=198.18.0.2 dst=198.18.0.130 type=8 code=0 id=7 src=10.0.0.100 dst=198.18.0.130 type=0 code=0 id=7
conntrack v1.4.7 (conntrack-tools): 5 flow entries have been shown.
"""
BOTH = {"natVm1": read_entries(VM1), "natVm2": read_entries(VM2)}


def test_lines_of_tcp_and_udp_are_read_and_others_left_out():
    assert [len(entries) for entries in BOTH.values()] == [3, 4]
    assert read_entries("tcp 6 9 src=1.2.3.4 dst=5.6.7.8 sport=999999 dport=1 src=1.1.1.1 dst=2 sport=1 dport=2") == ()
    assert read_entries(VM1.replace("dport=1024", "")) == read_entries(VM1.splitlines()[1])


@pytest.mark.parametrize(
    ("port", "found"),
    [
        # One port may be that of several flows: to another server, port or by another protocol.
        (2048, [("tcp", "customer1/vm2"), ("udp", "customer2/vm2")]),
        (2049, [("tcp", "customer2/vm2")]),
        (2051, []),
    ],
)
def test_the_member_behind_a_port_is_found_through_both_tables(port, found):
    one = behind(planned("dev"), "198.18.0.130", port, BOTH)
    assert [(entry.protocol, member) for entry, member in one.links] == found
    assert one.candidates == ("customer1/vm1", "customer1/vm2", "customer2/vm2")


def test_what_a_nat_vm_sends_itself_is_no_member_s():
    one = behind(planned("dev"), "198.18.0.130", 2050, BOTH)
    assert (one.links, [entry.source for entry in one.foreign]) == ((), [("198.18.0.130", 2050)])


def test_without_the_other_table_or_with_another_flow_of_the_port_nobody_is_named():
    plan = planned("dev")
    assert [member for _, member in behind(plan, "198.18.0.130", 2048, {"natVm2": BOTH["natVm2"]}).links] == [None] * 2
    other = {"natVm1": read_entries(VM1.replace("sport=80 ", "sport=81 ")), "natVm2": BOTH["natVm2"]}
    assert behind(plan, "198.18.0.130", 2049, other).links[0][1] is None
    strange = {"natVm1": read_entries(VM1.replace("src=10.0.1.100", "src=10.0.1.77")), "natVm2": BOTH["natVm2"]}
    assert behind(plan, "198.18.0.130", 2049, strange).links[0][1] is None, "that is no member"


def test_customers_see_servers_behind_nat_vm1_s_address():
    one = behind(planned("dev"), "198.18.0.2", 1024, BOTH)
    assert ([vm.key for vm in one.vms], one.candidates) == (["natVm1", "natVm2"], ("management/mgmt",))
    for plan in (planned("dev", sourceNat="static"), planned("routed")):
        assert behind(plan, plan.vms[0].vnics[0].primary, 1024, {}) is None
    assert behind(planned("dev"), "198.18.0.66", 1024, {}) is None


def test_the_commands_are_said_until_the_member_is_known(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project_with(tmp_path, "dev", real_stack("dev")))
    (tmp_path / "one").write_text(VM1)
    (tmp_path / "two").write_text(VM2)
    asks = "  on natVm2: sudo conntrack -L -p tcp --reply-dst 198.18.0.130 --reply-port-dst 2049\n"
    then = "  on natVm1: sudo conntrack -L -p tcp --reply-dst 198.18.0.2 --reply-port-dst"
    status, out, _ = run(capsys, "198.18.0.130:2049")
    assert (status, asks in out, f"{then} SPORT\n" in out) == (0, True, True)
    assert "198.18.0.130:2049: one of 3: customer1/vm1, customer1/vm2, customer2/vm2\n" in out
    status, out, _ = run(capsys, "198.18.0.130:2049", "--conntrack", "natVm2=two")
    assert (status, f"{then} 1025\n" in out) == (1, True)
    both = ["--conntrack", "natVm2=two", "--conntrack", "natVm1=one"]
    status, out, _ = run(capsys, "198.18.0.130:2049", *both)
    assert (status, out.splitlines()[-1]) == (0, "198.18.0.130:2049, tcp to 10.0.0.100:80: customer2/vm2")
    status, out, _ = run(capsys, "198.18.0.130:2051", *both)
    assert (status, "no such flow in the table of natVm2: it has ended" in out) == (1, True)
    status, out, _ = run(capsys, "198.18.0.130:2049", *both, "--json")
    found = json.loads(out)["behind"]["dev"]
    assert found["found"] == [{"member": "customer2/vm2", "protocol": "tcp", "to": "10.0.0.100:80"}]
    assert found["ask"][0] == {"natVm": "natVm2", "command": asks.strip().removeprefix("on natVm2: ")}


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["198.18.0.130:0"], 2, "is not an address and a port, e.g. 198.18.0.130:40312"),
        (["198.18.0.0/24:80"], 2, "is not an address and a port"),
        (["198.18.0.130:x"], 2, "is not an address and a port"),
        (["198.18.0.130", "--conntrack", "natVm2=two"], 1, "needs an address with a port"),
        (["198.18.0.130:2", "--conntrack", "natVm3=two"], 1, "no such NAT VM; it is one of natVm1, natVm2"),
        (["198.18.0.66:2", "--conntrack", "natVm2=two"], 1, "nobody is hidden behind 198.18.0.66"),
        (["198.18.0.130:2", "--conntrack", "natVm2=-", "--conntrack", "natVm1=-"], 1, "only one of them from standard"),
        (["198.18.0.130:2", "--conntrack", "natVm2"], 2, "natVm2 is not VM=FILE"),
    ],
)
def test_what_cannot_be_looked_up_is_refused(tmp_path, monkeypatch, capsys, arguments, status, reason):
    monkeypatch.chdir(project_with(tmp_path, "dev", real_stack("dev")))
    (tmp_path / "two").write_text(VM2)
    found, out, err = run(capsys, *arguments)
    assert (found, out, reason in err) == (status, "", True), err


@pytest.mark.lab
def test_the_printed_commands_find_the_host_of_a_connection(tmp_path, monkeypatch, capsys):
    """By the real conntrack; the port is that of the only connection that is new."""
    directory = project_with(tmp_path, "dev", real_stack("dev"))
    region, _, _ = stand_up(directory, "dev")
    monkeypatch.chdir(directory)
    seen: set[str] = set()
    with Lab(observe(region)) as lab:
        for member in ("customer2/vm2", "customer1/vm2", "customer1/vm1"):
            (answer,) = lab.probe([Probe(source_vm=member, destination="198.18.0.2", protocol="http")])
            assert answer.ok
            table = lab.call("log_in", vm="natVm2", argv=["conntrack", "-L", "-p", "tcp", "--reply-src", "10.0.0.100"])
            (port,) = set(re.findall(r"dst=198\.18\.0\.130 sport=80 dport=(\d+)", table["stdout"])) - seen
            seen.add(port)
            given: list[str] = []
            for vm in ("natVm2", "natVm1"):
                _, out, _ = run(capsys, f"198.18.0.130:{port}", *given)
                (command,) = re.findall(rf"on {vm}: sudo (.*)", out)
                done = lab.call("log_in", vm=vm, argv=command.split())
                assert done["status"] == 0, done
                (tmp_path / vm).write_text(done["stdout"])
                given += ["--conntrack", f"{vm}={vm}"]
            status, out, _ = run(capsys, f"198.18.0.130:{port}", *given)
            assert (status, out.splitlines()[-1]) == (0, f"198.18.0.130:{port}, tcp to 10.0.0.100:80: {member}")
