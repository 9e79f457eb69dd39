"""A load balancer of the lab: whom it takes for healthy, whom it chooses, and what becomes of flows that exist.

a  10.0.0.0/16  a1 10.0.0.2            172.16.0.0/24 leads to the balancer 10.0.2.4
                n1 .2.2  n2 .2.3       forward; n2 is the backup, and the first in the list
s  172.16.0.0/24  s1 172.16.0.9        answers lead straight back to a1: the balancer sees half of each flow
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from small_networks import ANYTHING, add, change, needs_lab

from nat_pod.lab.wire.balancer import Decider
from nat_pod.lab.wire.netns import LabError
from nat_pod.lab.wire.probe import HTTP, ICMP, UDP, Probe
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.trace.topology import Backend, Balancer, CheckProtocol, HealthCheck, Lpg, Route, Subnet, Topology, Vcn

N1, N2 = "10.0.2.2", "10.0.2.3"
CHECK = HealthCheck(
    protocol=CheckProtocol.HTTP, port=80, path="/health", interval_millis=150, timeout_millis=150, retries=2
)
BALANCER = Balancer(
    name="balancer",
    subnet="g",
    address="10.0.2.4",
    mac="02:00:17:00:01:01",
    backends=(Backend(address=N2, is_backup=True), Backend(address=N1)),
    check=CHECK,
    instant_failover=True,
    tcp_reset=False,
)


def network(**flags: Any) -> Topology:
    topology = Topology(vcns={}, subnets={}, lpgs={}, vnics={}, vms={})
    topology.vcns["a"] = Vcn(name="a", cidrs=("10.0.0.0/16",))
    topology.vcns["s"] = Vcn(name="s", cidrs=("172.16.0.0/24",))
    by_balancer = Route(destination="172.16.0.0/24", private_ip=BALANCER.address)
    for name, vcn, cidr, route in (
        ("a", "a", "10.0.0.0/24", by_balancer),
        ("g", "a", "10.0.2.0/28", Route(destination="172.16.0.0/24", lpg="a/lpg")),
        ("s", "s", "172.16.0.0/24", Route(destination="10.0.0.0/16", lpg="s/lpg")),
    ):
        topology.subnets[name] = Subnet(name=name, vcn=vcn, cidr=cidr, routes=(route,), security=ANYTHING)
    topology.lpgs["a/lpg"] = Lpg(name="a/lpg", vcn="a", peer="s/lpg")
    topology.lpgs["s/lpg"] = Lpg(name="s/lpg", vcn="s", peer="a/lpg")
    add(topology, "a1", "a", "10.0.0.2")
    add(topology, "n1", "g", N1, check=False)
    add(topology, "n2", "g", N2, check=False)
    add(topology, "s1", "s", "172.16.0.9")
    for name in ("n1", "n2"):
        change(topology.vms, name, forwarding=True)
    topology.balancers["balancer"] = replace(BALANCER, **flags)
    return topology


def flow(protocol: str = ICMP) -> Probe:
    return Probe(source_vm="a1", destination="172.16.0.9", protocol=protocol)


def ways(lab: Lab) -> list[str | None]:
    """By which VM a ping, an HTTP request and a datagram go; None for one that is not answered."""
    answers = lab.probe([flow(protocol) for protocol in (ICMP, HTTP, UDP)], 0.5, capture=True)
    found: list[str | None] = []
    for answer in answers:
        over = {hop.vm for hop in answer.hops} & {"n1", "n2"}
        assert len(over) <= 1 or not answer.ok
        found.append(next(iter(over)) if answer.ok else None)
    return found


def eventually(lab: Lab, active: str | None, seconds: float = 10) -> None:
    """Wait until new flows go to `active`."""
    end = time.monotonic() + seconds
    while lab.call("balancers")["balancer"]["active"] != active:
        assert time.monotonic() < end, lab.call("balancers")
        time.sleep(0.02)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("healthy", "active", "flags", "chosen"),
    [
        ({N1, N2}, None, {}, N1),
        ({N2}, N1, {}, N2),
        ({N1, N2}, N2, {}, N1),
        ({N1, N2}, N2, {"prefers_active": True}, N2),
        ({N1, N2}, None, {"prefers_active": True}, N1),
        ({N1}, N2, {"prefers_active": True}, N1),
        (set(), N1, {}, None),
        (set(), N1, {"is_fail_open": True}, N1),
        (set(), N2, {"is_fail_open": True, "prefers_active": True}, N2),
    ],
)
def test_choice(healthy: set[str], active: str | None, flags: dict[str, bool], chosen: str | None) -> None:
    assert replace(BALANCER, **flags).choose(healthy, active) == chosen  # type: ignore[arg-type]


def test_a_switch_begins_a_mark_and_moves_the_old_one_for_good() -> None:
    decider = Decider(BALANCER, (N2, N1))
    assert decider.decide({N1, N2}) is not None
    assert decider.decide({N1, N2}) is None
    made = decider.decide({N2})
    assert made is not None
    assert made[1] == ["rule add fwmark 2 lookup 100 priority 100"]
    assert "-A kept -m mark --mark 1 -g choice" in made[0]
    assert "-A choice -j MARK --set-mark 2" in made[0]
    # n1 is back and chosen again: flows given to n2 stay there, those taken from n1 go where new ones go.
    made = decider.decide({N1, N2})
    assert made is not None
    assert (decider.active, decider.moved) == (N1, {1})


def test_without_instant_failover_no_mark_is_moved() -> None:
    decider = Decider(replace(BALANCER, instant_failover=False), (N2, N1))
    decider.decide({N1, N2})
    made = decider.decide({N2})
    assert made is not None
    assert not [line for line in made[0] if line.startswith("-A kept")]
    made = decider.decide(set())
    assert made is not None
    assert '-A choice -m comment --comment "no healthy backend" -j DROP' in made[0]


# --- with packets ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steady() -> Iterator[Lab]:
    with Lab(network(prefers_active=True)) as lab:
        yield lab


@pytest.mark.lab
@needs_lab
class TestWhoActs:
    def test_the_backup_takes_over_keeps_what_it_has_and_gives_it_back_when_it_dies(self, steady):
        assert ways(steady) == ["n1"] * 3
        steady.call("fail", vm="n1", hang=False)
        eventually(steady, N2)
        assert ways(steady) == ["n2"] * 3
        steady.call("recover", vm="n1")
        until(lambda: steady.call("balancers")["balancer"]["healthy"] == [N1, N2])
        assert ways(steady) == ["n2"] * 3
        steady.call("fail", vm="n2", hang=True)
        eventually(steady, N1)
        assert ways(steady) == ["n1"] * 3
        steady.call("recover", vm="n2")

    def test_nobody_healthy_nothing_arrives(self, steady):
        for vm in ("n1", "n2"):
            steady.call("fail", vm=vm, hang=False)
        eventually(steady, None)
        assert ways(steady) == [None] * 3
        for vm in ("n1", "n2"):
            steady.call("recover", vm=vm)
        until(lambda: steady.call("balancers")["balancer"]["healthy"] == [N1, N2])
        assert set(ways(steady)) <= {"n1", "n2"}

    def test_without_preference_the_first_takes_it_back_and_a_closed_balancer_drops(self):
        with Lab(network()) as lab:
            lab.call("fail", vm="n1", hang=False)
            eventually(lab, N2)
            lab.call("recover", vm="n1")
            eventually(lab, N1)
            assert ways(lab) == ["n1"] * 3
            with pytest.raises(LabError, match="n1 has not failed"):
                lab.call("recover", vm="n1")

    @pytest.mark.parametrize("fail_open", [True, False])
    def test_fail_open_when_every_check_fails(self, fail_open):
        nobody = replace(CHECK, protocol=CheckProtocol.TCP, port=9)
        with Lab(network(check=nobody, is_fail_open=fail_open)) as lab:
            assert ways(lab) == ["n1" if fail_open else None] * 3

    def test_an_answer_other_than_the_one_asked_for_is_no_health(self):
        with Lab(network(check=replace(CHECK, return_code=204))) as lab:
            assert lab.call("balancers")["balancer"]["healthy"] == []

    def test_the_checks_pass_the_security_rules_of_the_backends(self):
        topology = network()
        change(topology.subnets, "g", security=())
        for name in ("n1-vnic-1", "n2-vnic-1"):
            change(topology.vnics, name, security=ANYTHING)
        with Lab(topology) as lab:
            assert lab.call("balancers")["balancer"]["healthy"] == []
            assert "balancer: egress, no security rule lets it pass" in {why for why, _ in lab.drops("a")}


FLOWS = [
    {"number": number, "protocol": protocol, "sender": "a1", "destination": "172.16.0.9"}
    for number, protocol in enumerate(["tcp"] * 6 + ["udp"] * 6)
]


def after_failure(**flags: bool) -> tuple[dict[str, str], Lab]:
    """Open flows, let n1 fail and n2 take over; what became of each flow: lives, silent, or its error."""
    with Lab(network(**flags)) as lab:
        lab.call("load", action="open", flows=FLOWS)
        until(lambda: all(one["answers"] for one in report(lab).values()))
        lab.call("fail", vm="n1", hang=False)
        eventually(lab, N2)
        lab.call("load", action="mark")
        fates: dict[str, str] = {}
        # TCP waits for its retransmission timer, which doubles while nothing gets through.
        end = time.monotonic() + 6
        while time.monotonic() < end:
            time.sleep(0.2)
            now = report(lab)
            fates = {
                f"{FLOWS[int(number)]['protocol']} {number}": one["error"] or ("lives" if one["answers"] else "silent")
                for number, one in now.items()
            }
            if "silent" not in fates.values():
                break
        return fates, ways(lab)


def report(lab: Lab) -> dict[str, Any]:
    return dict(lab.call("load", action="report"))


def fates(found: dict[str, str], protocol: str) -> set[str]:
    return {fate for name, fate in found.items() if name.startswith(protocol)}


@pytest.mark.lab
@needs_lab
class TestFlowsThatExist:
    def test_instant_failover_moves_them(self):
        found, new = after_failure(instant_failover=True, tcp_reset=False)
        assert set(found.values()) == {"lives"}
        assert new == ["n2"] * 3

    def test_without_it_they_stay_with_the_dead_vm_and_new_ones_live(self):
        found, new = after_failure(instant_failover=False, tcp_reset=False)
        assert set(found.values()) == {"silent"}
        assert new == ["n2"] * 3

    def test_with_the_reset_flag_tcp_is_reset_and_the_rest_moves(self):
        found, new = after_failure(instant_failover=True, tcp_reset=True)
        assert fates(found, "tcp") == {"Connection reset by peer"}
        assert fates(found, "udp") == {"lives"}
        assert new == ["n2"] * 3


@pytest.mark.lab
@needs_lab
def test_several_backends_that_are_no_backups_are_refused_by_name():
    both = tuple(replace(one, is_backup=False) for one in BALANCER.backends)
    with (
        pytest.raises(LabError, match="balancer: it has more than one backend that is no backup"),
        Lab(network(backends=both)),
    ):
        pass
