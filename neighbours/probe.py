"""The probe: what a neighbour's VM runs during a trial.  Python 3.6 and its standard library, like the NAT VMs' agent.

It answers ICMP by the kernel, HTTP on TCP 80 and UDP on port 9 by itself, both with `name=<machine> seen=<source>`; it
notes what it hears, forged packets included; and it runs the probes that its metadata lists, each list once.  What came
of them it writes to standard output, which is the serial console: no way into this VM is needed, and none is opened.

The metadata key `nat-pod-probes` is gzip in base64 of a JSON object (nat_pod/trial/probes.py writes it):

    name     what this machine is called
    list     the number of this list
    probes   what to send, see `PROBES`; each has an `id`, by which its result is known
    listen   {"tcp": [PORT ...], "udp": [PORT ...]} to answer on, beside those two
    forged   sequence numbers of SYNs that will be forged, by which whoever gets one knows it
    vnics    of a vRouter: by a VNIC's own address, further addresses of it, and ranges that leave by it
    narrow   of a vRouter: {address: MTU}, for the length of this list

A report is a few lines, since a console is shared with the kernel: each has its own checksum.

    nat-pod-probe LIST NUMBER PART/PARTS CRC TEXT
"""

import base64
import gzip
import json
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor

IMDS = "http://169.254.169.254/opc/v2/"
KEY = "nat-pod-probes"
HTTP, ECHO = 80, 9
PATIENCE = 2.0  # seconds that a probe waits for its answer
AT_ONCE = 16
MOST_HEARD = 5000
LINE = 400  # characters of a report in one line of the console
REPEATED, REPEATS = 30.0, 10  # seconds between two copies of a report, and how many copies are written
HELD_EVERY = 0.2
MOST_SECONDS = 1800.0  # that flows are held
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14
ECHO_REPLY, ECHO_REQUEST = 0, 8


class Probe:
    """The program's state: its list, what it heard, and what came of its probes."""

    def __init__(self):
        self.lock = threading.Lock()
        self.name = "?"
        self.number = None  # of the list that it has
        self.heard = []
        self.results = {}
        self.about = {}
        self.changed = time.time()
        self.forged = set()

    def hear(self, how, token, source):
        """Note that a packet with a token came from a source."""
        with self.lock:
            if [how, token, source] not in self.heard and len(self.heard) < MOST_HEARD:
                self.heard.append([how, token, source])
                self.changed = time.time()

    def result(self, probe, **what):
        """Note what came of a probe."""
        with self.lock:
            self.results[str(probe["id"])] = what
            self.changed = time.time()


# --- metadata --------------------------------------------------------------------------------------------------------


