"""A role with a standby: which of its NAT VMs is active, by what they report, and whether the other could take over.

No report says which VM the balancer has chosen.  But only that VM has packets to forward, and each VM counts them.
Each VM also knows what it answers the balancer's health checks, and whether the balancer asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nat_pod.names import Role
from nat_pod.plan.model import BalancerPlan, PodPlan
from nat_pod.status.finding import JOURNAL, Finding, duration
from nat_pod.status.report import VmReport

PASSING_SECONDS = 60
"""Seconds within which a VM that forwarded a packet counts as active: the agent counts packets every 15 seconds."""

NOT_LOOKED_AT = (
    "what the balancers hold for healthy, and whom they choose",
    "how many load balancers the region still allows",
)
"""Of a POD with standbys: only OCI knows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The NAT VMs of a role that has a standby, by what they have reported.

    `active` forwards packets: one of them, but for a moment after a switch.  It is empty when none does, or none that
    does has reported: then nobody can tell.
    `passed` is when a VM's agent last saw it forward packets, by VM, in seconds since 1970: None for none since boot.
    VMs without a report are not in it.
    """

    role: Role
    vms: tuple[str, ...]
    active: tuple[str, ...]
    passed: dict[str, float | None]


def pairs(plan: PodPlan, reports: Mapping[str, VmReport | None]) -> tuple[Pair, ...]:
    """A POD's pairs, by role; none in a POD without standbys."""
    return tuple(_pair(balancer, reports) for balancer in plan.balancers)


def _pair(balancer: BalancerPlan, reports: Mapping[str, VmReport | None]) -> Pair:
    vms = tuple(backend.vm for backend in balancer.backends)
    passed = {vm: report.passed.last for vm in vms if (report := reports[vm]) is not None}
    return Pair(
        role=balancer.role,
        vms=vms,
        active=_passing(vms, reports),
        passed=passed,
    )


def _passing(vms: tuple[str, ...], reports: Mapping[str, VmReport | None]) -> tuple[str, ...]:
    """The VMs that forwarded packets just before their last round.

    Of reports that were made at different times each may be right: the latest tells who is active now.
    """
    rounds = {
        vm: report.round
        for vm in vms
        if (report := reports[vm]) is not None
        and report.passed.last is not None
        and report.round - report.passed.last < PASSING_SECONDS
    }
    return tuple(vm for vm, time in rounds.items() if max(rounds.values()) - time < PASSING_SECONDS)


def pair_text(pair: Pair, now: float) -> str:
    """`natVm1: natVm1a is active (natVm1a last forwarded 8 s ago; natVm1b has forwarded nothing since it booted)`."""

    def seen(vm: str) -> str:
        if vm not in pair.passed:
            return "does not report"
        time = pair.passed[vm]
        return "has forwarded nothing since it booted" if time is None else f"last forwarded {duration(now - time)} ago"

    said = "; ".join(f"{vm} {seen(vm)}" for vm in pair.vms)
    match pair.active:
        case ():
            return f"{pair.role}: no packets pass, so nobody can tell which VM is active ({said})"
        case (active,):
            return f"{pair.role}: {active} is active ({said})"
        case _:
            return f"{pair.role}: {' and '.join(pair.active)} both forward packets ({said})"


def findings(plan: PodPlan, reports: Mapping[str, VmReport | None]) -> list[Finding]:
    """What keeps a standby from taking over, and what keeps a role from having a next hop at all."""
    return [finding for balancer in plan.balancers for finding in _role_findings(plan, balancer, reports)]


def _role_findings(plan: PodPlan, balancer: BalancerPlan, reports: Mapping[str, VmReport | None]) -> list[Finding]:
    vms = tuple(backend.vm for backend in balancer.backends)
    heard = {vm: report for vm in vms if (report := reports[vm]) is not None}
    found = [finding for vm, report in heard.items() for finding in _answer(plan, vm, report)]
    fit = [vm for vm, report in heard.items() if report.health is not None and report.health.unfit is None]
    if heard and not fit:
        what = f"no NAT VM of {', '.join(vms)} is known to be fit: unless one is, their balancer forwards nothing"
        found.append(Finding(balancer.role, what, "see the findings of these VMs above"))
    applied = {vm: report.applied for vm, report in heard.items() if report.applied is not None}
    if len(set(applied.values())) > 1:
        what = " and ".join(f"{vm} runs generation {generation}" for vm, generation in applied.items())
        found.append(
            Finding(balancer.role, f"{what}: after a switch flows meet other rules", "pulumi up; then wait a minute")
        )
    active = _passing(vms, reports)
    if len(active) > 1:
        what = f"{' and '.join(active)} both forward packets; a new TCP flow that is answered by the other one fails"
        step = "wait a minute if one has just taken over; else: pulumi up --refresh"
        found.append(Finding(balancer.role, what, step))
    return found


def _answer(plan: PodPlan, vm: str, report: VmReport) -> list[Finding]:
    """What a VM answers its balancer, and whether the balancer asks."""
    health = report.health
    if health is None:
        return [Finding(vm, "it does not answer a balancer's health checks, so it gets no packets", JOURNAL)]
    found = []
    if health.unfit is not None:
        found.append(Finding(vm, f"it tells its balancer that it is not fit: {health.unfit}", JOURNAL))
    names = {vnic.primary: other.key for other in plan.vms for vnic in other.vnics}
    if not set(health.asked_by) - names.keys():
        others = " and ".join(names[address] for address in health.asked_by)
        what = f"its balancer has not asked for two minutes whether it is fit{f'; only {others} has' if others else ''}"
        found.append(Finding(vm, what, "see the balancer's backends and health check: pulumi up --refresh"))
    return found
