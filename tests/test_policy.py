"""Who may open what: the section `policy`, from the stack file to rules, the proof, and what a change does to flows.

The three stacks: dev under both source policies, and a routed POD of two gateways (`routed_pods.small`).
"""

import itertools
import math
import random
from dataclasses import replace

import pytest
from conftest import stack_mapping
from netaddr import IPAddress
from routed_pods import small

from nat_pod.config import services
from nat_pod.config.model import PodConfig
from nat_pod.config.policy import Access, Entry, Party
from nat_pod.config.renames import Renames
from nat_pod.config.routed import RoutedConfig
from nat_pod.config.services import EVERYTHING, NOTHING, Ports, Services
from nat_pod.config.settings import renamed, settings
from nat_pod.errors import ConfigError
from nat_pod.names import MemberName
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.rules import iptables
from nat_pod.rules.netfilter import Accept, Chain, Goto, Match, Rule
from nat_pod.rules.passages import passages
from nat_pod.trace import proof as proof_module
from nat_pod.trace.chains import OTHER
from nat_pod.trace.counter_examples import NOT_DECLARED, NOT_DELIVERED, OPEN_PORT
from nat_pod.trace.diff import compare, delivered
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.flows import NOT_IN_POLICY, declared_flows, refused_flows
from nat_pod.trace.proof import prove
from nat_pod.trace.rule_checks import Protocols
from nat_pod.trace.spans import Segment
from nat_pod.trace.topology import Topology
from nat_pod.trace.walk import Leg, Packet, Tracer

HTTPS = {"from": "customer1", "to": "management/mgmt", "allow": ["tcp/443", "icmp"]}
SSH = {"from": "management", "to": "customer2", "allow": ["tcp/22"]}
FILES = {"from": "management/mgmt", "to": "customer1/vm1", "allow": ["tcp/22", "udp/53", "tcp/8000-8100"]}
CLOSED = [
    {"from": "customer1", "to": "management", "allow": []},
    {"from": "management", "to": "customer1", "allow": []},
]
PODS = ("masquerade", "static", "routes")


def mapping(pod: str, policy: list[dict]) -> dict:
    return {**small(), "policy": policy} if pod == "routes" else {
        **stack_mapping("dev"), "sourceNat": pod, "policy": policy
    }  # fmt: skip


def planned(pod: str, policy: list[dict]) -> PodPlan:
    config = (RoutedConfig if pod == "routes" else PodConfig).from_mapping(mapping(pod, policy), "pod")
    return plan_pod(config, "pod")


def member(name: str) -> MemberName:
    return MemberName.parse(name)


# --- what passes, as a value -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["tcp/22"], "tcp/22"),
        (["tcp/22", "tcp/23"], "tcp/22-23"),
        (["tcp/20-30", "tcp/25-40", "icmp"], "tcp/20-40, icmp"),
        (["tcp/9", "tcp/7"], "tcp/7, tcp/9"),
        (["udp", "udp/53"], "udp"),
        (["tcp", "udp", "icmp"], "tcp, udp, icmp"),
        (["icmp", "all"], "all"),
        ([], "nothing"),
    ],
)
def test_what_means_the_same_is_the_same_value(words, text):
    together = NOTHING
    for word in words:
        one = services.read(word)
        assert one is not None
        together = together | one
    assert str(together) == text
    for order in itertools.permutations(words):
        other = NOTHING
        for word in order:
            other = other | services.read(word)
        assert other == together


@pytest.mark.parametrize(
    "word", ["tcp/0", "tcp/65536", "tcp/30-20", "icmp/8", "tcp/", "TCP/22", "22", "gre", "tcp/2 2"]
)
def test_what_is_no_service_is_none(word):
    assert services.read(word) is None


@pytest.mark.slow
def test_a_set_without_another_has_what_the_other_has_not():
    dice = random.Random(5)

    def some() -> Services:
        ends = sorted(dice.sample(range(1, 40), 4))
        return Services(
            tcp=(Ports(ends[0], ends[1]),) if ends[1] + 1 >= ends[2] else (Ports(*ends[:2]), Ports(*ends[2:])),
            udp=(Ports(ends[0], ends[3]),) if dice.random() < 0.5 else (),
            icmp=dice.random() < 0.5,
            others=dice.random() < 0.5,
        )

    for _ in range(300):
        one, other = some(), some()
        for protocol, port in [*itertools.product(("tcp", "udp"), range(41)), ("icmp", 0), ("gre", 0)]:
            in_one, in_other = one.permits(protocol, port), other.permits(protocol, port)
            assert (one - other).permits(protocol, port) == (in_one and not in_other)
            assert (one | other).permits(protocol, port) == (in_one or in_other)
    assert not EVERYTHING - EVERYTHING


