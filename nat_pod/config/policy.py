"""Who may open what to whom: the section `policy`, and what follows from it for each pair of members.

An entry has two ends, of which one is management's and the other a customer's, each whole or a member of it:

    policy:
      - {from: globex, to: management/mgmt, allow: [tcp/443]}
      - {from: management/patch, to: globex, allow: [tcp/22, icmp]}

It governs the flows that one end opens to the other.  Such a flow passes only if an entry that governs it allows it;
several entries add up, so their order means nothing.  Whom no entry governs may open everything, as without a policy.
A customer's list of `servers` comes first: no entry opens what it leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from nat_pod.config.neighbours import CustomerConfig, ManagementConfig, Written
from nat_pod.config.reader import Reader, listed
from nat_pod.config.services import EVERYTHING, NOTHING, RULE, Services, read
from nat_pod.names import MANAGEMENT, NAME, MemberName

KEY = "policy"
_FORM = "must be a customer or management, whole or a member of it, e.g. customer1, customer1/vm1 or management/mgmt"
_EXAMPLE = "e.g. {from: management, to: customer1, allow: [tcp/22, icmp]}"


@dataclass(frozen=True, slots=True)
class Party:
    """An end of an entry: a realm, or one member of it."""

    realm: str
    member: MemberName | None = None

    def __str__(self) -> str:
        return self.realm if self.member is None else str(self.member)

    def has(self, member: MemberName) -> bool:
        """Whether a member is meant."""
        return self.member == member if self.member is not None else self.realm == member.realm


@dataclass(frozen=True, slots=True)
class Entry:
    """What one end may open to the other."""

    sender: Party
    receiver: Party
    allow: Services


@dataclass(frozen=True)
class Access:
    """Who may open what to whom.

    servers, hosts: all members.  lists: by customer, the servers that its hosts may open anything to.  Two members of a
    side that may do the same get the very same mapping from `reach`.
    """

    servers: tuple[MemberName, ...]
    hosts: tuple[MemberName, ...]
    lists: Mapping[str, tuple[MemberName, ...]]
    entries: tuple[Entry, ...] = ()

    def reach(self, sender: MemberName) -> Mapping[MemberName, Services]:
        """By receiver: what a member may open to it.  Whom it may open nothing to is not in it."""
        governing = tuple(n for n, entry in enumerate(self.entries) if entry.sender.has(sender))
        key = (sender.realm, governing)
        if key not in self._reaches:
            self._reaches[key] = self._reach(sender.realm, governing)
        return self._reaches[key]

    def services(self, sender: MemberName, receiver: MemberName) -> Services:
        """What one member may open to another."""
        return self.reach(sender).get(receiver, NOTHING)

    def opened_by(self, receiver: MemberName) -> Mapping[MemberName, Services]:
        """By sender: what it may open to this member."""
        senders = self.hosts if receiver.is_server else self.servers
        return {sender: services for sender in senders if (services := self.services(sender, receiver))}

    def callers(self, server: MemberName) -> tuple[str, ...]:
        """The customers whose hosts may open something to a server."""
        hosts = {
            realm: [host for host in self.hosts if host.realm == realm]
            for realm, servers in self.lists.items()
            if server in servers
        }
        return tuple(
            realm for realm, mine in hosts.items() if not mine or any(server in self.reach(host) for host in mine)
        )

    @cached_property
    def _reaches(self) -> dict[tuple[str, tuple[int, ...]], dict[MemberName, Services]]:
        return {}

    def _reach(self, realm: str, governing: tuple[int, ...]) -> dict[MemberName, Services]:
        receivers = self.hosts if realm == MANAGEMENT else self.lists[realm]
        found = dict.fromkeys(receivers, EVERYTHING)
        allowed: dict[MemberName, Services] = {}
        for number in governing:
            entry = self.entries[number]
            for receiver in receivers if entry.receiver.member is None else (entry.receiver.member,):
                if receiver in found and entry.receiver.has(receiver):
                    allowed[receiver] = allowed.get(receiver, NOTHING) | entry.allow
        return {receiver: services for receiver, services in {**found, **allowed}.items() if services}


def access(
    management: ManagementConfig, customers: Iterable[CustomerConfig], entries: tuple[Entry, ...] = ()
) -> Access:
    """Who may open what, by the lists of servers and the policy."""
    customers = tuple(customers)
    servers = tuple(MemberName(MANAGEMENT, name) for name in management.servers)
    return Access(
        servers=servers,
        hosts=tuple(MemberName(customer.name, name) for customer in customers for name in customer.hosts),
        lists={
            customer.name: tuple(
                server for server in servers if customer.servers is None or server.short in customer.servers
            )
            for customer in customers
        },
        entries=entries,
    )


def read_policy(
    reader: Reader, value: object, written: Written, customers: Iterable[CustomerConfig]
) -> tuple[Entry, ...]:
    """The section `policy`."""
    if value is None:
        return ()
    if not isinstance(value, list):
        reader.add(KEY, value, f"must be a list of entries, {_EXAMPLE}")
        return ()
    lists = {customer.name: customer.servers for customer in customers}
    entries: list[Entry] = []
    for number, given in enumerate(value):
        path = f"{KEY}[{number}]"
        if not isinstance(given, Mapping):
            reader.add(path, given, f"must be an entry with both ends and what passes, {_EXAMPLE}")
            continue
        section = reader.section(path, given, required=("from", "to", "allow"))
        sender = _party(reader, f"{path}.from", section.get("from"), written)
        receiver = _party(reader, f"{path}.to", section.get("to"), written)
        allow = _services(reader, f"{path}.allow", section.get("allow"))
        if sender is None or receiver is None or allow is None:
            continue
        if (sender.realm == MANAGEMENT) == (receiver.realm == MANAGEMENT):
            rule = "must have management or a server at one end, a customer or a host at the other: no other flows pass"
            reader.add(path, f"{sender} to {receiver}", rule)
            continue
        _check_list(reader, path, sender, receiver, lists)
        entry = Entry(sender, receiver, allow)
        if any((one.sender, one.receiver) == (sender, receiver) for one in entries):
            reader.add(
                path,
                f"{sender} to {receiver}",
                "has the same ends as an entry above; put all that passes into that one",
            )
        entries.append(entry)
    return tuple(entries)


def _party(reader: Reader, path: str, value: object, written: Written) -> Party | None:
    if value is None:
        return None
    if not isinstance(value, str):
        reader.add(path, value, _FORM)
        return None
    realm, slash, short = value.partition("/")
    if not NAME.fullmatch(realm) or (slash and not NAME.fullmatch(short)):
        reader.add(path, value, _FORM)
        return None
    known = {MANAGEMENT, *written.realms}
    if realm not in known and not written.customers_unknown:
        reader.add(path, value, f"is not a customer of this POD; known are {listed(tuple(sorted(known)))}")
        return None
    if not slash:
        return Party(realm)
    member = MemberName(realm, short)
    if member not in written.names and realm not in written.unknown:
        mine = tuple(sorted(name.short for name in written.names if name.realm == realm))
        reader.add(path, value, f"is not a member of {realm}; known are {listed(mine) or 'none'}")
        return None
    return Party(realm, member)


def _services(reader: Reader, path: str, value: object) -> Services | None:
    if value is None:
        return None
    if not isinstance(value, list):
        reader.add(path, value, "must be a list, e.g. [tcp/22, icmp]; [] lets nothing pass")
        return None
    allowed: Services | None = NOTHING
    for word in value:
        services = read(word) if isinstance(word, str) else None
        if services is None:
            reader.add(path, word, RULE)
        allowed = None if services is None or allowed is None else allowed | services
    return allowed


def _check_list(
    reader: Reader, path: str, sender: Party, receiver: Party, lists: Mapping[str, tuple[str, ...] | None]
) -> None:
    """A server that the customer's list leaves out cannot be opened by an entry."""
    servers, server = lists.get(sender.realm), receiver.member
    if servers is not None and server is not None and server.short not in servers:
        reader.add(
            f"{path}.to",
            str(server),
            f"is not in customers.{sender.realm}.servers, which comes first; add {server.short} to it, or take the "
            "entry out",
        )
