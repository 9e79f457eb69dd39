"""What the NAT VMs say they run and count, held against the plan.

Pure: who fetches the reports, from a lab, by ssh or from the serial console, is not known here.

Each member is counted on the VM that knows it by its real address: hosts on NAT VM1, servers on NAT VM2.  There a rule
with the member's name leads to it (DNAT), and others test its packets (goto) or translate them (SNAT).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

import nat_pod
from nat_pod.config.source_nat import SourceNat
from nat_pod.limits import BOUND_SHARE, FLOWS_PER_ADDRESS
from nat_pod.names import MemberName, Side
from nat_pod.plan.bootstrap import agent_id
from nat_pod.plan.fingerprint import fingerprint, guard_names, is_own
from nat_pod.plan.model import NatVmPlan, PodPlan, SlotPlan
from nat_pod.status import standby
from nat_pod.status.finding import JOURNAL, ROUND_SECONDS, SILENT_SECONDS, Finding, duration, some
from nat_pod.status.report import Use, VmReport
from nat_pod.status.standby import Pair, pairs

OLD_SECONDS = 1000
"""The agent writes a report to the console every 900 seconds when nothing changes; an older one is not its latest."""

SHOWN_SECONDS = 90
"""Seconds.  OCI shows changed metadata within a minute, and the agent polls: until then a change is not late."""

FULL = 0.8
"""Share of a table or of an address's ports at which there is something to do."""

MTU = 9000
"""The MTU of every VNIC; a smaller one splits or drops what peers send."""

FRAGMENTS_LOST = 100
"""Packets that could not be put together since boot: some lose a fragment on their way, a flood does more."""

REPAIR_SECONDS = 86400
"""Seconds for which a repair stays a finding, unless somebody has cleared it on the VM."""

NOT_LOOKED_AT = (
    "rules inside chains of others",
    "IPv6 rules",
    "routes and routing policy",
    "traffic control, XDP and eBPF",
    "the program of the agent itself",
    "what was changed and put back between two rounds",
    "route rules, security rules and peerings of OCI",
    "the neighbours' networks",
)
"""What can stop or divert a packet and is in no report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberUse:
    """What is counted for one member; each is None when the VM that counts it has not reported.

    `tried` counts what it sent towards the POD, in first packets of flows and in each packet of what was refused.
    `opened` is the flows that became of it; None under `masquerade`, where no rule tells members apart after
    forwarding.  `received` is the flows that others opened to it.
    """

    name: MemberName
    tried: int | None = None
    opened: int | None = None
    received: int | None = None
    open: Use | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The whole answer; without findings all is as the stack file says.  `reports` has None for a silent VM."""

    now: float
    planned: dict[str, str]
    vnics_planned: dict[str, int]
    reports: dict[str, VmReport | None]
    members: tuple[MemberUse, ...]
    findings: tuple[Finding, ...]
    pairs: tuple[Pair, ...]
    not_looked_at: tuple[str, ...]


def compare(
    plan: PodPlan, reports: Mapping[str, VmReport | str], now: float, deployed: Mapping[str, str] | None = None
) -> Status:
    """Compare reports, by VM, with the plan.  In place of a report there may be the reason why there is none.

    now: seconds since 1970.  deployed: the generations that the stack's outputs have.
    """
    read = {vm.key: report if isinstance(report := reports[vm.key], VmReport) else None for vm in plan.vms}
    findings: list[Finding] = []
    for vm in plan.vms:
        findings += _deployment(vm, (deployed or {}).get(vm.key, vm.generation))
        report = reports[vm.key]
        if isinstance(report, str):
            findings.append(
                Finding(vm.key, f"no report: {report}", "python -m nat_pod status --help says how to get one")
            )
        else:
            findings += _agent(report, vm, now) + _generation(report, vm) + _kernel(report, vm) + _vnics(report, vm)
            findings += _use(report, vm, plan.source_nat) + _above_bound(report, vm) + _crowding(report, vm, plan)
    findings += standby.findings(plan, read)
    found_pairs = pairs(plan, read)
    return Status(
        now=now,
        planned={vm.key: vm.generation for vm in plan.vms},
        vnics_planned={vm.key: len(vm.vnics) for vm in plan.vms},
        reports=read,
        members=tuple(
            _member(
                slot,
                [read[vm.key] for vm in plan.vms_of(plan.role(slot.member))],
                [read[vm] for pair in found_pairs if pair.role == plan.role(slot.member) for vm in pair.active],
            )
            for slot in plan.slots
        ),
        findings=tuple(findings),
        pairs=found_pairs,
        not_looked_at=NOT_LOOKED_AT + (standby.NOT_LOOKED_AT if plan.balancers else ()),
    )


