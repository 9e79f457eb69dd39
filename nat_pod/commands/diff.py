"""`diff`: the flows gained, lost and renumbered since a git revision."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from nat_pod.commands.command import FINDINGS, OK, Subparsers, add_json, add_parser, add_stack, print_json
from nat_pod.commands.stack import load
from nat_pod.config.stack_file import file_at, read_stack_at
from nat_pod.errors import ConfigError
from nat_pod.names import NAT_VM1, NAT_VM2, natural
from nat_pod.plan import guest
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.text import count, folded, table
from nat_pod.trace.diff import Delivery, Difference, FlowChange, Pair, SlotChange, compare, with_user_data


def add(commands: Subparsers) -> None:
    """The command's parser."""
    parser = add_parser(commands, "diff", "show the flows gained, lost and renumbered since a git revision", _run)
    add_stack(parser)
    parser.add_argument(
        "--base", metavar="REV", required=True, help="the git revision to compare with, e.g. main or HEAD~1"
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown, for a pull request")
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    base = _plan_at(Path.cwd(), arguments.stack, arguments.base)
    _, plan = load(arguments.stack)
    difference = compare(base, plan)
    if arguments.json:
        print_json(difference_dict(difference))
    elif arguments.markdown:
        print(difference_markdown(difference, arguments.stack, arguments.base))
    else:
        print(difference_text(difference, arguments.stack, arguments.base))
    return OK if difference.harmless else FINDINGS


def _plan_at(directory: Path, name: str, revision: str) -> PodPlan | None:
    """The plan of the stack file as it was at a git revision, with the bootstrap of then."""
    stack = read_stack_at(directory, name, revision)
    if stack is None:
        return None
    try:
        plan = plan_pod(stack.checked(), name)
    except ConfigError as error:
        # Without the commands: they would change the file of today.
        problems = [replace(problem, command="") for problem in error.problems]
        raise ConfigError(f"{stack.path.name} at {revision}", problems) from None
    checkout = guest.SOURCES.parent
    if directory.resolve() != checkout:
        return plan  # nat-pod is installed elsewhere: its bootstrap has no history here
    user_data = file_at(directory, guest.ARTEFACT.relative_to(checkout).as_posix(), revision)
    return plan if user_data is None else with_user_data(plan, user_data.strip())


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
        parts += ["", folded(f"{title} ({len(rows)})", header, rows)]
    return "\n".join(parts)


def _tables(difference: Difference) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """The lists that are not empty: title, header, rows."""
    tables: list[tuple[str, Sequence[str], list[list[str]]]] = []
    for name, changes in _flow_lists(difference):
        flows = sorted(changes, key=lambda flow: (natural(flow.sender), natural(flow.receiver)))
        if name == "rerouted":
            tables.append(("Rerouted flows", ("from", "to", "what changes"), [_rerouted_row(flow) for flow in flows]))
        else:
            tables.append((f"{name.capitalize()} flows", _FLOW_HEADER, [_flow_row(flow) for flow in flows]))
    for name, moved in _slot_lists(difference):
        slots = sorted(moved, key=lambda slot: natural(slot.member))
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
    ending = f"{count(difference.ending, 'flow')} {'ends' if difference.ending == 1 else 'end'}"
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


def _way_dict(way: Delivery | None) -> dict[str, object] | None:
    if way is None:
        return None
    return {
        "address": way.address,
        "seen": way.seen,
        "hops": [{"at": hop.at, "src": hop.src, "dst": hop.dst} for hop in way.hops],
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
    before, after = (
        [(hop.at, hop.src, hop.dst) for hop in way.hops] if way is not None else [] for way in (flow.before, flow.after)
    )
    was, now = next(pair for pair in zip_longest(before, after, fillvalue=("nowhere", "-", "-")) if pair[0] != pair[1])
    there = "" if was[0] == now[0] else f"{now[0]}: "
    return [flow.sender, flow.receiver, f"{was[0]}: {was[1]} > {was[2]} becomes {there}{now[1]} > {now[2]}"]
