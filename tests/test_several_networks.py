"""Neighbours with several networks: those of a VCN, larger and smaller ones behind it.

customer1 has a VCN, a /12 behind it and one machine somewhere else; customer2 two networks of a VCN's size.  Management
has all of 10.0.0.0/8 behind the vRouter, customers' ranges included, and another network.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import routed_pods
from conftest import project_with, stack_mapping
from netaddr import IPNetwork
from test_isolation import PROTOCOLS, arrivals, declared, everybody, hostile, pod_addresses, shot, shots
from test_observe import comparable

from nat_pod.config import any_config
from nat_pod.errors import ConfigError
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import build, stand_up
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.names import MANAGEMENT, NAT_VM1, NAT_VM2, MemberName
from nat_pod.pages.handover import handover
from nat_pod.pages.handover_page import sheet_markdown
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.rules.netfilter import Chain, Goto, Rule, Ruleset
from nat_pod.trace.counter_examples import ERROR_LOST, NOT_DELIVERED
from nat_pod.trace.expected import expected_topology, with_host
from nat_pod.trace.flows import refused_flows, stranger_addresses
from nat_pod.trace.proof import prove
from nat_pod.trace.topology import Topology
from nat_pod.trace.vcn_blocks import blocks_of
from nat_pod.trial.neighbours import neighbours_of

NETWORKS = {
    "management": ["10.0.0.0/8", "192.168.0.0/24"],
    "customer1": ["10.0.0.0/24", "172.16.0.0/12", "192.168.7.1/32"],
    "customer2": ["10.0.1.0/24", "10.64.0.0/16"],
}
MEMBERS = {
    "management": {"mgmt": "10.0.0.100", "hub": "10.200.1.5", "rack": "192.168.0.20"},
    "customer1": {"vm1": "10.0.0.100", "mill": "172.20.5.100", "till": "192.168.7.1"},
    "customer2": {"vm2": "10.0.1.100", "far": "10.64.3.7"},
}
DELIVERIES = ("privateIps", "routes")


def several(delivery: str, **more: Any) -> dict[str, Any]:
    """The POD above, with its address book."""
    mapping = routed_pods.small() if delivery == "routes" else stack_mapping("dev")
    mapping.pop("subnets", None)
    mapping["management"] |= {"cidr": NETWORKS[MANAGEMENT], "servers": MEMBERS[MANAGEMENT], "vrouter": "198.18.3.250"}
    for name, customer in mapping["customers"].items():
        customer |= {"cidr": NETWORKS[name], "hosts": MEMBERS[name]}
    mapping["customers"]["customer2"]["servers"] = ["mgmt", "rack"]
    return routed_pods.allocated({**copy.deepcopy(mapping), "addresses": {}, **more})


def planned(mapping: dict[str, Any]) -> PodPlan:
    return plan_pod(any_config.read(mapping, "several"), "several")


@pytest.fixture(params=DELIVERIES)
def mapping(request: pytest.FixtureRequest) -> dict[str, Any]:
    return several(request.param)


# --- what is planned -------------------------------------------------------------------------------------------------


def test_every_network_is_routed_and_let_in(mapping):
    plan = planned(mapping)
    routes = {
        (rule.customer, rule.destination)
        for table in (NAT_VM1, NAT_VM2)
        for rule in plan.routes[table]
        if rule.customer is not None or rule.private_ip == plan.vrouter_ip
    }
    expected = {(None if name == MANAGEMENT else name, cidr) for name, cidrs in NETWORKS.items() for cidr in cidrs}
    assert routes == expected
    keys = {rule.key: rule.peer for rule in plan.security[NAT_VM1] if rule.direction == "INGRESS"}
    assert {key: peer for key, peer in keys.items() if "customer" in key} == {
        "ingress-customer1": "10.0.0.0/24",
        "ingress-customer1-172.16.0.0/12": "172.16.0.0/12",
        "ingress-customer1-192.168.7.1/32": "192.168.7.1/32",
        "ingress-customer2": "10.0.1.0/24",
        "ingress-customer2-10.64.0.0/16": "10.64.0.0/16",
    }
    keys = {rule.key: rule.peer for rule in plan.security[NAT_VM2]}
    for direction in ("ingress", "egress"):
        assert keys[f"{direction}-management"] == "10.0.0.0/8"
        assert keys[f"{direction}-management-192.168.0.0/24"] == "192.168.0.0/24"


def test_one_more_network_or_one_less_renames_no_rule_of_the_others(mapping):
    def keys(cidrs: list[str]) -> dict[str, str]:
        fewer = copy.deepcopy(mapping)
        fewer["customers"]["customer2"] = {"cidr": cidrs, "hosts": {}}
        fewer["addresses"] = {name: slot for name, slot in mapping["addresses"].items() if "customer2" not in name}
        return {rule.key: rule.peer for rules in planned(fewer).security.values() for rule in rules}

    two, three = keys(["10.0.1.0/24", "10.64.0.0/16"]), keys(["10.0.1.0/24", "10.9.0.0/16", "10.64.0.0/16"])
    assert two.items() < three.items()
    assert {key.split("-", 1)[1] for key in three.keys() - two.keys()} == {"customer2-10.9.0.0/16"}


def test_a_list_of_one_network_is_that_network(mapping):
    mapping["customers"]["customer2"] |= {"cidr": "10.0.1.0/24", "hosts": {"vm2": "10.0.1.100"}}
    del mapping["addresses"]["customer2/far"]
    alone = planned(mapping)
    mapping["customers"]["customer2"]["cidr"] = ["10.0.1.0/24"]
    assert planned(mapping) == alone


def test_more_networks_than_an_nsg_has_rules_for_are_refused_before_anything_is_made(mapping):
    mapping["customers"]["customer2"]["cidr"] = [*NETWORKS["customer2"], *(f"10.70.{n}.0/24" for n in range(60))]
    with pytest.raises(ConfigError, match=r"natVm1 needs \d+ NSG rules; OCI has 120"):
        planned(mapping)
    mapping["customers"]["customer2"]["cidr"] = [*NETWORKS["customer2"], *(f"10.70.{n}.0/24" for n in range(40))]
    planned(mapping)


# --- what passes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_whatever_is_sent_from_any_network_only_what_is_declared_arrives(mapping):
    proof = prove(planned(mapping))
    assert proof.counter_examples == ()
    assert {sweep.realm for sweep in proof.sweeps} == {"customer1", "customer2", MANAGEMENT}
    assert sum(count.pairs for count in proof.counts if count.what == "declared") == 3 * 3 + 2 * 2 + 3 * 5


def test_with_addresses_of_their_own_too():
    assert prove(planned(several("privateIps", sourceNat="static"))).counter_examples == ()


def test_there_is_a_stranger_in_each_network_with_room_for_one(mapping):
    plan = planned(mapping)
    assert {str(name): address for name, address in stranger_addresses(plan).items()} == {
        "customer1/stranger": "10.0.0.253",
        "customer1/stranger-172.16.0.0": "172.20.255.253",
        "customer2/stranger": "10.0.1.253",
        "customer2/stranger-10.64.0.0": "10.64.255.253",
        "management/stranger": "10.0.255.253",
        "management/stranger-192.168.0.0": "192.168.0.253",
    }
    tried = {flow.sender for flow in refused_flows(plan)}
    assert tried >= set(stranger_addresses(plan)) | {"customer1/mill", "customer2/far", "management/rack"}


def without_route(plan: PodPlan, table: str, destination: str) -> PodPlan:
    rules = tuple(rule for rule in plan.routes[table] if rule.destination != destination)
    assert len(rules) == len(plan.routes[table]) - 1
    return replace(plan, routes={**plan.routes, table: rules})


def without_peer(plan: PodPlan, nsg: str, peer: str) -> PodPlan:
    rules = tuple(rule for rule in plan.security[nsg] if rule.peer != peer)
    assert len(rules) == len(plan.security[nsg]) - 2
    return replace(plan, security={**plan.security, nsg: rules})


BROKEN: dict[str, tuple[Callable[[PodPlan], PodPlan], set[str]]] = {
    "no route to a network behind a customer's VCN": (
        lambda plan: without_route(plan, NAT_VM1, "172.16.0.0/12"), {"customer1/mill"},
    ),
    "no route to one machine": (lambda plan: without_route(plan, NAT_VM1, "192.168.7.1/32"), {"customer1/till"}),
    "no route to management's second network": (
        lambda plan: without_route(plan, NAT_VM2, "192.168.0.0/24"), {"management/rack"},
    ),
    "no security rule for a customer's second network": (
        lambda plan: without_peer(plan, NAT_VM1, "10.64.0.0/16"), {"customer2/far"},
    ),
    "no security rule for management's second network": (
        lambda plan: without_peer(plan, NAT_VM2, "192.168.0.0/24"), {"management/rack"},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken", [next(iter(BROKEN)), *(pytest.param(one, marks=pytest.mark.sweep) for one in list(BROKEN)[1:])]
)
def test_what_is_left_out_for_one_network_stops_its_members_and_no_others(broken):
    leave_out, stopped = BROKEN[broken]
    for delivery in DELIVERIES:
        plan = planned(several(delivery))
        lost = [one for one in prove(leave_out(plan)).counter_examples if one.kind == NOT_DELIVERED]
        members = {slot.nat_vm1: slot.member for slot in plan.servers} | {h.nat_vm2: h.member for h in plan.hosts}
        assert lost
        assert [one for one in lost if not stopped & {one.sender, members[one.destination]}] == []
        assert {member for one in lost for member in (one.sender, members[one.destination])} >= stopped


def without_source(topology: Topology, vm: str, source: str) -> Topology:
    """One NAT VM without the rules that lead packets, or errors, from a network into a chain."""
    rules = topology.vms[vm].rules
    assert rules is not None

    def kept(rule: Rule) -> bool:
        return not (isinstance(rule.target, Goto) and rule.match.source == source)

    tables = [
        replace(table, chains=tuple(Chain(c.name, tuple(filter(kept, c.rules))) for c in table.chains))
        for table in rules.tables
    ]
    assert tables != list(rules.tables)
    return replace(topology, vms={**topology.vms, vm: replace(topology.vms[vm], rules=Ruleset(*tables))})


def test_without_the_nat_vms_rule_for_one_network_its_packets_and_its_errors_are_lost():
    plan = planned(several("privateIps"))
    found = prove(plan, without_source(expected_topology(plan), "natVm1", "172.16.0.0/12")).counter_examples
    assert {one.sender for one in found if one.kind == NOT_DELIVERED} == {"customer1/mill"}
    assert {one.source for one in found if one.kind == ERROR_LOST} == {"172.16.0.0"}


@pytest.mark.slow
def test_a_router_of_one_network_reports_about_a_flow_of_the_other_and_another_customers_does_not(mapping):
    """Only the rule for errors is taken away: flows pass, and errors of that network's routers do not."""
    plan = planned(mapping)
    vms = [vm for vm in expected_topology(plan).vms.values() if vm.side is NAT_VM1]
    topology = expected_topology(plan)
    for vm in vms:
        rules = vm.rules
        assert rules is not None
        chains = tuple(
            Chain(c.name, tuple(rule for rule in c.rules if rule.match.source != "10.64.0.0/16"))
            if c.name == "NATPOD-ERRORS"
            else c
            for c in rules.filter.chains
        )
        cut = replace(vm, rules=Ruleset(replace(rules.filter, chains=chains), rules.nat))
        topology = replace(topology, vms={**topology.vms, vm.name: cut})
    found = prove(plan, topology).counter_examples
    assert {(one.kind, one.source) for one in found} == {(ERROR_LOST, "10.64.0.0")}
    about = {one.why.split(":")[0] for one in found}
    assert any("customer2/vm2" in why for why in about)
    assert any("customer2/far" in why for why in about)


