"""`diff`: what a change of the stack file does to flows, since a git revision."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import assert_never

from nat_pod.commands.command import FINDINGS, OK, Subparsers, add_json, add_parser, add_stack, print_json
from nat_pod.config.revisions import base_of, file_at
from nat_pod.config.services import EVERYTHING
from nat_pod.config.settings import Value, settings
from nat_pod.config.stack_file import Stack, read_stack, read_stack_at
from nat_pod.errors import ConfigError, shorten, visible
from nat_pod.names import NAT_VM1, NAT_VM2, MemberName, natural
from nat_pod.plan.bootstrap import ARTEFACT, SOURCES
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.text import count, folded, some, table, wrapped, wrapped_lines
from nat_pod.trace.diff import (
    Difference,
    FlowChange,
    MemberChange,
    Pair,
    SlotChange,
    Way,
    by_member,
    compare,
    with_user_data,
)
from nat_pod.trace.effects import Change, Effect, Outcome, account


@dataclass(frozen=True, slots=True)
class Base:
    """What a stack is compared with: a git revision, and the branch that it is of when nobody named it."""

    revision: str
    branch: str | None = None

    def shown(self, quote: str = "") -> str:
        """`808e9f7 (the last commit shared with main)`."""
        of = "" if self.branch is None else f" (the last commit shared with {self.branch})"
        return f"{quote}{self.revision}{quote}{of}"


def add(commands: Subparsers) -> None:
    """The command's parser."""
    parser = add_parser(commands, "diff", "show what the changes since a git revision do to flows", _run)
    add_stack(parser)
    parser.add_argument(
        "--base",
        metavar="REV",
        help="the git revision to compare with, e.g. main (default: where this branch left the default branch)",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown, for a pull request")
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    directory = Path.cwd()
    base = _base(directory, arguments.base)
    then = read_stack_at(directory, arguments.stack, base.revision)
    old = None if then is None else _plan_of(then, directory, base.revision)
    now = read_stack(directory, arguments.stack)
    new = _checked(now)
    before = {} if then is None else settings(then.config, then.beside)
    outcome = account(compare(old, new), old, new, before, settings(now.config, now.beside))
    if then is not None and not outcome.changes:
        text = file_at(directory, now.path.name, base.revision) or ""
        outcome = replace(outcome, other_text=text.splitlines() != now.text.splitlines())
    if arguments.json:
        print_json(outcome_dict(outcome))
    elif arguments.markdown:
        print(outcome_markdown(outcome, arguments.stack, base))
    else:
        print(outcome_text(outcome, arguments.stack, base))
    return OK if outcome.harmless else FINDINGS


def _base(directory: Path, revision: str | None) -> Base:
    if revision is not None:
        return Base(revision)
    return Base(*base_of(directory))


def _checked(stack: Stack) -> PodPlan:
    config = stack.checked()
    try:
        plan = plan_pod(config, stack.name)
    except ConfigError as error:
        raise ConfigError(error.source, stack.located(error.problems)) from None
    return plan


def _plan_of(stack: Stack, directory: Path, revision: str) -> PodPlan:
    """The plan of the stack file as it was at a git revision, with the bootstrap of then."""
    try:
        plan = plan_pod(stack.checked(), stack.name)
    except ConfigError as error:
        # Without the commands: they would change the file of today.
        problems = [replace(problem, command="") for problem in error.problems]
        raise ConfigError(f"{stack.path.name} at {revision}", problems) from None
    checkout = SOURCES.parent
    if directory.resolve() != checkout:
        return plan  # nat-pod is installed elsewhere: its bootstrap has no history here
    user_data = file_at(directory, ARTEFACT.relative_to(checkout).as_posix(), revision)
    return plan if user_data is None else with_user_data(plan, user_data.strip())


# --- for programs ----------------------------------------------------------------------------------------------------


def outcome_dict(outcome: Outcome) -> dict[str, object]:
    """The form of `diff --json`."""
    difference = outcome.difference
    before, after = difference.capacity
    return {
        "worst": outcome.worst,
        "changes": [_change_dict(change) for change in outcome.changes],
        **{name: [_flow_dict(flow) for flow in flows] for name, flows in _flow_lists(difference)},
        "members": {
            name: [_member_dict(group) for group in by_member(difference, flows)]
            for name, flows in _flow_lists(difference)
        },
        "renamed": dict(difference.renamed),
        "policy": {"before": difference.policy[0], "after": difference.policy[1]},
        "capacity": {
            name: None if value is None else {"slots": value.slots, "used": value.used, "free": value.free}
            for name, value in (("before", before), ("after", after))
        },
        "slots": {
            name: {slot.member: {NAT_VM1: slot.nat_vm1, NAT_VM2: slot.nat_vm2} for slot in slots}
            for name, slots in _slot_lists(difference)
        },
        "routes": {
            realm: {"add": list(added), "takeOut": list(removed)}
            for realm, (added, removed) in difference.routes.items()
        },
        "vmsReplaced": outcome.replaces_vms,
        "flowsThatEnd": len(outcome.ending),
        "flowsNotOpenedAnyMore": len(outcome.difference.outlived),
        "flowsAtRisk": len(outcome.at_risk),
        "notDelivered": [list(pair) for pair in difference.not_delivered],
        "notDeclared": [list(pair) for pair in difference.not_declared],
    }


def _change_dict(change: Change) -> dict[str, object]:
    return {
        "path": change.path,
        "before": change.old,
        "after": change.new,
        "effect": change.effect,
        "flows": len(change.judgement.flows),
        "until": change.judgement.until or None,
        "why": change.judgement.why,
    }


def _flow_dict(flow: FlowChange) -> dict[str, object]:
    return {
        "from": flow.sender,
        "to": flow.receiver,
        "before": _way_dict(flow.before),
        "after": _way_dict(flow.after),
    }


def _member_dict(group: MemberChange) -> dict[str, object]:
    return {
        "member": group.member,
        "with": list(group.others),
        "flows": len(group.flows),
        "called": [{"before": was, "after": now} for was, now in group.called],
        "seen": [{"before": was, "after": now} for was, now in group.seen],
    }


def _way_dict(way: Way | None) -> dict[str, object] | None:
    if way is None:
        return None
    return {
        "address": way.address,
        "seen": way.seen,
        "hops": [{"at": hop.at, "src": hop.src, "dst": hop.dst} for hop in way.hops],
        **({} if way.services == EVERYTHING else {"allow": list(way.services.texts)}),
    }


# --- for people ------------------------------------------------------------------------------------------------------


def outcome_text(outcome: Outcome, stack: str, base: Base) -> str:
    """`diff` for a terminal."""
    lines = [f"POD {stack} since {base.shown()}", wrapped(headline(outcome))]
    for words, why in _settings(outcome):
        lines += [wrapped(words), *wrapped_lines(why, 80, "    ", "    ")]
    lines += [wrapped(line) for line in _summary(outcome.difference)]
    for title, header, rows in _tables(outcome.difference):
        lines += ["", title, table(header, rows)]
    return "\n".join(lines)


def outcome_markdown(outcome: Outcome, stack: str, base: Base) -> str:
    """`diff` for a pull request: what a reviewer must know first, the lists folded."""
    lines = [f"### POD `{stack}` since {base.shown('`')}", "", f"**{headline(outcome)}**", ""]
    lines += [f"- {words}. {why[0].upper()}{why[1:]}" for words, why in _settings(outcome, quote="`")]
    lines += [f"- {line}" for line in _summary(outcome.difference)]
    for title, header, rows in _tables(outcome.difference):
        lines += ["", folded(title, header, rows)]
    return "\n".join(lines)


def headline(outcome: Outcome) -> str:
    """The worst that can happen, in one line."""
    all_flows = len(outcome.difference.before)
    narrowed = outcome.ending & {(flow.sender, flow.receiver) for flow in outcome.difference.narrowed}
    ending, at_risk = len(outcome.ending - narrowed), len(outcome.at_risk)
    parts = []
    if ending:
        parts.append(f"{ending} of {count(all_flows, 'flow')} {'ends' if ending == 1 else 'end'}")
    if narrowed:
        lose = f"{len(narrowed)} of {count(all_flows, 'flow')} {'loses' if len(narrowed) == 1 else 'lose'}"
        parts.append(f"{lose} protocols or ports, and open connections to these end")
    if outlived := len(outcome.difference.outlived):
        lost = f"{outlived} of {count(all_flows, 'flow')} {'is' if outlived == 1 else 'are'}"
        parts.append(f"{lost} no longer allowed to open, but open connections go on")
    if at_risk:
        untils = dict.fromkeys(c.judgement.until for c in outcome.changes if c.effect is Effect.AT_RISK)
        number = f"{at_risk} more" if ending else f"{at_risk} of {count(all_flows, 'flow')}"
        parts.append(f"{number} {'is' if at_risk == 1 else 'are'} at risk {', and '.join(untils)}")
    if any(change.effect is Effect.REFUSED for change in outcome.changes):
        parts.append("`pulumi up` is refused")
    in_turn = any(change.effect is Effect.IN_TURN for change in outcome.changes)
    unknown = sum(1 for change in outcome.changes if change.effect is Effect.UNKNOWN)
    if unknown:
        parts.append(f"the effect of {count(unknown, 'setting')} is not known")
    if outcome.difference.not_delivered or outcome.difference.not_declared:
        parts.append("nat-pod compiled wrong rules, which is a bug: do not deploy this")
    if in_turn and not outcome.replaces_vms:
        parts.append("the NAT VMs are replaced in turn")
    if not parts:
        if outcome.new_pod:
            return "a new POD: no flow ends"
        form = "; the stack file differs only in comments, order or spelling" if outcome.other_text else ""
        return f"no flow ends, and no VM is replaced{form or ('' if outcome.changes else '; no setting differs')}"
    if outcome.replaces_vms:
        parts.append("all NAT VMs are replaced")
    elif (ending or narrowed or at_risk) and not in_turn:
        parts.append("no VM is replaced")
    return f"risk: {'; '.join(parts)}"


def _settings(outcome: Outcome, quote: str = "") -> Iterator[tuple[str, str]]:
    """Each setting that differs, and what that does.  Members' are in the lists; members in no list come last."""
    for change in outcome.changes:
        if change.member is None:
            yield f"{_quoted(change.path, quote)}{_from_to(change, quote)}", _effect(change)
    quiet = {change.member for change in outcome.changes if change.member is not None} - _listed(outcome)
    if quiet:
        yield f"settings of {_some(sorted(quiet, key=natural))}", "no effect on flows"


def _listed(outcome: Outcome) -> set[MemberName]:
    """The members of whom the lists say something."""
    difference = outcome.difference
    flows = [flow for _, flows in _flow_lists(difference) for flow in flows]
    slots = [slot for _, slots in _slot_lists(difference) for slot in slots]
    ends = {end for flow in flows for end in (flow.sender, flow.receiver)}
    return ends | {slot.member for slot in slots}


def _from_to(change: Change, quote: str) -> str:
    if change.hidden:
        return ""
    old, new = change.old, change.new
    if old is not None and new is not None:
        return f": {_value(old, quote)} -> {_value(new, quote)}"
    if new is not None:
        return f": {_value(new, quote)} is new"
    return "" if old is None else f": {_value(old, quote)} is taken out"


def _value(value: Value, quote: str) -> str:
    return _quoted(shorten(value).strip('"') if isinstance(value, str) else f"[{', '.join(value)}]", quote)


def _quoted(text: str, quote: str) -> str:
    """Text from a stack file, escaped so that it is shown as plain text.

    quote: a backtick for a comment on GitHub, where HTML, links and @names between two backticks are plain text.
    """
    text = visible(text)
    return f"{quote}{text.replace(quote, chr(39))}{quote}" if quote else text


def _effect(change: Change) -> str:
    judgement = change.judgement
    flows = count(len(judgement.flows), "flow")
    one = len(judgement.flows) == 1
    match judgement.effect:
        case Effect.REPLACES | Effect.IN_TURN:
            return judgement.why
        case Effect.ENDS:
            return f"{flows} {'ends' if one else 'end'}: {judgement.why}"
        case Effect.AT_RISK:
            return f"{flows} {'is' if one else 'are'} at risk {judgement.until}: {judgement.why}"
        case Effect.REFUSED:
            return f"refused: {judgement.why}"
        case Effect.UNKNOWN:
            return f"effect not known: {judgement.why}"
        case Effect.NONE:
            return f"no flow ends: {judgement.why}"
        case _ as never:
            assert_never(never)


def _summary(difference: Difference) -> list[str]:
    """The lines that everybody reads."""
    lines = _mistakes("declared, and not delivered", difference.not_delivered)
    lines += _mistakes("delivered, and not declared", difference.not_declared)
    if difference.renamed:
        lines.append(f"renamed: {some([f'{old} is {new} now' for old, new in difference.renamed.items()], 3)}")
    # Without a policy there is nothing to say of what flows may begin with.
    lists = [(name, flows) for name, flows in _flow_lists(difference) if flows or name not in ("narrowed", "widened")]
    counts = [f"{len(flows)} {name}" for name, flows in lists]
    lines.append(f"flows: {', '.join(counts)} (of {len(difference.before)})")
    policy_before, policy = difference.policy
    if policy_before is None:
        lines.append(f"a new POD, source NAT {policy}")
    for realm, (added, removed) in difference.routes.items():
        if added:
            lines.append(f"routes: {realm} must also route {', '.join(added)} to the POD")
        if removed:
            lines.append(f"routes: {realm} need no longer route {', '.join(removed)} to the POD")
    before, after = difference.capacity
    was = "" if before is None or before == after else f", before {before.used} of {before.slots}"
    lines.append(f"slots: {after.used} of {after.slots} used, {after.free} free{was}")
    return lines


def _mistakes(words: str, pairs: Sequence[Pair]) -> list[str]:
    """A plan whose rules do not do what the stack file says."""
    if not pairs:
        return []
    return [
        f"BUG IN NAT-POD'S RULES: {words}: {some([f'{one} to {other}' for one, other in pairs], 3)}; please report it"
    ]


def _tables(difference: Difference) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """The lists that are not empty: title, header, rows."""
    tables: list[tuple[str, Sequence[str], list[list[str]]]] = []
    for name, flows in _flow_lists(difference):
        groups = sorted(by_member(difference, flows), key=lambda group: natural(group.member))
        title = f"{name.capitalize()}: {count(len(flows), 'flow')} of {count(len(groups), 'member')}"
        if name in ("narrowed", "widened"):
            tables.append((title, _REROUTED_HEADER, [_services_row(group) for group in groups]))
        elif name == "rerouted":
            tables.append((title, _REROUTED_HEADER, [_rerouted_row(group) for group in groups]))
        else:
            tables.append((title, _FLOW_HEADER, [_flow_row(group) for group in groups]))
    for name, moved in _slot_lists(difference):
        slots = sorted(moved, key=lambda slot: natural(slot.member))
        header, rows = _SLOT_HEADER, [[slot.member, slot.nat_vm1, slot.nat_vm2] for slot in slots]
        if all(slot.nat_vm1 == slot.nat_vm2 for slot in slots):  # a routed POD's: one alias each
            header, rows = _ALIAS_HEADER, [[slot.member, slot.nat_vm1] for slot in slots]
        tables.append((f"{_SLOT_TITLES[name]} ({len(slots)})", header, rows))
    return [entry for entry in tables if entry[2]]


_FLOW_HEADER = ("member", "with", "flows", "others call it at", "others see it as")
_REROUTED_HEADER = ("member", "with", "flows", "what changes")
_SLOT_HEADER: tuple[str, ...] = ("member", "on NAT VM1", "on NAT VM2")
_ALIAS_HEADER = ("member", "alias")


_SLOT_TITLES = {
    "taken": "Slots taken",
    "returned": "Slots returned to their members",
    "released": "Slots released, and kept back",
    "freed": "Slots free for others again",
}


def _flow_lists(difference: Difference) -> list[tuple[str, tuple[FlowChange, ...]]]:
    return [
        ("lost", difference.lost),
        ("renumbered", difference.renumbered),
        ("gained", difference.gained),
        ("rerouted", difference.rerouted),
        ("narrowed", difference.narrowed),
        ("widened", difference.widened),
    ]


def _slot_lists(difference: Difference) -> list[tuple[str, tuple[SlotChange, ...]]]:
    return [
        ("taken", difference.taken),
        ("returned", difference.returned),
        ("released", difference.released),
        ("freed", difference.freed),
    ]


def _flow_row(group: MemberChange) -> list[str]:
    return [
        group.member,
        _some(group.others),
        str(len(group.flows)),
        _steps(group.called),
        _steps(group.seen),
    ]


def _steps(steps: Sequence[tuple[str | None, str | None]]) -> str:
    """Addresses before and after: `198.18.0.130 -> 198.18.0.133`; "-" where no such flow is concerned."""
    texts = [" -> ".join(dict.fromkeys(address for address in step if address is not None)) for step in steps]
    return some(texts, 2) or "-"


def _some(members: Sequence[MemberName]) -> str:
    """Two of them by name, more by number."""
    if len(members) <= 2:
        return ", ".join(members)
    if all(member.is_server for member in members):
        return f"{len(members)} servers"
    realms = {member.realm for member in members}
    of = f"of {min(realms)}" if len(realms) == 1 else f"of {len(realms)} networks"
    return f"{len(members)} {'hosts' if not any(member.is_server for member in members) else 'members'} {of}"


def _services_row(group: MemberChange) -> list[str]:
    """What the first flow may begin with before and after, and whether others differ from it."""
    said = dict.fromkeys(_passes(flow) for flow in group.flows)
    more = f" (and {len(said) - 1} more)" if len(said) > 1 else ""
    return [group.member, _some(group.others), str(len(group.flows)), f"{next(iter(said))}{more}"]


def _passes(flow: FlowChange) -> str:
    before, after = ("nothing" if way is None else str(way.services) for way in (flow.before, flow.after))
    return f"{before} -> {after}"


def _rerouted_row(group: MemberChange) -> list[str]:
    """The first hop that is another one; of a member with more such flows, the first flow's."""
    flow = group.flows[0]
    before, after = (
        [(hop.at, hop.src, hop.dst) for hop in way.hops] if way is not None else [] for way in (flow.before, flow.after)
    )
    was, now = next(pair for pair in zip_longest(before, after, fillvalue=("nowhere", "-", "-")) if pair[0] != pair[1])
    there = "" if was[0] == now[0] else f"{now[0]}: "
    what = f"{was[0]}: {was[1]} > {was[2]} becomes {there}{now[1]} > {now[2]}"
    return [group.member, _some(group.others), str(len(group.flows)), what]
