"""Probes and captures: who answered, what the far end saw, and which packet belongs to which probe."""

import time
from collections import Counter
from collections.abc import Iterator

import pytest
from small_networks import needs_lab, network

from nat_pod.lab.wire import packets
from nat_pod.lab.wire.netns import LabError
from nat_pod.lab.wire.probe import HTTP, ICMP, UDP, Answer, Probe, Seen
from nat_pod.lab.wire.sandbox import Lab


def test_the_checksum_is_that_of_the_rfc():
    assert packets.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D  # RFC 1071, section 3: sum ddf2
    assert packets.checksum(b"\x01") == packets.checksum(b"\x01\x00")


@pytest.mark.parametrize("protocol", [ICMP, UDP, HTTP])
@pytest.mark.parametrize(("shape", "pieces"), [("request", 1), ("reply", 1), ("fragments", 2), ("tail", 1)])
def test_a_crafted_packet_reads_back_as_what_it_was_made_of(protocol, shape, pieces):
    token = "natpod-0123456789abcdef"
    made = packets.crafted(shape, "10.9.9.9", "10.0.0.3", protocol, 80, 7, token.encode())
    read = [packets.parse(data, 1, "a1", "ens3", "out") for data in made]
    assert [(p.src, p.dst, p.protocol, p.token) for p in read] == [("10.9.9.9", "10.0.0.3", protocol, token)] * pieces
    assert all(packet.request == (shape != "reply" or protocol != ICMP) for packet in read)
    assert [packet.syn for packet in read[:1]] == [protocol == HTTP and shape in ("request", "fragments")]


def test_a_redirect_is_no_request():
    made = packets.crafted("redirect", "10.9.9.9", "10.0.0.3", ICMP, 0, 7, b"natpod-0123456789abcdef")
    assert [packets.parse(data, 1, "a1", "ens3", "in").request for data in made] == [False]


def test_what_is_not_ours_is_not_parsed():
    assert packets.parse(b"\x45" + bytes(19), 1, "a1", "ens3", "in") is None
    ospf = b"\x45" + bytes(8) + b"\x59" + bytes(40)
    assert packets.parse(ospf, 1, "a1", "ens3", "in") is None


def test_hops_leave_out_repetitions_and_keep_the_order():
    there = Seen(vm="a1", nic="ens3", direction="out", src="1.1.1.1", dst="2.2.2.2")
    back = Seen(vm="a1", nic="ens3", direction="in", src="2.2.2.2", dst="1.1.1.1")
    assert Answer(ok=True, packets=(there, back, there, back)).hops == [there, back]


def flow(source: str, destination: str, protocol: str = ICMP, **more: object) -> Probe:
    return Probe(source_vm=source, destination=destination, protocol=protocol, **more)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(network()) as lab:
        yield lab


@pytest.mark.lab
@needs_lab
class TestProbes:
    @pytest.mark.parametrize("protocol", [ICMP, HTTP, UDP])
    def test_the_answer_says_who_and_whom_he_saw(self, lab, protocol):
        answers = lab.probe([
            flow("a2", "10.1.0.2", protocol),
            flow("a2", "10.1.0.2", protocol, source_address="10.0.0.9"),
            flow("b1", "10.0.0.9", protocol),
        ])  # fmt: skip
        assert answers == [
            Answer(ok=True, answered_by="b1", seen="10.0.0.3"),
            Answer(ok=True, answered_by="b1", seen="10.0.0.9"),
            Answer(ok=True, answered_by="a2", seen="10.1.0.2"),
        ]

    @pytest.mark.parametrize("protocol", [ICMP, HTTP, UDP])
    def test_what_went_wrong_is_said_in_words(self, lab, protocol):
        answers = lab.probe([
            flow("a1", "10.0.0.3", protocol, source_address="10.0.0.99"),
            flow("a1", "10.0.0.99", protocol),
            flow("a1", "10.0.0.3", protocol),
        ], 0.3)  # fmt: skip
        assert [answer.detail for answer in answers] == [
            "the VM does not have the source address",
            "no answer in 0.3 s",
            "",
        ]

    def test_a_closed_port_is_refused_and_another_service_is_no_answer(self, lab):
        answers = lab.probe([flow("a1", "10.0.0.3", HTTP, port=81), flow("a1", "10.0.0.3", UDP, port=81)])
        assert [(answer.ok, answer.detail) for answer in answers] == [(False, "connection refused")] * 2

    @pytest.mark.parametrize(
        ("bad", "sentence"),
        [
            (flow("nobody", "10.0.0.3"), "no VM called nobody in this lab"),
            (flow("a1", "10.0.0.3", "gre"), "protocol gre: one of http, icmp, udp"),
            (flow("a1", "10.0.0.3", forged=True), "a1 to 10.0.0.3: a forged flow needs a source address"),
        ],
    )
    def test_a_flow_that_makes_no_sense_is_refused(self, lab, bad, sentence):
        with pytest.raises(LabError, match=f"^{sentence}$"):
            lab.probe([flow("a1", "10.0.0.3"), bad])

    def test_an_answer_from_another_address_is_no_answer(self, lab):
        nat = ["iptables", "-t", "nat", "-{}", "PREROUTING", "-p", "icmp", "-j", "DNAT", "--to-destination", "10.0.0.9"]
        # a2 answers for 10.0.0.3 from 10.0.0.9: conntrack in its own namespace hides that, notrack shows it.
        untracked = ["iptables", "-t", "raw", "-{}", "OUTPUT", "-p", "icmp", "-j", "NOTRACK"]
        for command in (nat, untracked):
            lab.call("run", vm="a2", argv=[word.format("A") for word in command])
        try:
            (answer,) = lab.probe([flow("a1", "10.0.0.3")], 0.4)
        finally:
            for command in (nat, untracked):
                lab.call("run", vm="a2", argv=[word.format("D") for word in command])
        assert (answer.ok, answer.detail) == (False, "ICMP type 0 code 0 from 10.0.0.9")
        assert lab.probe([flow("a1", "10.0.0.3")])[0].ok

    def test_curl_and_people_get_the_same_answer_from_http(self, lab):
        ask = (
            "import socket; s = socket.create_connection(('10.0.0.3', 80), 2);"
            "s.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n');"
            "print(s.makefile().read())"
        )
        printed = lab.call("run", vm="a1", argv=["python3", "-c", ask])["stdout"]
        assert printed.startswith("HTTP/1.0 200 OK\n")
        assert "name=a2 seen=10.0.0.2" in printed


