"""The tracer and load balancers: the choice, what dies there, and what security rules say on the way.

The network is that of test_balancer.py, where packets take the same ways: a1 sends to s1 by the balancer in front of
n1 and n2 (the backup); answers lead straight back.
"""

from dataclasses import replace

import pytest
from small_networks import change
from test_balancer import BALANCER, N1, N2, network

from nat_pod.errors import UnknownRuleError
from nat_pod.trace.decisions import Balanced
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.topology import Backend, SecurityRule, Topology
from nat_pod.trace.walk import Packet, Trace, Tracer, trace

TO_S1 = Packet(src="10.0.0.2", dst="172.16.0.9")


def traced(topology: Topology, *down: str, packet: Packet = TO_S1) -> Trace:
    return trace(topology, "a1", packet, down=down)


def way(found: Trace) -> list[str]:
    """The backend of each load balancer that the request passes."""
    return [decision.receiver.name for decision in found.request.decisions if isinstance(decision, Balanced)]


@pytest.mark.parametrize(
    ("flags", "down", "by"),
    [
        ({}, (), "n1"),  # n2 comes first in the list, and is the backup
        ({}, ("n2",), "n1"),
        ({}, ("n1",), "n2"),
        ({"backends": (Backend(address=N2), Backend(address=N1, is_backup=True))}, (), "n2"),
        ({"backends": (Backend(address="10.0.2.77"), Backend(address=N1))}, (), "n1"),  # nobody has that address
    ],
)
def test_the_first_healthy_backend_that_is_no_backup_gets_it(flags, down, by):
    found = traced(network(**flags), *down)
    assert (found.disposition, way(found)) == (Disposition.DELIVERED, [by])
    assert [hop.at for hop in found.request.hops] == [f"a1 -> {by}", f"{by} -> s1"]


def test_its_choice_is_a_step_of_its_own():
    step = next(step for step in traced(network(), "n2").request.steps if step.phase == "load balancer")
    assert (step.machine, step.rule) == ("nlb-balancer", "to n1; n2 is down")
    both = next(step for step in traced(network()).request.steps if step.phase == "load balancer")
    assert both.rule == "to n1; n2 stands by"


def test_a_packet_is_passed_on_as_it_came():
    for step in traced(network()).request.steps:
        assert step.before == step.after == ("10.0.0.2", "172.16.0.9")


def test_with_nobody_healthy_it_ends_there():
    found = traced(network(), "n1", "n2")
    assert found.disposition is Disposition.NOT_BALANCED
    assert found.why == "load balancer balancer has no healthy backend (10.0.2.3, 10.0.2.2)"
    assert found.request.steps[-1].phase == "load balancer"


def test_one_that_fails_open_sends_it_to_a_dead_machine():
    found = traced(network(is_fail_open=True), "n1", "n2")
    assert (found.disposition, found.why) == (Disposition.NOT_FORWARDING, "n1 is down")


def test_its_own_address_takes_nothing():
    found = traced(network(), packet=replace(TO_S1, dst=BALANCER.address))
    assert found.disposition is Disposition.NOT_BALANCED
    assert found.why == "10.0.2.4 is load balancer balancer itself, which takes nothing"


def test_a_machine_that_is_down_answers_nobody():
    found = traced(network(), "s1")
    assert (found.disposition, found.why) == (Disposition.NOT_FORWARDING, "s1 is down")


INTO = SecurityRule(direction="INGRESS", protocol="all", peer="10.0.0.0/16", stateless=True)
OUT_OF = SecurityRule(direction="EGRESS", protocol="all", peer="172.16.0.0/24", stateless=True)


def fenced(*security: SecurityRule) -> Topology:
    """The balancer's subnet lets nothing pass; its own NSG has these rules, the backends' have all of them."""
    topology = network(nsgs=("lb",), security=security)
    change(topology.subnets, "g", security=())
    for name in ("n1", "n2"):
        everything = (replace(INTO, peer="0.0.0.0/0"), replace(OUT_OF, peer="0.0.0.0/0"))
        change(topology.vnics, f"{name}-vnic-1", security=everything)
    return topology


def test_security_rules_of_its_own_vnic_let_the_packet_in_and_out():
    assert traced(fenced(INTO, OUT_OF)).disposition is Disposition.DELIVERED


@pytest.mark.parametrize(
    ("security", "why"),
    [
        ((OUT_OF,), "no ingress security rule of VNIC balancer lets a packet from 10.0.0.2 pass"),
        ((INTO,), "no egress security rule of VNIC balancer lets a packet to 172.16.0.9 pass"),
    ],
)
def test_without_one_of_them_it_dies_at_the_balancer(security, why):
    found = traced(fenced(*security))
    assert (found.disposition, found.why) == (Disposition.SECURITY_RULE, why)


def test_a_backend_may_name_the_balancers_nsg_as_source():
    topology = fenced(INTO, OUT_OF)
    for name, nsg in (("n1", "lb"), ("n2", "lb")):
        rules = (SecurityRule(direction="INGRESS", protocol="all", peer=nsg, peer_is_nsg=True, stateless=True),)
        change(topology.vnics, f"{name}-vnic-1", security=(*rules, replace(OUT_OF, peer="0.0.0.0/0")))
    assert traced(topology).disposition is Disposition.DELIVERED


def test_a_security_rule_of_its_own_that_means_nothing_is_refused():
    with pytest.raises(UnknownRuleError, match="VNIC balancer"):
        Tracer(fenced(INTO, replace(OUT_OF, protocol="gre")))


def test_what_a_packet_stands_for_ends_where_the_balancer_begins():
    """The interval around a destination: all that the route leads to the balancer, no address more."""
    lost = traced(network(), packet=replace(TO_S1, dst="172.16.0.77"))
    assert lost.disposition is Disposition.NO_PRIVATE_IP
    first, last = lost.request.alike[1]
    assert (first, last) == (0xAC10000A, 0xAC1000FF)
