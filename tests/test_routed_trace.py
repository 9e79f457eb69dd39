"""The tracer on a routed POD: what is declared arrives, by either NAT VM of a side, and nothing else does.

Address plan: the article's networks with one alias a member (routed_pods.py); the example is Pulumi.routed.yaml.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import REPOSITORY, stack_mapping
from routed_pods import of_size, small
from test_proof import edited, first
from test_routed_rules import with_lists

from nat_pod.commands.cli import main
from nat_pod.config.any_config import read
from nat_pod.config.services import Ports
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.rules.netfilter import OPENING, Accept, Drop, Match, Rule
from nat_pod.trace.counter_examples import (
    CUSTOMER_TO_CUSTOMER,
    ERROR_LOST,
    FOREIGN_ERROR,
    NO_GUARD,
    NOT_DECLARED,
    NOT_DELIVERED,
    OPEN_PORT,
)
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.proof import prove
from nat_pod.trace.rule_checks import Protocols
from nat_pod.trace.spans import Segment
from nat_pod.trace.topology import Route, Topology
from nat_pod.trace.walk import Packet, Tracer


def planned(mapping: dict) -> PodPlan:
    return plan_pod(read(mapping, "test"), "test")


def without_standby() -> dict:
    return small() | {"standby": False}


PODS: dict[str, Callable[[], dict]] = {
    "small": small,
    "lists": with_lists,
    "without a standby": without_standby,
    "the example": lambda: stack_mapping("routed"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "pod", [pytest.param(pod, marks=[pytest.mark.sweep] if pod == "the example" else []) for pod in PODS]
)
def test_nothing_is_found_in_a_routed_pod(pod):
    plan = planned(PODS[pod]())
    proof = prove(plan)
    assert proof.counter_examples == ()
    assert proof.holds_for is Protocols.IN_THREE
    assert proof.counts
    assert [count for count in proof.counts if count.pairs != count.as_declared] == []


@pytest.mark.sweep
def test_nothing_is_found_in_a_large_one():
    assert prove(planned(of_size(400))).counter_examples == ()


def found(plan: PodPlan, topology: Topology) -> set[str]:
    return {one.kind for one in prove(plan, topology).counter_examples}


# --- trust by route --------------------------------------------------------------------------------------------------


def with_routes(topology: Topology, table: str, change: Callable[[tuple[Route, ...]], tuple[Route, ...]]) -> Topology:
    """The topology with the routes of a subnet, or of all LPGs of the POD, changed."""
    if table == "lpgs":
        lpgs = {
            name: lpg if lpg.routes is None else replace(lpg, routes=change(lpg.routes))
            for name, lpg in topology.lpgs.items()
        }
        return replace(topology, lpgs=lpgs)
    subnet = topology.subnets[table]
    return replace(topology, subnets={**topology.subnets, table: replace(subnet, routes=change(subnet.routes))})


def routes(topology: Topology, table: str) -> tuple[Route, ...]:
    if table == "lpgs":
        return next(lpg.routes for lpg in topology.lpgs.values() if lpg.routes)
    return topology.subnets[table].routes


@pytest.mark.slow
@pytest.mark.parametrize("pod", ["small", pytest.param("without a standby", marks=pytest.mark.sweep)])
@pytest.mark.parametrize(
    ("table", "rules"),
    [
        ("natVm2", 2),
        ("lpgs", 1),
        *(pytest.param(*one, marks=pytest.mark.sweep) for one in (("natVm1", 3), ("vrouter", 1))),
    ],
)
def test_a_route_rule_that_is_missing_is_found(pod, table, rules):
    plan = planned(PODS[pod]())
    topology = expected_topology(plan)
    assert len(routes(topology, table)) == rules
    for gone in routes(topology, table):
        broken = with_routes(topology, table, lambda all_of, gone=gone: tuple(r for r in all_of if r != gone))
        assert NOT_DELIVERED in found(plan, broken), gone


HOSTS = "198.18.2.0/27"
ADDED = {
    # A customer that forges a server's alias would be taken for NAT VM2, and a host's for NAT VM1.
    "hosts' aliases from the LPGs": ("lpgs", HOSTS, "198.18.3.196", CUSTOMER_TO_CUSTOMER),
    "servers' aliases from the LPGs past NAT VM1": ("lpgs", "198.18.0.0/28", "198.18.3.204", NOT_DECLARED),
    "management from the LPGs": ("lpgs", "10.0.0.0/16", "198.18.3.250", NOT_DECLARED),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", ADDED)
def test_a_route_rule_too_many_is_found(name):
    table, destination, next_hop, kind = ADDED[name]
    plan = planned(small())
    assert next_hop in {plan.vrouter_ip, *(balancer.address for balancer in plan.balancers)}
    rule = Route(destination=destination, private_ip=next_hop)
    assert kind in found(plan, with_routes(expected_topology(plan), table, lambda all_of: (*all_of, rule)))


@pytest.mark.sweep
@pytest.mark.parametrize("vm", ["natVm1b", "natVm2b"])
def test_a_standby_that_does_not_run_the_same_rules_is_found(vm):
    plan = planned(small())
    topology = expected_topology(plan)
    refuses = edited(topology, vm, "NATPOD-WHO-MAY", first(Rule(Match(), Drop())))
    assert NOT_DELIVERED in found(plan, refuses)
    lets_pass = edited(topology, vm, "NATPOD-FORWARD", first(Rule(Match(), Accept())))
    assert NO_GUARD in found(plan, lets_pass)


@pytest.mark.sweep
def test_the_steps_show_what_the_balancer_chooses(tmp_path, monkeypatch, capsys):
    shutil.copy(REPOSITORY / "Pulumi.routed.yaml", tmp_path)
    shutil.copy(REPOSITORY / "Pulumi.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["trace", "routed", "fern/app", "management/mgmt", "--steps"]) == 0
    steps = capsys.readouterr().out
    assert "load balancer         to nat_vm1a; nat_vm1b stands by" in steps
    assert "load balancer         to nat_vm2a; nat_vm2b stands by" in steps
    assert main(["trace", "routed", "fern/app", "management/mgmt", "--down", "natVm1a", "--steps"]) == 0
    assert "to nat_vm1b; nat_vm1a is down" in " ".join(capsys.readouterr().out.split())
    assert main(["trace", "routed", "--all"]) == 0
    assert "=> all as declared: no counter-example" in capsys.readouterr().out


# --- rules -----------------------------------------------------------------------------------------------------------


def only_the_server_may_open() -> tuple[PodPlan, Topology]:
    """customer3's host may call nobody, and both servers may call it."""
    plan = planned(with_lists())
    return plan, expected_topology(plan)


