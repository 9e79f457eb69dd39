"""What breaks while a NAT VM runs: its agent is killed at each step, disks fill, the metadata service lies, it reboots.

Each time a flow that is open goes on, a new one gets through, the rules are the old ones or the new ones as a whole,
and the next clean round puts everything right.  The VM and its neighbourhood are those of `test_boot.py`.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from test_boot import HOOKS, MAPPINGS, PRIMARY, ROOT, SECONDARY, Lab, rules

from nat_pod.plan.document import rule_document

pytestmark = pytest.mark.lab

KEPT, MOVED = "198.18.0.2", "198.18.0.3"  # a mapping that no change here touches, and one that each of them moves
REAL = ("10.0.1.100", "10.0.0.100")  # where MOVED leads, by turns


class Vm(Lab):
    """A VM whose agent runs round after round in one process, with a part of it replaced where a test wants that."""

    def __init__(self, folder):
        super().__init__(folder)
        self.turn = 0
        done = self.boot()
        assert done.returncode == 0, done.stdout + done.stderr
        self.open_rounds()

    def open_rounds(self) -> None:
        self.agent = subprocess.Popen(
            [*self.vm, sys.executable, "-m", "nat_pod.lab.wire.boot", "rounds", str(self.disk)],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close_rounds(self) -> None:
        self.agent.stdin.close()
        self.agent.wait()
        self.agent.stdout.close()

    def close(self) -> None:
        self.close_rounds()
        super().close()

    def round(self, prelude: str = "") -> tuple[int, str]:
        """One poll; exit status (negative: the signal) and what the journal gets."""
        self.agent.stdin.write(json.dumps({"verb": "poll", "prelude": prelude}) + "\n")
        self.agent.stdin.flush()
        answer = json.loads(self.agent.stdout.readline())
        return answer["status"], answer["stderr"]

    def change(self) -> str:
        """Another real address behind MOVED, in the metadata; returns the generation."""
        self.turn += 1
        return self.deploy(rules(MAPPINGS | {MOVED: REAL[self.turn % 2]}))

    def moved_to(self) -> list[str]:
        """What the kernel's rules say about MOVED."""
        return [line.split()[-1] for line in self.saved() if f"-d {MOVED}/32" in line]

    def old_flows(self) -> list[str]:
        """Flows to MOVED that do not go where the document in the metadata says."""
        return [flow for flow in self.flows() if f">{MOVED} " in flow and f" {REAL[self.turn % 2]}>" not in flow]

    def guarded(self) -> bool:
        """The guard is the first rule of FORWARD, and ends in DROP; and the VM forwards."""
        saved = self.saved()
        guard = [line for line in saved if line.startswith("-A NATPOD-FORWARD")]
        first = next(line for line in saved if line.startswith("-A FORWARD"))
        forwards = self.run("sysctl", "-n", "net.ipv4.ip_forward", vm=True).stdout == "1\n"
        return forwards and first == "-A FORWARD -j NATPOD-FORWARD" and guard[-1].endswith("-j DROP")

    @contextmanager
    def open_flow(self) -> Iterator[None]:
        """A flow on KEPT, twenty packets a second; none of them may be lost until the block ends."""
        command = ["ping", "-i", "0.05", "-e", "99", "-I", "198.18.0.130", KEPT]
        ping = subprocess.Popen([*self.enter, *command], stdout=subprocess.PIPE, text=True)
        assert ping.stdout.readline()
        assert ", 0% packet loss" not in ping.stdout.readline()  # the first answer is in
        try:
            yield
        finally:
            ping.send_signal(signal.SIGINT)
            said = ping.communicate()[0]
        sent, received = re.search(r"(\d+) packets transmitted, (\d+) received", said).groups()
        assert 0 <= int(sent) - int(received) <= 1, said.splitlines()[-3:]  # the last one may be under way

    def heals(self, generation: str) -> None:
        status, said = self.round()
        assert (status, self.status()["applied"], self.status()["error"]) == (0, generation, None), said
        assert self.moved_to() == [REAL[self.turn % 2]]
        assert self.old_flows() == []
        assert self.ping(MOVED)


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    made = Vm(tmp_path_factory.mktemp("vm"))
    yield made
    made.close()


# --- killed ----------------------------------------------------------------------------------------------------------

