"""`plan`: addresses, mappings, routes and the capacity left; as a picture with the way of a flow."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from nat_pod import limits
from nat_pod.commands.command import OK, Subparsers, add_json, add_names, add_parser, add_stack, print_json
from nat_pod.commands.plan_routed import neighbours_table, routed_dict, routed_facts, routed_tables
from nat_pod.commands.stack import load
from nat_pod.config.delivery import Delivery
from nat_pod.config.source_nat import SourceNat
from nat_pod.errors import NatPodError
from nat_pod.names import LPGS, NAT_VM1, NAT_VM2, servers_first
from nat_pod.pages import drawing, mermaid, routed_drawing
from nat_pod.pages.journey import Journey, first_flow, journey
from nat_pod.pages.zone import hosts_lines, names_of_pod, zone_file
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.text import count, folded, markdown_table, table


def add(commands: Subparsers) -> None:
    """The command's parser."""
    parser = add_parser(commands, "plan", "show addresses, mappings, routes and the capacity left", _run)
    add_stack(parser)
    parser.add_argument(
        "--flow",
        nargs=2,
        metavar=("FROM", "TO"),
        help="the flow to draw (default: the first); with --markdown or --svg",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown, with Mermaid pictures")
    form.add_argument("--svg", metavar="FILE", type=Path, help="draw the POD and the path of a flow into FILE")
    add_names(form, "all members")
    add_json(form)
    parser.set_defaults(wrong=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.flow and not (arguments.markdown or arguments.svg):
        arguments.wrong("argument --flow: needs a picture: add --markdown or --svg FILE")
    _, plan = load(arguments.stack)
    if arguments.json:
        print_json(plan_dict(plan))
    elif arguments.hosts_file:
        print(hosts_lines(names_of_pod(plan, arguments.stack)))
    elif arguments.zone_file is not None:
        print(zone_file(names_of_pod(plan, arguments.stack), arguments.zone_file))
    elif arguments.markdown:
        flow = _flow(plan, arguments.flow)
        pictures = [("Networks", mermaid.networks(plan, arguments.stack))]
        if flow is not None:
            pictures.append((f"From {flow.sender.member} to {flow.receiver.member}", mermaid.packets(flow)))
        print(plan_markdown(plan, arguments.stack, pictures))
    elif arguments.svg:
        _check_picture_file(arguments.svg)
        text = picture(plan, arguments.stack, _flow(plan, arguments.flow))
        try:
            arguments.svg.write_text(text, encoding="utf-8", errors="replace")  # a stack's name may be no UTF-8
        except OSError as error:
            raise NatPodError(f"{arguments.svg}: cannot be written: {error.strerror}") from None
        print(f"{arguments.svg}: written")
    else:
        print(plan_text(plan, arguments.stack))
    return OK


def _check_picture_file(path: Path) -> None:
    """Only a picture is written over: `--svg Pulumi.prod.yaml` would cost the address book.  Raises NatPodError."""
    if not path.is_file():  # a pipe, say /dev/stdout, would never end
        return
    try:
        with path.open("rb") as file:
            begins = file.read(200)
    except OSError:
        return  # writing it will say the same
    if begins and b"<svg" not in begins:
        raise NatPodError(f"{path}: is there and is not an SVG; give the name of a new file, e.g. --svg pod.svg")


def picture(plan: PodPlan, stack: str, flow: Journey | None) -> str:
    """The drawing of `plan --svg`."""
    match plan.delivery:
        case Delivery.PRIVATE_IPS:
            return drawing.draw(plan, stack, flow)
        case Delivery.ROUTES:
            return routed_drawing.draw(plan, stack, flow)
        case _ as never:
            assert_never(never)


def _flow(plan: PodPlan, names: Sequence[str] | None) -> Journey | None:
    """The flow that a picture shows; without one asked for, the first that is declared, if there is any."""
    names = names or first_flow(plan)
    if names is None:
        return None
    slots: dict[str, SlotPlan] = {slot.member: slot for slot in plan.slots}
    for name in names:
        if name not in slots:
            known = ", ".join(list(slots)[:6]) + (" ..." if len(slots) > 6 else "")
            raise NatPodError(f"--flow: {name}: is not a member of this POD ({known})")
    return journey(plan, slots[names[0]], slots[names[1]])


def plan_dict(plan: PodPlan) -> dict[str, object]:
    """The form of `plan --json`."""
    match plan.delivery:
        case Delivery.PRIVATE_IPS:
            return _every_pod(plan)
        case Delivery.ROUTES:
            return _every_pod(plan) | routed_dict(plan)
        case _ as never:
            assert_never(never)


def _every_pod(plan: PodPlan) -> dict[str, object]:
    return {
        "cidr": plan.cidr,
        "sourceNat": plan.source_nat,
        "primary": {vm.key: vm.vnics[0].primary for vm in plan.vms},
        "wayIn": {NAT_VM1: plan.way_in, NAT_VM2: plan.primary(NAT_VM2)},
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
                for key in plan.routes
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
        f"POD {stack}: {plan.cidr}, {_kind(plan)}, {len(plan.vms)} x {_shape(plan)}",
        *(f"  {name:7} {value}" for name, value in facts),
    ]
    for title, header, rows in tables:
        sections += ["", title, table(header, rows)]
    return "\n".join(sections)


def plan_markdown(plan: PodPlan, stack: str, pictures: Sequence[tuple[str, str]]) -> str:
    """`plan` for a document or a pull request.  pictures: a heading and Mermaid text each."""
    facts = [
        ("range", plan.cidr),
        _kind_fact(plan),
        ("NAT VMs", f"{len(plan.vms)} x {_shape(plan)}"),
        *_plan_facts(plan),
    ]
    parts = [f"## POD `{stack}`", "", markdown_table(["", ""], facts)]
    for heading, text in pictures:
        parts += ["", f"### {heading}", "", "```mermaid", text, "```"]
    for title, header, rows in _plan_tables(plan):
        if len(rows) <= _MOST_OPEN_ROWS:
            parts += ["", f"### {title}", "", markdown_table(header, rows)]
        else:
            parts += ["", folded(f"{title} ({len(rows)})", header, rows)]
    return "\n".join(parts)


_MOST_OPEN_ROWS = 12


def _shape(plan: PodPlan) -> str:
    return plan.shape if plan.ocpus is None else f"{plan.shape}, {count(plan.ocpus, 'OCPU')}, {plan.memory_gbs} GB"


def _kind(plan: PodPlan) -> str:
    return " ".join(_kind_fact(plan))


def _kind_fact(plan: PodPlan) -> tuple[str, str]:
    """What tells PODs apart at first sight."""
    match plan.delivery:
        case Delivery.PRIVATE_IPS:
            return ("source NAT", plan.source_nat)
        case Delivery.ROUTES:
            return ("delivery", plan.delivery)
        case _ as never:
            assert_never(never)


def _plan_facts(plan: PodPlan) -> list[tuple[str, str]]:
    match plan.delivery:
        case Delivery.PRIVATE_IPS:
            return _private_ips_facts(plan)
        case Delivery.ROUTES:
            return routed_facts(plan)
        case _ as never:
            assert_never(never)


def _private_ips_facts(plan: PodPlan) -> list[tuple[str, str]]:
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
            f"({limits.SLOTS_PER_PAIR} per VNIC pair; {capacity.vnics_used} of {capacity.vnics_limit} VNICs per VM)",
        ),
        ("flows", f"{limits.FLOWS_PER_ADDRESS} at a time to one server and port, {shared}"),
        ("rules", ", ".join(f"{vm.rules.rule_count()} on {vm.key}" for vm in plan.vms)),
        ("way in", f"ssh to NAT VM2 at {plan.primary(NAT_VM2)}"),
        ("", _way_in_to_nat_vm1(plan)),
    ]


