"""What nat-pod assumes of OCI and only a tenancy can show, each with what a trial saw of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from nat_pod.config.delivery import Delivery
from nat_pod.names import Side
from nat_pod.plan.model import PodPlan
from nat_pod.status.report import VmReport
from nat_pod.text import count, some
from nat_pod.trial.neighbours import Neighbours
from nat_pod.trial.outcome import Outcome
from nat_pod.trial.probes import NARROW, PAST_NAT_VM1, WHOLE, Extra
from nat_pod.trial.results import MachineReport, Result

METADATA_SECONDS = 90.0
"""Within this time a change of metadata should be seen: a round of the agent and OCI's own minute (docs/operate.md)."""


class Assumption(StrEnum):
    """By the name of the switch that breaks it in the simulated region (`trial --rehearse --break`)."""

    BOOT = "boot"
    CONSOLE = "console"
    METADATA = "metadata"
    SOURCE_DEST_CHECK = "source-dest-check"
    NSG_BY_VNIC = "nsg-by-vnic"
    LPG_TABLE = "lpg-table"
    MTU = "mtu"
    PATH_MTU = "path-mtu"
    BALANCER = "balancer"
    IDLE = "idle"
    AVOID_DOWNTIME = "avoid-downtime"

    @property
    def what(self) -> str:
        """The assumption, one line."""
        match self:
            case Assumption.BOOT:
                return "user_data boots on this image"
            case Assumption.CONSOLE:
                return "console histories can be captured and read"
            case Assumption.METADATA:
                return f"a VM sees changed metadata within {METADATA_SECONDS:.0f} s"
            case Assumption.SOURCE_DEST_CHECK:
                return "a VNIC without source/destination check sends and receives for other addresses"
            case Assumption.NSG_BY_VNIC:
                return "an NSG as a rule's source matches whatever its VNICs send"
            case Assumption.LPG_TABLE:
                return "an LPG's own route table leads to NAT VM1"
            case Assumption.MTU:
                return f"packets of {WHOLE} bytes pass from end to end"
            case Assumption.PATH_MTU:
                return 'an ICMP "fragmentation needed" comes back through both NAT VMs'
            case Assumption.BALANCER:
                return "a NAT VM that stops ends no flow"
            case Assumption.IDLE:
                return "a flow that was silent for longer than the balancer remembers it goes on"
            case Assumption.AVOID_DOWNTIME:
                return "OCI refuses a new shape for a NAT VM rather than rebooting it"
            case _ as never:
                assert_never(never)

    @property
    def otherwise(self) -> str:
        """What it means for the POD when it does not hold."""
        match self:
            case Assumption.BOOT:
                return "no rule is loaded, and nothing passes; take another image (docs/images.md)"
            case Assumption.CONSOLE:
                return "`status --fetch` sees nothing; reports have to be fetched by ssh (docs/operate.md)"
            case Assumption.METADATA:
                return "a change of mappings is live later than documented, or only after a reboot"
            case Assumption.SOURCE_DEST_CHECK:
                return "the vRouter, and with `routes` the NAT VMs, get nothing: this POD cannot work"
            case Assumption.NSG_BY_VNIC:
                return "nothing passes between the NAT VMs: this delivery cannot work; `routes` does not need it"
            case Assumption.LPG_TABLE:
                return (
                    "with `privateIps` a customer who forges a server's address reaches other customers' hosts past "
                    "NAT VM1; with `routes` nothing from a customer arrives"
                )
            case Assumption.MTU:
                return "large packets are lost without an error; lower the MTU of whoever sends them"
            case Assumption.PATH_MTU:
                return "connections hang where a path is narrower than an end's MTU"
            case Assumption.BALANCER:
                return "a standby does not keep connections; plan the replacement of NAT VMs as an outage"
            case Assumption.IDLE:
                return "a connection that is silent for longer must send keepalives"
            case Assumption.AVOID_DOWNTIME:
                return "an edited shape reboots the NAT VM at once"
            case _ as never:
                assert_never(never)