KILL = """
import os, signal
left = [%d]
def counted(act):
    def step(*arguments, **keywords):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return act(*arguments, **keywords)
    return step
def opened(path, mode="r", **keywords):
    return (counted(open) if "w" in mode and "/proc/" not in path else open)(path, mode, **keywords)
agent.open = opened
for where, name in [(agent, "run"), (agent, "imds"), (agent, "ask"), (os, "fsync"), (os, "rename"), (os, "remove")]:
    setattr(where, name, counted(getattr(where, name)))
"""


def test_an_agent_killed_at_any_step_of_a_change_leaves_what_works_and_the_next_round_ends_the_change(vm):
    """Before each program it starts, each file it writes, syncs, renames or removes, each word to the kernel."""
    steps = 0
    with vm.open_flow():
        while True:
            steps += 1
            assert vm.ping(MOVED, flow=100 + steps)  # a flow that the change must end
            generation = vm.change()
            status, said = vm.round(KILL % steps)
            assert vm.guarded(), steps
            assert vm.moved_to() in ([REAL[0]], [REAL[1]]), steps
            assert vm.ping(KEPT, flow=300 + steps), steps
            if status == 0:
                break
            assert status == -signal.SIGKILL, said
            vm.heals(generation)
    assert steps > 25
    assert vm.old_flows() == []
    assert vm.round() == (0, "")


def test_an_agent_killed_while_the_kernel_s_tables_change_leaves_the_guard_and_heals(vm):
    """filter is committed, nat is not: what iptables-restore makes of an input that ends in the middle."""
    half = """
import os, signal
real = agent.run
def run(command, text=None):
    if command == agent.RESTORE:
        real(command, text[: text.index("*nat") + 40])
        os.kill(os.getpid(), signal.SIGKILL)
    return real(command, text)
agent.run = run
"""
    with vm.open_flow():
        generation = vm.change()
        assert vm.round(half)[0] in (-signal.SIGKILL, 1)
        assert vm.guarded()
        assert vm.moved_to() == [REAL[(vm.turn + 1) % 2]]
        assert vm.ping(KEPT, flow=500)
        vm.heals(generation)


STATIC = (
    "-s 198.18.0.128/27 -j NETMAP --to 198.18.0.0/27\n-A NATPOD-POST -s 10.0.0.100/32 -j SNAT --to-source 198.18.0.2"
)
TO_SERVER = "-A NATPOD-PRE -s 10.0.0.100/32 -d 198.18.0.3/32 -j DNAT --to-destination 198.18.0.140\n"
SEND = "import socket, sys; s = socket.socket(2, 2); s.bind((sys.argv[1], int(sys.argv[2]))); "
SEND += "s.sendto(b'x', (sys.argv[3], int(sys.argv[4])))"
WAITING = """
import os, time
real = time.sleep
def sleep(seconds):
    if seconds != agent.UNDER_WAY:  # the agent's programs are waited for, too
        return real(seconds)
    open("/root/waiting", "w").close()
    while not os.path.exists("/root/arrived"):
        real(0.01)
agent.time.sleep = sleep
"""


def test_an_answer_that_is_under_way_when_its_flow_is_cut_does_not_bring_it_back(vm):
    """The server may open flows to the host: its late answer begins one, and the host's packets were answers in it."""
    vm.run("ip", "address", "replace", "198.18.0.140/32", "dev", "lo")  # the server, as NAT VM2 shows it
    vm.deploy(rules(MAPPINGS, STATIC, TO_SERVER))
    assert vm.round()[0] == 0
    vm.run(sys.executable, "-c", SEND, "10.0.0.100", "4000", "198.18.0.3", "4001")
    assert "10.0.0.100>198.18.0.3 198.18.0.140>198.18.0.2" in vm.flows()
    vm.deploy(rules(MAPPINGS, STATIC))
    vm.agent.stdin.write(json.dumps({"verb": "poll", "prelude": WAITING}) + "\n")
    vm.agent.stdin.flush()
    home = vm.disk / "root/root"
    while not (home / "waiting").exists():
        time.sleep(0.01)
    vm.run(sys.executable, "-c", SEND, "198.18.0.140", "4001", "198.18.0.2", "4000")
    begun, then = "198.18.0.140>198.18.0.2 10.0.0.100>198.18.0.12", vm.flows()
    (home / "arrived").touch()
    assert begun in then
    assert json.loads(vm.agent.stdout.readline())["status"] == 0
    assert begun not in vm.flows()
    vm.heals(vm.change())


# --- everything else -------------------------------------------------------------------------------------------------

