"""Names that more than one stage says: the config namespace, realms, sides, members.

The network engineer meets them in the stack file, in a trace and in OCI's console; code writes each one once, here.

A NAT VM's name has three forms, and one rule when which:

- `NAT VM1` in sentences: messages, documents, docstrings;
- `natVm1` where it is a key that people type or see: the stack file, JSON, names of resources and of stack outputs;
- `nat_vm1` as the label of a machine in a trace, and as a Python identifier.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Self, assert_never

NAME = re.compile(r"[a-z][a-z0-9-]*")
"""What a realm, a host and a server can be called."""

STACK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""A stack's name that Pulumi accepts, and that no command line takes for an option."""

_ROLE = re.compile(r"(natVm1|natVm2)(?:-([2-9]|[1-9][0-9]))?")
_PARTS = re.compile(r"(\D*)(\d*)")

NAMESPACE = "nat-pod"
"""Namespace of the stack file's keys: `nat-pod:cidr`."""

MANAGEMENT = "management"
"""The realm of the servers; every other realm is a customer."""

STRANGER = "stranger"
"""Name of the host in each neighbour's network that is in no address book, e.g. customer1/stranger."""

POD = "pod"
"""The NAT VCN, among the networks of a trace."""


class Side(StrEnum):
    """The two sides of a POD: NAT VM1 faces the customers, NAT VM2 management.

    A side is a role: it has subnets, an NSG, a route table and rules, and the NAT VMs that play it.
    """

    NAT_VM1 = "natVm1"
    NAT_VM2 = "natVm2"

    @property
    def prose(self) -> str:
        """Its NAT VM in a sentence: `NAT VM1`."""
        match self:
            case Side.NAT_VM1:
                return "NAT VM1"
            case Side.NAT_VM2:
                return "NAT VM2"
            case _ as never:
                assert_never(never)

    @property
    def label(self) -> str:
        """Its NAT VM in a trace: `nat_vm1`."""
        return self.name.lower()

    @property
    def other(self) -> Side:
        """The side across the POD."""
        match self:
            case Side.NAT_VM1:
                return Side.NAT_VM2
            case Side.NAT_VM2:
                return Side.NAT_VM1
            case _ as never:
                assert_never(never)


class Role(str):
    """What a NAT VM does in a POD: `natVm1`, `natVm2`, or with several customer gateways `natVm1-2`, `natVm1-3`.

    The NAT VMs of a role have a subnet, an NSG, a route table, a next hop and a rule document together.  NAT VM2 is one
    role.  NAT VM1 is one for each customer gateway, since customers who overlap each other need different ones; the
    first gateway's has the side's own name.  It is a string, as the names of members are, and equal to its side where
    it is the side's only one.
    """

    __slots__ = ("number", "side")

    side: Side
    number: int
    """Of the gateway, from 1; of NAT VM2 always 1."""

    def __new__(cls, side: Side, number: int = 1) -> Self:
        """The n-th role of a side."""
        role = super().__new__(cls, side if number == 1 else f"{side}-{number}")
        role.side, role.number = side, number
        return role

    def __getnewargs__(self) -> tuple[Side, int]:  # type: ignore[override] # what copies are made of
        return self.side, self.number

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The role with this name; None when there is no such role."""
        found = _ROLE.fullmatch(text)
        return None if found is None else cls(Side(found[1]), int(found[2] or 1))

    @property
    def prose(self) -> str:
        """Its NAT VM in a sentence: `NAT VM1`, `NAT VM1-2`."""
        return self.side.prose if self.number == 1 else f"{self.side.prose}-{self.number}"

    @property
    def transit(self) -> str:
        """The key of the security rules that let its NAT VMs and NAT VM2 talk: `transit`, `transit-2`."""
        return TRANSIT if self.number == 1 else f"{TRANSIT}-{self.number}"

    @property
    def lpgs(self) -> str:
        """The key of the route table of its customers' LPGs: `lpgs`, `lpgs-2`."""
        return LPGS if self.number == 1 else f"{LPGS}-{self.number}"


class MemberName(str):
    """Who sends or answers, in a neighbour's network: a realm and a name in it, `management/mgmt`, `customer1/vm1`.

    Members have such names, and so have hosts that are in no address book.  Like the sides it is a string, the one
    that people write and read, and is looked up and sorted as such; nobody has to take it apart again.
    """

    __slots__ = ("realm", "short")

    realm: str
    """`management`, or the customer's name."""

    short: str
    """The name in its own network, e.g. `vm1`."""

    def __new__(cls, realm: str, short: str) -> Self:
        """Raises ValueError where the two would not make one name."""
        name = super().__new__(cls, f"{realm}/{short}")
        if not realm or not short or name.count("/") != 1:
            raise ValueError(f"{name}: must be a realm and a name, e.g. customer1/vm1")
        name.realm = realm
        name.short = short
        return name

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override] # what copies are made of
        return self.realm, self.short

    @classmethod
    def parse(cls, text: str) -> Self:
        """The one reader of such names.  Raises ValueError with the rule for what no member can be called."""
        realm, _, short = text.partition("/")
        if not NAME.fullmatch(realm) or not NAME.fullmatch(short):
            raise ValueError("is not a member's name; write realm/name, e.g. customer1/vm1 or management/mgmt")
        return cls(realm, short)

    @property
    def is_server(self) -> bool:
        """Whether it is management's; everybody else is a customer's host."""
        return self.realm == MANAGEMENT

    @property
    def side(self) -> Side:
        """The side whose NAT VM it sends to, and which knows it by its real address."""
        return Side.NAT_VM2 if self.is_server else Side.NAT_VM1

    @property
    def label(self) -> str:
        """Its machine in a trace: a server's short name, `customer1/vm1`."""
        return self.short if self.is_server else str(self)


NAT_VM1 = Side.NAT_VM1
NAT_VM2 = Side.NAT_VM2
SIDES = tuple(Side)
GATEWAY = Role(NAT_VM1)
"""The first customer gateway, and in most PODs the only one."""
INNER = Role(NAT_VM2)
"""What faces management, whatever the number of gateways."""

VROUTER = "vrouter"
LPGS = "lpgs"
TRANSIT = "transit"
HEALTH = "health"
PATH_MTU = "path-mtu"

ANYWHERE = "0.0.0.0/0"
SSH = 22

HEALTH_PORT = 8198
HEALTH_PATH = "/"
"""Where a NAT VM answers its balancer's question whether it is well; to its own subnet only."""


def natural(name: str) -> list[tuple[str, int]]:
    """Sorts names as people do, n2 before n10: letters as letters, numbers by their value."""
    return [(letters, int(digits or 0)) for letters, digits in _PARTS.findall(name)]


def servers_first(member: MemberName) -> tuple[bool, list[tuple[str, int]]]:
    """Sorts members as texts list them: the servers, then the hosts, each in natural order."""
    return not member.is_server, natural(member)
