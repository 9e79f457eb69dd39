"""The guard with packets: errors about a flow of the sender's own arrive, whatever anybody else writes does not.

An ICMP error quotes the packet that it is about.  conntrack finds the flow by that quotation alone, whoever sent the
error: so a stranger who guesses a flow's addresses and ports can write one.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import yaml
from conftest import REPOSITORY, project_with

from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire.packets import ERRORS, EXCEEDED, HTTP, ICMP, PARAMETER, TOO_BIG, UDP, UNREACHABLE, Quoted
from nat_pod.lab.wire.probe import Answer, Probe
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.names import NAT_VM1, NAT_VM2
from nat_pod.plan.model import PodPlan
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology, with_host
from nat_pod.trace.flows import stranger_addresses
from nat_pod.trace.spans import number
from nat_pod.trace.topology import Topology
from nat_pod.trace.walk import Packet, Tracer

pytestmark = pytest.mark.lab

HOST, SERVER = "customer1/vm1", "management/mgmt"
NEIGHBOUR, STRANGER, MANAGEMENT_STRANGER = "customer1/stranger", "customer2/stranger", "management/stranger"
PORT = 31000


@pytest.fixture(scope="module", params=["static", "masquerade"])
def pod(request, tmp_path_factory) -> Iterator[tuple[PodPlan, Lab]]:
    stack = yaml.safe_load((REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8"))
    stack["config"]["nat-pod:sourceNat"] = request.param
    directory = project_with(tmp_path_factory.mktemp("errors"), "dev", yaml.safe_dump(stack))
    region, plan, _ = stand_up(directory, "dev")
    with Lab(unchecked(observe(region))) as lab:
        yield plan, lab


def unchecked(topology: Topology) -> Topology:
    """With every source/destination check of the neighbours off."""
    return replace(topology, vnics={n: replace(v, skip_source_dest_check=True) for n, v in topology.vnics.items()})


def strangers(plan: PodPlan) -> dict[str, str]:
    return {str(name): address for name, address in stranger_addresses(plan).items()}


def opened(plan: PodPlan, lab: Lab, sender: str, receiver: str) -> dict[str, Quoted]:
    """Open a UDP flow; its packets as somebody may quote them, by the wire and the direction they are seen in."""
    source, target = plan.slot(sender), plan.slot(receiver)
    to = target.address(source.member.side)
    flow = Probe(source_vm=sender, source_address=source.real, destination=to, protocol=UDP, forged=True,
                 source_port=PORT)  # fmt: skip
    [answer] = lab.probe([flow])
    assert answer.ok, answer
    ends = {"near": (source.real, to), "far": (answer.seen, target.real)}
    if plan.source_nat == "static":
        ends["transit"] = (
            (source.nat_vm1, target.nat_vm2) if not source.member.is_server else (source.nat_vm2, target.nat_vm1)
        )
    else:
        first, second = plan.primary(NAT_VM1), plan.primary(NAT_VM2)
        ends["transit"] = (first, target.nat_vm2) if not source.member.is_server else (second, target.nat_vm1)
    quoted = {}
    for wire, (one, other) in ends.items():
        quoted[f"{wire}, request"] = Quoted(source=one, destination=other, protocol=UDP, sport=PORT, dport=9)
        quoted[f"{wire}, reply"] = Quoted(source=other, destination=one, protocol=UDP, sport=9, dport=PORT)
    return quoted


def errors(vm: str, source: str, to: list[str], about: list[Quoted], shapes=tuple(ERRORS)) -> list[Probe]:
    return [
        Probe(source_vm=vm, source_address=source, destination=address, forged=True, shape=shape, about=quoted)
        for address in to
        for quoted in about
        for shape in shapes
    ]


@pytest.mark.parametrize(("sender", "receiver"), [(HOST, SERVER), (SERVER, HOST)])
def test_an_error_about_another_customer_s_flow_arrives_nowhere_and_is_counted(pod, sender, receiver):
    plan, lab = pod
    quoted = opened(plan, lab, sender, receiver)
    before = dropped(lab, "natVm1")
    # From its own address, and with forged ones of the POD.
    sources = [strangers(plan)[STRANGER], plan.primary(NAT_VM2), plan.slot(SERVER).nat_vm2, plan.vrouter_ip]
    to = [plan.slot(SERVER).nat_vm1, plan.slot(HOST).nat_vm1, plan.primary(NAT_VM1)]
    flows = [error for source in sources for error in errors(STRANGER, source, to, list(quoted.values()))]
    assert arrived(flows, lab.probe(flows, seconds=1.0)) == []
    own = len(flows) // len(sources)
    assert dropped(lab, "natVm1") - before == own, "the forged ones die in the VCN, by a security rule"


def arrived(flows: list[Probe], answers: list[Answer]) -> list[tuple[Probe, str]]:
    return [(flow, str(answer.answered_by)) for flow, answer in zip(flows, answers, strict=True) if answer.ok]


def dropped(lab: Lab, vm: str) -> int:
    """Packets that the guard of a NAT VM has dropped so far."""
    rules = [line for line in lab.call("rules", vm=vm).splitlines() if "-A NATPOD-" in line and "-j DROP" in line]
    return sum(int(line[1:].partition(":")[0]) for line in rules)


@pytest.mark.parametrize(("sender", "receiver"), [(HOST, SERVER), (SERVER, HOST)])
def test_an_error_about_a_flow_of_one_s_own_network_arrives_at_its_other_end(pod, sender, receiver):
    """From a host, and from a router in its network: path MTU, port unreachable, TTL exceeded."""
    plan, lab = pod
    quoted = opened(plan, lab, sender, receiver)
    host_side, server_side = ("near", "far") if sender == HOST else ("far", "near")
    found, expected = [], []
    # Quoted is what had reached the side that reports the error.
    for vm, source, wire, hears in (
        (HOST, plan.slot(HOST).real, host_side, SERVER),
        (NEIGHBOUR, strangers(plan)[NEIGHBOUR], host_side, SERVER),
        (SERVER, plan.slot(SERVER).real, server_side, HOST),
        (MANAGEMENT_STRANGER, strangers(plan)[MANAGEMENT_STRANGER], server_side, HOST),
    ):
        came = quoted[f"{wire}, {'request' if wire == 'far' else 'reply'}"]
        # UNREACHABLE last: the ends' kernels take it for the end of the flow.
        flows = errors(vm, source, [came.source], [came], (TOO_BIG, EXCEEDED, PARAMETER, UNREACHABLE))
        answers = lab.probe(flows, seconds=1.0)
        found += [(vm, wire, answer.ok, answer.answered_by) for answer in answers]
        expected += [(vm, wire, True, hears)] * len(flows)
    assert found == expected


@pytest.mark.parametrize(("sender", "receiver"), [(HOST, SERVER), (SERVER, HOST)])
def test_the_tracer_predicts_who_gets_each_error(pod, sender, receiver):
    """Every network's, about every packet of a flow on every wire, to every address that it might be sent to."""
    plan, lab = pod
    quoted = opened(plan, lab, sender, receiver)
    topology = expected_topology(plan)
    for name, address in stranger_addresses(plan).items():
        topology = with_host(topology, name, address)
    tracer = Tracer(unchecked(topology))
    source, target = plan.slot(sender), plan.slot(receiver)
    first_packet = Packet(src=source.real, dst=target.address(source.member.side), protocol="udp", sport=PORT, dport=9)
    assert tracer.trace(sender, first_packet).disposition is Disposition.DELIVERED
    flows = [
        error
        for writer in (NEIGHBOUR, STRANGER, MANAGEMENT_STRANGER)
        for about in quoted.values()
        for error in errors(writer, strangers(plan)[writer], sorted({about.source, plan.primary(NAT_VM1)}), [about],
                            (TOO_BIG,))
    ]  # fmt: skip
    predicted = [
        tracer.error(
            flow.source_vm,
            Packet(src=flow.source_address, dst=flow.destination, icmp_type=3),
            ("udp", number(flow.about.destination), number(flow.about.source), flow.about.dport, flow.about.sport),
        ).reached
        for flow in flows
    ]
    answers = lab.probe(flows, seconds=1.0)
    assert [answer.answered_by if answer.ok else None for answer in answers] == predicted
    assert set(predicted) == {None, sender, receiver}


