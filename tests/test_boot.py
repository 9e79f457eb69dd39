"""A NAT VM boots from its real user_data, in network namespaces, and is then run, changed, broken and rebooted.

The address plan: NAT VM1 has ens3 198.18.0.2/27 (primary) and ens5 198.18.0.34/27.  The namespace around it is its
neighbourhood: gateways 198.18.0.1 and .33, and on `lo` the machines themselves: customer1/vm1 10.0.0.100, customer2/vm2
10.0.1.100, and NAT VM2 198.18.0.130.  A ping from 198.18.0.130 to 198.18.0.3 reaches 10.0.1.100 if NAT VM1 works.
"""

import ast
import base64
import bz2
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from nat_pod.config import stack_file as stack
from nat_pod.config.model import PodConfig
from nat_pod.lab.wire import boot
from nat_pod.plan import guest
from nat_pod.plan.bootstrap import agent_id, unpack_user_data
from nat_pod.plan.document import FORMAT, canonical, generation_of, printable, read_document, rule_document
from nat_pod.plan.planner import plan_pod
from nat_pod.rules import iptables

pytestmark = pytest.mark.lab
ROOT = Path(__file__).resolve().parent.parent
PRIMARY, SECONDARY = "02:00:17:00:00:01", "02:00:17:00:00:02"
HOOKS = [
    ("filter", "FORWARD", "NATPOD-FORWARD"),
    ("filter", "INPUT", "NATPOD-INPUT"),
    ("nat", "PREROUTING", "NATPOD-PRE"),
    ("nat", "POSTROUTING", "NATPOD-POST"),
]
MAPPINGS = {"198.18.0.2": "10.0.0.100", "198.18.0.3": "10.0.1.100"}


def rules(
    mappings: dict[str, str],
    source: str = "-m conntrack --ctstate DNAT -j SNAT --to-source 198.18.0.2",
    extra: str = "",
) -> str:
    """The rules of NAT VM1 towards its customers."""
    dnat = "".join(
        f'-A NATPOD-V-198.18.0.0/27 -d {unique}/32 -m comment --comment "m {unique}" -j DNAT --to-destination {real}\n'
        for unique, real in mappings.items()
    )
    return f"""*filter
:NATPOD-FORWARD - [0:0]
:NATPOD-INPUT - [0:0]
-A NATPOD-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "flows that exist" -j ACCEPT
-A NATPOD-FORWARD -m conntrack --ctstate DNAT -j ACCEPT
-A NATPOD-FORWARD -m comment --comment "no mapping translated it" -j DROP
-A NATPOD-INPUT -i lo -j ACCEPT
-A NATPOD-INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A NATPOD-INPUT -p icmp -m icmp --icmp-type 3 -j ACCEPT
-A NATPOD-INPUT -s 10.9.0.0/16 -p tcp -m tcp --dport 22 -j ACCEPT
-A NATPOD-INPUT -j DROP
COMMIT
*nat
:NATPOD-PRE - [0:0]
:NATPOD-V-198.18.0.0/27 - [0:0]
:NATPOD-POST - [0:0]
-A NATPOD-PRE -s 198.18.0.128/27 -g NATPOD-V-198.18.0.0/27
{dnat}{extra}-A NATPOD-POST {source}
COMMIT
"""


