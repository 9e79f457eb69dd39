"""A routed POD with packets: everybody tries everything, NAT VMs fail under load, and what that rests on is taken away.

Pulumi.routed.yaml: 4 customers with 40 hosts, 5 servers, a standby for each NAT VM.  linden may call dns and mgmt only,
so there are pairs of which only the server may open a flow.  The customers have done what is in their hands: every
source/destination check is off, and their subnets route all of 198.18.0.0/15 to the POD.
"""

import base64
import bz2
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import yaml
from conftest import REPOSITORY
from netaddr import IPNetwork
from test_health import no_rounds
from test_isolation import PROTOCOLS, arrivals, declared, everybody, hostile, shots, strangers
from test_lab import change, edited_user_data, metadata

from nat_pod.lab import checks, failover
from nat_pod.lab.failover import Outcome, Step, Watched, held_flows
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire.held_flow import Kind
from nat_pod.lab.wire.packets import HTTP
from nat_pod.lab.wire.probe import Probe
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.names import HEALTH_PORT
from nat_pod.plan import guest
from nat_pod.plan.document import read_document, rule_document
from nat_pod.plan.model import PodPlan
from nat_pod.trace.expected import expected_topology
from nat_pod.trace.flows import stranger_addresses
from nat_pod.trace.topology import Topology

pytestmark = pytest.mark.lab

PATIENCE = 8.0
"""Seconds that a flow is given in tests in which flows die; those that live send again within 6.2 s of the failure."""


@pytest.fixture(scope="module")
def deployed() -> tuple[PodPlan, Topology]:
    region, plan, deployment = stand_up(REPOSITORY, "routed")
    assert deployment.warnings == ()
    return plan, observe(region)


@pytest.fixture(scope="module")
def pod(deployed) -> Iterator[tuple[PodPlan, Topology, Lab]]:
    plan, topology = deployed
    open_to_all = hostile(topology, plan)
    with Lab(open_to_all) as lab:
        yield plan, open_to_all, lab


def watched(lab: Lab, plan: PodPlan, topology: Topology, step: Step, act: Callable[[], None] = lambda: None) -> Outcome:
    """What one step does to a few flows of each kind."""
    flows = held_flows(plan, tcp=60, udp=48)
    with Watched(lab.key, plan, topology, flows, PATIENCE) as few:
        return few.step(step, act=act)


def begin(lab: Lab, topology: Topology) -> None:
    """Let the first VM of each side act: on a busy machine an answer of it may have come too late, now or before."""
    wanted = {"natVm1": "natVm1a", "natVm1-2": "natVm1-2a", "natVm2": "natVm2a"}
    end = time.monotonic() + 60
    while True:
        for name, active in failover.acting(lab.key, topology).items():
            if active == f"{name}b":
                lab.call("fail", vm=active, hang=True)
                left(lab, topology, active)
                lab.call("recover", vm=active)
        while any(len(state["healthy"]) < 2 for state in lab.call("balancers").values()):
            assert time.monotonic() < end
            time.sleep(0.05)
        acting = failover.acting(lab.key, topology)
        if acting == wanted:
            return
        assert time.monotonic() < end, acting


# --- what is deployed ------------------------------------------------------------------------------------------------


def test_the_balancers_that_were_registered_are_those_of_the_plan(deployed):
    plan, topology = deployed
    wanted = expected_topology(plan).balancers
    assert len(wanted) == 3
    for name, balancer in topology.balancers.items():
        backends = tuple(sorted(balancer.backends, key=lambda one: one.is_backup))
        assert {*balancer.security} == {*wanted[name].security}
        assert replace(balancer, mac="", backends=backends, security=()) == replace(wanted[name], security=())


# --- who reaches whom ------------------------------------------------------------------------------------------------


def addresses(plan: PodPlan) -> list[str]:
    """Every alias, and every address of the VCN's own range."""
    return [*(slot.nat_vm1 for slot in plan.slots), *map(str, IPNetwork(plan.vcn_cidr))]


def dropped(lab: Lab, topology: Topology, plan: PodPlan) -> int:
    """Packets that a rule of a VCN or a NAT VM has dropped so far."""
    count = sum(packets for vcn in topology.vcns for _, packets in lab.drops(vcn))
    for vm in plan.vms:
        lines = lab.call("rules", vm=vm.key).splitlines()
        count += sum(int(line[1:].partition(":")[0]) for line in lines if "-A NATPOD-" in line and "-j DROP" in line)
    return count


