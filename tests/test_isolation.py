"""Who reaches whom on a POD of ten customers, with packets: everybody tries everything, then the hostile ones try more.

A hundred hosts, eight servers and a stranger in every network.  The customers have done what is in their hands: every
source/destination check is off, and every subnet has routes to all of 198.18.0.0/15 and 10.0.0.0/8 by the LPG.

A packet is written whole, with a token in it, and is watched for on every host.  No answer is waited for: what arrives
has leaked, whether or not anybody gets an answer.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import pytest
import yaml
from conftest import REPOSITORY, project_with
from netaddr import IPNetwork

from nat_pod.commands import cli
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire.packets import FRAGMENTS, HTTP, ICMP, REDIRECT, REPLY, TAIL, UDP
from nat_pod.lab.wire.probe import Probe
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.plan.model import PodPlan
from nat_pod.trace.flows import declared_flows, matrix, stranger_addresses
from nat_pod.trace.topology import Route, Topology

pytestmark = pytest.mark.lab

PROTOCOLS = (ICMP, HTTP, UDP)


@pytest.fixture(scope="module", params=["static", "masquerade"])
def pod(request, tmp_path_factory) -> Iterator[tuple[PodPlan, Topology, Lab]]:
    stack = yaml.safe_dump(hundred_hosts(request.param))
    directory = project_with(tmp_path_factory.mktemp("isolation"), "ten", stack)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert cli.main(["allocate", "ten"]) == cli.OK
    region, plan, _ = stand_up(directory, "ten")
    topology = hostile(observe(region), plan)
    with Lab(topology) as lab:
        yield plan, topology, lab


def hundred_hosts(policy: str) -> dict[str, object]:
    """Pulumi.ten.yaml with ten hosts a customer and eight servers; some have one another's addresses, as there."""
    stack = yaml.safe_load((REPOSITORY / "Pulumi.ten.yaml").read_text(encoding="utf-8"))
    config = stack["config"]
    config["nat-pod:sourceNat"] = policy
    for customer in config["nat-pod:customers"].values():
        for number in range(10 - len(customer["hosts"])):
            customer["hosts"][f"extra{number}"] = str(IPNetwork(customer["cidr"])[40 + number])
    servers = config["nat-pod:management"]["servers"]
    for number in range(8 - len(servers)):
        servers[f"extra{number}"] = f"10.0.{number}.41"
    return stack


def hostile(topology: Topology, plan: PodPlan) -> Topology:
    """The same POD with customers who route everything to it and have switched every check off."""
    subnets, vnics = dict(topology.subnets), dict(topology.vnics)
    for name, subnet in subnets.items():
        if subnet.vcn in plan.customer_cidrs:
            lpg = f"{subnet.vcn}/lpg"
            routes = (Route(destination="198.18.0.0/15", lpg=lpg), Route(destination="10.0.0.0/8", lpg=lpg))
            subnets[name] = replace(subnet, routes=routes)
    for name, vnic in vnics.items():
        if subnets[vnic.subnet].vcn in plan.customer_cidrs:
            vnics[name] = replace(vnic, skip_source_dest_check=True)
    return replace(topology, subnets=subnets, vnics=vnics)


def shots(
    senders: Iterable[tuple[str, str]],
    destinations: Iterable[str],
    protocols: Iterable[str] = PROTOCOLS,
    **more: object,
) -> list[Probe]:
    """A packet from each (machine, source address) to each destination, by each protocol."""
    return [
        Probe(source_vm=vm, source_address=source, destination=to, protocol=protocol, forged=True, **more)
        for (vm, source), to, protocol in itertools.product(senders, destinations, protocols)
        if source != to
    ]


Shot = tuple[str, str, str, str]  # machine, source address, destination, protocol