@pytest.mark.sweep
def test_customers_whose_networks_lie_between_each_others_have_chains_of_their_own():
    """A branch of a tree has the network around its hosts in its name: here 10.3.0.0/20 is around both customers'."""
    mapping = several("privateIps")
    mapping["cidr"], mapping["management"]["vrouter"] = "198.18.0.0/21", "198.18.7.250"
    for number in (3, 4):
        thirds = [number, number + 8]
        mapping["customers"][f"customer{number}"] = {
            "cidr": [f"10.3.{third}.0/24" for third in thirds],
            "hosts": {f"n{third}-{last}": f"10.3.{third}.{last}" for third in thirds for last in range(10, 24)},
        }
    for number in range(5, 11):
        mapping["customers"][f"customer{number}"] = {"cidr": [f"10.{number}.0.0/24", f"10.{number}.9.0/24"], "hosts": {
            "a": f"10.{number}.0.9", "b": f"10.{number}.9.9",
        }}  # fmt: skip
    for policy in ("masquerade", "static"):
        plan = planned(routed_pods.allocated({**mapping, "sourceNat": policy, "addresses": {}}))
        for vm in plan.vms:
            for table in vm.rules.tables:
                names = [chain.name for chain in table.chains]
                assert len(names) == len(set(names))
        tables = plan.vm("natVm1").rules.nat
        assert len([chain for chain in tables.chains if chain.name.startswith("NATPOD-C-10.3.")]) > 4
        assert prove(plan).counter_examples == ()


