"""The address book as the stack file has it (`addresses`).  `address_book.py` writes it."""

from __future__ import annotations

from collections.abc import Mapping

from nat_pod import limits
from nat_pod.config.addressing import Layout, Slot, default_layout
from nat_pod.config.nat_vm import NatVmConfig, vnic_rule
from nat_pod.config.reader import Reader
from nat_pod.errors import Problem
from nat_pod.names import MANAGEMENT, NAMESPACE


def read_book(
    reader: Reader,
    value: object,
    layout: Layout,
    written: tuple[set[str], tuple[str, ...]],
    nat_vm: NatVmConfig | None,
) -> tuple[dict[str, Slot], dict[str, Slot]]:
    """The address book: member -> slot, and the released ones.

    One server and one host may share a slot: the rules tell them apart by where a packet comes from.  Two servers,
    or two hosts, may not: their translations would shadow one another.
    """
    book: dict[str, Slot] = {}
    released: dict[str, Slot] = {}
    command = f"python -m nat_pod allocate {reader.stack}"
    if value is not None and not isinstance(value, Mapping):
        rule = "must be a mapping of members to slots; take it out and let it be written for you"
        reader.add("addresses", value, rule, command)
        value = {}
    names, unknown = written
    owners: dict[tuple[Slot, bool], str] = {}
    listed = set()
    for name, entry in (value or {}).items():
        path = f'addresses["{name}"]'
        listed.add(name)
        section = reader.section(path, entry, required=("natVm1", "natVm2"), optional=("released",))
        if entry is None:
            reader.add(path, None, "is empty; remove it and let it be written for you", command)
        gone = section.get("released", False)
        if not isinstance(gone, bool):
            reader.add(f"{path}.released", gone, "must be true or false")
        one = reader.address(f"{path}.natVm1", section.get("natVm1"), "198.18.0.2")
        two = reader.address(f"{path}.natVm2", section.get("natVm2"), "198.18.0.130")
        if one is None or two is None:
            continue
        slot = layout.find(one, two)
        if isinstance(slot, str):
            beyond = default_layout(layout.cidr, limits.MAX_VNICS).find(one, two)
            if nat_vm is not None and not layout.pinned and isinstance(beyond, Slot):
                # The shape was made smaller under a book that already reaches further.
                slot = vnic_rule(beyond.pair, nat_vm)
            reader.add(path, f"{one} / {two}", slot)
            continue
        server = str(name).startswith(f"{MANAGEMENT}/")
        other = owners.setdefault((slot, server), str(name))
        if other != name:
            who = "two servers" if server else "two hosts"
            reader.add(
                path, f"{one} / {two}", f"is already the slot of {other}; {who} cannot share one: take one out", command
            )
            continue
        if gone is True:
            released[str(name)] = slot
        else:
            book[str(name)] = slot
    for name in sorted(name for name in set(book) - names if not name.startswith(unknown)):
        reader.unsettled.append(
            Problem(
                f'{NAMESPACE}:addresses["{name}"]',
                None,
                "owns a slot but is neither a server nor a host any more; the slot must be kept as released",
                command,
            )
        )
    for name in sorted(names & set(released)):
        reader.unsettled.append(
            Problem(f'{NAMESPACE}:addresses["{name}"]', None, "is marked released but is a member again", command)
        )
    missing = sorted(names - listed)
    reader.unsettled.extend(
        Problem(f'{NAMESPACE}:addresses["{name}"]', None, "has no slot; addresses are never invented by up", command)
        for name in missing
    )
    return book, released
