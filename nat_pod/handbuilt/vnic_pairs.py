"""Step 2: which /27 of NAT VM1 goes with which of NAT VM2, and each NAT VM's primary address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nat_pod.handbuilt.numeric import SUBNET_SIZE, Range, cidr, dotted, in_pod_space, is_single, subnet_of
from nat_pod.handbuilt.remarks import Remark, RemarkKind
from nat_pod.handbuilt.requests import SavedRequests
from nat_pod.handbuilt.saved_vm import SavedVms
from nat_pod.limits import RESERVED_LOW, VNIC_SUBNET_PREFIX
from nat_pod.names import NAT_VM1, NAT_VM2, SIDES, Side

_MORE_THAN_ALL = 500_000  # votes; there are no more requests


@dataclass(frozen=True, kw_only=True, slots=True)
class VnicPairs:
    """The layout.  pairs: the subnets on NAT VM1 and NAT VM2, the primary VNICs' pair first.

    primary: by side, the address that MASQUERADE uses.
    """

    pairs: tuple[tuple[Range, Range], ...]
    primary: Mapping[Side, int]
    remarks: tuple[Remark, ...]


def find_pairs(vms: SavedVms, found: SavedRequests) -> VnicPairs:
    """What most mappings with equal offsets say."""
    evidence = {side: _primary_evidence(vms, found, side) for side in SIDES}
    pairs = _in_order(_elected(found), evidence, vms)
    primary: dict[Side, int] = {}
    remarks = []
    if found.requests and not pairs:
        why = "no /27 of NAT VM1 translates into one of NAT VM2: there is no layout to pin"
        remarks.append(Remark(kind=RemarkKind.LAYOUT, why=why))
    for number, side in enumerate(SIDES):
        first = pairs[0][number][0] + RESERVED_LOW if pairs else 0
        primary[side] = evidence[side] or first
        if pairs and primary[side] != first:
            why = f"the primary address of {side.prose} is {dotted(primary[side])}; in nat-pod it is {dotted(first)}"
            remarks.append(Remark(kind=RemarkKind.LAYOUT, vm=side, why=why))
        remarks += _odd_subnets(vms, side)
    return VnicPairs(pairs=tuple(pairs), primary=primary, remarks=tuple(remarks))


def _elected(found: SavedRequests) -> list[tuple[Range, Range]]:
    votes: Counter[tuple[Range, Range]] = Counter()
    for request in found.requests:
        if not found.candidates[request.vm.other].have(request.transit):
            continue
        one, two = (request.used, request.transit) if request.vm is NAT_VM1 else (request.transit, request.used)
        # One mapping with equal offsets counts more than all with unequal ones, which do not fit in any case.
        votes[subnet_of(one), subnet_of(two)] += _MORE_THAN_ALL if one % SUBNET_SIZE == two % SUBNET_SIZE else 1
    elected: list[tuple[Range, Range]] = []
    taken: set[Range] = set()
    for pair, _ in sorted(votes.items(), key=lambda vote: (-vote[1], vote[0])):
        if pair[0] != pair[1] and not taken & set(pair):
            taken |= set(pair)
            elected.append(pair)
    return elected


def _in_order(
    pairs: list[tuple[Range, Range]], evidence: Mapping[Side, int | None], vms: SavedVms
) -> list[tuple[Range, Range]]:
    """The primary VNICs' pair first, then in the order of NAT VM1's list of VNICs, then by address."""
    primaries = [address and subnet_of(address) for address in (evidence[NAT_VM1], evidence[NAT_VM2])]
    vnics = vms[NAT_VM1].vnics
    listed = () if vnics is None else vnics.subnets

    def place(pair: tuple[Range, Range]) -> tuple[bool, int, Range]:
        primary = any(one == two for one, two in zip(pair, primaries, strict=True))
        return not primary, listed.index(pair[0]) if pair[0] in listed else len(listed), pair[0]

    return sorted(pairs, key=place)


def _primary_evidence(vms: SavedVms, found: SavedRequests, side: Side) -> int | None:
    """The address that MASQUERADE uses, from the list of VNICs or from the rules of the other NAT VM."""
    vnics = vms[side].vnics
    if vnics is not None and vnics.primary is not None:
        return vnics.primary
    if not vms[side].masquerades:
        return None
    expected = Counter(
        packets.sources[0]
        for _, packets in found.candidates[side.other].ways
        if is_single(packets.sources) and in_pod_space(packets.sources[0])
    )
    return min(expected, key=lambda address: (-expected[address], address), default=None)


def _odd_subnets(vms: SavedVms, side: Side) -> Iterator[Remark]:
    vnics = vms[side].vnics
    for subnet in () if vnics is None else vnics.subnets:
        if subnet[1] - subnet[0] + 1 != SUBNET_SIZE:
            why = f"a VNIC of {side.prose} is in {cidr(subnet)}; nat-pod's are in a /{VNIC_SUBNET_PREFIX} each"
            yield Remark(kind=RemarkKind.LAYOUT, vm=side, why=why)
