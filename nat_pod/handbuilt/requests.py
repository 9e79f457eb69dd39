"""Step 1: which packets each rule may be for, and the requests among them.

Nothing is concluded from how a rule looks.  The rule says which packets it may be for, and these are sent through its
NAT VM.  A packet whose destination becomes a unique address on the other NAT VM is the first half of a flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from nat_pod.handbuilt.numeric import Range, addresses, cidr, dotted, in_pod_space, is_many, is_single
from nat_pod.handbuilt.remarks import Remark, RemarkKind
from nat_pod.handbuilt.saved_table import Action, SavedRule
from nat_pod.handbuilt.saved_vm import SavedVm, SavedVms, never_a_vm, unique_addresses, why_never
from nat_pod.handbuilt.saved_walk import translated
from nat_pod.limits import POD_SPACE
from nat_pod.names import Side


class Packets(NamedTuple):
    """The packets that pass all tests on one way to a rule."""

    sources: Range
    destinations: Range


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedRequest:
    """The first half of a flow: `caller` sends to `used`, which its own NAT VM `vm` changes to `transit`."""

    vm: Side
    caller: int
    used: int
    transit: int
    rule: SavedRule


class Candidates:
    """The packets that the translating rules of one PREROUTING may be for."""

    def __init__(self, vm: SavedVm) -> None:
        self.ways = [(rule, Packets(sources, destinations)) for rule, sources, destinations in vm.walk.ways()]
        self._by_rule: dict[int, list[Packets]] = {}  # by id(): two rules made of one line may be equal
        for rule, packets in self.ways:
            self._by_rule.setdefault(id(rule), []).append(packets)
        inside = {packets.destinations for _, packets in self.ways}
        self._single = {one[0] for one in inside if is_single(one)}
        self._broad = [one for one in inside if not is_single(one)]

    def of(self, rule: SavedRule) -> list[Packets]:
        """One entry for each way that leads to a rule."""
        return self._by_rule.get(id(rule), [])

    def have(self, destination: int) -> bool:
        """Whether any rule may translate packets to this destination."""
        return destination in self._single or any(first <= destination <= last for first, last in self._broad)


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedRequests:
    """What step 1 found.  unique: all addresses of 198.18.0.0/15 that the rules are about, sorted."""

    candidates: Mapping[Side, Candidates]
    unique: tuple[int, ...]
    requests: tuple[SavedRequest, ...]
    remarks: tuple[Remark, ...]


def find_requests(vms: SavedVms) -> SavedRequests:
    """Send, for each rule that translates, the packets that it may be for.

    Raises NatPodError for more of them than any POD has.
    """
    unique = unique_addresses(vms)
    candidates: dict[Side, Candidates] = {}
    requests: list[SavedRequest] = []
    remarks: list[Remark] = []
    for side, vm in vms.items():
        candidates[side] = Candidates(vm)
        decided: dict[tuple[int, int], SavedRule | None] = {}
        for rule, packets in candidates[side].ways:
            if rule.action is Action.DNAT and not is_single(packets.destinations):
                what = "every destination" if is_many(packets.destinations) else cidr(packets.destinations)
                why = f"maps {what} to one address; a mapping is one address to one"
                remarks.append(Remark(kind=RemarkKind.WIDE, vm=side, at=rule, why=why))
            elif not is_single(packets.sources) or not in_pod_space(packets.sources[0]):
                for caller in addresses(packets.sources, vm.reals):
                    for used in addresses(packets.destinations, unique):
                        decided[caller, used] = vm.walk.prerouting(caller, used)
        for (caller, used), winner in decided.items():
            if winner is not None and winner.action in (Action.DNAT, Action.NETMAP) and not in_pod_space(caller):
                found = _request(side, caller, used, winner)
                if isinstance(found, Remark):
                    remarks.append(found)
                else:
                    requests.append(found)
    return SavedRequests(candidates=candidates, unique=unique, requests=tuple(requests), remarks=tuple(remarks))


def _request(vm: Side, caller: int, used: int, rule: SavedRule) -> SavedRequest | Remark:
    """A translated packet as a request, or the reason why it is not one."""
    transit = translated(rule, used, 0)
    if never_a_vm(transit):
        return Remark(kind=RemarkKind.FORBIDDEN, vm=vm, at=rule, why=why_never(transit))
    if not in_pod_space(used):
        why = f"{dotted(used)} is not one of a POD's unique addresses, which are in {POD_SPACE}"
        return Remark(kind=RemarkKind.UNKNOWN_NETWORK, vm=vm, at=rule, why=why)
    if in_pod_space(transit):
        return SavedRequest(vm=vm, caller=caller, used=used, transit=transit, rule=rule)
    if is_single(rule.source):
        why = (
            f"leads from {dotted(caller)} to {dotted(transit)} through {vm.prose} alone; nat-pod connects "
            "customers and management through both NAT VMs, and nobody else"
        )
    else:
        why = (
            f"takes packets from anywhere, so {dotted(caller)} reaches {dotted(transit)} through {vm.prose} alone; "
            "nat-pod takes them from the other NAT VM only"
        )
    return Remark(kind=RemarkKind.DIRECT, vm=vm, at=rule, why=why)
