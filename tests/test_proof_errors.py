"""`trace --all` on ICMP errors and on the NAT VMs' own ports: it finds what is broken, and nothing in what is compiled.

Address plan: the article's (conftest.py).  An error is known by the inverse of the packet that it quotes.
"""

from collections.abc import Callable, Iterator

import pytest
from netaddr import IPAddress
from test_proof import edited, first, planned

from nat_pod.config.services import Ports
from nat_pod.plan.model import PodPlan
from nat_pod.rules.netfilter import Accept, Match, Rule
from nat_pod.trace.counter_examples import BELIEVED_ERROR, ERROR_LOST, FOREIGN_ERROR, NO_WAY_IN, OPEN_PORT
from nat_pod.trace.decisions import AnsweredByNatVm
from nat_pod.trace.expected import expected_topology, with_host
from nat_pod.trace.flows import declared_flows, stranger_addresses
from nat_pod.trace.proof import prove
from nat_pod.trace.topology import Topology
from nat_pod.trace.walk import NOBODYS, Packet, Tracer

POLICIES = ("masquerade", "static")


def found(plan: PodPlan, topology: Topology) -> set[tuple[str, str]]:
    return {(one.kind, one.sender) for one in prove(plan, topology).counter_examples}


# --- errors ----------------------------------------------------------------------------------------------------------


def without_rule(number: int) -> Callable[[list[Rule]], list[Rule]]:
    return lambda rules: [rule for index, rule in enumerate(rules) if index != number]


@pytest.mark.sweep
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("vm", "rules"), [("natVm1", 6), ("natVm2", 4)])
def test_each_rule_that_lets_errors_pass_is_missed_by_a_declared_flow(dev, policy, vm, rules):
    plan = planned(dev, policy)
    topology = expected_topology(plan)
    chain = topology.vms[vm].rules.filter.chain("NATPOD-ERRORS").rules
    passing = [number for number, rule in enumerate(chain) if isinstance(rule.target, Accept)]
    assert len(passing) == len(chain) - 1 == rules
    for number in passing:
        kinds = {kind for kind, _ in found(plan, edited(topology, vm, "NATPOD-ERRORS", without_rule(number)))}
        # No server has a slot in NAT VM2's second /27, so no declared flow comes from there.
        assert kinds == (set() if chain[number].match.source == "198.18.0.64/27" else {ERROR_LOST}), chain[number]


def let_errors_pass_as_usual(rules: list[Rule]) -> list[Rule]:
    return [Rule(Match(ctstate=("ESTABLISHED", "RELATED")), Accept()), *rules]


def drop_last(rules: list[Rule]) -> list[Rule]:
    return rules[:-1]


def without_related(rules: list[Rule]) -> list[Rule]:
    return [rule for rule in rules if rule.match.ctstate != ("RELATED",)]


def accept_type(number: int) -> Callable[[list[Rule]], list[Rule]]:
    return first(Rule(Match(protocol="icmp", icmp_type=number), Accept()))


def for_everybody(rules: list[Rule]) -> list[Rule]:
    """Each rule for a network is for all sources."""
    return [Rule(Match(opened_from=rule.match.opened_from), rule.target, note=rule.note) for rule in rules]


