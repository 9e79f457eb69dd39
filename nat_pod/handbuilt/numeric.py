"""Addresses as numbers, networks as (first, last), because one import compares some hundred thousand of them."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from netaddr import IPNetwork

from nat_pod.limits import POD_SPACE, VNIC_SUBNET_PREFIX

Range = tuple[int, int]
ANY: Range = (0, 2**32 - 1)
SUBNET_SIZE: int = 2 ** (32 - VNIC_SUBNET_PREFIX)
_MANY = 2**24  # addresses; anything larger is called "anybody"


def network(text: str) -> Range:
    """`10.0.0.100`, `10.0.0.0/24` or `10.0.0.0/255.255.255.0` as (first, last).  Raises ValueError."""
    address, slash, prefix = text.partition("/")
    value = _address(address, text)
    if not slash:
        return value, value
    if "." in prefix:
        mask = _address(prefix, text)
        host_bits = (2**32 - 1) ^ mask
        if host_bits & (host_bits + 1):
            raise ValueError(f"{text} has a mask with holes")
    else:
        if not re.fullmatch(r"[0-9]{1,2}", prefix) or int(prefix) > 32:
            raise ValueError(f"{text} is not an IPv4 network")
        host_bits = 2 ** (32 - int(prefix)) - 1
    return value & ~host_bits, value | host_bits


def _address(text: str, whole: str) -> int:
    parts = text.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts):
        raise ValueError(f"{whole} is not an IPv4 address or network")
    first, second, third, fourth = map(int, parts)
    return first << 24 | second << 16 | third << 8 | fourth


def dotted(address: int) -> str:
    """An address as people write it."""
    return ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))


def cidr(inside: Range) -> str:
    """A network as people write it, without /32."""
    size = inside[1] - inside[0] + 1
    return dotted(inside[0]) if size == 1 else f"{dotted(inside[0])}/{32 - size.bit_length() + 1}"


def as_network(inside: Range) -> IPNetwork:
    """The same as an IPNetwork, for the configuration."""
    return IPNetwork((inside[0], 33 - (inside[1] - inside[0] + 1).bit_length()))


def is_single(inside: Range) -> bool:
    """Whether a network is a single address."""
    return inside[0] == inside[1]


def is_many(inside: Range) -> bool:
    """Whether a network is larger than anybody's, so that a test for it admits anybody."""
    return inside[1] - inside[0] > _MANY


_POD = network(POD_SPACE)


def in_pod_space(address: int) -> bool:
    """Whether an address is a unique one, of 198.18.0.0/15, and not somebody's real address."""
    return _POD[0] <= address <= _POD[1]


def subnet_of(address: int) -> Range:
    """The /27 around an address."""
    first = address - address % SUBNET_SIZE
    return first, first + SUBNET_SIZE - 1


def within(pool: Sequence[int], inside: Range) -> Sequence[int]:
    """The addresses of a sorted pool that lie in a network."""
    return pool[bisect_left(pool, inside[0]) : bisect_right(pool, inside[1])]


def addresses(inside: Range, pool: Sequence[int]) -> Sequence[int]:
    """The address of a single-address range, otherwise the addresses of a sorted pool that lie in the range."""
    return (inside[0],) if is_single(inside) else within(pool, inside)
