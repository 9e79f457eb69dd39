"""The move to a routed POD with packets: both PODs stand in one network, and customers switch while flows are open.

The steps are those of the sheet (`python -m nat_pod move`, docs/move.md): a customer's route rules lead to the new
POD's LPG, and with them the vRouter's routes to its hosts.  Each is taken back once.  The old POD is the article's,
with `static`, a second server, and a customer that may call only that one: some flows only a server may open.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_lab import edited_user_data
from test_move import sheet_of
from test_moving import both

from nat_pod.lab.apply import packed_topology
from nat_pod.lab.failover import Step, Watched, held_flows
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.pages.move import MoveSheet
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.topology import Topology

pytestmark = pytest.mark.lab

PATIENCE = 14.0


def pods_of(dev: dict, policy: str) -> tuple[PodPlan, PodPlan, MoveSheet]:
    dev["sourceNat"] = policy
    dev["management"]["servers"]["patch"] = "10.0.0.101"
    dev["customers"]["customer2"]["servers"] = ["patch"]
    dev["addresses"]["management/patch"] = {"natVm1": "198.18.0.6", "natVm2": "198.18.0.134"}
    sheet, old, new = sheet_of(dev)
    return old, plan_pod(new, "new"), sheet


@pytest.fixture
def pods(dev: dict) -> tuple[PodPlan, PodPlan, MoveSheet]:
    return pods_of(dev, "static")


def with_macs(topology: Topology) -> Topology:
    """Nobody plans them; the same for the same names."""
    names = sorted([*topology.vnics, *topology.balancers])
    macs = {name: f"02:00:17:{at >> 8:02x}:{at & 255:02x}:01" for at, name in enumerate(names)}
    return replace(
        topology,
        vnics={name: replace(vnic, mac=macs[name]) for name, vnic in topology.vnics.items()},
        balancers={name: replace(one, mac=macs[name]) for name, one in topology.balancers.items()},
    )


def stands(lab: Lab) -> None:
    """Wait until the new POD's balancers call all their NAT VMs healthy: nobody switches before (docs/move.md)."""
    end = time.monotonic() + 60
    while any(len(state["healthy"]) < 2 for state in lab.call("balancers").values()):
        assert time.monotonic() < end
        time.sleep(0.1)


def networks(pods: tuple[PodPlan, PodPlan, MoveSheet]) -> Iterator[tuple[str, set[str]]]:
    """What is done, and who has switched then: each customer goes, comes back, and goes for good."""
    old, _, _ = pods
    done: set[str] = set()
    for customer in old.customer_cidrs:
        yield f"{customer} switches", done | {customer}
        yield f"{customer} comes back", done
        done = done | {customer}
        yield f"{customer} switches for good", done


def test_no_flow_is_lost_whichever_step_is_taken_or_taken_back(pods):
    old, new, sheet = pods
    topology = with_macs(both(old, new, sheet, set(), set()))
    flows = held_flows(old, tcp=200, udp=80)
    assert {held.one_way for held in flows} == {True, False}
    with Lab(topology) as lab, Watched(lab.key, old, topology, flows) as many:
        stands(lab)
        outcomes = []
        for what, switched in networks(pods):
            after = packed_topology(with_macs(both(old, new, sheet, switched, switched)))
            outcomes.append(many.step(Step(what=what), act=lambda after=after: lab.call("apply", topology=after)))
        # And then the old POD may go: nothing passes it any more.
        for vm in old.vms:
            lab.call("fail", vm=vm.key, hang=False)
        outcomes.append(many.step(Step(what="the old POD is gone")))
    assert [(one.what, one.tcp, one.udp, one.lost) for one in outcomes] == [
        *((what, 200, 80, ()) for what, _ in networks(pods)),
        ("the old POD is gone", 200, 80, ()),
    ]
    print([(one.what, round(one.pause, 1)) for one in outcomes])


def test_from_masquerade_the_connections_end_that_the_sheet_names_in_the_step_that_it_names(dev):
    old, new, sheet = pods_of(dev, "masquerade")
    topology = with_macs(both(old, new, sheet, set(), set()))
    done: set[str] = set()
    with Lab(topology) as lab, Watched(lab.key, old, topology, held_flows(old, tcp=60, udp=0), PATIENCE) as few:
        stands(lab)
        for step in (step for step in sheet.steps if step.customer):
            done = {*done, str(step.customer)}
            after = packed_topology(with_macs(both(old, new, sheet, done, done)))
            outcome = few.step(Step(what=step.title), act=lambda after=after: lab.call("apply", topology=after))
            lost = {(held.flow.sender, held.flow.receiver) for held, _ in outcome.lost}
            assert lost == {(end.sender, end.receiver) for end in step.ends}, outcome.lost
            assert lost, "or this shows nothing"


def test_where_the_new_pod_takes_up_no_flow_in_its_middle_those_of_a_customer_that_switches_die(pods):
    """tcp_loose off on the new NAT VM1s: a flow that they have not seen the SYN of is none."""
    old, new, sheet = pods
    topology = with_macs(both(old, new, sheet, set(), set()))
    strict = topology
    for vm in new.vms:
        if vm.side == "natVm1":
            strict = edited_user_data(strict, vm.key, lambda text: text.replace("tcp_loose = 1", "tcp_loose = 0"))
    flows = held_flows(old, tcp=60, udp=0)
    after = with_macs(both(old, new, sheet, {"customer1"}, {"customer1"}))
    after = replace(after, vms={**after.vms, **{vm.key: strict.vms[vm.key] for vm in new.vms}})
    with Lab(strict) as lab, Watched(lab.key, old, strict, flows, PATIENCE) as few:
        stands(lab)
        outcome = few.step(Step(what=""), act=lambda: lab.call("apply", topology=packed_topology(after)))
    customers = {
        next(name.realm for name in (held.flow.sender, held.flow.receiver) if name and not name.is_server)
        for held, _ in outcome.lost
    }
    assert customers == {"customer1"}
