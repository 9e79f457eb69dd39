"""A straight line of four network namespaces, customer - NAT VM1 - NAT VM2 - management, and packets to send down it.

Nothing but the two NAT VMs is between the ends, so their cost is diluted as little as possible.  One thread does
everything.  A veth hands a packet over within the sender's own system call, so when the call returns, the packet has
passed both VMs, and so has its answer, if there is one.  There is no other core, wake-up or queue to wait for.

One `sendmmsg` sends a whole batch, in which each packet is the first of its flow.  Python takes part once per batch, so
its own time does not hide the kernel's.  Only TCP connections are opened one by one, as a program does it.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from nat_pod.lab.wire import netns

MTU = 9000
BATCH = 256  # packets, all new flows: about 3 ms
CONNECTIONS = 48  # TCP connections per slice: about 4 ms
UDP_PORT, TCP_PORT = 1, 7
_MEGABYTE = 1 << 20
_LINK = "169.254.0.1"  # next hop everywhere; nobody has it, only its neighbour entries exist
_SYSCTLS = (
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
)

_SOL_RAW, _ICMP_FILTER, _SO_RCVBUFFORCE = 255, 1, 33  # linux/socket.h, linux/icmp.h, asm-generic/socket.h
_IPV4 = 0x0800  # ETH_P_IP

_libc = ctypes.CDLL(None, use_errno=True)


class _Address(ctypes.Structure):  # struct sockaddr_in
    _fields_ = (
        ("family", ctypes.c_uint16),
        ("port", ctypes.c_uint16),
        ("address", ctypes.c_uint8 * 4),
        ("zero", ctypes.c_uint8 * 8),
    )


class _Vector(ctypes.Structure):  # struct iovec
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):  # struct mmsghdr
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_size_t),  # an int and its padding
        ("sent", ctypes.c_size_t),  # the same
    )


class Batch:
    """Packets that one system call sends, each a pair of destination and payload."""

    def __init__(self, packets: Sequence[tuple[tuple[str, int], bytes]]) -> None:
        count = len(packets)
        self._payloads = [ctypes.create_string_buffer(payload, len(payload)) for _, payload in packets]
        self._addresses = (_Address * count)()
        self._vectors = (_Vector * count)()
        self._messages = (_Message * count)()
        for at, ((address, port), _) in enumerate(packets):
            self._addresses[at].family = socket.AF_INET
            self._addresses[at].port = socket.htons(port)
            self._addresses[at].address[:] = socket.inet_aton(address)
            self._vectors[at].base = ctypes.addressof(self._payloads[at])
            self._vectors[at].length = len(self._payloads[at])
            message = self._messages[at]
            message.name, message.name_length = ctypes.addressof(self._addresses[at]), ctypes.sizeof(_Address)
            message.vectors, message.vector_count = ctypes.addressof(self._vectors[at]), 1

    def send(self, channel: socket.socket) -> None:
        """Send them all, in order.  Raises OSError when the kernel takes fewer."""
        at, descriptor = 0, channel.fileno()
        while at < len(self._messages):
            left = len(self._messages) - at
            sent = _libc.sendmmsg(
                descriptor, ctypes.byref(self._messages, at * ctypes.sizeof(_Message)), min(left, 1024), 0
            )
            if sent < 1:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), "sendmmsg")
            at += sent


@dataclass(frozen=True)
class Side:
    """A NAT VM of the line: its primary address, the networks behind the other VM, what iptables-restore loads."""

    primary: str
    beyond: tuple[str, ...]
    rules: str = ""


class Line:
    """Four namespaces in a row.  `hosts` and `servers` are the addresses that its ends have."""

    def __init__(self, name: str, hosts: Sequence[str], servers: Sequence[str], vm1: Side, vm2: Side) -> None:
        self.name = name
        self.customer, self.vm1, self.vm2, self.management = (f"{name}-{place}" for place in ("c", "1", "2", "m"))
        self._lay(hosts, servers, vm1, vm2)

    def _lay(self, hosts: Sequence[str], servers: Sequence[str], vm1: Side, vm2: Side) -> None:
        spaces = (self.customer, self.vm1, self.vm2, self.management)
        netns.ip_batch("".join(f"netns add {space}\n" for space in spaces))
        for space in spaces:
            netns.set_sysctls(space, _SYSCTLS)
        netns.ip_batch(
            "".join(
                f"link add right netns {left} mtu {MTU} address 02:00:00:00:00:01 type veth "
                f"peer left netns {right} mtu {MTU} address 02:00:00:00:00:02\n"
                for left, right in pairwise(spaces)
            )
        )
        ends = {self.customer: ("right", hosts), self.management: ("left", servers)}
        for space, (nic, addresses) in ends.items():
            lines = ["link set lo up", *(f"addr add {address}/32 dev lo" for address in addresses)]
            netns.ip_batch("\n".join([*lines, *_towards(nic, ["0.0.0.0/0"])]) + "\n", space)
        for space, side, inner, outer in ((self.vm1, vm1, "right", "left"), (self.vm2, vm2, "left", "right")):
            # The primary address on both, as the one VNIC that these two interfaces are has it for both neighbours.
            lines = [f"addr add {side.primary}/32 dev {nic}" for nic in (outer, inner)]
            netns.ip_batch(
                "\n".join(["link set lo up", *lines, *_towards(outer, ["0.0.0.0/0"]), *_towards(inner, side.beyond)])
                + "\n",
                space,
            )
        # Arrived packets are counted here and go no further: nobody listens, and an ICMP error would cost more.
        for space in (self.customer, self.management):
            netns.restore_rules(space, "*raw\n-A PREROUTING -p udp -j DROP\nCOMMIT\n")
        for space, side in ((self.vm1, vm1), (self.vm2, vm2)):
            netns.restore_rules(space, side.rules)
        for space in spaces:
            netns.wait_for_links(space)

    def forget_flows(self) -> None:
        """Empty both conntrack tables, so that the next batch is new again."""
        for space in (self.vm1, self.vm2):
            with netns.open_socket(space, socket.AF_NETLINK, socket.SOCK_RAW, 12) as channel:  # NETLINK_NETFILTER
                channel.setblocking(True)
                channel.bind((0, 0))
                # IPCTNL_MSG_CT_DELETE without a tuple: all of them; REQUEST | ACK.
                channel.send(struct.pack("=IHHIIBBH", 20, 0x102, 0x5, 1, 0, socket.AF_INET, 0, 0))
                answer = channel.recv(4096)
                code = struct.unpack_from("=i", answer, 16)[0]
                if code:
                    raise OSError(-code, os.strerror(-code), "conntrack flush")

    def flows(self, space: str) -> int:
        """Conntrack entries of a NAT VM."""
        with netns.inside(space):
            return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text(encoding="ascii"))

    def arrived(self, space: str) -> int:
        """UDP packets that reached an end so far."""
        saved = netns.save_rules(space)
        return int(saved.partition("[")[2].partition("-A PREROUTING -p udp")[0].rpartition("[")[2].partition(":")[0])


def _towards(nic: str, networks: Sequence[str]) -> list[str]:
    mac = "02:00:00:00:00:02" if nic == "right" else "02:00:00:00:00:01"
    return [
        f"link set {nic} up",
        f"neigh replace {_LINK} lladdr {mac} dev {nic} nud permanent",
        *(f"route add {network} via {_LINK} dev {nic} onlink" for network in networks),
    ]


def echo_request(identifier: int, sequence: int) -> bytes:
    """An ICMP echo request with 48 bytes of data."""
    data = bytes(48)
    total = 0x0800 + identifier + sequence
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", 8, 0, ~(total + (total >> 16)) & 0xFFFF, identifier, sequence) + data


def udp_packet(source: str, target: str, from_port: int, to_port: int) -> bytes:
    """An IPv4 packet with an empty UDP datagram; the kernel fills in length and checksum."""
    addresses = socket.inet_aton(source), socket.inet_aton(target)
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, socket.IPPROTO_UDP, 0, *addresses)
    return header + struct.pack("!HHHH", from_port, to_port, 8, 0)


class Way:
    """One direction of a line, from `source` to `target` as the sender knows it: what can be timed of it."""

    def __init__(self, line: Line, source: str, target: str, *, from_customer: bool) -> None:
        self.line = line
        start, end = (line.customer, line.management) if from_customer else (line.management, line.customer)
        self.end = end
        self._start, self._source, self._target = start, source, (target, TCP_PORT)
        self._udp = netns.open_socket(start, socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.setblocking(True)
        self._udp.bind((source, 0))
        self._icmp = netns.open_socket(start, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._icmp.bind((source, 0))
        self._icmp.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF & ~1))  # all but echo replies
        self._icmp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)  # the answers of a batch
        self._listener = netns.open_socket(end, socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setblocking(True)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("0.0.0.0", TCP_PORT))
        self._listener.listen(512)
        self._stream: tuple[socket.socket, socket.socket] | None = None
        self._new = Batch([((target, UDP_PORT + at), b"x" * 18) for at in range(BATCH)])
        self._same = Batch([((target, UDP_PORT), b"x" * 18)] * BATCH)
        self._first = Batch([((target, UDP_PORT), b"x" * 18)])
        self._warm = Batch([((target, 40_000 + at), b"x" * 18) for at in range(24)])
        self._echoes = Batch([((target, 0), echo_request(at + 1, 1)) for at in range(BATCH)])
        self._again = Batch([((target, 0), echo_request(at + 1, 2)) for at in range(BATCH)])

    def check(self) -> None:
        """Raise LabError unless packets of new flows reach the other end."""
        self.line.forget_flows()
        before = self.line.arrived(self.end)
        self._new.send(self._udp)
        arrived = self.line.arrived(self.end) - before
        if arrived != BATCH:
            raise netns.LabError(f"{self.line.name}: {arrived} of {BATCH} packets to {self._target[0]} arrived")
        before = self.line.arrived(self._start)
        self._answered()
        if self.line.arrived(self._start) - before != 1:
            raise netns.LabError(f"{self.line.name}: the answer of {self._target[0]} did not arrive")

    def udp_new(self) -> float:
        """First packet of a flow, one way: seconds per packet."""
        return self._timed(lambda: self._new.send(self._udp)) / BATCH

    def udp_same(self) -> float:
        """A later packet of a flow that has been answered, one way."""
        self.line.forget_flows()
        self._answered()
        return self._timed(lambda: self._same.send(self._udp), new=False) / BATCH

    def udp_unanswered(self) -> float:
        """A later packet of a flow that nobody answers, one way: to conntrack each one is still NEW."""
        return self._timed(lambda: self._same.send(self._udp)) / BATCH

    def echo_new(self) -> float:
        """First packet of a flow and its answer: the round trip of the first ping."""
        seconds = self._timed(lambda: self._echoes.send(self._icmp)) / BATCH
        self._answers()
        return seconds

    def echo_same(self) -> float:
        """Round trip on a flow that exists."""
        self.line.forget_flows()
        self._echoes.send(self._icmp)
        self._answers()
        seconds = self._timed(lambda: self._again.send(self._icmp), new=False) / BATCH
        self._answers()
        return seconds

    def connect(self) -> float:
        """A TCP connection: socket, connect, accept, close of both."""
        with netns.inside(self._start):
            return self._timed(self._connections) / CONNECTIONS

    def throughput(self) -> float:
        """A megabyte sent and read on a TCP connection that exists."""
        if self._stream is None:
            with netns.inside(self._start):
                one = socket.create_connection(self._target, timeout=5, source_address=(self._source, 0))
            other, _ = self._listener.accept()
            for end in (one, other):
                end.setblocking(False)
            self._stream = one, other
            self._bytes, self._room = bytes(1 << 16), bytearray(1 << 20)
        return self._timed(self._megabyte, new=False)

    def _megabyte(self) -> None:
        assert self._stream is not None
        (one, other), piece, room = self._stream, self._bytes, self._room
        sent = read = 0
        while read < _MEGABYTE:
            if sent < _MEGABYTE:
                with suppress(BlockingIOError):
                    sent += one.send(piece)
            with suppress(BlockingIOError):
                read += other.recv_into(room)

    def _connections(self) -> None:
        kind, family, source, target = socket.SOCK_STREAM, socket.AF_INET, (self._source, 0), self._target
        linger, accept, close, make = struct.pack("ii", 1, 0), self._listener._accept, os.close, _Socket  # type: ignore[attr-defined]
        for _ in range(CONNECTIONS):
            one = make(family, kind)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # no TIME_WAIT: each slice finds the same
            one.bind(source)
            one.connect(target)
            other, _peer = accept()
            one.close()
            close(other)

    def _timed(self, work: Callable[[], None], *, new: bool = True) -> float:
        """Seconds that `work` takes, or infinity when another process had the core meanwhile."""
        if new:
            self.line.forget_flows()
        with _alone():
            self._warm.send(self._udp)
            switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            before = time.perf_counter()
            work()
            seconds = time.perf_counter() - before
            disturbed = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw != switches
        return math.inf if disturbed else seconds

    def _answered(self) -> None:
        """Send the first packet of a UDP flow, and its answer from the other end, whatever it is called there."""
        # A packet socket sees what the raw table drops.  It is closed again: each open one costs every packet.
        with netns.open_socket(self.end, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_IPV4)) as seen:
            seen.settimeout(1)
            self._first.send(self._udp)
            packet = seen.recv(2048)
        source, target, (from_port, to_port) = packet[12:16], packet[16:20], struct.unpack_from("!HH", packet, 20)
        answer = udp_packet(socket.inet_ntoa(target), socket.inet_ntoa(source), to_port, from_port)
        with netns.open_socket(self.end, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as channel:
            channel.sendto(answer, (socket.inet_ntoa(source), 0))

    def _answers(self) -> None:
        count = 0
        try:
            while True:
                self._icmp.recv(2048)
                count += 1
        except BlockingIOError:
            pass
        if count != BATCH:
            raise netns.LabError(f"{self.line.name}: {count} answers to {BATCH} echo requests to {self._target[0]}")


_Socket = socket.socket.__bases__[0]  # without Python's own wrapping, which takes as long as a rule set


@contextmanager
def _alone() -> Iterator[None]:
    """The core for us alone for the few milliseconds of a slice; where this is allowed, ordinary processes wait."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
