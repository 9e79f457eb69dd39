"""`trace --all`: it finds nothing in the rules as compiled, and each thing that is broken on purpose, as a packet.

Address plan: the article's (conftest.py).
"""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from netaddr import IPAddress

from nat_pod.config.model import PodConfig
from nat_pod.lab import checks
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.rules.netfilter import Accept, Chain, Dnat, Drop, Match, Netmap, Rule, Ruleset, Snat
from nat_pod.trace import proof as proof_module
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology, with_host
from nat_pod.trace.flows import declared_flows, matrix, refused_flows, stranger_addresses
from nat_pod.trace.proof import CounterExample, prove
from nat_pod.trace.rule_checks import Protocols
from nat_pod.trace.spans import Span
from nat_pod.trace.topology import SecurityRule, Topology
from nat_pod.trace.walk import Packet, Tracer

MGMT = "management/mgmt"


def planned(mapping: dict, policy: str = "masquerade") -> PodPlan:
    return plan_pod(PodConfig.from_mapping({**mapping, "sourceNat": policy}, "test"), "test")


def edited(topology: Topology, vm: str, chain: str, edit: Callable[[list[Rule]], list[Rule]]) -> Topology:
    """The topology with one chain of one NAT VM rewritten."""
    rules = topology.vms[vm].rules
    tables = [
        replace(
            table,
            chains=tuple(Chain(c.name, tuple(edit(list(c.rules)))) if c.name == chain else c for c in table.chains),
        )
        for table in rules.tables
    ]
    assert any(c.name == chain for table in tables for c in table.chains), chain
    assert tables != list(rules.tables), "the edit changes nothing"
    return replace(topology, vms={**topology.vms, vm: replace(topology.vms[vm], rules=Ruleset(*tables))})


def counter_examples(plan: PodPlan, topology: Topology) -> list[CounterExample]:
    return list(prove(plan, topology).counter_examples)


@pytest.mark.parametrize("policy", ["masquerade", "static"])
@pytest.mark.parametrize("stack", ["dev", pytest.param("ten", marks=pytest.mark.sweep)])
def test_nothing_is_found_in_the_rules_as_they_are_compiled(request, stack, policy):
    plan = planned(request.getfixturevalue(stack), policy)
    proof = prove(plan)
    assert proof.counter_examples == ()
    assert proof.holds_for is (Protocols.ALL if policy == "static" else Protocols.WITH_PORTS)
    assert [count for count in proof.counts if count.pairs != count.as_declared] == []
    declared = sum(count.pairs for count in proof.counts if count.what == "declared")
    assert declared == len(declared_flows(plan)) == {"dev": 6, "ten": 558}[stack]


def no_lists(pod: dict) -> None:
    for customer in pod["customers"].values():
        customer["servers"] = []


def no_list_for_one(pod: dict) -> None:
    pod["customers"]["customer2"]["servers"] = []


def no_hosts(pod: dict) -> None:
    pod["customers"] = {name: {**customer, "hosts": {}} for name, customer in pod["customers"].items()}
    pod["addresses"] = {name: slot for name, slot in pod["addresses"].items() if name == MGMT}


def no_servers(pod: dict) -> None:
    pod["management"]["servers"] = {}
    del pod["addresses"][MGMT]


@pytest.mark.parametrize("policy", ["masquerade", "static"])
@pytest.mark.parametrize("edit", [no_lists, no_list_for_one, no_hosts, no_servers])
def test_nothing_is_compiled_for_members_that_have_no_flow(dev, edit, policy):
    """`check` calls these files fine, and so does `trace --all`."""
    edit(dev)
    assert prove(planned(dev, policy)).counter_examples == ()


@pytest.mark.parametrize("stack", ["dev", pytest.param("ten", marks=pytest.mark.sweep)])
def test_the_matrix_has_every_flow_that_the_lab_sends_and_expects_the_same_of_it(request, stack):
    """The lab sends declared_flows and refused_flows; forged sources are another kind of sender."""
    plan = planned(request.getfixturevalue(stack))
    pairs = {(flow.sender, flow.destination): flow.receiver for flow in matrix(plan)}
    assert len(pairs) == {"dev": 21, "ten": 4940}[stack]
    sent = [f for f in [*declared_flows(plan), *refused_flows(plan)] if f.why != "spoofed transit source"]
    held = {(flow.sender, flow.destination) for flow in sent} & set(pairs)
    assert {key: pairs[key] for key in held} == {
        (f.sender, f.destination): f.receiver for f in sent if (f.sender, f.destination) in held
    }
    outside = {(f.why, f.sender) for f in sent if (f.sender, f.destination) not in held}
    assert {why for why, _ in outside} == {"unmapped address"}


