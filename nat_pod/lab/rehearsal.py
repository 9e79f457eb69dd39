"""A tenancy on this machine, for a trial: the simulated region, the engine's backend, and a lab that is what it has.

For the length of a `with` block, whoever starts `pulumi` in this process deploys into the region.  The lab follows: it
is the region's network whenever nothing has changed for a moment; instances boot from their user_data, stop and start
as the region says; and the region is told what they write to their consoles and what the balancers find out.

Every assumption of a trial can be broken here, to see that its row says so.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import assert_never

from nat_pod.errors import NO_CLI, NatPodError
from nat_pod.lab.apply import packed_topology
from nat_pod.lab.engine.engine import Engine, find_cli
from nat_pod.lab.following import Health
from nat_pod.lab.observe import observe
from nat_pod.lab.region.file import RegionFile
from nat_pod.lab.region.kinds import INSTANCE
from nat_pod.lab.region.region import Region
from nat_pod.lab.scratch import scratch_folder
from nat_pod.lab.surroundings import prepare
from nat_pod.lab.wire import boot, sandbox
from nat_pod.lab.wire.netns import LabError
from nat_pod.names import POD
from nat_pod.plan.guest import VM_KEY
from nat_pod.trace.topology import VM_NAT, Topology, Vm
from nat_pod.trial.assumptions import Assumption
from nat_pod.trial.patience import Patience

_QUIET_SECONDS = 0.7  # without a change: the engine is done, or waits
_PAUSE_SECONDS = 0.2
_CONSOLE_SECONDS = 1.0
BALANCER_IDLE = 15
"""Seconds after which the lab's balancers forget a TCP flow, in place of 360: a rehearsal need not wait for it."""
PATIENCE = Patience(reports=120.0, pause=3.0, settle=3.0, stopped=15.0, started=10.0, idle=BALANCER_IDLE + 5)

_NOTHING_BOOTS = b"#cloud-config\nruncmd: []\n"
_EMPTY = Topology(vcns={}, subnets={}, lpgs={}, vnics={}, vms={})


