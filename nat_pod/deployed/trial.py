"""A trial: a POD and throw-away neighbours in a tenancy, probes between them, a report, and nothing left behind.

The POD is the real program with a stack's own configuration, in a stack of its own (`trial-STACK` of the project
nat-pod-trial).  So a POD that is in use is not touched.  Its customers' LPGs are the neighbours': a `peerId` of the
stack file is left out.  Everything is done by Pulumi: what NAT VMs and neighbours report comes by their consoles.

Each step may be repeated.  A trial that ended in the middle goes on where it was when it is run again.
"""

from __future__ import annotations

import contextlib
import copy
import re
import runpy
import signal
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pulumi

from nat_pod.config import any_config
from nat_pod.config.placement import REGION
from nat_pod.config.stack_file import read_stack
from nat_pod.deployed.consoles import Captures, captures_stack
from nat_pod.deployed.stacks import CliError, LockedError, Say, Stack, find
from nat_pod.errors import NatPodError
from nat_pod.names import NAMESPACE
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.status.report import VmReport, read_report
from nat_pod.text import count, some
from nat_pod.trial import probes
from nat_pod.trial.assumptions import Evidence, rows
from nat_pod.trial.costs import what_it_makes
from nat_pod.trial.neighbours import PROGRAM, PROJECT, Metadata, Neighbours, Shape, neighbours_of
from nat_pod.trial.outcome import outcomes
from nat_pod.trial.patience import Patience
from nat_pod.trial.probes import Asked, Extra
from nat_pod.trial.report import TrialReport
from nat_pod.trial.results import MachineReport, Result, read_reports

POD_PROJECT = "nat-pod-trial"
INSTANCE = "oci:Core/instance:Instance"
_SHOWN = 4

# What OCI, or the simulated region, calls a change that it refuses because the VM would have to be rebooted for it.
_REFUSES_DOWNTIME = re.compile(r"AVOID_DOWNTIME|updateOperationConstraint|reboot|downtime", re.IGNORECASE)


class TrialEndedError(NatPodError):
    """The trial ended early; str() says why, what stands, and how to go on; `why` is the first part alone."""

    def __init__(self, why: str, then: str) -> None:
        self.why = why
        super().__init__(f"{why}\n{then}")


@dataclass(frozen=True, slots=True)
class Changed:
    """What a trial changes in its POD: NAT VMs that are stopped, and one that gets another shape."""

    stopped: frozenset[str] = frozenset()
    reshaped: str | None = None


