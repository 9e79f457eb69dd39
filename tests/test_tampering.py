"""Somebody changes the kernel's rules, settings and links on both NAT VMs: `status` finds and names each change.

The agent's next round puts it right, or the table below says why not.  The VMs are those of `test_status.py`: real
agents in namespaces, whose rounds come only where the test says so.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conftest import REPOSITORY
from test_lab import deployed, project
from test_status import Pod

from nat_pod.lab.wire import sandbox

pytestmark = pytest.mark.lab
VMS = ("natVm1", "natVm2")

# What nft does, which need not be there: a table of its own with a chain in the way of forwarded packets.
NFT = """
import socket, struct, sys
from importlib.machinery import SourceFileLoader
agent = SourceFileLoader("agent", sys.argv[1]).load_module()
text = lambda kind, value: agent.attribute(kind, value.encode() + b"\\0")
number = lambda kind, value: agent.attribute(kind, struct.pack("!I", value))
def message(kind, family, body=b"", flags=1, subsystem=0):
    body = struct.pack("!BBH", family, 0, subsystem) + body
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body
hook = agent.attribute(4 | 0x8000, number(1, 2) + number(2, 0))
made = message(0xA00, 1, text(1, "elsewhere"), 0x401) + message(
    0xA03, 1, text(1, "elsewhere") + text(3, "in the way") + hook + text(7, "filter"), 0x401)
