"""Two NAT VMs a side in network namespaces, with the compiled rules of a routed POD, and flows through them.

    python takeover_world.py SCENARIO ARGUMENTS      inside `unshare --net --mount`; prints what came of it as JSON

No lab, no agent that polls, no balancer: rules, kernels, and route tables that are switched by hand.  `fabric` routes
by the interface that a packet comes in by, as each subnet's route table does in OCI.

Address plan: customer1 10.0.0.0/24 (vm1 .100, vm2 .130), customer2 10.0.1.0/24 (vm2 .100), all in the namespace `cust`;
management 10.0.0.0/16 in `mgmt` (mgmt .100, patch .101).  customer2 may call patch, and mgmt may call it.
"""

import json
import multiprocessing
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from test_agent import agent
from test_routed_rules import with_lists

from nat_pod.config.routed import RoutedConfig
from nat_pod.lab.wire import netns
from nat_pod.names import Side
from nat_pod.plan.document import rule_document
from nat_pod.rules.iptables import hooks, render
from nat_pod.rules.routed import compile_routed

PORT = 7000
HOST, OTHER, CALLED_ONLY = "10.0.0.100", "10.0.0.130", "10.0.1.100"
MGMT, PATCH = "10.0.0.100", "10.0.0.101"
ALIAS = {("mgmt", MGMT): "198.18.0.2", ("mgmt", PATCH): "198.18.0.3", ("cust", HOST): "198.18.2.2",
         ("cust", OTHER): "198.18.2.3", ("cust", CALLED_ONLY): "198.18.2.4"}  # fmt: skip
SERVERS, HOSTS = "198.18.0.0/27", "198.18.2.0/27"
VMS = {"vm1a": "198.18.3.194", "vm1b": "198.18.3.195", "vm2a": "198.18.3.202", "vm2b": "198.18.3.203"}
SYSCTLS = [
    (f"net/ipv4/conf/{name}/{key}", "0") for name in ("all", "default") for key in ("rp_filter", "send_redirects")
]


