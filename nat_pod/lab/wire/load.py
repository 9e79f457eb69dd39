"""Flows that stay open while something happens to the NAT VMs: TCP and UDP, in the kinds of `held_flow.Kind`.

One thread runs all clients and all servers.  Records of a fixed length go from one to the other, with their flow's
number and a sequence number; a server puts its own name and the source that it saw into what it sends.  So every record
shows whether it came from the right machine, through the right translation, to the right flow, and none is missing.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from threading import RLock, Thread
from typing import Any

from nat_pod.lab.wire.held_flow import RECORD, Direction, HeldFlow, Kind, Record
from nat_pod.lab.wire.netns import LabError, open_socket
from nat_pod.lab.wire.space import vm_namespace
from nat_pod.trace.topology import VM_HOST, Topology

PORT = 7  # echo
TCP, UDP = "tcp", "udp"
PERIODS = (0.1, 0.3, 1.0)  # seconds between two records, by the flow's number: busy flows and quiet ones
ACTIONS = ("open", "close", "mark", "wake", "end", "report")


class Load(Thread):
    """All flows.  The methods named in ACTIONS may be called from any thread."""

    def __init__(self, topology: Topology) -> None:
        super().__init__(name="load", daemon=True)
        self._selector = selectors.DefaultSelector()
        self._lock = RLock()
        self._flows: dict[int, HeldFlow] = {}
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
            for kind, serve in ((socket.SOCK_STREAM, self._accept), (socket.SOCK_DGRAM, self._datagram)):
                server = open_socket(vm_namespace(name), socket.AF_INET, kind)
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((topology.vnics[topology.vms[name].vnics[0]].addresses[0], PORT))
                if kind == socket.SOCK_STREAM:
                    server.listen(1024)
                self._selector.register(server, selectors.EVENT_READ, (serve, index))

    # --- what callers ask ----------------------------------------------------------------------------------------

    def open(self, flows: list[dict[str, Any]]) -> None:
        """Open flows, each {"number", "protocol": tcp or udp, "sender": a host, "destination": an address}.

        And {"kind": of `Kind`, "period": seconds between two records} where they are not echo, and one of PERIODS.
        """
        with self._lock:
            for given in flows:
                number, protocol = given["number"], given["protocol"]
                client = open_socket(
                    vm_namespace(given["sender"]),
                    socket.AF_INET,
                    socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM,
                )
                flow = self._flows[number] = HeldFlow(
                    number=number,
                    protocol=protocol,
                    kind=Kind(given.get("kind", Kind.ECHO)),
                    period=given.get("period", PERIODS[number % len(PERIODS)]),
                    near=client,
                    forth=Direction(reliable=protocol == TCP),
                    back=Direction(reliable=protocol == TCP),
                )
                status = client.connect_ex((given["destination"], PORT))
                if status not in (0, errno.EINPROGRESS):
                    flow.error = os.strerror(status)
                elif protocol == TCP:
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._selector.register(client, selectors.EVENT_WRITE, (self._connected, number))
                else:
                    flow.open = True
                    self._selector.register(client, selectors.EVENT_READ, (self._near, number))

    def close(self, numbers: list[int]) -> None:
        """End flows and forget them, both ends at once."""
        with self._lock:
            for number in numbers:
                flow = self._flows.pop(number)
                for end in (flow.near, flow.far if flow.protocol == TCP else None):
                    if end is not None and end.fileno() >= 0:
                        # A reset: if a FIN got lost, the far end would keep half a connection.
                        self._shut(end, reset=flow.protocol == TCP)

    def mark(self, keep_pause: bool = False) -> None:
        """Let every flow but the idle ones send now.

        `answers` of the next report counts only what is sent from now on, and `pause`, unless kept, begins anew.
        """
        with self._lock:
            for flow in self._flows.values():
                flow.due = 0.0
                if not keep_pause:
                    flow.forth.pause = flow.back.pause = 0.0
                flow.mark()

    def wake(self, numbers: list[int], by_server: bool = False) -> None:
        """Let one end of these flows send a record now."""
        with self._lock:
            for number in numbers:
                flow = self._flows[number]
                if flow.error is not None or flow.ended is not None:
                    continue
                if by_server and flow.far is not None:
                    self._from_server(flow, flow.back.sent if flow.kind is Kind.PULL else flow.forth.sent)
                else:
                    self._from_client(flow)

    def end(self, numbers: list[int], reset: bool, by_server: bool) -> None:
        """Close one end of TCP flows, with a FIN or with a reset; `report` says whether the other one learns of it."""
        with self._lock:
            for number in numbers:
                flow = self._flows[number]
                end = flow.far if by_server else flow.near
                if flow.error is None and end is not None:
                    flow.closed = True
                    self._shut(end, reset=reset)

    def report(self) -> dict[int, dict[str, Any]]:
        """By number: how each flow is.

        error: what went wrong (None: nothing).  sent, lost: records, the client's and both ends'; one is lost when a
        later one arrived.  answers: since the mark, who answered, took in or sent records, and the source that it saw;
        by TCP once all that was sent by then is acknowledged, too.
        pause: since the mark, the longest that a record was on its way, in seconds.  silent: how long the oldest one
        is, that has not arrived.  ended: how the other end learned that one had closed (None: it has not).
        """
        if not self.is_alive():
            raise LabError("the thread that keeps the flows died; see holder.log")
        with self._lock:
            now = time.monotonic()
            return {flow.number: flow.report(self._hosts, now) for flow in self._flows.values()}

    # --- the thread ----------------------------------------------------------------------------------------------

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
                    if now >= flow.due and flow.open and flow.error is None and not flow.closed:
                        flow.due = now + flow.period
                        # By UDP the first record may get lost.
                        if flow.kind is not Kind.IDLE or (flow.far is None and flow.protocol == UDP):
                            self._send(flow)

    def _send(self, flow: HeldFlow) -> None:
        """One record from the end that sends of itself."""
        if flow.kind is Kind.PULL and flow.far is not None:
            self._from_server(flow, flow.back.sent)
        elif flow.kind is not Kind.PULL or flow.protocol == UDP or not flow.forth.sent:
            self._from_client(flow)

    def _from_client(self, flow: HeldFlow) -> None:
        self._write(flow, flow.near, flow.forth, Record(flow.number, flow.forth.sent))

    def _from_server(self, flow: HeldFlow, sequence: int) -> None:
        assert flow.far is not None, "a record has arrived there"
        self._write(flow, flow.far, flow.back, Record(flow.number, sequence, flow.server, flow.seen))

    def _write(self, flow: HeldFlow, end: socket.socket, way: Direction, record: Record) -> None:
        data, to = record.packed(), flow.peer if end is flow.far else None
        try:
            written = end.sendto(data, to) if to is not None else end.send(data)
        except BlockingIOError:
            return  # nothing gets through, and the buffer is full
        except OSError as error:
            if flow.protocol == TCP:
                self._fail(flow, os.strerror(error.errno or 0))
                return
            written = RECORD  # an ICMP error for an earlier record came in, and this one failed in its place
        if written != RECORD:
            self._fail(flow, "the send buffer is full")
            return
        way.send(record.sequence, time.monotonic())

    def _fail(self, flow: HeldFlow, reason: str) -> None:
        """A flow that ends; where one end was told to close, that is how the other one learns of it."""
        if flow.closed:
            flow.ended = flow.ended or reason
        else:
            flow.error = flow.error or reason
        for end in (flow.near, flow.far if flow.protocol == TCP else None):
            if end is not None and end.fileno() >= 0:
                self._shut(end, reset=flow.protocol == TCP)

    def _shut(self, end: socket.socket, *, reset: bool) -> None:
        with suppress(KeyError):
            self._selector.unregister(end)
        if reset:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()

    # --- clients -------------------------------------------------------------------------------------------------

    def _connected(self, client: socket.socket, number: int) -> None:
        flow = self._flows[number]
        status = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            self._fail(flow, os.strerror(status))
            return
        flow.open = True
        self._selector.modify(client, selectors.EVENT_READ, (self._near, number))
        self._send(flow)

    def _near(self, client: socket.socket, number: int) -> None:
        """What comes to a client."""
        flow = self._flows[number]
        for record in self._read(flow, client, at_server=False):
            if not flow.back.arrive(record.sequence, time.monotonic()):
                self._fail(flow, f"wrong data: record {record.sequence} came to the client")
                return
            if flow.kind is not Kind.PUSH and record.sequence >= flow.marked:
                flow.answer(record.server, record.seen)

    # --- servers -------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, index: int) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(connection, selectors.EVENT_READ, (self._greet, index))

    def _greet(self, connection: socket.socket, index: int) -> None:
        """The first record of a connection says whose it is."""
        try:
            head = connection.recv(RECORD, socket.MSG_PEEK)
            record = Record.unpacked(head)
            flow = self._flows.get(record.flow) if record is not None else None
            if len(head) in range(1, RECORD):
                return  # the rest is on its way
            if flow is None or flow.far is not None or flow.protocol != TCP:
                self._shut(connection, reset=True)
                return
            flow.far, flow.server, flow.seen = connection, index, connection.getpeername()[0]
        except OSError:
            self._shut(connection, reset=True)
            return
        self._selector.modify(connection, selectors.EVENT_READ, (self._far, flow.number))
        self._far(connection, flow.number)

    def _far(self, connection: socket.socket, number: int) -> None:
        """What comes to a server by TCP."""
        flow = self._flows[number]
        self._taken(flow, self._read(flow, connection, at_server=True))

    def _datagram(self, server: socket.socket, index: int) -> None:
        """What comes to a server by UDP.

        All of it: the clients of a server have a socket each, and the server has one.  With one record a round, a busy
        round would take in more than it answers, and the queue would stay full however quick later rounds were.
        """
        for _ in range(len(self._flows)):
            try:
                data, peer = server.recvfrom(2048)
            except OSError:
                return  # that was all, or an ICMP error came in
            record = Record.unpacked(data)
            flow = self._flows.get(record.flow) if record is not None else None
            if flow is not None and record is not None and flow.protocol == UDP and flow.error is None:
                flow.far, flow.server, flow.peer, flow.seen = server, index, peer, peer[0]
                self._taken(flow, [record])

    def _taken(self, flow: HeldFlow, records: Iterable[Record]) -> None:
        """A server has records: it answers, or only takes note."""
        for record in records:
            if not flow.forth.arrive(record.sequence, time.monotonic()):
                self._fail(flow, f"wrong data: record {record.sequence} came to the server")
                return
            if flow.kind is Kind.PUSH and record.sequence >= flow.marked:
                flow.answer(flow.server, flow.seen)
            if flow.kind in (Kind.ECHO, Kind.IDLE) or not record.sequence:
                self._from_server(flow, record.sequence)
            if flow.error is not None or flow.ended is not None:
                return

    # --- both ----------------------------------------------------------------------------------------------------

    def _read(self, flow: HeldFlow, end: socket.socket, *, at_server: bool) -> list[Record]:
        """The records that an end has; what is no record of the flow ends it."""
        try:
            data = end.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError as error:
            if flow.protocol == TCP:
                self._fail(flow, os.strerror(error.errno or 0))
            return []
        if not data:
            self._fail(flow, "closed by the far end")
            return []
        data = flow.pending[at_server] + data
        whole = len(data) - len(data) % RECORD
        flow.pending[at_server] = data[whole:]
        records = [Record.unpacked(data[at : at + RECORD]) for at in range(0, whole, RECORD)]
        found = [record for record in records if record is not None and record.flow == flow.number]
        if len(found) != len(records):
            self._fail(flow, "wrong data: bytes that nobody sent")
            return []
        return found
