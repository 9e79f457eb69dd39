"""Step 6: what could not be read, what belongs to other programs, and each rule that no flow needed, with reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nat_pod.handbuilt.flows import SavedFlows
from nat_pod.handbuilt.numeric import Range, addresses, cidr, dotted, in_pod_space, is_many, is_single, within
from nat_pod.handbuilt.remarks import Remark, RemarkKind
from nat_pod.handbuilt.requests import Packets, SavedRequests
from nat_pod.handbuilt.saved_table import Action, SavedRule
from nat_pod.handbuilt.saved_vm import SavedVm, SavedVms
from nat_pod.handbuilt.saved_walk import POSTROUTING, TRANSLATING, owner_of_chain, owner_of_rule
from nat_pod.limits import POD_SPACE
from nat_pod.names import Side
from nat_pod.text import count

_OF_SOURCES = (Action.SNAT, Action.MASQUERADE, Action.NETMAP)
_OF_DESTINATIONS = (Action.DNAT, Action.NETMAP)


def judge_rules(vms: SavedVms, found: SavedRequests, flows: SavedFlows, listed: frozenset[int]) -> list[Remark]:
    """Remarks about both tables.  listed: the id() of each rule that already has a remark."""
    remarks: list[Remark] = []
    for side, vm in vms.items():
        of_table = [*_unread(vm), *_of_others(vm), *_conditions(vm)]
        known = listed | flows.needed | {id(remark.at) for remark in of_table}
        arrivals = flows.arrivals[side]
        before = [
            remark
            for rule in vm.rules
            if rule.action in _OF_DESTINATIONS
            and id(rule) not in known
            and (remark := _unneeded_mapping(vm, rule, found, flows.lost, arrivals)) is not None
        ]
        known |= {id(remark.at) for remark in before}
        remarks += [*of_table, *before, *_unneeded_sources(vm, flows, known)]
    return remarks


# --- what is not followed --------------------------------------------------------------------------------------------


def _unread(vm: SavedVm) -> Iterator[Remark]:
    for unread in vm.table.unread:
        yield Remark(kind=RemarkKind.UNREAD, vm=vm.side, at=unread, why=unread.why)
    for name, number in sorted(vm.table.other_tables.items()):
        why = f"table {name}: {count(number, 'rule')}, not read; nat-pod brings its own guard"
        yield Remark(kind=RemarkKind.OTHERS, vm=vm.side, why=why)


def _of_others(vm: SavedVm) -> Iterator[Remark]:
    """Chains and rules of other programs, and those for the NAT VM's own packets."""
    for chain, rules in vm.table.chains.items():
        owner = owner_of_chain(chain)
        if owner and rules:
            why = f"chain {chain} belongs to {owner}: {count(len(rules), 'rule')}, not followed"
            yield Remark(kind=RemarkKind.OTHERS, vm=vm.side, why=why)
        for rule in () if owner else rules:
            theirs = owner_of_rule(rule)
            if chain in ("INPUT", "OUTPUT"):
                if not theirs:
                    why = f"{chain} of the nat table is for the NAT VM's own packets"
                    yield Remark(kind=RemarkKind.UNMET, vm=vm.side, at=rule, why=why)
            elif theirs and rule.action in TRANSLATING:
                why = f"belongs to {theirs}, judging by its interface"
                yield Remark(kind=RemarkKind.OTHERS, vm=vm.side, at=rule, why=why)


def _bounds_flows(rule: SavedRule) -> bool:
    """Whether it leaves packets untranslated where too many flows are open, as nat-pod's own rules do."""
    return rule.action is Action.ACCEPT and ("-m connlimit" in rule.narrow or "-m recent" in rule.narrow)


def _conditions(vm: SavedVm) -> Iterator[Remark]:
    """Rules with conditions that no mapping has."""
    bounds = [rule for rule in vm.rules if _bounds_flows(rule)]
    if bounds:
        why = f"{count(len(bounds), 'rule')} that bound how many flows are open, not read; nat-pod brings its own bound"
        yield Remark(kind=RemarkKind.OTHERS, vm=vm.side, why=why)
    for rule in vm.rules:
        if _bounds_flows(rule):
            continue
        if rule.narrow and rule.action in _OF_DESTINATIONS:
            why = f"applies to `{rule.narrow}` only; a mapping is for all traffic of an address"
            yield Remark(kind=RemarkKind.PARTIAL, vm=vm.side, at=rule, why=why)
        elif rule.narrow and rule.action is not None:
            why = f"`{rule.narrow}` is a condition that import does not evaluate"
            yield Remark(kind=RemarkKind.UNREAD, vm=vm.side, at=rule, why=why)


# --- mappings that no flow needed ------------------------------------------------------------------------------------