class Verdict(StrEnum):
    """Of one assumption."""

    HOLDS = "holds"
    FAILS = "does NOT hold"
    NOT_SEEN = "not seen"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One assumption, what a trial saw of it, and what follows."""

    assumption: Assumption
    verdict: Verdict
    seen: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What a trial has seen.

    nat_vms: by NAT VM, its report or why there is none.  machines: by machine, its reports by list; damaged: reports
    that could not be read.  latencies: seconds from writing a list to its being seen, by machine.  long, narrow, held,
    idle: the extra probes with their results.  stopped: the NAT VMs that were stopped while flows were held, and for
    how many seconds.
    shape: what OCI made of another shape, None where nobody asked; "" where it took it.
    """

    plan: PodPlan
    neighbours: Neighbours
    flows: Sequence[Outcome] = ()
    nat_vms: Mapping[str, VmReport | str] = field(default_factory=dict)
    machines: Mapping[str, Mapping[int, MachineReport]] = field(default_factory=dict)
    damaged: int = 0
    latencies: Mapping[str, float] = field(default_factory=dict)
    long: Sequence[tuple[Extra, Result | None]] = ()
    narrow: Sequence[tuple[Extra, Result | None]] = ()
    held: Sequence[tuple[Extra, Result | None]] = ()
    idle: Sequence[tuple[Extra, Result | None]] = ()
    stopped: Mapping[str, float] = field(default_factory=dict)
    shape: str | None = None

    @property
    def mute(self) -> list[str]:
        """The neighbours' machines that have not reported once."""
        return [machine.name for machine in self.neighbours.machines if not self.machines.get(machine.name)]

    @property
    def into_pod(self) -> int | None:
        """Packets that the vRouter sent on from management; None where it has not reported."""
        router = self.neighbours.vrouter.machine
        counted = [report.forwarded for report in self.machines.get(router.name, {}).values() if report.forwarded]
        return max((one.get(router.address, 0) for one in counted), default=None)

    @property
    def passes(self) -> bool:
        """Whether what is declared arrives: where it does not, nothing follows from a longer or a held flow."""
        declared = [outcome for outcome in self.flows if outcome.asked.flow.receiver is not None]
        return bool(declared) and not any(outcome.tried.problems for outcome in declared)

    def reached(self, side: Side) -> int:
        """Declared flows of which a packet arrived at a member on this side."""
        return sum(
            outcome.arrived
            for outcome in self.flows
            if outcome.asked.flow.receiver is not None and outcome.asked.flow.receiver.side is side
        )


_NOTHING_FOLLOWS = Verdict.NOT_SEEN, "not all declared flows arrive"


def rows(evidence: Evidence) -> list[Row]:
    """Each assumption that this POD rests on."""
    routed = evidence.plan.delivery is Delivery.ROUTES
    balanced = bool(evidence.plan.balancers)
    found = []
    for assumption in Assumption:
        if assumption is Assumption.NSG_BY_VNIC and routed:
            continue  # its security rules name CIDRs
        if assumption in (Assumption.BALANCER, Assumption.IDLE) and not balanced:
            continue
        verdict, seen = _judge(assumption, evidence)
        found.append(Row(assumption=assumption, verdict=verdict, seen=seen))
    return found


def _judge(assumption: Assumption, evidence: Evidence) -> tuple[Verdict, str]:
    match assumption:
        case Assumption.BOOT:
            return _boot(evidence)
        case Assumption.CONSOLE:
            return _console(evidence)
        case Assumption.METADATA:
            return _metadata(evidence)
        case Assumption.SOURCE_DEST_CHECK:
            return _source_dest_check(evidence)
        case Assumption.NSG_BY_VNIC:
            return _nsg(evidence)
        case Assumption.LPG_TABLE:
            return _lpg_table(evidence)
        case Assumption.MTU:
            return _long(evidence)
        case Assumption.PATH_MTU:
            return _path_mtu(evidence)
        case Assumption.BALANCER:
            return _balancer(evidence)
        case Assumption.IDLE:
            return _idle(evidence)
        case Assumption.AVOID_DOWNTIME:
            return _avoid_downtime(evidence)
        case _ as never:
            assert_never(never)


