"""Step 5: which source policy the flows follow, and which flows do not follow it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import assert_never

from nat_pod.config.source_nat import SourceNat
from nat_pod.handbuilt.flows import SavedFlow
from nat_pod.handbuilt.members import AddressPair, SavedMembers
from nat_pod.handbuilt.numeric import dotted
from nat_pod.handbuilt.remarks import Remark, RemarkKind
from nat_pod.handbuilt.saved_table import SavedRule
from nat_pod.handbuilt.saved_vm import SavedVms
from nat_pod.names import NAT_VM1, Side


def find_source_nat(
    vms: SavedVms, flows: Sequence[SavedFlow], primary: Mapping[Side, int], members: SavedMembers
) -> tuple[SourceNat, tuple[Remark, ...]]:
    """The policy that fits most flows, and a remark for each rule that does not follow it."""
    got = [(flow.hidden, flow.seen) for flow in flows]
    wanted = {policy: [_sources(policy, flow, primary, members) for flow in flows] for policy in SourceNat}
    score = {policy: sum(one == two for one, two in zip(got, wanted[policy], strict=True)) for policy in SourceNat}
    chosen = SourceNat.MASQUERADE
    more = score[SourceNat.STATIC] - score[SourceNat.MASQUERADE]
    if more > 0 or (more == 0 and not any(vm.masquerades for vm in vms.values())):
        chosen = SourceNat.STATIC
    return chosen, tuple(_others(chosen, flows, wanted[chosen], members))


def _sources(policy: SourceNat, flow: SavedFlow, primary: Mapping[Side, int], members: SavedMembers) -> AddressPair:
    """What a flow's source is between the NAT VMs and at the receiver."""
    vm = flow.request.vm
    match policy:
        case SourceNat.MASQUERADE:
            return primary[vm], primary[vm.other]
        case SourceNat.STATIC:
            slot = members.callers(vm).get(flow.request.caller) or (0, 0)
            return slot if vm is NAT_VM1 else (slot[1], slot[0])
        case _ as never:
            assert_never(never)


def _others(
    policy: SourceNat, flows: Sequence[SavedFlow], wanted: Sequence[AddressPair], members: SavedMembers
) -> Iterator[Remark]:
    """One remark per rule; where no rule hides the source, one per NAT VM."""
    wrong: dict[tuple[Side, int], tuple[SavedRule | None, str, int]] = {}
    for flow, shall in zip(flows, wanted, strict=True):
        caller, vm = flow.request.caller, flow.request.vm
        if policy is SourceNat.STATIC and members.callers(vm)[caller] is None:
            continue  # it has no slot yet, and already a remark that says so
        halves = zip((vm, vm.other), flow.hid_by, (flow.hidden, flow.seen), shall, strict=True)
        for side, rule, is_now, to_be in halves:
            if is_now == to_be:
                continue
            why = (
                f"{dotted(caller)} leaves {side.prose} with source {dotted(is_now)}; {policy} makes it {dotted(to_be)}"
            )
            first_rule, first_why, count = wrong.get((side, id(rule)), (rule, why, 0))
            wrong[side, id(rule)] = first_rule, first_why, count + 1
            break  # what the second NAT VM does follows from the first
    for (side, _), (rule, why, count) in wrong.items():
        why = why if count == 1 else f"{why} ({count} flows)"
        yield Remark(kind=RemarkKind.SOURCE, vm=side, at=rule, why=why)
