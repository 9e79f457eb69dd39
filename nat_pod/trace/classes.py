"""Packets in classes: sets of sources, destinations and ports that one traced packet stands for.

A class is a `Box`: everything between two corners.  The packet that is traced is the lowest corner of what is left, so
what it does not stand for lies behind it in one direction or another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from nat_pod.trace.spans import LAST_ADDRESS
from nat_pod.trace.walk import Leg

Block = tuple[int, int]
"""First and last address, as numbers; or ports."""

_Found = TypeVar("_Found")


class Box(NamedTuple):
    """Packets with these sources and destinations, from and to these ports."""

    sources: Block
    destinations: Block
    sports: Block
    dports: Block


def cover(
    boxes: Iterable[Box], follow: Callable[[int, int, int, int], tuple[_Found, Box]]
) -> Iterator[tuple[Box, _Found]]:
    """Classes side by side until all boxes are covered: for each what was found of its packet.

    follow: what becomes of the packet with this source, destination, source port and destination port, and for which
    other packets that holds.
    The classes of some destinations come one after the other: first all of their ports, then the next destinations.
    """
    ahead = list(boxes)
    while ahead:
        box = ahead.pop()
        found, alike = follow(box.sources[0], box.destinations[0], box.sports[0], box.dports[0])
        ends = [min(whole[1], same[1]) for whole, same in zip(box, alike, strict=True)]
        assert all(end >= whole[0] for whole, end in zip(box, ends, strict=True)), "a packet is of its own class"
        done = Box(*((whole[0], end) for whole, end in zip(box, ends, strict=True)))
        yield done, found
        if ends[1] < box.destinations[1]:
            ahead.append(box._replace(sources=done.sources, destinations=(ends[1] + 1, box.destinations[1])))
        if ends[0] < box.sources[1]:
            ahead.append(box._replace(sources=(ends[0] + 1, box.sources[1])))
        if ends[3] < box.dports[1]:
            ahead.append(done._replace(dports=(ends[3] + 1, box.dports[1])))
        if ends[2] < box.sports[1]:
            ahead.append(done._replace(sports=(ends[2] + 1, box.sports[1]), dports=box.dports))


def sweep(
    sources: Iterable[Block], destinations: Iterable[Block], trace: Callable[[int, int], Leg]
) -> Iterator[tuple[Block, Block, Leg]]:
    """Classes until all sources times all destinations are covered, whose packets have the ports that `trace` sends."""

    def follow(source: int, destination: int, *_: int) -> tuple[Leg, Box]:
        leg = trace(source, destination)
        return leg, Box(*leg.alike, *_ONE_PORT)

    boxes = [Box(source, destination, *_ONE_PORT) for source in sources for destination in destinations]
    for box, leg in cover(boxes, follow):
        yield box.sources, box.destinations, leg


_ONE_PORT: tuple[Block, Block] = ((0, 0), (0, 0))


def without(taken: Iterable[Block]) -> list[Block]:
    """What is left of all addresses."""
    left, start = [], 0
    for first, last in sorted(taken):
        if start < first:
            left.append((start, first - 1))
        start = max(start, last + 1)
    return [*left, (start, LAST_ADDRESS)] if start <= LAST_ADDRESS else left


def size(block: Block) -> int:
    """How many addresses it has."""
    return block[1] - block[0] + 1