def test_everybody_reaches_exactly_whom_the_stack_file_declares(pod):
    plan, _, lab = pod
    wanted = declared(plan)
    flows = shots(everybody(plan), addresses(plan))
    expected = {
        (flow.source_vm, str(flow.source_address), flow.destination, flow.protocol): wanted[key]
        for flow in flows
        if (key := (flow.source_vm, flow.destination)) in wanted
    }
    assert len(expected) == len(PROTOCOLS) * len(wanted) == 3 * 370
    assert len(flows) > 15_000
    assert arrivals(lab, flows, wanted=expected) == expected


def test_who_forges_an_address_of_the_pod_reaches_nobody_from_any_vcn(pod):
    """Aliases of servers and of hosts, and addresses of the VCN: of NAT VMs, balancers, the vRouter, of nobody."""
    plan, _, lab = pod
    claimed = addresses(plan)
    senders = [(vm, source) for vm in stranger_addresses(plan) for source in claimed]
    first = {slot.member.realm: slot.nat_vm1 for slot in plan.slots}
    flows = shots(senders, [*first.values(), *(vm.vnics[0].primary for vm in plan.vms)])
    assert len(flows) > 10_000
    assert arrivals(lab, flows) == {}


def test_who_forges_a_members_address_arrives_as_that_member_may_and_at_no_customer(pod):
    """Customers of one gateway cannot be told apart by anything but their addresses; the answer goes to the other."""
    plan, _, lab = pod
    members = {slot.real: slot.member for slot in plan.hosts}
    senders = [(vm, source) for vm, _ in strangers(plan)[:2] for source in members]
    found = arrivals(lab, shots(senders, addresses(plan), [HTTP]))
    wanted = declared(plan)
    assert found
    for (_, source, destination, _), receiver in found.items():
        assert receiver.startswith("management/")
        assert wanted[members[source], destination] == receiver


def test_nobody_but_the_balancer_gets_an_answer_at_the_health_port(pod):
    plan, _, lab = pod
    places = [*(vm.vnics[0].primary for vm in plan.vms), *(balancer.address for balancer in plan.balancers)]
    callers = [(vm, address) for vm, address in everybody(plan) if vm.endswith(("/stranger", "/app", "/mgmt"))]
    flows = [
        Probe(source_vm=vm, source_address=None, destination=place, protocol=HTTP, port=HEALTH_PORT)
        for vm, _ in callers
        for place in places
    ]
    assert [answer.answered_by for answer in lab.probe(flows, seconds=1.0)] == [None] * len(flows)
    assert {len(state["healthy"]) for state in lab.call("balancers").values()} == {2}


def test_every_refusal_is_counted(pod):
    """By a rule of a VCN (OCI's flow logs) or of a NAT VM (its status), but what ends at the services of others:

    the balancers' own addresses, where OCI's service drops it, and the vRouter's.
    """
    plan, topology, lab = pod
    before = dropped(lab, topology, plan)
    routers = {address for vnic in topology.vnics.values() if vnic.vm == "vrouter" for address in vnic.addresses}
    broadcast = str(IPNetwork(topology.subnets["vrouter"].cidr)[-1])
    services = {*(balancer.address for balancer in plan.balancers), *routers, broadcast}
    flows = shots(stranger_addresses(plan).items(), [one for one in addresses(plan) if one not in services])
    assert arrivals(lab, flows) == {}
    assert dropped(lab, topology, plan) - before == len(flows)


# --- ACK first, then SYN ---------------------------------------------------------------------------------------------

TRIES = 20
_SEGMENTS = """
import socket, struct, sys, time
def send(source, to, first, second, count):
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    for number in range(count):
        ports = (first + number, second) if first > second else (first, second + number)
        head = struct.pack("!HHIIBBHHH", *ports, 1000, 2000, 5 << 4, 0x10, 1024, 0, 0)
        addresses = socket.inet_aton(source) + socket.inet_aton(to)
        total = sum(struct.unpack("!16H", addresses + struct.pack("!HH", 6, len(head)) + head))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        raw.sendto(head[:16] + struct.pack("!H", ~total & 0xFFFF) + head[18:], (to, 0))
"""
_ACK = _SEGMENTS + "send(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))"
_CONNECT = """
import socket, sys, time
source, to, first, port, count, wait = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
callers = []
for number in range(count):
    caller = socket.socket()
    caller.setblocking(False)
    caller.bind((source, first + number))
    caller.connect_ex((to, port))
    callers.append(caller)
for _ in range(wait * 10):
    time.sleep(0.1)
    opened = 0
    for caller in callers:
        try:
            caller.getpeername()
            opened += 1
        except OSError:
            pass
    if opened == count:
        break
print(opened)
"""