def no_flags(rules: list[Rule]) -> list[Rule]:
    return [rule for rule in rules if rule.match.tcp_flags is None]


def test_a_segment_passes_where_only_the_other_end_may_open_and_a_syn_does_not():
    plan, topology = only_the_server_may_open()
    server, host = plan.slot("management/mgmt"), plan.slot("customer3/vm")
    assert server is not None
    assert host is not None
    syn = Packet(src=host.real, dst=server.nat_vm1, protocol="tcp", dport=80)
    tracer = Tracer(topology)
    assert tracer.trace(host.member, syn).disposition is Disposition.NO_MAPPING
    went_on = tracer.trace(host.member, replace(syn, segment=Segment.GOES_ON))
    assert (went_on.disposition, went_on.request.reached) == (Disposition.DELIVERED, server.member)
    assert tracer.trace(host.member, replace(syn, protocol="udp")).disposition is Disposition.NO_MAPPING


@pytest.mark.sweep
@pytest.mark.parametrize("vm", ["natVm1a", "natVm1b"])
def test_a_syn_that_passes_like_a_later_segment_is_found(vm):
    plan, topology = only_the_server_may_open()
    assert any(rule.match.tcp_flags == OPENING for rule in topology.vms[vm].rules.filter.chain("NATPOD-ANSWERS").rules)
    broken = edited(topology, "natVm1a", "NATPOD-ANSWERS", no_flags)
    assert NOT_DECLARED in found(plan, broken)