def arrivals(lab: Lab, flows: list[Probe], wanted: Collection[Shot] = ()) -> dict[Shot, str]:
    """What arrived anywhere within a second, and where.

    wanted: those that are sent again, for longer, when nothing has arrived: a busy machine may need more than a second.
    """

    def named(sent: list[Probe], seconds: float) -> dict[Shot, str]:
        answers = lab.probe(sent, seconds)
        return {shot(flow): str(answer.answered_by) for flow, answer in zip(sent, answers, strict=True) if answer.ok}

    found = named(flows, 1.0)
    late = [flow for flow in flows if shot(flow) in wanted and shot(flow) not in found]
    return found | named(late, 20.0)


def shot(flow: Probe) -> Shot:
    return flow.source_vm, str(flow.source_address), flow.destination, flow.protocol


def declared(plan: PodPlan) -> dict[tuple[str, str], str]:
    """(machine, address it uses) of every flow in the stack file, and who answers."""
    return {(flow.sender, flow.destination): str(flow.receiver) for flow in declared_flows(plan)}


def everybody(plan: PodPlan) -> list[tuple[str, str]]:
    """Every machine of the neighbours with its own address, strangers included."""
    return [*((slot.member, slot.real) for slot in plan.slots), *stranger_addresses(plan).items()]


def strangers(plan: PodPlan) -> list[tuple[str, str]]:
    """Those of the customers."""
    return [(name, address) for name, address in stranger_addresses(plan).items() if not name.startswith("management")]


def pod_addresses(plan: PodPlan) -> list[str]:
    """Every address that the POD has."""
    held = [address for vm in plan.vms for vnic in vm.vnics for address in (vnic.primary, *vnic.secondaries)]
    return [*held, plan.vrouter_ip]


def test_everybody_reaches_exactly_whom_the_stack_file_declares(pod):
    plan, _, lab = pod
    wanted = declared(plan)
    senders = everybody(plan)
    assert len(plan.slots) == 108
    assert len(senders) == 119
    flows = shots(senders, pod_addresses(plan))
    expected = {shot(flow): wanted[key] for flow in flows if (key := (flow.source_vm, flow.destination)) in wanted}
    found = arrivals(lab, flows, wanted=expected)
    assert {key: found[key] for key in found.keys() - expected.keys()} == {}
    assert sorted(expected.keys() - found.keys()) == []
    assert found == expected
    assert len(expected) == 3 * len(wanted)
    # What `trace --all` counts pair by pair, on the NAT VM of the sender's side.
    for flow in matrix(plan):
        for protocol in PROTOCOLS:
            assert found.get((flow.sender, flow.source, flow.destination, protocol)) == flow.receiver


def test_without_the_lpgs_route_table_a_customer_with_a_servers_address_reaches_other_customers(pod):
    """The way past NAT VM1: amber/web has the address of a server, and routes NAT VM2's range to its LPG."""
    plan, topology, _ = pod
    lpgs = {name: replace(lpg, routes=None) for name, lpg in topology.lpgs.items()}
    real = {slot.member: slot.real for slot in plan.slots}
    servers = {address for member, address in real.items() if member.startswith("management/")}
    twin = next(
        member for member, address in real.items() if address in servers and not member.startswith("management")
    )
    other = next(slot for slot in plan.slots if slot.member.realm not in (twin.split("/")[0], "management"))
    flows = shots([(twin, real[twin])], [other.nat_vm2], [UDP])
    with Lab(replace(topology, lpgs=lpgs)) as open_lab:
        assert list(arrivals(open_lab, flows).values()) == [other.member]
    assert arrivals(pod[2], flows) == {}


# --- hostile customers -----------------------------------------------------------------------------------------------


def one_of_each(plan: PodPlan) -> list[str]:
    """Addresses of both sides: all servers', one host's of each customer, all that the NAT VMs themselves have."""
    seen: set[str] = set()
    chosen = []
    for slot in plan.slots:
        realm = slot.member.realm
        if realm == "management" or realm not in seen:
            chosen += [slot.nat_vm1, slot.nat_vm2]
        seen.add(realm)
    return [*chosen, *(vnic.primary for vm in plan.vms for vnic in vm.vnics), plan.vrouter_ip]