def attack(lab: Lab, first: int, *, answered: bool, seconds: int) -> int:
    """linden/app sends a segment without SYN to backup, which it may not call, then a SYN; how many connections open.

    answered: backup answers the first with a segment of its own.  Nobody's RST arrives.
    """
    host, server, alias, port = "10.0.2.10", "10.0.3.11", {"s": "198.18.8.1", "h": "198.18.10.21"}, 80
    quiet = ["OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP"]
    ends = ("linden/app", "management/backup")

    def run(vm: str, script: str, *arguments: object) -> str:
        done = lab.call("run", vm=vm, argv=[sys.executable, "-c", script, *map(str, arguments)])
        assert done["status"] == 0, done["stderr"]
        return str(done["stdout"])

    for vm in ends:
        lab.call("run", vm=vm, argv=["iptables", "-A", *quiet])
    run(ends[0], _ACK, host, alias["s"], first, port, TRIES)
    if answered:
        run(ends[1], _ACK, server, alias["h"], port, first, TRIES)
    opened = int(run(ends[0], _CONNECT, host, alias["s"], first, port, TRIES, seconds))
    for vm in ends:
        lab.call("run", vm=vm, argv=["iptables", "-D", *quiet])
    return opened


@pytest.mark.parametrize("answered", [False, True])
def test_a_segment_that_comes_first_opens_no_door_for_a_syn(pod, answered):
    _, _, lab = pod
    assert attack(lab, 20_000 + 100 * answered, answered=answered, seconds=2) == 0


# --- NAT VMs fail ----------------------------------------------------------------------------------------------------


def test_no_flow_is_lost_whichever_nat_vm_fails_and_however(pod):
    plan, topology, lab = pod
    steps = failover.steps(plan, failover.acting(lab.key, topology))
    with Watched(lab.key, plan, topology, held_flows(plan, tcp=500, udp=200, unheard=10)) as many:
        # natVm1a, then natVm1-2a, which only maple's flows pass, then natVm2a.
        outcomes = [many.step(step, ending=5 if number in (0, 2) else 0) for number, step in enumerate(steps)]
    print(failover.outcomes_text(outcomes))
    assert [(one.what, one.lost) for one in outcomes] == [(step.what, ()) for step in steps]
    assert {(one.tcp, one.udp) for one in outcomes} == {(500, 200)}
    for step, one in zip(steps, outcomes, strict=True):
        assert not set(step.fail) & set(one.active.values())
        assert "nobody" not in one.active.values()
    # By UDP, what the end sends that may not open waits for the other end, and then goes on.
    assert outcomes[0].unheard == (10, 10, 10)
    # A FIN or RST alone begins no entry; with a segment of its own the other end learns of it.
    for one in (outcomes[0], outcomes[2]):
        assert {(of.how, of.learned, of.learned_later) for of in one.ended} == {
            (f"{how} of the {who}", 0, 5) for how in ("FIN", "RST") for who in ("client", "server")
        }


def test_the_failure_of_one_gateway_is_no_pause_in_the_flows_of_the_others(pod):
    """maple alone is behind NAT VM1-2.  Its balancer needs three seconds to notice: who waits less is not concerned."""
    plan, topology, lab = pod
    active = failover.acting(lab.key, topology)["natVm1-2"]
    held = held_flows(plan, tcp=100, udp=40)
    of_maple = [
        one for one in held if "maple" in (one.flow.sender.realm, one.flow.receiver and one.flow.receiver.realm)
    ]
    assert 0 < len(of_maple) < len(held) / 2
    with Watched(lab.key, plan, topology, [one for one in held if one not in of_maple]) as others:
        outcome = others.step(Step(what="", fail=(active,)))
        assert (outcome.lost, outcome.pause < 3) == ((), True), outcome
        assert others.step(Step(what="", recover=(active,))).lost == ()


