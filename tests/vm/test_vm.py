"""NAT VM1 of the dev stack on a real init: cloud-init, systemd and the images' own firewalls, given what was deployed.

Two boxes that are set up as Oracle's platform images are (guest and packages are Debian's):

- Ubuntu's: netplan and systemd-networkd, rules of its own that netfilter-persistent loads, INPUT and FORWARD ending in
  REJECT, and the chain InstanceServices.
- Oracle Linux's: NetworkManager, firewalld with the chain BareMetalInstanceServices as direct rules, and cloud-init's
  units in the order they have there.  In Debian's order firewalld and cloud-init wait for each other, with or without
  us, and systemd leaves one of them out.

The tests of a box are its life and run in this order: each finds it as the one before left it.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from box import Box, Site, wait
from conftest import REPOSITORY

from nat_pod.config.model import PodConfig
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire.fabric import imds_document
from nat_pod.plan import guest
from nat_pod.plan.bootstrap import unpack_user_data
from nat_pod.plan.document import read_document
from nat_pod.plan.planner import plan_pod

pytestmark = pytest.mark.vm
OWN_UNITS = ("nat-pod-agent.service", "nat-pod-agent.timer", "nat-pod-restore.service")

# Interface names that no code can guess, and different ones in the two boxes.
NICS = {"ubuntu": ["enp0s6", "ens340np0"], "oracle": ["ens3", "eth7"]}

UBUNTU_RULES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:InstanceServices - [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
-A OUTPUT -d 169.254.0.0/16 -j InstanceServices
-A InstanceServices -d 169.254.0.2/32 -p tcp -m owner --uid-owner 0 -m tcp --dport 3260 -j ACCEPT
-A InstanceServices -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j ACCEPT
-A InstanceServices -d 169.254.0.0/16 -p tcp -m tcp -j REJECT --reject-with tcp-reset
COMMIT
"""
ORACLE_CHAIN = [
    "-A OUTPUT -d 169.254.0.0/16 -j BareMetalInstanceServices",
    "-A BareMetalInstanceServices -d 169.254.0.2/32 -p tcp -m owner --uid-owner 0 -m tcp --dport 3260"
    ' -m comment --comment "iSCSI boot volume" -j ACCEPT',
    "-A BareMetalInstanceServices -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j ACCEPT",
    "-A BareMetalInstanceServices -d 169.254.0.0/16 -p tcp -m tcp -j REJECT --reject-with tcp-reset",
]


def like_ubuntu(box: Box) -> None:
    """Set a box up as Ubuntu's platform image."""
    box.write("etc/iptables/rules.v4", UBUNTU_RULES)
    box.write("etc/cloud/cloud.cfg.d/91-box.cfg", "system_info: {network: {renderers: [netplan]}}\n")
    box.chroot("systemctl", "disable", "firewalld.service", "NetworkManager.service")
    box.chroot("systemctl", "enable", "systemd-networkd.service")


def like_oracle_linux(box: Box) -> None:
    """Set a box up as Oracle Linux's platform image."""
    lines = ["-N BareMetalInstanceServices", *ORACLE_CHAIN]
    rules = "".join(f'<passthrough ipv="ipv4">{line}</passthrough>\n' for line in lines)
    box.write("etc/firewalld/direct.xml", f'<?xml version="1.0" encoding="utf-8"?>\n<direct>\n{rules}</direct>\n')
    box.write("etc/cloud/cloud.cfg.d/91-box.cfg", "system_info: {network: {renderers: [network-manager]}}\n")
    early = ("DefaultDependencies=no\n", "Before=sysinit.target\n")
    for unit in box.path("lib/systemd/system").glob("cloud-init*.service"):
        lines = unit.read_text().splitlines(keepends=True)
        box.write(f"etc/systemd/system/{unit.name}", "".join(line for line in lines if line not in early))
    box.chroot("systemctl", "disable", "netfilter-persistent.service", "systemd-networkd.service")


