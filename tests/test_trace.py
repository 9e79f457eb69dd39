"""The tracer: hand-made rule sets first (does it understand rules?), then the network around them.

Address plan: the article's.  Customer 1 is 10.0.0.0/24 (vm1 .100, vm2 .130), customer 2 is 10.0.1.0/24 (vm2 .100),
management is 10.0.0.0/16 (mgmt 10.0.0.100); NAT VM1 is 198.18.0.2, .3, .34, NAT VM2 is 198.18.0.130, .131, .66.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from nat_pod.config.model import PodConfig
from nat_pod.config.services import Ports
from nat_pod.errors import UnknownRuleError
from nat_pod.names import MANAGEMENT, MemberName
from nat_pod.plan.planner import plan_pod
from nat_pod.rules.netfilter import (
    OPENING,
    Accept,
    Chain,
    Dnat,
    Drop,
    Goto,
    Hook,
    Match,
    Netmap,
    Rule,
    Ruleset,
    Snat,
    Table,
)
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology, with_host
from nat_pod.trace.topology import Route, SecurityRule, Subnet, Topology, Vm
from nat_pod.trace.walk import Packet, Tracer, trace

CUSTOMER1 = "customer1/vm1"
MGMT = "management/mgmt"


@pytest.fixture
def topology(dev: dict) -> Topology:
    return expected_topology(plan_pod(PodConfig.from_mapping(dev, "dev"), "dev"))


def changed(topology: Topology, part: str, name: str, **changes: object) -> Topology:
    """The topology with one thing in it replaced."""
    things = dict(getattr(topology, part))
    things[name] = replace(things[name], **changes)
    return replace(topology, **{part: things})


def with_nat(
    topology: Topology, vm: str, pre: tuple[Rule, ...], post: tuple[Rule, ...] = (), **more: Chain
) -> Topology:
    """The topology with hand-made nat rules on one NAT VM, and its guard."""
    old = topology.vms[vm].rules
    assert old is not None
    chains = (Chain("NATPOD-PRE", pre), Chain("NATPOD-POST", post), *more.values())
    nat = Table("nat", (Hook("PREROUTING", "NATPOD-PRE"), Hook("POSTROUTING", "NATPOD-POST")), chains)
    return changed(topology, "vms", vm, rules=Ruleset(old.filter, nat))


def mgmt_to(destination: str) -> Packet:
    return Packet(src="10.0.0.100", dst=destination)


def test_a_packet_is_among_those_that_it_stands_for(dev):
    """Two addresses of one VNIC with the check on: what is known of the first must not be said of the second."""
    dev["customers"]["customer2"]["hosts"] |= {"vm3": "10.0.1.101", "vm4": "10.0.1.102"}
    dev["addresses"]["customer2/vm3"] = {"natVm1": "198.18.0.4", "natVm2": "198.18.0.132"}
    dev["addresses"]["customer2/vm4"] = {"natVm1": "198.18.0.5", "natVm2": "198.18.0.133"}
    checked = without_skip_on_vm1(expected_topology(plan_pod(PodConfig.from_mapping(dev, "dev"), "dev")))
    tracer = Tracer(checked)
    for last in (5, 3, 4):
        leg = tracer.request("customer1/vm1", Packet(src="10.0.0.100", dst=f"198.18.0.{last}"))
        for value, (low, high) in zip(leg.sent, leg.alike, strict=True):
            assert low <= value <= high


def test_many_flows_through_one_topology_leave_nothing_behind_for_one_another(topology):
    """A flow that conntrack knows meets no rule; the second of two equal flows must meet what the first met."""
    tracer = Tracer(topology)
    for _ in range(2):
        for destination in ("198.18.0.130", "198.18.0.66", "198.18.0.9"):
            traced = tracer.trace(MGMT, mgmt_to(destination))
            assert traced == trace(topology, MGMT, mgmt_to(destination))


# --- rules -----------------------------------------------------------------------------------------------------------


def test_the_first_matching_rule_wins_and_later_ones_are_not_looked_at(topology):
    first = Rule(Match(destination="198.18.0.130/32"), Dnat("198.18.0.3"))
    second = Rule(Match(destination="198.18.0.130/32"), Dnat("198.18.0.2"))
    one = with_nat(topology, "natVm2", (first, second), (Rule(Match(), Snat("198.18.0.130")),))
    other = with_nat(topology, "natVm2", (second, first), (Rule(Match(), Snat("198.18.0.130")),))
    assert trace(one, MGMT, mgmt_to("198.18.0.130")).request.reached == "customer2/vm2"
    assert trace(other, MGMT, mgmt_to("198.18.0.130")).request.reached == "customer1/vm1"


def test_goto_does_not_come_back_to_the_chain_it_left(topology):
    side = Chain("NATPOD-SIDE", (Rule(Match(destination="198.18.0.99/32"), Dnat("198.18.0.3")),))
    behind = Rule(Match(), Dnat("198.18.0.2"))
    went = with_nat(topology, "natVm2", (Rule(Match(), Goto("NATPOD-SIDE")), behind), side=side)
    stayed = with_nat(topology, "natVm2", (Rule(Match(source="1.2.3.4/32"), Goto("NATPOD-SIDE")), behind), side=side)
    assert trace(went, MGMT, mgmt_to("198.18.0.130")).disposition is Disposition.NO_MAPPING
    assert trace(stayed, MGMT, mgmt_to("198.18.0.130")).request.hops[1].dst == "198.18.0.2"


@pytest.mark.parametrize(
    ("target", "source_behind"),
    [
        (Snat("198.18.0.130"), "198.18.0.130"),
        (Snat("198.18.0.131"), "198.18.0.131"),
        (Netmap("198.18.0.64/27"), "198.18.0.68"),  # 10.0.0.100 is 4 in its /27
    ],
)
def test_each_source_translation_gives_its_own_source(topology, target, source_behind):
    pre = (Rule(Match(), Dnat("198.18.0.2")),)
    traced = trace(with_nat(topology, "natVm2", pre, (Rule(Match(), target),)), MGMT, mgmt_to("198.18.0.130"))
    assert traced.request.hops[1].src == source_behind


@pytest.mark.parametrize(
    ("match", "hits"),
    [
        (Match(source="10.0.0.100/32"), True),
        (Match(source="10.0.0.101/32"), False),
        (Match(destination="198.18.0.128/27"), True),
        (Match(destination="198.18.0.128/31"), False),
        (Match(protocol="icmp", icmp_type=8), True),
        (Match(protocol="icmp", icmp_type=3), False),
        (Match(protocol="tcp"), False),
        (Match(ctstate=("NEW",)), True),
        (Match(ctstate=("RELATED", "ESTABLISHED")), False),
        (Match(in_interface="lo"), False),
    ],
)
def test_a_match_holds_only_when_each_of_its_conditions_does(topology, match, hits):
    pre = (Rule(match, Dnat("198.18.0.2")),)
    traced = trace(with_nat(topology, "natVm2", pre), MGMT, mgmt_to("198.18.0.130"))
    assert (len(traced.request.hops) > 1) is hits


def looped() -> tuple[Chain, ...]:
    return (
        Chain("NATPOD-PRE", (Rule(Match(), Goto("NATPOD-SIDE")),)),
        Chain("NATPOD-SIDE", (Rule(Match(source="1.2.3.4/32"), Goto("NATPOD-PRE")),)),
    )


# What the tracer understands, and beside it what it must refuse.  All rules are ones that this packet does not meet or
# that do not match it: a rule that is passed over in silence is as bad as one that is taken for another.
RULES = {
    "an interface": (Match(in_interface="lo"), Match(in_interface="ens3"), "it knows no interface but lo"),
    "an interface that only looks like lo": (Match(in_interface="lo"), Match(in_interface="lo+"), "no interface but"),
    "a state": (Match(ctstate=("RELATED",)), Match(ctstate=("UNTRACKED",)), "it knows the states DNAT, ESTABLISHED,"),
    "a state among known ones": (Match(ctstate=("RELATED", "INVALID")), Match(ctstate=("RELATED", "x")), "the states"),
    "a protocol": (Match(protocol="udp"), Match(protocol="sctp"), "it knows the protocols icmp, tcp, udp"),
    "a port": (
        Match(protocol="udp", destination_port=Ports.one(9)),
        Match(destination_port=Ports.one(9)),
        "a port goes with tcp or udp",
    ),
    "a source port": (
        Match(protocol="tcp", source_port=Ports.one(9)),
        Match(protocol="icmp", source_port=Ports.one(9)),
        "a port goes with",
    ),
    "an ICMP type": (Match(protocol="icmp", icmp_type=3), Match(protocol="tcp", icmp_type=3), "an ICMP type with icmp"),
    "TCP flags": (Match(protocol="tcp", tcp_flags=OPENING), Match(protocol="tcp", tcp_flags="ACK ACK"), "of TCP flags"),
    "TCP flags without TCP": (Match(protocol="tcp", tcp_flags=OPENING), Match(tcp_flags=OPENING), "which go with tcp"),
    "a source": (Match(source="1.2.3.4/32"), Match(source="2001:db8::1/128"), "it knows IPv4 networks"),
    "a destination": (Match(destination="1.2.3.0/24"), Match(destination="a set"), "it knows IPv4 networks"),
}


@pytest.mark.parametrize("place", ["NATPOD-PRE", "NATPOD-POST", "NATPOD-FORWARD", "NATPOD-INPUT", "behind a jump"])
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("refused", [False, True], ids=["known", "unknown"])
def test_a_match_that_the_tracer_does_not_know_is_refused_wherever_it_stands(topology, refused, kind, place):
    known, unknown, sentence = RULES[kind]
    broken = with_rule(topology, place, Rule(unknown if refused else known, TARGET_IN[place]))
    with pytest.raises(UnknownRuleError, match=sentence) if refused else nullcontext():
        assert trace(broken, MGMT, mgmt_to("198.18.0.131")).disposition is Disposition.DELIVERED


TARGET_IN = {
    "NATPOD-PRE": Dnat("198.18.0.2"),
    "NATPOD-POST": Snat("198.18.0.2"),
    "NATPOD-FORWARD": Accept(),
    "NATPOD-INPUT": Accept(),
    "behind a jump": Dnat("198.18.0.2"),
}
NEVER = Match(source="1.2.3.4/32")


def with_rule(topology: Topology, place: str, rule: Rule) -> Topology:
    """The topology with a rule of NAT VM2 in front of all others in a chain, or in one that no packet gets into."""
    old = topology.vms["natVm2"].rules
    assert old is not None
    side = ()
    if place == "behind a jump":
        place, side, rule = "NATPOD-PRE", (Chain("NATPOD-SIDE", (rule,)),), Rule(NEVER, Goto("NATPOD-SIDE"))
    tables = [
        replace(
            table,
            chains=(
                *(replace(c, rules=(rule, *c.rules)) if c.name == place else c for c in table.chains),
                *(side if table.name == "nat" else ()),
            ),
        )
        for table in (old.filter, old.nat)
    ]
    return changed(topology, "vms", "natVm2", rules=Ruleset(*tables))


@pytest.mark.parametrize(
    ("place", "known", "unknown"),
    [
        ("NATPOD-PRE", Dnat("198.18.0.2"), Snat("198.18.0.2")),
        ("NATPOD-PRE", Netmap("198.18.0.0/27"), Accept()),
        ("NATPOD-PRE", Netmap("198.18.0.0/27"), Drop()),
        ("NATPOD-PRE", Goto("NATPOD-HOSTS"), Goto("NATPOD-NOWHERE")),
        ("NATPOD-PRE", Goto("NATPOD-HOSTS"), Goto("NATPOD-PRE")),
        ("NATPOD-PRE", Goto("NATPOD-HOSTS"), Goto("NATPOD-POST")),  # to the right one, but with SNAT in it
        ("NATPOD-POST", Snat("198.18.0.2"), Dnat("198.18.0.2")),
        ("NATPOD-FORWARD", Accept(), Dnat("198.18.0.2")),
        ("NATPOD-INPUT", Drop(), Netmap("198.18.0.0/27")),
        ("NATPOD-PRE", Dnat("198.18.0.2"), Dnat("198.18.0.2:80")),
        ("NATPOD-PRE", Dnat("198.18.0.2"), Dnat("198.18.0.2-198.18.0.9")),
        ("NATPOD-POST", Snat("198.18.0.2"), Snat("2001:db8::1")),
        ("NATPOD-POST", Netmap("198.18.0.0/27"), Netmap("198.18.0.0/27 random")),
    ],
)
def test_a_target_without_a_meaning_in_its_place_is_refused_and_not_skipped(topology, place, known, unknown):
    trace(with_rule(topology, place, Rule(NEVER, known)), MGMT, mgmt_to("198.18.0.131"))
    with pytest.raises(UnknownRuleError, match="the tracer cannot follow this rule and predicts nothing"):
        trace(with_rule(topology, place, Rule(NEVER, unknown)), MGMT, mgmt_to("198.18.0.131"))


def test_chains_that_lead_round_in_a_circle_are_refused(topology):
    old = topology.vms["natVm2"].rules
    assert old is not None
    circle = Table("nat", (Hook("PREROUTING", "NATPOD-PRE"),), looped())
    with pytest.raises(UnknownRuleError, match=r"jump to chain NATPOD-PRE of nat: .*; it leads round in a circle"):
        trace(changed(topology, "vms", "natVm2", rules=Ruleset(old.filter, circle)), MGMT, mgmt_to("198.18.0.131"))


@pytest.mark.parametrize(
    "hooks",
    [
        (Hook("OUTPUT", "NATPOD-PRE"),),
        (Hook("INPUT", "NATPOD-PRE"),),
        (Hook("PREROUTING", "NATPOD-PRE"), Hook("PREROUTING", "NATPOD-POST")),
    ],
)
def test_a_chain_entered_where_the_tracer_does_not_look_is_refused(topology, hooks):
    old = topology.vms["natVm2"].rules
    assert old is not None
    rules = Ruleset(old.filter, replace(old.nat, hooks=hooks))
    with pytest.raises(UnknownRuleError, match="it follows one in each of PREROUTING and POSTROUTING of nat"):
        trace(changed(topology, "vms", "natVm2", rules=rules), MGMT, mgmt_to("198.18.0.131"))


SECURITY = SecurityRule(direction="INGRESS", protocol="all", peer="1.2.3.4/32")
SECURITY_RULES = {
    "a direction": ({"direction": "EGRESS"}, {"direction": "BOTH"}, "it is for INGRESS or EGRESS"),
    "a protocol": ({"protocol": "50"}, {"protocol": "tcp"}, "its protocol is all or a number, e.g. 6"),
    "a protocol number": ({"protocol": "255"}, {"protocol": "256"}, "its protocol is all or a number, e.g. 6"),
    "ports": ({"protocol": "6", "destination_ports": (1, 2)}, {"destination_ports": (1, 2)}, "ports go with TCP"),
    "an ICMP type": ({"protocol": "1", "icmp_type": 3}, {"protocol": "6", "icmp_type": 3}, "type goes with ICMP"),
    "an ICMP code": (
        {"protocol": "1", "icmp_type": 3, "icmp_code": 4},
        {"protocol": "1", "icmp_code": 4},
        "an ICMP code goes with its type",
    ),
    "the other end": (
        {"peer": "pod/nsg", "peer_is_nsg": True},
        {"peer": "all-fra-services-in-oracle-services-network"},
        "the other end is an IPv4 network or an NSG",
    ),
}


@pytest.mark.parametrize("owner", ["vnics", "subnets"])
@pytest.mark.parametrize("kind", SECURITY_RULES)
@pytest.mark.parametrize("refused", [False, True], ids=["known", "unknown"])
def test_a_security_rule_that_the_tracer_does_not_know_is_refused(topology, refused, kind, owner):
    known, unknown, sentence = SECURITY_RULES[kind]
    rule = replace(SECURITY, **(unknown if refused else known))
    there = getattr(topology, owner)["natVm2-vnic-1"]
    broken = changed(topology, owner, there.name, security=(*there.security, rule))
    with pytest.raises(UnknownRuleError, match=sentence) if refused else nullcontext():
        assert trace(broken, MGMT, mgmt_to("198.18.0.131")).disposition is Disposition.DELIVERED


def test_a_stateful_rule_lets_the_reply_pass_and_a_stateless_one_does_not(topology):
    """The customer's subnet lets the request in and nothing out: twice, as a way that is known already is another."""
    incoming = replace(SECURITY, peer="0.0.0.0/0")
    stateful = Tracer(changed(topology, "subnets", "customer2", security=(incoming,)))
    for _ in range(2):
        traced = stateful.trace(MGMT, mgmt_to("198.18.0.131"), "customer2/vm2")
        assert traced.disposition is Disposition.DELIVERED
        assert traced.reply is not None
        assert next(step.rule for step in traced.reply.steps if step.phase == "security egress") == (
            "VNIC customer2/vm2-vnic-1: reply of a flow that a stateful rule let pass"
        )
    stateless = changed(topology, "subnets", "customer2", security=(replace(incoming, stateless=True),))
    traced = trace(stateless, MGMT, mgmt_to("198.18.0.131"), "customer2/vm2")
    assert (traced.disposition, traced.why) == (
        Disposition.SECURITY_RULE,
        "the reply: no egress security rule of VNIC customer2/vm2-vnic-1 lets a packet to 198.18.0.2 pass",
    )