gone = message(0xA02, 1, text(1, "elsewhere"))
channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
channel.send(message(16, 0, subsystem=10) + (gone if sys.argv[2:] else made) + message(17, 0, subsystem=10))
"""
AGENT = str(REPOSITORY / "cloud-init/nat_pod_agent.py")


@dataclass(frozen=True)
class Tampering:
    """Commands, what `status` finds on either VM, and the way back where the agent does not find it."""

    does: str
    found: str  # regular expressions, one a line, one for each finding
    undo: str = ""  # "": the agent's next round puts it right
    mended: str = ""  # what the agent says that it has put right


TAMPERING = {
    # --- our rules
    "the nat table flushed": Tampering(
        "iptables -t nat -F", r"rules are not as planned: nat NATPOD-\S+ has other rules; .*; and \d+ more",
        mended="nat PREROUTING"),
    "the filter table flushed": Tampering(
        "iptables -F",
        "rules are not as planned: filter FORWARD lacks 1 -j NATPOD-FORWARD", mended="filter INPUT"),
    "a chain emptied": Tampering(
        "iptables -t nat -F NATPOD-POST", "rules are not as planned: nat NATPOD-POST has other rules$",
        mended="rules: nat NATPOD-POST"),
    "a rule deleted": Tampering(
        "iptables -D NATPOD-FORWARD 1", "rules are not as planned: filter NATPOD-FORWARD has other rules$",
        mended="rules: filter NATPOD-FORWARD"),
    "a rule added": Tampering(
        "iptables -I NATPOD-FORWARD -j ACCEPT", "rules are not as planned: filter NATPOD-FORWARD has other rules$",
        mended="rules: filter NATPOD-FORWARD"),
    "two rules exchanged": Tampering(
        "iptables -D NATPOD-OWN 1 && iptables -A NATPOD-OWN -i lo -j ACCEPT",
        "rules are not as planned: filter NATPOD-OWN has other rules$", mended="rules: filter NATPOD-OWN"),
    "a chain of another release": Tampering(
        "iptables -N NATPOD-OLD && iptables -A NATPOD-OLD -j ACCEPT",
        "rules are not as planned: filter NATPOD-OLD is not planned$", mended="rules: filter NATPOD-OLD"),
    "the guard emptied": Tampering(
        "iptables -F NATPOD-CLOSED", "rules are not as planned: filter NATPOD-CLOSED has other rules$",
        mended="rules: filter NATPOD-CLOSED"),
    "the agent's own traffic tracked": Tampering(
        "iptables -t raw -F OUTPUT",
        "rules are not as planned: raw OUTPUT lacks 1 -d", mended="rules: raw OUTPUT"),
    # --- where they are entered
    "a hook gone": Tampering(
        "iptables -t nat -D PREROUTING -j NATPOD-PRE",
        "rules are not as planned: nat PREROUTING lacks 1 -j NATPOD-PRE", mended="rules: nat PREROUTING"),
    "a rule before a hook": Tampering(
        "iptables -I FORWARD -j ACCEPT",
        "rules are not as planned: filter FORWARD has 2 -j NATPOD-FORWARD, 3 -j NATPOD-CLOSED, not 1\n"
        "rules of others decide about its packets: filter FORWARD: -j ACCEPT$", mended="rules: filter FORWARD"),
    "a hook that only some packets take": Tampering(
        "iptables -R FORWARD 1 -s 10.0.0.0/8 -j NATPOD-FORWARD",
        "rules are not as planned: filter FORWARD has 1 -s 10.0.0.0/8 -j NATPOD-FORWARD, ",
        mended="rules: filter FORWARD"),
    # --- rules of others: the agent leaves them alone, and its own come first again
    "a foreign DNAT before ours": Tampering(
        "iptables -t nat -I PREROUTING -j DNAT --to-destination 10.9.9.9",
        "rules are not as planned: nat PREROUTING has 2 -j NATPOD-PRE, not 1\n"
        "rules of others decide about its packets: nat PREROUTING: -j DNAT --to-destination 10.9.9.9",
        "iptables -t nat -D PREROUTING -j DNAT --to-destination 10.9.9.9", "rules: nat PREROUTING"),
    "a foreign DNAT behind ours, for what ours do not translate": Tampering(
        "iptables -t nat -A PREROUTING -j DNAT --to-destination 10.9.9.9",
        "rules of others decide about its packets: nat PREROUTING: -j DNAT",
        "iptables -t nat -D PREROUTING -j DNAT --to-destination 10.9.9.9"),
    "a foreign rule in mangle": Tampering(
        "iptables -t mangle -A FORWARD -j DROP", "rules of others .*: mangle FORWARD: -j DROP$",
        "iptables -t mangle -F"),
    "a foreign rule in raw": Tampering(
        "iptables -t raw -A PREROUTING -j CT --notrack", "rules of others .*: raw PREROUTING: -j CT --notrack$",
        "iptables -t raw -D PREROUTING -j CT --notrack"),
    "a policy": Tampering(
        "iptables -t mangle -P FORWARD DROP", "rules of others .*: mangle FORWARD: -P DROP$",
        "iptables -t mangle -P FORWARD ACCEPT"),
    "a comment with a newline and a byte that is no UTF-8": Tampering(
        r"""iptables -t mangle -A FORWARD -m comment --comment "$(printf 'a\nb\377')" """,
        r'rules of others .*: mangle FORWARD: -m comment --comment "a\\nb\\udcff"$', "iptables -t mangle -F"),
    "a rule of iptables-legacy": Tampering(
        "iptables-legacy -A FORWARD -j DROP", "rules of others .*: legacy filter FORWARD: -j DROP$",
        "iptables-legacy -F"),
    "a chain of nft": Tampering("NFT", "rules of others .*: nft inet elsewhere: chain in the way$", "NFT gone"),
    # --- settings
    "forwarding off": Tampering(
        "sysctl -w net.ipv4.ip_forward=0", # The kernel itself then accepts redirects.
        "settings are changed: net.ipv4.conf.all.accept_redirects is 1, not 0; net.ipv4.ip_forward is 0, not 1$",
        mended="net.ipv4.ip_forward set to 1"),
    "the return path checked": Tampering(
        "sysctl -w net.ipv4.conf.ens3.rp_filter=1",
        "settings are changed: net.ipv4.conf.ens3.rp_filter is 1, not 0$",
        mended="net.ipv4.conf.ens3.rp_filter set to 0"),
    "redirects accepted": Tampering(
        "sysctl -w net.ipv4.conf.all.accept_redirects=1",
        "settings are changed: net.ipv4.conf.all.accept_redirects is 1, not 0",
        mended="net.ipv4.conf.all.accept_redirects set to 0"),
    "flows forgotten early": Tampering(
        "sysctl -w net.netfilter.nf_conntrack_udp_timeout=1",
        "settings are changed: net.netfilter.nf_conntrack_udp_timeout is 1, not 120$",
        mended="net.netfilter.nf_conntrack_udp_timeout set to 120"),
    # --- links
    "a VNIC down": Tampering("ip link set ens5 down", r"VNIC \S+ \(\S+\) is down, interface ens5", mended="ens5 up"),
    "a VNIC's address gone": Tampering(
        "ip address flush dev ens5", r"VNIC \S+ \(\S+\) is down, interface ens5", mended="dev ens5"),
    "a VNIC's MTU": Tampering(
        "ip link set ens5 mtu 1500", r"VNIC \S+ \(\S+\) has MTU 1500, not 9000, on ens5", mended="mtu 9000"),
    "the primary VNIC's MTU, which is DHCP's": Tampering(
        "ip link set ens3 mtu 1500", r"VNIC \S+ \(\S+\) has MTU 1500, not 9000, on ens3", "ip link set ens3 mtu 9000"),
}  # fmt: skip


@pytest.fixture(scope="module")
def pod(tmp_path_factory) -> Iterator[Pod]:
    directory = project(tmp_path_factory.mktemp("pod"))
    plan, topology = deployed(directory, "dev")
    with sandbox.Lab(topology) as lab, pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(sandbox, "lab_key", lambda stack: lab.key)
        for vm in VMS:
            assert lab.call("round", vm=vm)["status"] == 0
        yield Pod(lab, plan)


def on_both(pod: Pod, command: str) -> None:
    argv = ["sh", "-c", command]
    if command.startswith("NFT"):
        argv = [sys.executable, "-W", "ignore", "-c", NFT, AGENT, *command.split()[1:]]
    for vm in VMS:
        done = pod.lab.call("run", vm=vm, argv=argv)
        assert done["status"] == 0, done


def rounds(pod: Pod) -> None:
    for vm in VMS:
        done = pod.lab.call("round", vm=vm)
        assert done["status"] == 0, done


def seen(pod: Pod) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What is found on each VM, repairs apart, and those."""
    status = pod.status()
    found = [(finding["vm"], finding["what"]) for finding in status["findings"]]
    now = {vm: [what for at, what in found if at == vm and "put right" not in what] for vm in VMS}
    return now, {vm: status["natVms"][vm]["repairs"]["what"] for vm in VMS}


