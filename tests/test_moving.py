"""While a POD moves: the network with both PODs, in which some customers have switched and the others have not.

Each set of switched customers is a network of its own, made of the two expected ones.  What is declared has to be
delivered in each of them, through one POD both ways, and what is open has to go on whichever POD a packet passes.
"""

from dataclasses import replace
from itertools import combinations

import pytest
from test_move import scattered, sheet_of

from nat_pod.names import MANAGEMENT, POD, VROUTER
from nat_pod.pages.move import MoveSheet
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.flows import Flow, declared_flows
from nat_pod.trace.topology import Route, Topology
from nat_pod.trace.walk import Leg, Packet, Segment, Trace, Tracer

SECOND = "second-"
LEG = f"{VROUTER}-vnic-3"


def both(old: PodPlan, new: PodPlan, sheet: MoveSheet, switched: set[str], led: set[str]) -> Topology:
    """Both PODs.  switched: the customers whose rules lead to the new one; led: those whose hosts the vRouter leads."""
    one, two = expected_topology(old), expected_topology(new)

    def named(subnet: str) -> str:
        return f"{SECOND}{subnet}"

    vcns = one.vcns | {SECOND + POD: replace(two.vcns[POD], name=SECOND + POD)}
    subnets = dict(one.subnets)
    for subnet in two.subnets.values():
        if subnet.vcn == POD:
            routes = tuple(
                replace(route, lpg=SECOND + route.lpg) if route.lpg is not None else route for route in subnet.routes
            )
            name = named(subnet.name)
            subnets[name] = replace(subnet, name=name, vcn=SECOND + POD, routes=routes)
    lpgs = dict(one.lpgs)
    for customer in new.customer_cidrs:
        mine, theirs = f"{customer}/lpg", f"{POD}/{customer}"
        lpgs[SECOND + mine] = replace(two.lpgs[mine], name=SECOND + mine, peer=SECOND + theirs)
        lpgs[SECOND + theirs] = replace(two.lpgs[theirs], name=SECOND + theirs, vcn=SECOND + POD, peer=SECOND + mine)
        if customer in switched:
            routes = tuple(Route(destination=cidr, lpg=SECOND + mine) for cidr in old.neighbours[customer])
            subnets[customer] = replace(subnets[customer], routes=routes)
    nat_vms = {vm.key for vm in new.vms}
    vnics = dict(one.vnics)
    for vnic in two.vnics.values():
        if vnic.vm in nat_vms:
            nsgs = tuple(named(nsg) for nsg in vnic.nsgs)
            vnics[vnic.name] = replace(vnic, subnet=named(vnic.subnet), nsgs=nsgs)
    vnics[LEG] = replace(two.vnics[f"{VROUTER}-vnic-2"], name=LEG, subnet=named(VROUTER))
    vms = one.vms | {name: vm for name, vm in two.vms.items() if name in nat_vms}
    routes = [(str(new.vcn_cidr), LEG)]
    routes += [(route, LEG) for step in sheet.steps if step.customer in led for route in step.routes]
    vms[VROUTER] = replace(
        one.vms[VROUTER], vnics=(*one.vms[VROUTER].vnics, LEG), routes=(*one.vms[VROUTER].routes, *routes)
    )
    balancers = {
        SECOND + name: replace(
            balancer, name=SECOND + name, subnet=named(balancer.subnet), nsgs=tuple(map(named, balancer.nsgs))
        )
        for name, balancer in two.balancers.items()
    }
    return Topology(vcns=vcns, subnets=subnets, lpgs=lpgs, vnics=vnics, vms=vms, balancers=balancers)


def passed(leg: Leg) -> list[str]:
    """The NAT VMs that a packet passed."""
    return [hop.end.name for hop in leg.hops if hop.end.side is not None]


def traced(tracer: Tracer, flow: Flow) -> Trace:
    packet = Packet(src=flow.source, dst=flow.destination, protocol="tcp", dport=443)
    return tracer.trace(flow.sender, packet, flow.receiver)


def whose(flow: Flow) -> str:
    """The customer of a flow."""
    assert flow.receiver is not None
    return next(realm for realm in (flow.sender.realm, flow.receiver.realm) if realm != MANAGEMENT)


def subsets(customers: list[str]) -> list[set[str]]:
    """All of them for a few customers; for many, each prefix in the sheet's order, and each customer alone."""
    if len(customers) <= 3:
        return [set(some) for size in range(len(customers) + 1) for some in combinations(customers, size)]
    return [set(customers[:size]) for size in range(len(customers) + 1)] + [{customer} for customer in customers]


@pytest.fixture(
    params=[
        "the article's",
        pytest.param("ten customers", marks=pytest.mark.sweep),
        pytest.param("years old", marks=pytest.mark.sweep),
    ]
)
def moving(request, dev, ten) -> tuple[PodPlan, PodPlan, MoveSheet]:
    mapping = {"the article's": dev, "ten customers": ten, "years old": scattered()}[request.param]
    sheet, old, config = sheet_of({**mapping, "sourceNat": "static"})
    return old, plan_pod(config, "new"), sheet


def test_whoever_has_switched_every_declared_flow_begins_and_passes_one_pod_both_ways(moving):
    old, new, sheet = moving
    news = {vm.key for vm in new.vms}
    for switched in subsets(list(new.customer_cidrs)):
        tracer = Tracer(both(old, new, sheet, switched, switched))
        for flow in declared_flows(new):
            found = traced(tracer, flow)
            assert found.disposition is Disposition.DELIVERED, (switched, flow, found.why)
            assert found.reply is not None
            there, back = passed(found.request), passed(found.reply)
            assert (len(there), back) == (2, there[::-1]), (switched, flow)
            assert (set(there) <= news) is (whose(flow) in switched), (switched, flow)


def test_a_customer_that_switches_without_the_vrouter_has_no_new_connection(moving):
    """Why both switch together: the answer comes by the other POD, whose NAT VM has not seen the call."""
    old, new, sheet = moving
    customer = next(iter(new.customer_cidrs))
    for switched, led in (({customer}, set()), (set(), {customer})):
        tracer = Tracer(both(old, new, sheet, switched, led))
        for flow in declared_flows(new):
            found = traced(tracer, flow)
            split = found.reply is None or passed(found.reply) != passed(found.request)[::-1]
            assert split is (whose(flow) == customer), (switched, flow)


def test_an_open_connection_goes_on_whichever_pod_each_of_its_packets_passes(moving):
    """Segments in the middle, both ways, in the four states of a customer: each end sees what it saw before."""
    old, new, sheet = moving
    customer = next(iter(new.customer_cidrs))
    flows = [flow for flow in declared_flows(new) if whose(flow) == customer]
    before = Tracer(both(old, new, sheet, set(), set()))
    states = [(set(), {customer}), ({customer}, set()), ({customer}, {customer})]
    tracers = [Tracer(both(old, new, sheet, *state)) for state in states]
    for flow in flows:
        begun = traced(before, flow).request
        ends = (
            (flow.sender, flow.source, flow.destination, 40_000, 443),
            (begun.reached, begun.packet.dst, begun.packet.src, 443, 40_000),
        )
        for sender, source, destination, sport, dport in ends:
            packet = Packet(
                src=source, dst=destination, protocol="tcp", sport=sport, dport=dport, segment=Segment.GOES_ON
            )
            was = before.request(sender, packet)
            for tracer in tracers:
                now = tracer.request(sender, packet)
                assert (now.reached, now.packet) == (was.reached, was.packet), (flow, now.why)