@pytest.fixture(scope="module")
def root() -> Path:
    """The root file system of all boxes."""
    made = subprocess.run([REPOSITORY / "tools/vm-root"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(made.stdout.strip())


@pytest.fixture(scope="module", params=["ubuntu", "oracle"])
def box(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box after its first boot, with one VNIC."""
    region, _, deployment = stand_up(REPOSITORY, "dev")
    assert deployment.warnings == ()
    topology = observe(region)
    document = imds_document(topology, topology.vms["natVm1"])
    document["vnics"] = document["vnics"][:1]
    site = Site(tmp_path_factory.mktemp("site"), root, document)
    try:
        made = Box(site, request.param, NICS[request.param])
        {"ubuntu": like_ubuntu, "oracle": like_oracle_linux}[request.param](made)
        made.seed()
        made.power_on()
        yield made
    finally:
        site.close()


@pytest.fixture(scope="module")
def second_vnic() -> dict[str, Any]:
    """NAT VM1's second VNIC, as the metadata service lists it."""
    topology = observe(stand_up(REPOSITORY, "dev")[0])
    return imds_document(topology, topology.vms["natVm1"])["vnics"][1]


def status(box: Box) -> dict[str, Any]:
    """What the agent's last round found."""
    return json.loads(box.read("/run/nat-pod/status.json"))


def applied(box: Box) -> str:
    """The generation that the metadata service has, once the timer has brought it: nobody else runs the agent."""
    wanted = read_document(box.site.document["instance"]["metadata"][guest.RULES_KEY]).generation
    # 15 seconds, the accuracy of one, and a round on a busy machine.
    wait(f"generation {wanted} is applied", lambda: status(box)["applied"] == wanted, 40)
    return wanted


def rules(box: Box) -> list[str]:
    """What the kernel has, without counters."""
    return [line for line in box.run("iptables-save").stdout.splitlines() if line[:1] in "*-"]


def own(box: Box) -> list[str]:
    """Our part of it."""
    return [line for line in rules(box) if "NATPOD-" in line]


def setting(box: Box, name: str) -> str:
    """A sysctl of the VM."""
    return box.run("sysctl", "-n", name).stdout.strip()


def flows(box: Box, member: str) -> int:
    """Flows that met the rule of a mapping."""
    lines = box.run("iptables-save", "-c", "-t", "nat").stdout.splitlines()
    return int(next(line for line in lines if f'"{member}" -j DNAT' in line)[1:].partition(":")[0])


def complaints(box: Box) -> list[str]:
    """What our units say in this boot that is worse than a notice, and what systemd says of order."""
    cycles = [line for line in box.run("journalctl", "-b", "-o", "cat").stdout.splitlines() if "ordering cycle" in line]
    ours = box.run("journalctl", "-b", "-o", "cat", "-p", "warning", "-u", "nat-pod-*").stdout.splitlines()
    # Two settings that belong to the machine, not to a network namespace.
    return cycles + [line for line in ours if "nf_conntrack_max =" not in line and "nf_conntrack_buckets =" not in line]


def test_cloud_init_finds_nothing_wrong_with_the_user_data(box):
    box.write("root/wrong", "#cloud-config\nwrite_files: {path: /etc/x}\n")
    assert "is not of type 'array'" in box.run("cloud-init", "schema", "-c", "/root/wrong", check=False).stderr
    box.write("root/config", unpack_user_data(box.site.document["instance"]["metadata"]["user_data"]))
    assert box.run("cloud-init", "schema", "-c", "/root/config").stdout == "Valid cloud-config: /root/config\n"


def test_systemd_finds_nothing_wrong_with_the_units(box):
    box.write("etc/systemd/system/wrong.service", "[Service]\nType=oneshot\nExecStart=/bin/true\nRestrat=no\n")
    assert "Restrat" in box.run("systemd-analyze", "verify", "/etc/systemd/system/wrong.service", check=False).stderr
    paths = [f"/etc/systemd/system/{unit}" for unit in OWN_UNITS]
    verified = box.run("systemd-analyze", "verify", *paths)
    assert (verified.stdout, verified.stderr) == ("", "")


def test_the_first_boot_ends_with_everything_applied(box):
    generation = read_document(box.site.document["instance"]["metadata"][guest.RULES_KEY]).generation
    found = status(box)
    assert (found["vm"], found["wanted"], found["applied"], found["error"]) == ("natVm1", generation, generation, None)
    assert [(vnic["address"], vnic["interface"]) for vnic in found["vnics"]] == [("198.18.0.2/27", box.nics[0])]
    assert setting(box, "net.ipv4.ip_forward") == "1"
    assert json.loads(box.read("/run/cloud-init/result.json"))["v1"]["errors"] == []
    assert box.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""
    assert complaints(box) == []
    for unit in ("nat-pod-agent.timer", "nat-pod-restore.service"):
        assert box.run("systemctl", "is-enabled", unit).stdout == "enabled\n"


def test_whoever_reads_metrics_finds_them_where_packages_of_node_exporter_look(box):
    folder = {"ubuntu": "/var/lib/prometheus/node-exporter", "oracle": "/var/lib/node_exporter/textfile_collector"}
    path = folder[box.image]
    assert not box.path(path[1:]).exists()
    box.run("mkdir", "-p", path)
    wait("a round writes them", lambda: box.path(f"{path[1:]}/nat-pod.prom").exists(), 40)
    text = box.run("runuser", "-u", "nobody", "--", "cat", f"{path}/nat-pod.prom").stdout
    assert "\nnat_pod_forwarding 1\n" in text
    assert "\nnat_pod_generation_applied 1\n" in text
    box.run("rm", "-r", path)


def test_packets_pass_where_a_mapping_says_so_and_nowhere_else(box):
    assert box.site.ping("10.0.0.100", "198.18.0.2")  # a customer's host to the server
    assert box.site.ping("198.18.0.130", "198.18.0.3")  # NAT VM2 to a customer's host
    assert (flows(box, "management/mgmt"), flows(box, "customer2/vm2")) == (1, 1)
    assert not box.site.ping("10.0.0.253", "198.18.0.2")  # a stranger
    assert not box.site.ping("10.0.0.100", "198.18.0.3")  # customer to customer
    assert not box.site.ping("198.18.0.130", "198.18.0.4")  # not mapped
    assert (flows(box, "management/mgmt"), flows(box, "customer2/vm2")) == (1, 1)


def test_the_platforms_own_rules_are_what_they_were(box):
    theirs = [line for line in rules(box) if "NATPOD-" not in line and line[0] == "-"]
    if box.image == "oracle":
        # It was up when cloud-init came, and took the chain with it when it went.
        journal = box.run("journalctl", "-b", "-o", "cat").stdout
        assert "Started firewalld.service" in journal
        assert journal.count("chain BareMetalInstanceServices is back") == 1
        assert box.run("systemctl", "is-enabled", "firewalld.service", check=False).stdout == "masked\n"
        assert box.run("systemctl", "is-active", "firewalld.service", check=False).stdout == "inactive\n"
        assert theirs == ORACLE_CHAIN
    else:
        assert theirs == [line for line in UBUNTU_RULES.splitlines() if line[0] == "-"]
        assert box.read("/etc/iptables/rules.v4") == UBUNTU_RULES
    for builtin, chains in (("INPUT", ["OWN", "INPUT", "CLOSED"]), ("FORWARD", ["FORWARD", "CLOSED"])):
        ours = [line for line in rules(box) if line.startswith(f"-A {builtin} ")][: len(chains)]
        assert ours == [f"-A {builtin} -j NATPOD-{chain}" for chain in chains]


def test_a_change_of_the_metadata_alone_changes_the_rules(box, dev):
    dev["customers"]["customer2"]["hosts"]["vm2"] = "10.0.1.77"
    changed = plan_pod(PodConfig.from_mapping(dev, "dev"), "dev").vm("natVm1").metadata
    box.site.run("ip", "address", "replace", "10.0.1.77/32", "dev", "lo")
    box.site.run("ip", "address", "delete", "10.0.1.100/32", "dev", "lo")
    assert not box.site.ping("198.18.0.130", "198.18.0.3")
    box.site.document["instance"]["metadata"] = changed
    box.site.write()
    applied(box)
    assert box.site.ping("198.18.0.130", "198.18.0.3")
    assert complaints(box) == []


def test_a_vnic_that_is_attached_later_comes_up(box, second_vnic):
    nic = box.nics[1]
    assert not box.site.ping("198.18.0.130", "198.18.0.34")
    box.attach(second_vnic)
    wait("VNIC 2 is listed", lambda: len(status(box)["vnics"]) == 2, 40)
    link = json.loads(box.run("ip", "-json", "address", "show", "dev", nic).stdout)[0]
    assert [entry["local"] for entry in link["addr_info"] if entry["family"] == "inet"] == ["198.18.0.34"]
    assert (link["mtu"], "UP" in link["flags"]) == (9000, True)
    assert setting(box, f"net.ipv4.conf.{nic}.rp_filter") == "0"
    routes = box.run("ip", "route", "show", "default").stdout.splitlines()
    assert [route.split()[:5] for route in routes] == [["default", "via", "198.18.0.1", "dev", box.nics[0]]]
    assert box.site.ping("198.18.0.130", "198.18.0.34")
    assert flows(box, "customer1/vm2") == 1
    if box.image == "oracle":
        # Else it asks for DHCP there, which nobody answers, and takes the agent's address away after 45 seconds.
        state = box.run("nmcli", "--get-values", "GENERAL.STATE", "device", "show", nic).stdout
        assert "unmanaged" in state


def test_a_vnic_that_is_detached_is_forgotten(box):
    vnic = box.detach()
    wait("VNIC 2 is not listed any more", lambda: len(status(box)["vnics"]) == 1, 40)
    assert status(box)["error"] is None
    assert "198.18.0.34" not in box.read("/var/lib/nat-pod/vnics")
    box.attach(vnic)
    wait("VNIC 2 is back", lambda: box.run("systemctl", "start", OWN_UNITS[0]) and len(status(box)["vnics"]) == 2)
    assert box.site.ping("198.18.0.130", "198.18.0.34")


def test_a_reboot_without_metadata_service_brings_the_same_rules_and_vnics(box):
    before, platform = own(box), [line for line in rules(box) if "NATPOD-" not in line]
    box.power_off()
    box.site.imds(up=False)
    box.power_on()
    # Not yet: this is the restore unit alone, long before the agent's first round.
    assert own(box) == before
    assert [line for line in rules(box) if "NATPOD-" not in line] == platform
    assert setting(box, "net.ipv4.ip_forward") == "1"
    assert box.site.ping("10.0.0.100", "198.18.0.2")
    assert box.site.ping("198.18.0.130", "198.18.0.3")
    assert not box.site.ping("10.0.0.253", "198.18.0.2")
    wait("a round is through", lambda: status(box)["vnics"])
    assert "IMDS http://169.254.169.254/opc/v2/vnics/" in status(box)["error"]
    assert [vnic["interface"] for vnic in status(box)["vnics"]] == box.nics
    assert box.site.ping("198.18.0.130", "198.18.0.34")
    assert [line for line in complaints(box) if "IMDS" not in line and "nat-pod-agent.service" not in line] == []
    box.site.imds(up=True)
    applied(box)
    wait("the error is over", lambda: status(box)["error"] is None, 40)
    assert box.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""


def test_rules_and_forwarding_come_before_the_network_and_no_order_is_broken(box):
    """Where units wait for each other in a circle, systemd leaves one out, and says so before there is a journal."""

    def moment(unit: str, what: str) -> int:
        return int(box.run("systemctl", "show", "--value", "-p", f"{what}TimestampMonotonic", "--", unit).stdout)

    def asked(what: str) -> list[str]:
        return box.run("systemctl", "show", "--value", "-p", what, "nat-pod-restore.service").stdout.split()

    network = "NetworkManager.service" if box.image == "oracle" else "systemd-networkd.service"
    started, ended = (moment("nat-pod-restore.service", f"ExecMain{what}") for what in ("Start", "Exit"))
    assert 0 < started < ended < moment(network, "ExecMainStart")
    assert [unit for unit in asked("After") if moment(unit, "ActiveEnter") > started] == []
    assert [unit for unit in asked("Before") if 0 < moment(unit, "InactiveExit") < ended] == []
    if box.image == "ubuntu":  # whose own rules replace the whole table
        assert 0 < moment("netfilter-persistent.service", "ExecMainExit") < started
    for stage in ("cloud-init-local", "cloud-init", "cloud-config", "cloud-final"):
        assert moment(f"{stage}.service", "ActiveEnter") > 0


def test_a_vm_that_has_lost_its_rules_forwards_nothing(box):
    box.power_off()
    box.site.imds(up=False)
    box.path("var/lib/nat-pod/rules").write_text("4:damaged")
    box.power_on()
    assert "saved rules: it cannot be unpacked" in status(box)["error"]
    assert setting(box, "net.ipv4.ip_forward") == "0"
    assert not box.site.ping("198.18.0.130", "198.18.0.3")
    box.site.imds(up=True)
    applied(box)
    assert box.site.ping("198.18.0.130", "198.18.0.3")
