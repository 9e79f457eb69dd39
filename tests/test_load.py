"""Flows that stay open: each kind sends what it says, and whatever becomes of one is told as it is.

small_networks.py: a1 and b1 are in peered VCNs; b1's links can be cut.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from small_networks import needs_lab, network

from nat_pod.lab.wire.held_flow import RECORD, Direction, HeldFlow, Kind, Record
from nat_pod.lab.wire.sandbox import Lab


def test_a_record_is_read_back_and_one_wrong_byte_is_none():
    record = Record(7, 3, 2, "198.18.0.2")
    data = record.packed()
    assert len(data) == RECORD
    assert Record.unpacked(data) == record
    for at in range(RECORD):
        assert Record.unpacked(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None
    assert Record.unpacked(data[1:]) is None


def test_by_tcp_the_next_record_arrives_or_something_is_wrong():
    way = Direction(reliable=True)
    for sequence in range(3):
        way.send(sequence, float(sequence))
    assert way.arrive(0, 0.5)
    assert not way.arrive(2, 2.5)
    assert way.arrive(1, 4.0)
    assert (way.pause, way.lost, way.silent(9.0)) == (3.0, 0, 7.0)


def test_by_udp_what_a_later_record_overtook_is_lost_and_the_pause_is_the_oldest_s():
    way = Direction(reliable=False)
    for sequence in range(4):
        way.send(sequence, float(sequence))
    assert way.arrive(2, 5.0)
    assert (way.pause, way.lost) == (5.0, 2)
    assert way.arrive(1, 6.0)
    assert way.lost == 1
    assert way.silent(9.0) == 6.0


@pytest.mark.slow
def test_a_busy_flow_is_answered_though_it_always_has_something_on_its_way():
    """Nobody reads what it sends later, so that is never acknowledged."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        flow = HeldFlow(
            number=0,
            protocol="tcp",
            kind=Kind.ECHO,
            near=near,
            far=far,
            period=0.1,
            forth=Direction(reliable=True),
            back=Direction(reliable=True),
        )
        with far:
            for end, way in ((near, flow.forth), (far, flow.back)):
                end.sendall(Record(0, 0).packed())
                way.send(0, 0.0)
            flow.answer(0, "127.0.0.1")
            near.setblocking(False)
            with suppress(BlockingIOError):
                while near.send(Record(0, flow.forth.sent).packed()) == RECORD:
                    flow.forth.send(flow.forth.sent, 0.0)
            end_of_patience = time.monotonic() + 20
            while not flow.answered():
                assert time.monotonic() < end_of_patience
                time.sleep(0.01)
            flow.error = "Connection reset by peer"
            assert not flow.answered()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(network()) as lab:
        yield lab


@pytest.fixture
def flows(lab: Lab) -> Iterator[dict[int, dict[str, Any]]]:
    """A flow of each kind by TCP and by UDP, all open and answered, by number."""
    given = {
        number: {"number": number, "protocol": protocol, "kind": kind, "sender": "a1", "destination": "10.1.0.2"}
        for number, (protocol, kind) in enumerate((p, k) for p in ("tcp", "udp") for k in Kind)
    }
    lab.call("load", action="open", flows=[{**flow, "period": 0.05} for flow in given.values()])
    answered(lab, set(given))
    yield given
    lab.call("load", action="close", numbers=list(given))


def report(lab: Lab) -> dict[int, dict[str, Any]]:
    return {int(number): found for number, found in lab.call("load", action="report").items()}


def answered(lab: Lab, numbers: set[int], seconds: float = 20) -> dict[int, dict[str, Any]]:
    """Wait until just these flows have answers, and none of them an error."""
    end = time.monotonic() + seconds
    while True:
        found = report(lab)
        have = {number for number, one in found.items() if one["answers"]}
        if have == numbers:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.05)


