"""Plans and traces as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from nat_pod import limits
from nat_pod.config import MANAGEMENT, MASQUERADE
from nat_pod.diff import Difference, FlowChange, Pair, SlotChange, Way
from nat_pod.plan import LPGS, NAT_VM1, NAT_VM2, ROUTE_TABLES, PodPlan
from nat_pod.trace import Disposition, Leg, Trace


def table(header: Sequence[str], rows: Iterable[Sequence[object]], indent: str = "  ") -> str:
    """Columns as wide as their widest cell, no trailing blanks."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join(
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


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
    capacity = plan.capacity
    shape = plan.shape if plan.ocpus is None else f"{plan.shape}, {plan.ocpus} OCPUs, {plan.memory_gbs} GB"
    shared = "shared by the whole POD" if plan.source_nat == MASQUERADE else "for each host"
    sections = [
        f"POD {stack}: {plan.cidr}, source NAT {plan.source_nat}, 2 x {shape}",
        f"  slots   {capacity.used} of {capacity.slots} used, {capacity.free} free "
        f"({limits.SLOTS_PER_PAIR} a VNIC pair; {capacity.vnics_used} of {capacity.vnics_limit} VNICs a VM)",
        f"  flows   {limits.FLOWS_PER_ADDRESS} at a time to one server and port, {shared}",
        f"  rules   {', '.join(f'{vm.rules.rule_count()} on {vm.key}' for vm in plan.vms)}",
        "",
        "VNICs (source/destination check off)",
        table(
            ["VNIC", "subnet", "primary", "secondary private IPs"],
            [
                [vnic.key, _subnet(plan, vnic.key), vnic.primary, _some(vnic.secondaries)]
                for vm in plan.vms
                for vnic in vm.vnics
            ],
        ),
        "",
        "Mappings: customers reach a server at its address on NAT VM1, management a host at its address on NAT VM2",
        table(
            ["member", "real address", "on NAT VM1", "on NAT VM2"],
            [[slot.member, slot.real, slot.nat_vm1, slot.nat_vm2] for slot in plan.slots],
        ),
        "",
        "Route rules of the POD",
        table(
            ["table of", "destination", "target"],
            [
                [owner, rule.destination, f"LPG of {rule.customer}" if rule.customer else f"{hop} {rule.private_ip}"]
                for key, (owner, hop) in _TABLES.items()
                for rule in plan.routes[key]
            ],
        ),
        "",
        "Routes that the neighbours add",
        table(
            ["in the VCN of", "destination", "target"],
            [
                [name, destination, "the vRouter" if name == MANAGEMENT else "its LPG to the POD"]
                for name, destinations in plan.neighbours.items()
                for destination in destinations
            ],
        ),
    ]
    return "\n".join(sections)


# Route table -> whose it is, and whose the private IP is that it leads to.
_TABLES = {
    NAT_VM1: ("NAT VM1's subnets", ""),
    NAT_VM2: ("NAT VM2's subnets", "vRouter"),
    LPGS: ("the LPGs", "NAT VM1"),
}


def trace_text(traced: Trace, title: str) -> str:
    """`trace` for people: the hops of both legs, and why the flow dies if it does."""
    lines = [title, *_leg_lines("request", traced.request)]
    if traced.reply is not None:
        lines += _leg_lines("reply", traced.reply)
    verdict = f"{traced.disposition}: {traced.why}"
    return "\n".join([*lines, verdict if traced.disposition != Disposition.DELIVERED else f"=> {verdict}"])


def _leg_lines(name: str, leg: Leg) -> list[str]:
    lines = [f"  {name}"]
    for number, hop in enumerate(leg.hops, 1):
        lines += [f"         {rule}" for rule in hop.rules]
        lines.append(f"    {number}. {hop.at}: {hop.src} > {hop.dst}")
    if leg.reached is None:
        lines.append(f"    x. {leg.packet.src} > {leg.packet.dst}: {leg.why}")
    return lines


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
    lines = [f"<details><summary>{title}</summary>", "", _markdown_row(header), _markdown_row(["---"] * len(header))]
    lines += [_markdown_row(row) for row in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        lines += ["", f"and {len(rows) - _MOST_ROWS} more, which the same command without `--markdown` lists"]
    return "\n".join([*lines, "", "</details>"])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _subnet(plan: PodPlan, key: str) -> str:
    return next(subnet.cidr for subnet in plan.subnets if subnet.key == key)


def _some(addresses: tuple[str, ...]) -> str:
    if len(addresses) <= 3:
        return ", ".join(addresses) or "-"
    return f"{addresses[0]} to {addresses[-1]} ({len(addresses)})"