@pytest.mark.parametrize(("sender", "receiver"), [(HOST, SERVER), (SERVER, HOST)])
def test_a_closed_port_is_reported_to_the_one_who_asked(pod, sender, receiver):
    plan, lab = pod
    to = plan.slot(receiver).address(plan.slot(sender).member.side)
    [answer] = lab.probe([Probe(source_vm=sender, destination=to, protocol=UDP, port=7)])
    assert answer.detail == "connection refused"


BOTH = [("natVm1", NAT_VM1, STRANGER), ("natVm2", NAT_VM2, MANAGEMENT_STRANGER)]


@pytest.mark.parametrize(("vm", "side", "stranger"), BOTH)
def test_no_stranger_s_error_teaches_a_nat_vm_a_path_mtu(pod, vm, side, stranger):
    """Whatever it quotes: an echo reply of NAT VM1's to NAT VM2 was enough, and everybody's packets had 552 bytes."""
    plan, lab = pod
    own, other = plan.primary(side), plan.primary(side.other)
    quoted = [
        Quoted(source=own, destination=other, protocol=ICMP, reply=True),
        Quoted(source=own, destination=other, protocol=ICMP),
        Quoted(source=own, destination=other, protocol=UDP, sport=123, dport=123),
        Quoted(source=own, destination=other, protocol=HTTP, sport=22, dport=22),
    ]
    flows = errors(stranger, strangers(plan)[stranger], [own], quoted)
    assert arrived(flows, lab.probe(flows, seconds=1.0)) == []
    route = lab.call("run", vm=vm, argv=["ip", "route", "get", other])["stdout"]
    assert " mtu " not in route, route


