"""Arithmetic of ranges across PODs: which of them share addresses, and what of 198.18.0.0/15 is still free.

A POD's range is None when its stack file names none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from netaddr import IPNetwork

from nat_pod import limits
from nat_pod.config.addressing import overlap
from nat_pod.errors import Problem


def overlapping(name: str, ranges: Mapping[str, IPNetwork | None], partners: Collection[str] = ()) -> list[str]:
    """The other PODs whose range has an address of this one's.  partners: the PODs that may share its range."""
    mine = ranges[name]
    if mine is None:
        return []
    return [
        other
        for other, cidr in ranges.items()
        if other not in (name, *partners) and cidr is not None and overlap(mine, cidr)
    ]


def overlaps(name: str, ranges: Mapping[str, IPNetwork | None], partners: Collection[str] = ()) -> list[Problem]:
    """Ranges that a POD shares with others, where both would answer for the same unique addresses."""
    return [
        Problem(
            "nat-pod:cidr",
            str(ranges[name]),
            f"overlaps {ranges[other]} of Pulumi.{other}.yaml; each POD has its own range",
        )
        for other in overlapping(name, ranges, partners)
    ]


def free_ranges(ranges: Iterable[IPNetwork | None], prefix: int) -> Iterator[IPNetwork]:
    """The networks of that size in 198.18.0.0/15 in which no POD has an address, from the lowest."""
    taken = [(cidr.first, cidr.last) for cidr in ranges if cidr is not None]
    space = IPNetwork(limits.POD_SPACE)
    size = 2 ** (32 - prefix)
    for first in range(space.first, space.last, size):
        if all(last < first or first + size <= other for other, last in taken):
            yield IPNetwork((first, prefix))
