"""Packets in classes: rectangles of sources and destinations that one traced packet stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from nat_pod.trace.spans import LAST_ADDRESS
from nat_pod.trace.walk import Leg

Block = tuple[int, int]
"""First and last address, as numbers."""


def sweep(
    sources: Iterable[Block], destinations: Iterable[Block], trace: Callable[[int, int], Leg]
) -> Iterator[tuple[Block, Block, Leg]]:
    """Classes side by side until all sources times all destinations are covered: for each its packet's fate.

    trace: follows the packet from a source to a destination.
    """
    ahead = [(source, destination) for source in sources for destination in destinations]
    while ahead:
        (low, high), (start, end) = ahead.pop()
        leg = trace(low, start)
        # The packet is the lowest corner: what is left of the rectangle lies above and behind.
        source_end, destination_end = min(high, leg.alike[0][1]), min(end, leg.alike[1][1])
        yield (low, source_end), (start, destination_end), leg
        if destination_end < end:
            ahead.append(((low, source_end), (destination_end + 1, end)))
        if source_end < high:
            ahead.append(((source_end + 1, high), (start, end)))


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