@pytest.mark.parametrize("tampering", TAMPERING.values(), ids=TAMPERING.keys())
def test_it_is_found_on_both_vms_and_named_and_put_right_or_not(pod, tampering):
    if "legacy" in tampering.does and not shutil.which("iptables-legacy"):
        pytest.skip("no iptables-legacy here")
    expected = tampering.found.split("\n")
    on_both(pod, tampering.does)
    found, _ = seen(pod)
    for vm in VMS:
        assert len(found[vm]) == len(expected), found[vm]
        assert all(re.search(*pair) for pair in zip(expected, found[vm], strict=True)), found[vm]
    rounds(pod)
    found, repaired = seen(pod)
    assert all(tampering.mended in repaired[vm] for vm in VMS), repaired
    if tampering.undo:
        assert all(re.search(expected[-1], found[vm][0]) and len(found[vm]) == 1 for vm in VMS), found
        on_both(pod, tampering.undo)
        rounds(pod)
        found, _ = seen(pod)
    assert found == {vm: [] for vm in VMS}


def test_at_the_end_all_is_as_planned_once_somebody_has_taken_note(pod):
    code, out = pod.command()
    assert code == 1
    assert out.count("changed by others and put right") == len(VMS)
    for vm in VMS:
        pod.log_in(vm, "rm", "/run/nat-pod/status.json")
    rounds(pod)
    code, out = pod.command()
    assert (code, "both NAT VMs run what the stack file says" in out) == (0, True)
    assert "Not looked at: rules inside chains of others;" in out
