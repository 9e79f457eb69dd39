"""The address book of a routed POD (`addresses`): how it is read.  `address_book.py` writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from netaddr import IPAddress, IPNetwork

from nat_pod.config.addresses import Members, book_lines, unsettled
from nat_pod.config.aliases import block_of
from nat_pod.config.reader import Reader
from nat_pod.errors import SlotTwice
from nat_pod.names import INNER, NAMESPACE, NAT_VM1, MemberName, Role


def names_in(value: object) -> Iterator[MemberName]:
    """The members that have an alias in an address book, as far as it can be read; not those whose is released."""
    for key, entry in value.items() if isinstance(value, Mapping) else ():
        if not (isinstance(entry, Mapping) and entry.get("released") is True):
            with suppress(ValueError):
                yield MemberName.parse(str(key))


def read_aliases(
    reader: Reader,
    value: object,
    cidr: IPNetwork,
    vcn: IPNetwork,
    members: Members,
    gateways: Mapping[str, int],
) -> tuple[dict[MemberName, IPAddress], dict[MemberName, IPAddress]]:
    """The address book: member -> alias, and the released ones.

        customer1/vm1: 198.18.2.17
        customer1/old: {address: 198.18.2.18, released: true}

    No two members share an alias, and no alias is in a block of another role: the routes of that block would lead past
    the NAT VM that translates it.
    gateways: the number of each customer's gateway.  A customer that is gone has none, and its blocks are nobody's.
    """
    book: dict[MemberName, IPAddress] = {}
    released: dict[MemberName, IPAddress] = {}
    command = f"python -m nat_pod allocate {reader.stack}"
    owner: dict[IPAddress, MemberName] = {}
    blocks: dict[IPNetwork, tuple[MemberName, Role]] = {}
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
        role = _role(name, members, gateways)
        # One that is a member again may have another gateway by now; `allocate` settles that.
        if role is not None and not (gone and name in members.written.names):
            block = block_of(alias)
            first, of = blocks.setdefault(block, (name, role))
            if of != role:
                reader.add(place, str(alias), _mixed(block, name, role, first, of), command)
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


def _role(name: MemberName, members: Members, gateways: Mapping[str, int]) -> Role | None:
    if name.is_server:
        return INNER
    number = gateways.get(members.renames.realm(name.realm))
    return None if number is None else Role(NAT_VM1, number)


def _mixed(block: IPNetwork, name: MemberName, role: Role, first: MemberName, of: Role) -> str:
    who = "a server" if name.is_server else "a host" if of.side is not role.side else f"{name.realm}"
    return (
        f"is in the block {block}, whose routes lead to {of.prose}, because {first} is in it; {who} needs an alias in "
        f"a block of {role.prose}: delete this line and let it be written for you"
    )
