"""What a rule can match: each field of `Match` is known to whoever reads rules, or a test fails.

The text, the agent's grammar, the tracer and the proof each have code for each field.  One that is added to `Match`
and forgotten in one of them would mean something there that it does not mean in the kernel.
"""

from dataclasses import fields, replace

import pytest
from test_agent import agent, document
from test_trace import MGMT, with_rule

from nat_pod.config.model import PodConfig
from nat_pod.config.services import Ports
from nat_pod.errors import UnknownRuleError
from nat_pod.plan.planner import plan_pod
from nat_pod.rules.iptables import hooks, parse, render, render_rule
from nat_pod.rules.netfilter import OPENING, AboveBound, Accept, Chain, Drop, Hook, Match, Rule, Ruleset, Table
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.rule_checks import covers
from nat_pod.trace.topology import Topology
from nat_pod.trace.walk import Packet, trace

# By field: a match that no packet of a flow from mgmt to customer2/vm2 meets, because of this field alone.
MISSED: dict[str, Match] = {
    "in_interface": Match(in_interface="lo"),
    "source": Match(source="1.2.3.4/32"),
    "destination": Match(destination="1.2.3.0/24"),
    "protocol": Match(protocol="udp"),
    "source_port": Match(protocol="tcp", source_port=Ports.one(9)),
    "destination_port": Match(protocol="tcp", destination_port=Ports.one(9)),
    "icmp_type": Match(protocol="icmp", icmp_type=3),
    "tcp_flags": Match(protocol="tcp", tcp_flags=OPENING, ctstate=("ESTABLISHED",)),
    "ctstate": Match(ctstate=("INVALID",)),
    "opened_from": Match(opened_from="1.2.3.0/24"),
    "answered_from": Match(answered_from="1.2.3.0/24"),
    "bound": Match(bound=AboveBound(name="NATPOD-customer1", above=252, sample=64)),
}
BARE = Match()


def without(match: Match, field: str) -> Match:
    return replace(match, **{field: getattr(BARE, field)})


def test_each_field_is_tried_here():
    assert set(MISSED) == {field.name for field in fields(Match)}
    assert all(without(match, field) != match for field, match in MISSED.items())


@pytest.mark.parametrize("field", MISSED)
def test_the_text_says_it_and_is_read_back(field):
    rule = Rule(MISSED[field], Drop())
    rules = Ruleset(
        filter=Table("filter", (Hook("FORWARD", "NATPOD-FORWARD"),), (Chain("NATPOD-FORWARD", (rule,)),)),
        nat=Table("nat", (), ()),
    )
    assert render_rule("NATPOD-FORWARD", replace(rule, match=without(rule.match, field))) not in render(rules)
    assert parse(render(rules), hooks(rules)) == rules


@pytest.mark.parametrize("field", MISSED)
def test_the_agent_takes_it_and_tells_two_rules_apart_by_it(field):
    with_it, without_it = (
        render_rule("NATPOD-FORWARD", Rule(match, Drop())) for match in (MISSED[field], without(MISSED[field], field))
    )
    text = (
        f"*filter\n:NATPOD-FORWARD - [0:0]\n{with_it}\nCOMMIT\n"
        "*nat\n:NATPOD-PRE - [0:0]\n:NATPOD-POST - [0:0]\nCOMMIT\n"
    )
    assert document(text).count() == 1
    assert agent.canonical(with_it) != agent.canonical(without_it)


@pytest.fixture
def topology(dev: dict) -> Topology:
    return expected_topology(plan_pod(PodConfig.from_mapping(dev, "dev"), "dev"))


@pytest.mark.parametrize("field", MISSED)
def test_the_tracer_lets_it_decide_or_refuses_it(topology, field):
    match = MISSED[field]
    protocol = "icmp" if match.protocol == "icmp" else "tcp"
    packet = Packet(
        src="10.0.0.100", dst="198.18.0.131", protocol=protocol, icmp_type=8 if protocol == "icmp" else None
    )

    def delivered(match: Match) -> bool:
        network = with_rule(topology, "NATPOD-FORWARD", Rule(match, Drop()))
        return trace(network, MGMT, packet).disposition is Disposition.DELIVERED

    assert not delivered(without(match, field))
    try:
        assert delivered(match)
    except UnknownRuleError:
        assert field in ("opened_from", "answered_from"), "these are followed for ICMP errors only"


@pytest.mark.parametrize("field", MISSED)
def test_the_proof_does_not_take_a_rule_for_one_that_catches_more(field):
    narrow, wide = MISSED[field], without(MISSED[field], field)
    assert covers(wide, narrow)
    assert not covers(narrow, wide)


def test_an_opening_is_a_new_flow_s_first_segment_and_no_answer(topology):
    packet = Packet(src="10.0.0.100", dst="198.18.0.131", protocol="tcp")
    opening = with_rule(topology, "NATPOD-FORWARD", Rule(Match(protocol="tcp", tcp_flags=OPENING), Drop()))
    assert trace(opening, MGMT, packet).disposition is Disposition.NO_MAPPING
    passed = with_rule(topology, "NATPOD-FORWARD", Rule(Match(protocol="tcp", tcp_flags=OPENING), Accept()))
    assert trace(passed, MGMT, packet).disposition is Disposition.DELIVERED


@pytest.mark.parametrize("field", MISSED)
def test_the_agent_does_not_take_a_living_flow_for_one_that_the_rule_drops(field):
    """An option that `_decide` does not evaluate is none to it: the agent would end every flow in that chain."""
    match = MISSED[field]
    dropped = render_rule("NATPOD-FORWARD", Rule(match, Drop()))
    text = (
        f"*filter\n:NATPOD-FORWARD - [0:0]\n{dropped}\nCOMMIT\n*nat\n:NATPOD-PRE - [0:0]\n:NATPOD-POST - [0:0]\n"
        "-A NATPOD-PRE -d 198.18.0.131/32 -j DNAT --to-destination 10.0.1.100\nCOMMIT\n"
    )
    ends = agent.number("10.0.0.100"), agent.number("198.18.0.131")
    protocol = match.protocol if field in ("source_port", "destination_port", "icmp_type", "tcp_flags") else "tcp"
    assert document(text).translate(*ends, set(), (protocol, (40000, 80))) is not None