@pytest.mark.parametrize(
    ("code", "fate"), [(None, Disposition.DELIVERED), (0, Disposition.DELIVERED), (1, Disposition.SECURITY_RULE)]
)
def test_an_echo_has_code_0(topology, code, fate):
    """A rule for another code lets none pass."""
    only = replace(SECURITY, protocol="1", icmp_type=8, peer="0.0.0.0/0", stateless=True)
    subnet = topology.subnets["customer2"]
    others = tuple(rule for rule in subnet.security if rule.direction == "EGRESS")
    lets = changed(topology, "subnets", "customer2", security=(*others, replace(only, icmp_code=code)))
    assert trace(lets, MGMT, mgmt_to("198.18.0.131")).disposition is fate


@pytest.mark.parametrize(
    ("route", "refused"),
    [
        (Route(destination="1.2.3.0/24", private_ip="198.18.0.2"), False),
        (Route(destination="1.2.3.0/24", lpg="pod/customer1"), False),
        (Route(destination="1.2.3.0/24"), True),
        (Route(destination="1.2.3.0/24", lpg="pod/customer1", private_ip="198.18.0.2"), True),
        (Route(destination="all-fra-services-in-oracle-services-network", lpg="pod/customer1"), True),
    ],
)
@pytest.mark.parametrize(("part", "owner"), [("subnets", "natVm2-vnic-1"), ("lpgs", "pod/customer1")])
def test_a_route_rule_that_the_tracer_does_not_know_is_refused(topology, part, owner, route, refused):
    there = getattr(topology, part)[owner]
    broken = changed(topology, part, owner, routes=(*(there.routes or ()), route))
    with pytest.raises(UnknownRuleError, match=f"route rule of {owner}, ") if refused else nullcontext():
        assert trace(broken, MGMT, mgmt_to("198.18.0.131")).disposition is Disposition.DELIVERED