def metadata(path):
    """What the instance metadata service has below a path; None for nothing."""
    request = urllib.request.Request(IMDS + path, headers={"Authorization": "Bearer Oracle"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except (OSError, ValueError):
        return None


def wanted():
    """The list in the metadata; None where there is none that can be read."""
    try:
        return json.loads(gzip.decompress(base64.b64decode(metadata("instance/metadata/" + KEY) or "")).decode())
    except (OSError, EOFError, ValueError):
        return None


# --- the network -----------------------------------------------------------------------------------------------------


def run(*command):
    """Run a program of the platform, and go on whatever it says: a probe then shows what is missing."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.decode(errors="replace").strip()


def open_up():
    """Let everything in: what may reach this VM is decided in the POD.  Images let in ssh and ping only."""
    for command in ("-P INPUT ACCEPT", "-P FORWARD ACCEPT", "-F INPUT", "-F FORWARD"):
        run("iptables", *command.split())


def forward(vnics):
    """Be the vRouter: further addresses, the way to the POD, and forwarding."""
    links = json.loads(run("ip", "-json", "link", "show"))
    for vnic in json.loads(metadata("vnics") or "[]"):
        more = vnics.get(vnic["privateIp"])
        name = next((link["ifname"] for link in links if link.get("address") == vnic["macAddr"].lower()), None)
        if more is None or name is None:
            continue
        run("ip", "link", "set", "dev", name, "mtu", "9000", "up")
        length = vnic["subnetCidrBlock"].split("/")[1]
        run("ip", "address", "replace", vnic["privateIp"] + "/" + length, "dev", name)
        for address in more["addresses"]:
            run("ip", "address", "replace", address + "/32", "dev", name)
        for destination in more["routes"]:
            run("ip", "route", "replace", destination, "via", vnic["virtualRouterIp"], "dev", name)
        # Nothing but a counter of what came in there and was sent on.
        count = ("FORWARD", "-i", name, "-m", "comment", "--comment", "by " + vnic["privateIp"])
        if run("iptables", "-C", *count):
            run("iptables", "-A", *count)
    for setting in ("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"):
        run("sysctl", "-qw", setting)
    for link in links:
        run("sysctl", "-qw", "net.ipv4.conf.%s.rp_filter=0" % link["ifname"])


def forwarded():
    """Packets that were sent on, by the address of the VNIC at which they came in."""
    found = {}
    for line in run("iptables", "-nvxL", "FORWARD").splitlines():
        if "/* by " in line:
            found[line.split("/* by ")[1].split()[0]] = int(line.split()[0])
    return found


def narrow(narrowed, before):
    """Limit the length of packets to some addresses; longer ones are answered by an ICMP error.  By address: bytes."""
    for address in before:
        run("ip", "route", "del", address + "/32")
    for address, mtu in narrowed.items():
        way = run("ip", "-oneline", "route", "get", address).split()
        via = ["via", way[way.index("via") + 1]] if "via" in way else []
        run("ip", "route", "replace", address + "/32", *via, "dev", way[way.index("dev") + 1], "mtu", "lock", str(mtu))


# --- who answers, and who listens ------------------------------------------------------------------------------------


def serve_http(state, address, port=HTTP):
    """Answer each request with this machine's name and the source that it saw; the path is the token."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError:  # port 22, most likely: this machine needs no sshd
        run("systemctl", "stop", "ssh.socket", "ssh", "sshd")
        listener.bind((address, port))
    listener.listen(128)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=reply, args=(state, connection), daemon=True).start()


def reply(state, connection):
    """Answer on one connection, for as long as its other end asks: a line is a request, too."""
    connection.settimeout(MOST_SECONDS)
    try:
        while True:
            asked = connection.recv(4096)
            if not asked:
                return
            source = connection.getpeername()[0]
            words = [*asked.decode(errors="replace").split(), "", ""]
            state.hear("tcp", words[1].lstrip("/"), source)
            connection.sendall(("name=%s seen=%s\n" % (state.name, source)).encode())
    except OSError:
        pass
    finally:
        connection.close()


def serve_udp(state, address, port=ECHO):
    """Answer each datagram in the same way."""
    echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    echo.bind((address, port))
    while True:
        try:
            asked, peer = echo.recvfrom(65535)
            text = asked[:64].decode(errors="replace")
            state.hear("udp", text.split(" ")[0], peer[0])
            echo.sendto(("name=%s seen=%s %s" % (state.name, peer[0], text)).encode(), peer)
        except OSError:
            pass  # an ICMP error about an earlier answer


def listen(state, _):
    """Note pings, and the SYNs that somebody forged."""
    icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    while True:
        for ready in select.select([icmp, tcp], [], [])[0]:
            packet, peer = ready.recvfrom(65535)
            body = packet[(packet[0] & 15) * 4 :]
            if ready is icmp and body[:1] == b"\x08":
                state.hear("icmp", body[8:72].rstrip(b"\0").decode(errors="replace"), peer[0])
            elif ready is tcp and len(body) >= 20 and body[13] & 0x3F == 2:
                number = struct.unpack("!I", body[4:8])[0]
                if number in state.forged:
                    state.hear("tcp", str(number), peer[0])


# --- probes ----------------------------------------------------------------------------------------------------------


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(number, token):
    """An ICMP echo request with a token in it."""
    body = token.encode()
    head = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, number & 0xFFFF, 1)
    return struct.pack("!BBHHH", ECHO_REQUEST, 0, checksum(head + body), number & 0xFFFF, 1) + body


def icmp(state, probe):
    """Ping."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(echo_request(os.getpid() + probe["id"], probe["token"]), (probe["to"], 0))
        end = time.time() + PATIENCE
        while True:
            if not select.select([raw], [], [], max(0, end - time.time()))[0]:
                return state.result(probe, ok=False, detail="no answer")
            packet, peer = raw.recvfrom(65535)
            body = packet[(packet[0] & 15) * 4 :]
            if body[:1] == b"\0" and body[8:].startswith(probe["token"].encode()):
                return state.result(probe, ok=True, answer="", source=peer[0])


def tcp(state, probe):
    """Connect and ask; where nobody may answer, connecting is all: a NAT VM's sshd would not understand."""
    try:
        with socket.create_connection((probe["to"], probe.get("port", HTTP)), PATIENCE) as connection:
            if probe.get("refused"):
                return state.result(probe, ok=True, answer="")
            connection.settimeout(PATIENCE)
            connection.sendall(("GET /%s HTTP/1.0\r\n\r\n" % probe["token"]).encode())
            state.result(probe, ok=True, answer=connection.recv(4096).decode(errors="replace"))
    except OSError as error:
        state.result(probe, ok=False, detail=str(error))