# --- findings --------------------------------------------------------------------------------------------------------


def _deployment(vm: NatVmPlan, deployed: str) -> list[Finding]:
    if deployed == vm.generation:
        return []
    what = f"generation {deployed} is deployed, and the stack file makes {vm.generation}"
    return [Finding(vm.key, what, "pulumi up")]


def _agent(report: VmReport, vm: NatVmPlan, now: float) -> list[Finding]:
    """Whether the agent runs and this is its latest word."""
    found = []
    if report.made - now > SILENT_SECONDS:
        what = f"its clock is {duration(report.made - now)} ahead of this machine's"
        found.append(Finding(vm.key, what, "on the VM: timedatectl"))
    if now - report.made > OLD_SECONDS:
        what = f"its report is {duration(now - report.made)} old; the agent writes one every 15 min"
        found.append(Finding(vm.key, what, "fetch a new one; if there is none, the VM or its agent is down"))
    if report.made - report.round > SILENT_SECONDS:
        what = f"its agent last ran {duration(report.made - report.round)} ago; it should run every {ROUND_SECONDS} s"
        found.append(Finding(vm.key, what, "on the VM: systemctl status nat-pod-agent.timer nat-pod-agent"))
    if not report.forwarding:
        found.append(Finding(vm.key, "it forwards nothing", JOURNAL))
    if report.agent != agent_id():
        what = f"its agent ({agent_name(report)}) is not the one that nat-pod {nat_pod.__version__} installs"
        found.append(Finding(vm.key, what, "pulumi preview: `up` replaces the NAT VMs, one after the other"))
    return found


def agent_name(report: VmReport) -> str:
    """The version of this nat-pod for the agent that it brings, and of any other agent what it calls itself."""
    return nat_pod.__version__ if report.agent == agent_id() else report.agent or "unnamed"


def _generation(report: VmReport, vm: NatVmPlan) -> list[Finding]:
    """Applied against wanted by the VM's metadata, and that against the plan; then what the agent complains about."""
    found = []
    if report.wanted not in (None, vm.generation):
        what = f"its metadata has generation {report.wanted}, and the stack file makes {vm.generation}"
        found.append(Finding(vm.key, what, "pulumi up; just after one, wait a minute"))
    if report.applied is None:
        found.append(Finding(vm.key, "it has no rules loaded", JOURNAL))
    elif report.applied != (report.wanted or vm.generation):
        wanted = report.wanted or vm.generation
        known = report.since.get("wanted")
        age = None if known is None or report.wanted is None else max(0.0, report.made - known)
        lasting = "" if age is None else f", for {duration(age)}"
        late = report.error is not None or age is None or age > SHOWN_SECONDS
        what = f"it still runs generation {report.applied}, wanted {wanted}{lasting}"
        found.append(Finding(vm.key, what, JOURNAL if late else f"wait {ROUND_SECONDS} s for its next round"))
    if report.error is not None:
        since = report.since.get("error")
        lasting = "" if since is None else f" (for {duration(report.made - since)})"
        found.append(Finding(vm.key, f"its agent complains{lasting}: {report.error}", JOURNAL))
    return found