class World:
    """Everything, from the namespaces to the rules.  `drop` is a rule's text that is left out of FORWARD."""

    def __init__(self, drop: str = "", loose: int = 1, be_liberal: int = 1) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
        self.active: dict[str, str] = {"vm1": "vm1a", "vm2": "vm2a"}
        names = ["fabric", "cust", "mgmt", *VMS]
        netns.ip_batch("".join(f"netns add {name}\n" for name in names))
        for name in names:
            netns.set_sysctls(name, [*SYSCTLS, ("net/ipv4/ip_forward", "1")])
            netns.ip_batch("link set lo up\n", name)
        self._wire(loose, be_liberal)
        config = RoutedConfig.from_mapping(with_lists(), "dev")
        for role, rules in compile_routed(config).items():
            document = agent.Document(rule_document(role, hooks(rules), render(rules))[0])
            text = agent.transaction(document, {})
            kept = [line for line in text.splitlines() if not drop or drop not in line]
            assert role.side is Side.NAT_VM2 or not drop or len(kept) == len(text.splitlines()) - 1
            for vm in VMS:
                if vm.startswith("vm1") == (role.side is Side.NAT_VM1):
                    netns.run(["iptables-restore", "--noflush", "--counters"], vm, stdin="\n".join(kept) + "\n")

    def _wire(self, loose: int, be_liberal: int) -> None:
        for name, gateway, own, addresses in (
            ("cust", "192.0.2.1", "192.0.2.2", (HOST, OTHER, CALLED_ONLY)),
            ("mgmt", "192.0.2.5", "192.0.2.6", (MGMT, PATCH)),
        ):
            netns.ip_batch(f"link add {name} netns fabric type veth peer name e0 netns {name}\n")
            netns.ip_batch(f"addr add {gateway}/30 dev {name}\nlink set {name} up\n", "fabric")
            more = "".join(f"addr add {address}/32 dev lo\n" for address in addresses)
            netns.ip_batch(f"addr add {own}/30 dev e0\nlink set e0 up\nroute add default via {gateway}\n{more}", name)
        for bridge, gateway in (("vm1", "198.18.3.193"), ("vm2", "198.18.3.201")):
            netns.ip_batch(
                f"link add {bridge} type bridge\naddr add {gateway}/29 dev {bridge}\nlink set {bridge} up\n", "fabric"
            )
            for vm in (f"{bridge}a", f"{bridge}b"):
                netns.ip_batch(f"link add {vm} netns fabric type veth peer name e0 netns {vm}\n")
                netns.ip_batch(f"link set {vm} master {bridge} up\n", "fabric")
                netns.ip_batch(f"addr add {VMS[vm]}/29 dev e0\nlink set e0 up\nroute add default via {gateway}\n", vm)
                netns.set_sysctls(vm, [
                    ("net/netfilter/nf_conntrack_tcp_loose", str(loose)),
                    ("net/netfilter/nf_conntrack_tcp_be_liberal", str(be_liberal)),
                ])  # fmt: skip
        for table, interface in enumerate(("cust", "vm1", "vm2", "mgmt"), 101):
            netns.ip_batch(f"rule add iif {interface} lookup {table}\n", "fabric")
        self.route()
        netns.ip_batch(
            "route add 10.0.0.0/24 via 192.0.2.2 table 102\nroute add 10.0.1.0/24 via 192.0.2.2 table 102\n"
            "route add 10.0.3.0/24 via 192.0.2.2 table 102\nroute add 10.0.0.0/16 via 192.0.2.6 table 103\n",
            "fabric",
        )
        for name in ("fabric", "cust", "mgmt", *VMS):
            netns.wait_for_links(name)

    def route(self) -> None:
        """Lead each table to the VMs that act."""
        to1, to2 = VMS[self.active["vm1"]], VMS[self.active["vm2"]]
        netns.ip_batch(
            f"route replace {SERVERS} via {to1} table 101\nroute replace {SERVERS} via {to2} table 102\n"
            f"route replace {HOSTS} via {to1} table 103\nroute replace {HOSTS} via {to2} table 104\n",
            "fabric",
        )

    def fail(self, *roles: str, after: float = 1.0) -> None:
        """Cut the active VM of each role off; some time later its twin acts."""
        for role in roles:
            netns.ip_batch(f"link set {self.active[role]} nomaster\n", "fabric")
        time.sleep(after)
        self.switch(*roles)

    def switch(self, *roles: str) -> None:
        """Let the twin of each role's VM act; both are connected from now on."""
        for role in roles:
            here = self.active[role]
            self.active[role] = here[:-1] + ("b" if here.endswith("a") else "a")
            netns.ip_batch(f"link set {self.active[role]} master {role} up\n", "fabric")
        self.route()


# --- flows -----------------------------------------------------------------------------------------------------------


@dataclass
class Flow:
    """An open TCP connection or UDP pair of sockets; `number` tells it from all others."""

    kind: str
    number: int
    host: socket.socket
    server: socket.socket
    sent: Counter = field(default_factory=Counter)
    got: dict = field(default_factory=lambda: {"host": b"", "server": b""})

    def end(self, name: str) -> socket.socket:
        return self.host if name == "host" else self.server

    def say(self, name: str) -> None:
        """Send the next number from one end."""
        self.sent[name] += 1
        with suppress(OSError):
            self.end(name).send(struct.pack("!II", self.number, self.sent[name]))

    def hear(self) -> None:
        for name in ("host", "server"):
            with suppress(OSError):
                while chunk := self.end(name).recv(65536, socket.MSG_DONTWAIT):
                    self.got[name] += chunk

    def whole(self, name: str) -> bool:
        """Whether everything that this end sent has reached the other one, in order."""
        heard = self.got["server" if name == "host" else "host"]
        return heard == b"".join(struct.pack("!II", self.number, n + 1) for n in range(self.sent[name]))


def opened(kind: str, number: int, by: str, host: str, server: str, what: int = socket.SOCK_STREAM) -> Flow:
    """Open a flow between a host and a server, by one of the two."""
    near, far = (("cust", host), ("mgmt", server)) if by == "host" else (("mgmt", server), ("cust", host))
    listener, client = (netns.open_socket(one[0], socket.AF_INET, what) for one in (far, near))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((far[1], PORT + number))
    client.bind((near[1], 20000 + number))
    client.settimeout(5)
    if what == socket.SOCK_STREAM:
        listener.listen(1)
        client.connect((ALIAS[far], PORT + number))
        other, peer = listener.accept()
        listener.close()
    else:
        client.connect((ALIAS[far], PORT + number))
        listener.settimeout(5)
        client.send(b"begin")
        _, peer = listener.recvfrom(100)
        listener.connect(peer)
        other = listener
        other.send(b"begin")
        assert client.recv(100) == b"begin"
    assert peer[0] == ALIAS[near], (peer, near)
    client.setblocking(False)
    other.setblocking(False)
    return Flow(kind, number, *((client, other) if by == "host" else (other, client)))