def udp(state, probe):
    """Ask by a datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(PATIENCE)
        try:
            asking.connect((probe["to"], probe.get("port", ECHO)))
            asking.send((probe["token"] + " ").encode())
            state.result(probe, ok=True, answer=asking.recv(4096).decode(errors="replace"))
        except OSError as error:
            state.result(probe, ok=False, detail=str(error))


def forge(state, probe):
    """Send one packet with somebody else's address; an answer would go there, so whoever hears it tells."""
    to, own = socket.inet_aton(probe["to"]), socket.inet_aton(probe["from"])
    if probe["protocol"] == "icmp":
        kind, body = socket.IPPROTO_ICMP, echo_request(probe["id"], probe["token"])
    elif probe["protocol"] == "udp":
        kind, data = socket.IPPROTO_UDP, (probe["token"] + " ").encode()
        body = struct.pack("!HHHH", 20000 + probe["id"], ECHO, 8 + len(data), 0) + data
    else:
        kind = socket.IPPROTO_TCP
        head = struct.pack("!HHIIBBHHH", 20000 + probe["id"], HTTP, probe["sequence"], 0, 5 << 4, 2, 64240, 0, 0)
        check = checksum(own + to + struct.pack("!BBH", 0, kind, len(head)) + head)
        body = head[:16] + struct.pack("!H", check) + head[18:]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, kind, 0, own, to)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(head + body, (probe["to"], 0))
        state.result(probe, ok=False, detail="sent")
    except OSError as error:
        state.result(probe, ok=False, detail="could not be sent: %s" % error)