OF_CUSTOMER2 = (FOREIGN_ERROR, "customer2/stranger")
BROKEN = {
    "RELATED passes, as in most rule sets": ("natVm1", "NATPOD-FORWARD", let_errors_pass_as_usual, OF_CUSTOMER2),
    "nobody asks about RELATED, and a mapping translated it": (
        "natVm1", "NATPOD-FORWARD", without_related, OF_CUSTOMER2,
    ),
    "errors that no rule lets pass are not dropped": ("natVm1", "NATPOD-ERRORS", drop_last, OF_CUSTOMER2),
    "a customer may write about any flow": (
        "natVm1", "NATPOD-ERRORS", first(Rule(Match(source="10.0.1.0/24"), Accept())), OF_CUSTOMER2,
    ),
    "only one address of a customer may": (
        "natVm1", "NATPOD-ERRORS", first(Rule(Match(source="10.0.1.77/32"), Accept())), OF_CUSTOMER2,
    ),
    "the customer at the wrong end of the flow": (
        "natVm1", "NATPOD-ERRORS", first(Rule(Match(source="10.0.1.0/24", opened_from="10.0.0.0/24"), Accept())),
        OF_CUSTOMER2,
    ),
    "NAT VM1 believes every unreachable": (
        "natVm1", "NATPOD-INPUT", accept_type(3), (BELIEVED_ERROR, "customer1/stranger"),
    ),
    "NAT VM1 believes every time exceeded": (
        "natVm1", "NATPOD-INPUT", accept_type(11), (BELIEVED_ERROR, "customer2/stranger"),
    ),
    "NAT VM2 believes every unreachable": (
        "natVm2", "NATPOD-INPUT", accept_type(3), (BELIEVED_ERROR, "management/stranger"),
    ),
    "NAT VM1 believes whatever is RELATED": (
        "natVm1", "NATPOD-INPUT", let_errors_pass_as_usual, (BELIEVED_ERROR, "customer1/stranger"),
    ),
    "NAT VM2 believes whatever is RELATED": (
        "natVm2", "NATPOD-INPUT", let_errors_pass_as_usual, (BELIEVED_ERROR, "management/stranger"),
    ),
    "NAT VM1 believes errors about its own flows from anybody": (
        "natVm1", "NATPOD-OWN-ERRORS", for_everybody, (BELIEVED_ERROR, "customer1/stranger"),
    ),
}  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", BROKEN)
def test_an_error_that_is_let_pass_by_mistake_is_found(dev, policy, name):
    vm, chain, edit, expected = BROKEN[name]
    plan = planned(dev, policy)
    assert expected in found(plan, edited(expected_topology(plan), vm, chain, edit))


def test_a_counter_example_says_which_flow_the_error_is_about(dev):
    plan = planned(dev)
    topology = edited(expected_topology(plan), "natVm1", "NATPOD-FORWARD", let_errors_pass_as_usual)
    ones = [one for one in prove(plan, topology).counter_examples if one.sender == "customer2/stranger"]
    assert ("10.0.1.0", "198.18.0.2", "about customer1/vm1 > management/mgmt: management/mgmt gets it", 255) in [
        (one.source, one.destination, one.why, one.alike) for one in ones
    ]


def everything(plan: PodPlan, topology: Topology) -> Iterator[tuple[str, str, str | None, bool, bool]]:
    """Each network's errors about each flow on each NAT VM, one by one: writer, source, who gets it, believed, own."""
    for name, address in stranger_addresses(plan).items():
        topology = with_host(topology, name, address)
    tracer = Tracer(topology)
    writers = dict(stranger_addresses(plan))
    for flow in declared_flows(plan):
        packet = Packet(src=flow.source, dst=flow.destination, protocol="tcp", dport=80)
        tracer.trace(flow.sender, packet, flow.receiver)
        ways = [(tracked.packet, str(IPAddress(tracked.packet[2]))) for tracked in tracer.tracked()]
        for writer, source in writers.items():
            for about, to in ways:
                leg = tracer.error(writer, Packet(src=source, dst=to, icmp_type=3), about)
                own = writer.realm in {flow.sender.realm, flow.receiver.realm}
                yield writer, source, leg.reached, isinstance(leg.refusal, AnsweredByNatVm), own


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stack", ["dev", pytest.param("ten", marks=pytest.mark.sweep)])
def test_errors_one_by_one_meet_the_fate_that_one_of_each_group_met(request, stack, policy):
    """No group, no class: what the proof says of the network as it is, and of one that lets errors pass."""
    plan = planned(request.getfixturevalue(stack), policy)
    topology = expected_topology(plan)
    seen = list(everything(plan, topology))
    assert not [one for one in seen if (one[2] or one[3]) and not one[4]]
    assert [one for one in seen if one[2] and one[4]], "nothing was tried"
    broken = edited(topology, "natVm1", "NATPOD-FORWARD", let_errors_pass_as_usual)
    through = {one[0] for one in everything(plan, broken) if one[2] and not one[4]}
    assert through == {sender for kind, sender in found(plan, broken) if kind == FOREIGN_ERROR} != set()