def _boot(evidence: Evidence) -> tuple[Verdict, str]:
    plan, machines = evidence.plan, evidence.neighbours.machines
    if len(evidence.mute) == len(machines) and not any(isinstance(one, VmReport) for one in evidence.nat_vms.values()):
        return Verdict.NOT_SEEN, "no console could be read"
    wrong, others = [], []
    for vm in plan.vms:
        report = evidence.nat_vms.get(vm.key, "nothing was read of its console")
        if isinstance(report, str):
            wrong.append(f"{vm.key}: {report}")
        elif report.applied != vm.generation:
            wrong.append(f"{vm.key}: runs {report.applied or 'no rules'}, not {vm.generation}")
        elif report.foreign:
            others.append(f"{vm.key}: {count(len(report.foreign), 'rule')} of others beside its own")
    bootstrap = hashlib.sha256(plan.vms[0].metadata["user_data"].encode()).hexdigest()[:8]
    words = wrong or [
        f"{count(len(plan.vms), 'NAT VM')} run their rules, by bootstrap {bootstrap}",
        *(others or ["no rules of others"]),
    ]
    about = next((report.about for of in evidence.machines.values() for report in of.values()), None)
    if about is not None:
        words.append(f"{about['image']}, kernel {about['kernel']}, Python {about['python']}, {about['iptables']}")
    return Verdict.FAILS if wrong else Verdict.HOLDS, "; ".join(words)


def _console(evidence: Evidence) -> tuple[Verdict, str]:
    total = len(evidence.neighbours.machines)
    there = total - len(evidence.mute)
    said = f"{there} of {total} machines of the neighbours have reported"
    if evidence.damaged:
        said += f"; {evidence.damaged} reports were damaged, and others took their place"
    return Verdict.HOLDS if there else Verdict.FAILS, said


def _metadata(evidence: Evidence) -> tuple[Verdict, str]:
    if not evidence.latencies:
        if evidence.mute and len(evidence.mute) == len(evidence.neighbours.machines):
            return Verdict.NOT_SEEN, "no machine has reported"
        return Verdict.FAILS, "no machine has seen a changed list"
    slowest = max(evidence.latencies, key=lambda name: evidence.latencies[name])
    seconds = evidence.latencies[slowest]
    late = [
        m.name for m in evidence.neighbours.machines if m.name not in evidence.latencies and m.name not in evidence.mute
    ]
    if late:
        return Verdict.FAILS, f"{', '.join(late)} did not see it"
    said = f"after {min(evidence.latencies.values()):.0f} to {seconds:.0f} s, `pulumi up` included"
    return Verdict.HOLDS if seconds <= METADATA_SECONDS else Verdict.FAILS, said


def _source_dest_check(evidence: Evidence) -> tuple[Verdict, str]:
    into = evidence.into_pod
    arrived = evidence.reached(Side.NAT_VM1) + evidence.reached(Side.NAT_VM2)
    if into is None:
        return Verdict.NOT_SEEN, "the vRouter has not reported"
    sent = [one for one in evidence.flows if one.sent and one.asked.flow.sender.is_server and one.asked.flow.receiver]
    if not sent:
        return Verdict.NOT_SEEN, "no server has sent anything"
    if into == 0:
        return Verdict.FAILS, "the vRouter got nothing that it could send on"
    if not arrived:
        return Verdict.NOT_SEEN, f"the vRouter sent {into} packets on, and none arrived anywhere"
    return Verdict.HOLDS, f"the vRouter sent {into} packets on, and packets of {arrived} flows arrived"


def _nsg(evidence: Evidence) -> tuple[Verdict, str]:
    arrived = evidence.reached(Side.NAT_VM1) + evidence.reached(Side.NAT_VM2)
    if arrived:
        return Verdict.HOLDS, f"packets of {arrived} flows passed both NAT VMs"
    if _boot(evidence)[0] is not Verdict.HOLDS:
        return Verdict.NOT_SEEN, "the NAT VMs do not run their rules"
    if evidence.into_pod:
        return Verdict.FAILS, f"the vRouter sent {evidence.into_pod} packets into the POD, and none came out of it"
    return Verdict.NOT_SEEN, "no packet came as far as a NAT VM"