def test_a_machine_that_the_tracer_does_not_know_is_refused(topology):
    with pytest.raises(UnknownRuleError, match="machine natVm1, a firewall"):
        trace(changed(topology, "vms", "natVm1", kind="firewall"), MGMT, mgmt_to("198.18.0.131"))


@pytest.mark.parametrize(("known", "unknown"), [({"protocol": "udp"}, {"protocol": "sctp"}), ({}, {"icmp_type": 13})])
def test_a_packet_that_the_tracer_does_not_know_is_refused(topology, known, unknown):
    assert trace(topology, MGMT, replace(mgmt_to("198.18.0.131"), **known)).disposition is Disposition.DELIVERED
    with pytest.raises(UnknownRuleError, match="it sends icmp, tcp, udp, of ICMP an echo"):
        trace(topology, MGMT, replace(mgmt_to("198.18.0.131"), **unknown))


def test_a_reply_is_translated_back_by_conntrack_and_meets_no_rule(topology):
    traced = trace(topology, MGMT, mgmt_to("198.18.0.131"), "customer2/vm2")
    assert traced.disposition is Disposition.DELIVERED
    assert all(hop.rules == () for hop in traced.reply.hops)
    assert [(hop.src, hop.dst) for hop in traced.reply.hops] == [
        ("10.0.1.100", "198.18.0.2"),
        ("198.18.0.3", "198.18.0.130"),
        ("198.18.0.131", "10.0.0.100"),
    ]