# --- the networks themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "addresses", "blocks"),
    [
        (["10.0.0.0/24"], ["10.0.0.9"], ["10.0.0.0/24"]),
        (["10.1.0.0/16", "10.0.0.0/24"], [], ["10.1.0.0/16", "10.0.0.0/24"]),
        (["10.0.0.0/8"], [], ["10.0.0.0/16"]),
        (["10.0.0.0/8"], ["10.9.0.5", "10.2.3.4", "10.9.9.9"], ["10.2.0.0/16", "10.9.0.0/16"]),
        (["192.168.7.9/32"], ["192.168.7.9"], ["192.168.7.0/24"]),
        (["192.168.7.1/32"], ["192.168.7.1"], ["192.168.6.0/23"]),
        (["192.168.0.1/32"], ["192.168.0.1"], ["192.168.0.0/16"]),
        (["192.168.7.8/31", "192.168.7.99/32"], ["192.168.7.9", "192.168.7.99"], ["192.168.7.0/24"]),
        (["192.168.7.128/25", "192.168.7.99/32"], ["192.168.7.129"], ["192.168.7.0/24"]),
    ],
)
def test_of_which_blocks_the_vcn_of_a_neighbour_is_made(networks, addresses, blocks):
    assert list(blocks_of(networks, addresses)) == blocks


