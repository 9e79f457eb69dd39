"""Renames: what the stack file says was called otherwise (`formerly`), and what only looks like it.

A customer that gets another name without `formerly` looks like one that left and one that came: its LPG would be
deleted, its hosts would get other slots, and all its flows would end.  Nobody wants that, so `allocate` asks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from nat_pod.errors import LooksRenamed
from nat_pod.names import MANAGEMENT, NAMESPACE, MemberName, natural


@dataclass(frozen=True, slots=True)
class Renames:
    """Who was called otherwise before.

    customers: {former name: present name}.  members: {former name in the present customer: present name}, servers too.
    """

    customers: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[MemberName, MemberName] = field(default_factory=dict)

    def realm(self, name: str) -> str:
        """A network's present name."""
        return self.customers.get(name, name)

    def member(self, name: MemberName) -> MemberName:
        """A member's present name."""
        moved = MemberName(self.realm(name.realm), name.short)
        return self.members.get(moved, moved)


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """The ranges and the members' addresses of a stack file, as text: who is where."""

    ranges: Mapping[str, str]
    addresses: Mapping[MemberName, str]

    @classmethod
    def read(cls, config: Mapping[str, object]) -> Networks:
        """Of plain values, as far as they are a stack file's: keys without the prefix."""
        ranges: dict[str, str] = {}
        addresses: dict[MemberName, str] = {}
        customers = config.get("customers")
        sections = {MANAGEMENT: (config.get("management"), "servers")}
        sections |= {str(name): (entry, "hosts") for name, entry in _mapping(customers).items() if name != MANAGEMENT}
        for realm, (section, key) in sections.items():
            entry = _mapping(section)
            ranges[realm] = str(entry.get("cidr"))
            for short, address in _mapping(entry.get(key)).items():
                try:
                    addresses[MemberName.parse(f"{realm}/{short}")] = str(address)
                except ValueError:
                    continue  # reported where it is read
        return cls(ranges=ranges, addresses=addresses)


def _mapping(value: object) -> Mapping[object, object]:
    return value if isinstance(value, Mapping) else {}


def look_alikes(
    gone: Collection[MemberName],
    missing: Collection[MemberName],
    kept: Iterable[MemberName],
    now: Networks,
    earlier: Callable[[], Networks | None],
    stack: str,
) -> Iterator[tuple[LooksRenamed, set[MemberName]]]:
    """Members that may have been renamed: the question, and whose slots it is about.

    gone: who owns a slot and is nobody's member any more; missing: members without a slot; kept: those with one.
    earlier: looks up the stack file on the base branch; it is called only when somebody may be meant.  With that file,
    who has the same range or the same address is taken for the same; without one, a customer with the same hosts, and
    a lone host that goes while one comes.
    """
    command = f"python -m nat_pod allocate {stack}"
    has_slots = {name.realm for name in kept}
    old_realms = _by_realm(name for name in gone if name.realm not in now.ranges)
    new_realms = _by_realm(name for name in missing if name.realm not in has_slots and name.realm != MANAGEMENT)
    stayed = _by_realm(name for name in gone if name.realm in now.ranges)
    coming = _by_realm(missing)
    if not (old_realms and new_realms) and not stayed.keys() & coming.keys():
        return
    then = earlier()
    for old, new in _pairs(old_realms, new_realms, now, then):
        members = old_realms[old] + new_realms[new]
        count = len(old_realms[old])
        rule = (
            f"looks like {old} under another name. If so, write `formerly: {old}` here, and its LPG, its peering and "
            f"its {'slot' if count == 1 else f'{count} slots'} stay. If it is another customer, run the command with "
            "--not-renamed"
        )
        yield LooksRenamed(f"{NAMESPACE}:customers.{new}", None, rule, command), {*members}
    for realm, leaving in stayed.items():
        pairs = list(_same_place(leaving, coming.get(realm, []), now, then))
        if not pairs:
            continue
        place, key = (MANAGEMENT, "servers") if realm == MANAGEMENT else (f"customers.{realm}", "hosts")
        written = ", ".join(f"{new.short}: {old.short}" for old, new in pairs)
        one = len(pairs) == 1
        who = ", ".join(new.short for _, new in pairs)
        were = ", ".join(old.short for old, _ in pairs)
        rule = (
            f"{who} {'looks' if one else 'look'} like {were} under {'another name' if one else 'other names'}. If so, "
            f"write `{key}Formerly: {{{written}}}` beside `{key}`: the {'slot stays' if one else 'slots stay'}. If "
            f"not, run the command with --not-renamed"
        )
        yield LooksRenamed(f"{NAMESPACE}:{place}.{key}", None, rule, command), {name for pair in pairs for name in pair}


def _by_realm(names: Iterable[MemberName]) -> dict[str, list[MemberName]]:
    realms: dict[str, list[MemberName]] = {}
    for name in sorted(names, key=natural):
        realms.setdefault(name.realm, []).append(name)
    return realms


def _pairs(
    old_realms: Mapping[str, list[MemberName]],
    new_realms: Mapping[str, list[MemberName]],
    now: Networks,
    earlier: Networks | None,
) -> Iterator[tuple[str, str]]:
    """Customers gone and come that may be one; each only once."""
    taken: set[str] = set()
    for old, members in old_realms.items():
        hosts = {name.short for name in members}
        for new, others in new_realms.items():
            if earlier is not None and old in earlier.ranges:
                same = earlier.ranges[old] == now.ranges.get(new)
            else:
                same = hosts == {name.short for name in others}
            if same and new not in taken:
                taken.add(new)
                yield old, new
                break


def _same_place(
    leaving: list[MemberName], coming: list[MemberName], now: Networks, earlier: Networks | None
) -> Iterator[tuple[MemberName, MemberName]]:
    if earlier is None:
        if len(leaving) == len(coming) == 1:
            yield leaving[0], coming[0]
        return
    at = {now.addresses[name]: name for name in coming if name in now.addresses}
    for old in leaving:
        new = at.get(earlier.addresses.get(old, ""))
        if new is not None:
            yield old, new
