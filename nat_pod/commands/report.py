"""Plans and traces as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import zip_longest
from textwrap import fill
from typing import assert_never

from nat_pod import limits
from nat_pod.config.model import SourceNat
from nat_pod.handbuilt.draft import ASSUMED, Draft
from nat_pod.handbuilt.reconstruct import NOTES, Finding, Handbuilt
from nat_pod.names import LPGS, MANAGEMENT, NAMESPACE, NAT_VM1, NAT_VM2, ROUTE_TABLES
from nat_pod.plan.model import PodPlan
from nat_pod.rules.compiler import FORWARD, INPUT
from nat_pod.status import Member, Report, Status, duration
from nat_pod.text import markdown_table, table
from nat_pod.trace.diff import Difference, FlowChange, Pair, SlotChange, Way


def plan_dict(plan: PodPlan) -> dict[str, object]:
    """The form of `plan --json`."""
    return {
        "cidr": plan.cidr,
        "sourceNat": plan.source_nat,
        "primary": {vm.key: vm.vnics[0].primary for vm in plan.vms},
        "slots": {slot.member: {NAT_VM1: slot.nat_vm1, NAT_VM2: slot.nat_vm2} for slot in plan.slots},
        "real": {slot.member: slot.real for slot in plan.slots},
        "capacity": {
            "slots": plan.capacity.slots,
            "used": plan.capacity.used,
            "free": plan.capacity.free,
            "vnicsUsed": plan.capacity.vnics_used,
            "vnicsLimit": plan.capacity.vnics_limit,
            "flowsPerServerAndPort": limits.FLOWS_PER_ADDRESS,
        },
        "subnets": {subnet.key: subnet.cidr for subnet in plan.subnets},
        "vnics": {
            vnic.key: {"primary": vnic.primary, "secondaries": list(vnic.secondaries)}
            for vm in plan.vms
            for vnic in vm.vnics
        },
        "routes": {
            **{
                key: [
                    {
                        "destination": rule.destination,
                        "via": f"LPG {rule.customer}" if rule.customer else rule.private_ip,
                    }
                    for rule in plan.routes[key]
                ]
                for key in ROUTE_TABLES
            },
            "neighbours": {name: list(routes) for name, routes in plan.neighbours.items()},
        },
        "rules": {vm.key: vm.rules.rule_count() for vm in plan.vms},
        "generations": {vm.key: vm.generation for vm in plan.vms},
    }


def plan_text(plan: PodPlan, stack: str) -> str:
    """`plan` for people."""
    facts, tables = _plan_facts(plan), _plan_tables(plan)
    sections = [
        f"POD {stack}: {plan.cidr}, source NAT {plan.source_nat}, 2 x {_shape(plan)}",
        *(f"  {name:7} {value}" for name, value in facts),
    ]
    for title, header, rows in tables:
        sections += ["", title, table(header, rows)]
    return "\n".join(sections)


def plan_markdown(plan: PodPlan, stack: str, pictures: Sequence[tuple[str, str]]) -> str:
    """`plan` for a document or a pull request.  pictures: a heading and Mermaid text each."""
    facts = [
        ("range", plan.cidr),
        ("source NAT", plan.source_nat),
        ("NAT VMs", f"2 x {_shape(plan)}"),
        *_plan_facts(plan),
    ]
    parts = [f"## POD `{stack}`", "", markdown_table(["", ""], facts)]
    for heading, text in pictures:
        parts += ["", f"### {heading}", "", "```mermaid", text, "```"]
    for title, header, rows in _plan_tables(plan):
        if len(rows) <= _MOST_OPEN_ROWS:
            parts += ["", f"### {title}", "", markdown_table(header, rows)]
        else:
            parts += ["", _folded(f"{title} ({len(rows)})", header, rows)]
    return "\n".join(parts)


_MOST_OPEN_ROWS = 12


def _shape(plan: PodPlan) -> str:
    return plan.shape if plan.ocpus is None else f"{plan.shape}, {plan.ocpus} OCPUs, {plan.memory_gbs} GB"


def _plan_facts(plan: PodPlan) -> list[tuple[str, str]]:
    capacity = plan.capacity
    drops = f"shared by the whole POD, first drops from about {limits.FLOWS_BEFORE_DROPS}"
    match plan.source_nat:
        case SourceNat.MASQUERADE:
            shared = drops
        case SourceNat.STATIC:
            shared = "for each host"
        case _ as never:
            assert_never(never)
    return [
        (
            "slots",
            f"{capacity.used} of {capacity.slots} used, {capacity.free} free "
            f"({limits.SLOTS_PER_PAIR} a VNIC pair; {capacity.vnics_used} of {capacity.vnics_limit} VNICs a VM)",
        ),
        ("flows", f"{limits.FLOWS_PER_ADDRESS} at a time to one server and port, {shared}"),
        ("rules", ", ".join(f"{vm.rules.rule_count()} on {vm.key}" for vm in plan.vms)),
    ]


def _plan_tables(plan: PodPlan) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, header, rows."""
    subnets = {subnet.key: subnet.cidr for subnet in plan.subnets}
    return [
        (
            "VNICs (source/destination check off)",
            ["VNIC", "subnet", "primary", "secondary private IPs"],
            [
                [vnic.key, subnets[vnic.key], vnic.primary, _some(vnic.secondaries)]
                for vm in plan.vms
                for vnic in vm.vnics
            ],
        ),
        (
            "Mappings: customers reach a server at its address on NAT VM1, management a host at its address on NAT VM2",
            ["member", "real address", "on NAT VM1", "on NAT VM2"],
            [[slot.member, slot.real, slot.nat_vm1, slot.nat_vm2] for slot in plan.slots],
        ),
        (
            "Route rules of the POD",
            ["table of", "destination", "target"],
            [
                [owner, rule.destination, f"LPG of {rule.customer}" if rule.customer else f"{hop} {rule.private_ip}"]
                for key, (owner, hop) in _TABLES.items()
                for rule in plan.routes[key]
            ],
        ),
        (
            "Routes that the neighbours add",
            ["in the VCN of", "destination", "target"],
            [
                [name, destination, "the vRouter" if name == MANAGEMENT else "its LPG to the POD"]
                for name, destinations in plan.neighbours.items()
                for destination in destinations
            ],
        ),
    ]


