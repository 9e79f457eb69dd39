"""What answers in the lab.

Every host answers HTTP on TCP port 80 and echoes UDP on port 9, both with `name=<vm> seen=<peer address>`, so the far
end itself says who it is and whom it saw.  It does so, too, at the ends of each range of ports that a policy names, and
beside them: where nobody listened, a port that is closed on the way would look the same when it is open.  A NAT VM
gives the same answer on port 22.  ICMP is the kernel's to answer.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Container
from threading import Thread

from nat_pod.lab.wire.netns import open_socket
from nat_pod.lab.wire.packets import HTTP, PORTS, UDP
from nat_pod.lab.wire.space import vm_namespace
from nat_pod.names import SSH
from nat_pod.trace.topology import VM_HOST, VM_NAT, Topology

_OVER = {HTTP: "tcp", UDP: "udp"}
_LOAD = 7  # the flows of load.py have listeners of their own
_IDLE = 10.0  # seconds until a server gives up a connection that asks for nothing


class Servers(Thread):
    """HTTP and UDP echo on every host, and a listener in the place of a NAT VM's sshd, in one thread."""

    def __init__(self, topology: Topology) -> None:
        super().__init__(name="servers", daemon=True)
        self._selector = selectors.DefaultSelector()
        self._idle: dict[socket.socket, float] = {}
        self._served: set[tuple[str, str, int]] = set()
        self.serve(topology)

    def serve(self, topology: Topology, anew: Container[str] = ()) -> None:
        """Listen where the machines of this network have to, and do not yet.  anew: the machines that are new ones."""
        self._served = {served for served in self._served if served[0] not in anew}
        beside = {
            protocol: {PORTS[protocol], *topology.asked_ports(_OVER[protocol])} - {_LOAD} for protocol in (HTTP, UDP)
        }
        for vm in topology.vms.values():
            space = vm_namespace(vm.name)
            if vm.kind == VM_NAT:
                # If nothing listened, a NAT VM without its guard would look just as closed as one with it.
                self._listen(vm.name, SSH)
            if vm.kind != VM_HOST or vm.boots:  # one that boots brings its own
                continue
            for port in beside[HTTP]:
                self._listen(vm.name, port)
            # One socket for each address: a socket bound to all of them would answer from the first.
            for address in (a for name in vm.vnics for a in topology.vnics[name].addresses):
                for port in beside[UDP]:
                    if not self._is_new(vm.name, f"{UDP} {address}", port):
                        continue
                    udp = open_socket(space, socket.AF_INET, socket.SOCK_DGRAM)
                    udp.bind((address, port))
                    self._selector.register(udp, selectors.EVENT_READ, (self._echo, vm.name))

    def _is_new(self, name: str, what: str, port: int) -> bool:
        known = (name, what, port) in self._served
        self._served.add((name, what, port))
        return not known

    def _listen(self, name: str, port: int) -> None:
        if not self._is_new(name, HTTP, port):
            return
        tcp = open_socket(vm_namespace(name), socket.AF_INET, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("0.0.0.0", port))
        tcp.listen(256)
        self._selector.register(tcp, selectors.EVENT_READ, (self._accept, name))

    def run(self) -> None:
        """Serve until the process ends."""
        while True:
            for key, _ in self._selector.select(timeout=1):
                serve, name = key.data
                try:
                    serve(key.fileobj, name)
                except OSError:
                    # The peer went away, or its ICMP error came in; the next one is not affected.
                    if key.fileobj in self._idle:
                        self._close(key.fileobj)
            now = time.monotonic()
            for connection in [c for c, since in self._idle.items() if now - since > _IDLE]:
                self._close(connection)

    def _accept(self, listener: socket.socket, name: str) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        self._idle[connection] = time.monotonic()
        self._selector.register(connection, selectors.EVENT_READ, (self._respond, name))

    def _respond(self, connection: socket.socket, name: str) -> None:
        """Answer any request after one read: our requests and curl's fit into one segment."""
        if connection.recv(4096):
            body = f"name={name} seen={connection.getpeername()[0]}\n"
            head = f"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.send((head + body).encode())
        self._close(connection)

    def _echo(self, udp: socket.socket, name: str) -> None:
        payload, peer = udp.recvfrom(4096)
        udp.sendto(f"name={name} seen={peer[0]} ".encode() + payload, peer)

    def _close(self, connection: socket.socket) -> None:
        del self._idle[connection]
        self._selector.unregister(connection)
        connection.close()