# --- the network: drop one thing, and exactly that is what kills the packet ------------------------------------------


def without_forwarding(topology: Topology) -> Topology:
    return changed(topology, "vms", "natVm1", forwarding=False)


def without_skip_on_vm1(topology: Topology) -> Topology:
    return changed(topology, "vnics", "natVm1-vnic-1", skip_source_dest_check=False)


def without_vrouter_route(topology: Topology) -> Topology:
    return changed(topology, "subnets", "natVm2-vnic-1", routes=())


def without_customer_route(topology: Topology) -> Topology:
    return changed(topology, "subnets", "customer2", routes=())


def without_secondary(topology: Topology) -> Topology:
    return changed(topology, "vnics", "natVm1-vnic-1", addresses=("198.18.0.2",))


def without_peering(topology: Topology) -> Topology:
    return changed(topology, "lpgs", "pod/customer2", peer=None)


def without_guard_rules(topology: Topology) -> Topology:
    return changed(topology, "vms", "natVm1", rules=None)


def without_transit_rule(topology: Topology) -> Topology:
    security = tuple(rule for rule in topology.vnics["natVm1-vnic-1"].security if not rule.peer_is_nsg)
    return changed(topology, "vnics", "natVm1-vnic-1", security=security)


TO_CUSTOMER2 = (MGMT, "10.0.0.100", "198.18.0.131")
FROM_CUSTOMER2 = ("customer2/vm2", "10.0.1.100", "198.18.0.2")