def test_an_error_goes_where_its_flow_goes_and_a_router_s_source_becomes_the_flow_s(dev):
    """From a router of customer1, about what the server answered: the server is told, by the address it answered to."""
    plan = planned(dev)
    tracer = Tracer(expected_topology(plan))
    packet = Packet(src="10.0.0.100", dst="198.18.0.2", protocol="udp", dport=9)
    tracer.trace("customer1/vm1", packet)
    error = Packet(src="10.0.0.100", dst="198.18.0.2", icmp_type=3)
    leg = tracer.error("customer1/vm1", error, packet.key())
    assert (leg.reached, leg.packet.src, leg.packet.dst) == ("management/mgmt", "198.18.0.130", "10.0.0.100")
    nobody = tracer.error("customer1/vm1", error, NOBODYS)
    elsewhere = tracer.error("customer1/vm1", Packet(src="10.0.0.100", dst="198.18.0.3", icmp_type=3), packet.key())
    assert [one.why for one in (nobody, elsewhere)] == [
        "nat_vm1 drops 10.0.0.100 > 198.18.0.2 in INPUT: no mapping translated it",
        "nat_vm1 drops 10.0.0.100 > 198.18.0.3 in FORWARD: no mapping translated it",
    ]


# --- the NAT VMs' own ports ------------------------------------------------------------------------------------------


def accept_first(**match: object) -> Callable[[list[Rule]], list[Rule]]:
    return first(Rule(Match(**match), Accept()))


OPEN = {
    "ssh to NAT VM1 from everywhere": (
        "natVm1", accept_first(protocol="tcp", destination_port=Ports.one(22)), "customer2/stranger",
    ),
    "ssh to NAT VM2 from NAT VM1": (
        "natVm2", accept_first(source="198.18.0.0/26", protocol="tcp", destination_port=Ports.one(22)), "natVm1",
    ),
    "ping of NAT VM1": ("natVm1", accept_first(protocol="icmp", icmp_type=8), "customer1/stranger"),
    "another port": ("natVm1", accept_first(protocol="tcp", destination_port=Ports.one(8198)), "customer1/vm1"),
    "a port of UDP": ("natVm2", accept_first(protocol="udp", destination_port=Ports.one(53)), "management/stranger"),
    "DHCP from everywhere": (
        "natVm1", accept_first(protocol="udp", source_port=Ports.one(67), destination_port=Ports.one(68)),
        "customer1/stranger",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN)
def test_a_port_of_a_nat_vm_that_is_open_by_mistake_is_found(dev, name):
    vm, edit, sender = OPEN[name]
    dev["addresses"]["customer1/vm1"] = {"natVm1": "198.18.0.4", "natVm2": "198.18.0.132"}  # .2 is NAT VM1's own
    plan = planned(dev)
    assert found(plan, expected_topology(plan)) == set()
    assert (OPEN_PORT, sender) in found(plan, edited(expected_topology(plan), vm, "NATPOD-INPUT", edit))


def no_ssh(rules: list[Rule]) -> list[Rule]:
    return [rule for rule in rules if rule.match.destination_port != Ports.one(22)]


@pytest.mark.sweep
@pytest.mark.parametrize(("vm", "sender"), [("natVm2", "management/stranger"), ("natVm1", "natVm2")])
def test_a_way_in_that_is_closed_is_found(ten, vm, sender):
    plan = planned(ten)
    closed = edited(expected_topology(plan), vm, "NATPOD-INPUT", no_ssh)
    assert found(plan, closed) == {(NO_WAY_IN, sender)}


@pytest.mark.sweep
def test_ssh_is_answered_to_management_by_nat_vm2_and_behind_it_by_nat_vm1(ten):
    """A server's ssh goes through a NETMAP to the address of NAT VM1 that no host owns; docs/operate.md says so."""
    plan = planned(ten)
    ways = {(way.sender, way.vm): way.addresses for way in prove(plan).ways_in}
    servers = {(str(server.member), "natVm1"): ("198.18.6.2",) for server in plan.servers}
    assert ways == {
        **servers,
        ("management/stranger", "natVm2"): ("198.18.6.2", "198.18.6.34", "198.18.6.66"),
        ("natVm2", "natVm1"): ("198.18.4.2",),
    }
    assert plan.way_in == "198.18.4.2"


def test_ssh_to_nat_vm1_ends_at_the_host_that_owns_the_address(dev):
    """The article's POD: both addresses of NAT VM1 are hosts', so nobody's ssh is answered there."""
    assert {way.vm for way in prove(planned(dev)).ways_in} == {"natVm2"}
