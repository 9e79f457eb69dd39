"""The life cycle: a lab comes up, answers, and goes away without a trace, however it ends."""

import base64
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import eventually
from small_networks import ANYTHING, add, change, needs_lab, network

from nat_pod.lab.wire import sandbox
from nat_pod.lab.wire.netns import LabError
from nat_pod.lab.wire.probe import Probe
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.trace.topology import VM_NAT, Route, Subnet, Topology, Vcn

REPOSITORY = Path(__file__).resolve().parent.parent
PEER = Probe(source_vm="a1", destination="10.1.0.2")


@pytest.fixture
def key() -> Iterator[str]:
    """A key of this test's own.  Should the test fail half-way, its lab goes."""
    key = f"nat-pod-test-{uuid.uuid4().hex}"
    yield key
    sandbox.stop(key)


def test_a_key_for_each_directory_and_stack(tmp_path):
    keys = {
        sandbox.lab_key("dev", tmp_path),
        sandbox.lab_key("ten", tmp_path),
        sandbox.lab_key("dev", tmp_path.parent),
    }
    assert len(keys) == 3
    assert sandbox.lab_key("dev", tmp_path / "x" / "..") == sandbox.lab_key("dev", tmp_path)
    assert max(map(len, keys)) < 107  # the longest name of a unix socket


def test_missing_programs_are_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda program: None if program.startswith("ip") else program)
    assert sandbox.available() == (
        "the lab needs ip, iptables-restore, iptables-save: apt-get install iproute2 iptables"
    )


@pytest.fixture
def no_way_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that gives no namespaces."""

    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "unshare: unshare failed: Operation not permitted\n")

    monkeypatch.setattr(sandbox.subprocess, "run", refuse)
    sandbox.way_in.cache_clear()
    yield
    sandbox.way_in.cache_clear()


@pytest.mark.usefixtures("no_way_in")
@pytest.mark.parametrize("uid", [0, 1000])
def test_where_there_are_no_namespaces_one_sentence_says_so(monkeypatch, uid):
    monkeypatch.setattr(sandbox.os, "geteuid", lambda: uid)
    monkeypatch.setattr(sandbox.shutil, "which", lambda program: program)
    sentence = sandbox.available()
    assert sentence is not None
    assert "unshare failed: Operation not permitted" in sentence
    assert ("run it as root" in sentence) is (uid != 0)
    with pytest.raises(LabError, match="Operation not permitted"):
        sandbox.start("nat-pod-test-never", network())


# --- traces ----------------------------------------------------------------------------------------------------------


class Namespaces:
    """The namespaces of one lab, held open: the kernel would give the number of a dead one to somebody's next."""

    opened: ClassVar[list[int]] = []

    def __init__(self, pid: int) -> None:
        kinds = ("pid", "net", "mnt")
        self.ids = set()
        for kind in kinds:
            self.opened.append(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY))
            self.ids.add(os.fstat(self.opened[-1]).st_ino)

    def processes(self) -> list[int]:
        """Every process that is still in one of them."""
        found = []
        for namespace in Path("/proc").glob("[0-9]*/ns/*"):
            try:
                inside = namespace.stat().st_ino in self.ids
            except OSError:
                continue
            if inside:
                found.append(int(namespace.parts[2]))
        return found


@pytest.fixture(autouse=True)
def _close_namespaces() -> Iterator[None]:
    yield
    while Namespaces.opened:
        os.close(Namespaces.opened.pop())


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def surroundings() -> tuple[object, ...]:
    """What a lab could leave on this machine: mounts, named namespaces, links."""
    run = Path("/run/netns")
    return (
        Path("/proc/self/mountinfo").read_text(),
        sorted(run.iterdir()) if run.is_dir() else [],
        sorted(Path("/sys/class/net").iterdir()),
        Path("/run/nat-pod").exists(),
    )


def socket_exists(key: str) -> bool:
    return f"@{key}" in Path("/proc/net/unix").read_text()