def transit_addresses(plan: PodPlan) -> list[str]:
    """What NAT VM1 and NAT VM2 send from, a few of each."""
    vnics = [vnic for vm in plan.vms for vnic in vm.vnics]
    return [address for vnic in vnics for address in (vnic.primary, vnic.secondaries[0], vnic.secondaries[-1])]


def test_a_customer_who_forges_an_address_of_the_pod_reaches_nobody(pod):
    plan, _, lab = pod
    senders = [(vm, source) for vm, _ in strangers(plan) for source in (*transit_addresses(plan), plan.vrouter_ip)]
    flows = shots(senders, one_of_each(plan))
    assert len(flows) > 10_000
    assert arrivals(lab, flows) == {}


def test_a_customer_who_forges_another_s_address_reaches_what_that_one_may_and_no_customer(pod):
    """Only OCI could prevent it: NAT VM1 cannot see by which LPG a packet came.  The answer goes to the other.

    A management server's address is no better: NAT VM1 takes it for the customer's host that has it, or for nobody's.
    """
    plan, _, lab = pod
    members = {slot.real: slot.member for slot in plan.slots if not slot.member.is_server}
    claimed = [slot.real for slot in plan.slots]
    senders = [(vm, source) for vm, _ in strangers(plan)[:3] for source in dict.fromkeys(claimed)]
    # Not by UDP, whose echo carries the token to the one whose address it was.
    found = arrivals(lab, shots(senders, one_of_each(plan), [HTTP]))
    wanted = declared(plan)
    assert found
    for (vm, source, destination, protocol), receiver in found.items():
        assert receiver.startswith("management/"), (vm, source, destination, protocol, receiver)
        assert wanted[members[source], destination] == receiver


def test_answers_to_nothing_arrive_nowhere_and_questions_of_the_same_senders_do(pod):
    """As if somebody else had asked; not even those of a declared host, whom only its own questions let through."""
    plan, _, lab = pod
    first = [slot for slot in plan.slots if slot.member.endswith("/app")]
    senders = [*((slot.member, slot.real) for slot in first), *strangers(plan)]
    servers = [slot.nat_vm1 for slot in plan.slots if slot.member.is_server]
    others = [slot.nat_vm1 for slot in first]
    # A UDP packet does not show whether it answers: from a declared host to a declared server it is a question.
    assert arrivals(lab, shots(senders, others, shape=REPLY)) == {}
    assert arrivals(lab, shots(senders, servers, [ICMP, HTTP], shape=REPLY)) == {}
    assert set(arrivals(lab, shots(senders, servers, [ICMP, HTTP])).values()) == {
        slot.member for slot in plan.slots if slot.member.is_server
    }


def test_fragments_arrive_whole_or_not_at_all(pod):
    plan, _, lab = pod
    wanted = declared(plan)
    host = next(slot for slot in plan.slots if slot.member == "amber/app")
    servers = [slot.nat_vm1 for slot in plan.slots if slot.member.is_server]
    mine = [(host.member, host.real)]
    whole = arrivals(lab, shots(mine, servers, shape=FRAGMENTS))
    assert whole == {
        (host.member, host.real, server, protocol): wanted[host.member, server]
        for server in servers
        for protocol in PROTOCOLS
    }
    assert arrivals(lab, shots(mine, servers, shape=TAIL)) == {}
    for shape in (FRAGMENTS, TAIL):
        assert arrivals(lab, shots(strangers(plan), one_of_each(plan), shape=shape)) == {}


