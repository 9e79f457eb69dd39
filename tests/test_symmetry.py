"""Of members that nothing in the network tells apart `diff` traces one: held to tracing every flow by itself."""

from dataclasses import replace

import pytest
from conftest import stack_mapping

from bench.pods import full_pod
from nat_pod.config.model import PodConfig
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.rules.compiler import HIDDEN
from nat_pod.rules.guard import POST
from nat_pod.rules.netfilter import Chain, Dnat, Match, Netmap, Rule
from nat_pod.trace.diff import Pair, Way, delivered
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.flows import flow_between
from nat_pod.trace.symmetry import alike
from nat_pod.trace.walk import Packet, Tracer

POLICIES = ("masquerade", "static")


def plan(mapping: dict, policy: str) -> PodPlan:
    return plan_pod(PodConfig.from_mapping({**mapping, "sourceNat": policy}, "x"), "x")


def sides(plan: PodPlan) -> tuple[list[SlotPlan], list[SlotPlan]]:
    servers = [slot for slot in plan.slots if slot.member.is_server]
    return servers, [slot for slot in plan.slots if slot not in servers]


def one_by_one(plan: PodPlan, *, every: int = 1) -> dict[Pair, Way]:
    """Each flow, traced by itself; every: of each so many hosts one."""
    tracer, ways = Tracer(expected_topology(plan)), {}
    servers, hosts = sides(plan)
    for host in hosts[::every]:
        for server in servers:
            for sender, receiver in ((host, server), (server, host)):
                flow = flow_between(sender, receiver)
                packet = Packet(src=flow.source, dst=flow.destination, protocol="tcp", dport=80)
                traced = tracer.trace(flow.sender, packet, flow.receiver)
                if traced.disposition is Disposition.DELIVERED:
                    hops = tuple((hop.start.label, hop.end.label, hop.src, hop.dst) for hop in traced.request.hops)
                    ways[sender.member, receiver.member] = Way(
                        address=flow.destination, seen=traced.request.packet.src, hops=hops
                    )
    return ways