def assert_gone(key: str, namespaces: Namespaces, seconds: float = 0) -> None:
    assert eventually(lambda: not namespaces.processes(), seconds)
    assert eventually(lambda: not socket_exists(key), seconds)
    assert sandbox.find(key) is None


@pytest.mark.lab
@needs_lab
class TestLeavesNothing:
    def test_after_stop(self, key):
        before = surroundings()
        holder = sandbox.start(key, network())
        namespaces = Namespaces(holder.pid)
        assert holder.pid in namespaces.processes()
        assert socket_exists(key)
        assert sandbox.find(key) == holder.pid
        # A process in the lab that ignores polite requests to end.
        sandbox.call(key, "run", vm="a1", argv=["sh", "-c", "trap '' TERM INT HUP; sleep 1000 >/dev/null 2>&1 &"])
        assert len(set(namespaces.processes())) > 1
        start = time.monotonic()
        holder.stop()
        assert time.monotonic() - start < 2
        assert_gone(key, namespaces)
        assert surroundings() == before

    def test_after_the_end_of_a_with_block_that_raised(self):
        found = []

        def use() -> None:
            with Lab(network()) as lab:
                found.append((lab.key, Namespaces(lab.pid)))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            use()
        assert_gone(*found[0])

    def test_after_sigkill_of_the_holder(self, key):
        before = surroundings()
        holder = sandbox.start(key, network())
        namespaces = Namespaces(holder.pid)
        sandbox.call(key, "run", vm="a1", argv=["sh", "-c", "sleep 1000 >/dev/null 2>&1 &"])
        os.kill(holder.pid, signal.SIGKILL)
        assert_gone(key, namespaces, seconds=5)
        with pytest.raises(LabError, match="not up"):
            sandbox.call(key, "status")
        assert not sandbox.stop(key)
        holder.stop()
        assert surroundings() == before

    def test_after_sigkill_of_unshare_which_is_its_parent(self, key):
        holder = sandbox.start(key, network())
        namespaces = Namespaces(holder.pid)
        holder.process.kill()
        assert_gone(key, namespaces, seconds=5)
        holder.stop()

    def test_after_a_build_that_fails(self, key):
        before = surroundings()
        topology = network()
        twice = Route(destination="10.1.0.0/16", lpg="a/lpg")
        change(topology.subnets, "a", routes=(twice, twice))
        seen: list[Namespaces] = []

        def remember(_: str) -> None:
            for unshare in children(os.getpid()):
                seen.extend(Namespaces(pid) for pid in children(unshare))

        with pytest.raises(LabError, match=r"the line: route add 10\.1\.0\.0/16 via ") as caught:
            sandbox.start(key, topology, remember)
        assert "File exists" in str(caught.value)
        assert seen
        for namespaces in seen:
            assert_gone(key, namespaces)
        assert surroundings() == before
        # The key is free again.
        sandbox.start(key, network()).stop()

    def test_after_an_interrupt_while_it_is_built(self, key):
        def interrupt(_: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sandbox.start(key, network(), interrupt)
        assert not socket_exists(key)
        assert not [pid for pid in children(os.getpid()) if b"unshare" in Path(f"/proc/{pid}/comm").read_bytes()]

    def test_after_sigkill_of_the_caller_while_it_is_built(self, key):
        program = "sandbox.start(key, network(), lambda _: (print('building', flush=True), time.sleep(1000))).stay()"
        with caller(key, program) as process:
            assert process.stdout.readline() == "building\n"
            assert eventually(lambda: bool(children(process.pid)))
            (unshare,) = children(process.pid)
            assert eventually(lambda: bool(children(unshare)))
            namespaces = Namespaces(children(unshare)[0])
            process.kill()
        assert_gone(key, namespaces, seconds=5)
        assert eventually(lambda: not Path(f"/proc/{unshare}").exists() or zombie(unshare))

    def test_after_sigkill_of_the_caller_when_it_is_not_to_stay(self, key):
        program = "sandbox.start(key, network()); print('up', flush=True); time.sleep(1000)"
        with caller(key, program) as process:
            assert process.stdout.readline() == "up\n"
            namespaces = Namespaces(sandbox.find(key))
            process.kill()
        assert_gone(key, namespaces, seconds=5)


def zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def caller(key: str, program: str, *prefix: str) -> subprocess.Popen[str]:
    """Another program that uses the sandbox."""
    head = f"import time; from nat_pod.lab.wire import sandbox; from small_networks import network; key = {key!r}; "
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    command = [*prefix, sys.executable, "-c", head + program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.lab
@needs_lab
class TestUse:
    def test_one_that_stays_is_found_used_and_stopped_by_others(self, key):
        with caller(key, "sandbox.start(key, network()).stay(); print('up', flush=True)") as process:
            assert process.communicate()[0] == "up\n"
        pid = sandbox.find(key)
        assert pid is not None
        namespaces = Namespaces(pid)
        assert sandbox.probe(key, [PEER])[0].answered_by == "b1"
        assert sandbox.call(key, "status")["vms"]["b1"] == "host"
        assert sandbox.stop(key)
        assert_gone(key, namespaces)
        assert not sandbox.stop(key)

    def test_a_second_one_with_the_same_key_is_refused_and_the_first_lives_on(self, key):
        holder = sandbox.start(key, network())
        with pytest.raises(LabError, match="already up"):
            sandbox.start(key, network())
        assert sandbox.probe(key, [PEER])[0].ok
        holder.stop()

    def test_two_at_a_time_do_not_meet(self):
        with Lab(network()) as one, Lab(network()) as two:
            assert one.pid != two.pid
            one.call("run", vm="a1", argv=["ip", "link", "set", "ens3", "down"])
            assert not one.probe([PEER], 0.3)[0].ok
            assert two.probe([PEER])[0].ok

    def test_enter_passes_the_exit_status_on_and_is_inside(self, capfd):
        with Lab(network()) as lab:
            assert sandbox.enter(lab.pid, ["sh", "-c", "exit 7"]) == 7
            assert sandbox.enter(lab.pid, ["sh", "-c", "kill -KILL $$"]) == 128 + signal.SIGKILL
            show = ["ip", "-br", "-4", "addr", "show", "ens3"]
            assert sandbox.enter(lab.pid, lab.call("command", vm="b1", argv=show)) == 0
            assert "10.1.0.2/24" in capfd.readouterr().out
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_run_gives_status_and_both_outputs(self):
        with Lab(network()) as lab:
            assert lab.call("run", vcn="a", argv=["sh", "-c", "echo out; echo err >&2; exit 3"]) == {
                "status": 3, "stdout": "out\n", "stderr": "err\n",
            }  # fmt: skip
            assert "-A" not in lab.call("rules", vm="a1")
            for operation, arguments, sentence in (
                ("nonsense", {}, "the lab has no operation nonsense"),
                ("_build", {}, "the lab has no operation _build"),
                ("run", {"vm": "a9", "argv": ["true"]}, "a9 is not in this lab"),
                ("drops", {"vcn": "z"}, "z is not in this lab; it has a, b, c"),
                ("poll", {"vm": "a1"}, "a1 is not a VM of this lab that boots"),
                ("run", {"vm": "a1", "argv": ["sleep", "9"], "seconds": 0.1}, "did not end within 0.1 s"),
            ):
                with pytest.raises(LabError, match=sentence):
                    lab.call(operation, **arguments)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_other_users_get_no_answer(self, key):
        holder = sandbox.start(key, network())
        ask = (
            "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.setresuid(*[int(sys.argv[2])] * 3);"
            "s.connect('\\0' + sys.argv[1]);"
            's.sendall(b\'{"operation": "status", "arguments": {}}\\n\'); print(len(s.recv(9999)))'
        )
        for uid, answered in ((0, True), (65534, False)):
            done = subprocess.run(
                [sys.executable, "-c", ask, key, str(uid)], capture_output=True, text=True, check=False
            )
            # The other one gets nothing, or a reset.
            assert (done.returncode == 0 and int(done.stdout) > 0) is answered, done.stderr
        holder.stop()

    @pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run rootless then")
    def test_rootless(self, key):
        """As an ordinary user: uid 65534 of a user namespace, without capabilities, so that files stay readable."""
        program = (
            "lab = sandbox.start(key, network()); from nat_pod.lab.wire.probe import Probe; import os;"
            f"print(os.geteuid(), [a.answered_by for a in sandbox.probe(key, [{PEER!r}] * 3, capture=True)]);"
            "print(sandbox.drops(key, 'a'), sandbox.enter(lab.pid, ['sh', '-c', 'exit 7']));"
            "pid = lab.pid; lab.stop(); print(sandbox.find(key), os.path.exists(f'/proc/{pid}'))"
        )
        user = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--"]
        with caller(key, program, *user) as process:
            out, err = process.communicate()
        assert (out, err) == ("65534 ['b1', 'b1', 'b1']\n[] 7\nNone False\n", "")


# --- NAT VMs ---------------------------------------------------------------------------------------------------------


def with_nat_vm(user_data: str | None) -> Topology:
    """One VCN with a host and a VM that boots from `user_data`."""
    topology = Topology(vcns={}, subnets={}, lpgs={}, vnics={}, vms={})
    topology.vcns["pod"] = Vcn(name="pod", cidrs=("198.18.0.0/22",))
    topology.subnets["pod"] = Subnet(name="pod", vcn="pod", cidr="198.18.0.0/27", security=ANYTHING)
    add(topology, "host", "pod", "198.18.0.3")
    add(topology, "natVm1", "pod", "198.18.0.2", kind=VM_NAT, check=False)
    text = {} if user_data is None else {"user_data": base64.b64encode(user_data.encode()).decode()}
    change(topology.vms, "natVm1", metadata=text)
    return topology


BOOTS = """#cloud-config
write_files:
- {path: /var/lib/mark, content: "here"}
runcmd:
- echo booted
"""


@pytest.mark.lab
@needs_lab
class TestNatVm:
    def test_it_boots_from_its_metadata_and_from_nothing_else(self):
        with Lab(with_nat_vm(BOOTS)) as lab:
            assert "booted" in lab.call("log", vm="natVm1")
            assert lab.call("read", vm="natVm1", path="/var/lib/mark") == "here"
            assert set(lab.call("status")["processes"].values()) == {None}
            (answer,) = lab.probe([Probe(source_vm="host", destination="198.18.0.2")], capture=True)
            # It answers ping itself, which counts as nobody's answer: it is no host.
            assert (answer.ok, answer.answered_by) == (True, None)
            assert [seen.vm for seen in answer.packets] == ["host", "natVm1", "natVm1", "host"]
            with pytest.raises(LabError, match="No such file"):
                lab.call("read", vm="natVm1", path="/var/lib/nothing")

    def test_changed_metadata_is_what_it_reads_next(self):
        ask = (
            "import urllib.request as u; r = u.Request('http://169.254.169.254/opc/v2/instance/metadata/nat-pod-vm',"
            " headers={'Authorization': 'Bearer Oracle'}); print(u.urlopen(r).read().decode())"
        )
        with Lab(with_nat_vm(BOOTS)) as lab:
            assert lab.call("run", vm="natVm1", argv=["python3", "-c", ask])["status"] == 1
            lab.call("metadata", vm="natVm1", metadata={"nat-pod-vm": "natVm1"})
            assert lab.call("run", vm="natVm1", argv=["python3", "-c", ask])["stdout"] == "natVm1\n"

    @pytest.mark.parametrize("user_data", [None, "#cloud-config\nruncmd: [echo oh no, exit 3]\n"])
    def test_a_boot_that_fails_is_the_labs_failure_in_its_own_words(self, user_data):
        with (
            pytest.raises(LabError, match="natVm1: its boot failed with exit status") as caught,
            Lab(with_nat_vm(user_data)),
        ):
            pytest.fail("it must not come up")
        assert ("oh no" if user_data else "user_data") in str(caught.value)