def test_lab_check_agrees_while_a_nat_vm_is_off_and_with_the_other_one_after_it_is_back(pod):
    plan, topology, lab = pod
    active = failover.acting(lab.key, topology)["natVm1"]
    lab.call("fail", vm=active, hang=False)
    left(lab, topology, active)
    for again in (False, True):
        report = checked(lab, plan, topology)
        assert [problem for verdict in report.verdicts for problem in verdict.problems] == []
        assert report.passed
        if not again:
            lab.call("recover", vm=active)
    assert failover.acting(lab.key, topology)["natVm1"] != active


def checked(lab: Lab, plan: PodPlan, topology: Topology) -> checks.Report:
    """`lab check`, with the VMs that act now."""
    active = set(failover.acting(lab.key, topology).values())
    expected = checks.expectations(plan, topology, {vm.key for vm in plan.vms} - active)
    return checks.judge(topology, expected, lab.probe([one.probe() for one in expected], seconds=5.0, capture=True))


def stop_forwarding(lab: Lab, vm: str) -> Callable[[], None]:
    """A failure that only the VM itself knows of, and that its agent's next round mends: see `no_rounds`."""

    def act() -> None:
        assert lab.call("run", vm=vm, argv=["sysctl", "-qw", "net.ipv4.ip_forward=0"])["status"] == 0

    return act


def test_a_vm_that_says_it_is_unfit_is_left_by_its_balancer_and_no_flow_is_lost(pod):
    plan, topology, lab = pod
    active = failover.acting(lab.key, topology)["natVm2"]
    with no_rounds(lab, active), Watched(lab.key, plan, topology, held_flows(plan, tcp=60, udp=48)) as few:
        stop_forwarding(lab, active)()
        outcome = few.step(Step(what="unfit"), act=lambda: left(lab, topology, active))
        assert outcome.lost == ()
    # The next round switches it on again.


def left(lab: Lab, topology: Topology, vm: str, seconds: float = 60) -> None:
    """Wait until a VM is nobody's choice any more."""
    end = time.monotonic() + seconds
    while vm in failover.acting(lab.key, topology).values():
        assert time.monotonic() < end
        time.sleep(0.05)


BOTH = (Kind.ECHO, Kind.IDLE)
"""Kinds of flow in which both ends send, but for idle ones that their server wakes."""

# --- the proof can fail ----------------------------------------------------------------------------------------------


def without_line(topology: Topology, vm: str, words: str) -> Topology:
    """The rule document of one VM without the one line that has these words in it."""
    document = read_document(topology.vms[vm].metadata[guest.RULES_KEY])
    lines = document.rules.splitlines(keepends=True)
    kept = [line for line in lines if words not in line]
    assert len(kept) == len(lines) - 1
    text, _ = rule_document(document.vm, document.hooks, "".join(kept), document.health)
    return metadata(topology, vm, nat_pod_rules=text)


def without_setting(topology: Topology, vm: str, setting: str) -> Topology:
    """The user_data of one VM with this connection tracking setting off: its default is on with loose."""
    line = f"net.netfilter.nf_conntrack_{setting} = "
    return edited_user_data(topology, vm, lambda text: text.replace(f"{line}1", f"{line}0"))


def always_fit(user_data: str) -> str:
    """An agent whose answer is 200 whatever happens: it is edited as soon as it is unpacked."""
    unpacked = "  - chmod 755 /usr/local/sbin/nat-pod-agent\n"
    edit = "  - sed -i 's/=unfit()/=None/' /usr/local/sbin/nat-pod-agent\n"
    agent = next(file for file in yaml.safe_load(user_data)["write_files"] if file["path"] == "/etc/nat-pod/agent")
    deployed = bz2.decompress(base64.b64decode(agent["content"]))
    assert deployed.count(b"=unfit()") == 1, "or the edit would change nothing"
    return user_data.replace(unpacked, unpacked + edit)


def test_with_the_reset_flag_tcp_is_reset_and_without_instant_failover_everything_stays_with_the_dead_vm(deployed):
    plan, topology = deployed
    topology = change(topology, "balancers", "natVm1", tcp_reset=True)
    topology = change(topology, "balancers", "natVm2", instant_failover=False)
    with Lab(topology) as lab:
        begin(lab, topology)
        reset = watched(lab, plan, topology, Step(what="", fail=("natVm1a",)))
        assert reset.active["natVm1"] == "natVm1b"
        assert {(held.protocol, why) for held, why in reset.lost} == {("tcp", "Connection reset by peer")}
        assert len(reset.lost) == 60
        stays = watched(lab, plan, topology, Step(what="", fail=("natVm2a",)))
        assert stays.active["natVm2"] == "natVm2b"
        assert {why for _, why in stays.lost} == {"stands still"}
        assert len(stays.lost) == 60 + 48