FULL = """
import subprocess
subprocess.run('''rm -rf /tmp/kept; cp -a {0} /tmp/kept; mount -t tmpfs -o size=64k,mode=755 tmpfs {0}
cp -a /tmp/kept/. {0}/; dd if=/dev/zero of={0}/fill bs=512 2>/dev/null''', shell=True)
"""
EMPTY = "import subprocess; subprocess.run(['umount', '{0}'], check=True)"

REFUSING = """
real = agent.run
def run(command, text=None):
    if command == agent.RESTORE{more}:
        raise agent.AgentError("the kernel says no")
    return real(command, text)
agent.run = run
"""
NO_PROGRAMS = """
def run(*arguments, **keywords):
    raise OSError(12, "Cannot allocate memory")
agent.subprocess.run = run
"""
NO_NETLINK = """
def ask(*arguments):
    raise OSError(1, "Operation not permitted")
    yield
agent.ask = ask
"""
LOCKED = """
import fcntl
held = agent.held = open("/run/xtables.lock", "w")
fcntl.flock(held, fcntl.LOCK_EX)
"""
CLOCK = """
import time
agent.time.time = lambda: {0}
agent.time.gmtime = lambda: time.struct_time(({1}, 1, 1, 0, 0, 0, 0, 1, 0))
"""

OLD, NEW = "old", "new"
BROKEN = {
    # what is broken: (Python in the agent's process, Python that ends it, exit status, journal, rules afterwards)
    "disk full": (FULL.format("/var/lib/nat-pod"), EMPTY.format("/var/lib/nat-pod"), 1, "No space left", NEW),
    "/run full": (FULL.format("/run/nat-pod"), EMPTY.format("/run/nat-pod"), 1, "No space left", NEW),
    "the kernel refuses the rules": (REFUSING.format(more=""), "", 1, "the kernel says no", OLD),
    "the kernel refuses the rules once, and with them the former ones' return": (
        REFUSING.format(more=" and text.count('COMMIT') == 3"), "", 1, "the kernel says no", OLD),
    "no memory for any program": (NO_PROGRAMS, "", 1, "Cannot allocate memory", OLD),
    "no netlink": (NO_NETLINK, "", 1, "flows of other rules could not be deleted", NEW),
    # The images' iptables is the nf_tables variant: the kernel takes a whole transaction, nobody needs a lock.
    "the lock of iptables is held": (LOCKED, "", 0, "loaded now", NEW),
    "the clock is at 1970": (CLOCK.format(0, 1970), "", 0, "loaded now", NEW),
    "the clock is at 2090": (CLOCK.format(3786912000, 2090), "", 0, "loaded now", NEW),
}  # fmt: skip


@pytest.mark.parametrize(("prelude", "end", "status", "said", "then"), BROKEN.values(), ids=BROKEN.keys())
def test_what_works_goes_on_and_the_next_clean_round_ends_the_change(vm, prelude, end, status, said, then):
    assert vm.ping(MOVED, flow=600)
    before, generation = vm.moved_to(), vm.change()
    with vm.open_flow():
        ended, journal = vm.round(prelude)
        assert (ended, said in journal) == (status, True), journal
        assert vm.guarded()
        assert vm.moved_to() == (before if then == OLD else [REAL[vm.turn % 2]])
        # With new rules loaded the flows of the old ones are gone, too, whatever else failed.
        assert then == OLD or prelude == NO_NETLINK or vm.old_flows() == []
        assert vm.ping(KEPT, flow=601)
        if end:
            assert vm.round(end)[0] == 0
        vm.heals(generation)
        assert vm.round() == (0, "")
        # And it is saved: a reboot would bring it back.
        assert (vm.disk / "root/var/lib/nat-pod/rules").read_text() == vm.metadata["nat-pod-rules"]