@pytest.mark.parametrize(
    ("break_it", "flow", "disposition", "sentence"),
    [
        (without_forwarding, TO_CUSTOMER2, "not-forwarding", "nat_vm1 does not forward: net.ipv4.ip_forward is not 1"),
        (
            without_vrouter_route,
            FROM_CUSTOMER2,
            "no-route",
            "subnet natVm2-vnic-1 has no route rule for 10.0.0.100",
        ),
        (
            without_customer_route,
            FROM_CUSTOMER2,
            "no-route",
            "subnet customer2 has no route rule for 198.18.0.2",
        ),
        (
            without_customer_route,
            TO_CUSTOMER2,
            "no-route",
            "the reply: subnet customer2 has no route rule for 198.18.0.2",
        ),
        (without_secondary, TO_CUSTOMER2, "no-private-ip", "no VNIC in VCN pod has the private IP 198.18.0.3"),
        (
            without_peering,
            TO_CUSTOMER2,
            "not-peered",
            "10.0.1.0/24 via LPG pod/customer2, which is not peered",
        ),
        (
            without_transit_rule,
            TO_CUSTOMER2,
            "security-rule",
            "no ingress security rule of VNIC natVm1-vnic-1 lets a packet from 198.18.0.130 pass",
        ),
    ],
)
def test_dropping_one_thing_kills_the_flow_there_and_the_whole_network_delivers_it(
    topology, break_it, flow, disposition, sentence
):
    sender, source, destination = flow
    packet = Packet(src=source, dst=destination)
    assert trace(topology, sender, packet).disposition is Disposition.DELIVERED
    traced = trace(break_it(topology), sender, packet)
    assert (str(traced.disposition), traced.why) == (disposition, sentence)


