"""The networks on either side of a POD, with their members (`management`, `customers`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from nat_pod import limits
from nat_pod.config.addressing import can_be_a_vcns, clash, reserved_by_oci, usable
from nat_pod.config.reader import EXAMPLES, NAME_RULE, Reader, listed
from nat_pod.config.renames import Renames
from nat_pod.names import HEALTH, MANAGEMENT, NAME, PATH_MTU, POD, STRANGER, TRANSIT, VROUTER, MemberName

# A POD's own names, beside which a customer's stand: networks and machines in a trace, keys of security rules.
_OWN_NAMES = (MANAGEMENT, HEALTH, PATH_MTU, POD, TRANSIT, VROUTER)
_VROUTER_ADDRESSES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ManagementConfig:
    """Management: its networks, the vRouter's floating IP in this POD, the servers by name.

    `cidrs` are all networks behind the vRouter, in the order of the file.  `servers_formerly` has the former names of
    renamed servers by their present ones.
    """

    cidrs: tuple[IPNetwork, ...]
    vrouter: IPAddress
    servers: dict[str, IPAddress]
    servers_formerly: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomerConfig:
    """A customer: its networks, its hosts by name, the servers it may reach (None: all), an LPG to peer with.

    `cidrs` are its VCN's and those behind it, in the order of the file; the first one's security rules have the
    customer's name alone.  `formerly` is the name it had before it was renamed: its LPG and its slots stay the ones of
    that name.
    `hosts_formerly` has the former names of renamed hosts by their present ones.  `own_gateway`: in a routed POD it
    shares its customer gateway with nobody.
    """

    name: str
    cidrs: tuple[IPNetwork, ...]
    hosts: dict[str, IPAddress]
    servers: tuple[str, ...] | None
    peer_id: str | None
    formerly: str | None
    hosts_formerly: dict[str, str]
    own_gateway: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who owns a slot: a server or a host, and its real address."""

    name: MemberName
    address: IPAddress


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The members' names and the realms as they stand in the file, and the realms whose names cannot be known.

    A member whose address is wrong is still a member: its slot must not be called a leftover.
    """

    names: frozenset[MemberName]
    realms: frozenset[str]
    unknown: frozenset[str]
    customers_unknown: bool

    def is_gone(self, name: MemberName) -> bool:
        """Whether a name in the address book no longer belongs to anybody."""
        return name not in self.names and not self.customers_unknown and name.realm not in self.unknown


def read_management(reader: Reader, value: object) -> ManagementConfig | None:
    """The section `management`; None when its networks cannot be read."""
    section = reader.section(
        "management", value, required=("cidr", "vrouter", "servers"), optional=("serversFormerly",)
    )
    cidrs = _read_cidrs(reader, "management.cidr", section.get("cidr"), "10.0.0.0/16")
    vrouter = reader.address("management.vrouter", section.get("vrouter"), "198.18.3.250")
    servers = _addresses_in(reader, "management.servers", section.get("servers"), "servers", cidrs)
    formerly = _formerly_in(reader, "management.serversFormerly", section.get("serversFormerly"), section, "servers")
    if cidrs is None or vrouter is None:
        return None
    # A network that is no VCN's says nothing of the VCN that the vRouter is in.
    if all(map(can_be_a_vcns, cidrs)):
        left = {cidr: usable(cidr) - sum(1 for at in servers.values() if at in cidr) for cidr in cidrs}
        if max(left.values()) < _VROUTER_ADDRESSES:
            room = sum(map(usable, cidrs))
            reader.add(
                "management.cidr",
                ", ".join(map(str, cidrs)),
                f"{'has' if len(cidrs) == 1 else 'have'} {room} usable addresses for {len(servers)} servers; the "
                f"vRouter needs {_VROUTER_ADDRESSES} of its own there, its VNIC's and the floating IP",
            )
    return ManagementConfig(cidrs=cidrs, vrouter=vrouter, servers=servers, servers_formerly=formerly)


def cidr_paths(realm: str, cidrs: Sequence[IPNetwork]) -> list[tuple[str, IPNetwork]]:
    """The networks of a neighbour with their places in the file: `customers.acme.cidr`, of several `...cidr[1]`."""
    path = f"{realm}.cidr" if realm == MANAGEMENT else f"customers.{realm}.cidr"
    return [(path if len(cidrs) == 1 else f"{path}[{index}]", cidr) for index, cidr in enumerate(cidrs)]


def _read_cidrs(reader: Reader, path: str, value: object, example: str) -> tuple[IPNetwork, ...] | None:
    """The networks of a neighbour, no two of which share an address."""
    cidrs = reader.networks(path, value, example)
    for index, cidr in enumerate(cidrs or ()):
        found = clash([cidr], (cidrs or ())[:index])
        if found is not None:
            reader.add(
                f"{path}[{index}]", str(cidr), f"overlaps {found[1]} of the same list; leave the smaller one out"
            )
    return cidrs


def read_customers(
    reader: Reader, value: object, written: Written, *, gateways: bool = False
) -> tuple[CustomerConfig, ...] | None:
    """The customers whose network can be read: a mistake in one must not hide those of the others.

    gateways: whether the POD's delivery has customer gateways.
    """
    if value is None:
        return None
    entries = reader.named("customers", value, "customers, e.g. customer1: {cidr: 10.0.0.0/24, hosts: {}}")
    customers = []
    peers: dict[str, str] = {}
    former: dict[str, str] = {}
    for name, entry in entries.items():
        path = f"customers.{name}"
        if len(name) > limits.CHAIN_MEMBER_NAME:
            longest = limits.CHAIN_MEMBER_NAME
            reader.add(path, None, f"is longer than {longest} characters; the name is part of a chain's name")
        if name in _OWN_NAMES:
            reader.add(path, None, f"{name} is reserved by nat-pod; give the customer another name")
        optional = ("peerId", "servers", "formerly", "hostsFormerly", "gateway")
        section = reader.section(path, entry, required=("cidr", "hosts"), optional=optional)
        if entry is None:
            reader.add(path, None, f"is empty; {EXAMPLES['customers']}")
        cidrs = _read_cidrs(reader, f"{path}.cidr", section.get("cidr"), "10.0.0.0/24")
        hosts = _addresses_in(reader, f"{path}.hosts", section.get("hosts"), "hosts", cidrs)
        peer_id = reader.ocid(f"{path}.peerId", section.get("peerId"), ("localpeeringgateway",))
        servers = _server_list(reader, f"{path}.servers", section.get("servers"), written)
        formerly = reader.text(f"{path}.formerly", section.get("formerly"), NAME_RULE, NAME)
        was = _formerly_in(reader, f"{path}.hostsFormerly", section.get("hostsFormerly"), section, "hosts")
        own_gateway = _own_gateway(reader, f"{path}.gateway", section.get("gateway"), gateways=gateways)
        if formerly is not None and formerly in entries:
            reader.add(
                f"{path}.formerly",
                formerly,
                "is still a customer of this POD; formerly is the old name of a renamed one",
            )
        elif formerly is not None and former.setdefault(formerly, name) != name:
            reader.add(f"{path}.formerly", formerly, f"is already what {former[formerly]} was called")
        if peer_id is not None and peers.setdefault(peer_id, name) != name:
            reader.add(f"{path}.peerId", peer_id, f"is already the LPG of {peers[peer_id]}; an LPG has one peer")
        if cidrs is not None:
            customers.append(
                CustomerConfig(
                    name=name,
                    cidrs=cidrs,
                    hosts=hosts,
                    servers=servers,
                    peer_id=peer_id,
                    formerly=formerly,
                    hosts_formerly=was,
                    own_gateway=own_gateway,
                )
            )
    return tuple(customers)


def _own_gateway(reader: Reader, path: str, value: object, *, gateways: bool) -> bool:
    if value is None:
        return False
    if not gateways:
        reader.add(path, value, "is a setting of delivery: routes, where NAT VM1 may be several gateways; take it out")
    elif value != "own":
        reader.add(
            path, value, "must be own (a gateway that the customer shares with nobody); its number is in gateways"
        )
    return value == "own"


def _server_list(reader: Reader, path: str, value: object, written: Written) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        reader.add(path, value, "must be a list of names from management.servers, e.g. [mgmt]")
        return None
    known = sorted(name.short for name in written.names if name.is_server)
    for name in value:
        if name not in known and MANAGEMENT not in written.unknown:
            reader.add(path, name, f"is not a server of management.servers; known are {listed(tuple(known)) or 'none'}")
    for name in sorted({name for name in value if value.count(name) > 1}):
        reader.add(path, name, "is in the list twice; delete one of them")
    return tuple(sorted(set(value)))


def _addresses_in(
    reader: Reader, path: str, value: object, what: str, cidrs: tuple[IPNetwork, ...] | None
) -> dict[str, IPAddress]:
    """Named addresses that lie in one of `cidrs`, no two the same."""
    good: dict[str, IPAddress] = {}
    owner: dict[IPAddress, str] = {}
    for name, entry in reader.named(path, value, f"{what}, e.g. vm1: 10.0.0.100").items():
        place = f"{path}.{name}"
        if entry is None:
            reader.add(place, None, "has no address, e.g. vm1: 10.0.0.100")
        if len(name) > limits.MEMBER_NAME:
            reader.add(place, None, f"has a name of more than {limits.MEMBER_NAME} characters")
        if name == STRANGER:
            reader.add(place, None, f"{STRANGER} is reserved by the lab; give the member another name")
        address = reader.address(place, entry, "10.0.0.100")
        if address is None:
            continue
        if cidrs is not None:
            wrong = _unusable(address, cidrs)
            if wrong is not None:
                reader.add(place, str(address), wrong)
                continue
        if address in owner:
            reader.add(place, str(address), f"is already the address of {owner[address]}; one name per address")
            continue
        owner[address] = name
        good[name] = address
    return good


def _unusable(address: IPAddress, cidrs: Sequence[IPNetwork]) -> str | None:
    """Why no member can have this address; None when one can.

    OCI keeps some addresses of a subnet, and so of a VCN's CIDR.  A network that is too large or too small for a VCN
    lies behind one, where other people's rules hold.
    """
    cidr = next((cidr for cidr in cidrs if address in cidr), None)
    if cidr is None:
        only = len(cidrs) == 1
        return f"is outside the VCN's {cidrs[0]}" if only else f"is in none of {', '.join(map(str, cidrs))}"
    reserved = reserved_by_oci(address, cidr) if can_be_a_vcns(cidr) else None
    return None if reserved is None else f"{reserved}; no VNIC can have it"


def _formerly_in(reader: Reader, path: str, value: object, section: Mapping[str, object], key: str) -> dict[str, str]:
    """Former names by present ones: of members that there are, each once, and none of which there is still.

    A map beside the addresses and not a key in each of them, because in an SDK an address is a string or it is not:
    Pulumi's schema has no "one or the other", and no program should write a mapping for every host for this.
    """
    written = section.get(key)
    there = {str(name) for name in written} if isinstance(written, Mapping) else set()
    good: dict[str, str] = {}
    for name, entry in reader.named(path, value, "former names, e.g. web: vm1 for the one that was vm1").items():
        place = f"{path}.{name}"
        former = reader.text(place, entry, NAME_RULE, NAME)
        if entry is None:
            reader.add(place, None, "has no former name, e.g. web: vm1 for the one that was vm1")
        elif name not in there:
            reader.add(place, entry, f"{name} is not in {key}; the present name comes first, e.g. web: vm1")
        elif former is not None and former in there:
            reader.add(place, former, f"is still in {key}; this must be the old name of a renamed one")
        elif former is not None and former in good.values():
            reader.add(place, former, f"is already what {next(n for n, f in good.items() if f == former)} was called")
        elif former is not None:
            good[name] = former
    return good


def written_members(root: Mapping[str, object]) -> Written:
    """Who is named in the sections `management` and `customers`, whatever else is wrong there."""
    management, customers = root.get("management"), root.get("customers")
    realms: dict[str, object] = {MANAGEMENT: management.get("servers") if isinstance(management, Mapping) else None}
    if isinstance(customers, Mapping):
        for name, entry in customers.items():
            if name == MANAGEMENT:
                continue  # reported; its hosts are no servers
            realms[str(name)] = entry.get("hosts") if isinstance(entry, Mapping) else None
    names: set[MemberName] = set()
    unknown = set()
    for realm, members in realms.items():
        if isinstance(members, Mapping) and NAME.fullmatch(realm):
            names |= {MemberName(realm, str(member)) for member in members if NAME.fullmatch(str(member))}
        else:
            unknown.add(realm)
    return Written(
        names=frozenset(names),
        realms=frozenset(realms),
        unknown=frozenset(unknown),
        customers_unknown=not isinstance(customers, Mapping),
    )


def renames_of(management: ManagementConfig | None, customers: Iterable[CustomerConfig]) -> Renames:
    """Who was called otherwise before."""
    formerly = {} if management is None else {MANAGEMENT: management.servers_formerly}
    formerly |= {customer.name: customer.hosts_formerly for customer in customers}
    names = {customer.formerly: customer.name for customer in customers if customer.formerly is not None}
    members = {
        MemberName(realm, former): MemberName(realm, name)
        for realm, renamed in formerly.items()
        for name, former in renamed.items()
    }
    return Renames(names, members)


class Neighbours:
    """What a POD's configuration says of its members, whichever its delivery is."""

    __slots__ = ()
    management: ManagementConfig
    customers: tuple[CustomerConfig, ...]

    @property
    def members(self) -> tuple[Member, ...]:
        """Servers first, then hosts by customer, in the order of their names."""
        return self.servers + self.hosts

    @property
    def servers(self) -> tuple[Member, ...]:
        """Management's members."""
        return tuple(Member(MemberName(MANAGEMENT, name), at) for name, at in self.management.servers.items())

    @property
    def hosts(self) -> tuple[Member, ...]:
        """The customers' members."""
        return tuple(
            Member(MemberName(customer.name, name), address)
            for customer in self.customers
            for name, address in customer.hosts.items()
        )

    @property
    def renames(self) -> Renames:
        """Who was called otherwise before."""
        return renames_of(self.management, self.customers)


def is_customer_name(text: str) -> bool:
    """Whether this can be a customer's name."""
    return bool(NAME.fullmatch(text)) and len(text) <= limits.CHAIN_MEMBER_NAME and text not in _OWN_NAMES


def is_member_name(text: str) -> bool:
    """Whether this can be the name of a host or a server."""
    return bool(NAME.fullmatch(text)) and len(text) <= limits.MEMBER_NAME and text != STRANGER
