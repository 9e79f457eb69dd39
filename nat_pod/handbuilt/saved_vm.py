"""One NAT VM as its files show it: whose rules are whose, which addresses they name, what its VNICs are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nat_pod.config.check import NEVER_MAPPED
from nat_pod.errors import NatPodError
from nat_pod.handbuilt.numeric import dotted, in_pod_space, is_single, within
from nat_pod.handbuilt.saved_table import Action, SavedRule, SavedTable
from nat_pod.handbuilt.saved_walk import POSTROUTING, TRANSLATING, SavedWalk, owner_of_chain, owner_of_rule
from nat_pod.handbuilt.vnic_list import VnicList
from nat_pod.names import SIDES, Side

_NEVER = tuple((never.first, never.last) for never in NEVER_MAPPED)


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedVm:
    """What is known of one NAT VM.

    vnics: None without a list of them.  rules: those of the nat table, without other programs' rules and without the
    chains for the VM's own packets.  reals: single addresses outside 198.18.0.0/15 that call or are called, sorted.
    masquerades: whether a MASQUERADE can apply to the POD's packets.
    """

    side: Side
    table: SavedTable
    walk: SavedWalk
    vnics: VnicList | None
    rules: tuple[SavedRule, ...]
    reals: tuple[int, ...]
    masquerades: bool


SavedVms = Mapping[Side, SavedVm]


def read_vms(tables: Mapping[Side, SavedTable], vnics: Mapping[Side, VnicList]) -> SavedVms:
    """Both NAT VMs.  Raises NatPodError when both tables are of the same VM."""
    texts = [[rule.text for _, rule in tables[side].rules()] for side in SIDES]
    if texts[0] == texts[1]:
        raise NatPodError("--vm1 and --vm2 have the same rules: give the files of two different NAT VMs")
    vms: dict[Side, SavedVm] = {}
    for side in SIDES:
        rules = tuple(_engineers(tables[side]))
        walk = SavedWalk(tables[side])
        vms[side] = SavedVm(
            side=side,
            table=tables[side],
            walk=walk,
            vnics=vnics.get(side),
            rules=rules,
            reals=_reals(rules),
            masquerades=_masquerades(tables[side], walk),
        )
    return vms


def _engineers(table: SavedTable) -> Iterator[SavedRule]:
    for chain, rule in table.rules():
        if not owner_of_chain(chain) and not owner_of_rule(rule) and chain not in ("INPUT", "OUTPUT"):
            yield rule


def _reals(rules: tuple[SavedRule, ...]) -> tuple[int, ...]:
    found = set()
    for rule in rules:
        for inside in (rule.source, rule.to if rule.action is Action.DNAT else None):
            if inside is not None and is_single(inside) and not in_pod_space(inside[0]):
                found.add(inside[0])
    return tuple(sorted(address for address in found if not never_a_vm(address)))


def _masquerades(table: SavedTable, walk: SavedWalk) -> bool:
    """Follows POSTROUTING and the chains it leads to."""
    left = [POSTROUTING]
    entered = set(left)
    while left:
        for rule in table.chains[left.pop()]:
            if not walk.applies(rule, POSTROUTING):
                continue
            if rule.action is Action.MASQUERADE:
                return True
            if rule.action not in TRANSLATING and rule.chain and rule.chain not in entered:
                entered.add(rule.chain)
                left.append(rule.chain)
    return False


def unique_addresses(vms: SavedVms) -> tuple[int, ...]:
    """Single addresses of 198.18.0.0/15 that any rule names, and what NETMAP makes of them both ways; sorted."""
    found = set()
    netmaps = []
    for vm in vms.values():
        for rule in vm.rules:
            for inside in (rule.source, rule.destination, rule.to):
                if inside is not None and is_single(inside) and in_pod_space(inside[0]):
                    found.add(inside[0])
            if rule.action is Action.NETMAP and rule.to is not None:
                netmaps.append((rule.destination, rule.to))
    for _ in SIDES:
        pool = sorted(found)
        for inside, to in netmaps:
            if inside[1] - inside[0] == to[1] - to[0]:
                found |= {address - inside[0] + to[0] for address in within(pool, inside)}
                found |= {address - to[0] + inside[0] for address in within(pool, to)}
    return tuple(sorted(found))


def names_in_comments(vms: SavedVms) -> dict[tuple[Side, int], str]:
    """Members' names, from the comment of a rule that delivers to the member or tests for it as a source."""
    return {(side, address): name for side in SIDES for address, name in _names(vms[side].rules).items()}


def _names(rules: tuple[SavedRule, ...]) -> dict[int, str]:
    names: dict[int, str] = {}
    for rule in rules:
        if rule.action is Action.DNAT and rule.to is not None and rule.comment and not in_pod_space(rule.to[0]):
            names[rule.to[0]] = rule.comment
    for rule in rules:
        single = is_single(rule.source)
        if single and rule.comment and rule.action is not Action.DNAT and not in_pod_space(rule.source[0]):
            names.setdefault(rule.source[0], rule.comment)
    return names


def never_a_vm(address: int) -> bool:
    """Whether an address is one that no VM in a VCN can have."""
    return any(first <= address <= last for first, last in _NEVER)


def why_never(address: int) -> str:
    """The sentence about such an address as a target."""
    return (
        f"{dotted(address)} is never the address of a VM in a VCN; 169.254.169.254 would hand out the NAT VM's metadata"
    )
