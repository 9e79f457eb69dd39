"""The address book of a routed POD (`addresses`): how it is read.  `address_book.py` writes it."""

from __future__ import annotations

from collections.abc import Mapping

from netaddr import IPAddress, IPNetwork

from nat_pod.config.addresses import Members, book_lines, unsettled
from nat_pod.config.aliases import block_of
from nat_pod.config.reader import Reader
from nat_pod.errors import SlotTwice
from nat_pod.names import NAMESPACE, NAT_VM1, NAT_VM2, MemberName


def read_aliases(
    reader: Reader, value: object, cidr: IPNetwork, vcn: IPNetwork, members: Members
) -> tuple[dict[MemberName, IPAddress], dict[MemberName, IPAddress]]:
    """The address book: member -> alias, and the released ones.

        customer1/vm1: 198.18.2.17
        customer1/old: {address: 198.18.2.18, released: true}

    No two members share an alias, and no server's alias is in a block of the hosts': the routes of that block would
    lead past the NAT VM that translates it.
    """
    book: dict[MemberName, IPAddress] = {}
    released: dict[MemberName, IPAddress] = {}
    command = f"python -m nat_pod allocate {reader.stack}"
    owner: dict[IPAddress, MemberName] = {}
    blocks: dict[IPNetwork, MemberName] = {}
    listed = set()
    for path, name, entry in book_lines(reader, value, "aliases"):
        listed.add(name)
        place, alias, gone = _entry(reader, path, entry, command)
        if alias is None:
            continue
        wrong = _outside(alias, cidr, vcn)
        if wrong is not None:
            reader.add(place, str(alias), wrong)
            continue
        other = owner.setdefault(alias, name)
        if other != name:
            rule = f"is already the alias of {other}; each member has its own: delete the line of the newer one"
            twice = SlotTwice(f"{NAMESPACE}:{path}", str(alias), rule, command, member=str(name), other=str(other))
            reader.problems.append(twice)
            continue
        block = block_of(alias)
        first = blocks.setdefault(block, name)
        if first.is_server is not name.is_server:
            reader.add(place, str(alias), _mixed(block, name, first), command)
            continue
        (released if gone else book)[name] = alias
    reader.unsettled.extend(unsettled(reader.stack, members, book, released, listed, "alias"))
    return book, released


def _entry(reader: Reader, path: str, entry: object, command: str) -> tuple[str, IPAddress | None, bool]:
    """The alias of an entry with its path, and whether it is kept back."""
    if entry is None:
        reader.add(path, None, "is empty; remove it and let it be written for you", command)
        return path, None, False
    if not isinstance(entry, Mapping):
        return path, reader.address(path, entry, "198.18.2.17"), False
    section = reader.section(path, entry, required=("address",), optional=("released",))
    gone = section.get("released", False)
    if not isinstance(gone, bool):
        reader.add(f"{path}.released", gone, "must be true or false")
    place = f"{path}.address"
    return place, reader.address(place, section.get("address"), "198.18.2.17"), gone is True


def _outside(alias: IPAddress, cidr: IPNetwork, vcn: IPNetwork) -> str | None:
    """Why an address is no alias of the POD, None when it is one."""
    if alias not in cidr:
        return f"is outside the POD's range {cidr}"
    if alias in vcn:
        return f"is in the VCN's own range {vcn}, where OCI delivers by private IP; an alias lies outside of it"
    return None


def _mixed(block: IPNetwork, name: MemberName, first: MemberName) -> str:
    here, there = (NAT_VM2, NAT_VM1) if name.is_server else (NAT_VM1, NAT_VM2)
    return (
        f"is in the block {block}, which routes lead to {there.prose} because {first} is there; a "
        f"{'server' if name.is_server else 'host'} needs one that leads to {here.prose}: delete this line and let it "
        "be written for you"
    )