def groups(plan: PodPlan, *, hosts: bool = False) -> list[list[str]]:
    sides_in_turn = sides(plan)[::-1] if hosts else sides(plan)
    return [[m.member.short for m in group] for group in alike(expected_topology(plan), *sides_in_turn)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stack", ["dev", pytest.param("ten", marks=pytest.mark.sweep)])
def test_the_ways_are_those_of_tracing_every_flow_by_itself(stack, policy):
    of = plan(stack_mapping(stack), policy)
    assert delivered(of) == one_by_one(of)


@pytest.mark.sweep
@pytest.mark.parametrize("policy", POLICIES)
def test_the_ways_of_a_full_pod_are_those_of_tracing_a_sample_by_itself(policy):
    of = plan(full_pod(), policy)
    sample = one_by_one(of, every=23)
    hosts = {name for pair in sample for name in pair}
    assert len(sample) == 2 * 8 * 30
    assert {pair: way for pair, way in delivered(of).items() if set(pair) <= hosts} == sample
    assert len(delivered(of)) == 2 * 8 * 688


# --- what makes a server like no other -------------------------------------------------------------------------------


def six_more() -> dict:
    """The article's example with six servers and six hosts more, all with slots of their own in one pair of VNICs."""
    mapping = stack_mapping("dev")
    for number in range(6):
        mapping["management"]["servers"][f"s{number}"] = f"10.0.200.{8 + number}"
        pair = {"natVm1": f"198.18.0.{8 + number}", "natVm2": f"198.18.0.{136 + number}"}
        mapping["addresses"][f"management/s{number}"] = pair
        mapping["customers"]["customer1"]["hosts"][f"h{number}"] = f"10.0.0.{131 + number}"
        pair = {"natVm1": f"198.18.0.{16 + number}", "natVm2": f"198.18.0.{144 + number}"}
        mapping["addresses"][f"customer1/h{number}"] = pair
    return mapping


def with_rules(of: PodPlan, vm: str, change) -> PodPlan:
    """The plan with every nat chain of one NAT VM as `change(chain)` makes its rules."""
    vms = []
    for one in of.vms:
        nat = one.rules.nat
        chains = tuple(Chain(chain.name, tuple(change(chain))) for chain in nat.chains)
        rules = replace(one.rules, nat=replace(nat, chains=chains))
        vms.append(replace(one, rules=rules) if one.key == vm else one)
    return replace(of, vms=tuple(vms))


@pytest.mark.parametrize("policy", POLICIES)
def test_servers_with_the_same_rules_are_one_group(policy):
    found = groups(plan(six_more(), policy))
    assert max(map(len, found)) >= 3
    assert ["mgmt"] in found  # it has the primary addresses
    assert max(map(len, groups(plan(six_more(), policy), hosts=True))) >= 2


def listed(m: dict) -> None:
    m["customers"]["customer1"]["servers"] = ["s0", "s1", "s2", "s3", "s5"]


def same_address_as_a_host(m: dict) -> None:
    m["management"]["cidr"] = "10.0.0.0/16"
    m["management"]["servers"]["s4"] = "10.0.1.100"  # customer2/vm2's


def shared_slot(m: dict) -> None:
    m["customers"]["customer1"]["hosts"]["x"] = "10.0.0.9"
    m["addresses"]["customer1/x"] = m["addresses"]["management/s4"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("edit", [listed, same_address_as_a_host, shared_slot], ids=lambda edit: edit.__name__)
def test_a_server_that_the_stack_file_sets_apart_is_like_no_other(edit, policy):
    mapping = six_more()
    edit(mapping)
    of = plan(mapping, policy)
    assert ["s4"] in groups(of)
    assert delivered(of) == one_by_one(of)


def test_a_server_whose_slot_another_member_has_is_like_no_other():
    """Whether or not a rule says so: the other's flows would go with the exchanged addresses."""
    of = plan(six_more(), "static")
    servers, hosts = sides(of)
    taken = next(server for server in servers if server.member == "management/s2")
    found = alike(expected_topology(of), servers, [*hosts, replace(taken, member="customer1/x", real="10.0.0.9")])
    assert [taken] in found
    assert [taken] not in alike(expected_topology(of), servers, hosts)


def at(rule: Rule, address: str) -> bool:
    return rule.match.destination == f"{address}/32"


def first(rule: Rule, chain: Chain) -> list[Rule]:
    """The chain with a DNAT rule on top, if it is one before the routing decision: no kernel takes it behind that."""
    return [*chain.rules] if chain.name.startswith((POST, HIDDEN)) else [rule, *chain.rules]


FAULTS = {
    "its rule is missing": ("natVm2", lambda c: [r for r in c.rules if not at(r, "198.18.0.140")]),
    "its rule leads to another": (
        "natVm2",
        lambda c: [replace(r, target=Dnat("10.0.200.8")) if at(r, "198.18.0.140") else r for r in c.rules],
    ),
    "a rule before the others takes it": (
        "natVm1",
        lambda c: first(Rule(Match(destination="198.18.0.10/31"), Dnat("198.18.0.2")), c),
    ),
    "a rule between them takes those behind it": (
        "natVm2",
        lambda c: [
            rule
            for r in c.rules
            for rule in (r, Rule(Match(destination="198.18.0.128/25"), Dnat("10.0.200.8")))
            if rule is r or at(r, "198.18.0.138")
        ],
    ),
    "a host's rule leads to its neighbour": (
        "natVm1",
        lambda c: [
            replace(r, target=Dnat("10.0.0.131")) if r.member == "customer1/h3" and isinstance(r.target, Dnat) else r
            for r in c.rules
        ],
    ),
    "a host may not": ("natVm1", lambda c: [r for r in c.rules if r.match.source != "10.0.0.133/32"]),
    "one host alone is kept from it": (
        "natVm1",
        lambda c: first(Rule(Match(source="10.0.0.100/32", destination="198.18.0.12/32"), Dnat("198.18.0.9")), c),
    ),
    "a NETMAP leads to another VNIC": (
        "natVm2",
        lambda c: [replace(r, target=Netmap("198.18.0.32/27")) if isinstance(r.target, Netmap) else r for r in c.rules],
    ),
    "a NETMAP moves it onto another": (
        "natVm1",
        lambda c: [Rule(Match(destination="198.18.0.10/31"), Netmap("198.18.0.136/31")), *c.rules],
    ),
}


@pytest.mark.parametrize("policy", [POLICIES[0], *(pytest.param(one, marks=pytest.mark.sweep) for one in POLICIES[1:])])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_rule_that_treats_one_server_differently_shows(fault, policy):
    good = plan(six_more(), policy)
    bad = with_rules(good, *FAULTS[fault])
    ways = delivered(bad)
    assert ways == one_by_one(bad)
    assert ways != delivered(good)
    assert (groups(bad), groups(bad, hosts=True)) != (groups(good), groups(good, hosts=True))