def _kernel(report: VmReport, vm: NatVmPlan) -> list[Finding]:
    """What the kernel has, against the plan; rules of others; what had to be put right."""
    found = []
    heals = f"the agent's next round, within {ROUND_SECONDS} s, puts it right; if it stays, {JOURNAL}"
    changed = _changed(report, vm)
    if changed:
        found.append(Finding(vm.key, f"its rules are not as planned: {some(changed)}", heals))
    if report.settings:
        found.append(Finding(vm.key, f"its kernel's settings are changed: {some(report.settings)}", heals))
    if report.foreign:
        what = f"rules of others decide about its packets: {some(report.foreign)}"
        found.append(
            Finding(
                vm.key,
                what,
                "find out whose they are; the agent leaves them alone, so delete those that must not be there",
            )
        )
    if report.unread:
        found.append(Finding(vm.key, f"not everything could be looked at: {some(report.unread)}", JOURNAL))
    repairs = report.repairs
    if repairs.last is not None and report.made - repairs.last < REPAIR_SECONDS:
        times = "once" if repairs.count == 1 else f"{repairs.count} times"
        what = (
            f"changed by others and put right {times}, last {duration(report.made - repairs.last)} ago: {repairs.what}"
        )
        found.append(Finding(vm.key, what, "find out who; then, on the VM: sudo rm /run/nat-pod/status.json"))
    return found


def _changed(report: VmReport, vm: NatVmPlan) -> list[str]:
    """How the rules in the kernel differ from those of the plan; of another generation, the guard alone is compared."""
    planned, now = fingerprint(vm.rules), report.rules
    names = planned.keys() | now.keys() if report.applied == vm.generation else guard_names()
    changed = []
    for name in sorted(names):
        if name not in now:
            changed.append(f"{name} is missing" if is_own(name) else f"{name} lacks {planned[name]}")
        elif name not in planned:
            changed.append(f"{name} is not planned")
        elif now[name] != planned[name]:
            changed.append(f"{name} has {'other rules' if is_own(name) else f'{now[name]}, not {planned[name]}'}")
    return changed


def _vnics(report: VmReport, vm: NatVmPlan) -> list[Finding]:
    """Planned, listed by OCI, up."""
    found = []
    listed = {vnic.address.partition("/")[0]: vnic for vnic in report.vnics}
    for planned in vm.vnics:
        name, vnic = f"VNIC {planned.key} ({planned.primary})", listed.pop(planned.primary, None)
        if vnic is None:
            found.append(
                Finding(vm.key, f"{name} is planned, and OCI does not list it to the VM", "pulumi up --refresh")
            )
        elif vnic.interface is None:
            found.append(Finding(vm.key, f"{name} is listed by OCI, and no interface has its MAC", JOURNAL))
        elif not vnic.up:
            next_step = f"on the VM: ip address show dev {vnic.interface}"
            found.append(Finding(vm.key, f"{name} is down, interface {vnic.interface}", next_step))
        elif vnic.mtu not in (None, MTU):
            next_step = f"on the VM: sudo ip link set dev {vnic.interface} mtu {MTU}"
            found.append(Finding(vm.key, f"{name} has MTU {vnic.mtu}, not {MTU}, on {vnic.interface}", next_step))
    found += [
        Finding(vm.key, f"a VNIC with {address} is attached, and not planned", "pulumi up --refresh, or detach it")
        for address in listed
    ]
    return found


def _above_bound(report: VmReport, vm: NatVmPlan) -> list[Finding]:
    """Customers of whom new flows were refused, because they had too many open."""
    found = []
    for bound in vm.bounds:
        refused = report.by_chain.get(bound.chain, {}).get("ACCEPT", 0)
        if refused:
            what = (
                f"{bound.customer} had too many flows open: {refused} packets of new flows were "
                f"refused since it booted; it may have {' and '.join(bound.most)}"
            )
            found.append(Finding(vm.key, what, "see below which of its hosts has them, and ask the customer why"))
    return found


