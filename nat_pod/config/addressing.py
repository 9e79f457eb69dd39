"""The arithmetic of a POD's range: VNIC subnets in pairs, slots, the vRouter's subnet.

- A /27 has 32 addresses, of which OCI keeps the first two and the last: 29 are usable, 1 primary and 28 secondary.
- NAT VM1 and NAT VM2 need a /27 each for a pair of VNICs, and the vRouter's /29 takes a /27 of its own: a /22
  (32 x /27) holds 15 pairs = 435 slots, a /21 the 24 pairs of a 2.24 VM = 696.  (The article, section 3, counts 24
  pairs in a /22; they do not fit.)
- A *slot* is the same offset in both /27s of a pair (the article's .2/.130, .3/.131, .34/.66).  Because of that a
  whole pair is translated by one NETMAP rule.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import assert_never

from netaddr import IPAddress, IPNetwork

from nat_pod.ipv4 import dotted
from nat_pod.limits import RESERVED_HIGH, RESERVED_LOW, SLOTS_PER_PAIR, VCN_PREFIXES, VNIC_SUBNET_PREFIX
from nat_pod.names import Side
from nat_pod.text import some

_SUBNET_SIZE = 2 ** (32 - VNIC_SUBNET_PREFIX)
VROUTER_PREFIX = 29


@dataclass(frozen=True, order=True, slots=True)
class Slot:
    """A place in the address book: `offset` (2 to 30) in both /27s of VNIC pair `pair` (from 1)."""

    pair: int
    offset: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The /27 of NAT VM1 and the /27 of NAT VM2 that translate into one another."""

    index: int
    nat_vm1: IPNetwork
    nat_vm2: IPNetwork

    def subnet(self, side: Side) -> IPNetwork:
        """The /27 of one side."""
        match side:
            case Side.NAT_VM1:
                return self.nat_vm1
            case Side.NAT_VM2:
                return self.nat_vm2
            case _ as never:
                assert_never(never)

    def primary(self, side: Side) -> str:
        """The address of the VNIC itself on one side; the other addresses of the /27 are secondary."""
        return dotted(self.subnet(side).first + RESERVED_LOW)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a POD's range is divided.  `pinned`: the stack file says so (`subnets:`), and not the planner."""

    cidr: IPNetwork
    pairs: tuple[Pair, ...]
    vrouter: IPNetwork
    pinned: bool

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return SLOTS_PER_PAIR * len(self.pairs)

    def slots(self) -> Iterator[Slot]:
        """All slots in the order in which they are handed out.

        The slot of the first VNICs' primary addresses comes last: a host that owns it gets the ssh that is meant for
        NAT VM1 (docs/operate.md, "The way in").
        """
        for pair in self.pairs:
            for offset in range(RESERVED_LOW, _SUBNET_SIZE - RESERVED_HIGH):
                if (pair.index, offset) != (1, RESERVED_LOW):
                    yield Slot(pair.index, offset)
        yield Slot(1, RESERVED_LOW)

    def addresses(self, slot: Slot) -> tuple[str, str]:
        """The slot's address on NAT VM1 and on NAT VM2."""
        pair = self.pairs[slot.pair - 1]
        return dotted(pair.nat_vm1.first + slot.offset), dotted(pair.nat_vm2.first + slot.offset)

    def address(self, slot: Slot, side: Side) -> str:
        """The slot's address on one side."""
        return dotted(self.pairs[slot.pair - 1].subnet(side).first + slot.offset)

    def find(self, nat_vm1: IPAddress, nat_vm2: IPAddress) -> Slot | str:
        """The slot with these two addresses, or a sentence that says why they are not a slot."""
        one, two = int(nat_vm1), int(nat_vm2)
        pair1 = next((pair for pair in self.pairs if 0 <= one - pair.nat_vm1.first < _SUBNET_SIZE), None)
        pair2 = next((pair for pair in self.pairs if 0 <= two - pair.nat_vm2.first < _SUBNET_SIZE), None)
        if pair1 is None:
            return (
                f"natVm1 {nat_vm1} is in no subnet of NAT VM1 ({some([str(pair.nat_vm1) for pair in self.pairs], 3)})"
            )
        if pair2 is None:
            return (
                f"natVm2 {nat_vm2} is in no subnet of NAT VM2 ({some([str(pair.nat_vm2) for pair in self.pairs], 3)})"
            )
        offset = one - pair1.nat_vm1.first
        for address, network in ((nat_vm1, pair1.nat_vm1), (nat_vm2, pair2.nat_vm2)):
            reserved = reserved_by_oci(address, network)
            if reserved:
                return reserved
        partner = pair1.nat_vm2.first + offset
        if two != partner:
            return (
                f"a slot has the same offset in both /27s of its VNIC pair: {nat_vm1} goes with {dotted(partner)}, "
                f"not with {nat_vm2}"
            )
        return Slot(pair1.index, offset)