LIAR = """
import socketserver, sys, time
mode, big = sys.argv[1], b"A" * (5 << 20)
class Answer(socketserver.StreamRequestHandler):
    def handle(self):
        path = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        body = {answers}[path.rpartition("/")[2] or "vnics"].encode()
        head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n"
        if mode == "trickles":
            self.wfile.write(head % len(body))
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.2)
        elif mode == "trickles before it says anything":
            for byte in head:
                self.wfile.write(bytes([byte]))
                time.sleep(0.2)
        elif mode == "says nothing":
            time.sleep(5)
        elif mode == "stops half-way":
            self.wfile.write(head % len(body) + body[: len(body) // 2])
        elif mode == "half of it looks whole":
            self.wfile.write(head % (len(body) // 2) + body[: len(body) // 2])
        elif mode == "sends objects for texts":
            self.wfile.write(head % 2 + b"{}")
        elif mode == "sends what is no UTF-8":
            self.wfile.write(head % 2 + b"\\xff\\xfe")
        elif mode == "sends five megabytes":
            self.wfile.write(head % len(big) + big)
        elif mode == "does not speak HTTP":
            self.wfile.write(b"220 mail\\r\\n")
        elif mode == "is overloaded":
            self.wfile.write(b"HTTP/1.1 429 Too Many Requests\\r\\nContent-Length: 0\\r\\n\\r\\n")
    def finish(self):
        try:
            super().finish()
        except OSError:
            pass
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    def handle_error(self, *_):
        pass
server = Server(("169.254.169.254", 80), Answer)
print("ready", flush=True)
server.serve_forever()
"""
IMPATIENT = """
import time
real = time.sleep
agent.PATIENCE = 1
agent.time.sleep = lambda seconds: real(min(seconds, 0.1))
"""
LIES = {
    "is gone": "Connection refused",
    "trickles": "no whole answer in 1 seconds",
    "trickles before it says anything": "no whole answer in 1 seconds",
    "says nothing": "no whole answer in 1 seconds",
    "stops half-way": "VNIC list of IMDS",
    "half of it looks whole": "document refused, what is loaded stays",
    "sends objects for texts": "VNIC list of IMDS",
    "sends what is no UTF-8": "can't decode byte 0xff",
    "sends five megabytes": "document refused, what is loaded stays",
    "does not speak HTTP": "220 mail",
    "is overloaded": "status 429",
}


@pytest.mark.parametrize(("mode", "said"), LIES.items(), ids=LIES.keys())
def test_a_metadata_service_that_fails_or_lies_changes_nothing(vm, mode, said):
    before, generation = vm.saved(), vm.change()
    answers = {
        "vnics": json.dumps(vm.vnics),
        "nat-pod-vm": "natVm1",
        "nat-pod-side": "natVm1",
        "nat-pod-rules": vm.metadata["nat-pod-rules"],
    }
    vm.stop_processes()
    with vm.open_flow():
        if mode != "is gone":
            liar = [*vm.vm, sys.executable, "-c", LIAR.replace("{answers}", repr(answers)), mode]
            vm.processes.append(subprocess.Popen(liar, stdout=subprocess.PIPE))
            with vm.processes[-1].stdout as ready:
                assert ready.readline()
        status, journal = vm.round(IMPATIENT)
        assert status == 1
        assert said in journal, journal
        assert vm.saved() == before
        assert vm.guarded()
        assert vm.ping(KEPT, flow=700)
        assert "198.18.0.34/27" in vm.run("ip", "address", vm=True).stdout
        vm.stop_processes()
        vm.python("nat_pod.lab.wire.imds", str(vm.state_file), wait=False)
        vm.heals(generation)  # the agent tries three times: the service is up by then


@pytest.mark.parametrize(("rules_saved", "up"), [(True, True), (False, False)])
def test_after_a_reboot_the_saved_vnics_do_not_wait_for_the_metadata_service(vm, rules_saved, up):
    """Without saved rules nothing has guarded the VM yet, nor stopped what its image forwards: then they wait."""
    good = vm.disk / "root/var/lib/nat-pod/rules"
    kept = good.read_text()
    vm.run("ip", "address", "flush", "dev", "ens5", vm=True)
    try:
        if not rules_saved:
            good.unlink()
        assert vm.round("import os; agent.imds = lambda path: os._exit(9)")[0] == 9
        assert ("198.18.0.34/27" in vm.run("ip", "address", vm=True).stdout) is up
    finally:
        good.write_text(kept)
    assert vm.round()[0] == 0
    assert "198.18.0.34/27" in vm.run("ip", "address", vm=True).stdout


# --- rebooted --------------------------------------------------------------------------------------------------------

