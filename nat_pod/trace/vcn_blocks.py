"""The VCN of a neighbour, where nat-pod imagines or makes it: in a trace, a lab and a trial.

A stack file names a neighbour's networks and not which of them lie behind its VCN: the POD's routes and rules are the
same.  So here all of them are CIDR blocks of one VCN, with a subnet each.  Of a network that is too large for a block
there are the /16s in which somebody has an address; one that is too small is in a larger block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netaddr import IPAddress, IPNetwork

from nat_pod.config.addressing import can_be_a_vcns, largest_around, reserved_by_oci

_AROUND_FEW = 24


def blocks_of(networks: Sequence[str], addresses: Iterable[str]) -> tuple[str, ...]:
    """The CIDR blocks, in the order of the networks.  addresses: those that somebody has in one of these networks."""
    held = sorted({IPAddress(address) for address in addresses})
    found = [
        block
        for network in map(IPNetwork, networks)
        for block in _blocks(network, [address for address in held if address in network])
    ]
    outermost = (one for one in found if not any(one != other and one in other for other in found))
    return tuple(dict.fromkeys(map(str, outermost)))


def subnet_names(realm: str, networks: Sequence[str], blocks: Iterable[str]) -> dict[str, str]:
    """By block: the name of its subnet, which is the neighbour's own for the block of its first network."""
    first = IPNetwork(networks[0])
    lowest = next(block for block in blocks if IPNetwork(block) in first or first in IPNetwork(block))
    return {block: realm if block == lowest else f"{realm}-{block}" for block in blocks}


def let_in(networks: Sequence[str], blocks: Iterable[str]) -> tuple[str, ...]:
    """Whom a neighbour's subnets let in: all of its networks, and of the blocks what is in none of them."""
    known = [IPNetwork(network) for network in networks]
    return (*networks, *(block for block in blocks if not any(IPNetwork(block) in network for network in known)))


def block_with(blocks: Iterable[str], address: str) -> str | None:
    """The block that an address is in."""
    return next((block for block in blocks if IPAddress(address) in IPNetwork(block)), None)


def _blocks(network: IPNetwork, held: Sequence[IPAddress]) -> list[IPNetwork]:
    if can_be_a_vcns(network):
        return [network]
    first = largest_around(network.ip)
    if network.size > first.size:
        return sorted({largest_around(address) for address in held}) or [first]
    around = [IPNetwork((network.first, prefix)).cidr for prefix in range(_AROUND_FEW, first.prefixlen, -1)]
    return [next((one for one in around if not any(reserved_by_oci(a, one) for a in held)), first)]
