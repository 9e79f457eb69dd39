"""A side is a role, not a VM: with a second NAT VM on each side, whoever asks the plan gets both.

No configuration makes such a plan yet.  The VMs are put beside the others by hand, with VNICs of their own in the same
subnets, and nobody's route leads to them: what is declared must be delivered as before.
"""

import json
from collections import Counter
from dataclasses import replace

import pytest
from netaddr import IPNetwork
from test_status import NOW, reported

from nat_pod.config.addressing import free_addresses
from nat_pod.config.model import PodConfig
from nat_pod.names import NAT_VM1, NAT_VM2, SIDES, Side
from nat_pod.pages import drawing
from nat_pod.pages.journey import journey
from nat_pod.plan.model import NatVmPlan, PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.status.compare import compare
from nat_pod.status.report import read_report
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.flows import declared_flows
from nat_pod.trace.proof import prove
from nat_pod.trace.walk import Disposition, Packet, trace


def with_standbys(plan: PodPlan) -> PodPlan:
    """The plan with `natVm1-standby` and `natVm2-standby`: the same rules, primary VNICs only."""
    return replace(plan, vms=tuple(vm for side in SIDES for vm in (*plan.vms_on(side), standby(plan, side))))


def standby(plan: PodPlan, side: Side) -> NatVmPlan:
    first = plan.vms_on(side)[0]
    key, primary = f"{first.key}-standby", first.vnics[0]
    subnet = next(subnet for subnet in plan.subnets if subnet.key == primary.subnet)
    own = next(free_addresses(IPNetwork(subnet.cidr), plan.addresses_on(side)))
    vnic = replace(primary, key=f"{key}-vnic-1", vm=key, primary=own, secondaries=())
    return replace(first, key=key, vnics=(vnic,))


@pytest.fixture
def plan(dev: dict) -> PodPlan:
    return plan_pod(PodConfig.from_mapping({**dev, "sourceNat": "static"}, "dev"), "dev")


def test_the_plan_answers_for_a_side_with_all_its_vms(plan):
    both = with_standbys(plan)
    for side in SIDES:
        assert [vm.key for vm in both.vms_on(side)] == [side, f"{side}-standby"]
        assert {vm.nsg for vm in both.vms_on(side)} == {side}
        own = both.vm(f"{side}-standby").vnics[0]
        assert own in both.vnics_on(side)
        assert own.primary in both.addresses_on(side)
        assert own.primary not in both.addresses_on(side.other)
        assert both.primary(side) == plan.primary(side)
    with pytest.raises(KeyError):
        plan.vm("natVm1-standby")


def test_the_second_vm_is_in_the_subnet_and_the_nsg_of_its_side_and_has_a_label(plan):
    topology = expected_topology(with_standbys(plan))
    for side in SIDES:
        first, second = topology.vms[side], topology.vms[f"{side}-standby"]
        one, two = topology.vnics[first.vnics[0]], topology.vnics[second.vnics[0]]
        assert (two.subnet, two.nsgs, two.security) == (one.subnet, one.nsgs, one.security)
        assert two.addresses != one.addresses
        assert (second.side, second.rules) == (first.side, first.rules)
        assert (first.label, second.label) == (side.label, f"{side.label}-standby")


def test_what_is_declared_is_delivered_beside_vms_that_no_route_leads_to(plan):
    both = with_standbys(plan)
    topology = expected_topology(both)
    for flow in declared_flows(both):
        traced = trace(topology, flow.sender, Packet(src=flow.source, dst=flow.destination), flow.receiver)
        assert traced.disposition is Disposition.DELIVERED, flow


@pytest.mark.slow
def test_trace_all_looks_at_the_second_vms_too(plan):
    """Nobody may be delivered by a standby's own address, and what its rules do for nobody is told."""
    found = prove(with_standbys(plan))
    assert {one.sender for one in found.counter_examples} <= {f"{side}-standby" for side in SIDES}
    before = {(one.realm, one.what): one.pairs for one in prove(plan).counts}
    # One more address to try from each realm, of the standby on its side: for its members, and its stranger.
    senders = Counter(slot.member.realm for slot in plan.slots) + Counter(plan.realms.keys())
    more: Counter[str] = Counter()
    for one in found.counts:
        more[one.realm] += one.pairs - before.get((one.realm, one.what), 0)
    assert more == senders


def test_what_both_vms_of_a_side_count_is_added_up(plan):
    both = with_standbys(plan)
    one = {str(side): read_report(json.dumps(reported(plan, side))) for side in SIDES}
    two = one | {f"{side}-standby": one[side] for side in SIDES}
    alone = compare(plan, one, NOW).members
    assert any(member.tried for member in alone)
    for single, double in zip(alone, compare(both, two, NOW).members, strict=True):
        for count in ("tried", "opened", "received"):
            assert getattr(double, count) == (getattr(single, count) and 2 * getattr(single, count))
        assert double.open == single.open + single.open
    silent = two | {f"{side}-standby": "it is off" for side in SIDES}
    assert compare(both, silent, NOW).members == alone


def test_a_picture_shows_each_side_once_with_the_vm_in_use(plan):
    sender, receiver = plan.hosts[0], plan.servers[0]
    for each in (plan, with_standbys(plan)):
        flow = journey(each, sender, receiver)
        assert [stretch.end for stretch in flow.stretches[:2]] == [NAT_VM1, NAT_VM2]
    assert drawing.draw(with_standbys(plan), "x", flow) == drawing.draw(plan, "x", flow)
