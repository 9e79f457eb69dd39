"""The arithmetic of a routed POD's range: blocks of aliases, the VCN's own small range and its subnets.

- An alias is the destination of a route, not a private IP: all 32 addresses of a /27 are aliases.  Without the VCN's
  own /26, a /22 has 960 of them, a /21 1,984.
- Aliases are handed out from blocks of a /27, and a block is of one role, whose NAT VMs translate what is in it: route
  tables lead the servers' blocks to NAT VM2 and the hosts' to their customer's gateway, and a table has 200 rules.
- The VCN's range is cut into /29s: one for the NAT VMs of each role, and the last one for the vRouter.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

from netaddr import IPAddress, IPNetwork, cidr_merge

from nat_pod.config.addressing import halves
from nat_pod.limits import RESERVED_LOW
from nat_pod.names import NAT_VM2, MemberName, Role, Side

BLOCK_PREFIX = 27
VCN_PREFIX = 26
SUBNET_PREFIX = 29
_BLOCK_SIZE = 2 ** (32 - BLOCK_PREFIX)


@dataclass(frozen=True, slots=True)
class VcnLayout:
    """The VCN's own small range and its subnets.

    In the subnet of a role the first usable addresses are the VMs' and the balancer's, at fixed offsets.
    """

    vcn: IPNetwork

    def subnet(self, role: Role) -> IPNetwork:
        """The /29 of a role's NAT VMs and their balancer: the first gateway's, NAT VM2's, then the other gateways'."""
        match role.side:
            case Side.NAT_VM1:
                return self._nth(0 if role.number == 1 else role.number)
            case Side.NAT_VM2:
                return self._nth(1)
            case _ as never:
                assert_never(never)

    @property
    def gateways(self) -> int:
        """How many customer gateways have room: all /29s but NAT VM2's and the vRouter's."""
        return int(self.vcn.size // 2 ** (32 - SUBNET_PREFIX)) - 2

    @property
    def vrouter(self) -> IPNetwork:
        """The last /29: the vRouter's."""
        return self._nth(-1)

    def vm(self, role: Role, number: int) -> str:
        """The address of a role's n-th NAT VM, from 0."""
        return str(IPAddress(self.subnet(role).first + RESERVED_LOW + number))

    def balancer(self, role: Role) -> str:
        """The address of a role's balancer, behind both VMs'."""
        return self.vm(role, 2)

    def _nth(self, number: int) -> IPNetwork:
        size = 2 ** (32 - SUBNET_PREFIX)
        start = self.vcn.first if number >= 0 else self.vcn.last + 1
        return IPNetwork((start + number * size, SUBNET_PREFIX))


def default_vcn(cidr: IPNetwork) -> IPNetwork:
    """The last /26 of a POD's range."""
    size = 2 ** (32 - VCN_PREFIX)
    return IPNetwork((cidr.last - size + 1, VCN_PREFIX))


def block_of(alias: IPAddress) -> IPNetwork:
    """The block that an alias is in."""
    return IPNetwork((int(alias) - int(alias) % _BLOCK_SIZE, BLOCK_PREFIX))


def merged(aliases: Iterable[IPAddress]) -> tuple[IPNetwork, ...]:
    """The blocks that these aliases are in, as few networks."""
    return tuple(cidr_merge([IPNetwork((first, BLOCK_PREFIX)) for first in sorted({_first(a) for a in aliases})]))


def owners(aliases: Mapping[MemberName, IPAddress], role: Callable[[MemberName], Role | None]) -> dict[int, Role]:
    """By the first address of each block that is taken: the role that it is of.

    role: that of a member's NAT VMs, None for one whose customer is gone.  A block in which nobody else is keeps the
    role that its oldest line says: whoever still sends there is at least not led to somebody else.
    """
    return {_first(alias): found for name, alias in aliases.items() if (found := role(name)) is not None}


def free_aliases(
    cidr: IPNetwork, vcn: IPNetwork, *, role: Role, owned: dict[int, Role], taken: Container[object]
) -> Iterator[IPAddress]:
    """The aliases that members of a role may still get, in the order in which they are handed out.

    Servers' blocks begin at the bottom of the range and hosts' in the middle, where the article's delivery has NAT
    VM1's and NAT VM2's addresses.  When the upper half is full, hosts get blocks of the lower one from its end.
    Addresses that end in .0 and .255 come last: they are as good as any, but some old machines and filters take them
    for a network's own and its broadcast address.
    owned: see `owners`; a block from which the first alias is taken is added to it.  taken: aliases to leave out.
    """
    blocks = list(_blocks(cidr, vcn, role.side is NAT_VM2))
    for last in (False, True):
        for first in blocks:
            for alias in range(first, first + _BLOCK_SIZE):
                if (alias % 256 in (0, 255)) is last and owned.get(first, role) == role:
                    address = IPAddress(alias)
                    if address not in taken:
                        owned[first] = role
                        yield address


def capacity(cidr: IPNetwork, vcn: IPNetwork) -> int:
    """How many aliases a range holds."""
    return int(cidr.size - vcn.size)


def _blocks(cidr: IPNetwork, vcn: IPNetwork, servers: bool) -> Iterator[int]:
    """The blocks outside the VCN's range by their first address, in the order of servers or of hosts."""
    lower, upper = (range(half.first, half.last, _BLOCK_SIZE) for half in halves(cidr))
    order = [*lower, *upper] if servers else [*upper, *reversed(lower)]
    for first in order:
        if not vcn.first <= first <= vcn.last:
            yield first


def _first(alias: IPAddress) -> int:
    return int(block_of(alias).first)
