"""Flows that stay open while something happens to the NAT VMs: TCP and UDP, with data both ways.

One thread runs all clients and all echo servers.  A client sends records of a fixed length, with its flow's number and
a sequence number.  The server answers each with the same two, its own name and the source it saw.  So every answer
shows whether it came from the right machine, through the right translation, to the right flow.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from dataclasses import dataclass, field
from threading import RLock, Thread
from typing import Any

from nat_pod.lab.wire.fabric import vm_namespace
from nat_pod.lab.wire.netns import LabError, open_socket
from nat_pod.trace.topology import VM_HOST, Topology

PORT = 7  # echo
TCP, UDP = "tcp", "udp"
PERIODS = (0.1, 0.3, 1.0)  # seconds between two records, by the flow's number: busy flows and quiet ones

_RECORD = struct.Struct("!II56x")  # flow, sequence number
_ANSWER = struct.Struct("!III4s48x")  # the same, the server's number, the source it saw


@dataclass(kw_only=True)
class _OpenFlow:
    """A client's side of a flow."""

    number: int
    protocol: str
    socket: socket.socket
    open: bool
    due: float = 0.0
    sent: int = 0  # also the next sequence number
    answered: int = 0
    highest: int = -1  # sequence number answered
    marked: int = 0  # first sequence number after the mark
    answers: set[tuple[str, str]] = field(default_factory=set)  # since the mark
    error: str | None = None
    pending: bytes = b""