# --- the section -----------------------------------------------------------------------------------------------------


def test_whom_no_entry_governs_may_open_everything_and_several_entries_add_up():
    access = planned("static", [HTTPS, {"from": "customer1/vm2", "to": "management", "allow": ["udp/53"]}]).access
    mgmt = member("management/mgmt")
    assert str(access.services(member("customer1/vm1"), mgmt)) == "tcp/443, icmp"
    assert str(access.services(member("customer1/vm2"), mgmt)) == "tcp/443, udp/53, icmp"
    assert access.services(member("customer2/vm2"), mgmt) == EVERYTHING
    assert access.services(mgmt, member("customer1/vm1")) == EVERYTHING
    assert access.services(member("customer1/vm1"), member("customer2/vm2")) == NOTHING


def test_a_list_of_servers_comes_before_the_policy():
    given = mapping("static", [{"from": "customer1", "to": "management", "allow": ["tcp/443"]}])
    given["customers"]["customer1"]["servers"] = []
    access = plan_pod(PodConfig.from_mapping(given, "pod"), "pod").access
    assert access.services(member("customer1/vm1"), member("management/mgmt")) == NOTHING


WRONG = {
    "no list": ({"from": "a"}, 'nat-pod:policy: {"from": "a"}: must be a list of entries, '
                "e.g. {from: management, to: customer1, allow: [tcp/22, icmp]}"),
    "no entry": (["x"], 'nat-pod:policy[0]: "x": must be an entry with both ends and what passes, '
                 "e.g. {from: management, to: customer1, allow: [tcp/22, icmp]}"),
    "no end": ([{"from": "management", "allow": []}],
               "nat-pod:policy[0].to: is missing; the end that they are opened to, e.g. to: customer1"),
    "nobody": ([{**HTTPS, "from": "customer9"}], 'nat-pod:policy[0].from: "customer9": is not a customer of this POD; '
               "known are customer1, customer2, management"),
    "no member": ([{**HTTPS, "to": "management/nobody"}],
                  'nat-pod:policy[0].to: "management/nobody": is not a member of management; known are mgmt'),
    "no name": ([{**HTTPS, "from": "10.0.0.1"}], 'nat-pod:policy[0].from: "10.0.0.1": must be a customer or '
                "management, whole or a member of it, e.g. customer1, customer1/vm1 or management/mgmt"),
    "both customers": ([{**HTTPS, "to": "customer2"}],
                       'nat-pod:policy[0]: "customer1 to customer2": must have management or a server at one '
                       "end, a customer or a host at the other: no other flows pass"),
    "no service": ([{**HTTPS, "allow": ["ssh"]}], 'nat-pod:policy[0].allow: "ssh": must be all, icmp, tcp, udp, or a '
                   "port or a range of ports of the latter two, e.g. tcp/22 or udp/5000-5010"),
    "no list of services": ([{**HTTPS, "allow": "tcp/22"}],
                            'nat-pod:policy[0].allow: "tcp/22": must be a list, e.g. [tcp/22, icmp]; [] lets nothing '
                            "pass"),
    "twice": ([HTTPS, {**HTTPS, "allow": []}], 'nat-pod:policy[1]: "customer1 to management/mgmt": has the same ends '
              "as an entry above; put all that passes into that one"),
    "an unknown key": ([{**HTTPS, "alow": []}],
                       "nat-pod:policy[0].alow: is not a setting of nat-pod; did you mean allow?"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("pod", ["static", "routes"])
def test_a_policy_is_refused_with_every_mistake(pod, name):
    given, problem = WRONG[name]
    with pytest.raises(ConfigError) as refused:
        planned(pod, given)
    assert [str(one) for one in refused.value.problems] == [problem]


def test_an_entry_cannot_open_what_the_list_of_servers_leaves_out():
    given = mapping("static", [HTTPS])
    given["customers"]["customer1"]["servers"] = []
    with pytest.raises(ConfigError) as refused:
        PodConfig.from_mapping(given, "pod")
    assert [problem.path for problem in refused.value.problems] == ["nat-pod:policy[0].to"]


# --- passages: by protocol and port, then by receiver ----------------------------------------------------------------


def _who_may(asked, protocol: str, port: int) -> set[str]:
    """Whom a packet may go to by the first passage that it fits."""
    for passage in asked:
        if passage.protocol in (None, protocol) and (passage.ports is None or port in passage.ports):
            return set(passage.receivers)
    return set()


def test_passages_let_each_packet_go_to_just_those_who_may_get_it():
    """500 random policies of four servers, asked at every edge of their ranges."""
    dice = random.Random(11)
    servers = [MemberName("management", f"s{n}") for n in range(4)]
    words = ["tcp/22", "tcp/20-25", "tcp/443", "tcp", "udp/53", "udp/50-60", "udp", "icmp", "all"]
    for _ in range(500):
        reach = {}
        for server in dice.sample(servers, dice.randint(0, 4)):
            for word in dice.sample(words, dice.randint(1, 3)):
                reach[server] = reach.get(server, NOTHING) | services.read(word)
        asked = passages(reach)
        for protocol, port in [
            *itertools.product(("tcp", "udp"), (1, 19, 20, 22, 25, 26, 49, 50, 53, 60, 61, 443, 444, 65535)),
            ("icmp", 0),
            (OTHER, 0),
        ]:
            expected = {name for name, some in reach.items() if some.permits(protocol, port)}
            assert _who_may(asked, protocol, port) == expected, (reach, protocol, port)


def test_who_may_everything_is_asked_nothing():
    everybody = {MemberName("management", f"s{n}"): EVERYTHING for n in range(3)}
    assert [(one.match, len(one.receivers)) for one in passages(everybody)] == [(Match(), 3)]


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pod", PODS)
def test_the_rules_of_a_policy_are_the_golden_ones(pod, golden):
    plan = planned(pod, [HTTPS, SSH, FILES])
    texts = [f"# {role}\n{iptables.render(plan.vms_of(role)[0].rules)}" for role in plan.roles]
    golden(f"policy-{pod}.txt", "\n".join(texts))
    for vm in plan.vms:
        assert iptables.parse(iptables.render(vm.rules), iptables.hooks(vm.rules)) == vm.rules


@pytest.mark.parametrize("pod", PODS)
def test_without_entries_that_govern_a_vm_its_rules_are_what_they_were(pod):
    before, after = planned(pod, []), planned(pod, [{"from": "management", "to": "customer1", "allow": ["all"]}])
    assert delivered(before) == delivered(after)
    if pod != "routes":
        assert [vm.rules for vm in before.vms] == [vm.rules for vm in after.vms]


# --- the proof -------------------------------------------------------------------------------------------------------

POLICIES = {
    "ports both ways": [HTTPS, SSH, FILES],
    "nothing for one customer": [*CLOSED, SSH],
    "one direction": [{"from": "customer1", "to": "management", "allow": []}],
    "a host and its customer": [
        {"from": "customer1", "to": "management", "allow": ["icmp"]},
        {"from": "customer1/vm1", "to": "management/mgmt", "allow": ["tcp", "udp/53"]},
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name == "one direction" else pytest.param(name, marks=pytest.mark.sweep) for name in POLICIES],
)
@pytest.mark.parametrize("pod", PODS)
def test_every_packet_meets_the_fate_that_the_policy_declares(pod, name):
    plan = planned(pod, POLICIES[name])
    proof = prove(plan)
    assert proof.counter_examples == ()
    assert proof.holds_for is Protocols.EACH
    refused = [count for count in proof.counts if count.what == NOT_IN_POLICY]
    assert refused
    assert all(count.pairs == count.as_declared > 0 for count in proof.counts)


def _fate(leg: Leg) -> tuple[object, ...]:
    return leg.disposition, leg.reached, leg.untranslated


@pytest.mark.parametrize("pod", PODS)
def test_a_class_holds_for_its_last_packet_and_one_in_its_middle_and_all_together_are_everything(pod):
    """Of a host and a server that are governed: all destinations, and all ports of SYNs, segments and datagrams."""
    plan = planned(pod, [HTTPS, SSH, FILES, {"from": "customer1/vm1", "to": "management/mgmt", "allow": ["udp/53"]}])
    prover = proof_module._Prover(plan, expected_topology(plan))
    for kind in (one for one in prover.kinds if one.protocol in ("tcp", "udp")):
        prover.kind, prover.declared = kind, prover._admitted(kind)
        for slot in (plan.slot("customer1/vm1"), plan.slot("management/mgmt")):
            found = [one for block in prover._destinations(slot.member, slot.real) for one in block]
            assert len({(box.sports, box.dports) for box, _ in found}) > 2, "or no port was told apart"
            for box, leg in found:
                last = [end for _, end in box[1:]]
                middle = [sum(ends) // 2 for ends in box[1:]]
                for address, sport, dport in (last, middle):
                    packet = replace(kind, src=slot.real, dst=str(IPAddress(address)), sport=sport, dport=dport)
                    assert _fate(prover.tracer.request(slot.member, packet)) == _fate(leg), (box, packet)
            volumes = [math.prod(last - first + 1 for first, last in box[1:]) for box, _ in found]
            outside = sum(last - first + 1 for first, last in prover._outside(slot.member.realm))
            assert sum(volumes) == outside * 65536**2
            for (one, _), (other, _) in itertools.combinations(found, 2):
                assert any(a[1] < b[0] or b[1] < a[0] for a, b in zip(one[1:], other[1:], strict=True)), (one, other)


def _with_rule_first(plan: PodPlan, vm: str, chain: str, rule: Rule) -> Topology:
    """The plan's topology with one more rule at the top of a chain of this VM's."""
    topology = expected_topology(plan)
    rules = topology.vms[vm].rules
    tables = {
        table.name: type(table)(
            table.name,
            table.hooks,
            tuple(Chain(one.name, (rule, *one.rules) if one.name == chain else one.rules) for one in table.chains),
        )
        for table in rules.tables
    }
    topology.vms[vm] = replace(topology.vms[vm], rules=type(rules)(filter=tables["filter"], nat=tables["nat"]))
    return topology


@pytest.mark.slow
def test_a_port_that_a_rule_opens_beside_the_policy_is_found():
    """Telnet to the server, which nobody declared."""
    plan = planned("static", [HTTPS])
    rule = Rule(Match(protocol="tcp", destination_port=Ports.one(23)), Goto("NATPOD-SERVERS"))
    found = prove(plan, _with_rule_first(plan, "natVm1", "NATPOD-P1", rule)).counter_examples
    assert {(one.kind, one.sender) for one in found} == {
        (NOT_DECLARED, "customer1/vm1"), (NOT_DECLARED, "customer1/vm2")
    }  # fmt: skip


@pytest.mark.slow
def test_a_port_that_the_policy_declares_and_a_rule_closes_is_found():
    plan = planned("routes", [HTTPS])
    rule = Rule(Match(protocol="tcp", destination_port=Ports.one(443)), Goto("NATPOD-REFUSED"))
    topology = expected_topology(plan)
    heads = {r.target.chain for c in topology.vms["natVm1a"].rules.filter.chains for r in c.rules
             if isinstance(r.target, Goto) and r.member.startswith("customer1/")}  # fmt: skip
    found = prove(plan, _with_rule_first(plan, "natVm1a", min(heads), rule)).counter_examples
    assert NOT_DELIVERED in {one.kind for one in found}


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "found"), [("tcp", False), ("udp", True)])
def test_a_nat_vm_that_answers_at_a_port_of_the_policy_is_found_unless_it_is_its_ssh(protocol, found):
    """management may log in to NAT VM2 by TCP 22; at UDP 22 nobody may be answered."""
    plan = planned("static", [{**SSH, "allow": ["tcp/22", "udp/22"]}])
    let_in = Rule(Match(source="10.0.0.0/16", protocol=protocol, destination_port=Ports.one(22)), Accept())
    topology = _with_rule_first(plan, "natVm2", "NATPOD-INPUT", let_in)
    kinds = {one.kind for one in prove(plan, topology).counter_examples}
    assert (OPEN_PORT in kinds) == found


def test_in_a_routed_pod_a_syn_from_a_port_that_may_answer_opens_nothing():
    """customer1's hosts may answer from port 22; a SYN from there to the server's port 23 is refused all the same."""
    plan = planned("routes", [HTTPS, {"from": "management", "to": "customer1", "allow": ["tcp/22"]}])
    tracer = Tracer(expected_topology(plan))
    host, server = plan.slot("customer1/vm1"), plan.slot("management/mgmt")

    def reaches(segment: Segment, sport: int, dport: int) -> bool:
        packet = Packet(src=host.real, dst=server.nat_vm1, protocol="tcp", sport=sport, dport=dport, segment=segment)
        return tracer.request(host.member, packet).reached == server.member

    assert not reaches(Segment.OPENS, 22, 23)
    assert reaches(Segment.GOES_ON, 22, 50000)  # the answer in a flow that management opened
    assert not reaches(Segment.GOES_ON, 23, 50000)
    assert reaches(Segment.OPENS, 50000, 443)
    assert reaches(Segment.GOES_ON, 50000, 443)


# --- flows and what a change does to them ----------------------------------------------------------------------------


@pytest.mark.parametrize("pod", PODS)
def test_flows_to_try_are_what_passes_and_what_does_not(pod):
    plan = planned(pod, [HTTPS])
    host = member("customer1/vm1")
    declared = {(f.protocol, f.port) for f in declared_flows(plan) if f.sender == host}
    refused = {(f.protocol, f.port) for f in refused_flows(plan) if f.sender == host and f.why == NOT_IN_POLICY}
    assert declared == {("tcp", 443), ("icmp", None)}
    assert refused == {("tcp", 80), ("tcp", 442), ("tcp", 444), ("udp", 9)}
    tracer = Tracer(expected_topology(plan))
    for flow in [*declared_flows(plan), *refused_flows(plan)]:
        if flow.protocol is None or flow.why not in ("", NOT_IN_POLICY):
            continue
        packet = Packet(src=flow.source, dst=flow.destination, protocol=flow.protocol, dport=flow.port or 0)
        assert tracer.request(flow.sender, packet).reached == flow.receiver, flow


@pytest.mark.parametrize("pod", PODS)
def test_what_is_delivered_is_what_the_policy_says_pair_by_pair(pod):
    """`delivered` traces one pair of each group that nothing tells apart: here each pair is held against `access`."""
    plan = planned(pod, [HTTPS, SSH, FILES])
    found = {pair: way.services for pair, way in delivered(plan).items()}
    expected = {}
    for one, other in itertools.permutations(plan.slots, 2):
        some = plan.access.services(one.member, other.member)
        if some:
            expected[one.member, other.member] = some
    assert found == expected


def test_a_change_of_the_policy_narrows_and_widens_flows():
    before, after = planned("static", [HTTPS]), planned("static", [{**HTTPS, "allow": ["tcp/443", "tcp/8443"]}])
    difference = compare(before, after)
    assert {flow.sender for flow in difference.narrowed} == {"customer1/vm1", "customer1/vm2"}
    assert {str(flow.no_longer) for flow in difference.narrowed} == {"icmp"}
    assert {str(flow.now_too) for flow in difference.narrowed} == {"tcp/8443"}
    assert difference.widened == difference.lost == difference.gained == ()
    assert difference.ended == {(flow.sender, flow.receiver) for flow in difference.narrowed}
    back = compare(planned("static", [HTTPS]), planned("static", []))
    assert {str(flow.now_too) for flow in back.widened} == {"tcp/1-442, tcp/444-65535, udp, other protocols"} or all(
        flow.after.services == EVERYTHING for flow in back.widened
    )
    assert (back.narrowed, back.ended) == ((), frozenset())


def test_in_a_routed_pod_open_connections_outlive_what_the_other_end_may_open():
    """management may open everything to customer1: nobody can tell an answer in such a flow from the old one's."""
    one_way = compare(planned("routes", []), planned("routes", [HTTPS]))
    assert one_way.outlived == {(flow.sender, flow.receiver) for flow in one_way.narrowed}
    both_ways = compare(
        planned("routes", []),
        planned("routes", [HTTPS, {"from": "management", "to": "customer1", "allow": ["tcp/22"]}]),
    )
    assert both_ways.outlived == frozenset()
    assert len(both_ways.ended) == 4


def test_names_in_a_policy_follow_renames():
    given = settings({"nat-pod:policy": [{**FILES, "to": "old/web"}]})
    renames = Renames({"old": "customer1"}, {member("customer1/web"): member("customer1/vm1")})
    assert renamed(given, renames)["policy", "management/mgmt", "customer1/vm1"] == (
        "tcp/22",
        "tcp/8000-8100",
        "udp/53",
    )


def test_two_members_that_may_do_the_same_share_one_mapping():
    hosts = tuple(MemberName("a", f"h{n}") for n in range(3))
    servers = (MemberName("management", "s"),)
    access = Access(
        servers=servers,
        hosts=hosts,
        lists={"a": servers},
        entries=(Entry(Party("a", hosts[0]), Party("management"), Services(icmp=True)),),
    )
    assert access.reach(hosts[1]) is access.reach(hosts[2])
    assert access.reach(hosts[0]) is not access.reach(hosts[1])
    assert access.callers(servers[0]) == ("a",)