@pytest.mark.slow
def test_the_lab_expects_of_each_packet_what_the_matrix_says_of_its_pair(ten):
    plan = planned(ten)
    topology = expected_topology(plan)
    for name, address in stranger_addresses(plan).items():
        topology = with_host(topology, name, address)
    pairs = {(flow.sender, flow.destination): flow.receiver for flow in matrix(plan)}
    expected = checks.expectations(plan, topology)
    compared = [one for one in expected if not one.forged and (one.flow.sender, one.flow.destination) in pairs]
    assert len(compared) > 3 * 558
    for one in compared:
        receiver = pairs[one.flow.sender, one.flow.destination]
        assert (one.declared, one.flow.receiver) == (receiver is not None, receiver)
        assert (one.predicted.disposition is Disposition.DELIVERED) == one.declared
    assert checks.prediction_holds(expected)


# --- broken on purpose -----------------------------------------------------------------------------------------------


def swap_targets(rules: list[Rule]) -> list[Rule]:
    one, two = rules[0], rules[1]
    return [replace(one, target=two.target), replace(two, target=one.target), *rules[2:]]


def drop_last(rules: list[Rule]) -> list[Rule]:
    return rules[:-1]


def first(rule: Rule) -> Callable[[list[Rule]], list[Rule]]:
    return lambda rules: [rule, *rules]


def last(rule: Rule) -> Callable[[list[Rule]], list[Rule]]:
    return lambda rules: [*rules, rule]


def doubled(rules: list[Rule]) -> list[Rule]:
    return [rules[0], *rules]