def _way_in_to_nat_vm1(plan: PodPlan) -> str:
    """How it is reached, or whose the addresses are by which it was."""
    if plan.way_in is not None:
        return f"ssh to NAT VM1 at {plan.way_in}, through NAT VM2"
    owners = {host.nat_vm1: host.member for host in plan.hosts}
    first, *others = (f"{owners[vnic.primary]} has {vnic.primary}" for vnic in plan.vnics_on(NAT_VM1))
    more = f", {others[0]}" if len(others) == 1 else f", and {len(others)} more hosts the others" if others else ""
    return f"no ssh to NAT VM1: {first}{more}"


def _plan_tables(plan: PodPlan) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, header, rows."""
    match plan.delivery:
        case Delivery.PRIVATE_IPS:
            return _private_ips_tables(plan)
        case Delivery.ROUTES:
            return routed_tables(plan)
        case _ as never:
            assert_never(never)


def _private_ips_tables(plan: PodPlan) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    subnets = {subnet.key: subnet.cidr for subnet in plan.subnets}
    slots = sorted(plan.slots, key=lambda slot: servers_first(slot.member))
    return [
        (
            "VNICs (source/destination check off)",
            ["VNIC", "subnet", "primary", "secondary private IPs"],
            [
                [vnic.key, subnets[vnic.subnet], vnic.primary, _some(vnic.secondaries)]
                for vm in plan.vms
                for vnic in vm.vnics
            ],
        ),
        (
            "Mappings: customers reach a server at its address on NAT VM1, management a host at its address on NAT VM2",
            ["member", "real address", "on NAT VM1", "on NAT VM2"],
            [[slot.member, slot.real, slot.nat_vm1, slot.nat_vm2] for slot in slots],
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
        neighbours_table(plan),
    ]


_TABLES = {
    NAT_VM1: ("NAT VM1's subnets", ""),
    NAT_VM2: ("NAT VM2's subnets", "vRouter"),
    LPGS: ("the LPGs", "NAT VM1"),
}


def _some(addresses: tuple[str, ...]) -> str:
    if len(addresses) <= 3:
        return ", ".join(addresses) or "-"
    return f"{addresses[0]} to {addresses[-1]} ({len(addresses)})"
