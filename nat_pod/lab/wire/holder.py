"""The process that is a lab: it builds the namespaces, boots VMs from their user_data, and answers until it is killed.

`sandbox.start` runs it as pid 1 of a pid namespace; its end is the lab's end, so nothing in here cleans up.

Standard input carries the topology; after that its end is the end of the lab, unless the caller has said `stay`.
Standard output tells the caller how building goes, in lines of JSON.  Requests come by the socket whose descriptor is
the only argument.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from nat_pod.lab.wire import boot, load, netns, resolver
from nat_pod.lab.wire.balancers import Balancers
from nat_pod.lab.wire.fabric import dhcp_offer, imds_document, lay_cables
from nat_pod.lab.wire.netns import LabError
from nat_pod.lab.wire.probe import Probe, Prober
from nat_pod.lab.wire.processes import Processes, Work, replace_file
from nat_pod.lab.wire.rewiring import Rewiring, rewire
from nat_pod.lab.wire.router import read_drops
from nat_pod.lab.wire.servers import Servers
from nat_pod.lab.wire.space import IMDS_ADDRESS, balancer_namespace, vcn_namespace, vm_namespace
from nat_pod.trace.topology import VM_HOST, VM_NAT, Topology

_TMPFS = "/run"
_HOME = Path(_TMPFS) / "nat-pod"
_AGENT = "nat-pod-agent.service"
_IMDS_SECONDS = 20
_BOOT_SECONDS = 180
OFF, HANGS = "is off", "hangs"
_NO_RULES = "".join(
    f"*{table}\n" + "".join(f":{chain} ACCEPT [0:0]\n" for chain in chains.split()) + "COMMIT\n"
    for table, chains in (
        ("raw", "PREROUTING OUTPUT"),
        ("mangle", "PREROUTING INPUT FORWARD OUTPUT POSTROUTING"),
        ("nat", "PREROUTING INPUT OUTPUT POSTROUTING"),
        ("filter", "INPUT FORWARD OUTPUT"),
    )
)
# The line that the agent writes when it has loaded a document, with the number of flows that it ended.
_LOADED = re.compile(r"nat-pod: (\d+ rules of generation .*?)\r?$", re.MULTILINE)


class Operations:
    """The lab, and what it does on request: every method without underscore is an operation."""

    def __init__(self, topology: Topology, tell: Callable[[str], None]) -> None:
        self._topology = topology
        self._processes = Processes(_HOME / "logs")
        self._balancers = Balancers(self._processes, _HOME / "balancers")
        self._rounds: dict[str, subprocess.Popen[str]] = {}
        self._load: load.Load | None = None
        self._kept = ""
        self._turn = threading.Lock()
        # VMs that have failed: the processes that stand still, None for one that is off.
        self._down: dict[str, list[int] | None] = {}
        self._build(tell)

    def status(self) -> dict[str, Any]:
        """The machines and networks, which VMs have failed and how, and what keeps the lab going.

        processes: the exit status of each process (None: it runs).
        """
        return {
            "vms": {vm.name: vm.kind for vm in self._topology.vms.values()},
            "vcns": list(self._topology.vcns),
            "down": {vm: OFF if held is None else HANGS for vm, held in self._down.items()},
            "processes": self._processes.status(),
        }

    def balancers(self) -> dict[str, dict[str, Any]]:
        """What each load balancer makes of its backends' health.

        By name: `active`, the address that new flows go to (None: nobody), `asked`, the addresses that have been asked,
        `healthy`, those that answer, and `switches`, each with the time by the monotonic clock and the address.
        """
        return {name: self._balancers.state(name) for name in self._topology.balancers}

    def topology(self) -> str:
        """The deployed network that this lab was built from: a pickled Topology, in base64."""
        return base64.b64encode(pickle.dumps(self._topology)).decode()

    def keep(self, state: str) -> None:
        """Keep what the next `apply` starts from, in base64: it ends with the lab."""
        self._kept = state

    def kept(self) -> str:
        """What `keep` was given; "" for a lab that cannot be changed."""
        return self._kept

    def apply(self, topology: str) -> list[str]:
        """Become another network in place; returns what was done, in lines.

        topology: as `topology` gives it.  After an error the lab is neither the one nor the other.
        """
        after: Topology = pickle.loads(base64.b64decode(topology))
        for vm in self._down:
            self._up(vm)
        with self._turn:
            return self._become(after)

    def fail(self, vm: str, hang: bool) -> None:
        """Power a VM off: its links are cut, its processes and what its kernel knew are gone.  Its disk stays.

        With `hang` the links are cut and its processes stand still, but its kernel keeps everything.
        """
        self._up(vm)
        with self._turn:
            self._cut(vm, "-I")
            space = self._fabric.vms[vm]
            pids = [int(pid) for pid in netns.run(["ip", "netns", "pids", space.name]).split()]
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP if hang else signal.SIGKILL)
            self._down[vm] = pids if hang else None
            if not hang:
                self._rounds.pop(vm, None)
                self._processes.end(vm)
                nics = [port.nic for port in self._fabric.ports.values() if port.vm == vm]
                netns.ip_batch("".join(f"addr flush dev {nic}\n" for nic in nics), space.name)
                netns.ip_batch("link set lo down\naddr flush dev lo\n", space.name)
                netns.restore_rules(space.name, _NO_RULES)
                netns.forget_flows(space.name)

    def recover(self, vm: str) -> None:
        """Bring a VM that failed back: one that was off boots from its disk, one that hung goes on."""
        self._known(vm, self._topology.vms)
        if vm not in self._down:
            raise LabError(f"{vm} has not failed")
        with self._turn:
            pids, space = self._down.pop(vm), self._fabric.vms[vm]
            if pids is None:
                netns.set_sysctls(space.name, space.sysctls)
                netns.ip_batch(space.batch, space.name)
            self._cut(vm, "-D")
            for pid in pids or ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            if pids is None and self._topology.vms[vm].boots:
                self._power_on([vm])

    def probe(self, flows: list[dict[str, Any]], seconds: float, capture: bool) -> list[dict[str, Any]]:
        """Send flows; see `probe.Prober.probe`."""
        with self._turn:
            answers = self._prober.probe([Probe.from_dict(flow) for flow in flows], seconds, capture)
        return [answer.to_dict() for answer in answers]

    def drops(self, vcn: str) -> list[tuple[str, int]]:
        """Why packets died in a VCN: the comments of the rules that dropped some, and how many."""
        self._known(vcn, self._topology.vcns)
        return read_drops(netns.save_rules(vcn_namespace(vcn)))

    def rules(self, vm: str) -> str:
        """`iptables-save -c` of a VM."""
        self._known(vm, self._topology.vms)
        return netns.save_rules(vm_namespace(vm))

    def run(self, argv: list[str], vm: str = "", vcn: str = "", seconds: float = 60) -> dict[str, Any]:
        """Run a program on a VM, or in a VCN's router: exit status, and what it printed."""
        if vm:
            self._known(vm, self._topology.vms)
        else:
            self._known(vcn, self._topology.vcns)
        command = netns.in_namespace(vm_namespace(vm) if vm else vcn_namespace(vcn), argv)
        return _finished(command, seconds)

    def poll(self, vm: str) -> dict[str, Any]:
        """Let a NAT VM's agent poll now, as its timer would: exit status, and what it printed."""
        self._up(vm)
        disk = self._disk(vm)
        return _finished(self._boot_command(vm, "start", str(disk), _AGENT), _BOOT_SECONDS)

    def round(self, vm: str) -> dict[str, Any]:
        """One round of a NAT VM's agent without the start of Python: exit status, what it printed, seconds it took.

        The first call stops the VM's timer: from then on rounds come when they are asked for.
        """
        self._up(vm)
        disk = self._disk(vm)
        if vm not in self._rounds:
            self._processes.end(vm, Work.TIMERS, signal.SIGTERM)  # which also ends a service that is just running
            self._rounds[vm] = subprocess.Popen(
                self._boot_command(vm, "rounds", str(disk)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        process = self._rounds[vm]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write('{"verb": "poll"}\n')
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise LabError(f"{vm}: the process that runs its agent ended")
        return dict(json.loads(line))

    def load(self, action: str, **arguments: Any) -> Any:  # noqa: ANN401 - JSON, as the action takes and gives it
        """Flows that stay open: what `load.Load` does by this name."""
        if action not in load.ACTIONS:
            raise LabError(f"open flows have no {action}")
        if self._load is None:
            self._load = load.Load(self._topology)
            self._load.start()
        return getattr(self._load, action)(**arguments)

    def log_in(self, vm: str, argv: list[str]) -> dict[str, Any]:
        """Run a program on a NAT VM as somebody who is logged in: exit status, and what it printed."""
        self._disk(vm)
        return _finished(self.command(vm, argv), _BOOT_SECONDS)

    def command(self, vm: str, argv: list[str]) -> list[str]:
        """The command line that runs a program on a machine as somebody who is logged in, for `sandbox.enter`.

        One that boots has a root directory of its own; others have only a network of their own.
        """
        self._up(vm)
        if self._topology.vms[vm].boots:
            return self._boot_command(vm, "run", str(self._disk(vm)), *argv)
        return ["ip", "netns", "exec", vm_namespace(vm), *argv]

    def metadata(self, vm: str, metadata: dict[str, str]) -> None:
        """Replace a VM's instance metadata, as an update in place does on OCI."""
        path = self._disk(vm) / "imds.json"
        with self._turn:
            document = json.loads(path.read_text())
            document["instance"]["metadata"] = metadata
            replace_file(path, document)

    def read(self, vm: str, path: str) -> str:
        """A file on a VM's disk, by its path there, e.g. /var/lib/nat-pod/status.json."""
        try:
            return (self._disk(vm) / "root" / path.lstrip("/")).read_text(errors="replace")
        except OSError as error:
            raise LabError(f"{vm}: {path}: {error.strerror}") from None

    def log(self, vm: str) -> str:
        """What a VM's boot and timers have printed so far."""
        self._disk(vm)
        return self._processes.log(vm).read_text(errors="replace")

    # --- building ----------------------------------------------------------------------------------------------

    def _build(self, tell: Callable[[str], None]) -> None:
        netns.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", _TMPFS])
        for folder in ("disks", "logs"):
            (_HOME / folder).mkdir(parents=True)
        topology, fabric = self._topology, lay_cables(self._topology)
        self._fabric = fabric
        tell(f"{len(fabric.vcns)} VCNs and {len(fabric.vms)} VMs as network namespaces")
        netns.ip_batch("".join(f"netns add {space.name}\n" for space in fabric.spaces))
        for space in fabric.spaces:
            netns.set_sysctls(space.name, space.sysctls)
        tell(f"{len(fabric.ports)} VNICs, {len(topology.lpgs)} LPGs, route tables and security rules")
        netns.ip_batch(fabric.cables)
        for space in fabric.spaces:
            netns.set_sysctls(space.name, space.link_sysctls)
            netns.ip_batch(space.batch, space.name)
            netns.restore_rules(space.name, space.rules)
            netns.set_sysctls(space.name, space.rule_sysctls)
        self._servers = Servers(topology)
        self._servers.start()
        self._prober = Prober(topology, fabric)
        boots = [vm.name for vm in topology.vms.values() if vm.boots]
        if boots:
            tell(f"{', '.join(boots)} boot from their metadata")
            self._boot(boots)
        for space in fabric.spaces:
            netns.wait_for_links(space.name)
        self._resolve()
        self._balancers.serve(topology, fabric)
        self._balance(tell)

    def _resolve(self) -> None:
        """Let each host's resolver answer what its VCN's does now.  A resolver keeps no flow, so it is made anew."""
        self._processes.end(work=Work.RESOLVER)
        for vm in self._topology.vms.values():
            vcn = self._topology.vcns[self._topology.subnets[self._topology.vnics[vm.vnics[0]].subnet].vcn]
            if vm.kind == VM_HOST and vcn.zones:
                address, program = resolver.commands(vcn)
                netns.run(address, vm_namespace(vm.name))
                self._processes.start(vm.name, Work.RESOLVER, netns.in_namespace(vm_namespace(vm.name), program))

    def _balance(self, tell: Callable[[str], None]) -> None:
        """Start the load balancers, and wait until each has asked all of its backends once."""
        for name, balancer in self._topology.balancers.items():
            tell(f"load balancer {name} asks its {len(balancer.backends)} backends")
        self._balancers.start(self._topology.balancers)

    def _become(self, after: Topology) -> list[str]:
        before, change = self._topology, rewire(self._topology, self._fabric, after)
        fabric = change.fabric
        did: list[str] = []
        self._take_out(after, change)
        for name in change.gone_vms:
            self._power_off(name)
        for vcn, link in change.gone:
            netns.run(["ip", "-n", vcn_namespace(vcn), "link", "del", link])
        gone = [*map(vm_namespace, change.gone_vms), *map(vcn_namespace, change.gone_vcns)]
        for namespace in (*gone, *map(balancer_namespace, change.gone_balancers)):
            netns.run(["ip", "netns", "del", namespace])
        made = [*(fabric.vcns[name] for name in change.new_vcns), *(fabric.vms[name] for name in change.new_vms)]
        made += [fabric.balancers[name] for name in change.new_balancers]
        netns.ip_batch("".join(f"netns add {space.name}\n" for space in made))
        for space in made:
            netns.set_sysctls(space.name, space.sysctls)
        netns.ip_batch(fabric.cables)
        for name, space in fabric.vcns.items():
            netns.set_sysctls(space.name, space.link_sysctls)
            netns.ip_batch(change.batches[name], space.name)
            netns.restore_rules(space.name, space.rules)
        for name in change.new_vms:
            netns.ip_batch(fabric.vms[name].batch, fabric.vms[name].name)
        for name, batch in change.vm_batches.items():
            netns.ip_batch(batch, fabric.vms[name].name)
        for name, space in fabric.balancers.items():
            netns.ip_batch(change.balancer_batches[name], space.name)
            if name in change.new_balancers:
                netns.restore_rules(space.name, space.rules)
            netns.set_sysctls(space.name, space.rule_sysctls)
        self._topology, self._fabric = after, fabric
        self._balancers.serve(after, fabric)
        fresh = replace(after, vms={name: after.vms[name] for name in change.new_vms})
        self._servers.serve(after, anew=change.new_vms)
        if self._load is not None:
            self._load.serve(fresh)
        self._prober = Prober(after, fabric)
        for space in fabric.spaces:
            netns.wait_for_links(space.name)
        boots = [vm for vm in after.vms.values() if vm.boots]
        booted = [vm.name for vm in boots if vm.name in change.new_vms]
        if booted:
            self._boot(booted)
        for name in after.balancers:
            if name not in change.new_balancers:
                self._balancers.instruct(name)
        self._balancers.start(change.new_balancers)
        self._resolve()
        for vm in boots:
            document = imds_document(after, vm)
            if vm.name in booted:
                did.append(f"{vm.name}: a new VM, booted from its user_data; it knows no flow of before")
            elif document != imds_document(before, before.vms[vm.name]):
                did.append(f"{vm.name}: runs on; {self._told(vm.name, document)}")
        for words, names in (
            ("gone", [name for name in change.gone_vms if name not in after.vms]),
            ("new", [name for name in change.new_vms if name not in before.vms]),
            ("load balancer, gone", [name for name in change.gone_balancers if name not in after.balancers]),
            ("load balancer, new", list(change.new_balancers)),
            ("made anew", [name for name in change.new_vms if name in before.vms and name not in booted]),
        ):
            did += [f"{name}: {words}" for name in names]
        return did

    def _take_out(self, after: Topology, change: Rewiring) -> None:
        """Before a VM goes, its load balancer gives its flows to the other one."""
        vms = {vnic.addresses[0]: vnic.vm for vnic in self._topology.vnics.values()}
        for name in change.gone_balancers:
            self._processes.end(name, Work.BALANCER)
        stay = [name for name in self._topology.balancers if name not in change.gone_balancers]
        for name in stay:
            wanted = {backend.address for backend in after.balancers[name].backends}
            there = {backend.address for backend in self._topology.balancers[name].backends}
            out = {address for address in there if address not in wanted or vms.get(address) in change.gone_vms}
            if out:
                self._balancers.take_out(name, out)

    def _told(self, vm: str, document: dict[str, object]) -> str:
        """Give a VM that runs its new metadata; returns what a NAT VM's agent did with it, in the agent's own words.

        By the console, which has the words of whichever round saw the metadata first.
        """
        console = self._disk(vm) / "root" / boot.CONSOLE.relative_to("/")
        before = console.stat().st_size if console.exists() else 0
        replace_file(self._disk(vm) / "imds.json", document)
        if self._topology.vms[vm].kind != VM_NAT:
            return "it will read its new metadata"
        said = self.poll(vm)
        if said["status"]:
            return f"its agent complains: {said['stderr'].strip()[-300:]}"
        loaded = _LOADED.findall(console.read_bytes()[before:].decode(errors="replace")) if console.exists() else []
        return f"its agent: {loaded[-1]}" if loaded else "its agent has read the new metadata, and its rules stay"

    def _power_off(self, name: str) -> None:
        """End every process of a machine, and take its disk away."""
        self._processes.end(name)
        rounds = self._rounds.pop(name, None)
        if rounds is not None:
            rounds.kill()
            rounds.wait()
        for pid in netns.run(["ip", "netns", "pids", vm_namespace(name)]).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        shutil.rmtree(_HOME / "disks" / vm_namespace(name), ignore_errors=True)

    def _boot(self, names: list[str]) -> None:
        """Launch VMs, at the same time as after one `pulumi up`, and keep their timers running."""
        for name in names:
            vm, disk = self._topology.vms[name], _HOME / "disks" / vm_namespace(name)
            disk.mkdir()
            replace_file(disk / "dhcp.json", dhcp_offer(self._topology, vm))
            replace_file(disk / "imds.json", imds_document(self._topology, vm))
        self._power_on(names)

    def _power_on(self, names: list[str]) -> None:
        """Boot VMs from their disks."""
        for name in names:
            disk = self._disk(name)
            imds = [sys.executable, "-m", "nat_pod.lab.wire.imds", str(disk / "imds.json")]
            self._processes.start(name, Work.METADATA, netns.in_namespace(vm_namespace(name), imds))
        for name in names:
            self._wait_for_imds(name)
        boots = {
            name: self._processes.spawn(name, self._boot_command(name, "boot", str(self._disk(name)))) for name in names
        }
        end = time.monotonic() + _BOOT_SECONDS
        for name, process in boots.items():
            try:
                status = process.wait(max(0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise LabError(
                    f"{name}: its boot did not end within {_BOOT_SECONDS} s:\n{self._processes.tail(name)}"
                ) from None
            if status:
                raise LabError(f"{name}: its boot failed with exit status {status}:\n{self._processes.tail(name)}")
        for name in names:
            self._processes.start(name, Work.TIMERS, self._boot_command(name, "timers", str(self._disk(name))))

    def _wait_for_imds(self, name: str) -> None:
        end = time.monotonic() + _IMDS_SECONDS
        while self._processes.runs(name, Work.METADATA) and time.monotonic() < end:
            with netns.open_socket(vm_namespace(name), socket.AF_INET, socket.SOCK_STREAM) as trial:
                trial.settimeout(1)
                with suppress(OSError):
                    trial.connect((IMDS_ADDRESS, 80))
                    return
            time.sleep(0.02)
        raise LabError(f"{name}: its metadata service does not come up:\n{self._processes.tail(name)}")

    def _boot_command(self, vm: str, verb: str, *arguments: str) -> list[str]:
        # `ip netns exec`, since the guest looks at /sys/class/net, and only this mounts the right one.
        return ["ip", "netns", "exec", vm_namespace(vm), *boot.with_own_mounts(verb, *arguments)]

    def _disk(self, vm: str) -> Path:
        disk = _HOME / "disks" / vm_namespace(vm)
        if not disk.is_dir():
            raise LabError(f"{vm} is not a VM of this lab that boots")
        return disk

    def _cut(self, vm: str, action: str) -> None:
        """Cut a VM's links in the VCN (-I), or mend them (-D): the VM sees no link go down, as on OCI."""
        for port in self._fabric.ports.values():
            if port.vm == vm:
                comment = ["-m", "comment", "--comment", f"{port.vnic}: {vm} has failed", "-j", "DROP"]
                for table, chain, way in (("raw", "PREROUTING", "-i"), ("mangle", "POSTROUTING", "-o")):
                    rule = ["iptables", "-t", table, action, chain, way, port.link, *comment]
                    netns.run(rule, vcn_namespace(port.vcn))

    def _up(self, vm: str) -> None:
        """Raise LabError for a VM that is not there, or has failed."""
        self._known(vm, self._topology.vms)
        if vm in self._down:
            how = OFF if self._down[vm] is None else HANGS
            raise LabError(f"{vm} {how}; `lab recover` brings it back")

    def _known(self, name: str, among: dict[str, Any]) -> None:
        if name not in among:
            raise LabError(f"{name or 'nothing'} is not in this lab; it has {', '.join(sorted(among))}")


def _finished(command: list[str], seconds: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False, text=True
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(command)}: did not end within {seconds:g} s") from None
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


# --- the process ---------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Build, then serve for ever."""
    listener = socket.socket(fileno=int(arguments[0]))
    bond = sys.stdin.buffer
    head = bond.read(8)
    payload = bond.read(struct.unpack("!Q", head)[0]) if len(head) == 8 else b""
    if not payload:
        sys.exit("the caller went away")
    threading.Thread(target=_hold, args=[bond], daemon=True).start()
    # Two servers for each host, a capture for each VM and the probes in flight: more than the usual 1024.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        operations = Operations(pickle.loads(payload), lambda text: _tell({"progress": text}))
    except LabError as error:
        _tell({"error": str(error)})
        sys.exit(1)
    except Exception:
        _tell({"error": f"a bug in the lab:\n{traceback.format_exc()}"})
        sys.exit(1)
    listener.listen(32)
    _tell({"ready": True})
    with (_HOME / "logs" / "holder.log").open("ab") as log:  # the caller's pipes end with it
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=[operations, connection], daemon=True).start()


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _hold(bond: BinaryIO) -> None:
    """End the lab when the caller is gone without having said `stay`."""
    if bond.readline() != b"stay\n":
        os._exit(1)


def _serve(operations: Operations, connection: socket.socket) -> None:
    """Answer the request of one connection."""
    with connection, suppress(OSError), connection.makefile("rwb") as stream:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        # Whoever started the lab is uid 0 in here, also rootless.
        if struct.unpack("3i", credentials)[1] != 0:
            return
        line = stream.readline()
        if not line:
            return  # somebody only wanted to know whether the lab stands
        stream.write(json.dumps(_answer(operations, line)).encode() + b"\n")


def _answer(operations: Operations, line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
        name = request["operation"]
        method = None if name.startswith("_") else getattr(operations, name, None)
        if method is None:
            raise LabError(f"the lab has no operation {name}")
        return {"result": method(**request["arguments"])}
    except LabError as error:
        return {"error": str(error)}
    except Exception:
        return {"error": f"a bug in the lab:\n{traceback.format_exc()}"}


if __name__ == "__main__":
    main(sys.argv[1:])