def _crowding(report: VmReport, vm: NatVmPlan, plan: PodPlan) -> list[Finding]:
    """Customers who have more of NAT VM1's connection table than is theirs, refused or not.

    A routed POD has no rules that bound a customer, and those of the other delivery count samples.
    """
    most = report.conntrack["max"] // BOUND_SHARE
    if vm.side is not Side.NAT_VM1 or not most:
        return []
    flows: dict[str, int] = {}
    for slot in plan.slots:
        if not slot.member.is_server and plan.role(slot.member) == vm.role:
            uses = (ends.get(slot.real, Use()) for ends in (report.sent, report.received))
            flows[slot.member.realm] = flows.get(slot.member.realm, 0) + sum(use.flows for use in uses)
    return [
        Finding(
            vm.key,
            f"{realm} has {count} of {report.conntrack['max']} flows open, more than 1 in {BOUND_SHARE}: when the "
            "table is full, nobody can open new ones",
            "see below which of its hosts has them, and ask its owner why",
        )
        for realm, count in flows.items()
        if count > most
    ]


def _use(report: VmReport, vm: NatVmPlan, policy: SourceNat) -> list[Finding]:
    """What overflows, or is about to."""
    found = []
    count, most = report.conntrack.get("count", 0), report.conntrack.get("max", 0)
    if most and count >= FULL * most:
        what = f"conntrack has {count} of {most} flows"
        found.append(Finding(vm.key, what, "see below who has them; a shape with more memory has room for more"))
    lost = {name: report.conntrack.get(name, 0) for name in ("insert_failed", "drop", "early_drop")}
    if any(lost.values()):
        words = ", ".join(f"{name} {number}" for name, number in lost.items())
        found.append(
            Finding(vm.key, f"new flows were lost since it booted: {words}", "see conntrack and fullest below")
        )
    if report.fragments_lost >= FRAGMENTS_LOST:
        what = f"{report.fragments_lost} packets came in fragments and could not be put together since it booted"
        found.append(Finding(vm.key, what, "on the VM: nstat -az 'IpReasm*'; if they grow, see who sends fragments"))
    if report.fullest is not None and report.fullest.flows >= FULL * FLOWS_PER_ADDRESS:
        what = f"{report.fullest.flows} of {FLOWS_PER_ADDRESS} ports are in use: {report.fullest}"
        found.append(Finding(vm.key, what, _more_ports(policy)))
    if report.stale:
        what = f"{report.stale} open flows are translated otherwise than its rules would translate them now"
        found.append(Finding(vm.key, what, "on the VM: sudo rm /run/nat-pod/loaded.json; its next round ends them"))
    return found


def _more_ports(policy: SourceNat) -> str:
    """What to do about an address whose ports are nearly used up."""
    match policy:
        case SourceNat.MASQUERADE:
            return "sourceNat: static, which has that many for each host"
        case SourceNat.STATIC:
            return "they are all of one member: see below which, and ask its owner why"
        case _ as never:
            assert_never(never)


def _member(slot: SlotPlan, reports: Iterable[VmReport | None], active: Iterable[VmReport | None]) -> MemberUse:
    """What the NAT VMs of a member's role count for it, together.

    A VM that is no longer active keeps the entries of the flows that the active one has taken over, so what is open
    now is counted on that one alone, where it is known.
    """
    heard = [report for report in reports if report is not None]
    if not heard:
        return MemberUse(name=slot.member)
    counted = [report.by_member.get(slot.member, {}) for report in heard]
    opened = [own["SNAT"] for own in counted if "SNAT" in own]
    counting = [report for report in active if report is not None] or heard
    ends = [ends.get(slot.real, Use()) for report in counting for ends in (report.sent, report.received)]
    return MemberUse(
        name=slot.member,
        tried=sum(own.get("goto", 0) for own in counted),
        opened=sum(opened) if opened else None,
        received=sum(own.get("DNAT", 0) for own in counted),
        open=sum(ends, Use()),
    )