# Route table -> whose it is, and whose the private IP is that it leads to.
_TABLES = {
    NAT_VM1: ("NAT VM1's subnets", ""),
    NAT_VM2: ("NAT VM2's subnets", "vRouter"),
    LPGS: ("the LPGs", "NAT VM1"),
}


# --- status ----------------------------------------------------------------------------------------------------------


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
    }


def _report_dict(report: Report, status: Status, vm: str) -> dict[str, object]:
    return {
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
        "dropped": {"FORWARD": _dropped(report, FORWARD), "INPUT": _dropped(report, INPUT)},
        "openFlows": _open(report),
        "staleFlows": report.stale,
        "fullest": None if report.fullest is None else dict(zip(("where", "flows"), report.fullest, strict=True)),
    }


def status_text(status: Status, stack: str) -> str:
    """`status` for people: what is wrong first, then both VMs side by side, then the flows of each member."""
    verdict = "both NAT VMs run what the stack file says"
    if status.findings:
        verdict = f"{_count(len(status.findings), 'finding')}"
    lines = [f"POD {stack}: {verdict}"]
    for finding in status.findings:
        lines += [_wrapped(f"{finding.vm}: {finding.what}"), f"      next: {finding.next}"]
    lines += ["", table(["", *status.reports], _vm_rows(status)), ""]
    for vm, report in status.reports.items():
        if report is not None and report.fullest is not None:
            where, flows = report.fullest
            lines.append(_wrapped(f"{vm}, fullest: {flows} of {limits.FLOWS_PER_ADDRESS} ports, {where}"))
        lines += [_wrapped(f"{vm}, note: {note}") for note in (report.notes if report is not None else ())]
    header = ["member", "tried", "opened", "received", "open now", "packets", "bytes"]
    title = "Flows by member since its NAT VM booted, and those open now"
    return "\n".join([*lines, "", title, table(header, [_member_row(member) for member in status.members])])