def test_a_flow_of_nat_vm2_itself_keeps_its_path_mtu_whatever_management_s_strangers_write(pod):
    """The flow exists, so an error that quotes it is RELATED, and the kernel would believe it."""
    plan, lab = pod
    first, second = plan.primary(NAT_VM1), plan.primary(NAT_VM2)
    ssh = f"import socket; s = socket.socket(); s.bind(('{second}', {PORT})); s.connect_ex(('{first}', 22))"
    lab.call("run", vm="natVm2", argv=[sys.executable, "-c", ssh])
    quoted = Quoted(source=second, destination=first, protocol=HTTP, sport=PORT, dport=22)
    flows = errors(MANAGEMENT_STRANGER, strangers(plan)[MANAGEMENT_STRANGER], [second], [quoted])
    before = dropped(lab, "natVm2")
    assert arrived(flows, lab.probe(flows, seconds=1.0)) == []
    assert dropped(lab, "natVm2") - before == len(flows)
    assert " mtu " not in lab.call("run", vm="natVm2", argv=["ip", "route", "get", first])["stdout"]


@pytest.mark.parametrize(("side", "vm"), [(side, stranger) for _, side, stranger in BOTH])
def test_a_stranger_is_told_nothing(pod, side, vm):
    """Neither that its packet's time was over nor that its options are wrong nor that it is too big."""
    plan, lab = pod
    source = strangers(plan)[vm]
    flows = [
        Probe(source_vm=vm, source_address=source, destination=to, protocol=protocol, forged=True, ttl=ttl)
        for to in plan.addresses_on(side)
        for protocol in (ICMP, UDP, HTTP)
        for ttl in range(1, 6)
    ]
    answers = lab.probe(flows, seconds=0.5, capture=True)
    assert arrived(flows, answers) == []
    assert heard(answers, vm) <= {VROUTER_INSIDE}


VROUTER_INSIDE = "10.0.255.252"  # management's own machine


def heard(answers: list[Answer], vm: str) -> set[str]:
    """Who has sent a machine anything about its packets: errors quote them."""
    return {seen.src for one in answers for seen in one.packets if (seen.vm, seen.direction) == (vm, "in")}


@pytest.mark.parametrize(("sender", "receiver"), [(HOST, SERVER), (SERVER, HOST)])
def test_a_declared_flow_is_told_where_its_time_was_over(pod, sender, receiver):
    """Each machine on the way of a flow that exists, as traceroute by ICMP or TCP asks for."""
    plan, lab = pod
    opened(plan, lab, sender, receiver)
    source, target = plan.slot(sender), plan.slot(receiver)
    to = target.address(source.member.side)
    told = []
    for port in (PORT, *range(PORT + 1, PORT + 8)):  # the first one exists, the others are new, as with traceroute
        told.append([])
        for ttl in range(2, 8):
            flow = Probe(source_vm=sender, source_address=source.real, destination=to, protocol=UDP, forged=True,
                         source_port=port, ttl=ttl)  # fmt: skip
            [answer] = lab.probe([flow], seconds=0.2, capture=True)
            told[-1] += [seen.src for seen in answer.packets if (seen.vm, seen.direction) == (sender, "in")]
    # From the customer's side NAT VM1, NAT VM2, the vRouter; from management's the other way.  VCNs are silent.
    assert told == [[to] * 3 if sender == HOST else [VROUTER_INSIDE, to, to]] * len(told)


@pytest.mark.parametrize(("vm", "side", "stranger"), BOTH)
def test_forged_dhcp_ends_at_the_guard(pod, vm, side, stranger):
    plan, lab = pod
    before = dropped(lab, vm)
    [answer] = lab.probe([
        Probe(source_vm=stranger, source_address=strangers(plan)[stranger], destination=plan.primary(side),
              protocol=UDP, port=68, source_port=67, forged=True)
    ], seconds=0.5)  # fmt: skip
    assert not answer.ok
    assert dropped(lab, vm) == before + 1


def test_masquerade_refuses_and_counts_protocols_that_have_no_ports_and_static_passes_them(pod):
    plan, lab = pod
    to = plan.slot(SERVER).nat_vm1
    send = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 47); "
        f"s.sendto(bytes(40), ('{to}', 0))"
    )  # fmt: skip
    before = dropped(lab, "natVm1"), dropped(lab, "natVm2")
    for host in (HOST, "customer2/vm2"):
        lab.call("run", vm=host, argv=[sys.executable, "-c", send])
    after = dropped(lab, "natVm1"), dropped(lab, "natVm2")
    refused = 2 if plan.source_nat == "masquerade" else 0
    assert (after[0] - before[0], after[1] - before[1]) == (refused, 0)
