"""What the compiled rules let pass, by tracing every ordered pair of machines: exactly the declared flows.

The tracer knows the rules and the network, not the mapping; so this holds the compiler to the stack file.
"""

import pytest

from nat_pod.config.model import PodConfig
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology, with_host
from nat_pod.trace.flows import declared_flows, refused_flows, stranger_addresses
from nat_pod.trace.topology import Topology
from nat_pod.trace.walk import Packet, Tracer, trace


def planned(mapping: dict, policy: str) -> tuple[PodPlan, Topology]:
    plan = plan_pod(PodConfig.from_mapping({**mapping, "sourceNat": policy}, "test"), "test")
    topology = expected_topology(plan)
    for name, address in stranger_addresses(plan).items():
        topology = with_host(topology, name, address)
    return plan, topology


@pytest.mark.parametrize("policy", ["masquerade", "static"])
@pytest.mark.parametrize("stack", ["dev", pytest.param("ten", marks=pytest.mark.sweep)])
def test_every_pair_is_delivered_exactly_when_it_is_declared(request, stack, policy):
    plan, topology = planned(request.getfixturevalue(stack), policy)
    declared = {(flow.sender, flow.destination): flow.receiver for flow in declared_flows(plan)}
    senders = {slot.member: slot.real for slot in plan.slots} | stranger_addresses(plan)
    # Every address of the NAT VMs on the sender's side, that is every way into the POD there is.
    into = {
        side: {address for vnic in plan.vm(side).vnics for address in (vnic.primary, *vnic.secondaries)}
        for side in ("natVm1", "natVm2")
    }
    tracer = Tracer(topology)
    delivered = {}
    tried = 0
    for sender, source in senders.items():
        for destination in sorted(into[sender.side]):
            tried += 1
            traced = tracer.trace(sender, Packet(src=source, dst=destination))
            if traced.disposition is Disposition.DELIVERED:
                delivered[(sender, destination)] = traced.request.reached
    assert delivered == declared
    assert tried == {"dev": 21, "ten": 4940}[stack]


@pytest.mark.parametrize("policy", ["masquerade", "static"])
@pytest.mark.parametrize("stack", ["dev", pytest.param("ten", marks=pytest.mark.sweep)])
def test_each_kind_of_forbidden_flow_dies_and_says_where(request, stack, policy):
    plan, topology = planned(request.getfixturevalue(stack), policy)
    flows = refused_flows(plan)
    kinds = {
        "stranger to a server",
        "customer to a NAT VM's ssh",
        "unmapped address",
        "customer to customer",
        "spoofed transit source",
        "unlisted management host",
    }
    assert {flow.why for flow in flows} == (kinds | {"server not in the customer's list"} if stack == "ten" else kinds)
    for flow in flows:
        packet = Packet(src=flow.source, dst=flow.destination, protocol="tcp", dport=flow.port or 80)
        traced = trace(topology, flow.sender, packet)
        assert traced.request.reached is None, flow
        assert traced.why


def test_static_shows_the_far_end_the_address_it_would_call_back(dev):
    plan, topology = planned(dev, "static")
    slots = {slot.member: slot for slot in plan.slots}
    seen = {}
    for flow in declared_flows(plan):
        traced = trace(topology, flow.sender, Packet(src=flow.source, dst=flow.destination), flow.receiver)
        seen[(flow.sender, flow.receiver)] = traced.request.packet.src
    assert seen == {
        ("customer1/vm1", "management/mgmt"): "198.18.0.130",
        ("customer1/vm2", "management/mgmt"): "198.18.0.66",
        ("customer2/vm2", "management/mgmt"): "198.18.0.131",
        ("management/mgmt", "customer1/vm1"): "198.18.0.2",
        ("management/mgmt", "customer1/vm2"): "198.18.0.2",
        ("management/mgmt", "customer2/vm2"): "198.18.0.2",
    }
    for (sender, receiver), source in seen.items():
        back = slots[sender].address(sender.side.other)
        assert source == back, receiver


def test_a_new_customer_changes_no_rule_of_the_others(dev):
    before, _ = planned(dev, "masquerade")
    dev["customers"]["zeta"] = {"cidr": "10.0.2.0/24", "hosts": {"vm": "10.0.2.9"}}
    dev["addresses"]["zeta/vm"] = {"natVm1": "198.18.0.4", "natVm2": "198.18.0.132"}
    after, _ = planned(dev, "masquerade")
    kept = {chain.name: chain for chain in after.vm("natVm1").rules.nat.chains}
    for chain in before.vm("natVm1").rules.nat.chains:
        assert set(chain.rules) <= set(kept[chain.name].rules)
    assert before.vm("natVm2").rules == after.vm("natVm2").rules