# Kind: who opens, between whom, and who speaks: all the time ("push") or only after the switch ("idle").
TCP_KINDS = {
    f"{'only the server may open' if pair[0] == CALLED_ONLY else f'opened by the {by}'}, {mode} from the {speaker}": (
        by, *pair, mode, speaker
    )
    for by, pair in (("host", (HOST, MGMT)), ("server", (OTHER, MGMT)), ("server", (CALLED_ONLY, MGMT)))
    for mode in ("idle", "push")
    for speaker in ("host", "server")
}  # fmt: skip


def tcp_flows(each: int) -> list[Flow]:
    numbers = iter(range(10_000))
    return [
        opened(kind, next(numbers), by, host, server)
        for kind, (by, host, server, _, _) in TCP_KINDS.items()
        for _ in range(each)
    ]


def pushed(flows: list[Flow], seconds: float) -> None:
    """Let those that push do so for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for flow in flows:
            if TCP_KINDS[flow.kind][3] == "push":
                flow.say(TCP_KINDS[flow.kind][4])
            flow.hear()
        time.sleep(0.05)


def until(there: Callable[[], bool], seconds: float) -> bool:
    """Whether it is so in the end: a busy machine is given the time that it takes."""
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def living(flows: list[Flow], seconds: float = 8.0) -> dict[str, int]:
    """How many of each kind go on: what the one end says arrives, and so does what the other end then says."""
    for flow in flows:
        flow.say(TCP_KINDS[flow.kind][4])
    waiting, alive = list(flows), []
    end = time.monotonic() + seconds
    while waiting and time.monotonic() < end:
        for flow in list(waiting):
            flow.hear()
            speaker = TCP_KINDS[flow.kind][4]
            other = "server" if speaker == "host" else "host"
            if flow.whole(speaker):
                if not flow.sent[other]:
                    flow.say(other)
                elif flow.whole(other):
                    waiting.remove(flow)
                    alive.append(flow)
        time.sleep(0.02)
    return dict(Counter(flow.kind for flow in alive))


def takeover(roles: list[str], each: int, gap: float = 1.0, **settings: object) -> dict:
    world = World(**settings)
    flows = tcp_flows(each)
    pushed(flows, 0.5)
    netns.ip_batch("".join(f"link set {world.active[role]} nomaster\n" for role in roles), "fabric")
    pushed(flows, gap)
    world.switch(*roles)
    pushed(flows, 0.5)
    return {"living": living(flows), "of": each}


def to_and_fro(megabytes: int, count: int, **settings: object) -> dict:
    """Flows that carry much while the twin acts, and then come back to a VM with old sequence numbers."""
    world = World(**settings)
    flows = [opened("opened by the host, push from the host", n, "host", HOST, MGMT) for n in range(count)]
    for flow in flows:
        flow.say("host")
    world.switch("vm1", "vm2")
    amount = megabytes << 20
    for flow in flows:
        left, heard = amount, 0
        while heard < amount:
            ready, room, _ = select.select([flow.server], [flow.host] if left else [], [], 5)
            if not ready and not room:
                raise AssertionError("the twin does not carry it")
            if room:
                left -= flow.host.send(bytes(min(left, 1 << 16)))
            if ready:
                heard += len(flow.server.recv(1 << 20))
    world.switch("vm1", "vm2")
    for flow in flows:
        flow.got, flow.sent = {"host": b"", "server": b""}, Counter()
    return {"living": living(flows).get("opened by the host, push from the host", 0), "of": count}


def datagrams(count: int) -> dict:
    """UDP after a switch of both VMs: by who opened it, whether the first datagram of each end arrives."""
    world = World()
    made = {
        "host": [opened("u", n, "host", HOST, MGMT, socket.SOCK_DGRAM) for n in range(count)],
        "server": [opened("u", 1000 + n, "server", OTHER, MGMT, socket.SOCK_DGRAM) for n in range(count)],
        "only the server": [
            opened("u", 2000 + n, "server", CALLED_ONLY, MGMT, socket.SOCK_DGRAM) for n in range(count)
        ],
    }
    world.fail("vm1", "vm2", after=0.2)

    def arrived(flows: list[Flow], name: str) -> int:
        for flow in flows:
            flow.sent, flow.got = Counter(), {"host": b"", "server": b""}
            flow.say(name)

        def all_of_them() -> bool:
            for flow in flows:
                flow.hear()
            return all(flow.whole(name) for flow in flows)

        until(all_of_them, 3)
        return sum(flow.whole(name) for flow in flows)

    return {
        "host, host speaks": arrived(made["host"], "host"),
        "host, then server": arrived(made["host"], "server"),
        "server, host speaks": arrived(made["server"], "host"),
        "server, then server": arrived(made["server"], "server"),
        "only the server, host speaks": arrived(made["only the server"], "host"),
        "only the server, then server": arrived(made["only the server"], "server"),
        "only the server, host again": arrived(made["only the server"], "host"),
    }


def ends_first(count: int) -> dict:
    """Flows whose first segment at the new VMs ends them: by what it is, when the far end learns of it."""
    world = World()
    kinds = ("FIN", "RST", "data and FIN")
    flows = {
        kind: [opened(kind, 100 * at + n, "host", HOST, MGMT) for n in range(count)] for at, kind in enumerate(kinds)
    }
    world.fail("vm1", "vm2", after=0.2)
    for kind, own in flows.items():
        for flow in own:
            if kind == "RST":
                flow.host.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                flow.host.close()
            elif kind == "FIN":
                flow.host.shutdown(socket.SHUT_WR)
            else:
                flow.host.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                flow.host.send(b"last words")
                flow.host.shutdown(socket.SHUT_WR)

    def learned(own: list[Flow], seconds: float) -> int:
        waiting, end = list(own), time.monotonic() + seconds
        while waiting and time.monotonic() < end:
            for flow in list(waiting):
                try:
                    said = flow.server.recv(100)
                    if flow.kind != "data and FIN" or said == b"last words":
                        waiting.remove(flow)
                except BlockingIOError:
                    pass
                except ConnectionResetError:
                    waiting.remove(flow)
            time.sleep(0.02)
        return len(own) - len(waiting)

    before = {kind: learned(own, 2) for kind, own in flows.items()}
    for own in flows.values():
        for flow in own:
            with suppress(OSError):
                flow.server.send(b"anything")
    after = {kind: learned(own, 15) for kind, own in flows.items()}
    return {"before": before, "after": after}


# --- packets by hand -------------------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def segment(source: str, destination: str, sport: int, dport: int, flags: int, seq: int, ack: int) -> bytes:
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 64240, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, 6, len(head))
    return head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]


def packet(source: str, destination: str, protocol: int, body: bytes) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def send(namespace: str, data: bytes) -> None:
    with netns.open_socket(namespace, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(data, (socket.inet_ntoa(data[16:20]), 0))


def counted(namespace: str, words: str) -> int:
    """Packets that the rules of a namespace with these words have counted."""
    lines = [line for line in netns.save_rules(namespace).splitlines() if words in line and line.startswith("[")]
    return sum(int(line[1:].partition(":")[0]) for line in lines)


SYN, ACK = 0x02, 0x10


def ack_then_syn(count: int, answered: bool, **settings: object) -> dict:
    """A host that may not call mgmt sends an ACK, and then a SYN in the same tuple; mgmt's RST gets lost.

    answered: mgmt has said something in that tuple, as a socket in TIME_WAIT does.
    """
    World(**settings)
    for name in ("cust", "mgmt"):
        netns.run(["iptables", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP"], name)
    netns.run(["iptables", "-A", "INPUT", "-p", "tcp", "--dport", str(PORT), "--syn", "-j", "ACCEPT"], "mgmt")
    netns.run(["iptables", "-A", "INPUT", "-p", "tcp", "--sport", str(PORT), "!", "--syn", "-j", "ACCEPT"], "cust")
    passed, refused, opens = '"goes on in what the server opened"', "-A NATPOD-REFUSED ", f"--dport {PORT}"
    with netns.open_socket("mgmt", socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((MGMT, PORT))
        listener.listen(64)
        s, h = ALIAS["mgmt", MGMT], ALIAS["cust", CALLED_ONLY]
        tuples = range(30000, 30000 + count)
        # Each kind of segment has gone its way before the next one is sent.
        for sport in tuples:
            send("cust", packet(CALLED_ONLY, s, 6, segment(CALLED_ONLY, s, sport, PORT, ACK, 1000, 1)))
        assert until(lambda: counted("vm1a", passed) == count, 10), "the segments pass, or this shows nothing"
        if answered:
            for sport in tuples:
                send("mgmt", packet(MGMT, h, 6, segment(MGMT, h, PORT, sport, ACK, 1, 1000)))
            assert until(lambda: counted("cust", f"--sport {PORT}") == count, 10)
        for sport in tuples:
            send("cust", packet(CALLED_ONLY, s, 6, segment(CALLED_ONLY, s, sport, PORT, SYN, 5000, 0)))
        until(lambda: counted("mgmt", opens) + counted("vm1a", refused) >= count, 10)
        return {"opened": counted("mgmt", opens), "refused": counted("vm1a", refused)}


def errors() -> dict:
    """ICMP errors about a flow of customer1's and mgmt's: who wrote one, from which source, and whether it arrived."""
    World()
    opened("u", 1, "host", HOST, MGMT, socket.SOCK_DGRAM)
    s, h = ALIAS["mgmt", MGMT], ALIAS["cust", HOST]
    udp = struct.pack("!HHHH", 20001, PORT + 1, 8, 0)
    back = struct.pack("!HHHH", PORT + 1, 20001, 8, 0)
    # The reply as it reached the host, the request as it reached the server.
    reply, request = packet(s, HOST, 17, back), packet(h, MGMT, 17, udp)
    tried = {
        "the host itself": ("cust", HOST, s, reply),
        "a router in its network": ("cust", "10.0.0.1", s, reply),
        "another customer": ("cust", "10.0.1.1", s, reply),
        "another customer, with the server's alias": ("cust", s, s, reply),
        "another customer, with the host's alias": ("cust", h, s, reply),
        "the server itself": ("mgmt", MGMT, h, request),
        "a router in management": ("mgmt", "10.0.200.1", h, request),
        "a stranger behind management, with the host's alias": ("mgmt", h, h, request),
        "somebody else's network behind management": ("mgmt", "172.16.0.1", h, request),
    }
    arrived = {}

    def dropped() -> dict[str, int]:
        return {vm: counted(vm, '"not about a flow of the sender"') for vm in ("vm1a", "vm2a")}

    for who, (namespace, source, destination, quoted) in tried.items():
        far = "mgmt" if namespace == "cust" else "cust"
        with netns.open_socket(far, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as hears:
            body = struct.pack("!BBHHH", 3, 4, 0, 0, 1400) + quoted
            body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
            seen = dropped()
            send(namespace, packet(source, destination, 1, body))
            until(lambda: bool(select.select([hears], [], [], 0)[0]) or dropped() != seen, 10)  # noqa: B023 - called here
            arrived[who] = bool(select.select([hears], [], [], 0)[0])
    return {"arrived": arrived, "dropped": dropped()}


def told() -> dict:
    """Whom a host and a server hear of when their packets' time is over, in new flows and in one that exists."""
    World()
    exists = opened("u", 1, "host", HOST, MGMT, socket.SOCK_DGRAM)
    backward = opened("u", 2, "server", HOST, MGMT, socket.SOCK_DGRAM)
    heard = {}

    def ask(namespace: str, client: socket.socket, ttl: int) -> str:
        with netns.open_socket(namespace, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as hears:
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            with suppress(OSError):
                client.send(b"x")
            return hears.recvfrom(1000)[1][0] if select.select([hears], [], [], 1.0)[0] else "-"

    def fresh(namespace: str, source: str, destination: str) -> socket.socket:
        client = netns.open_socket(namespace, socket.AF_INET, socket.SOCK_DGRAM)
        client.bind((source, 0))
        client.connect((destination, PORT + 500))
        return client

    # Behind the fabric's own hop the first NAT VM, the fabric again, and the second one.
    for who, namespace, existing, source, destination in (
        ("host", "cust", exists.host, HOST, ALIAS["mgmt", MGMT]),
        ("server", "mgmt", backward.server, MGMT, ALIAS["cust", HOST]),
        ("stranger", "cust", None, "10.0.0.1", ALIAS["mgmt", MGMT]),
    ):
        if existing is None:
            netns.ip_batch("addr add 10.0.0.1/32 dev lo\n", "cust")
        else:
            heard[f"{who}, a flow that exists"] = [ask(namespace, existing, ttl) for ttl in (2, 4)]
        heard[f"{who}, new flows"] = [ask(namespace, fresh(namespace, source, destination), ttl) for ttl in (2, 4)]
    return heard


def counts() -> dict:
    """What `nat-pod-agent status` counts for members and for what was refused, after known packets."""
    World()
    for number in range(3):
        opened("u", number, "host", HOST, MGMT, socket.SOCK_DGRAM)
    for number in range(10, 12):
        opened("u", number, "server", HOST, MGMT, socket.SOCK_DGRAM)
    stranger = "10.0.0.7"
    netns.ip_batch(f"addr add {stranger}/32 dev lo\n", "cust")
    for source, count in ((CALLED_ONLY, 4), (stranger, 5)):
        for _ in range(count):
            with netns.open_socket("cust", socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.bind((source, 0))
                client.sendto(b"x", (ALIAS["mgmt", MGMT], PORT))
    until(lambda: counted("vm1a", "-A NATPOD-REFUSED ") >= 9, 10)
    return {vm: agent.counted(agent.read_saved(netns.save_rules(vm))) for vm in ("vm1a", "vm2a")}


def both_at_once(flows: int, rate: int, tcp: bool = False, **settings: object) -> dict:
    """First packets of one flow from both its ends in the same moment, by two processes: how many get another port.

    In each flow both ends send from one port number to the same one.  So many a second, and in groups: the next one
    begins when all of this one have arrived, or 5 seconds are over, so that a busy machine has no queue that runs over.
    What TCP loses it sends again, as often as it takes within that time.
    """
    World(**settings)
    protocol = socket.IPPROTO_TCP if tcp else socket.IPPROTO_UDP
    for name in ("cust", "mgmt"):
        netns.run(["iptables", "-A", "OUTPUT", "-p", "icmp", "-j", "DROP"], name)
        netns.run(["iptables", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP"], name)
    ends = {"cust": (HOST, ALIAS["mgmt", MGMT]), "mgmt": (MGMT, ALIAS["cust", HOST])}
    context = multiprocessing.get_context("fork")
    # By flow, what each end has heard: 0 nothing, 1 the first packet of the other end, 2 the same from another port.
    heard = {name: context.RawArray("B", flows) for name in ends}
    begin = context.RawValue("d")

    def begins() -> None:
        begin.value = time.monotonic() + 0.01

    both = context.Barrier(2, begins)

    def play(name: str, far: str) -> None:
        source, destination = ends[name]
        sender = netns.open_socket(name, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        hears = netns.open_socket(name, socket.AF_INET, socket.SOCK_RAW, protocol)
        hears.setblocking(False)

        def drain() -> None:
            with suppress(BlockingIOError):
                while True:
                    sport, dport = struct.unpack_from("!HH", hears.recv(2000), 20)
                    heard[name][dport - 1024] = 1 if sport == dport else 2

        def say(number: int) -> None:
            port = 1024 + number
            if tcp:
                body = segment(source, destination, port, port, SYN, 1000, 0)
            else:
                body = struct.pack("!HHHH", port, port, 8, 0)
            made = packet(source, destination, protocol, body)
            while time.monotonic() < begin.value + number % _GROUP / rate:
                pass
            sender.sendto(made, (destination, 0))

        for first in range(0, flows, _GROUP):
            group = range(first, min(first + _GROUP, flows))
            both.wait(60)
            for number in group:
                say(number)
            for turn in range(500):
                drain()
                if all(heard[end][number] for end in ends for number in group):
                    break
                time.sleep(0.01)
                for number in group:
                    if tcp and turn % 10 == 5 and not heard[far][number]:
                        say(number)
            else:
                return  # as at the other end, which sees the same

    other = context.Process(target=play, args=("mgmt", "cust"))
    other.start()
    play("cust", "mgmt")
    other.join()
    assert other.exitcode == 0
    return {name: {"heard": sum(map(bool, heard[name])), "other port": list(heard[name]).count(2)} for name in ends}


_GROUP = 100

SCENARIOS = {
    one.__name__: one
    for one in (takeover, to_and_fro, datagrams, ends_first, ack_then_syn, errors, told, counts, both_at_once)
}

if __name__ == "__main__":
    print(json.dumps(SCENARIOS[sys.argv[1]](**json.loads(sys.argv[2]))))
