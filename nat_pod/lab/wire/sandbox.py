"""The lab's life cycle: start it, find it, enter it, send it requests, stop it.

A lab is one process, the holder (`holder.py`), in its own mount, network and pid namespaces, as root of the machine
or of a user namespace.  It is pid 1 of its pid namespace, and everything it makes (processes, network namespaces,
mounts, disks and logs on a tmpfs) exists only in there.  However it ends, even by SIGKILL, the kernel removes all of
it; there is nothing that clean-up code could forget.

- The holder is found by an abstract unix socket, which disappears with it: there is no pid file that could be stale.
  Such a socket has no permissions, so each end checks the other's uid (SO_PEERCRED).
- The name belongs to the network namespace in which it is bound.  So the caller binds it, and the holder inherits it
  and listens: nobody gets through before the lab is up.
- The holder lives as long as its standard input is open.  So a lab goes away with the program that started it, even if
  that ends by Ctrl-C or SIGKILL in the middle of building.  `stay` ends this bond.
- Each request is a connection of its own: one line of JSON, answered by one line (operations: `holder.Operations`).
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from select import select
from types import TracebackType
from typing import Any

from nat_pod.lab.wire.netns import LabError
from nat_pod.lab.wire.probe import Answer, Probe
from nat_pod.trace.topology import Topology

_ROOT = Path(__file__).resolve().parents[3]  # what must be in PYTHONPATH to import nat_pod

# Programs the lab runs, with the Debian package that has them.
_PACKAGES = {
    "ip": "iproute2",
    "iptables-restore": "iptables",
    "iptables-save": "iptables",
    "mount": "mount",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}

_NAMESPACES = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_AS_ROOT_OF_A_USER_NAMESPACE = ("--user", "--map-root-user")

# Tries what the lab needs from the kernel, before anything is built.
_TRIAL = """set -e
mount -t tmpfs tmpfs /run
ip netns add trial
ip link add name here type veth peer name there netns trial
nsenter --net=/run/netns/trial iptables-restore <<END
*filter
:FORWARD DROP [0:0]
-A FORWARD -p icmp -m icmp --icmp-type 8 -m conntrack --ctstate NEW -m comment --comment "a trial" -j DROP
COMMIT
END
"""


def available() -> str | None:
    """None when this machine can run a lab, otherwise a sentence that says why not and what would help."""
    missing = [program for program in _PACKAGES if shutil.which(program) is None]
    if missing:
        packages = " ".join(sorted({_PACKAGES[program] for program in missing}))
        return f"the lab needs {', '.join(missing)}: apt-get install {packages}"
    flags, why = way_in()
    return None if flags else why


def lab_key(stack: str, directory: Path | None = None) -> str:
    """The key of a stack's lab: one for each user, project directory and stack."""
    project = (directory or Path.cwd()).resolve()
    digest = hashlib.sha256(f"{project}\0{stack}".encode()).hexdigest()[:24]
    return f"nat-pod-lab-{os.geteuid()}-{digest}"


@dataclass(kw_only=True)
class Holder:
    """A lab that this program started."""

    key: str
    pid: int
    process: subprocess.Popen[bytes]

    def stay(self) -> None:
        """Let the lab live on when this program ends."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"stay\n")
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def stop(self) -> None:
        """End the lab and everything in it."""
        stop(self.key)
        _reap(self.process)


def start(key: str, topology: Topology, report: Callable[[str], None] = lambda _: None) -> Holder:
    """Build a lab and return when it is up.  It ends with this program, however that happens, unless told to `stay`.

    report: called with a line of text at each step.

    Raises:
        LabError: this machine cannot run a lab, a lab with this key is up already, or building failed; nothing is left.
    """
    flags, why = way_in()
    if (sentence := available()) is not None:
        raise LabError(sentence or why)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(_address(key))
    except OSError:
        listener.close()
        raise LabError("this lab is already up, or being built by another program") from None
    with listener:
        command = ["unshare", *flags, sys.executable, "-m", "nat_pod.lab.wire.holder", str(listener.fileno())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            cwd="/",  # the holder must not pin a directory, nor import from it
            env=environment,
            start_new_session=True,  # Ctrl-C goes to the caller, which then lets go of the holder
        )
    try:
        _build(process, topology, report)
        pid = find(key)
        if pid is None:
            raise LabError("the lab ended as soon as it was up")
    except BaseException:
        _reap(process)
        raise
    return Holder(key=key, pid=pid, process=process)


def find(key: str) -> int | None:
    """The pid of the holder of a lab that is up, None when there is none."""
    try:
        with _connect(key) as connection:
            return _peer(connection)[0]
    except LabError:
        return None


def call(key: str, operation: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON, as the operation gives it
    """Ask a lab for an operation and return its result.

    Raises:
        LabError: no such lab, or the operation failed.
    """
    with _connect(key) as connection, connection.makefile("rwb") as stream:
        stream.write(json.dumps({"operation": operation, "arguments": arguments}).encode() + b"\n")
        stream.flush()
        line = stream.readline()
    if not line:
        raise LabError(f"{operation}: the lab went down meanwhile")
    answer = json.loads(line)
    if "error" in answer:
        raise LabError(answer["error"])
    return answer["result"]


def probe(key: str, flows: Sequence[Probe], seconds: float = 2.0, capture: bool = False) -> list[Answer]:
    """Send flows in a lab; see `probe.Prober.probe`."""
    answers = call(key, "probe", flows=[flow.to_dict() for flow in flows], seconds=seconds, capture=capture)
    return [Answer.from_dict(answer) for answer in answers]


def drops(key: str, vcn: str) -> list[tuple[str, int]]:
    """Why packets died in a VCN: (VNIC and check, number of packets)."""
    return [(comment, packets) for comment, packets in call(key, "drops", vcn=vcn)]


def enter(pid: int, arguments: Sequence[str]) -> int:
    """Run a program in the holder's namespaces with this terminal; returns its exit status."""
    flags = ["--mount", "--net", "--pid"]
    # A process cannot enter a user namespace that it is already in.
    if Path(f"/proc/{pid}/ns/user").readlink() != Path("/proc/self/ns/user").readlink():
        # Our own uid is root in there.  nsenter would also drop our groups, which the kernel does not allow here.
        flags += ["--user", "--preserve-credentials"]
    # Ctrl-C is for the program in there; this process only waits for it.
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        process = subprocess.Popen(
            ["nsenter", f"--target={pid}", *flags, "--", *arguments], preexec_fn=_take_signals_again
        )
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def stop(key: str) -> bool:
    """End a lab and wait until it is gone; False when there was none."""
    pid = find(key)
    if pid is None:
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # Look again: the holder may have ended meanwhile, and its pid may belong to another process.
        if find(key) == pid:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select([descriptor], [], [], 10)
    finally:
        os.close(descriptor)
    _wait_until_free(key)
    return True


