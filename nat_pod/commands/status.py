"""`status`: what the NAT VMs run and count, against the stack file."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nat_pod import limits
from nat_pod.commands.command import (
    FINDINGS,
    OK,
    Subparsers,
    add_json,
    add_outputs,
    add_parser,
    add_stack,
    print_json,
    read_outputs,
    read_text,
    vm_file,
)
from nat_pod.commands.lab import reports
from nat_pod.commands.stack import load
from nat_pod.errors import NatPodError, excerpt
from nat_pod.names import servers_first
from nat_pod.plan.model import PodPlan
from nat_pod.rules.guard import ERRORS, FORWARD, INPUT, OUTPUT, OWN_ERRORS, REFUSED
from nat_pod.status.compare import MemberUse, Status, agent_name, compare
from nat_pod.status.finding import duration
from nat_pod.status.metrics import metrics_text
from nat_pod.status.report import Health, Repairs, VmReport, read_report
from nat_pod.status.standby import pair_text
from nat_pod.text import count, table, wrapped

_HOW_TO_FETCH = """\
The NAT VMs write their reports to their serial consoles, which Pulumi can read;
they may be 15 minutes old:
  python -m nat_pod status prod --fetch
A report of this moment, by ssh, where it reaches the VM:
  ssh opc@198.18.0.130 sudo nat-pod-agent status > 2.json
  python -m nat_pod status prod --report natVm1=1.json --report natVm2=2.json
A routed POD's NAT VMs are natVm1a, natVm1b, natVm2a and natVm2b.

Exit status 0: all run what the stack file says; 1: findings"""


def add(commands: Subparsers) -> None:
    """The command's parser."""
    parser = add_parser(commands, "status", "compare what the NAT VMs run and count with the stack file", _run)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _HOW_TO_FETCH
    add_stack(parser)
    parser.add_argument(
        "--report",
        metavar="VM=FILE",
        action="append",
        type=vm_file,
        default=[],
        help="a NAT VM's report, e.g. natVm1=1.json; - reads standard input (default: ask the stack's lab)",
    )
    add_outputs(parser, "compares with what is deployed, too")
    parser.add_argument(
        "--fetch",
        action="store_true",
        help="capture the NAT VMs' serial consoles with pulumi, its backend and its credentials, and compare what is "
        "deployed, too; the captures are deleted afterwards",
    )
    output = parser.add_mutually_exclusive_group()
    add_json(output)
    output.add_argument(
        "--prometheus", action="store_true", help="print metrics in Prometheus's text format (docs/monitoring.md)"
    )


def _run(arguments: argparse.Namespace) -> int:
    _, plan = load(arguments.stack)
    deployed, texts = _sources(plan, arguments)
    compared = compare(plan, {vm.key: _report_of(vm.key, texts.get(vm.key)) for vm in plan.vms}, time.time(), deployed)
    if arguments.json:
        print_json(status_dict(compared))
    elif arguments.prometheus:
        print(metrics_text(arguments.stack, compared), end="")
    else:
        print(status_text(compared, arguments.stack))
    return FINDINGS if compared.findings else OK


def _sources(
    plan: PodPlan, arguments: argparse.Namespace
) -> tuple[dict[str, str] | None, Mapping[str, str | NatPodError]]:
    """What is deployed, if that was asked, and the texts of the reports, by VM."""
    if arguments.fetch:
        if arguments.report or arguments.outputs is not None:
            raise NatPodError("--fetch asks the tenancy for everything; leave out --report and --outputs")
        from nat_pod.deployed.consoles import fetch  # loads Pulumi, which takes a second

        fetched = fetch(Path.cwd(), arguments.stack, lambda words: print(words, file=sys.stderr, flush=True))
        return _deployed_generations(plan, fetched.outputs, f"stack {arguments.stack}"), fetched.consoles
    deployed = None
    if arguments.outputs is not None:
        where = f"--outputs {excerpt(arguments.outputs)}"
        deployed = _deployed_generations(plan, read_outputs(arguments.outputs), where)
    return deployed, _given(plan, arguments) or reports(arguments.stack, [vm.key for vm in plan.vms])