@pytest.mark.lab
@needs_lab
class TestForged:
    @pytest.mark.parametrize("protocol", [ICMP, HTTP, UDP])
    def test_it_arrives_where_the_check_is_off_and_only_there(self, protocol):
        topology = network()
        loose = topology.vnics["a2-vnic-1"]
        topology.vnics["a2-vnic-1"] = type(loose)(**{
            **{name: getattr(loose, name) for name in loose.__slots__}, "skip_source_dest_check": True,
        })  # fmt: skip
        with Lab(topology) as lab:
            answers = lab.probe([
                flow("a2", "10.1.0.2", protocol, source_address="172.16.0.1", forged=True),
                flow("a1", "10.1.0.2", protocol, source_address="172.16.0.1", forged=True),
            ], 0.4)  # fmt: skip
        assert answers == [
            Answer(ok=True, answered_by="b1", seen="172.16.0.1"),
            Answer(ok=False, detail="no answer in 0.4 s"),
        ]


@pytest.mark.lab
@needs_lab
class TestCaptures:
    def path(self, source: str, far: str, src: str, dst: str) -> list[Seen]:
        ends = [(source, "out", src, dst), (far, "in", src, dst), (far, "out", dst, src), (source, "in", dst, src)]
        return [Seen(vm=vm, nic="ens3", direction=way, src=one, dst=other) for vm, way, one, other in ends]

    @pytest.mark.parametrize("protocol", [ICMP, HTTP, UDP])
    def test_every_nic_it_crosses_in_the_order_of_time(self, lab, protocol):
        (answer,) = lab.probe([flow("a1", "10.1.0.2", protocol)], capture=True)
        assert answer.hops == self.path("a1", "b1", "10.0.0.2", "10.1.0.2")
        if protocol != HTTP:
            assert list(answer.packets) == answer.hops

    def test_a_packet_that_dies_is_seen_as_far_as_it_came(self, lab):
        (answer,) = lab.probe([flow("a1", "10.0.0.99")], 0.3, capture=True)
        assert list(answer.packets) == self.path("a1", "", "10.0.0.2", "10.0.0.99")[:1]

    def test_without_capture_there_are_no_packets(self, lab):
        assert lab.probe([flow("a1", "10.0.0.3")])[0].packets == ()

    def test_hundreds_at_a_time_do_not_mix(self, lab):
        pairs = [("a1", "10.0.0.2", "10.1.0.2", "b1"), ("a2", "10.0.0.3", "10.1.0.2", "b1"),
                 ("b1", "10.1.0.2", "10.0.0.2", "a1"), ("b1", "10.1.0.2", "10.0.0.9", "a2"),
                 ("c2", "10.0.0.3", "10.0.0.2", "c1"), ("a2", "10.0.0.3", "10.0.0.2", "a1")]  # fmt: skip
        jobs = [(pair, protocol) for _ in range(30) for pair in pairs for protocol in (ICMP, HTTP, UDP)]
        answers = lab.probe([flow(vm, dst, protocol) for (vm, _, dst, _), protocol in jobs], capture=True)
        for ((vm, src, dst, far), protocol), answer in zip(jobs, answers, strict=True):
            assert (answer.answered_by, answer.seen) == (far, src)
            assert answer.hops == self.path(vm, far, src, dst)
            times = Counter(answer.packets)
            # One packet there and one back; TCP: SYN, ACK, request, FIN and the ACKs, at most twelve in all.
            assert max(times.values()) == 1 if protocol != HTTP else max(times.values()) <= 6

    def test_probes_need_not_wait_for_the_dead(self, lab):
        flows = [flow("a1", "10.0.0.99", HTTP) for _ in range(300)] + [flow("a1", "10.0.0.3")]
        start = time.monotonic()
        answers = lab.probe(flows, 0.5)
        assert [answer.ok for answer in answers] == [False] * 300 + [True]
        assert time.monotonic() - start < 6  # one after the other: 150 s