HOSTILE = r"""
import select, socket, struct, sys
def frame(mac, target, source, destination):
    head = struct.pack("!BBHHHBB", 0x45, 0, 36, 0, 0, 64, 17) + bytes(2)
    head += socket.inet_aton(source) + socket.inet_aton(destination)
    total = sum(struct.unpack("!10H", head))
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    head = head[:10] + struct.pack("!H", total) + head[12:]
    return target + mac + b"\x08\x00" + head + struct.pack("!HHHH", 4000, 4000, 16, 0) + b"HOSTILE!"
ways = [  # an open router, an address without mapping, a mapping for others
    ("10.0.0.77", "10.0.1.100"), ("198.18.0.130", "198.18.0.4"), ("10.0.0.77", "198.18.0.3"),
]
sent = through = 0
wires = []
for name, target in zip(("f0", "f1"), sys.argv[1:]):
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    wire.bind((name, 3))
    mac = wire.getsockname()[4]
    wires.append((wire, [frame(mac, bytes.fromhex(target.replace(":", "")), *way) for way in ways]))
while True:
    for wire, frames in wires:
        for one in frames:
            try:
                wire.send(one)
                sent += 1
            except OSError:
                pass  # the VM is off: no link
    ready = select.select([wire for wire, _ in wires] + [sys.stdin], [], [], 0.005)[0]
    for wire in ready:
        if wire is sys.stdin:
            print(sent, through)
            sys.exit()
        data, info = wire.recvfrom(2048)
        through += info[2] != socket.PACKET_OUTGOING and b"HOSTILE!" in data
"""


@contextmanager
def hostile_packets(lab: Lab) -> Iterator[list[int]]:
    """Packets that must not get through the VM, hundreds a second; then the list has those sent and those through."""
    counts: list[int] = []
    stream = subprocess.Popen(
        [*lab.enter, sys.executable, "-c", HOSTILE, PRIMARY, SECONDARY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield counts
    finally:
        counts.extend(map(int, stream.communicate("\n")[0].split()))


@pytest.fixture
def rebooted(vm):
    """The VM, powered off; its disk has the rules that ran."""
    vm.deploy(rules(MAPPINGS))
    vm.round()
    vm.close_rounds()
    vm.ours = [line for line in vm.saved() if "NATPOD" in line]
    vm.power_off()
    assert vm.saved() == []
    yield vm
    vm.open_rounds()
    vm.deploy(rules(MAPPINGS))
    if not vm.processes:
        vm.python("nat_pod.lab.wire.imds", str(vm.state_file), wait=False)
    vm.round()  # says what is wrong with the rules on the disk, and puts them right
    vm.round()  # reports that all is well again
    assert vm.round() == (0, "")


@pytest.mark.parametrize("imds", [True, False], ids=["", "without metadata service"])
def test_a_reboot_brings_the_same_rules_and_lets_nothing_through_before_them(rebooted, imds):
    with hostile_packets(rebooted) as counts:
        done = rebooted.boot(imds=imds)
        assert rebooted.ping(MOVED)
    assert done.returncode == 0, done.stderr
    assert [line for line in rebooted.saved() if "NATPOD" in line] == rebooted.ours
    assert rebooted.guarded()
    sent, through = counts
    assert sent > 100
    assert through == 0
    # The same packets do get through a VM that forwards without the guard.
    with hostile_packets(rebooted) as counts:
        rebooted.run("iptables", "-F", vm=True)
        time.sleep(0.5)
    assert counts[1] > 0


SPOILED = {
    "spoiled on the disk": ("4:spoiled", "saved rules: "),
    "refused by the kernel": (None, "unshare --net iptables-restore"),
}


@pytest.mark.parametrize(("value", "said"), SPOILED.values(), ids=SPOILED.keys())
def test_a_reboot_whose_rules_do_not_load_forwards_nothing_and_says_so(rebooted, value, said):
    """Even where the image itself switches forwarding on, as one with a container engine does."""
    refused = rules(MAPPINGS).replace("-g NATPOD-V-198.18.0.0/27", "-j SNAT --to-source 198.18.0.3")
    (rebooted.disk / "root/var/lib/nat-pod/rules").write_text(value or rule_document("natVm1", HOOKS, refused)[0])
    rebooted.run("sysctl", "-w", "net.ipv4.ip_forward=1", vm=True)
    del rebooted.metadata["nat-pod-rules"]  # a service that is down would take its time, three attempts a round
    rebooted.write_state()
    with hostile_packets(rebooted) as counts:
        done = rebooted.boot()
        assert rebooted.run("sysctl", "-n", "net.ipv4.ip_forward", vm=True).stdout == "0\n"
        assert not rebooted.ping(MOVED)
    assert said in done.stderr
    assert "no rules are loaded: nothing is forwarded" in done.stderr
    assert "no rules are loaded: nothing is forwarded" in rebooted.status()["error"]
    assert counts[0] > 100
    assert counts[1] == 0