@pytest.mark.lab
@needs_lab
class TestWithPackets:
    def test_each_kind_shows_who_is_at_the_other_end_and_an_idle_one_only_when_woken(self, lab, flows):
        lab.call("load", action="mark")
        idle = {number for number, flow in flows.items() if flow["kind"] is Kind.IDLE}
        found = answered(lab, set(flows) - idle)
        sent = {number: found[number]["sent"] for number in idle}
        assert set(sent.values()) == {1}
        lab.call("load", action="wake", numbers=sorted(idle))
        found = answered(lab, set(flows))
        assert all(one["answers"] == [["b1", "10.0.0.2"]] for one in found.values())
        assert all((one["error"], one["lost"], one["ended"]) == (None, 0, None) for one in found.values())

    def test_a_server_wakes_an_idle_flow_as_well(self, lab, flows):
        lab.call("load", action="mark")
        idle = [number for number, flow in flows.items() if flow["kind"] is Kind.IDLE]
        answered(lab, set(flows) - set(idle))
        lab.call("load", action="wake", numbers=idle, by_server=True)
        answered(lab, set(flows))

    def test_a_cut_is_a_pause_and_no_record_of_tcp_is_missing_after_it(self, lab, flows):
        idle = {number for number, flow in flows.items() if flow["kind"] is Kind.IDLE}
        busy = set(flows) - idle
        lab.call("fail", vm="b1", hang=True)
        lab.call("load", action="mark")
        end = time.monotonic() + 20
        while min((found := report(lab))[number]["silent"] for number in busy) <= 0.5:
            assert time.monotonic() < end, found
            time.sleep(0.05)
        assert not any(found[number]["answers"] for number in flows)
        assert {found[number]["silent"] for number in idle} == {0.0}
        lab.call("recover", vm="b1")
        found = answered(lab, busy)
        assert all(found[number]["error"] is None for number in flows)
        assert min(found[number]["pause"] for number in busy) > 0.5
        assert {found[number]["lost"] > 0 for number in busy if flows[number]["protocol"] == "udp"} == {True}
        assert {found[number]["lost"] for number in busy if flows[number]["protocol"] == "tcp"} == {0}

    @pytest.mark.parametrize("by_server", [False, True])
    @pytest.mark.parametrize("reset", [False, True])
    def test_the_end_of_one_end_is_learned_at_the_other(self, lab, flows, by_server, reset):
        numbers = [number for number, flow in flows.items() if flow["protocol"] == "tcp"]
        lab.call("fail", vm="b1", hang=True)
        lab.call("load", action="end", numbers=numbers, reset=reset, by_server=by_server)
        time.sleep(0.3)
        assert {report(lab)[number]["ended"] for number in numbers} == {None}
        lab.call("recover", vm="b1")
        if reset:  # nobody sends a reset twice: it is the next segment of the other end that is answered with one
            lab.call("load", action="wake", numbers=numbers, by_server=not by_server)
        end = time.monotonic() + 20
        while None in (learned := {report(lab)[number]["ended"] for number in numbers}):
            assert time.monotonic() < end, report(lab)
            time.sleep(0.05)
        # A FIN whose end is still sent something is followed by a reset, and either may be what is read first.
        idle = {report(lab)[number]["ended"] for number in numbers if flows[number]["kind"] is Kind.IDLE}
        assert idle == ({"Connection reset by peer"} if reset else {"closed by the far end"})
        assert learned <= idle | {"Connection reset by peer"}
        assert {report(lab)[number]["error"] for number in numbers} == {None}

    def test_a_reset_that_nobody_asked_for_is_an_error(self, lab, flows):
        tcp = {number for number, flow in flows.items() if flow["protocol"] == "tcp"}
        rule = ["OUTPUT", "-p", "tcp", "--dport", "7", "-j", "REJECT", "--reject-with", "tcp-reset"]
        lab.call("run", vm="a1", argv=["iptables", "-I", *rule])
        lab.call("load", action="mark")
        lab.call("load", action="wake", numbers=sorted(tcp))
        end = time.monotonic() + 20
        while {number for number, one in report(lab).items() if one["error"]} != tcp:
            assert time.monotonic() < end, report(lab)
            time.sleep(0.05)
        lab.call("run", vm="a1", argv=["iptables", "-D", *rule])

    def test_what_arrives_is_no_answer_before_it_is_acknowledged(self, lab, flows):
        """Where the way back leads elsewhere, a server's record arrives and what comes of it is a reset."""
        asleep, numbers = (
            [n for n, flow in flows.items() if flow["kind"] is Kind.IDLE and flow["protocol"] == protocol]
            for protocol in ("udp", "tcp")
        )
        rule = ["OUTPUT", "-p", "tcp", "--dport", "7", "-j", "DROP"]
        lab.call("run", vm="a1", argv=["iptables", "-I", *rule])
        lab.call("load", action="mark")
        lab.call("load", action="wake", numbers=numbers, by_server=True)
        end = time.monotonic() + 20
        while any((found := report(lab))[number]["silent"] for number in numbers):  # on its way
            assert time.monotonic() < end, found
            time.sleep(0.05)
        assert not any(report(lab)[number]["answers"] for number in numbers)
        lab.call("run", vm="a1", argv=["iptables", "-D", *rule])
        answered(lab, set(flows) - set(asleep))


def test_a_server_that_many_flows_share_takes_in_what_comes_in(lab: Lab):
    """200 flows by UDP to one socket, while as many by TCP keep the thread that runs all of them busy."""
    given = [
        {"number": number, "protocol": protocol, "sender": "a1", "destination": "10.1.0.2", "period": 0.1}
        for number, protocol in enumerate(("udp", "tcp") * 200, 1000)
    ]
    numbers = {flow["number"] for flow in given}
    lab.call("load", action="open", flows=given)
    for _ in range(3):
        lab.call("load", action="mark")
        answered(lab, numbers)
        time.sleep(0.5)
    assert sum(flow["lost"] for flow in report(lab).values()) == 0
    lab.call("load", action="close", numbers=list(numbers))