def test_without_loose_tcp_dies_and_a_vm_that_always_answers_200_keeps_flows_that_it_does_not_forward(deployed):
    plan, topology = deployed
    topology = without_setting(topology, "natVm1b", "tcp_loose")
    topology = without_line(topology, "natVm1b", "only the server may open it")
    topology = edited_user_data(topology, "natVm2a", always_fit)
    refused = Probe(source_vm="linden/app", destination="198.18.8.1", protocol=HTTP)
    with Lab(topology) as lab:
        begin(lab, topology)
        assert not lab.probe([refused], seconds=1.0)[0].ok
        strict = watched(lab, plan, topology, Step(what="", fail=("natVm1a",)))
        assert {held.protocol for held, _ in strict.lost} == {"tcp"}
        assert len(strict.lost) == 60
        # The rule that natVm1b lacks: who may not open a connection opens it.
        assert lab.probe([refused], seconds=20)[0].answered_by == "management/backup"
        with no_rounds(lab, "natVm2a"):
            blind = watched(lab, plan, topology, Step(what=""), act=stop_forwarding(lab, "natVm2a"))
        assert blind.active["natVm2"] == "natVm2a"
        assert len(blind.lost) == 60 + 48


def test_without_be_liberal_a_vm_that_comes_back_drops_what_it_knew_and_a_wrong_route_table_what_needs_it(deployed):
    plan, topology = deployed
    topology = without_setting(topology, "natVm1a", "tcp_be_liberal")
    # natVm2b in a route table of its own, as a VNIC of OCI may have one: without the routes to the hosts' blocks.
    subnet = topology.subnets["natVm2"]
    wrong = replace(
        subnet, name="wrong", routes=tuple(r for r in subnet.routes if not r.destination.startswith("198.18.10."))
    )
    assert len(wrong.routes) == len(subnet.routes) - 2
    topology = replace(topology, subnets={**topology.subnets, "wrong": wrong})
    topology = change(topology, "vnics", "natVm2b-vnic-1", subnet="wrong")
    with Lab(topology) as lab:
        begin(lab, topology)
        with Watched(lab.key, plan, topology, held_flows(plan, tcp=60, udp=48), PATIENCE) as few:
            assert few.step(Step(what="", fail=("natVm1a",), hang=True)).lost == ()
            assert few.step(Step(what="", recover=("natVm1a",))).lost == ()
            stale = few.step(Step(what="", fail=("natVm1b",), hang=True))
        # A segment that acknowledges what this VM has not seen is out of its window: where both ends have sent.
        both = {
            held
            for held in held_flows(plan, tcp=60, udp=48)
            if held.protocol == "tcp" and held.kind in BOTH and not held.by_server
        }
        assert {held for held, _ in stale.lost} == both
        routed = watched(lab, plan, topology, Step(what="", fail=("natVm2a",)))
        # What still arrives is what a host sends to a server by UDP, without an answer: TCP wants its segments
        # acknowledged.
        few_flows, lost = held_flows(plan, tcp=60, udp=48), {held.number for held, _ in routed.lost}
        for held in few_flows:
            of_server = held.kind is Kind.PULL or held.by_server
            one_way = held.kind in (Kind.PUSH, Kind.PULL) or held.by_server
            speaks = held.flow.receiver if of_server else held.flow.sender
            assert speaks is not None
            assert (held.number in lost) == (held.protocol == "tcp" or speaks.is_server or not one_way), held.what


def test_without_the_rules_for_segments_the_attack_opens_and_flows_die_that_one_end_may_open(deployed):
    plan, topology = deployed
    topology = without_line(topology, "natVm1a", "also where one exists")
    topology = without_line(topology, "natVm1b", "goes on in what the server opened")
    with Lab(topology) as lab:
        begin(lab, topology)
        assert attack(lab, 20_000, answered=True, seconds=20) == TRIES
        dead = watched(lab, plan, topology, Step(what="", fail=("natVm1a",)))
        assert {held.one_way for held, _ in dead.lost} == {True}
        assert {(str(held.kind), held.by_server) for held, _ in dead.lost} == {("pull", False), ("idle", True)}