def test_the_check_on_nat_vm1_kills_only_flows_whose_address_is_on_another_vnic(topology):
    """On one VNIC every translated source is the VNIC's own; with a second one, its replies leave by the first."""
    broken = without_skip_on_vm1(topology)
    assert trace(broken, MGMT, mgmt_to("198.18.0.131")).disposition is Disposition.DELIVERED
    assert trace(topology, MGMT, mgmt_to("198.18.0.66")).disposition is Disposition.DELIVERED
    traced = trace(broken, MGMT, mgmt_to("198.18.0.66"))
    assert traced.why == (
        "the reply: VNIC natVm1-vnic-1 may send only from its own addresses (198.18.0.2, 198.18.0.3), "
        "not from 198.18.0.34: the source/destination check is on"
    )


def test_case_6_needs_the_skipped_check_and_rp_filter_0_because_its_reply_leaves_by_the_other_vnic(topology):
    """NAT VM2 takes 198.18.0.66 on its second VNIC and answers from it by the first: the article's own reason."""
    packet = mgmt_to("198.18.0.66")
    assert trace(topology, MGMT, packet, "customer1/vm2").disposition is Disposition.DELIVERED
    strict = changed(topology, "vms", "natVm2", strict_rp_filter=True)
    checked = changed(topology, "vnics", "natVm2-vnic-1", skip_source_dest_check=False)
    assert trace(strict, MGMT, packet).disposition is Disposition.RP_FILTER
    assert trace(checked, MGMT, packet).disposition is Disposition.SOURCE_DEST_CHECK
    assert trace(strict, MGMT, mgmt_to("198.18.0.131")).disposition is Disposition.DELIVERED


