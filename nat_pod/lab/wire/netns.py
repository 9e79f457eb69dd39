"""Running `ip` and `iptables`, and opening sockets, in a network namespace.

The only module of the lab that changes the kernel's state.  Namespaces are the named ones of `ip netns`: files in
/run/netns, which inside the lab is a private tmpfs, so no name of ours exists for the rest of the machine.

Each thread is in one network namespace.  It may enter another one, create a socket and come back: the socket stays in
the namespace where it was created.  That is how one process serves and probes from every machine of the lab.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nat_pod.errors import NatPodError

NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NETLINK_NETFILTER = 12  # linux/netlink.h
_CT_DELETE = 1 << 8 | 2  # subsystem ctnetlink, message delete: linux/netfilter/nfnetlink_conntrack.h
_SYSCTLS = Path("/proc/sys")

# Debian keeps ip and iptables in sbin, which is not in the PATH of an ordinary user.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

_libc = ctypes.CDLL(None, use_errno=True)  # Python 3.11 has no os.setns


class LabError(NatPodError):
    """The lab cannot do what was asked; str() is the whole message."""


def run(arguments: Sequence[str], namespace: str | None = None, stdin: str = "", seconds: float = 60) -> str:
    """Run a program, in a namespace if one is named, and return what it printed.

    Raises:
        LabError: it failed or took too long; the message has the command, its exit status and what it complained of.
    """
    command = in_namespace(namespace, arguments) if namespace else list(arguments)
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError:
        raise LabError(f"{command[0]}: no such program") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{shlex.join(command)}: did not end within {seconds:g} s") from None
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise LabError(f"{shlex.join(command)}: exit status {done.returncode}: {complaint}")
    return done.stdout


def in_namespace(namespace: str, arguments: Sequence[str]) -> list[str]:
    """The command line that runs `arguments` in a namespace.

    With nsenter: `ip netns exec` mounts a new /sys each time, which triples the cost, and nothing here reads /sys.
    """
    return ["nsenter", f"--net={NAMESPACES / namespace}", "--", *arguments]


def ip_batch(text: str, namespace: str | None = None) -> None:
    """Run the lines of `text` as `ip` commands, all in one process.  A refused line is named in the error."""
    if not text:
        return
    command = ["ip", *(["-n", namespace] if namespace else []), "-batch", "-"]
    try:
        run(command, stdin=text)
    except LabError as error:
        number = str(error).rpartition("Command failed -:")[2].split(":")[0]  # "Command failed -:3"
        line = text.splitlines()[int(number) - 1] if number.isdigit() else "?"
        raise LabError(f"{error}\n    the line: {line}") from None


def restore_rules(namespace: str, text: str) -> None:
    """Load an iptables-restore text in one transaction."""
    if text:
        run(["iptables-restore"], namespace, stdin=text)


def save_rules(namespace: str) -> str:
    """What iptables-save prints in a namespace, with counters."""
    return run(["iptables-save", "-c"], namespace)


def set_sysctls(namespace: str, settings: Iterable[tuple[str, str]]) -> None:
    """Write sysctls, in this order: writing ip_forward resets others.  /proc/sys/net shows the writer's namespace."""
    with inside(namespace):
        for name, value in settings:
            path = _SYSCTLS / name
            try:
                path.write_text(value, encoding="ascii")
            except FileNotFoundError:
                # A kernel without IPv6 has nothing to switch off; everything else is needed.
                if not name.startswith("net/ipv6/"):
                    raise LabError(f"this kernel has no sysctl {name}") from None
            except OSError as error:
                raise LabError(f"{namespace}: sysctl {name}={value}: {error.strerror}") from None


def forget_flows(namespace: str) -> None:
    """Empty the connection tracking table, as a kernel that starts anew has it (ctnetlink, IPCTNL_MSG_CT_DELETE)."""
    with open_socket(namespace, socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(10)
        # struct nlmsghdr: length, type, flags (request, acknowledge), sequence number, port; struct nfgenmsg.
        netlink.send(struct.pack("=IHHIIBBH", 20, _CT_DELETE, 5, 1, 0, socket.AF_UNSPEC, 0, 0))
        error = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
    if error:
        raise LabError(f"{namespace}: its connections cannot be forgotten: {os.strerror(-error)}")


def wait_for_links(namespace: str, seconds: float = 10) -> None:
    """Wait until every link whose two ends are up really sends.

    The kernel activates a link some time after its carrier comes up (for some links, up to a second).  Until then it
    silently drops what is sent: about one lab in two hundred lost its first packet.
    """
    end = time.monotonic() + seconds
    while True:
        lines = run(["ip", "-n", namespace, "-oneline", "link", "show", "up"]).splitlines()
        waiting = [line for line in lines if "LOWER_UP" in line and "LOOPBACK" not in line and "state UP" not in line]
        if not waiting:
            return
        if time.monotonic() > end:
            raise LabError(f"{namespace}: a link does not come up: {waiting[0]}")
        time.sleep(0.02)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Put the calling thread into another namespace; other threads stay where they are."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set_namespace(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _set_namespace(home)
    finally:
        os.close(home)


def open_socket(namespace: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A non-blocking socket that lives in `namespace`."""
    with inside(namespace):
        return socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")
