"""A policy with packets: what it allows arrives, what it does not reaches nobody, and open flows end with their entry.

Both deliveries, deployed by the real program.  Hosts listen at every port that is tried, so a packet that gets through
is answered whatever the port.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import project_with
from test_isolation import everybody
from test_policy import FILES, HTTPS, SSH, mapping

from nat_pod.lab.checks import expectations, judge
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire.packets import HTTP, ICMP, UDP
from nat_pod.lab.wire.probe import Probe
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.names import MemberName
from nat_pod.plan.model import PodPlan
from nat_pod.trace.topology import Topology

pytestmark = pytest.mark.lab

POLICY = [HTTPS, SSH, FILES]
OVER = {HTTP: "tcp", UDP: "udp", ICMP: "icmp"}
TRIED = [
    (ICMP, None), (UDP, 9), (UDP, 53), (UDP, 54), (HTTP, 22), (HTTP, 23), (HTTP, 80), (HTTP, 443), (HTTP, 444),
    (HTTP, 7999), (HTTP, 8000), (HTTP, 8100), (HTTP, 8101),
]  # fmt: skip


def deployed(directory: Path, pod: str, policy: list[dict]) -> tuple[PodPlan, Topology]:
    given = {**mapping(pod, policy), "compartmentId": "ocid1.compartment.oc1..aaaa"}
    if pod == "routes":
        given["standby"] = False
    config = {"oci:region": "uk-london-1", **{f"nat-pod:{key}": value for key, value in given.items()}}
    directory.mkdir()
    region, plan, deployment = stand_up(project_with(directory, "pod", json.dumps({"config": config})), "pod")
    assert deployment.warnings == ()
    return plan, observe(region)


@pytest.fixture(scope="module", params=["masquerade", "static", "routes"])
def pod(request, tmp_path_factory) -> Iterator[tuple[str, Path, PodPlan, Topology, Lab]]:
    directory = tmp_path_factory.mktemp("policy")
    plan, topology = deployed(directory / "first", request.param, POLICY)
    with Lab(topology) as lab:
        yield request.param, directory, plan, topology, lab


def test_each_flow_of_the_policy_is_answered_and_each_beside_it_reaches_nobody(pod):
    _, _, plan, topology, lab = pod
    expected = expectations(plan, topology)
    assert {(one.flow.protocol, one.flow.port) for one in expected if one.declared} >= {
        ("tcp", 443), ("tcp", 22), ("udp", 53), ("tcp", 8000), ("icmp", None), (None, None)
    }  # fmt: skip
    report = judge(topology, expected, lab.probe([one.probe() for one in expected], seconds=4.0, capture=True))
    assert [
        (one.expectation.flow.sender, one.expectation.flow.to, one.expectation.protocol, one.problems)
        for one in report.verdicts
        if one.problems
    ] == []
    assert report.passed


def test_the_whole_matrix_of_senders_addresses_protocols_and_ports(pod):
    """Every machine, strangers included, to every address that somebody has in the POD."""
    _, _, plan, _, lab = pod
    held = [address for vm in plan.vms for vnic in vm.vnics for address in (vnic.primary, *vnic.secondaries)]
    addresses = list(dict.fromkeys([*held, *(slot.nat_vm1 for slot in plan.slots), plan.vrouter_ip]))
    answering: dict[tuple[MemberName, str], MemberName] = {}
    for sender in plan.slots:
        for receiver in plan.hosts if sender.member.is_server else plan.servers:
            answering[sender.member, receiver.address(sender.member.side)] = receiver.member
    probes, wanted = [], []
    for sender, source in everybody(plan):
        for address in addresses:
            for protocol, port in TRIED:
                if source == address:
                    continue
                receiver = answering.get((sender, address))
                permitted = receiver is not None and plan.access.services(sender, receiver).permits(
                    OVER[protocol], port or 0
                )
                probes.append(
                    Probe(
                        source_vm=sender,
                        source_address=source,
                        destination=address,
                        protocol=protocol,
                        port=port,
                        forged=True,  # one packet each, and whoever gets it says so
                    )
                )
                wanted.append(str(receiver) if permitted else None)
    answers = lab.probe(probes, 1.0)
    late = [n for n, (answer, who) in enumerate(zip(answers, wanted, strict=True)) if who and not answer.ok]
    again = dict(zip(late, lab.probe([probes[n] for n in late], 20.0), strict=True))
    wrong = [
        (probe.source_vm, probe.destination, probe.protocol, probe.port, one.answered_by, who)
        for n, (probe, who) in enumerate(zip(probes, wanted, strict=True))
        for one in [again.get(n, answers[n])]
        if (one.answered_by if one.ok else None) != who
    ]
    assert wrong == []
    assert len([who for who in wanted if who]) > 30 < len([who for who in wanted if not who])


def test_a_narrower_policy_ends_the_flows_that_it_no_longer_allows_and_no_other(pod):
    """customer1 keeps its echo (port 7) to mgmt by TCP, and loses it by UDP; management's flows go on."""
    kind, directory, plan, _, lab = pod
    host, other, server = (plan.slot(name) for name in ("customer1/vm1", "customer2/vm2", "management/mgmt"))
    wide = {"from": "customer1", "to": "management", "allow": ["tcp/7", "udp/7"]}
    back = {"from": "management", "to": "customer1", "allow": ["tcp/7"]}
    apply(lab, *deployed(directory / "wide", kind, [wide, back]))
    flows = {
        1: ("tcp", host.member, server.nat_vm1),
        2: ("udp", host.member, server.nat_vm1),
        3: ("tcp", other.member, server.nat_vm1),
        4: ("udp", server.member, other.nat_vm2),
        5: ("tcp", server.member, host.nat_vm2),
    }
    lab.call("load", action="open", flows=[
        {"number": number, "protocol": protocol, "sender": sender, "destination": to, "period": 0.1}
        for number, (protocol, sender, to) in flows.items()
    ])  # fmt: skip
    assert answered(lab, set(flows)) == set(flows)
    apply(lab, *deployed(directory / "narrow", kind, [{**wide, "allow": ["tcp/7"]}, {**back, "allow": ["tcp/22"]}]))
    lab.call("load", action="mark")
    assert answered(lab, {1, 3, 4}) == {1, 3, 4}
    assert errors(lab, {1, 3, 4}) == set()
    lab.call("load", action="close", numbers=list(flows))


def apply(lab: Lab, plan: PodPlan, _: Topology) -> None:
    """Put the plan's documents into the metadata of all NAT VMs, and run a round of their agents."""
    for vm in plan.vms:
        lab.call("metadata", vm=vm.key, metadata=vm.metadata)
    for vm in plan.vms:
        done = lab.call("round", vm=vm.key)
        assert done["status"] == 0, done


def answered(lab: Lab, expected: set[int], seconds: float = 20.0) -> set[int]:
    """The flows that have answers since the mark: once the expected ones have, a moment later."""
    end = time.monotonic() + seconds
    while True:
        found = {int(n) for n, one in lab.call("load", action="report").items() if one["answers"]}
        if expected <= found or time.monotonic() > end:
            time.sleep(0.5)
            return {int(n) for n, one in lab.call("load", action="report").items() if one["answers"]}
        time.sleep(0.05)


def errors(lab: Lab, numbers: set[int]) -> set[int]:
    return {int(n) for n, one in lab.call("load", action="report").items() if one["error"] and int(n) in numbers}