def test_without_any_rules_a_mapped_packet_is_answered_by_the_nat_vm_itself(topology):
    """What the INPUT guard is for: a ping that looks fine and is not."""
    packet = Packet(src="10.0.1.100", dst="198.18.0.2")
    traced = trace(without_guard_rules(topology), "customer2/vm2", packet)
    assert traced.disposition is Disposition.ANSWERED_BY_NAT_VM


def test_without_the_guard_a_packet_to_an_unmapped_secondary_address_loops(topology):
    """What the FORWARD guard is for: the network delivers it to the same VM again and again.

    The NSG, which lets NAT VM1 send only to customers and to NAT VM2, would stop it as well; with open security rules,
    as people write them, nothing does.
    """
    packet = Packet(src="10.0.1.100", dst="198.18.0.3")
    bare = without_guard_rules(topology)
    assert trace(bare, "customer2/vm2", packet).disposition is Disposition.SECURITY_RULE
    anything = tuple(
        SecurityRule(direction=direction, protocol="all", peer="0.0.0.0/0", stateless=True)
        for direction in ("INGRESS", "EGRESS")
    )
    opened = changed(bare, "vnics", "natVm1-vnic-1", security=anything)
    assert trace(opened, "customer2/vm2", packet).disposition is Disposition.LOOP
    assert trace(topology, "customer2/vm2", packet).disposition is Disposition.NO_MAPPING


