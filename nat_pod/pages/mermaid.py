"""`plan --markdown`: the POD and the way of a flow as Mermaid, which GitHub draws from the text.

Identifiers are numbers, never names: a host may be called `end`, which is a keyword of Mermaid's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_never

from nat_pod.config.delivery import Delivery
from nat_pod.names import MANAGEMENT, NAT_VM1, NAT_VM2, SIDES, VROUTER, Role, natural
from nat_pod.pages.journey import Journey, Machine
from nat_pod.plan.model import PodPlan, VnicPlan
from nat_pod.text import count

_MOST_HOSTS, _MOST_MEMBERS, _MOST_VNICS = 20, 8, 4
_IDS: dict[Machine, str] = {NAT_VM1: "vm1", NAT_VM2: "vm2"}


def networks(plan: PodPlan, stack: str) -> str:
    """A flowchart: who is connected to whom, and the addresses of each."""
    lines = ["flowchart LR"]
    for number, (customer, cidrs) in enumerate(plan.customer_cidrs.items()):
        lines += _network(f"c{number}", customer, cidrs, f"h{number}", _members(plan, customer))
    lines.append(f"  subgraph pod[{_label(_pod(plan, stack))}]")
    for role in plan.roles:
        lines.append(f"    {_id(role)}[{_label([role.prose, *_machines(plan, role)])}]")
    lines.append("  end")
    subnet = next(subnet.cidr for subnet in plan.subnets if subnet.key == VROUTER)
    lines.append(f"  vr([{_label(['vRouter', plan.vrouter_ip, f'in {subnet}'])}])")
    lines += _network("m", MANAGEMENT, plan.management_cidrs, "s", _members(plan, MANAGEMENT))
    lines += [f"  h{number} <-- LPG --> {_id(plan.gateways[name])}" for number, name in enumerate(plan.customer_cidrs)]
    lines += [f"  {_id(role)} <--> vm2" for role in plan.gateway_roles]
    lines += ["  vm2 <--> vr", "  vr <--> s"]
    return "\n".join(lines)


def _id(role: Role) -> str:
    return f"{_IDS[role.side]}{f'g{role.number}' if role.number > 1 else ''}"


def _pod(plan: PodPlan, stack: str) -> list[str]:
    match plan.delivery:
        case Delivery.PRIVATE_IPS:
            return [f"POD {stack}: {plan.cidr}"]
        case Delivery.ROUTES:
            return [f"POD {stack}: aliases of {plan.cidr}", f"VCN {plan.vcn_cidr}"]
        case _ as never:
            assert_never(never)


def _machines(plan: PodPlan, role: Role) -> Iterator[str]:
    """What a role is made of: the VNICs of its NAT VM, or its next hop and both NAT VMs."""
    match plan.delivery:
        case Delivery.PRIVATE_IPS:
            yield from _vnics(plan, plan.vnics_on(role.side))
        case Delivery.ROUTES:
            yield "translates hosts" if role.side is NAT_VM1 else "translates servers"
            balancer = plan.balancer_of(role)
            backups = set()
            if balancer is not None:
                backups = {backend.vm for backend in balancer.backends if backend.is_backup}
                yield f"balancer {balancer.address}"
            for vm in plan.vms_of(role):
                yield f"{vm.key} {vm.vnics[0].primary}{', standby' if vm.key in backups else ''}"
        case _ as never:
            assert_never(never)


def packets(flow: Journey) -> str:
    """A sequence diagram: the packet of a flow on each leg, request and reply."""
    ends = [flow.sender, flow.receiver]
    if flow.sender.member.is_server:
        ends.reverse()
    ids = {**_IDS, ends[0].member: "a", ends[1].member: "b"}
    lines = ["sequenceDiagram", "  autonumber"]
    lines.append(f"  participant a as {ends[0].member}<br>{ends[0].real}")
    lines += [f"  participant {_IDS[side]} as {side.prose}" for side in SIDES]
    lines.append(f"  participant b as {ends[1].member}<br>{ends[1].real}")
    for stretch in flow.stretches:
        arrow = "-->>" if stretch.reply else "->>"
        lines.append(f"  {ids[stretch.start]}{arrow}{ids[stretch.end]}: {stretch.src} to {stretch.dst}")
    if flow.dead:
        lines.append(f"  Note over a,b: {_plain(flow.dead)}")
    return "\n".join(lines)


def _network(key: str, name: str, cidrs: Sequence[str], node: str, members: Sequence[str]) -> list[str]:
    return [
        f"  subgraph {key}[{_label([f'{name}: {cidrs[0]}', *cidrs[1:]])}]",
        f"    {node}[{_label(members)}]",
        "  end",
    ]


def _members(plan: PodPlan, realm: str) -> list[str]:
    slots = sorted((slot for slot in plan.slots if slot.member.realm == realm), key=lambda slot: natural(slot.member))
    lines = [f"{slot.member.short} {slot.real}" for slot in slots]
    if realm != MANAGEMENT and len(plan.slots) > _MOST_HOSTS:
        return [count(len(lines), "host")]
    return _cut(lines, _MOST_MEMBERS) or ["nobody yet"]


def _vnics(plan: PodPlan, vnics: Sequence[VnicPlan]) -> Iterator[str]:
    subnets = {subnet.key: subnet.cidr for subnet in plan.subnets}
    yield from _cut([f"VNIC {vnic.index}: {subnets[vnic.subnet]}" for vnic in vnics], _MOST_VNICS)


def _cut(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[: most - 1], f"and {len(lines) - most + 1} more"]


def _label(lines: Sequence[str]) -> str:
    """A quoted label of several lines."""
    return f'"{"<br>".join(_plain(line) for line in lines)}"'


def _plain(text: str) -> str:
    """Text without the characters that mean something to Mermaid or to HTML, as its entities."""
    return "".join(
        character if character.isalnum() or character in " .:/-,_()'" else f"#{ord(character)};" for character in text
    )