def _unneeded_mapping(
    vm: SavedVm, rule: SavedRule, found: SavedRequests, lost: Mapping[int, str], arrivals: Mapping[int, set[int]]
) -> Remark | None:
    if id(rule) in lost:
        return Remark(kind=RemarkKind.DEAD, vm=vm.side, at=rule, why=lost[id(rule)])
    ways = found.candidates[vm.side].of(rule)
    if not ways and rule.action is Action.NETMAP:
        return None  # of POSTROUTING
    if not ways:
        return Remark(kind=RemarkKind.UNMET, vm=vm.side, at=rule, why="nothing leads to this rule")
    packets = [packet for way in ways for packet in _tried(vm, way, found.unique, arrivals)]
    winners = [vm.walk.prerouting(*packet) for packet in packets]
    if winners and not any(winner is rule for winner in winners):
        return _hidden_by(vm.side, rule, winners[0])
    return _without_packets(vm.side, rule, ways[0], arrivals)


def _tried(
    vm: SavedVm, way: Packets, unique: tuple[int, ...], arrivals: Mapping[int, set[int]]
) -> Iterator[tuple[int, int]]:
    """Packets that a rule may be for: those of callers, and those that the other NAT VM really sends."""
    for destination in addresses(way.destinations, unique):
        for source in addresses(way.sources, vm.reals):
            yield source, destination
        if not is_single(way.sources):
            for source in arrivals.get(destination, ()):
                if way.sources[0] <= source <= way.sources[1]:
                    yield source, destination


def _hidden_by(vm: Side, rule: SavedRule, winner: SavedRule | None) -> Remark:
    if winner is None:
        kind, why = RemarkKind.SHADOWED, "is never reached: a RETURN or the end of a goto comes before it"
    elif (winner.action, winner.to) == (rule.action, rule.to):
        kind, why = RemarkKind.DUPLICATE, f"line {winner.line} does the same before it"
    else:
        kind = RemarkKind.SHADOWED
        why = f"is never reached: line {winner.line} takes its packets: {winner.text}"
    return Remark(kind=kind, vm=vm, at=rule, why=why)


def _without_packets(vm: Side, rule: SavedRule, way: Packets, arrivals: Mapping[int, set[int]]) -> Remark:
    """A rule that would translate, if there were packets for it."""
    other, destination = vm.other.prose, way.destinations[0]
    if rule.action is Action.NETMAP:
        kind, why = RemarkKind.UNMET, "no flow of the POD needs it"
    elif not in_pod_space(destination):
        kind = RemarkKind.UNKNOWN_NETWORK
        why = f"{dotted(destination)} is not one of a POD's unique addresses, which are in {POD_SPACE}"
    elif rule.to is not None and in_pod_space(rule.to[0]):
        who = "anybody" if is_many(way.sources) else cidr(way.sources)
        kind, why = RemarkKind.WIDE, f"admits {who}, but no host there is known"
    elif destination in arrivals:
        arriving = ", ".join(dotted(source) for source in sorted(arrivals[destination])[:3])
        kind = RemarkKind.DEAD
        why = f"{other} sends packets for {dotted(destination)} from {arriving}, not from {cidr(way.sources)}"
    else:
        kind, why = RemarkKind.UNPAIRED, f"{other} sends nothing to {dotted(destination)}"
    return Remark(kind=kind, vm=vm, at=rule, why=why)


# --- translations of sources that no flow needed ---------------------------------------------------------------------


def _unneeded_sources(vm: SavedVm, flows: SavedFlows, known: frozenset[int]) -> Iterator[Remark]:
    leaving = [(f.request.caller, f.request.transit) for f in flows.flows if f.request.vm is vm.side]
    leaving += [(f.hidden, f.receiver) for f in flows.flows if f.request.vm is not vm.side]
    by_source = {source: (source, destination) for source, destination in leaving}
    sources = sorted(by_source)
    for rule in vm.rules:
        if rule.action not in _OF_SOURCES or id(rule) in known:
            continue
        inside = within(sources, rule.source)
        if vm.walk.applies(rule, POSTROUTING) and inside:
            yield _hidden_by(vm.side, rule, vm.walk.postrouting(*by_source[inside[0]]))
        elif rule.action is Action.SNAT and is_single(rule.source):
            why = f"no flow leaves {vm.side.prose} from {cidr(rule.source)}"
            yield Remark(kind=RemarkKind.DEAD, vm=vm.side, at=rule, why=why)
        else:
            yield Remark(kind=RemarkKind.UNMET, vm=vm.side, at=rule, why="no flow of the POD needs it")


# --- mappings that admit more than they should -----------------------------------------------------------------------


def judge_admitted(found: SavedRequests, flows: SavedFlows) -> Iterator[Remark]:
    """Rules that let a whole network call, where nat-pod lets only single hosts call."""
    callers: dict[int, tuple[Side, SavedRule, set[int]]] = {}
    for flow in flows.flows:
        rule = flow.request.rule
        callers.setdefault(id(rule), (flow.request.vm, rule, set()))[2].add(flow.request.caller)
    for vm, rule, hosts in callers.values():
        broad: list[Range] = [way.sources for way in found.candidates[vm].of(rule) if not is_single(way.sources)]
        if broad:
            who = "anybody" if is_many(broad[0]) else f"all of {cidr(broad[0])}"
            why = f"admits {who}; nat-pod admits the hosts that the stack file names, here {len(hosts)}"
            yield Remark(kind=RemarkKind.WIDE, vm=vm, at=rule, why=why)