@pytest.mark.slow
def test_the_observed_network_is_the_planned_one(mapping, tmp_path):
    region, plan, deployment = stood_up(tmp_path, mapping)
    assert deployment.warnings == ()
    planned_topology, observed = comparable(expected_topology(plan)), comparable(observe(region))
    assert observed == planned_topology
    assert observe(region).vcns["customer1"].cidrs == ("10.0.0.0/24", "172.20.0.0/16", "192.168.6.0/23")
    assert observe(region).vcns[MANAGEMENT].cidrs == ("10.0.0.0/16", "10.200.0.0/16", "192.168.0.0/24")


def stood_up(directory: Path, mapping: dict[str, Any]) -> Any:
    mapping = {**mapping, "compartmentId": "ocid1.compartment.oc1..aaaa"}
    config = {"oci:region": "uk-london-1", **{f"nat-pod:{key}": value for key, value in mapping.items()}}
    return stand_up(project_with(directory, "several", json.dumps({"config": config})), "several")


@pytest.mark.slow
def test_networks_come_and_go_in_a_region_that_stands(mapping, tmp_path):
    """OCI's provider adds and removes one CIDR block at a time."""
    region, plan, deployment = stood_up(tmp_path, mapping)
    fewer = copy.deepcopy(mapping)
    fewer["customers"]["customer1"] |= {"cidr": "10.0.0.0/24", "hosts": {"vm1": "10.0.0.100"}}
    fewer["addresses"] = {name: slot for name, slot in mapping["addresses"].items()
                          if name not in ("customer1/mill", "customer1/till")}  # fmt: skip
    build(planned(fewer), region, deployment.outputs)
    assert observe(region).vcns["customer1"].cidrs == ("10.0.0.0/24",)
    assert "customer1/mill" not in observe(region).vms
    build(plan, region, deployment.outputs)
    assert comparable(observe(region)) == comparable(expected_topology(plan))