def test_a_forged_transit_source_is_stopped_by_the_nsg_even_when_the_customer_switches_its_check_off(topology):
    """The forged packet would reach another customer if NAT VM1 trusted NAT VM2's addresses instead of its VNICs."""
    forged = Packet(src="198.18.0.130", dst="198.18.0.3")
    hostile = changed(topology, "vnics", "customer1/vm1-vnic-1", skip_source_dest_check=True)
    assert trace(topology, CUSTOMER1, forged).disposition is Disposition.SOURCE_DEST_CHECK
    assert trace(hostile, CUSTOMER1, forged).disposition is Disposition.SECURITY_RULE
    by_address = tuple(
        replace(rule, peer_is_nsg=False, peer="198.18.0.128/27") if rule.peer_is_nsg else rule
        for rule in hostile.vnics["natVm1-vnic-1"].security
    )
    trusting = changed(hostile, "vnics", "natVm1-vnic-1", security=by_address)
    assert trace(trusting, CUSTOMER1, forged).request.reached == "customer2/vm2"


def test_another_machine_with_the_same_address_is_not_taken_for_the_right_one(topology):
    to_itself = with_host(topology, MemberName(MANAGEMENT, "10.0.0.130"), "10.0.0.130")
    traced = trace(to_itself, MGMT, mgmt_to("10.0.0.130"), "customer1/vm2")
    assert traced.disposition is Disposition.WRONG_MACHINE
    assert traced.why == "10.0.0.130 has that address too and answers, not customer1/vm2"


def test_neighbours_in_one_subnet_do_not_meet_its_route_table(topology):
    """A rule for the whole VCN by way of the vRouter catches what is in another subnet, and only that."""
    through = Route(destination="10.0.0.0/16", private_ip=topology.vnics["vrouter-vnic-1"].addresses[0])
    other = Subnet(name="other", vcn="management", cidr="10.0.7.0/24", security=topology.subnets["management"].security)
    split = changed(topology, "subnets", "management", routes=(through,), cidr="10.0.0.0/24")
    split = replace(split, subnets={**split.subnets, "other": other})
    near = with_host(split, MemberName(MANAGEMENT, "10.0.0.9"), "10.0.0.9")
    packet = Packet(src="10.0.0.9", dst="10.0.0.100")
    assert trace(near, "management/10.0.0.9", packet, MGMT).disposition is Disposition.DELIVERED
    assert [
        step.rule for step in trace(near, "management/10.0.0.9", packet).request.steps if step.phase == "VCN route"
    ] == ["subnet management: local to VCN management"]
    far = changed(
        with_host(near, MemberName(MANAGEMENT, "10.0.7.9"), "10.0.7.9"),
        "vnics",
        "management/10.0.7.9-vnic-1",
        subnet="other",
    )
    steps = trace(far, "management/10.0.0.9", Packet(src="10.0.0.9", dst="10.0.7.9")).request.steps
    assert next(step.rule for step in steps if step.phase == "VCN route").startswith(
        "subnet management: 10.0.0.0/16 via private IP"
    )


def test_a_host_does_not_forward_what_is_not_for_it(topology):
    astray = changed(
        topology,
        "subnets",
        "management",
        routes=(replace(topology.subnets["management"].routes[0], private_ip="10.0.0.100"),),
    )
    stray = changed(astray, "vnics", "management/mgmt-vnic-1", skip_source_dest_check=True)
    sender = with_host(stray, MemberName(MANAGEMENT, "10.0.0.7"), "10.0.0.7")
    traced = trace(sender, "management/10.0.0.7", Packet(src="10.0.0.7", dst="198.18.0.130"))
    assert traced.disposition is Disposition.NOT_FORWARDING


def test_a_vm_is_not_changed_by_a_trace(topology):
    """Each trace starts without conntrack entries of the one before."""
    one = trace(topology, MGMT, mgmt_to("198.18.0.131"))
    assert trace(topology, MGMT, mgmt_to("198.18.0.131")) == one
    assert isinstance(topology.vms["natVm1"], Vm)