def big(state, probe):
    """Send a datagram of `size` bytes that nobody may cut; with `until`, until the path has told its width.

    The narrow place may come a moment later than this list.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        asking.settimeout(PATIENCE)
        mtu = None
        for _ in range(20 if "until" in probe else 3):
            try:
                asking.connect((probe["to"], ECHO))
                asking.send((probe["token"] + " ").encode().ljust(probe["size"] - 28, b"."))
                asking.recv(4096)
                detail = ""
            except OSError as error:
                detail = str(error)
            mtu = asking.getsockopt(socket.IPPROTO_IP, IP_MTU)
            if mtu == probe.get("until") or (not detail and "until" not in probe):
                break
            time.sleep(1.0)
    state.result(probe, ok=not detail, detail=detail, mtu=mtu)


def idle(state, probe):
    """A connection that is silent for `seconds` in its middle."""
    try:
        with socket.create_connection((probe["to"], HTTP), PATIENCE) as connection:
            connection.settimeout(15)
            connection.sendall(("GET /%s HTTP/1.0\r\n\r\n" % probe["token"]).encode())
            connection.recv(4096)
            time.sleep(probe["seconds"])
            connection.sendall(("GET /%s HTTP/1.0\r\n\r\n" % probe["token"]).encode())
            state.result(probe, ok=bool(connection.recv(4096)), detail="")
    except OSError as error:
        state.result(probe, ok=False, detail=str(error))


def hold(state, probe):
    """Hold `flows` connections, and as many UDP flows, until there is another list; report losses and longest pause.

    Each asks five times a second.  A flow is lost when it has ended, or has no answer at the end.
    """
    mine, begun = state.number, time.time()
    flows = []
    for number in range(2 * probe["flows"]):
        kind = (socket.SOCK_STREAM, socket.SOCK_DGRAM)[number % 2]
        one = socket.socket(socket.AF_INET, kind)
        one.settimeout(PATIENCE)
        try:
            one.connect((probe["to"], HTTP if kind == socket.SOCK_STREAM else ECHO))
        except OSError:
            continue
        one.setblocking(False)
        flows.append({"socket": one, "answered": time.time(), "pause": 0.0, "answers": 0, "error": ""})
    opened = len(flows)
    ending = None
    while time.time() - begun < MOST_SECONDS:
        if state.number != mine and ending is None:
            ending = time.time() + 15  # TCP may be about to send again
        for flow in flows:
            if not flow["error"]:
                beat(flow)
        now = time.time()
        if ending is not None and (now > ending or all(now - flow["answered"] < 1 for flow in flows)):
            break
        time.sleep(HELD_EVERY)
    now = time.time()
    lost = [flow for flow in flows if flow["error"] or now - flow["answered"] > 2 or not flow["answers"]]
    state.result(
        probe,
        ok=bool(opened) and not lost,
        opened=opened,
        wanted=2 * probe["flows"],
        lost=len(lost),
        errors=sorted({flow["error"] for flow in lost}),
        pause=round(
            max([max(flow["pause"], now - flow["answered"]) for flow in flows if flow not in lost] or [0.0]), 2
        ),
    )
    for flow in flows:
        flow["socket"].close()


def beat(flow):
    """Ask, and take what has been answered."""
    one = flow["socket"]
    try:
        one.send(b"GET /held HTTP/1.0\r\n\r\n")
    except (BlockingIOError, socket.timeout):
        pass
    except OSError as error:
        if one.type & socket.SOCK_STREAM:
            flow["error"] = str(error)
            return
    try:
        if not one.recv(65535):
            flow["error"] = "the other end closed it"
            return
        now = time.time()
        flow["pause"] = max(flow["pause"], now - flow["answered"])
        flow["answered"] = now
        flow["answers"] += 1
    except BlockingIOError:
        pass
    except OSError as error:
        if one.type & socket.SOCK_STREAM:
            flow["error"] = str(error)


PROBES = {"icmp": icmp, "tcp": tcp, "udp": udp, "forge": forge, "big": big, "idle": idle, "hold": hold}
LASTING = ("idle", "hold")


# --- lists and reports -----------------------------------------------------------------------------------------------


def carry_out(state, todo):
    """Run a list of probes; lasting ones go on beside."""
    short = [probe for probe in todo["probes"] if probe["kind"] not in LASTING]
    for probe in todo["probes"]:
        if probe["kind"] in LASTING:
            threading.Thread(target=PROBES[probe["kind"]], args=(state, probe), daemon=True).start()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(PROBES[probe["kind"]], state, probe) for probe in short]:
            done.result()


def about():
    """What this machine is."""
    release = {}
    try:
        with open("/etc/os-release") as file:
            release = dict(line.strip().replace('"', "").split("=", 1) for line in file if "=" in line)
    except OSError:
        pass
    return {
        "image": release.get("PRETTY_NAME", "an unknown image"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "iptables": run("iptables", "--version") or "no iptables",
    }


def report_lines(number, count, report):
    """A report as lines of the console."""
    text = base64.b64encode(zlib.compress(json.dumps(report).encode(), 9)).decode()
    parts = [text[at : at + LINE] for at in range(0, len(text), LINE)]
    for at, part in enumerate(parts, 1):
        said = "%d %d %d/%d" % (number, count, at, len(parts))
        yield "nat-pod-probe %s %08x %s" % (said, zlib.crc32((said + " " + part).encode()) & 0xFFFFFFFF, part)


def main():
    """Serve, and carry out each list that the metadata brings."""
    state = Probe()
    open_up()
    machine = about()
    own = None
    while own is None:
        own = metadata("vnics/0/privateIp")
        time.sleep(0.2)
    for service in (serve_http, serve_udp, listen):
        threading.Thread(target=service, args=(state, own), daemon=True).start()
    count, said, repeats, told, narrowed = 0, 0.0, 0, 0.0, {}
    served = {("tcp", HTTP), ("udp", ECHO)}
    while True:
        todo = wanted()
        if todo is not None and todo["list"] != state.number:
            with state.lock:
                state.name, state.forged = todo["name"], set(todo["forged"])
                state.number = todo["list"]
                state.about = dict(machine, saw=time.time())
            asked = {(protocol, port) for protocol, ports in todo["listen"].items() for port in ports}
            for protocol, port in asked - served:
                service = serve_http if protocol == "tcp" else serve_udp
                threading.Thread(target=service, args=(state, own, port), daemon=True).start()
            served |= asked
            if todo["vnics"]:
                forward(todo["vnics"])
            narrow(todo["narrow"], narrowed)
            narrowed = todo["narrow"]
            threading.Thread(target=carry_out, args=(state, todo), daemon=True).start()
            said, repeats = 0.0, 0
        if state.number is not None:
            changed = state.changed
            quiet = time.time() - changed > 1.0
            again = repeats < REPEATS and time.time() - said > REPEATED
            if quiet and (changed > told or said == 0.0 or again):
                count, said, told, repeats = count + 1, time.time(), changed, repeats + 1
                with state.lock:
                    report = {"about": state.about, "heard": state.heard, "results": state.results, "name": state.name}
                    report["forwarded"] = forwarded()
                    lines = list(report_lines(state.number, count, report))
                for line in lines:
                    print(line, flush=True)
        time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