class Lab:
    """The neighbourhood (one namespace), the VM in it (another), its disk and its metadata service."""

    def __init__(self, folder: Path):
        self.disk, self.state_file = folder / "disk", folder / "state.json"
        self.disk.mkdir()
        self.processes: list[subprocess.Popen] = []
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self.holder = subprocess.Popen(
            ["unshare", *user, "--net", "--mount", "sh", "-c", "echo && exec sleep infinity"], stdout=subprocess.PIPE
        )
        assert self.holder.stdout.readline(), "no namespaces here"
        enter_user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        self.enter = ["nsenter", "--target", str(self.holder.pid), *enter_user, "--net", "--mount", "--"]
        self.vm = [*self.enter, "ip", "netns", "exec", "vm"]
        self.run("mount", "-t", "tmpfs", "tmpfs", "/run")
        self.run("ip", "link", "set", "lo", "up")
        for address in ("10.0.0.100", "10.0.1.100", "198.18.0.130"):
            self.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        self.power_off()
        (self.disk / "dhcp.json").write_text(
            json.dumps({"mac": PRIMARY, "address": "198.18.0.2", "prefix": 27, "gateway": "198.18.0.1", "mtu": 9000})
        )
        self.vnics = [
            {"macAddr": PRIMARY.upper(), "privateIp": "198.18.0.2", "subnetCidrBlock": "198.18.0.0/27"},
            {"macAddr": SECONDARY.upper(), "privateIp": "198.18.0.34", "subnetCidrBlock": "198.18.0.32/27"},
        ]
        self.metadata: dict[str, str] = {}
        self.deploy(rules(MAPPINGS))

    def run(self, *command: str, vm: bool = False, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [*(self.vm if vm else self.enter), *command], capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def power_off(self) -> None:
        """Away with the VM's kernel state; its disk stays."""
        self.stop_processes()
        self.run("ip", "netns", "delete", "vm", check=False)
        self.run("ip", "netns", "add", "vm")
        for inside, outside, mac, gateway in (("ens3", "f0", PRIMARY, ".1"), ("ens5", "f1", SECONDARY, ".33")):
            self.run("ip", "link", "delete", outside, check=False)
            self.run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "address", mac)
            self.run("ip", "link", "set", inside, "netns", "vm")
            self.run("ip", "link", "set", outside, "mtu", "9000", "up")
            self.run("ip", "address", "add", f"198.18.0{gateway}/27", "dev", outside)
        # The fabric delivers a VNIC's addresses to the VNIC; nobody answers ARP for the secondary ones.
        for address in ("198.18.0.2", "198.18.0.3", "198.18.0.4"):
            self.run("ip", "neigh", "replace", address, "lladdr", PRIMARY, "dev", "f0", "nud", "permanent")

    def deploy(self, text: str, vm: str = "natVm1", hooks=HOOKS) -> str:
        """What `pulumi up` changes in the metadata; returns the generation."""
        self.metadata, generation = guest.metadata(vm, vm, "ssh-ed25519 AAAA", hooks, text)
        self.write_state()
        return generation

    def write_state(self) -> None:
        state = {"instance": {"metadata": self.metadata}, "vnics": self.vnics}
        self.state_file.with_suffix(".new").write_text(json.dumps(state))
        self.state_file.with_suffix(".new").rename(self.state_file)

    def python(self, *arguments: str, wait: bool = True):
        command = [*self.vm, sys.executable, "-m", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        if wait:
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        process = subprocess.Popen(command, env=environment)
        self.processes.append(process)
        return process

    def boot(self, imds: bool = True) -> subprocess.CompletedProcess:
        if imds:
            self.python("nat_pod.lab.wire.imds", str(self.state_file), wait=False)
        return self.python("nat_pod.lab.wire.boot", "boot", str(self.disk))

    def poll(self) -> subprocess.CompletedProcess:
        return self.python("nat_pod.lab.wire.boot", "start", str(self.disk), "nat-pod-agent.service")

    def log_in(self, *command: str) -> subprocess.CompletedProcess:
        """What a command prints for somebody who is logged in as root."""
        return self.python("nat_pod.lab.wire.boot", "run", str(self.disk), *command)

    def status(self) -> dict:
        return json.loads((self.disk / "root/run/nat-pod/status.json").read_text())

    def saved(self, counters: bool = False) -> list[str]:
        text = self.run("iptables-save", *(["-c"] if counters else []), vm=True).stdout
        return [line for line in text.splitlines() if not line.startswith("#")]

    def ping(self, destination: str, source: str = "198.18.0.130", flow: int = 0) -> bool:
        """Whether one ping is answered; pings with the same number belong to one flow."""
        number = ["-e", str(flow)] if flow else []
        return self.run("ping", "-c1", "-W1", *number, "-I", source, destination, check=False).returncode == 0

    def flows(self) -> list[str]:
        """Flows through the VM as "original source>destination reply source>destination"."""
        program = """
import runpy, socket, sys
agent = runpy.run_path(sys.argv[1], run_name="agent")
channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
text = lambda pair: ">".join(socket.inet_ntoa(n.to_bytes(4, "big")) for n in pair)
for data in agent["ask"](channel, agent["CT_GET"], agent["DUMP"]):
    flow = agent["attributes"](data)
    print(text(agent["addresses"](flow, 1)), text(agent["addresses"](flow, 2)))
"""
        agent = str(ROOT / "cloud-init/nat_pod_agent.py")
        listed = self.run(sys.executable, "-c", program, agent, vm=True).stdout.splitlines()
        return sorted(line for line in listed if "169.254." not in line)

    def stop_processes(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
            process.wait()
        self.processes.clear()

    def close(self) -> None:
        self.stop_processes()
        self.holder.kill()
        self.holder.wait()
        self.holder.stdout.close()


@pytest.fixture
def lab(tmp_path):
    if not shutil.which("unshare") or not shutil.which("iptables-restore"):
        pytest.skip("needs unshare and iptables-restore")
    made = Lab(tmp_path)
    yield made
    made.close()


@pytest.fixture
def running(lab):
    """A VM that has booted."""
    done = lab.boot()
    assert done.returncode == 0, done.stdout + done.stderr
    return lab


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A VM that has booted, for tests that end with good rules loaded."""
    with closing(Lab(tmp_path_factory.mktemp("shared"))) as made:
        done = made.boot()
        assert done.returncode == 0, done.stdout + done.stderr
        yield made


@dataclass(frozen=True)
class FirstBoot:
    """What is there after a first boot, and after some pings."""

    status: dict
    generation: str  # in the metadata
    links: dict[str, dict]
    default_route: str
    settings: dict[str, str]
    answered: dict[tuple[str, str], bool]  # by source and destination
    flows: list[str]


@pytest.fixture(scope="module")
def first_boot(tmp_path_factory) -> FirstBoot:
    with closing(Lab(tmp_path_factory.mktemp("first"))) as lab:
        generation = lab.deploy(rules(MAPPINGS))
        for interface in ("all", "ens3", "ens5"):  # as images have it
            lab.run("sysctl", "-w", f"net.ipv4.conf.{interface}.rp_filter=1", vm=True)
        done = lab.boot()
        assert done.returncode == 0, done.stderr
        pings = [("198.18.0.130", "198.18.0.2"), ("198.18.0.130", "198.18.0.3")]
        answered = {ping: lab.ping(ping[1], ping[0]) for ping in pings}
        flows = lab.flows()
        more = [("198.18.0.130", "198.18.0.4"), ("10.0.0.100", "198.18.0.3")]
        settings = [line.split(" = ") for line in lab.run("sysctl", "-a", vm=True, check=False).stdout.splitlines()]
        yield FirstBoot(
            status=lab.status(),
            generation=generation,
            links={link["ifname"]: link for link in json.loads(lab.run("ip", "-j", "address", vm=True).stdout)},
            default_route=lab.run("ip", "route", "show", "default", vm=True).stdout,
            settings={setting[0]: setting[-1] for setting in settings},
            answered=answered | {ping: lab.ping(ping[1], ping[0]) for ping in more},
            flows=flows,
        )


def test_first_boot_loads_the_rules_of_the_metadata(first_boot):
    status, generation = first_boot.status, first_boot.generation
    assert (status["vm"], status["wanted"], status["applied"], status["error"]) == (
        "natVm1", generation, generation, None,
    )  # fmt: skip


def test_first_boot_finds_the_vnics_by_mac_and_configures_the_second(first_boot):
    assert [(vnic["address"], vnic["interface"]) for vnic in first_boot.status["vnics"]] == [
        ("198.18.0.2/27", "ens3"),
        ("198.18.0.34/27", "ens5"),
    ]
    assert first_boot.links["ens5"]["mtu"] == 9000
    assert first_boot.default_route.split()[:5] == ["default", "via", "198.18.0.1", "dev", "ens3"]


def test_first_boot_sets_what_a_namespace_owns(first_boot):
    expected = {
        "net.ipv4.ip_forward": "1",
        "net.ipv4.conf.all.rp_filter": "0",
        "net.ipv4.conf.ens3.rp_filter": "0",
        "net.ipv4.conf.ens5.rp_filter": "0",
        "net.netfilter.nf_conntrack_tcp_timeout_time_wait": "30",
    }
    assert {name: first_boot.settings[name] for name in expected} == expected
    # And says what it does not own.
    assert [note.split(" ")[0].rpartition(".")[2] for note in first_boot.status["notes"]] == [
        "nf_conntrack_max",
        "nf_conntrack_buckets",
    ]


def test_after_first_boot_mappings_translate_and_nothing_else_passes(first_boot):
    assert first_boot.answered == {
        ("198.18.0.130", "198.18.0.2"): True,
        ("198.18.0.130", "198.18.0.3"): True,
        ("198.18.0.130", "198.18.0.4"): False,  # not mapped: neither answered by the VM nor sent in circles
        ("10.0.0.100", "198.18.0.3"): False,  # not from NAT VM2: not translated
    }
    assert first_boot.flows == [
        "198.18.0.130>198.18.0.2 10.0.0.100>198.18.0.2",
        "198.18.0.130>198.18.0.3 10.0.1.100>198.18.0.2",
    ]


def test_nothing_is_forwarded_until_rules_are_loaded(lab):
    lab.metadata["nat-pod-rules"] = "4:broken"
    lab.write_state()
    lab.boot()
    assert lab.run("sysctl", "-n", "net.ipv4.ip_forward", vm=True).stdout.split() == ["0"]
    assert "document refused" in lab.status()["error"]
    # Nor is the VM open to anybody, and a reboot without saved rules changes nothing about it.
    assert not lab.ping("198.18.0.2")
    assert not lab.ping("198.18.0.2", source="10.0.0.100")
    lab.deploy(rules(MAPPINGS))
    assert lab.poll().returncode == 0
    assert lab.ping("198.18.0.3")


def test_a_document_that_hooks_nothing_opens_nothing(running):
    assert running.ping("198.18.0.3")
    running.deploy(rules(MAPPINGS), hooks=[])
    assert running.poll().returncode == 0
    assert [line for line in running.saved() if line.startswith(("-A FORWARD", "-A INPUT"))] == [
        "-A INPUT -j NATPOD-OWN",
        "-A INPUT -j NATPOD-CLOSED",
        "-A FORWARD -j NATPOD-CLOSED",
    ]
    assert not running.ping("198.18.0.3")
    # Through the VM as a plain router, and to itself.
    assert not running.ping("198.18.0.34")
    running.run("ip", "route", "replace", "10.7.0.1/32", "via", "198.18.0.2")
    assert not running.ping("10.7.0.1")
    # The agent still hears its metadata service.
    running.deploy(rules(MAPPINGS))
    assert running.poll().returncode == 0
    assert running.ping("198.18.0.3")


def test_a_round_without_change_changes_nothing(running):
    def kernel() -> object:
        # With nft's handles, where there is nft: not even the same rules anew.
        return running.run("nft", "-s", "-a", "list", "ruleset", vm=True, check=False).stdout or running.saved()

    before = kernel()
    done = running.poll()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert kernel() == before


def test_a_change_keeps_the_flow_counters_of_rules_that_stay(running):
    assert running.ping("198.18.0.3")
    assert not running.ping("198.18.0.4")
    generation = running.deploy(rules(MAPPINGS | {"198.18.0.4": "10.0.1.100"}))
    assert running.poll().returncode == 0
    assert running.status()["applied"] == generation
    assert running.ping("198.18.0.4")
    counted = {line.split('"')[1]: line.split(":")[0] for line in running.saved(True) if '"m ' in line}
    assert counted == {"m 198.18.0.2": "[0", "m 198.18.0.3": "[1", "m 198.18.0.4": "[1"}


def test_a_moved_mapping_moves_its_flows_and_no_other(running):
    assert running.ping("198.18.0.2", flow=77)
    assert running.ping("198.18.0.3", flow=78)
    running.deploy(rules(MAPPINGS | {"198.18.0.3": "10.0.0.100"}))
    assert "1 flows deleted" in running.poll().stderr
    assert running.flows() == ["198.18.0.130>198.18.0.2 10.0.0.100>198.18.0.2"]
    assert running.ping("198.18.0.3", flow=78)
    assert running.flows()[1] == "198.18.0.130>198.18.0.3 10.0.0.100>198.18.0.2"


def test_a_removed_mapping_cuts_its_flows(running):
    assert running.ping("198.18.0.3", flow=78)
    running.deploy(rules({"198.18.0.2": "10.0.0.100"}))
    assert "1 flows deleted" in running.poll().stderr
    assert not running.ping("198.18.0.3", flow=78)


def test_a_flow_that_began_while_rules_were_missing_heals(running):
    # Without mappings and guard the VM answers for its own address: the flow is tracked untranslated.
    for chain in ("NATPOD-INPUT", "NATPOD-CLOSED"):
        running.run("iptables", "-F", chain, vm=True)
    running.run("iptables", "-t", "nat", "-F", "NATPOD-V-198.18.0.0/27", vm=True)
    assert running.ping("198.18.0.2", flow=79)
    assert running.flows() == ["198.18.0.130>198.18.0.2 198.18.0.2>198.18.0.130"]
    done = running.poll()
    assert "again, they had been changed; 1 flows deleted" in done.stderr
    assert running.ping("198.18.0.2", flow=79)
    assert running.flows() == ["198.18.0.130>198.18.0.2 10.0.0.100>198.18.0.2"]


def test_an_agent_that_died_before_it_deleted_flows_does_so_next_time(running):
    assert running.ping("198.18.0.3", flow=78)
    running.deploy(rules(MAPPINGS | {"198.18.0.3": "10.0.0.100"}))
    assert running.poll().returncode == 0
    # As it was right after the restore: rules new, no record of them, and a flow of the old rules.
    old, new = rules(MAPPINGS), rules(MAPPINGS | {"198.18.0.3": "10.0.0.100"})
    for text in (old, new):
        subprocess.run([*running.vm, "iptables-restore", "--noflush"], input=text, text=True, check=True)
        assert text is new or running.ping("198.18.0.3", flow=80)
    (running.disk / "root/run/nat-pod/loaded.json").unlink()
    assert "198.18.0.130>198.18.0.3 10.0.1.100>198.18.0.2" in running.flows()
    assert "1 flows deleted" in running.poll().stderr
    assert "198.18.0.130>198.18.0.3 10.0.1.100>198.18.0.2" not in running.flows()


STATIC = """-s 198.18.0.128/27 -j NETMAP --to 198.18.0.0/27
-A NATPOD-POST -s 10.0.0.100/32 -j SNAT --to-source 198.18.0.2
-A NATPOD-POST -s 10.0.1.100/32 -j SNAT --to-source 198.18.0.3"""
TRANSIT = """-A NATPOD-PRE -s 10.0.0.100/32 -d 198.18.0.3/32 -j DNAT --to-destination 198.18.0.130
-A NATPOD-PRE -s 10.0.1.100/32 -d 198.18.0.4/32 -j NETMAP --to 198.18.0.130/32
"""


@pytest.mark.parametrize("source", ["-m conntrack --ctstate DNAT -j SNAT --to-source 198.18.0.2", STATIC])
def test_the_agent_knows_what_the_kernel_does_to_each_flow(shared, source):
    """Flows over every rule; after a change that means nothing the agent must find none of them stale."""
    ends = [("198.18.0.2", "198.18.0.130"), ("198.18.0.3", "198.18.0.130"), ("198.18.0.3", "10.0.0.100"),
            ("198.18.0.4", "10.0.1.100")]  # fmt: skip
    no_flow_is_stale(shared, HOOKS, rules(MAPPINGS, source, TRANSIT), "flows that exist", ends)


@pytest.mark.parametrize("policy", ["masquerade", "static"])
def test_the_agent_knows_it_for_compiled_rules_too(shared, policy):
    mapping = stack.read_stack(ROOT, "dev").pod_config() | {"sourceNat": policy}
    ruleset = plan_pod(PodConfig.from_mapping(mapping, "dev"), "dev").vm("natVm1").rules
    ends = [("198.18.0.2", "198.18.0.130"), ("198.18.0.3", "198.18.0.130"), ("198.18.0.2", "10.0.0.100"),
            ("198.18.0.2", "10.0.1.100")]  # fmt: skip
    no_flow_is_stale(shared, iptables.hooks(ruleset), iptables.render(ruleset), "flows that exist", ends)


def test_what_the_vm_itself_sends_is_left_alone(shared):
    # It never met PREROUTING: a rule there says nothing about it.
    towards_gateway = "-A NATPOD-PRE -d 198.18.0.1/32 -j DNAT --to-destination 198.18.0.130\n"
    shared.deploy(rules(MAPPINGS, extra=towards_gateway))
    assert shared.poll().returncode == 0
    shared.run("ping", "-c1", "-W1", "198.18.0.1", vm=True)
    assert "198.18.0.2>198.18.0.1 198.18.0.1>198.18.0.2" in shared.flows()
    shared.deploy(rules(MAPPINGS, extra=towards_gateway).replace("flows that exist", "changed"))
    assert "; 0 flows deleted" in shared.poll().stderr


def test_masquerade_hides_behind_the_primary_vnic_s_address_and_no_other(shared):
    """A host's own address on NAT VM1 may be the second VNIC's: `static` gives it that, `masquerade` does not."""
    shared.deploy(rules(MAPPINGS, "-d 10.0.1.100/32 -j SNAT --to-source 198.18.0.34"))
    assert shared.poll().returncode == 0
    assert shared.ping("198.18.0.3", flow=90)
    assert "198.18.0.130>198.18.0.3 10.0.1.100>198.18.0.34" in shared.flows()
    shared.deploy(rules(MAPPINGS))
    assert shared.poll().returncode == 0
    assert "198.18.0.130>198.18.0.3 10.0.1.100>198.18.0.34" not in shared.flows()


def no_flow_is_stale(lab, hooks, text: str, comment: str, ends: list[tuple[str, str]]) -> None:
    lab.deploy(text, hooks=hooks)
    assert lab.poll().returncode == 0
    for destination, origin in ends:
        assert lab.ping(destination, origin)
    before = lab.flows()
    assert len(before) >= len(ends)
    assert comment in text
    lab.deploy(text.replace(comment, "changed"), hooks=hooks)
    assert "; 0 flows deleted" in lab.poll().stderr
    assert set(lab.flows()) <= set(before), "a ping's flow ends by itself after 30 s, which a busy machine may take"
    lab.deploy(rules(MAPPINGS))
    assert lab.poll().returncode == 0


DRIFT = {
    "everything flushed": ["-F", "-X", "-t nat -F", "-t nat -X"],
    "a chain of ours emptied": ["-t nat -F NATPOD-V-198.18.0.0/27"],
    "a rule of ours added": ["-I NATPOD-FORWARD -j ACCEPT"],
    "a hook gone": ["-D FORWARD -j NATPOD-FORWARD"],
    "a rule put before a hook": ["-I FORWARD -j REJECT"],
    "a hook doubled": ["-A INPUT -j NATPOD-INPUT"],
    "a chain of an older release, entered": ["-N NATPOD-OLD", "-A OUTPUT -j NATPOD-OLD", "-A NATPOD-OLD -j ACCEPT"],
}


@pytest.mark.parametrize("commands", DRIFT.values(), ids=DRIFT.keys())
def test_drift_is_repaired(shared, commands):
    ours = [line for line in shared.saved() if "NATPOD" in line]
    for command in commands:
        shared.run("iptables", *command.split(), vm=True)
    assert [line for line in shared.saved() if "NATPOD" in line] != ours or "REJECT" in commands[0]
    done = shared.poll()
    assert (done.returncode, "loaded again" in done.stderr) == (0, True)
    assert sorted(line for line in shared.saved() if "NATPOD" in line) == sorted(ours)
    hooks = [line for line in shared.saved() if line.startswith("-A FORWARD")]
    assert hooks[0] == "-A FORWARD -j NATPOD-FORWARD"
    assert shared.ping("198.18.0.3")
    assert shared.poll().stderr == ""


# An Ubuntu image of OCI: FORWARD ends in REJECT, and a chain guards the iSCSI boot volume.  Its first rule is ours: the
# lab's metadata service is on the VM itself, so that its answers pass here, too.
IMAGE_RULES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:InstanceServices - [0:0]
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
-A OUTPUT -d 169.254.0.0/16 -j InstanceServices
-A InstanceServices -s 169.254.169.254/32 -p tcp -m tcp --sport 80 -j ACCEPT
-A InstanceServices -d 169.254.0.2/32 -p tcp -m owner --uid-owner 0 -m tcp --dport 3260 -j ACCEPT
-A InstanceServices -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j ACCEPT
-A InstanceServices -d 169.254.0.0/16 -p tcp -m tcp -j REJECT --reject-with tcp-reset
COMMIT
"""


def load_image_rules(lab) -> list[str]:
    subprocess.run([*lab.vm, "iptables-restore"], input=IMAGE_RULES, text=True, check=True)
    return [line for line in lab.saved() if "NATPOD" not in line and "InstanceServices" in line]


def test_the_platforms_own_rules_stay_byte_for_byte(lab):
    image = load_image_rules(lab)
    everything = lab.saved()
    assert lab.boot().returncode == 0
    assert lab.ping("198.18.0.3")  # though FORWARD ends in REJECT
    lab.deploy(rules({"198.18.0.3": "10.0.1.100"}))
    assert lab.poll().returncode == 0
    now = [line for line in lab.saved() if "NATPOD" not in line]
    at = now.index("*filter")  # raw comes before it
    assert now[at : at + len(everything)] == everything
    assert [line for line in now if "InstanceServices" in line] == image


def test_the_platforms_chain_comes_back_when_it_went_with_firewalld(lab):
    image = load_image_rules(lab)
    assert lab.boot().returncode == 0
    lab.run("iptables", "-F", vm=True)
    lab.run("iptables", "-X", vm=True)
    done = lab.poll()
    assert "chain InstanceServices is back" in done.stderr
    assert [line for line in lab.saved() if "InstanceServices" in line] == image
    assert lab.ping("198.18.0.3")


def remade(value: str, **changes: object) -> str:
    """The document with other contents, as a careless program would make it: packed well, generation right."""
    body = {
        "vm": "natVm1",
        "hooks": [list(hook) for hook in HOOKS],
        "rules": read_document(value).rules,
    }
    body.update(changes)
    body["generation"] = generation_of(body)
    packed = bz2.compress(canonical(body))
    return FORMAT + ":" + printable(packed)


OTHER_FILTER = rules(MAPPINGS).replace("10.9.0.0/16", "10.8.0.0/16")
BAD = {
    "for the other VM": (lambda value: remade(value, vm="natVm2"), "it is for 'natVm2'"),
    "another format": (lambda value: "1" + value[1:], "format '1': this agent reads format 4"),
    "damaged": (lambda value: value[:40] + "AAAA" + value[44:], "document refused"),
    "cut short": (lambda value: value[: len(value) // 2 // 4 * 4 + 2], "document refused"),
    "to the metadata service": (
        lambda value: remade(value, rules=rules({"198.18.0.3": "169.254.169.254"})),
        "169.254.169.254 is not an address to translate to",
    ),
    "a platform chain": (
        lambda value: remade(value, rules=OTHER_FILTER.replace("-A NATPOD-INPUT -j", "-A InstanceServices -j")),
        "'InstanceServices' does not match",
    ),
    # The kernel takes SNAT in POSTROUTING only.  `iptables-restore --test` does not notice, and would have replaced
    # the filter table before the nat table fails.
    "refused by the kernel": (
        lambda value: remade(value, rules=OTHER_FILTER.replace(
            "-g NATPOD-V-198.18.0.0/27", "-j SNAT --to-source 198.18.0.3")),
        "unshare --net iptables-restore",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_document_changes_nothing(shared, spoil, reason):
    before, generation = shared.saved(), shared.status()["applied"]
    shared.metadata["nat-pod-rules"] = spoil(shared.metadata["nat-pod-rules"])
    shared.write_state()
    done = shared.poll()
    assert done.returncode == 1
    assert done.stderr.startswith("<3>nat-pod: ")
    assert reason in shared.status()["error"]
    assert shared.saved() == before
    assert shared.status()["applied"] == generation
    assert shared.ping("198.18.0.3")
    # And the good twin is taken.
    shared.metadata["nat-pod-rules"] = remade(rule_document("natVm1", HOOKS, OTHER_FILTER)[0])
    shared.write_state()
    assert shared.poll().returncode == 0


def test_a_missing_key_changes_nothing(running):
    before = running.saved()
    del running.metadata["nat-pod-rules"]
    running.write_state()
    assert running.poll().returncode == 1
    assert "IMDS has no key nat-pod-rules" in running.status()["error"]
    assert running.saved() == before


def test_a_reboot_without_metadata_service_keeps_rules_and_vnics(running):
    ours = sorted(line for line in running.saved() if "NATPOD" in line)
    running.power_off()
    assert running.saved() == []
    done = running.boot(imds=False)
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in running.saved() if "NATPOD" in line) == ours
    assert "198.18.0.34/27" in running.run("ip", "address", vm=True).stdout
    assert running.ping("198.18.0.3")
    assert "IMDS http://169.254.169.254/opc/v2/vnics/" in running.status()["error"]
    # And it goes on from there when the service is back.
    running.python("nat_pod.lab.wire.imds", str(running.state_file), wait=False)
    generation = running.deploy(rules({"198.18.0.3": "10.0.0.100"}))
    assert running.poll().returncode == 0
    assert running.status()["applied"] == generation


def test_rules_are_there_before_the_network_is(running):
    ours = sorted(line for line in running.saved() if "NATPOD" in line)
    running.power_off()
    offer = json.loads((running.disk / "dhcp.json").read_text())
    (running.disk / "dhcp.json").write_text(json.dumps(offer | {"mac": "02:00:17:00:00:99"}))
    done = running.boot(imds=False)
    assert "interfaces with MAC 02:00:17:00:00:99: none" in done.stderr
    assert "198.18.0.2" not in running.run("ip", "address", vm=True).stdout
    assert sorted(line for line in running.saved() if "NATPOD" in line) == ours
    assert running.run("sysctl", "-n", "net.ipv4.ip_forward", vm=True).stdout == "1\n"


def test_a_vnic_that_comes_later_is_configured(lab):
    lab.vnics, later = lab.vnics[:1], lab.vnics
    lab.write_state()
    lab.boot()
    assert "198.18.0.34" not in lab.run("ip", "address", vm=True).stdout
    lab.vnics = [
        *later,
        {"macAddr": "02:00:17:00:00:03", "privateIp": "198.18.0.66", "subnetCidrBlock": "198.18.0.64/27"},
    ]
    lab.write_state()
    done = lab.poll()
    assert "VNIC 198.18.0.34/27 comes up on ens5" in done.stderr
    assert "198.18.0.34/27" in lab.run("ip", "address", vm=True).stdout
    # The third is listed, but its interface is not there: said, and tried again.
    assert done.returncode == 1
    assert "no interface has this MAC yet" in done.stderr


def test_what_oci_utils_has_configured_is_left_alone_and_does_no_harm(lab):
    """Oracle Linux's own service (ocid) may be first: address, MTU, and a rule that routes this source by ens5."""
    for command in (
        "ip link set ens5 mtu 9000 up",
        "ip address add 198.18.0.34/27 dev ens5",
        "ip route add default via 198.18.0.33 dev ens5 table 1001",
        "ip rule add from 198.18.0.34 lookup 1001",
    ):
        lab.run(*command.split(), vm=True)

    def configured() -> list[str]:
        return [lab.run(*what.split(), vm=True).stdout for what in ("ip -4 address show ens5", "ip rule")]

    before = configured()
    lab.deploy(rules(MAPPINGS | {"198.18.0.34": "10.0.1.100"}).replace("-s 198.18.0.128/27 -g", "-g"))
    done = lab.boot()
    assert (done.returncode, "comes up" in done.stderr) == (0, False)
    assert configured() == before
    assert lab.ping("198.18.0.34")
    assert lab.ping("198.18.0.3")
    assert "198.18.0.130>198.18.0.34 10.0.1.100>198.18.0.2" in lab.flows()


def test_the_timer_brings_a_change(running):
    timer = running.disk / "root/etc/systemd/system/nat-pod-agent.timer"
    timer.write_text(timer.read_text().replace("OnUnitActiveSec=15", "OnUnitActiveSec=1"))
    running.python("nat_pod.lab.wire.boot", "timers", str(running.disk), wait=False)
    generation = running.deploy(rules({"198.18.0.3": "10.0.0.100"}))
    deadline = time.monotonic() + 15
    while running.status()["applied"] != generation and time.monotonic() < deadline:
        time.sleep(0.2)
    assert running.status()["applied"] == generation


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> dict:
    """What `nat-pod-agent status` prints after three pings in one flow, one in another, and one that is refused."""
    with closing(Lab(tmp_path_factory.mktemp("shown"))) as lab:
        assert lab.boot().returncode == 0
        pings = [lab.ping("198.18.0.3", flow=81) for _ in range(3)] + [lab.ping("198.18.0.2"), lab.ping("198.18.0.4")]
        assert pings == [True] * 4 + [False]
        done = lab.log_in("nat-pod-agent", "status")
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def test_status_names_the_agent_as_this_nat_pod_does(shown):
    """The plan computes it from the bootstrap, the agent from the file that the bootstrap left on the VM."""
    assert shown["agent"] == agent_id()


def test_status_shows_what_runs(shown):
    assert shown["applied"] == shown["wanted"]
    assert shown["forwarding"] is True
    assert [vnic["up"] for vnic in shown["vnics"]] == [True, True]


def test_status_counts_packets_by_chain_and_target(shown):
    # "m 198.18.0.3" has no slash, so it is not a member's name; see test_agent.py for members.
    chains = dict(shown["counted"]["chains"])
    own, untracked = chains.pop("NATPOD-OWN"), chains.pop("NATPOD-UNTRACKED")
    assert own["ACCEPT"] > 0  # it has asked the metadata service
    assert untracked["CT"] > 0
    assert chains == {
        "NATPOD-PRE": {"goto": 3},  # the one that is not mapped is from NAT VM2, too
        "NATPOD-V-198.18.0.0/27": {"DNAT": 2},
        "NATPOD-POST": {"SNAT": 2},
        "NATPOD-FORWARD": {"ACCEPT": 8, "DROP": 1},
        "NATPOD-INPUT": {"ACCEPT": 0, "DROP": 0},
        "NATPOD-CLOSED": {"DROP": 0},
    }
    assert shown["counted"]["members"] == {}


def test_status_shows_what_passes(shown):
    # Three pings and their answers in one flow; a ping of this size is 84 bytes.
    assert shown["open"] == {
        "from": {"198.18.0.130": {"flows": 2, "packets": 8, "bytes": 8 * 84}},
        "to": {
            "10.0.0.100": {"flows": 1, "packets": 2, "bytes": 2 * 84},
            "10.0.1.100": {"flows": 1, "packets": 6, "bytes": 6 * 84},
        },
    }
    assert shown["stale"] == 0


def test_status_shows_the_fullest_source(shown):
    assert shown["fullest"]["destination"] in ("10.0.0.100", "10.0.1.100")
    rest = {key: value for key, value in shown["fullest"].items() if key != "destination"}
    assert rest == {"source": "198.18.0.2", "protocol": 1, "port": 0, "flows": 1}


def test_status_shows_the_connection_table(shown):
    assert {key for key, count in shown["conntrack"].items() if count} == {"count", "max"}


def test_status_looks_at_the_vnics_again(running):
    running.run("ip", "link", "set", "ens5", "down", vm=True)
    shown = json.loads(running.log_in("nat-pod-agent", "status").stdout)
    assert [vnic["up"] for vnic in shown["vnics"]] == [True, False]
    assert running.poll().returncode == 0
    shown = json.loads(running.log_in("nat-pod-agent", "status").stdout)
    assert [vnic["up"] for vnic in shown["vnics"]] == [True, True]


def test_a_flow_that_the_rules_no_longer_give_is_counted_as_stale(running):
    assert running.ping("198.18.0.3", flow=82)
    text = rules(MAPPINGS | {"198.18.0.3": "10.0.0.100"})
    running.deploy(text)
    assert running.poll().returncode == 0
    # As between the restore and the deletion, had the agent died there.
    subprocess.run([*running.vm, "iptables-restore", "--noflush"], input=rules(MAPPINGS), text=True, check=True)
    assert running.ping("198.18.0.3", flow=83)
    assert json.loads(running.log_in("nat-pod-agent", "status").stdout)["stale"] == 1
    assert running.poll().returncode == 0
    assert json.loads(running.log_in("nat-pod-agent", "status").stdout)["stale"] == 0


def on_console(lab) -> str:
    return (lab.disk / "root/var/log/console").read_text()


def test_the_console_has_a_report_after_each_change_and_only_then(running):
    first = guest_reports(on_console(running))
    assert [report["applied"] for report in first] == [running.status()["applied"]]
    assert running.poll().returncode == 0
    assert len(guest_reports(on_console(running))) == len(first)
    generation = running.deploy(rules({"198.18.0.3": "10.0.0.100"}))
    assert running.poll().returncode == 0
    assert [report["applied"] for report in guest_reports(on_console(running))[len(first) :]] == [generation]
    before = len(on_console(running))
    running.metadata["nat-pod-rules"] = "4:broken"
    running.write_state()
    for _ in range(3):
        assert running.poll().returncode == 1
    text = on_console(running)[before:]
    assert text.count("<3>nat-pod: document refused") == 1
    assert ["document refused" in report["error"] for report in guest_reports(text)] == [True]


def test_an_unchanged_vm_reports_again_after_a_while(running):
    status = running.disk / "root/run/nat-pod/status.json"
    for seconds, reports in ((800, 0), (1000, 1), (-1000, 1)):  # the last: the clock was set back
        known = len(guest_reports(on_console(running)))
        status.write_text(json.dumps(running.status() | {"reported": time.time() - seconds}))
        assert running.poll().returncode == 0
        assert len(guest_reports(on_console(running))) == known + reports


def guest_reports(text: str) -> list[dict]:
    """The reports in what the console shows, oldest first."""
    return [json.loads(bz2.decompress(base64.b64decode(packed))) for packed in re.findall(r" report (\S+)\n", text)]


def test_a_vm_whose_bootstrap_fails_forwards_nothing_and_says_so_on_the_console(lab):
    config = unpack_user_data(lab.metadata["user_data"])
    packed = re.search("[A-Za-z0-9+/=]{5000,}", config).group()
    agent = bz2.decompress(base64.b64decode(packed)).replace(b"import base64\n", b"import base65\n")
    broken = config.replace(packed, base64.b64encode(bz2.compress(agent)).decode())
    assert broken != config
    lab.metadata["user_data"] = base64.b64encode(gzip.compress(broken.encode())).decode()
    lab.write_state()
    lab.boot()
    assert lab.run("sysctl", "-n", "net.ipv4.ip_forward", vm=True).stdout.split() == ["0"]
    assert "No module named 'base65'" in on_console(lab)


def test_the_vm_s_python_has_the_standard_library_alone(shared):
    packages = "import os, site; print([os.listdir(one) for one in site.getsitepackages() if os.path.isdir(one)])"
    found = ast.literal_eval(shared.log_in("python3", "-c", packages).stdout)
    assert found
    assert not any(found)


def test_the_vm_cannot_write_to_the_machine(lab):
    """Root or not, what the VM does to its disk stays on its disk."""
    files = [Path(name) for name in ("/etc/nat-pod", "/usr/local/sbin/nat-pod-agent", "/usr/local/sbin/systemctl")]
    before = [file.exists() for file in files]
    assert lab.boot().returncode == 0
    assert [file.exists() for file in files] == before
    assert (lab.disk / "root/etc/systemd/system/firewalld.service").is_symlink()
    unit = lab.disk / "root/etc/systemd/system/leak.service"
    unit.write_text("[Service]\nType=oneshot\nExecStart=/bin/touch /usr/nat-pod-lab-leak\n")
    assert lab.python("nat_pod.lab.wire.boot", "start", str(lab.disk), "leak.service").returncode == 1
    assert not Path("/usr/nat-pod-lab-leak").exists()


# --- the balancer's question -----------------------------------------------------------------------------------------

ASKS = """
import http.client, sys
try:
    connection = http.client.HTTPConnection(sys.argv[2], 8198, timeout=2, source_address=(sys.argv[1], 0))
    connection.request("GET", "/")
    answer = connection.getresponse()
    print(answer.status, answer.read().decode().strip())
except OSError as error:
    print(type(error).__name__)
"""
ASKED_FROM = "-A NATPOD-INPUT -s 198.18.0.0/27 -p tcp -m tcp --dport 8198 -j ACCEPT\n-A NATPOD-INPUT -j DROP"


def asked(lab, source="198.18.0.1", to="198.18.0.2") -> str:
    return lab.run(sys.executable, "-c", ASKS, source, to).stdout.strip()


def eventually(lab, answer: str) -> str:
    """What the question is answered, as soon as it is this."""
    for _ in range(100):
        said = asked(lab)
        if said.startswith(answer):
            break
        time.sleep(0.1)
    return said


@pytest.fixture
def one_of_two(lab):
    """natVm1a, whose document asks for a health answer, booted; it has a twin that is not here."""
    text = rules(MAPPINGS).replace("-A NATPOD-INPUT -j DROP", ASKED_FROM)
    lab.metadata, _ = guest.metadata("natVm1a", "natVm1", "ssh-ed25519 AAAA", HOOKS, text, 8198)
    lab.write_state()
    done = lab.boot()
    assert done.returncode == 0, done.stdout + done.stderr
    lab.python("nat_pod.lab.wire.boot", "timers", str(lab.disk), wait=False)
    assert eventually(lab, "200") == "200 fit"
    return lab


def test_the_question_is_answered_in_the_vm_s_own_subnet_at_its_primary_address_and_nowhere_else(one_of_two):
    assert one_of_two.status()["vm"] == "natVm1a"
    assert asked(one_of_two, source="10.0.0.100") == "TimeoutError", "no customer, nor anybody behind a route"
    assert asked(one_of_two, source="198.18.0.33") == "TimeoutError", "nor from another of the POD's subnets"
    assert asked(one_of_two, to="198.18.0.34") in ("TimeoutError", "ConnectionRefusedError"), "nor at another VNIC's"
    listening = one_of_two.run("ss", "-Hltn", vm=True).stdout
    assert "198.18.0.2:8198" in listening
    assert "0.0.0.0:8198" not in listening


def test_a_vm_that_cannot_ask_imds_runs_its_last_good_rules_and_is_fit(one_of_two):
    one_of_two.stop_processes()
    assert one_of_two.poll().returncode == 1
    one_of_two.python("nat_pod.lab.wire.boot", "timers", str(one_of_two.disk), wait=False)
    assert eventually(one_of_two, "200") == "200 fit"


def test_a_refused_document_leaves_a_vm_fit_and_one_that_does_not_forward_is_not(one_of_two):
    one_of_two.metadata["nat-pod-rules"] = "4:broken"
    one_of_two.write_state()
    assert one_of_two.poll().returncode == 1
    assert eventually(one_of_two, "200") == "200 fit"
    one_of_two.run("sysctl", "-w", "net.ipv4.ip_forward=0", vm=True)
    assert asked(one_of_two) == "503 it does not forward"


def test_a_vm_whose_rounds_have_ended_is_not_fit(one_of_two):
    status = one_of_two.disk / "root/run/nat-pod/status.json"
    (one_of_two.disk / "root/etc/systemd/system/timers.target.wants/nat-pod-agent.timer").unlink()
    time.sleep(0.5)  # a round that is just running
    status.write_text(json.dumps(one_of_two.status() | {"uptime": time.monotonic() - 100}))
    assert asked(one_of_two).startswith("503 the last round was 10")
    assert one_of_two.poll().returncode == 0
    assert asked(one_of_two) == "200 fit"


def test_a_pod_of_the_article_s_opens_no_port(running):
    process = running.python("nat_pod.lab.wire.boot", "timers", str(running.disk), wait=False)
    time.sleep(1)
    assert process.poll() is None
    listening = running.run("ss", "-Hltn", vm=True).stdout.splitlines()
    assert [line for line in listening if "169.254.169.254:80" not in line] == []


# --- the stand-ins themselves ----------------------------------------------------------------------------------------

REFUSED = {
    "a MIME message": ("Content-Type: multipart/mixed", "Content-Type"),
    "a script": ("#!/bin/sh\ntrue", "#!/bin/sh"),
    "a key nobody interprets": ("#cloud-config\nbootcmd: [true]\n", "bootcmd"),
    "an encoding": ("#cloud-config\nwrite_files: [{path: /etc/x, content: eA==, encoding: b64}]\n", "encoding"),
    "a file of the machine": ("#cloud-config\nwrite_files: [{path: /usr/bin/x, content: x}]\n", "/usr/bin/x"),
    "a way out": ("#cloud-config\nwrite_files: [{path: /etc/../usr/x, content: x}]\n", "/etc/../usr/x"),
}


@pytest.mark.parametrize(("text", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_user_data_that_the_lab_would_not_do_is_refused_by_name(text, named):
    with pytest.raises(boot.BootError, match=named):
        boot.cloud_init(text, yaml.safe_load)


@pytest.fixture
def units(tmp_path, monkeypatch):
    monkeypatch.setattr(boot, "UNITS", tmp_path)
    (tmp_path / "a.service").write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n[Install]\nWantedBy=x.target\n")
    (tmp_path / "fails.service").write_text("[Service]\nType=oneshot\nExecStart=/bin/false\nExecStart=/bin/true\n")
    return tmp_path


def test_systemctl_enables_and_disables(units, capsys):
    assert boot.systemctl(["is-enabled", "a"]) == 1
    assert boot.systemctl(["enable", "--now", "a.service"]) == 0
    assert [unit.name for unit in boot.enabled(".service")] == ["a.service"]
    assert boot.systemctl(["disable", "a.service"]) == 0
    assert boot.enabled(".service") == []
    assert capsys.readouterr().out == "disabled\n"


def test_systemctl_fails_as_the_service_does(units):
    assert boot.systemctl(["start", "fails.service"]) == 1


def test_systemctl_masks_a_unit_that_is_not_there(units):
    """As firewalld on many images: disabling it is said and nonzero, as systemd does it; masking it is fine."""
    verbs = (["disable", "--now"], ["mask"], ["start"], ["unmask"])
    assert [boot.systemctl([*verb, "firewalld.service"]) for verb in verbs] == [5, 0, 1, 0]


@pytest.mark.parametrize(
    "arguments", [["isolate", "a.service"], ["enable", "--force", "a.service"], ["start", "--now", "a"], []]
)
def test_systemctl_does_nothing_it_does_not_know(units, arguments):
    with pytest.raises(boot.BootError, match="the lab's systemctl does enable, disable"):
        boot.systemctl(arguments)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[Service]\nRestartSteps=3", "RestartSteps=3: the lab's systemd does not know"),
        ("[Service]\nType=notify\nExecStart=/bin/true", "Type=oneshot and Type=simple only"),
        ("[Service]\nRestart=on-failure\nExecStart=/bin/true", "one ExecStart and Restart=always only"),
        ("[Service]\nRestart=always\nExecStart=/bin/a\nExecStart=/bin/b", "one ExecStart and Restart=always only"),
        ("[Service]\nType=oneshot\nStandardOutput=tty\nExecStart=/bin/true", "the lab knows journal"),
        ("[Service]\nType=oneshot\nExecStart=-/bin/false", "supports neither prefixes nor variables"),
        ("[Service]\nType=oneshot\nExecStart=/bin/echo $HOME", "supports neither prefixes nor variables"),
    ],
)
def test_a_unit_that_the_lab_would_run_differently_is_refused(units, line, reason):
    (units / "x.service").write_text(line + "\n")
    with pytest.raises(boot.BootError, match=reason):
        boot.start("x.service")


def test_a_service_that_stays_is_started_restarted_and_stopped(units, tmp_path, monkeypatch):
    monkeypatch.setattr(boot, "STARTED", tmp_path / "started")
    log = tmp_path / "log"
    (units / "stays.service").write_text(
        f"[Service]\nRestart=always\nRestartSec=0\nExecStart=/bin/sh -c 'echo run >> {log}; exec sleep 60'\n"
    )
    staying = boot.Staying()

    def runs() -> int:
        return log.read_text().count("run") if log.exists() else 0

    def looked(until: int) -> int:
        for _ in range(200):
            staying.look()
            if runs() >= until:
                break
            time.sleep(0.02)
        return runs()

    try:
        staying.look()
        assert runs() == 0
        assert boot.systemctl(["start", "stays.service"]) == 0
        assert looked(1) == 1
        assert boot.systemctl(["start", "stays"]) == 0  # it runs already
        staying.look()
        assert boot.systemctl(["restart", "stays.service"]) == 0
        assert looked(2) == 2
        (process,) = [process for _, _, process in staying._running.values()]
        process.kill()
        process.wait()
        assert looked(3) == 3
        assert boot.systemctl(["stop", "stays.service"]) == 0
        staying.look()
        assert staying._running == {}
    finally:
        staying.end()


@pytest.mark.parametrize(("condition", "runs"), [("/", True), ("/nowhere", False), ("!/nowhere", True), ("!/", False)])
def test_conditions(units, tmp_path, condition, runs):
    (units / "c.service").write_text(
        f"[Unit]\nConditionPathExists={condition}\n[Service]\nType=oneshot\nExecStart=/bin/touch {tmp_path}/ran\n"
    )
    assert boot.start("c.service") == 0
    assert (tmp_path / "ran").exists() is runs


@pytest.mark.parametrize("arguments", [[], ["boot"], ["start", "/"], ["timers", "/", "x"], ["run", "/"], ["halt", "/"]])
def test_usage(arguments, capsys):
    assert boot.main(arguments) == 2
    assert "usage" in capsys.readouterr().err
