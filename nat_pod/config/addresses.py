"""The address book in the stack file (`addresses`): how it is read.  `address_book.py` writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from nat_pod import limits
from nat_pod.config.addressing import Layout, Slot, default_layout
from nat_pod.config.nat_vm import NatVmConfig, vnic_rule
from nat_pod.config.neighbours import Written, written_members
from nat_pod.config.reader import Reader
from nat_pod.config.renames import Networks, Renames, look_alikes
from nat_pod.errors import Problem, SlotTwice, Unsettled
from nat_pod.names import NAMESPACE, SIDES, MemberName, natural


@dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """Who stands in the file, what they were called, and where they are; where they were is looked up on demand."""

    written: Written
    renames: Renames
    now: Networks
    earlier: Callable[[], Networks | None]

    @classmethod
    def read(
        cls, root: Mapping[str, object], renames: Renames, earlier: Callable[[], Mapping[str, object] | None]
    ) -> Members:
        """Those of a configuration.  earlier: looks up the same file on the base branch."""

        def networks() -> Networks | None:
            base = earlier()
            return None if base is None else Networks.read(base)

        return cls(written=written_members(root), renames=renames, now=Networks.read(root), earlier=networks)


def book_lines(reader: Reader, value: object, what: str) -> Iterator[tuple[str, MemberName, object]]:
    """The lines of an address book: path, member, and what stands there.  what: `slots` or `aliases`."""
    if value is not None and not isinstance(value, Mapping):
        rule = f"must be a mapping of members to {what}; take it out and let it be written for you"
        reader.add("addresses", value, rule, f"python -m nat_pod allocate {reader.stack}")
        return
    for key, entry in (value or {}).items():
        path = f'addresses["{key}"]'
        try:
            name = MemberName.parse(str(key))
        except ValueError as error:
            reader.add(path, None, str(error))
        else:
            yield path, name, entry


def read_book(
    reader: Reader,
    value: object,
    layout: Layout,
    members: Members,
    nat_vm: NatVmConfig | None,
) -> tuple[dict[MemberName, Slot], dict[MemberName, Slot]]:
    """The address book: member -> slot, and the released ones.

    One server and one host may share a slot: the rules tell them apart by where a packet comes from.  Two servers,
    or two hosts, may not: the translation of one would hide the other's.
    """
    book: dict[MemberName, Slot] = {}
    released: dict[MemberName, Slot] = {}
    command = f"python -m nat_pod allocate {reader.stack}"
    owners: dict[tuple[Slot, bool], MemberName] = {}
    listed = set()
    for path, name, entry in book_lines(reader, value, "slots"):
        listed.add(name)
        read = _read_entry(reader, path, entry, layout, nat_vm, command)
        if read is None:
            continue
        slot, gone = read
        other = owners.setdefault((slot, name.is_server), name)
        if other != name:
            who = "two servers" if name.is_server else "two hosts"
            rule = f"is already the slot of {other}; {who} cannot share one: delete the line of the newer one"
            place, shown = f"{NAMESPACE}:{path}", " / ".join(layout.address(slot, side) for side in SIDES)
            reader.problems.append(SlotTwice(place, shown, rule, command, member=str(name), other=str(other)))
            continue
        (released if gone else book)[name] = slot
    reader.unsettled.extend(unsettled(reader.stack, members, book, released, listed))
    return book, released


def _read_entry(
    reader: Reader, path: str, entry: object, layout: Layout, nat_vm: NatVmConfig | None, command: str
) -> tuple[Slot, bool] | None:
    """One line of the book: the slot, and whether it is released; None where the addresses name no slot."""
    section = reader.section(path, entry, required=("natVm1", "natVm2"), optional=("released",))
    if entry is None:
        reader.add(path, None, "is empty; remove it and let it be written for you", command)
    released = section.get("released", False)
    if not isinstance(released, bool):
        reader.add(f"{path}.released", released, "must be true or false")
    one = reader.address(f"{path}.natVm1", section.get("natVm1"), "198.18.0.2")
    two = reader.address(f"{path}.natVm2", section.get("natVm2"), "198.18.0.130")
    if one is None or two is None:
        return None
    slot = layout.find(one, two)
    if isinstance(slot, Slot):
        return slot, released is True
    beyond = default_layout(layout.cidr, limits.MAX_VNICS).find(one, two)
    if nat_vm is not None and not layout.pinned and isinstance(beyond, Slot):
        # The shape was made smaller, and the book already has slots beyond its VNICs.
        slot = vnic_rule(beyond.pair, nat_vm)
    reader.add(path, f"{one} / {two}", slot)
    return None


def unsettled(
    stack: str,
    members: Members,
    book: Mapping[MemberName, object],
    released: Mapping[MemberName, object],
    listed: set[MemberName],
    what: str = "slot",
) -> Iterator[Problem]:
    """What `allocate` would change: slots of members that are gone or renamed, and members without a slot.

    what: the word for what a member owns, `alias` in a routed POD.
    """
    command = f"python -m nat_pod allocate {stack}"
    written = members.written
    gone = {name for name in book if written.is_gone(name)}
    missing = written.names - listed
    for name in sorted(gone, key=natural):
        new = members.renames.member(name)
        if new in missing:
            rule = f"is the new name of this member; its {what} moves with the name"
            yield Unsettled(f'{NAMESPACE}:addresses["{name}"]', str(new), rule, command)
            gone, missing = gone - {name}, missing - {new}
    kept = {members.renames.member(name) for name in book} & written.names
    for question, names in look_alikes(gone, missing, kept, members.now, members.earlier, stack):
        yield question
        gone, missing = gone - names, missing - names
    for name in sorted(gone, key=natural):
        article = "an" if what == "alias" else "a"
        rule = f"owns {article} {what} but is neither a server nor a host any more; the {what} must be kept as released"
        yield Unsettled(f'{NAMESPACE}:addresses["{name}"]', None, rule, command)
    for name in sorted(written.names & set(released), key=natural):
        yield Unsettled(f'{NAMESPACE}:addresses["{name}"]', None, "is marked released but is a member again", command)
    for name in sorted(missing, key=natural):
        rule = f"has no {what} yet; `pulumi up` never assigns one"
        yield Unsettled(f'{NAMESPACE}:addresses["{name}"]', None, rule, command)


def other_range(value: object, layout: Layout) -> IPNetwork | None:
    """The range that a book was written for, when no entry of it has a place in this one; None for any other book.

    In the default layout NAT VM2's subnets begin in the middle of the range, so a larger range moves all of them.
    """
    if layout.pinned:
        return None
    known = []
    here = default_layout(layout.cidr, limits.MAX_VNICS)
    for one, two in _pairs(value):
        if isinstance(here.find(one, two), Slot):
            return None
        known.append((one, two))

    def fits(cidr: IPNetwork) -> bool:
        whole = default_layout(cidr, limits.MAX_VNICS)
        return all(isinstance(whole.find(one, two), Slot) for one, two in known)

    ranges = (IPNetwork((int(one), prefix)).cidr for one, _ in known[:1] for prefix in limits.POD_PREFIXES)
    return next(filter(fits, ranges), None)


def _pairs(value: object) -> Iterator[tuple[IPAddress, IPAddress]]:
    """The two addresses of each line of a book that has two."""
    reader = Reader("")
    for entry in value.values() if isinstance(value, Mapping) else ():
        if isinstance(entry, Mapping):
            one, two = (reader.address("", entry.get(side), "") for side in SIDES)
            if one is not None and two is not None:
                yield one, two