def _lpg_table(evidence: Evidence) -> tuple[Verdict, str]:
    if evidence.plan.delivery is Delivery.ROUTES:
        arrived = evidence.reached(Side.NAT_VM2)
        if arrived:
            return Verdict.HOLDS, f"packets of {arrived} flows from customers arrived at servers"
        if evidence.reached(Side.NAT_VM1) and _boot(evidence)[0] is Verdict.HOLDS:
            return Verdict.FAILS, "management's packets arrived at customers, and none of theirs at management"
        return Verdict.NOT_SEEN, "no packet arrived in either direction, or not all NAT VMs run their rules"
    past = [outcome for outcome in evidence.flows if outcome.asked.flow.why == PAST_NAT_VM1 and outcome.sent]
    through = [outcome for outcome in past if outcome.arrived]
    if through:
        who = ", ".join(sorted({f"{one.asked.flow.sender} reached {one.heard_by[0][0]}" for one in through}))
        return Verdict.FAILS, f"past NAT VM1, with a server's address: {who}"
    if not past or not evidence.reached(Side.NAT_VM1):
        return Verdict.NOT_SEEN, "no customer could try, or no packet arrived at a customer at all"
    return Verdict.HOLDS, f"{len(past)} packets with a server's address, sent past NAT VM1 by customers: none arrived"


def _long(evidence: Evidence) -> tuple[Verdict, str]:
    tried = [(extra, result) for extra, result in evidence.long if result is not None]
    if not tried or not evidence.passes:
        return _NOTHING_FOLLOWS
    lost = [
        f"{extra.sender} to {extra.to} ({result.detail}, MTU {result.mtu})" for extra, result in tried if not result.ok
    ]
    if lost:
        return Verdict.FAILS, f"not answered: {', '.join(lost)}"
    return Verdict.HOLDS, f"{len(tried)} of {len(tried)} answered, from customers and from management"


def _path_mtu(evidence: Evidence) -> tuple[Verdict, str]:
    tried = [result for _, result in evidence.narrow if result is not None]
    if not tried or not evidence.passes:
        return _NOTHING_FOLLOWS
    if _long(evidence)[0] is Verdict.FAILS:
        return Verdict.NOT_SEEN, "long packets die anyway"
    learned = [result.mtu for result in tried]
    if all(mtu == NARROW for mtu in learned):
        return Verdict.HOLDS, f"the sender learned of {NARROW} bytes"
    return Verdict.FAILS, f"the sender still sends {learned[0]} bytes, and only {NARROW} pass"


def _balancer(evidence: Evidence) -> tuple[Verdict, str]:
    tried = [(extra, result) for extra, result in evidence.held if result is not None]
    if not evidence.passes:
        return _NOTHING_FOLLOWS
    if not tried or not evidence.stopped or not any(result.opened for _, result in tried):
        return Verdict.NOT_SEEN, "no flow was held while a NAT VM stopped"
    opened, lost = sum(r.opened for _, r in tried), sum(r.lost for _, r in tried)
    pause = max(r.pause for _, r in tried)
    missing = sum(r.wanted for _, r in tried) - opened
    errors = list(dict.fromkeys(error for _, result in tried for error in result.errors))
    how = f" ({some(errors, 3)})" if errors else ""
    said = (
        f"{', '.join(evidence.stopped)} stopped in turn: {opened} flows held, {lost} lost{how}, "
        f"longest pause {pause:.1f} s"
    )
    if missing:
        said += f"; {missing} could not be opened"
    waited = pause >= min(evidence.stopped.values())
    if waited:
        said += ": they waited until it was back, and nobody took over"
    return Verdict.FAILS if lost or missing or waited else Verdict.HOLDS, said


def _idle(evidence: Evidence) -> tuple[Verdict, str]:
    tried = [(extra, result) for extra, result in evidence.idle if result is not None]
    if not evidence.passes:
        return _NOTHING_FOLLOWS
    if not tried:
        return Verdict.NOT_SEEN, "no flow was silent for so long"
    extra, result = tried[0]
    said = f"silent for {extra.settings['seconds']} s"
    return (Verdict.HOLDS, f"{said}, then answered") if result.ok else (Verdict.FAILS, f"{said}, then: {result.detail}")


def _avoid_downtime(evidence: Evidence) -> tuple[Verdict, str]:
    if evidence.shape is None:
        return Verdict.NOT_SEEN, "nobody asked"
    if not evidence.shape:
        return Verdict.FAILS, "it took the new shape"
    return Verdict.HOLDS, f"refused: {evidence.shape}"