class Load(Thread):
    """All flows.  `open`, `close`, `mark` and `report` may be called from any thread."""

    def __init__(self, topology: Topology) -> None:
        super().__init__(name="load", daemon=True)
        self._selector = selectors.DefaultSelector()
        self._lock = RLock()
        self._flows: dict[int, _OpenFlow] = {}
        self._hosts: list[str] = []
        self.serve(topology)

    def serve(self, topology: Topology) -> None:
        """Answer on the hosts of a network; those that were served before stay."""
        with self._lock:
            self._serve([vm.name for vm in topology.vms.values() if vm.kind == VM_HOST], topology)

    def _serve(self, hosts: list[str], topology: Topology) -> None:
        first = len(self._hosts)
        self._hosts += hosts
        for index, name in enumerate(hosts, first):
            for kind, serve in ((socket.SOCK_STREAM, self._accept), (socket.SOCK_DGRAM, self._echo)):
                server = open_socket(vm_namespace(name), socket.AF_INET, kind)
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((topology.vnics[topology.vms[name].vnics[0]].addresses[0], PORT))
                if kind == socket.SOCK_STREAM:
                    server.listen(256)
                self._selector.register(server, selectors.EVENT_READ, (serve, index))

    # --- what callers ask ----------------------------------------------------------------------------------------

    def open(self, flows: list[dict[str, Any]]) -> None:
        """Open flows, each {"number", "protocol": tcp or udp, "sender": a host, "destination": an address}."""
        with self._lock:
            for given in flows:
                kind = socket.SOCK_STREAM if given["protocol"] == TCP else socket.SOCK_DGRAM
                client = open_socket(vm_namespace(given["sender"]), socket.AF_INET, kind)
                flow = _OpenFlow(number=given["number"], protocol=given["protocol"], socket=client, open=False)
                self._flows[flow.number] = flow
                status = client.connect_ex((given["destination"], PORT))
                if status not in (0, errno.EINPROGRESS):
                    flow.error = os.strerror(status)
                elif flow.protocol == TCP:
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._selector.register(client, selectors.EVENT_WRITE, (self._connected, flow.number))
                else:
                    flow.open = True
                    self._selector.register(client, selectors.EVENT_READ, (self._read, flow.number))

    def close(self, numbers: list[int]) -> None:
        """End flows and forget them."""
        with self._lock:
            for number in numbers:
                flow = self._flows.pop(number)
                if flow.error is None:
                    self._selector.unregister(flow.socket)
                # A reset: if a FIN got lost, the far end would keep half a connection.
                if flow.protocol == TCP:
                    flow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                flow.socket.close()

    def mark(self) -> None:
        """Let every flow send now.  `answers` of the next report counts only answers to what is sent from now on."""
        with self._lock:
            for flow in self._flows.values():
                flow.marked, flow.due = flow.sent, 0.0
                flow.answers.clear()

    def report(self) -> dict[int, dict[str, Any]]:
        """By number: what went wrong (None: nothing), records sent and lost, and who answered, with the source it saw.

        A record is lost when a later one of its flow has been answered.
        """
        if not self.is_alive():
            raise LabError("the thread that keeps the flows died; see holder.log")
        with self._lock:
            return {
                flow.number: {
                    "error": flow.error,
                    "sent": flow.sent,
                    "lost": flow.highest + 1 - flow.answered,
                    "answers": sorted(flow.answers),
                }
                for flow in self._flows.values()
            }

    # --- clients -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Send and answer until the process ends."""
        while True:
            ready: list[Any] = self._selector.select(timeout=0.02)
            with self._lock:
                for key, _ in ready:
                    if key.fileobj.fileno() >= 0:  # not closed meanwhile
                        act, what = key.data
                        act(key.fileobj, what)
                now = time.monotonic()
                for flow in self._flows.values():
                    if flow.open and flow.error is None and now >= flow.due:
                        flow.due = now + PERIODS[flow.number % len(PERIODS)]
                        self._send(flow)

    def _connected(self, client: socket.socket, number: int) -> None:
        flow = self._flows[number]
        status = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            self._fail(flow, os.strerror(status))
            return
        flow.open = True
        self._selector.modify(client, selectors.EVENT_READ, (self._read, number))

    def _send(self, flow: _OpenFlow) -> None:
        try:
            flow.socket.send(_RECORD.pack(flow.number, flow.sent))
            flow.sent += 1
        except BlockingIOError:
            pass  # nothing gets through, and the buffer is full
        except OSError as error:
            if flow.protocol == TCP:
                self._fail(flow, os.strerror(error.errno or 0))
            else:
                flow.sent += 1  # an ICMP error for an earlier record came in, and this send failed in its place

    def _read(self, client: socket.socket, number: int) -> None:
        flow = self._flows[number]
        try:
            data = client.recv(1 << 16)
        except OSError as error:
            if flow.protocol == TCP:
                self._fail(flow, os.strerror(error.errno or 0))
            return
        if not data:
            self._fail(flow, "closed by the far end")
            return
        flow.pending += data
        while len(flow.pending) >= _ANSWER.size:
            answer, flow.pending = flow.pending[: _ANSWER.size], flow.pending[_ANSWER.size :]
            owner, sequence, server, seen = _ANSWER.unpack(answer)
            if owner != number or sequence >= flow.sent or (flow.protocol == TCP and sequence != flow.highest + 1):
                self._fail(flow, f"wrong data: flow {owner}, record {sequence} after {flow.highest}")
                return
            flow.answered += 1
            flow.highest = max(flow.highest, sequence)
            if sequence >= flow.marked:
                flow.answers.add((self._hosts[server], socket.inet_ntoa(seen)))

    def _fail(self, flow: _OpenFlow, reason: str) -> None:
        flow.error = reason
        self._selector.unregister(flow.socket)  # also a sign for `close`

    # --- servers -------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, index: int) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(connection, selectors.EVENT_READ, (self._respond, (index, bytearray())))

    def _respond(self, connection: socket.socket, state: tuple[int, bytearray]) -> None:
        index, pending = state
        try:
            data = connection.recv(1 << 16)
            pending += data
            while data and len(pending) >= _RECORD.size:
                flow, sequence = _RECORD.unpack(pending[: _RECORD.size])
                del pending[: _RECORD.size]
                seen = socket.inet_aton(connection.getpeername()[0])
                connection.send(_ANSWER.pack(flow, sequence, index, seen))
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()

    def _echo(self, server: socket.socket, index: int) -> None:
        try:
            data, (peer, port) = server.recvfrom(2048)
            flow, sequence = _RECORD.unpack(data)
            server.sendto(_ANSWER.pack(flow, sequence, index, socket.inet_aton(peer)), (peer, port))
        except (OSError, struct.error):
            pass  # an ICMP error came in, or a packet that is not ours
