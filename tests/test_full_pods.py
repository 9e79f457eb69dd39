"""A POD with every slot in use: provisioned, booted with 15 and 24 VNICs per VM, and packets through every VNIC pair.

The POD is whole: the program provisions it (under mocks; `test_engine.py` has a full POD with the real engine), and
both NAT VMs boot from the metadata that it deployed, with all their VNICs, addresses and rules.  Of its hundreds of
neighbours only those stand as namespaces that send or receive here; nothing that the POD does depends on the others.
"""

from dataclasses import replace
from itertools import chain, cycle
from pathlib import Path

import pytest
import yaml
from conftest import project_with
from netaddr import IPNetwork

from bench.pods import SLASH_21, SLASH_22, full_pod, stack_config
from nat_pod.lab import checks
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire import sandbox
from nat_pod.names import NAT_VM1, NAT_VM2
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.trace.flows import Flow, flow_between, refused_flows
from nat_pod.trace.topology import VM_HOST, Topology

pytestmark = pytest.mark.lab


def project(directory: Path, cidr: str, policy: str) -> Path:
    config = stack_config(full_pod(cidr, source_nat=policy))
    return project_with(directory, "full", yaml.safe_dump({"config": config}))


def ends_and_middle(plan: PodPlan) -> list[list[SlotPlan]]:
    """The first, a middle and the last slot of each VNIC pair."""
    by_address = {slot.nat_vm1: slot for slot in plan.slots}
    chosen = []
    for vnic in plan.vm(NAT_VM1).vnics:
        held = [by_address[address] for address in (vnic.primary, *vnic.secondaries)]
        chosen.append([held[0], held[len(held) // 2], held[-1]])
    return chosen


def is_server(slot: SlotPlan) -> bool:
    return slot.member.is_server


def declared(plan: PodPlan) -> list[Flow]:
    """Each chosen slot's member calls one of the other side, in turn, and is called by it."""
    servers = cycle([slot for slot in plan.slots if is_server(slot)])
    host = next(slot for slot in plan.slots if not is_server(slot))
    flows = []
    for slot in chain.from_iterable(ends_and_middle(plan)):
        other = host if is_server(slot) else next(servers)
        flows += [flow_between(slot, other), flow_between(other, slot)]
    return flows


def refused(plan: PodPlan) -> list[Flow]:
    """The usual ones, and beside the last slot of each VNIC: the address after it, and itself from a customer."""
    server, host = (next(slot for slot in plan.slots if is_server(slot) is wanted) for wanted in (True, False))
    flows = refused_flows(plan)
    for _, _, last in ends_and_middle(plan):
        for sender, address in ((host, last.nat_vm1), (server, last.nat_vm2)):
            after = str(IPNetwork(address)[0] + 1)
            flows.append(replace(flow_between(sender, last), destination=after, receiver=None, why="unmapped address"))
        flows.append(replace(flow_between(host, last), receiver=None, why="customer to customer"))
    return flows


def with_machines_of(topology: Topology, flows: list[Flow]) -> Topology:
    """The same network without the hosts that no flow concerns."""
    used = {flow.sender for flow in flows} | {flow.receiver for flow in flows}
    vms = {name: vm for name, vm in topology.vms.items() if vm.kind != VM_HOST or name in used}
    return replace(topology, vms=vms, vnics={name: vnic for name, vnic in topology.vnics.items() if vnic.vm in vms})


def seen_by_the_far_end(plan: PodPlan, sender: str) -> str:
    """The source that a member's packets arrive with: `static` shows its own slot, `masquerade` the NAT VM."""
    slot = next(slot for slot in plan.slots if slot.member == sender)
    if plan.source_nat == "static":
        return slot.nat_vm1 if is_server(slot) else slot.nat_vm2
    return plan.vm(NAT_VM1 if is_server(slot) else NAT_VM2).vnics[0].primary


@pytest.mark.parametrize(
    ("cidr", "policy", "slots", "vnics"),
    [(SLASH_22, "masquerade", 435, 15), (SLASH_21, "static", 696, 24)],
    ids=["22-masquerade", "21-static"],
)
def test_a_full_pod_passes_packets_by_the_first_a_middle_and_the_last_slot_of_every_vnic_pair(
    tmp_path, cidr, policy, slots, vnics
):
    """As `lab check`: who answers, the source it saw, every hop of both ways; only the concerned hosts are built."""
    region, plan, deployment = stand_up(project(tmp_path, cidr, policy), "full")
    assert deployment.warnings == ()
    assert len(plan.slots) == slots
    flows = [*declared(plan), *refused(plan)]
    topology = with_machines_of(observe(region), flows)
    for vm in (NAT_VM1, NAT_VM2):
        assert len(topology.vms[vm].vnics) == vnics
        assert sum(len(topology.vnics[vnic].addresses) for vnic in topology.vms[vm].vnics) == slots

    expected = checks.expect(flows, topology)
    with sandbox.Lab(topology) as lab:
        answers = lab.probe([one.probe() for one in expected], seconds=1.0, capture=True)
    report = checks.judge(topology, expected, answers)
    assert [(v.expectation.flow, v.expectation.protocol, v.problems) for v in report.verdicts if v.problems] == []
    assert report.passed

    arrived = [v for v in report.verdicts if v.expectation.declared]
    assert len(arrived) == vnics * 3 * 2 * len(checks.PROTOCOLS)
    for verdict in arrived:
        assert verdict.answer.seen == seen_by_the_far_end(plan, verdict.expectation.flow.sender)
    taken_in = {(seen.vm, seen.nic) for v in arrived for seen in v.answer.hops if seen.direction == "in"}
    assert [sum(vm == name for vm, _ in taken_in) for name in (NAT_VM1, NAT_VM2)] == [vnics, vnics]
    died = {(v.expectation.flow.why, str(v.expectation.predicted.disposition)) for v in report.verdicts}
    assert died >= {
        ("unmapped address", "no-private-ip"),
        ("customer to customer", "no-mapping"),
        ("stranger to a server", "no-mapping"),
        ("unlisted management host", "no-mapping"),
        ("spoofed transit source", "security-rule"),
    }