def test_no_port_of_any_nat_address_answers_a_stranger(pod):
    """Every TCP port of NAT VM1's first address, and a score of TCP and UDP ports on every address of the POD."""
    plan, _, lab = pod
    (vm, address), *_ = strangers(plan)
    primary = plan.vm("natVm1").vnics[0].primary
    ports = [*range(1, 20), 22, 53, 80, 111, 123, 161, 179, 443, 500, 3260, 4500, 8080, 50000]
    flows = [flow for port in ports for flow in shots([(vm, address)], pod_addresses(plan), [HTTP, UDP], port=port)]
    if plan.source_nat == "static":  # the guard is the same one under both policies
        flows += [flow for port in range(1, 65536) for flow in shots([(vm, address)], [primary], [HTTP], port=port)]
    before = received(lab, vm)
    assert arrivals(lab, flows) == {}
    assert received(lab, vm) == before
    # The same counters do move when somebody answers.
    neighbour = next(slot for slot in plan.slots if slot.member.realm == vm.split("/")[0])
    lab.probe([Probe(source_vm=vm, destination=neighbour.real, protocol=HTTP)])
    assert received(lab, vm) != before


def received(lab: Lab, vm: str) -> list[str]:
    """What a machine's ICMP, TCP and UDP have taken in so far."""
    counters = snmp(lab, vm)
    return [counters[name] for name in ("Icmp:InMsgs", "Tcp:InSegs", "Udp:InDatagrams", "Udp:NoPorts")]


def snmp(lab: Lab, vm: str) -> dict[str, str]:
    """The kernel's counters of one machine: pairs of lines, names and values."""
    lines = [line.split() for line in lab.call("run", vm=vm, argv=["cat", "/proc/net/snmp"])["stdout"].splitlines()]
    return {
        f"{names[0]}{name}": value
        for names, values in zip(lines[::2], lines[1::2], strict=True)
        for name, value in zip(names, values, strict=True)
    }


def test_a_redirect_teaches_no_nat_vm_a_way(pod):
    """As if from the customer, from the subnet's virtual router, from the vRouter."""
    plan, _, lab = pod
    before = {vm.key: ways(lab, vm.key) for vm in plan.vms}
    senders = [(vm, source) for vm, own in strangers(plan) for source in (own, "198.18.4.1", plan.vrouter_ip)]
    targets = [vnic.primary for vm in plan.vms for vnic in vm.vnics]
    assert arrivals(lab, shots(senders, targets, [ICMP], shape=REDIRECT)) == {}
    assert {vm.key: ways(lab, vm.key) for vm in plan.vms} == before


def ways(lab: Lab, vm: str) -> tuple[str, ...]:
    """How a NAT VM routes to a customer, to management and to the other side; how many redirects it has taken in."""
    found = [
        lab.call("run", vm=vm, argv=["ip", "route", "get", address])["stdout"]
        for address in ("10.0.0.10", "10.0.200.53", "198.18.4.2", "198.18.6.2")
    ]
    return (*found, snmp(lab, vm)["Icmp:InRedirects"])


def test_every_refusal_is_counted(pod):
    """Where a packet dies, a rule counts it: in the VCN (OCI's flow logs) or in a NAT VM's guard (its status)."""
    plan, topology, lab = pod
    before = dropped(lab, topology)
    flows = shots(strangers(plan), one_of_each(plan))
    assert arrivals(lab, flows) == {}
    after = dropped(lab, topology)
    assert sum(after.values()) - sum(before.values()) == len(flows)
    guard = after["natVm1"] - before["natVm1"]
    # All of them come to NAT VM1, whatever they were meant for.
    assert guard == len(flows)
    assert after["natVm2"] == before["natVm2"]


def dropped(lab: Lab, topology: Topology) -> dict[str, int]:
    """Packets dropped so far, by VCN and NAT VM."""
    counts = {vcn: sum(packets for _, packets in lab.drops(vcn)) for vcn in topology.vcns}
    for vm in ("natVm1", "natVm2"):
        found = re.findall(r"^\[(\d+):\d+\] -A NATPOD-.* -j DROP$", lab.call("rules", vm=vm), re.MULTILINE)
        counts[vm] = sum(map(int, found))
    return counts