@pytest.mark.slow
def test_segments_that_do_not_go_on_are_found():
    plan, topology = only_the_server_may_open()
    broken = edited(topology, "natVm1a", "NATPOD-ANSWERS", lambda rules: rules[-1:])
    assert NOT_DELIVERED in found(plan, broken)


def test_a_syn_ack_of_a_flow_that_the_nat_vm_has_not_seen_is_not_translated():
    """Why one NAT VM a side is active: a new flow may not go out by one of them and back by the other."""
    plan = planned(small())
    topology = expected_topology(plan)
    other = replace(topology.subnets["natVm2"], routes=tuple(
        replace(route, private_ip="198.18.3.195") if route.destination == HOSTS else route
        for route in topology.subnets["natVm2"].routes
    ))  # fmt: skip
    astray = replace(topology, subnets={**topology.subnets, "natVm2": other})
    syn = Packet(src="10.0.0.100", dst="198.18.0.2", protocol="tcp", dport=80)
    traced = Tracer(astray).trace("customer1/vm1", syn)
    assert (traced.disposition, traced.reply is not None) == (Disposition.NO_MAPPING, True)
    assert Tracer(astray).trace("customer1/vm1", replace(syn, segment=Segment.GOES_ON)).reply is not None
    assert Tracer(topology).trace("customer1/vm1", syn).disposition is Disposition.DELIVERED


@pytest.mark.sweep
@pytest.mark.parametrize(("vm", "rules"), [("natVm1a", 6), ("natVm2a", 4)])
def test_each_rule_that_lets_errors_pass_is_missed_by_a_declared_flow(vm, rules):
    plan = planned(small())
    topology = expected_topology(plan)
    chain = topology.vms[vm].rules.filter.chain("NATPOD-ERRORS").rules
    passing = [rule for rule in chain if isinstance(rule.target, Accept)]
    assert len(passing) == rules
    for gone in passing:
        broken = edited(topology, vm, "NATPOD-ERRORS", lambda rules, gone=gone: [r for r in rules if r != gone])
        assert found(plan, broken) == {ERROR_LOST}, gone


@pytest.mark.sweep
def test_errors_that_pass_as_in_most_rule_sets_are_found():
    plan = planned(small())
    related = first(Rule(Match(ctstate=("ESTABLISHED", "RELATED")), Accept()))
    assert FOREIGN_ERROR in found(plan, edited(expected_topology(plan), "natVm1a", "NATPOD-FORWARD", related))


# --- the VCN's own addresses -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_health_port_answers_nobody_but_the_balancer_s_subnet():
    plan = planned(small())
    topology = expected_topology(plan)
    everybody = first(Rule(Match(protocol="tcp", destination_port=Ports.one(8198)), Accept()))
    assert OPEN_PORT in found(plan, edited(topology, "natVm1a", "NATPOD-INPUT", everybody))


@pytest.mark.slow
def test_what_gets_in_one_way_is_named():
    """An LPG leads to every address that the VCN itself has, and sources are known by their addresses only."""
    proof = prove(planned(small()))
    ways = {(way.sender, way.vm) for way in proof.one_way}
    # management is 10.0.0.0/16, so the customers have sources of it, and need not even forge.
    assert {("customer1/stranger", "natVm2a"), ("customer1/stranger", "vrouter")} <= ways
    assert not any(way.sender.startswith("customer") for way in proof.ways_in)


@pytest.mark.slow
def test_management_s_ssh_is_answered_by_nat_vm2_and_through_it_by_nat_vm1():
    ways = {(way.sender, way.vm) for way in prove(planned(small())).ways_in}
    assert ("management/stranger", "natVm2b") in ways
    assert ("natVm2a", "natVm1b") in ways
    assert ("management/mgmt", "natVm1a") not in ways
