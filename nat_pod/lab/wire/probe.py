"""Real packets: probes between hosts, and captures on every NIC that tell what became of them.

One process does it all: a socket stays in the namespace it was created in (`netns.py`).

- The far end itself says who it is and whom it saw (`servers.py`).  ICMP is answered by its kernel, so there a capture
  has to show both.
- Each probe carries its own token in its payload, and ICMP errors and echo replies carry it back.  NAT may change
  addresses, ports and even ICMP identifiers, so these cannot show which probe a packet belongs to.
- TCP segments without payload are recognized by their sequence numbers, which NAT does not change.
- Captured packets are ordered by the kernel's time stamps, which come from one clock for all namespaces.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from nat_pod.lab.wire.capture import Tap
from nat_pod.lab.wire.fabric import Fabric
from nat_pod.lab.wire.netns import LabError, open_socket
from nat_pod.lab.wire.packets import (
    ERRORS,
    HTTP,
    ICMP,
    NUMBER,
    PORTS,
    REPLY,
    REQUEST,
    SHAPES,
    TOKEN,
    UDP,
    CapturedPacket,
    Quoted,
    crafted,
    echo_request,
)
from nat_pod.lab.wire.space import vm_namespace
from nat_pod.trace.topology import VM_HOST, Topology

_IN_FLIGHT = 128  # probes at a time: a capture's buffer holds a few hundred packets
_BURST = 8  # probes begun before the captures are emptied again
_LINGER = 0.05  # seconds after the last answer for the packets that end its TCP connection

_ANSWER = re.compile(rb"name=(\S+) seen=(\S+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Packets to send, from a VM to an address.

    source_address: the address to send from; None lets the VM choose.  With `forged` it is written into the packet
    although the VM does not have it.  Then no answer can come back, and `ok` means that the packet reached some host.
    port: the destination port, by default the one that hosts serve.
    shape: of a forged packet only.  `request` begins a flow; `reply` answers a flow that does not exist; `fragments` is
    a request in two pieces, `tail` only the second of them; `redirect` tells the receiver of a better route; an ICMP
    error (one of `packets.ERRORS`) is about the packet `about`.
    source_port, ttl: of a forged packet only.
    """

    source_vm: str
    destination: str
    source_address: str | None = None
    protocol: str = ICMP
    port: int | None = None
    forged: bool = False
    shape: str = REQUEST
    source_port: int | None = None
    ttl: int = 64
    about: Quoted | None = None

    @property
    def destination_port(self) -> int:
        """The port, or the protocol's default; 0 for ICMP."""
        return self.port if self.port is not None else PORTS.get(self.protocol, 0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, without what is as by default: there are hundreds of thousands of probes."""
        values = _told(self)
        if self.about is not None:
            values["about"] = _told(self.about)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Probe:
        """The inverse of `to_dict`."""
        return cls(**{**values, "about": Quoted(**values["about"])} if "about" in values else values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A packet of a flow that crossed a NIC.  `direction` is "in" or "out" as the VM sees it."""

    vm: str
    nic: str
    direction: str
    src: str
    dst: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of a flow: who answered, which source address the far end saw, and what went wrong, in words.

    `packets` are all packets of the flow on the captured NICs, in the order of time.
    """

    ok: bool
    answered_by: str | None = None
    seen: str | None = None
    detail: str = ""
    packets: tuple[Seen, ...] = ()

    @property
    def hops(self) -> list[Seen]:
        """`packets` without repetition: each place and pair of addresses once, where it first appeared."""
        return list(dict.fromkeys(self.packets))

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, without what is as by default."""
        values = _told(self)
        if self.packets:
            values["packets"] = [_told(packet) for packet in self.packets]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Answer:
        """The inverse of `to_dict`."""
        return cls(**{**values, "packets": tuple(Seen(**packet) for packet in values.get("packets", ()))})


def _told(value: Probe | Quoted | Answer | Seen) -> dict[str, Any]:
    """Field to value, of those that are not as by default."""
    return {one.name: of for one in fields(value) if (of := getattr(value, one.name)) != one.default}


@dataclass(kw_only=True)
class _Attempt:
    """A flow on its way."""

    number: int
    flow: Probe
    token: str
    deadline: float
    socket: socket.socket | None = None
    port: int = 0  # the local TCP port
    answer: Answer | None = None
    packets: list[CapturedPacket] = field(default_factory=list)

    @property
    def request(self) -> bytes:
        """The HTTP request."""
        return f"GET /{self.token} HTTP/1.0\r\n\r\n".encode()


class Prober:
    """Sends probes from the machines of one lab.  Only one thread may use it at a time."""

    def __init__(self, topology: Topology, fabric: Fabric) -> None:
        self._hosts = {vm.name for vm in topology.vms.values() if vm.kind == VM_HOST}
        self._taps = {name: Tap(name) for name in fabric.vms}
        self._numbers = itertools.count(int.from_bytes(os.urandom(2), "big"))

    def probe(self, flows: Sequence[Probe], seconds: float = 2.0, capture: bool = False) -> list[Answer]:
        """Send every flow, many at a time, and wait for each answer up to `seconds`.

        With `capture`, `Answer.packets` has every packet on every NIC of every VM.

        Raises:
            LabError: an unknown VM or protocol, or a capture that lost packets.
        """
        for flow in flows:
            if flow.source_vm not in self._taps:
                raise LabError(f"no VM called {flow.source_vm} in this lab")
            if flow.protocol not in NUMBER:
                raise LabError(f"protocol {flow.protocol}: one of {', '.join(sorted(NUMBER))}")
            if flow.forged and flow.source_address is None:
                raise LabError(f"{flow.source_vm} to {flow.destination}: a forged flow needs a source address")
            if (flow.shape in ERRORS) != (flow.about is not None):
                raise LabError(f"shape {flow.shape}: an ICMP error, and nothing else, is about a packet")
            if flow.shape not in SHAPES or (flow.shape != REQUEST and not flow.forged):
                raise LabError(f"shape {flow.shape}: one of {', '.join(SHAPES)}, and of a forged flow only")
        if capture:
            taps = list(self._taps.values())
        elif any(flow.protocol == ICMP or flow.forged for flow in flows):
            taps = [tap for name, tap in self._taps.items() if name in self._hosts]
        else:
            taps = []
        return _Round(self._hosts, taps, self._numbers).run(flows, seconds, capture)


class _Round:
    """One call of `probe`."""

    def __init__(self, hosts: set[str], taps: list[Tap], numbers: Iterator[int]) -> None:
        self.hosts = hosts
        self.taps = taps
        self.numbers = numbers
        self.selector = selectors.DefaultSelector()
        self.raw: dict[tuple[str, str | None], socket.socket] = {}  # ICMP, shared by the flows of a source
        self.forging: dict[str, socket.socket] = {}  # whole packets, by VM
        self.pending: dict[str, _Attempt] = {}  # by token
        self.asking = 0  # pending flows to which an answer comes back; no answer follows a forged packet
        self.packets: list[CapturedPacket] = []

    def run(self, flows: Sequence[Probe], seconds: float, capture: bool) -> list[Answer]:
        attempts: list[_Attempt] = []
        waiting = iter(flows)
        try:
            for tap in self.taps:
                tap.start()
                self.selector.register(tap, selectors.EVENT_READ)
            more = True
            while more or self.pending:
                room = min(_BURST, _IN_FLIGHT - self.asking)
                attempts += [self.begin(flow, seconds) for flow in itertools.islice(waiting, room)]
                more = len(attempts) < len(flows)
                self.turn(0 if more and self.asking < _IN_FLIGHT else 0.05)
                for attempt in self.late(time.monotonic()):
                    self.finish(attempt, Answer(ok=False, detail=f"no answer in {seconds:g} s"))
            if self.taps:
                end = time.monotonic() + _LINGER
                while (left := end - time.monotonic()) > 0:
                    self.turn(left)
        finally:
            for raw in [*self.raw.values(), *self.forging.values()]:
                raw.close()
            for attempt in self.pending.values():
                if attempt.socket is not None:
                    attempt.socket.close()
            self.selector.close()
            for tap in self.taps:
                self.packets.extend(tap.stop())
        self.sort_packets(attempts)
        return [self.judge(attempt, capture) for attempt in attempts]

    def late(self, now: float) -> list[_Attempt]:
        """The flows that nobody has answered in time; pending flows are in the order of their deadlines."""
        return list(itertools.takewhile(lambda attempt: attempt.deadline < now, self.pending.values()))

    # --- sending -----------------------------------------------------------------------------------------------

    def begin(self, flow: Probe, seconds: float) -> _Attempt:
        number = next(self.numbers)
        token = f"natpod-{os.urandom(4).hex()}{number & 0xFFFFFFFF:08x}"
        attempt = _Attempt(number=number, flow=flow, token=token, deadline=time.monotonic() + seconds)
        self.pending[token] = attempt
        self.asking += not flow.forged
        try:
            if flow.forged:
                self.send_forged(attempt)
            elif flow.protocol == ICMP:
                self.send_icmp(attempt)
            else:
                self.connect(attempt)
        except OSError as error:
            self.finish(attempt, Answer(ok=False, detail=_words(error)))
        return attempt

    def send_forged(self, attempt: _Attempt) -> None:
        flow = attempt.flow
        assert flow.source_address is not None
        raw = self.forging.get(flow.source_vm)
        if raw is None:
            space = vm_namespace(flow.source_vm)
            raw = open_socket(space, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self.forging[flow.source_vm] = raw
        for packet in crafted(
            flow.shape,
            flow.source_address,
            flow.destination,
            flow.protocol,
            flow.destination_port,
            attempt.number,
            attempt.token.encode(),
            source_port=flow.source_port,
            about=flow.about,
            ttl=flow.ttl,
        ):
            raw.sendto(packet, (flow.destination, 0))

    def send_icmp(self, attempt: _Attempt) -> None:
        flow = attempt.flow
        source = (flow.source_vm, flow.source_address)
        if source not in self.raw:
            raw = open_socket(vm_namespace(flow.source_vm), socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            try:
                raw.bind((flow.source_address or "0.0.0.0", 0))
            except OSError:
                raw.close()
                raise
            self.raw[source] = raw
            self.selector.register(raw, selectors.EVENT_READ, self.read_icmp)
        self.raw[source].sendto(echo_request(attempt.number, attempt.token.encode()), (flow.destination, 0))

    def connect(self, attempt: _Attempt) -> None:
        flow = attempt.flow
        kind = socket.SOCK_DGRAM if flow.protocol == UDP else socket.SOCK_STREAM
        attempt.socket = open_socket(vm_namespace(flow.source_vm), socket.AF_INET, kind)
        if flow.source_address is not None:
            attempt.socket.bind((flow.source_address, 0))
        status = attempt.socket.connect_ex((flow.destination, flow.destination_port))
        if status not in (0, errno.EINPROGRESS):
            raise OSError(status, os.strerror(status))
        if flow.protocol == UDP:
            attempt.socket.send(attempt.token.encode())
            self.selector.register(attempt.socket, selectors.EVENT_READ, (self.read_answer, attempt))
        else:
            attempt.port = attempt.socket.getsockname()[1]
            self.selector.register(attempt.socket, selectors.EVENT_WRITE, (self.ask, attempt))

    # --- receiving ---------------------------------------------------------------------------------------------

    def turn(self, seconds: float) -> None:
        """Wait for something to happen, and deal with all of it."""
        for key, _ in self.selector.select(seconds):
            if isinstance(key.fileobj, Tap):
                self.take(key.fileobj.packets())
            elif isinstance(key.data, tuple):
                read, attempt = key.data
                if attempt.answer is None:
                    read(attempt)
            else:
                key.data(key.fileobj)

    def take(self, packets: Iterable[CapturedPacket]) -> None:
        """Keep captured packets.  A forged one that reaches another host is the answer to its flow.

        "Another", because a packet whose source address the sender really has is echoed back to the sender.
        """
        for packet in packets:
            self.packets.append(packet)
            attempt = self.pending.get(packet.token)
            if attempt is None or not attempt.flow.forged or packet.vm == attempt.flow.source_vm:
                continue
            if self.arrived(packet, reply=attempt.flow.shape in (REPLY, *ERRORS)):
                self.finish(attempt, Answer(ok=True, answered_by=packet.vm, seen=packet.src))

    def arrived(self, packet: CapturedPacket, *, reply: bool = False) -> bool:
        """Whether a packet came in at a host, and not as an answer, unless it was sent as one."""
        return packet.direction == "in" and (packet.request or reply) and packet.vm in self.hosts

    def read_icmp(self, raw: socket.socket) -> None:
        while True:
            try:
                data, peer = raw.recvfrom(2048)
            except OSError:
                return
            found = TOKEN.search(data)
            attempt = self.pending.get(found[0].decode()) if found else None
            kind, code = data[(data[0] & 15) * 4 :][:2]
            if attempt is None or kind == 8:
                continue
            right = kind == 0 and peer[0] == attempt.flow.destination
            self.finish(
                attempt, Answer(ok=right, detail="" if right else f"ICMP type {kind} code {code} from {peer[0]}")
            )

    def ask(self, attempt: _Attempt) -> None:
        """The TCP connection is established, or it failed."""
        assert attempt.socket is not None
        status = attempt.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            self.finish(attempt, Answer(ok=False, detail=_words(OSError(status, os.strerror(status)))))
            return
        self.selector.modify(attempt.socket, selectors.EVENT_READ, (self.read_answer, attempt))
        attempt.socket.send(attempt.request)

    def read_answer(self, attempt: _Attempt) -> None:
        assert attempt.socket is not None
        try:
            data = attempt.socket.recv(4096)
        except OSError as error:
            self.finish(attempt, Answer(ok=False, detail=_words(error)))
            return
        found = _ANSWER.search(data)
        if found is None:
            self.finish(attempt, Answer(ok=False, detail="connected, but no server of this lab answered"))
            return
        self.finish(attempt, Answer(ok=True, answered_by=found[1].decode(), seen=found[2].decode()))

    def finish(self, attempt: _Attempt, answer: Answer) -> None:
        attempt.answer = answer
        del self.pending[attempt.token]
        self.asking -= not attempt.flow.forged
        if attempt.socket is not None:
            if attempt.socket in self.selector.get_map():
                self.selector.unregister(attempt.socket)
            attempt.socket.close()

    # --- judging -----------------------------------------------------------------------------------------------

    def sort_packets(self, attempts: list[_Attempt]) -> None:
        """Give each captured packet to its flow, in the order of time."""
        self.packets.sort(key=lambda packet: packet.when)
        by_token = {attempt.token: attempt for attempt in attempts}
        # A kernel gives the same local port to several connections if they go to different addresses, and again to the
        # same address once it is free.  So look up by port and address, and then in the order in which they began.
        begun: dict[tuple[str, int, str, int], list[_Attempt]] = {}
        for attempt in attempts:
            if attempt.port:
                flow = attempt.flow
                ends = (flow.source_vm, attempt.port, flow.destination, flow.destination_port)
                begun.setdefault(ends, []).append(attempt)
        by_sequence: dict[tuple[int, int], _Attempt] = {}
        for packet in self.packets:
            owner = by_token.get(packet.token)
            if owner is None and packet.protocol == HTTP:
                owner = by_sequence.get((packet.sequence, packet.dport))
                owner = owner or by_sequence.get((packet.acknowledged, packet.sport))
                mine = begun.get((packet.vm, packet.sport, packet.dst, packet.dport))
                if owner is None and mine and packet.syn and packet.direction == "out":
                    owner = mine.pop(0)
                    # Every sequence number that its client can use: SYN, request, FIN, and the ACK of the last.
                    for step in (0, 1, 1 + len(owner.request), 2 + len(owner.request)):
                        by_sequence[(packet.sequence + step) % 2**32, packet.dport] = owner
            if owner is not None:
                owner.packets.append(packet)

    def judge(self, attempt: _Attempt, capture: bool) -> Answer:
        """The answer with what only the captures know."""
        assert attempt.answer is not None
        who, seen = attempt.answer.answered_by, attempt.answer.seen
        if attempt.answer.ok and attempt.flow.protocol == ICMP and not attempt.flow.forged:
            last = next((p for p in reversed(attempt.packets) if self.arrived(p)), None)
            # Nobody: the machine that answered is not a host, so it is most likely a NAT VM itself.
            who, seen = (last.vm, last.src) if last else (None, None)
        packets = tuple(
            Seen(vm=p.vm, nic=p.nic, direction=p.direction, src=p.src, dst=p.dst) for p in attempt.packets if capture
        )
        return Answer(ok=attempt.answer.ok, answered_by=who, seen=seen, detail=attempt.answer.detail, packets=packets)


def _words(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "the VM does not have the source address"
    return (error.strerror or str(error)).lower()