def _given(plan: PodPlan, arguments: argparse.Namespace) -> dict[str, str | NatPodError]:
    """The texts that --report names, by VM."""
    files = dict(arguments.report)
    names = [vm.key for vm in plan.vms]
    for vm in files:
        if vm not in names:
            raise NatPodError(f"--report {vm}: POD {arguments.stack} has no such NAT VM; it has {', '.join(names)}")
    if len(files) < len(arguments.report) or list(files.values()).count("-") > 1:
        raise NatPodError("--report: give one for each NAT VM, and read only one of them from standard input")
    return {vm: read_text(file) for vm, file in files.items()}


def _report_of(vm: str, text: str | NatPodError | None) -> VmReport | str:
    """A VM's report, or why there is none."""
    if text is None:
        return "none was given"
    if isinstance(text, NatPodError):
        return str(text)
    try:
        found = read_report(text)
    except ValueError as error:
        return str(error)
    if found.vm not in (None, vm):
        raise NatPodError(f"--report {vm}: this is a report of {found.vm}")
    return found


def _deployed_generations(plan: PodPlan, outputs: Mapping[str, Any], where: str) -> dict[str, str]:
    names = [vm.key for vm in plan.vms]
    generations = outputs.get("generations")
    if not isinstance(generations, dict) or not all(isinstance(generations.get(vm), str) for vm in names):
        raise NatPodError(
            f"{where}: has no generations of {' and '.join(names)}; `pulumi stack output --json` prints them"
        )
    return {vm: excerpt(generations[vm]) for vm in names}


def status_dict(status: Status) -> dict[str, object]:
    """The form of `status --json`; times in seconds before now."""
    return {
        "findings": [{"vm": finding.vm, "what": finding.what, "next": finding.next} for finding in status.findings],
        "natVms": {
            vm: None if report is None else _report_dict(report, status, vm) for vm, report in status.reports.items()
        },
        "members": {
            member.name: {
                "tried": member.tried,
                "opened": member.opened,
                "received": member.received,
                "open": None if member.open is None else asdict(member.open),
            }
            for member in status.members
        },
        "roles": {pair.role: {"natVms": list(pair.vms), "active": list(pair.active)} for pair in status.pairs},
        "notLookedAt": list(status.not_looked_at),
    }


def _report_dict(report: VmReport, status: Status, vm: str) -> dict[str, object]:
    def ago(time: float | None) -> int | None:
        return None if time is None else round(status.now - time)

    return {
        "agent": agent_name(report),
        "planned": status.planned[vm],
        "wanted": report.wanted,
        "applied": report.applied,
        "error": report.error,
        "notes": list(report.notes),
        "reportedSecondsAgo": round(status.now - report.made),
        "lastRoundSecondsAgo": round(status.now - report.round),
        "sinceSecondsAgo": {name: round(status.now - time) for name, time in report.since.items()},
        "forwarding": report.forwarding,
        "vnics": [asdict(vnic) for vnic in report.vnics],
        "conntrack": report.conntrack,
        "dropped": {"FORWARD": _through(report), "INPUT": report.dropped(INPUT), "errors": _errors(report)},
        "openFlows": report.open_flows,
        "staleFlows": report.stale,
        "fullest": None if report.fullest is None else asdict(report.fullest),
        "foreignRules": list(report.foreign),
        "notRead": list(report.unread),
        "changedSettings": list(report.settings),
        "repairs": {"count": report.repairs.count, "last": ago(report.repairs.last), "what": report.repairs.what},
        "fragmentsLost": report.fragments_lost,
        "forwarded": {"packets": report.passed.packets, "lastSecondsAgo": ago(report.passed.last)},
        "health": None if report.health is None else _health_dict(report.health),
    }


def _health_dict(health: Health) -> dict[str, object]:
    return {"unfit": health.unfit, "askedBy": list(health.asked_by)}