def test_a_trial_makes_only_the_blocks_that_its_machines_stand_in():
    mapping = several("routes")
    mapping["management"]["servers"] |= {f"s{number}": f"10.{number}.0.9" for number in range(100, 120)}
    plan = planned(routed_pods.allocated({**mapping, "addresses": {}}))
    chosen = {MemberName(MANAGEMENT, "mgmt"), MemberName(MANAGEMENT, "s117"), MemberName("customer1", "vm1")}
    made = neighbours_of(plan, "several", only=chosen)
    assert list(made.management.subnets.values()) == ["10.0.0.0/16", "10.117.0.0/16", "192.168.0.0/24"]
    assert set(made.management.subnets) == {MANAGEMENT, "management-10.117.0.0/16", "management-192.168.0.0/24"}
    assert len(neighbours_of(plan, "several").management.subnets) == 23


def test_anybody_in_a_large_network_can_be_asked_about(mapping):
    topology = expected_topology(planned(mapping))
    name = MemberName(MANAGEMENT, "10.77.1.2")
    more = with_host(topology, name, "10.77.1.2")
    assert more.vcns[MANAGEMENT].cidrs == (*topology.vcns[MANAGEMENT].cidrs, "10.77.0.0/16")
    assert more.subnets[more.vnics[f"{name}-vnic-1"].subnet].cidr == "10.77.0.0/16"
    assert with_host(topology, name, "10.200.9.9").vcns == topology.vcns


# --- pages -----------------------------------------------------------------------------------------------------------


def test_a_neighbours_page_names_its_networks_and_what_those_behind_its_vcn_need(mapping):
    plan = planned(mapping)
    page = " ".join(sheet_markdown(handover(plan, "several", "customer1")).split())
    assert "Your networks, 10.0.0.0/24, 172.16.0.0/12 and 192.168.7.1/32, and management's servers talk" in page
    assert "OCI has transit routing" in page
    page = " ".join(sheet_markdown(handover(plan, "several", MANAGEMENT)).split())
    assert "the POD routes 10.0.0.0/8 and 192.168.0.0/24 to it" in page
    assert page.count("at the vRouter's VNIC: servers to the POD") == 2
    mapping["customers"]["customer2"] |= {"cidr": "10.0.1.0/24", "hosts": {}}
    del mapping["addresses"]["customer2/far"], mapping["addresses"]["customer2/vm2"]
    page = " ".join(sheet_markdown(handover(planned(mapping), "several", "customer2")).split())
    assert "Your VCN, 10.0.1.0/24, and" in page
    assert "transit" not in page


# --- with packets ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=DELIVERIES)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PodPlan, Lab]]:
    """Without standbys, with customers who lead everything to the POD and have switched every check off."""
    more = {"standby": False} if request.param == "routes" else {}
    region, plan, _ = stood_up(tmp_path_factory.mktemp("several"), several(request.param, **more))
    with Lab(hostile(observe(region), plan)) as lab:
        yield plan, lab


@pytest.mark.lab
def test_packets_of_every_network_reach_whom_they_may_and_nobody_else(lab):
    plan, network = lab
    wanted = declared(plan)
    destinations = dict.fromkeys([*pod_addresses(plan), *(slot.nat_vm1 for slot in plan.slots)])
    destinations = dict.fromkeys([*destinations, *(slot.nat_vm2 for slot in plan.slots)])
    flows = shots(everybody(plan), destinations)
    expected = {shot(flow): wanted[key] for flow in flows if (key := (flow.source_vm, flow.destination)) in wanted}
    assert len(expected) == len(PROTOCOLS) * len(wanted) == 3 * 28
    assert {vm for vm, *_ in expected} == {slot.member for slot in plan.slots}
    assert arrivals(network, flows, wanted=expected) == expected


@pytest.mark.lab
def test_a_stranger_of_one_network_who_forges_anothers_stranger_reaches_nobody(lab):
    plan, network = lab
    strangers = stranger_addresses(plan)
    senders = [(vm, source) for vm in strangers for source in strangers.values()]
    flows = shots(senders, [*(s.nat_vm1 for s in plan.servers), *(h.nat_vm2 for h in plan.hosts)])
    assert any(IPNetwork("172.16.0.0/12").first < IPNetwork(flow.source_address).first for flow in flows)
    assert arrivals(network, flows) == {}
