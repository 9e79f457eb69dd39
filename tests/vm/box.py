"""A NAT VM with a real init: systemd-nspawn runs the root file system of `tools/vm-root`, cloud-init included.

`Site` is what surrounds it: one network namespace with the gateways of both VNICs, the metadata service behind them,
and on `lo` the machines that NAT VM1 talks to.  `Box` is the VM.  Its disk is a layer over the shared root file system
and outlives a reboot; its VNICs are veths, made anew at each power-on, as the kernel of a VM finds them.

What differs from a VM on OCI: the kernel is this machine's and has no module to load, there is no udev (so interfaces
have the names they are given), cloud-init takes the deployed user_data from a NoCloud seed (in a container it does not
look at the chassis tag by which it knows OCI), and the primary VNIC's address from that seed instead of by DHCP.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

MACHINES = ("10.0.0.100", "10.0.0.130", "10.0.1.100", "10.0.0.253", "198.18.0.130")
"""customer1/vm1, customer1/vm2, customer2/vm2, a stranger at customer1, NAT VM2."""
PRIVATE_IPS = {"198.18.0.0/27": ("198.18.0.2", "198.18.0.3", "198.18.0.4"), "198.18.0.32/27": ("198.18.0.34",)}
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
IMDS = "169.254.169.254/32"


class Site:
    """The surroundings of one VM.  `document` is what its metadata service serves."""

    def __init__(self, folder: Path, root: Path, document: dict[str, Any]) -> None:
        self.root, self.document = root, document
        self.group = f"nat-pod-vm-{uuid.uuid4().hex[:12]}"
        self._state = folder / "imds.json"
        self._started: list[subprocess.Popen[bytes]] = []
        self._holder = subprocess.Popen(
            ["sh", str(Path(__file__).with_name("site.sh")), self.group],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        pid = self._holder.stdout.readline().strip()
        assert pid, "this machine gives root no namespaces, or has no cgroup2: see above"
        self.files = Path(f"/proc/{pid}/root")
        self._enter = ["nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--"]
        for address in MACHINES:
            self.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        self.write()
        self.start(sys.executable, "-m", "nat_pod.lab.wire.imds", str(self._state))

    def close(self) -> None:
        """End everything."""
        self._holder.stdin.close()
        self._holder.stdout.close()
        for process in (self._holder, *self._started):
            process.wait(30)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in the surroundings."""
        return _run([*self._enter, *command], check)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program in the surroundings that runs until they end."""
        process = subprocess.Popen([*self._enter, *command], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        self._started.append(process)
        return process

    def write(self) -> None:
        """Let the metadata service say what `document` now says."""
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps(self.document))
        new.rename(self._state)

    def imds(self, *, up: bool) -> None:
        """Cut the metadata service off, or bring it back: packets to it get no answer at all."""
        self.run("ip", "address", "replace" if up else "delete", IMDS, "dev", "lo")

    def ping(self, source: str, destination: str) -> bool:
        """Whether one ping from a machine of the surroundings is answered."""
        return self.run("ping", "-c1", "-W1", "-I", source, destination, check=False).returncode == 0


class Box:
    """One VM.  `image` says what it is set up as; `nics` names the interface of each VNIC."""

    def __init__(self, site: Site, image: str, nics: list[str]) -> None:
        self.site, self.image, self.nics = site, image, nics
        base = "/run/box"
        site.run("mkdir", "-p", f"{base}/up", f"{base}/work", f"{base}/disk")
        layers = f"lowerdir={site.root},upperdir={base}/up,workdir={base}/work"
        site.run("mount", "-t", "overlay", "overlay", "-o", layers, f"{base}/disk")
        self._disk = f"{base}/disk"
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self.path("var/log/journal").mkdir(exist_ok=True)
        # Without an id of its own systemd would think this its first start, and enable what its image has disabled.
        self.write("etc/machine-id", uuid.uuid4().hex + "\n")

    def path(self, name: str) -> Path:
        """A file on the VM's disk."""
        return self.site.files / "run/box/disk" / name.lstrip("/")

    def write(self, name: str, text: str | bytes) -> None:
        """Put a file on the VM's disk."""
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_bytes(text if isinstance(text, bytes) else text.encode())

    def read(self, name: str) -> str:
        """A file as the running VM sees it, what it has in memory included."""
        return Path(f"/proc/{self._leader}/root", name.lstrip("/")).read_text()

    def chroot(self, *command: str) -> str:
        """Run a program on the disk of the VM while that is off."""
        return self.site.run("chroot", self._disk, *command).stdout

    def seed(self) -> None:
        """Give cloud-init the deployed user_data, byte for byte, and the primary VNIC's address."""
        vnic, folder = self.site.document["vnics"][0], "var/lib/cloud/seed/nocloud/"
        user_data = self.site.document["instance"]["metadata"]["user_data"]
        self.write(folder + "user-data", base64.b64decode(user_data))
        self.write(folder + "meta-data", "instance-id: i-1\nlocal-hostname: nat-vm\n")
        prefix = vnic["subnetCidrBlock"].partition("/")[2]
        primary = {
            "addresses": [f"{vnic['privateIp']}/{prefix}"],
            "routes": [{"to": "0.0.0.0/0", "via": vnic["virtualRouterIp"]}],
            "mtu": 9000,
            "accept-ra": False,  # else networkd waits 12 seconds for a router's
        }
        self.write(folder + "network-config", json.dumps({"version": 2, "ethernets": {self.nics[0]: primary}}))
        self.write("etc/cloud/cloud.cfg.d/90-box.cfg", "datasource_list: [NoCloud, None]\nlocale: C.UTF-8\n")

    def power_on(self) -> None:
        """Boot, and wait until systemd has nothing left to start."""
        vnics = self.site.document["vnics"]
        for nic, vnic in zip(self.nics, vnics, strict=False):
            self._plug(nic, vnic)
        cgroup = f"/sys/fs/cgroup/{self.site.group}"
        nspawn = [
            "systemd-nspawn", f"--directory={self._disk}", "--boot", "--quiet", "--register=no", "--keep-unit",
            "--console=pipe", "--capability=CAP_NET_ADMIN", "--link-journal=no", "--resolv-conf=off", "--timezone=off",
            *(f"--network-interface={nic}" for nic in self.nics[: len(vnics)]),
        ]  # fmt: skip
        # With --register=no and --keep-unit no systemd need run on this machine; nspawn splits the cgroup it is in.
        self._process = self.site.start("sh", "-c", f"echo $$ >{cgroup}/cgroup.procs; exec {shlex.join(nspawn)}")
        init = self.site.files / cgroup.lstrip("/") / "payload/init.scope/cgroup.procs"
        self._leader = int(wait("systemd runs", lambda: init.exists() and init.read_text().split())[0])
        state = ["systemctl", "is-system-running"]
        wait("boot ends", lambda: self.run(*state, check=False).stdout.strip() in ("running", "degraded"), 180)

    def power_off(self) -> None:
        """Shut down cleanly, as OCI's soft stop does; the disk stays."""
        os.kill(self._leader, signal.SIGRTMIN + 4)
        self._process.wait(60)

    def attach(self, vnic: dict[str, Any]) -> None:
        """Attach a VNIC to the running VM: its interface appears, and the metadata service lists it."""
        nic = self.nics[len(self.site.document["vnics"])]
        self._plug(nic, vnic)
        status = Path(f"/proc/{self._leader}/status").read_text()
        pids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
        self.site.run("ip", "link", "set", nic, "netns", pids[2])  # as the site's processes see it
        self.site.document["vnics"].append(vnic)
        self.site.write()

    def detach(self) -> dict[str, Any]:
        """Detach the last VNIC from the running VM; returns what it was."""
        vnic = self.site.document["vnics"].pop()
        self.site.run("ip", "link", "delete", _port(vnic))
        self.site.write()
        return vnic

    def _plug(self, nic: str, vnic: dict[str, Any]) -> None:
        """A VNIC, its guest end still in the surroundings: down, without address, and with the kernel's own MTU."""
        port, subnet = _port(vnic), vnic["subnetCidrBlock"]
        self.site.run("ip", "link", "delete", port, check=False)
        self.site.run("ip", "link", "add", port, "type", "veth", "peer", "name", nic, "address", vnic["macAddr"])
        self.site.run("ip", "link", "set", port, "mtu", "9000", "up")
        self.site.run("ip", "address", "add", f"{vnic['virtualRouterIp']}/{subnet.partition('/')[2]}", "dev", port)
        # The fabric delivers each private IP to its VNIC; the guest is not asked who has the secondary ones.
        for address in PRIVATE_IPS[subnet]:
            self.site.run("ip", "neigh", "replace", address, "lladdr", vnic["macAddr"], "dev", port, "nud", "permanent")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in the VM."""
        return _run(["nsenter", f"--target={self._leader}", "--all", "--", *command], check)


def wait(what: str, condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait for something to become true, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} seconds"
        time.sleep(0.1)
    return found


def _port(vnic: dict[str, Any]) -> str:
    """The fabric's end of a VNIC."""
    return f"f{vnic['vlanTag']}"


def _run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert not check or done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"
    return done