def _wrapped(text: str) -> str:
    return fill(text, 80, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _vm_rows(status: Status) -> list[list[object]]:
    def row(name: str, value: Callable[[str, Report], object]) -> list[object]:
        return [name, *("?" if report is None else value(vm, report) for vm, report in status.reports.items())]

    def ago(time: float | None) -> str:
        return "-" if time is None else f"{duration(status.now - time)} ago"

    return [
        row("generation", lambda _, report: report.applied or "none"),
        row("applied", lambda _, report: ago(report.since.get("applied"))),
        row("last round", lambda _, report: ago(report.round)),
        row("report", lambda _, report: ago(report.made)),
        row("forwarding", lambda _, report: "on" if report.forwarding else "OFF"),
        row("VNICs up", lambda vm, report: f"{sum(v.up for v in report.vnics)} of {status.vnics_planned[vm]}"),
        row("conntrack", lambda _, report: f"{report.conntrack.get('count')} of {report.conntrack.get('max')}"),
        row("open flows", lambda _, report: _open(report)),
        row("stale flows", lambda _, report: report.stale),
        row("dropped, sent through", lambda _, report: _dropped(report, FORWARD)),
        row("dropped, sent to it", lambda _, report: _dropped(report, INPUT)),
    ]


def _dropped(report: Report, chain: str) -> int:
    return report.counted.get(f"{chain} DROP", 0)


def _open(report: Report) -> int:
    """Flows through the VM: each has one sender."""
    return sum(use.flows for (way, _), use in report.open.items() if way == "from")


def _member_row(member: Member) -> list[object]:
    if member.open is None:
        return [member.name, *"??????"]
    opened = "-" if member.opened is None else member.opened
    use = member.open
    return [member.name, member.tried, opened, member.received, use.flows, use.packets, use.bytes]


# --- diff ------------------------------------------------------------------------------------------------------------

# GitHub refuses comments of more than 65,536 characters; there may be eight lists, and thousands of flows in one.
_MOST_ROWS = 60


def difference_dict(difference: Difference) -> dict[str, object]:
    """The form of `diff --json`."""
    before, after = difference.capacity
    return {
        **{
            name: [
                {
                    "from": flow.sender,
                    "to": flow.receiver,
                    "before": _way_dict(flow.before),
                    "after": _way_dict(flow.after),
                }
                for flow in flows
            ]
            for name, flows in _flow_lists(difference)
        },
        "policy": {"before": difference.policy[0], "after": difference.policy[1]},
        "capacity": {
            name: None if value is None else {"slots": value.slots, "used": value.used, "free": value.free}
            for name, value in (("before", before), ("after", after))
        },
        "slots": {
            name: {slot.member: {NAT_VM1: slot.nat_vm1, NAT_VM2: slot.nat_vm2} for slot in slots}
            for name, slots in _slot_lists(difference)
        },
        "vmsReplaced": any(risk.replaces_vm for risk in difference.risks),
        "risks": [
            {"what": risk.what, "means": risk.means, "replacesVm": risk.replaces_vm} for risk in difference.risks
        ],
        "flowsThatEnd": difference.ending,
        "notDelivered": [list(pair) for pair in difference.not_delivered],
        "notDeclared": [list(pair) for pair in difference.not_declared],
    }


def difference_text(difference: Difference, stack: str, base: str) -> str:
    """`diff` for people."""
    sections = [f"POD {stack} since {base}", *(f"  {line}" for line in _summary(difference))]
    for title, header, rows in _tables(difference):
        sections += ["", f"{title} ({len(rows)})", table(header, rows)]
    return "\n".join(sections)


def difference_markdown(difference: Difference, stack: str, base: str) -> str:
    """`diff` for a pull request: what a reviewer must know first, the lists folded."""
    parts = [f"### POD `{stack}` since `{base}`", "", *(f"- {line}" for line in _summary(difference))]
    for title, header, rows in _tables(difference):
        parts += ["", _folded(f"{title} ({len(rows)})", header, rows)]
    return "\n".join(parts)


def _tables(difference: Difference) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """The lists that are not empty: title, header, rows."""
    tables: list[tuple[str, Sequence[str], list[list[str]]]] = []
    for name, flows in _flow_lists(difference):
        if name == "rerouted":
            tables.append(("Rerouted flows", ("from", "to", "what changes"), [_rerouted_row(flow) for flow in flows]))
        else:
            tables.append((f"{name.capitalize()} flows", _FLOW_HEADER, [_flow_row(flow) for flow in flows]))
    for name, slots in _slot_lists(difference):
        tables.append((_SLOT_TITLES[name], _SLOT_HEADER, [[slot.member, slot.nat_vm1, slot.nat_vm2] for slot in slots]))
    return [entry for entry in tables if entry[2]]


_FLOW_HEADER = ("from", "to", "address used", "the far end sees")
_SLOT_HEADER = ("member", "on NAT VM1", "on NAT VM2")
_SLOT_TITLES = {
    "taken": "Slots taken",
    "returned": "Slots returned to their members",
    "released": "Slots released, and kept back",
    "freed": "Slots free for others again",
}


def _summary(difference: Difference) -> list[str]:
    """The lines that everybody reads, the risk first."""
    replaced = (
        "both NAT VMs are replaced" if any(risk.replaces_vm for risk in difference.risks) else "no VM is replaced"
    )
    ending = f"{_count(difference.ending, 'flow')} {'ends' if difference.ending == 1 else 'end'}"
    lines = [f"risk: {replaced}; {ending}"]
    lines += [f"risk: {risk.what}: {risk.means}" for risk in difference.risks]
    lines += _mistakes("declared, and not delivered", difference.not_delivered)
    lines += _mistakes("delivered, and not declared", difference.not_declared)
    counts = [f"{len(flows)} {name}" for name, flows in _flow_lists(difference)]
    lines.append(f"flows: {', '.join(counts)} (of {difference.flows})")
    policy_before, policy = difference.policy
    if policy_before is None:
        lines.append(f"a new POD, source NAT {policy}")
    elif policy_before != policy:
        lines.append(f"source NAT: {policy_before} -> {policy}")
    before, after = difference.capacity
    was = "" if before is None or before == after else f", before {before.used} of {before.slots}"
    lines.append(f"slots: {after.used} of {after.slots} used, {after.free} free{was}")
    return lines


def _mistakes(words: str, pairs: Sequence[Pair]) -> list[str]:
    """A plan whose rules do not do what the stack file says."""
    if not pairs:
        return []
    shown = ", ".join(f"{sender} to {receiver}" for sender, receiver in pairs[:3])
    more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    return [f"MISTAKE IN THE RULES: {words}: {shown}{more}"]


def _flow_lists(difference: Difference) -> list[tuple[str, tuple[FlowChange, ...]]]:
    return [
        ("lost", difference.lost),
        ("renumbered", difference.renumbered),
        ("gained", difference.gained),
        ("rerouted", difference.rerouted),
    ]


def _slot_lists(difference: Difference) -> list[tuple[str, tuple[SlotChange, ...]]]:
    return [
        ("taken", difference.taken),
        ("returned", difference.returned),
        ("released", difference.released),
        ("freed", difference.freed),
    ]


def _way_dict(way: Way | None) -> dict[str, object] | None:
    if way is None:
        return None
    return {
        "address": way.address,
        "seen": way.seen,
        "hops": [{"at": at, "src": src, "dst": dst} for at, src, dst in way.hops],
    }


def _flow_row(flow: FlowChange) -> list[str]:
    ways = [way for way in (flow.before, flow.after) if way is not None]
    return [
        flow.sender,
        flow.receiver,
        " -> ".join(dict.fromkeys(way.address for way in ways)),
        " -> ".join(dict.fromkeys(way.seen for way in ways)),
    ]


def _rerouted_row(flow: FlowChange) -> list[str]:
    """The first hop that is another one."""
    before, after = (way.hops if way is not None else () for way in (flow.before, flow.after))
    was, now = next(pair for pair in zip_longest(before, after, fillvalue=("nowhere", "-", "-")) if pair[0] != pair[1])
    there = "" if was[0] == now[0] else f"{now[0]}: "
    return [flow.sender, flow.receiver, f"{was[0]}: {was[1]} > {was[2]} becomes {there}{now[1]} > {now[2]}"]


def _folded(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"<details><summary>{title}</summary>", "", markdown_table(header, rows[:_MOST_ROWS])]
    if len(rows) > _MOST_ROWS:
        lines += ["", f"and {len(rows) - _MOST_ROWS} more, which the same command without `--markdown` lists"]
    return "\n".join([*lines, "", "</details>"])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(addresses: tuple[str, ...]) -> str:
    if len(addresses) <= 3:
        return ", ".join(addresses) or "-"
    return f"{addresses[0]} to {addresses[-1]} ({len(addresses)})"


# --- import ----------------------------------------------------------------------------------------------------------


def import_dict(pod: Handbuilt, draft: Draft | None, file: str | None) -> dict[str, object]:
    """The form of `import --json`.  draft: None when nothing could be made of the rules."""
    findings = pod.findings if draft is None else draft.findings
    return {
        "file": file,
        "flows": len(pod.flows),
        "config": None if draft is None else draft.config,
        "toFillIn": [] if draft is None else draft.to_fill_in,
        "withoutSlot": [] if draft is None else draft.without_slot,
        "assumed": [] if draft is None else draft.assumed,
        "findings": [
            {"kind": str(f.kind), "vm": f.vm, "line": f.line, "rule": f.rule or None, "why": f.why} for f in findings
        ],
    }


def import_text(pod: Handbuilt, draft: Draft | None) -> str:
    """`import` for people: what was found, what is left to do, and each thing that does not fit."""
    customers = 0 if draft is None else len(draft.config["customers"])
    sections = [
        f"{', '.join(f'{count} rules on {vm}' for vm, count in pod.rules.items())}: {_count(len(pod.flows), 'flow')}",
        f"  {_count(len(pod.hosts), 'host')} of {_count(customers, 'customer')}, {_count(len(pod.servers), 'server')}, "
        f"{_count(len(pod.pairs), 'VNIC pair')}, source NAT {pod.source_nat}",
    ]
    if draft is not None:
        sections += ["", f"To fill in ({len(draft.to_fill_in)})", *(f"  {path}" for path in draft.to_fill_in)]
        if draft.without_slot:
            title = (
                f"Without a slot ({len(draft.without_slot)}), until `python -m nat_pod allocate STACK` gives them one"
            )
            sections += ["", title, *(f"  {member}" for member in draft.without_slot)]
        rows = [
            [f"{NAMESPACE}:{path}", draft.value(path), draft.comments[path].removeprefix(f"{ASSUMED}: ")]
            for path in draft.assumed
        ]
        sections += ["", f"Assumed ({len(rows)})", table(["setting", "value", "because"], rows)]
    findings = pod.findings if draft is None else draft.findings
    for title, notes in (("Does not fit", False), ("Left out, and harmless", True)):
        listed = [finding for finding in findings if (finding.kind in NOTES) is notes]
        if listed:
            sections += ["", f"{title} ({len(listed)})", *(line for finding in listed for line in _finding(finding))]
    return "\n".join(sections)


def _finding(finding: Finding) -> list[str]:
    place = "" if finding.line is None else f" line {finding.line}"
    where = f"{finding.vm}{place}: " if finding.vm else ""
    return [f"  {finding.kind}: {where}{finding.why}"] + ([f"      {finding.rule}"] if finding.rule else [])