class Lab:
    """A lab for the length of a `with` block, e.g. `with Lab(topology) as lab: lab.probe([...])`."""

    def __init__(self, topology: Topology, report: Callable[[str], None] = lambda _: None) -> None:
        self._topology = topology
        self._report = report
        self.key = f"nat-pod-lab-{os.geteuid()}-{uuid.uuid4().hex}"

    def __enter__(self) -> Lab:
        self._holder = start(self.key, self._topology, self._report)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.stop()

    @property
    def pid(self) -> int:
        """The holder's pid."""
        return self._holder.pid

    def call(self, operation: str, **arguments: object) -> Any:  # noqa: ANN401 - as above
        """Request any operation."""
        return call(self.key, operation, **arguments)

    def probe(self, flows: Sequence[Probe], seconds: float = 2.0, capture: bool = False) -> list[Answer]:
        """Send flows."""
        return probe(self.key, flows, seconds, capture)

    def drops(self, vcn: str) -> list[tuple[str, int]]:
        """Why packets died in a VCN."""
        return drops(self.key, vcn)


# --- inside --------------------------------------------------------------------------------------------------------


@cache
def way_in() -> tuple[tuple[str, ...], str]:
    """The flags with which `unshare` gives us what the lab needs; if none do, no flags and a sentence that says why."""
    ways: list[tuple[str, ...]] = [(*_AS_ROOT_OF_A_USER_NAMESPACE, *_NAMESPACES)]
    if os.geteuid() == 0:
        ways.insert(0, _NAMESPACES)
    complaints = []
    for flags in ways:
        command = ["unshare", *flags, "sh", "-c", _TRIAL]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        if done.returncode == 0:
            return flags, ""
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        complaints.append(lines[-1])
    if os.geteuid() == 0:
        return (), f"this machine gives root no namespaces of its own, as in a restricted container ({complaints[0]})"
    return (), (
        f"this machine gives ordinary users no network namespaces ({complaints[0]}): run it as root, or allow user "
        "namespaces (kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
    )


def _build(process: subprocess.Popen[bytes], topology: Topology, report: Callable[[str], None]) -> None:
    """Hand the topology over and follow the holder until the lab is up.  Raises LabError with the holder's message."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    payload = pickle.dumps(topology)
    with suppress(BrokenPipeError):  # it died at once; the reason is reported below
        process.stdin.write(struct.pack("!Q", len(payload)) + payload)
        process.stdin.flush()
    for line in process.stdout:
        message = json.loads(line)
        if "progress" in message:
            report(message["progress"])
        if "error" in message:
            raise LabError(message["error"])
        if "ready" in message:
            return
    complaint = process.stderr.read().decode(errors="replace").strip()
    raise LabError(f"the lab died while it was built: {complaint or 'no reason given'}")


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Let go of the holder, and wait until it and everything it made are gone: only then does `unshare` end."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()  # the kernel then kills the holder (--kill-child)
        process.wait()


def _take_signals_again() -> None:
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def _address(key: str) -> str:
    return f"\0{key}"  # the leading zero byte makes it abstract: a name without a file


def _connect(key: str) -> socket.socket:
    """A connection to a holder of ours.  Raises LabError when there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(_address(key))
        if _peer(connection)[1] == os.geteuid():
            return connection
    except ConnectionRefusedError:
        pass
    connection.close()
    raise LabError("this lab is not up")


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Pid and uid of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def _wait_until_free(key: str, seconds: float = 10) -> None:
    """Wait until the last process that had the lab's socket is gone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial, suppress(OSError):
            trial.bind(_address(key))
            return
        time.sleep(0.005)