def reserved_by_oci(address: IPAddress, subnet: IPNetwork) -> str | None:
    """Why OCI does not give `address` of `subnet` to a VNIC, None when it does (OCI docs, "VCNs and Subnets")."""
    offset = int(address) - subnet.first
    if offset < RESERVED_LOW:
        which = "first" if offset == 0 else "second"
    elif int(address) > subnet.last - RESERVED_HIGH:
        which = "last"
    else:
        return None
    return f"{address} is the {which} address of {subnet}, which OCI reserves (it keeps the first two and the last)"


def free_addresses(network: IPNetwork, taken: Container[str]) -> Iterator[str]:
    """Addresses that OCI gives to VNICs and that nobody has, from the end, because people number from the beginning."""
    for offset in range(network.size - 1, 0, -1):
        address = network[offset]
        if reserved_by_oci(address, network) is None and str(address) not in taken:
            yield str(address)


def default_layout(cidr: IPNetwork, vnic_limit: int) -> Layout:
    """Lay a range out: NAT VM1 from the bottom, NAT VM2 from the middle, the vRouter's /29 at the very end.

    Each side then lies in one half of the range, so one route per neighbour covers it for good, however many VNIC
    pairs are added.  The /27 around the vRouter's /29 holds nothing else.

    cidr: a network of /25 or larger.  vnic_limit: how many VNICs a VM can have; a pair needs one on each.
    For a /22:  NAT VM1 /27 number 0-14, NAT VM2 16-30, vRouter the last /29 of number 31.
    """
    count = cidr.size // _SUBNET_SIZE
    middle = count // 2
    pairs = min(count - 1 - middle, vnic_limit)
    return Layout(
        cidr=cidr,
        pairs=tuple(
            Pair(index + 1, _vnic_subnet(cidr, index), _vnic_subnet(cidr, middle + index)) for index in range(pairs)
        ),
        vrouter=IPNetwork((cidr.last - 2 ** (32 - VROUTER_PREFIX) + 1, VROUTER_PREFIX)),
        pinned=False,
    )


def halves(cidr: IPNetwork) -> tuple[IPNetwork, IPNetwork]:
    """The lower half of a range (NAT VM1's in the default layout) and the upper one (NAT VM2's)."""
    lower, upper = cidr.subnet(cidr.prefixlen + 1)
    return lower, upper


def overlap(one: IPNetwork, other: IPNetwork) -> bool:
    """Whether two networks share an address."""
    return bool(one.first <= other.last and other.first <= one.last)


def can_be_a_vcns(network: IPNetwork) -> bool:
    """Whether a network can be a CIDR of a VCN; one that is larger or smaller can only lie behind a VCN."""
    return network.prefixlen in VCN_PREFIXES


def usable(subnet: IPNetwork) -> int:
    """How many addresses of a subnet OCI gives to VNICs (OCI docs, "VCNs and Subnets"); see `reserved_by_oci`."""
    return int(subnet.size) - RESERVED_LOW - RESERVED_HIGH


def members_at_most(network: IPNetwork) -> int:
    """How many members a neighbour's network can have: of one that only lies behind a VCN OCI keeps no address."""
    return usable(network) if can_be_a_vcns(network) else int(network.size)


def largest_around(address: IPAddress) -> IPNetwork:
    """The largest CIDR that a VCN can have, around an address."""
    return IPNetwork((int(address), VCN_PREFIXES[0])).cidr


def clash(ones: Iterable[IPNetwork], others: Collection[IPNetwork]) -> tuple[IPNetwork, IPNetwork] | None:
    """The first network of each of two lists that share an address; None when no two do."""
    return next(((one, other) for one in ones for other in others if overlap(one, other)), None)


def _vnic_subnet(cidr: IPNetwork, index: int) -> IPNetwork:
    return IPNetwork((cidr.first + index * _SUBNET_SIZE, VNIC_SUBNET_PREFIX))