def status_text(status: Status, stack: str) -> str:
    """`status` for people: what is wrong first, then the VMs side by side, then the flows of each member."""
    verdict = f"{'both' if len(status.reports) == 2 else 'all'} NAT VMs run what the stack file says"
    if status.findings:
        verdict = f"{count(len(status.findings), 'finding')}"
    lines = [f"POD {stack}: {verdict}"]
    for finding in status.findings:
        lines += [wrapped(f"{finding.vm}: {finding.what}"), f"      next: {finding.next}"]
    if status.pairs:
        lines += ["", *(wrapped(pair_text(pair, status.now)) for pair in status.pairs)]
    lines += ["", table(["", *status.reports], _vm_rows(status)), ""]
    for vm, report in status.reports.items():
        if report is not None and report.fullest is not None:
            used = f"{report.fullest.flows} of {limits.FLOWS_PER_ADDRESS} ports"
            lines.append(wrapped(f"{vm}, fullest: {used}, {report.fullest}"))
    lines += [wrapped(f"{', '.join(vms)}, note: {note}") for note, vms in _notes(status).items()]
    header = ["member", "tried", "opened", "received", "open now", "packets", "bytes"]
    title = "Flows by member since its NAT VM booted, and those open now"
    return "\n".join(
        [
            *lines,
            "",
            title,
            table(
                header,
                [
                    _member_row(member)
                    for member in sorted(status.members, key=lambda member: servers_first(member.name))
                ],
            ),
            "",
            wrapped(f"Not looked at: {'; '.join(status.not_looked_at)}."),
        ]
    )


def _vm_rows(status: Status) -> list[list[object]]:
    def row(name: str, value: Callable[[str, VmReport], object]) -> list[object]:
        return [name, *("?" if report is None else value(vm, report) for vm, report in status.reports.items())]

    def ago(time: float | None) -> str:
        return "-" if time is None else f"{duration(status.now - time)} ago"

    def repaired(repairs: Repairs) -> object:
        return repairs.count if repairs.last is None else f"{repairs.count}, last {ago(repairs.last)}"

    def fit(health: Health | None) -> str:
        return "-" if health is None else "yes" if health.unfit is None else "NO"

    standby = [
        row("fit, by its own answer", lambda _, report: fit(report.health)),
        row("asked by", lambda _, report: ", ".join(report.health.asked_by if report.health else ()) or "nobody"),
        row("forwarded", lambda _, report: ago(report.passed.last)),
    ]
    return [
        *(standby if status.pairs else ()),
        row("generation", lambda _, report: report.applied or "none"),
        row("applied", lambda _, report: ago(report.since.get("applied"))),
        row("agent", lambda _, report: agent_name(report)),
        row("last round", lambda _, report: ago(report.round)),
        row("report", lambda _, report: ago(report.made)),
        row("forwarding", lambda _, report: "on" if report.forwarding else "OFF"),
        row("VNICs up", lambda vm, report: f"{sum(v.up for v in report.vnics)} of {status.vnics_planned[vm]}"),
        row("conntrack", lambda _, report: f"{report.conntrack.get('count')} of {report.conntrack.get('max')}"),
        row("open flows", lambda _, report: report.open_flows),
        row("stale flows", lambda _, report: report.stale),
        row("rules of others", lambda _, report: len(report.foreign)),
        row("repairs", lambda _, report: repaired(report.repairs)),
        row("fragments lost", lambda _, report: report.fragments_lost),
        row("dropped, sent through", lambda _, report: _through(report)),
        row("dropped, sent to it", lambda _, report: report.dropped(INPUT)),
        row("dropped, ICMP errors", lambda _, report: _errors(report)),
    ]


def _notes(status: Status) -> dict[str, list[str]]:
    """The VMs that say a note, by note: VMs of one image say the same."""
    found: dict[str, list[str]] = {}
    for vm, report in status.reports.items():
        for note in report.notes if report is not None else ():
            found.setdefault(note, []).append(vm)
    return found


def _through(report: VmReport) -> int:
    """Packets to be forwarded that were dropped.  In a routed POD, rules for who may open flows count theirs apart."""
    return report.dropped(FORWARD) + report.dropped(REFUSED)


def _errors(report: VmReport) -> int:
    """ICMP errors: others' about flows that are not their sender's, and the VM's own to strangers."""
    return sum(map(report.dropped, (ERRORS, OWN_ERRORS, OUTPUT)))


def _member_row(member: MemberUse) -> list[object]:
    if member.open is None:
        return [member.name, *"??????"]
    opened = "-" if member.opened is None else member.opened
    use = member.open
    return [member.name, member.tried, opened, member.received, use.flows, use.packets, use.bytes]