STRAIGHT_THROUGH = Rule(Match(source="10.0.0.0/24", destination="198.18.0.3/32"), Dnat("10.0.1.100"))
BROKEN = {
    "two DNAT targets exchanged": (
        "masquerade", "natVm1", "NATPOD-V-198.18.0.0/27", swap_targets,
        ("an address leads to the wrong member", MGMT, "10.0.0.100", "198.18.0.130"),
    ),
    "a host's rule is missing": (
        "masquerade", "natVm1", "NATPOD-V-198.18.0.32/27", drop_last,
        ("declared, and not delivered", MGMT, "10.0.0.100", "198.18.0.66"),
    ),
    "who may: one host is missing": (
        "masquerade", "natVm1", "NATPOD-C-customer1", drop_last,
        ("declared, and not delivered", "customer1/vm2", "10.0.0.130", "198.18.0.2"),
    ),
    "the guard of FORWARD is missing": (
        "masquerade", "natVm1", "NATPOD-FORWARD", drop_last,
        ("a NAT VM passes on a packet that no rule translated", "customer1/vm1", "10.0.0.100", "198.18.0.3"),
    ),
    "the guard of INPUT is missing": (
        "masquerade", "natVm1", "NATPOD-INPUT", drop_last,
        ("a NAT VM passes on a packet that no rule translated", "customer1/stranger", "10.0.0.253", "198.18.0.2"),
    ),
    "FORWARD accepts everything": (
        "masquerade", "natVm2", "NATPOD-FORWARD", first(Rule(Match(), Accept())),
        ("a NAT VM passes on a packet that no rule translated", "management/stranger", "10.0.255.253", "198.18.0.131"),
    ),
    "a customer reaches another": (
        "masquerade", "natVm1", "NATPOD-PRE", first(STRAIGHT_THROUGH),
        ("one customer reaches another", "customer1/vm1", "10.0.0.100", "198.18.0.3"),
    ),
    "a whole customer may reach the servers": (
        "masquerade", "natVm1", "NATPOD-C-customer1",
        last(Rule(Match(source="10.0.0.0/25", destination="198.18.0.2/32"), Dnat("198.18.0.130"))),
        ("delivered, and not declared", "customer1/stranger", "10.0.0.0", "198.18.0.2"),
    ),
    "a management host that is no server": (
        "masquerade", "natVm2", "NATPOD-PRE",
        last(Rule(Match(source="10.0.7.9/32", destination="198.18.0.66/32"), Dnat("198.18.0.34"))),
        ("delivered, and not declared", "management/stranger", "10.0.7.9", "198.18.0.66"),
    ),
    "a rule twice": (
        "masquerade", "natVm1", "NATPOD-SERVERS", doubled,
        ("a rule that an earlier one shadows", "natVm1", "", ""),
    ),
    "a rule behind a wider one": (
        "masquerade", "natVm2", "NATPOD-HOSTS",
        last(Rule(Match(destination="198.18.0.66/32"), Dnat("198.18.0.34"))),
        ("a rule that an earlier one shadows", "natVm2", "", ""),
    ),
    "a filter rule behind the last drop": (
        "masquerade", "natVm1", "NATPOD-FORWARD",
        last(Rule(Match(source="10.0.0.0/24"), Drop())),
        ("a rule that an earlier one shadows", "natVm1", "", ""),
    ),
    "a rule for nobody": (
        "masquerade", "natVm1", "NATPOD-SERVERS",
        last(Rule(Match(destination="198.18.0.9/32"), Dnat("198.18.0.137"))),
        ("a rule that no declared flow uses", "natVm1", "", ""),
    ),
    "two hosts behind one source address": (
        "static", "natVm1", "NATPOD-H-customer1",
        lambda rules: [rules[0], replace(rules[1], target=rules[0].target)],
        ("two members share one address", "customer1/vm2", "10.0.0.130", "198.18.0.2"),
    ),
    "a source address that is nobody's": (
        "static", "natVm1", "NATPOD-H-customer2",
        lambda rules: [replace(rules[0], target=Snat("198.18.0.35"))],
        ("declared, and not delivered", "customer2/vm2", "10.0.1.100", "198.18.0.2"),
    ),
    "two hosts' source addresses exchanged": (
        "static", "natVm1", "NATPOD-H-customer1", swap_targets,
        ("the address seen does not lead back", "customer1/vm1", "10.0.0.100", "198.18.0.2"),
    ),
    "a prefix moved to the wrong one": (
        "masquerade", "natVm2", "NATPOD-HOSTS",
        lambda rules: [replace(rule, target=Netmap("198.18.0.0/27")) for rule in rules],
        ("an address leads to the wrong member", MGMT, "10.0.0.100", "198.18.0.66"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_on_purpose_is_named_as_a_packet(dev, name):
    policy, vm, chain, edit, expected = BROKEN[name]
    plan = planned(dev, policy)
    found = counter_examples(plan, edited(expected_topology(plan), vm, chain, edit))
    assert expected in [(one.kind, one.sender, one.source, one.destination) for one in found]
    assert [one for one in found if not one.why] == []


def test_a_whole_network_let_through_is_found_where_no_sample_was_taken(dev):
    """Nobody sends from 10.0.0.0/25 but vm1: the class of all the others is what finds it, with its size."""
    plan = planned(dev)
    rule = Rule(Match(source="10.0.0.0/25", destination="198.18.0.2/32"), Dnat("198.18.0.130"))
    found = counter_examples(plan, edited(expected_topology(plan), "natVm1", "NATPOD-C-customer1", last(rule)))
    through = [one for one in found if one.kind == "delivered, and not declared"]
    assert sum(one.alike + 1 for one in through) == 127


def test_an_nsg_that_trusts_addresses_instead_of_vnics_is_found(dev):
    plan = planned(dev)
    topology = expected_topology(plan)
    everybody = SecurityRule(direction="INGRESS", protocol="all", peer="0.0.0.0/0", stateless=True)
    vnics = {
        name: replace(vnic, security=(everybody, *vnic.security)) if vnic.vm == "natVm1" else vnic
        for name, vnic in topology.vnics.items()
    }
    found = counter_examples(plan, replace(topology, vnics=vnics))
    assert [(one.kind, one.sender) for one in found if one.source == "198.18.0.130"] == [
        ("one customer reaches another", "customer1/stranger"),
        ("one customer reaches another", "customer2/stranger"),
    ]


@pytest.mark.sweep
def test_lpgs_without_a_route_table_are_a_way_past_nat_vm1(ten):
    """A host with a server's address, whose owner routes NAT VM2's range to its LPG."""
    plan = planned(ten)
    topology = expected_topology(plan)
    open_lpgs = {name: replace(lpg, routes=None) for name, lpg in topology.lpgs.items()}
    found = counter_examples(plan, replace(topology, lpgs=open_lpgs))
    twin = next(slot for slot in plan.slots if slot.member == "amber/web")
    assert twin.real in {slot.real for slot in plan.slots if slot.member.is_server}
    assert any(
        (one.kind, one.sender, one.source) == ("one customer reaches another", twin.member, twin.real)
        and one.destination.startswith("198.18.6.")
        for one in found
    )
    assert counter_examples(plan, topology) == []


def test_rules_that_look_at_a_protocol_are_said_to_limit_the_proof(dev):
    plan = planned(dev)
    rule = Rule(Match(protocol="udp", destination="198.18.0.3/32"), Dnat("10.0.1.100"))
    changed = edited(expected_topology(plan), "natVm1", "NATPOD-PRE", last(rule))
    assert prove(plan, changed).holds_for is Protocols.TRACED


# --- the classes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["masquerade", "static"])
@pytest.mark.parametrize("stack", ["dev", pytest.param("ten", marks=pytest.mark.sweep)])
def test_every_packet_of_a_class_meets_the_fate_of_the_one_that_was_traced(request, stack, policy):
    """What the proof rests on: packets at both ends and in the middle of each class, traced one by one."""
    plan = planned(request.getfixturevalue(stack), policy)
    topology = expected_topology(plan)
    for name, address in stranger_addresses(plan).items():
        topology = with_host(topology, name, address)
    sender = f"{next(iter(plan.customer_cidrs))}/stranger"
    hostile = replace(topology.vnics[f"{sender}-vnic-1"], skip_source_dest_check=True)
    topology = replace(topology, vnics={**topology.vnics, hostile.name: hostile})
    tracer = Tracer(topology)
    chance = random.Random(4)
    flows = list(matrix(plan))
    tried = 0
    for flow in chance.sample(flows, min(len(flows), 60)):
        for who, source in ((flow.sender, flow.source), (sender, str(IPAddress(chance.getrandbits(32))))):
            leg = tracer.request(who, packet(source, flow.destination))
            (low, high), (start, end) = leg.alike
            assert low <= int(IPAddress(source)) <= high
            assert start <= int(IPAddress(flow.destination)) <= end
            for a, b in ((low, start), (high, end), ((low + high) // 2, (start + end) // 2), (low, end)):
                other = Tracer(topology).request(who, packet(str(IPAddress(a)), str(IPAddress(b))))
                assert (other.disposition, other.reached, other.untranslated) == (
                    leg.disposition, leg.reached, leg.untranslated,
                ), (who, a, b)  # fmt: skip
                tried += 1
    assert tried > 60


def packet(source: str, destination: str) -> Packet:
    return Packet(src=source, dst=destination, protocol="tcp", dport=80)


def test_the_classes_of_one_sender_lie_side_by_side_and_leave_nothing_out(ten):
    plan = planned(ten)
    prover = proof_module._Prover(plan, expected_topology(plan))
    server = plan.slots[0]
    blocks = [found[0][0].destinations for found in prover._destinations(server.member, server.real)]
    inside = [(167772160, 167837695)]  # 10.0.0.0/16, management's own network
    assert plan.management_cidrs == ("10.0.0.0/16",)
    edge = 0
    for start, end in sorted(blocks + inside):
        assert start == edge
        edge = end + 1
    assert edge == 2**32


def test_an_interval_shrinks_with_each_question_and_moves_with_a_translation():
    span = Span(100)
    assert span.inside(0, 127)
    assert not span.inside(0, 95)
    assert not span.inside(120, 127)
    assert (span.low, span.high, span.origin()) == (96, 119, (96, 119))
    span.move(1024, 15)  # the host bits of a /28: 96 to 111
    assert (span.value, span.low, span.high, span.origin()) == (1028, 1024, 1039, (96, 111))
    span.become(7)
    span.pin()
    assert (span.value, span.origin()) == (7, (96, 111))


def test_a_disposition_has_one_line_for_people():
    assert all(disposition.meaning and len(disposition.meaning) < 77 for disposition in Disposition)