class Trial:
    """One trial of a stack."""

    def __init__(
        self,
        directory: Path,
        stack: str,
        say: Say,
        *,
        patience: Patience | None = None,
        everyone: bool = False,
        rehearsed: bool = False,
    ) -> None:
        """everyone: every member gets a machine.  Raises ConfigError for a stack file with problems."""
        self._rehearsed = rehearsed
        self._directory, self._stack, self._say = directory, stack, say
        self._patience = patience or Patience()
        self.name = f"trial-{stack}"
        self._settings = read_stack(directory, stack)
        self._own = _throw_away(self._settings.pod_config())
        self.plan: PodPlan = plan_pod(any_config.read(self._own, stack), self.name)
        self.members = probes.chosen(self.plan, everyone=everyone)
        self._changed = Changed()
        self._interrupted = threading.Event()
        self._step = 0
        self._consoles: dict[str, str] = {}
        self._wrote: dict[int, float] = {}
        self._began = int(time.time())  # also the number of the first list, and what this trial's packets carry

    # What there is to be

    @cached_property
    def _flows(self) -> list[Asked]:
        return probes.asked(self.plan, self.members, self._began)

    @cached_property
    def _long(self) -> list[Extra]:
        return probes.long_packets(self.plan, self.members, len(self._flows))

    @cached_property
    def _narrow(self) -> list[Extra]:
        return probes.narrow_place(self.plan, self.members, len(self._flows) + 100)

    @cached_property
    def _held(self) -> list[Extra]:
        if not self.plan.balancers:
            return []
        return probes.held(self.plan, self.members, len(self._flows) + 200, self._patience.idle)

    @property
    def _in_turn(self) -> list[str]:
        """The NAT VMs that are stopped in turn: both of the first customer gateway, and both of NAT VM2.

        Which of two acts, only the balancer knows: it prefers whom it had when both were well.
        """
        roles = [self.plan.roles[0], self.plan.roles[-1]] if self.plan.balancers else []
        return [vm.key for role in roles for vm in self.plan.vms_of(role)]

    @cached_property
    def _plain(self) -> Neighbours:
        """The neighbours, with machines that are told nothing yet."""
        return self._neighbours({})

    def _neighbours(self, metadata: Metadata) -> Neighbours:
        shape = neighbours_shape(self.plan)
        return neighbours_of(
            self.plan, self.name, shape=shape, only=self.members, metadata=metadata, route_everything=True
        )

    @property
    def what_it_makes(self) -> str:
        """Before anything is made: what, for how long, and roughly for how much.

        In a tenancy a `pulumi up` takes two minutes or so.
        """
        waits = 4 * self._patience.pause + self._patience.settle
        waits += len(self._in_turn) * (self._patience.stopped + self._patience.started)
        waits += self._patience.idle if self._held else 0
        return what_it_makes(self.plan, self._plain, round((8 + 2 * len(self._in_turn)) * 2 + waits / 60))

    # Stacks

    @cached_property
    def _pod(self) -> Stack:
        return Stack(POD_PROJECT, self.name, self._pod_program, self._pod_config(), self._say, hooks=True)

    @cached_property
    def _others(self) -> Stack:
        return Stack(PROJECT, self.name, _neighbours_program, self._provider(), self._say)

    def _provider(self) -> dict[str, object]:
        """The settings of the provider; those that are secret come from the environment or ~/.oci/config."""
        return {
            key: value
            for key, value in self._settings.config.items()
            if key.startswith("oci:") and not isinstance(value, Mapping)
        }

    def _pod_config(self) -> dict[str, object]:
        own = {f"{NAMESPACE}:{key}": value for key, value in self._own.items()}
        return {**self._provider(), **own}

    def _pod_program(self) -> None:
        """The real program; some of its instances are to be stopped, or get another shape."""
        pulumi.runtime.register_stack_transformation(self._transformed)
        runpy.run_path(str(self._directory / "__main__.py"), run_name="__main__")

    def _transformed(self, args: pulumi.ResourceTransformationArgs) -> pulumi.ResourceTransformationResult | None:
        vm = args.name.removeprefix(f"nat-pod-{self.name}-")
        if args.type_ != INSTANCE:
            return None
        props = dict(args.props)
        if self.plan.balancers:
            props["state"] = "STOPPED" if vm in self._changed.stopped else "RUNNING"
        opts = args.opts
        if vm == self._changed.reshaped:
            props |= _another_shape(self.plan)
            # With a standby the program would replace the VM instead.
            opts = pulumi.ResourceOptions.merge(opts, None)
            opts.replace_on_changes = []
        return pulumi.ResourceTransformationResult(props=props, opts=opts)

    def _pod_up(self, changed: Changed | None = None) -> dict[str, Any]:
        self._changed = changed or Changed()
        return self._pod.up()

    def _others_up(self, told: Mapping[str, str], pod: Mapping[str, Any]) -> dict[str, str]:
        """Set the neighbours up; returns their machines' OCIDs."""
        metadata = probes.metadata([machine.name for machine in self._plain.machines], told)
        self._others.configure({**self._provider(), **self._neighbours(metadata).config(pod)})
        found: dict[str, str] = self._others.up()["machineIds"]
        return found

    # Steps

    def run(self) -> TrialReport:
        """All steps; returns the report, with everything still standing.  Raises TrialEndedError."""
        first = self._began
        with self._guarded():
            self._says("POD: pulumi up")
            pod = self._pod_up()
            self._says("neighbours: pulumi up")
            machines = self._others_up(self._list(first, expected=self._flows), pod)
            self._says("POD: pulumi up again, which finds the vRouter")
            self._pod_up()
            vms = {**machines, **pod["natVmIds"]}
            with Captures(self.name, self._provider(), self._say) as captures:
                self._says(f"{count(len(vms), 'VM')} boot")
                self._reports(captures, vms, first, [])
                self._says(f"{len(self._flows)} probes, as metadata of the neighbours' machines")
                self._others_up(self._list(first + 1, self._flows, self._long), pod)
                self._says("results")
                self._reports(captures, vms, first + 1, [*self._flows, *self._long])
                self._says("a narrow path" + (", and flows that are held" if self._held else ""))
                narrow = probes.narrowed(self.plan, self.members)
                more = [*self._narrow, *self._held]
                since = time.time()
                self._others_up(self._list(first + 2, extra=more, narrow=narrow), pod)
                self._reports(captures, vms, first + 2, self._narrow)
                stopped = self._stop_in_turn()
                if self._held:
                    self._says("a flow is silent for longer than the balancer remembers it")
                    self._wait(since + self._patience.idle + self._patience.settle - time.time())
                    self._others_up(self._list(first + 3), pod)
                    self._says("results")
                    self._reports(captures, vms, first + 3, self._held)
            self._says("another shape for a NAT VM, which OCI should refuse")
            shape = self._reshape()
            evidence = self._evidence(first, stopped, shape)
        return TrialReport(
            stack=self._stack,
            where=str(self._settings.config.get(REGION, "the provider's region")),
            rehearsed=self._rehearsed,
            about={
                "delivery": self.plan.delivery,
                "source NAT": self.plan.source_nat,
                "shape": self.plan.shape,
                "members with a machine": f"{len(self.members)} of {len(self.plan.slots)}",
            },
            flows=evidence.flows,
            rows=rows(evidence),
            seconds=time.time() - first,
        )

    def check_is_there(self) -> None:
        """Raises NatPodError where the backend has nothing of this trial: it may stand on another one."""
        there, backend = find(POD_PROJECT, self.name)
        if not there and not find(PROJECT, self.name)[0]:
            raise NatPodError(
                f"backend {backend}: has no stack {self.name} of {POD_PROJECT} or {PROJECT}; the trial was taken down, "
                "or it is on another backend: log in to that one (pulumi login, PULUMI_BACKEND_URL) and try again"
            )

    def destroy(self) -> None:
        """Take everything down: captures, neighbours, POD, and the stacks.  Raises TrialEndedError."""
        with self._guarded():
            captures_stack(self.name, self._provider(), self._say).destroy()
            self._says("neighbours: pulumi destroy")
            self._others.destroy()
            self._says("POD: pulumi destroy")
            self._pod.destroy()

    def unlock(self) -> None:
        """Take away the locks that a killed trial left."""
        for stack in (self._pod, self._others, captures_stack(self.name, self._provider(), self._say)):
            stack.unlock()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever ends a step: say what stands, and the next command.

        ^C reaches the CLI as well, which finishes the calls that it has begun; so here it is only noted.
        """
        self._interrupted.clear()
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, lambda *_: self._interrupted.set()) if main else None
        try:
            yield
        except TrialEndedError:
            raise
        except (NatPodError, KeyboardInterrupt) as error:
            if isinstance(error, LockedError):
                raise TrialEndedError(
                    str(error),
                    "another trial is running, or one was killed; if none is running: "
                    f"python -m nat_pod trial {self._stack} --unlock",
                ) from None
            words = "it was interrupted" if self._interrupted.is_set() else str(error) or "it was interrupted"
            raise TrialEndedError(words, self._standing()) from None
        except Exception:
            if not self._interrupted.is_set():
                raise
            # The ^C met a `pulumi` that does not know how to end well, e.g. `pulumi version`.
            raise TrialEndedError("it was interrupted", self._standing()) from None
        finally:
            if main:
                signal.signal(signal.SIGINT, before)

    def _standing(self) -> str:
        """What stands, and how to go on."""
        try:
            there = f"{count(self._pod.standing(), 'resource')} of the POD, {self._others.standing()} of the neighbours"
        except NatPodError as error:
            there = f"not known ({error})"
        return (
            f"still up: {there}; to go on: python -m nat_pod trial {self._stack}; "
            f"to take it down: python -m nat_pod trial {self._stack} --destroy"
        )

    def _says(self, words: str) -> None:
        """Announce a step.  It does not begin after a ^C."""
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        self._step += 1
        self._say(f"{self._step}. {words}")

    def _wait(self, seconds: float) -> None:
        if seconds > 0 and self._interrupted.wait(seconds):
            raise KeyboardInterrupt

    def _list(
        self,
        number: int,
        flows: Sequence[Asked] = (),
        extra: Sequence[Extra] = (),
        *,
        expected: Sequence[Asked] = (),
        narrow: Mapping[str, int] | None = None,
    ) -> dict[str, str]:
        self._wrote[number] = time.time()
        return probes.lists(self._plain, number, flows, extra, expected=expected, narrow=narrow)

    def _reports(
        self, captures: Captures, vms: Mapping[str, str], number: int, wanted: Collection[Asked | Extra]
    ) -> None:
        """Read consoles until every machine has reported on a list, and on its probes in it, or the time is up.

        Machines that say nothing do not end a trial: the report names them.  If no machine has reported in all the time
        that booting may take, later steps wait for none.
        """
        machines = {machine.name for machine in self._plain.machines}
        mute = bool(self._consoles) and not any(read_reports(text)[0] for text in self._consoles.values())
        end = time.time() + (0.0 if mute else self._patience.reports)
        while True:
            self._wait(self._patience.pause)
            self._consoles = captures.read(vms)
            missing = sorted(machines - self._reported(number, wanted))
            if not missing:
                break
            if time.time() > end:
                self._say(f"nothing new from {some(missing, _SHOWN)} after {self._patience.reports:.0f} s; going on")
                return
            self._say(f"{len(machines) - len(missing)} of {count(len(machines), 'machine')} have reported")
        if wanted:  # what was heard may be reported a moment later than what was sent
            self._wait(self._patience.settle)
            self._consoles = captures.read(vms)

    def _reported(self, number: int, wanted: Collection[Asked | Extra]) -> set[str]:
        """The machines that have reported on a list, and on all of `wanted` that was theirs."""
        theirs: dict[str, set[int]] = {}
        for one in wanted:
            sender = one.flow.sender if isinstance(one, Asked) else one.sender
            theirs.setdefault(sender, set()).add(one.number)
        found = set()
        for name in self._consoles:
            reports, _ = read_reports(self._consoles[name])
            if number in reports and theirs.get(name, set()) <= _results(reports).keys():
                found.add(name)
        return found

    def _stop_in_turn(self) -> dict[str, float]:
        """Stop a NAT VM of each side while flows are held, and start it again; returns for how many seconds, by VM."""
        away = {}
        for vm in self._in_turn:
            self._says(f"{vm} is stopped")
            self._pod_up(Changed(stopped=frozenset({vm})))
            since = time.time()
            self._wait(self._patience.stopped)
            away[vm] = time.time() - since
            self._says(f"{vm} is started again")
            self._pod_up()
            self._wait(self._patience.started)
        return away

    def _reshape(self) -> str | None:
        """Ask for another shape; returns how that was refused, "" when it was not, None when it was not tried."""
        last = self.plan.vms[-1].key
        if not _another_shape(self.plan):
            return None
        try:
            self._pod_up(Changed(reshaped=last))
        except LockedError:
            raise
        except CliError as error:
            refusal = next(filter(_REFUSES_DOWNTIME.search, error.lines), None)
            if refusal is None:
                raise
            return refusal
        return ""

    def _evidence(self, first: int, stopped: Mapping[str, float], shape: str | None) -> Evidence:
        names = [machine.name for machine in self._plain.machines]
        machines: dict[str, dict[int, MachineReport]] = {}
        damaged = 0
        for name in names:
            machines[name], bad = read_reports(self._consoles.get(name, ""))
            damaged += bad
        results: dict[str, dict[int, Result]] = {name: _results(machines[name]) for name in names}
        listed = {name: of[first + 1] for name, of in machines.items() if first + 1 in of}

        def of(extra: Sequence[Extra], kind: str) -> list[tuple[Extra, Result | None]]:
            return [(one, results.get(one.sender, {}).get(one.number)) for one in extra if one.kind == kind]

        return Evidence(
            plan=self.plan,
            neighbours=self._plain,
            flows=outcomes(self.plan, self._flows, listed),
            nat_vms={vm.key: _vm_report(self._consoles.get(vm.key, "")) for vm in self.plan.vms},
            machines=machines,
            damaged=damaged,
            latencies={name: report.saw - self._wrote[first + 1] for name, report in listed.items()},
            long=of(self._long, "big"),
            narrow=of(self._narrow, "big"),
            held=of(self._held, "hold"),
            idle=of(self._held, "idle"),
            stopped=stopped,
            shape=shape,
        )


def neighbours_shape(plan: PodPlan) -> Shape:
    """The smallest VM that has two VNICs and boots the POD's image: of the POD's own flex shape where it has one."""
    shape = plan.shape if plan.ocpus is not None else "VM.Standard.E4.Flex"
    return Shape(shape=shape, ocpus=1, memory_gbs=4)


def _results(reports: Mapping[int, MachineReport]) -> dict[int, Result]:
    """What came of each probe, whichever list it was reported with."""
    return {number: result for at in sorted(reports) for number, result in reports[at].results.items()}


def _vm_report(console: str) -> VmReport | str:
    try:
        return read_report(console)
    except ValueError as error:
        return str(error)


def _another_shape(plan: PodPlan) -> dict[str, Any]:
    """Inputs of an instance that ask for another shape."""
    if plan.ocpus is None:
        return {"shape": "VM.Standard2.16" if plan.shape == "VM.Standard2.24" else "VM.Standard2.24"}
    return {"shape_config": {"ocpus": plan.ocpus + 1, "memory_in_gbs": plan.memory_gbs}}


def _throw_away(config: Mapping[str, object]) -> dict[str, object]:
    """A POD's configuration without what ties it to others that are in use, or keeps it from being taken down.

    That is: peered LPGs, the POD that it replaces, and `protect`.
    """
    own = copy.deepcopy(dict(config))
    for key in ("movesFrom", "protect"):
        own.pop(key, None)
    customers = own.get("customers")
    for customer in customers.values() if isinstance(customers, dict) else ():
        if isinstance(customer, dict):
            customer.pop("peerId", None)
    return own


def _neighbours_program() -> None:
    runpy.run_path(str(PROGRAM / "__main__.py"), run_name="__main__")