class Rehearsal:
    """A tenancy for a stack of a project."""

    def __init__(
        self, directory: Path, stack: str, say: Callable[[str], None], *, broken: Assumption | None = None
    ) -> None:
        """broken: the assumption that does not hold here.  Raises NatPodError where this machine cannot do it."""
        self._directory, self._stack, self._say, self._broken = directory, stack, say, broken
        if (reason := sandbox.available()) is not None:
            raise NatPodError(reason)
        cli = find_cli()
        if cli is None:
            raise NatPodError(NO_CLI)
        self._cli = cli
        self.key = sandbox.lab_key(f"rehearsal of {stack}", directory)
        self._end = threading.Event()
        self._error: Exception | None = None
        self._consoles: dict[str, str] = {}
        self._metadata: dict[str, dict[str, str]] = {}
        self._down: set[str] = set()

    def __enter__(self) -> Rehearsal:
        with ExitStack() as stack:
            folder = stack.enter_context(scratch_folder())
            _, region = prepare(self._directory, self._stack)
            heeded = self._broken is not Assumption.AVOID_DOWNTIME
            region.limits = replace(region.limits, avoids_downtime=heeded)
            self.region = RegionFile.make(folder / "region", region)
            stack.callback(self.region.close)
            engine = Engine(self._directory, self._stack, folder / "region", self._cli)
            stack.callback(_restore_environment, dict(os.environ))
            for name in [name for name in os.environ if name.startswith("PULUMI_")]:
                del os.environ[name]
            os.environ.update(engine.shell())
            sandbox.stop(self.key)
            holder = sandbox.start(self.key, _EMPTY)
            stack.callback(holder.stop)
            self._thread = threading.Thread(target=self._follow, name="the lab follows the region", daemon=True)
            self._thread.start()
            self._undo = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._undo.close()
        if self._error is not None and error is None:
            raise NatPodError(f"the lab could not follow: {self._error}")

    def _follow(self) -> None:
        standing, seen, since = _EMPTY, 0, time.monotonic()
        settled, shown, health = True, 0.0, Health(self.key, self.region)
        try:
            while not self._end.wait(_PAUSE_SECONDS):
                self.region.all(INSTANCE)  # takes in what the engine has changed
                if self.region.version != seen:
                    seen, since, settled = self.region.version, time.monotonic(), False
                if not settled and time.monotonic() - since >= _QUIET_SECONDS:
                    settled = True
                    snapshot = Region.from_json(self.region.to_json())
                    wanted = self._with_what_is_broken(observe(snapshot))
                    if wanted != standing:
                        self._become(wanted)
                        standing = wanted
                    self._power(snapshot)
                    health.stands(standing, snapshot)
                health.report()
                if self._broken is not Assumption.CONSOLE and time.monotonic() - shown > _CONSOLE_SECONDS:
                    self._show_consoles(standing)
                    shown = time.monotonic()
        except (NatPodError, ValueError, LookupError) as error:
            self._error = error

    def _become(self, wanted: Topology) -> None:
        for line in sandbox.call(self.key, "apply", topology=packed_topology(wanted)):
            self._say(f"  lab: {line}")
        if POD in wanted.vcns and self._broken in (Assumption.MTU, Assumption.PATH_MTU):
            match = (
                ["-m", "length", "--length", "1501:65535"]
                if self._broken is Assumption.MTU
                else ["-p", "icmp", "--icmp-type", "fragmentation-needed"]
            )
            rule = ["iptables", "-t", "mangle", "-I", "FORWARD", *match, "-j", "DROP"]
            sandbox.call(self.key, "run", argv=rule, vcn=POD)

    def _power(self, region: Region) -> None:
        """Stop and start NAT VMs as the region says."""
        stopped = {
            str(vm.inputs["metadata"][VM_KEY])
            for vm in region.all(INSTANCE)
            if VM_KEY in (vm.inputs.get("metadata") or {}) and vm.facts["state"] == "STOPPED"
        }
        for vm in stopped - self._down:
            sandbox.call(self.key, "fail", vm=vm, hang=False)
            self._say(f"  lab: {vm} is off")
        for vm in self._down - stopped:
            sandbox.call(self.key, "recover", vm=vm)
            self._say(f"  lab: {vm} boots from its disk")
        self._down = stopped

    def _show_consoles(self, standing: Topology) -> None:
        """Tell the region what the machines' consoles hold."""
        instances = {self._vm_name(record.inputs): record.ocid for record in self.region.all(INSTANCE)}
        for name, vm in standing.vms.items():
            if not vm.boots or name not in instances:
                continue
            try:
                text = str(sandbox.call(self.key, "read", vm=name, path=str(boot.CONSOLE)))
            except LabError:
                continue  # it has none yet
            if text != self._consoles.get(instances[name]):
                self._consoles[instances[name]] = text
                self.region.report_console(instances[name], text)

    @staticmethod
    def _vm_name(inputs: Mapping[str, object]) -> str:
        """A machine's name in the network: a NAT VM's key, or a neighbour's display name."""
        metadata = inputs.get("metadata")
        key = metadata.get(VM_KEY) if isinstance(metadata, dict) else None
        return str(key or inputs["displayName"])

    # What may be broken

    def _with_what_is_broken(self, network: Topology) -> Topology:
        """The network, with what the rehearsal makes different from what is documented."""
        balancers = {
            name: replace(one, tcp_idle=BALANCER_IDLE, drops_unknown=self._broken is Assumption.IDLE)
            for name, one in network.balancers.items()
        }
        network = replace(network, balancers=balancers)
        match self._broken:
            case None | Assumption.IDLE:
                return network
            case Assumption.CONSOLE | Assumption.MTU | Assumption.PATH_MTU | Assumption.AVOID_DOWNTIME:
                return network  # broken elsewhere
            case Assumption.BOOT:
                return replace(network, vms={name: _without_boot(vm) for name, vm in network.vms.items()})
            case Assumption.METADATA:
                return replace(network, vms={name: self._as_launched(vm) for name, vm in network.vms.items()})
            case Assumption.SOURCE_DEST_CHECK:
                vnics = {name: replace(one, skip_source_dest_check=False) for name, one in network.vnics.items()}
                return replace(network, vnics=vnics)
            case Assumption.NSG_BY_VNIC:
                vnics = {
                    name: replace(one, security=tuple(rule for rule in one.security if not rule.peer_is_nsg))
                    for name, one in network.vnics.items()
                }
                return replace(network, vnics=vnics)
            case Assumption.LPG_TABLE:
                return replace(network, lpgs={name: replace(one, routes=None) for name, one in network.lpgs.items()})
            case Assumption.BALANCER:
                slow = {name: replace(one, instant_failover=False) for name, one in balancers.items()}
                return replace(network, balancers=slow)
            case _ as never:
                assert_never(never)

    def _as_launched(self, vm: Vm) -> Vm:
        """A machine that sees the metadata with which it was launched, and no other."""
        return replace(vm, metadata=self._metadata.setdefault(vm.name, vm.metadata))


def _without_boot(vm: Vm) -> Vm:
    """A NAT VM whose image does nothing with its user_data."""
    if vm.kind != VM_NAT:
        return vm
    return replace(vm, metadata={**vm.metadata, "user_data": base64.b64encode(_NOTHING_BOOTS).decode()})


def _restore_environment(before: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)
