"""Plans and traces as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nat_pod import limits
from nat_pod.config import MANAGEMENT, MASQUERADE
from nat_pod.plan import NAT_VM1, NAT_VM2, SIDES, PodPlan
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
                side: [
                    {
                        "destination": rule.destination,
                        "via": f"LPG {rule.customer}" if rule.customer else rule.private_ip,
                    }
                    for rule in plan.routes[side]
                ]
                for side in SIDES
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
            ["side", "destination", "target"],
            [
                [side, rule.destination, f"LPG of {rule.customer}" if rule.customer else f"vRouter {rule.private_ip}"]
                for side in SIDES
                for rule in plan.routes[side]
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


def _subnet(plan: PodPlan, key: str) -> str:
    return next(subnet.cidr for subnet in plan.subnets if subnet.key == key)


def _some(addresses: tuple[str, ...]) -> str:
    if len(addresses) <= 3:
        return ", ".join(addresses) or "-"
    return f"{addresses[0]} to {addresses[-1]} ({len(addresses)})"
