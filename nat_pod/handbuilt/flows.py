"""Step 3: the requests that the other NAT VM delivers.

caller -> DNAT on its own NAT VM -> source hidden -> DNAT on the other NAT VM -> receiver
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nat_pod.handbuilt.numeric import dotted, in_pod_space
from nat_pod.handbuilt.remarks import Remark, RemarkKind
from nat_pod.handbuilt.requests import SavedRequest, SavedRequests
from nat_pod.handbuilt.saved_table import SavedRule
from nat_pod.handbuilt.saved_vm import SavedVms, never_a_vm, why_never
from nat_pod.handbuilt.saved_walk import translated
from nat_pod.handbuilt.vnic_pairs import VnicPairs
from nat_pod.names import NAT_VM1, SIDES, Side


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedFlow:
    """A request that arrives at `receiver`.  Its source between the NAT VMs is `hidden`, at the receiver `seen`.

    hid_by: the rules that hid the source on the first and on the second NAT VM; None where no rule did.
    """

    request: SavedRequest
    receiver: int
    hidden: int
    seen: int
    hid_by: tuple[SavedRule | None, SavedRule | None]

    @property
    def pair(self) -> tuple[int, int]:
        """The receiver's addresses on NAT VM1 and NAT VM2."""
        request = self.request
        return (request.used, request.transit) if request.vm is NAT_VM1 else (request.transit, request.used)


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedFlows:
    """What step 3 found.

    needed: the id() of each rule that a flow needs.  lost: by the id() of a request's rule, why its packets get lost.
    arrivals: what each NAT VM gets from the other, as sources by destination.
    """

    flows: tuple[SavedFlow, ...]
    needed: frozenset[int]
    lost: Mapping[int, str]
    arrivals: Mapping[Side, Mapping[int, set[int]]]
    remarks: tuple[Remark, ...]


def find_flows(vms: SavedVms, found: SavedRequests, pairs: VnicPairs) -> SavedFlows:
    """Send each request on to a receiver, with its source hidden, through the other NAT VM."""
    flows: list[SavedFlow] = []
    needed: set[int] = set()
    lost: dict[int, str] = {}
    arrivals: dict[Side, dict[int, set[int]]] = {side: {} for side in SIDES}
    remarks: list[Remark] = []
    for request in found.requests:
        own, other = request.vm, request.vm.other
        hiding = vms[own].walk.postrouting(request.caller, request.transit)
        hidden = translated(hiding, request.caller, pairs.primary[own])
        arrivals[other].setdefault(request.transit, set()).add(hidden)
        delivery = vms[other].walk.prerouting(hidden, request.transit)
        receiver = translated(delivery, request.transit, 0)
        if receiver == request.transit or in_pod_space(receiver) or never_a_vm(receiver):
            if delivery is not None and never_a_vm(receiver):
                remarks.append(Remark(kind=RemarkKind.FORBIDDEN, vm=other, at=delivery, why=why_never(receiver)))
            lost.setdefault(id(request.rule), _why_lost(request, found, hiding, hidden, delivery))
            continue
        showing = vms[other].walk.postrouting(hidden, receiver)
        seen = translated(showing, hidden, pairs.primary[other])
        needed |= {id(rule) for rule in (request.rule, hiding, delivery, showing) if rule is not None}
        flows.append(SavedFlow(request=request, receiver=receiver, hidden=hidden, seen=seen, hid_by=(hiding, showing)))
    return SavedFlows(
        flows=tuple(flows), needed=frozenset(needed), lost=lost, arrivals=arrivals, remarks=tuple(remarks)
    )


def _why_lost(
    request: SavedRequest, found: SavedRequests, hiding: SavedRule | None, hidden: int, delivery: SavedRule | None
) -> str:
    other, transit = request.vm.other.prose, dotted(request.transit)
    if hiding is None and not in_pod_space(hidden):
        return f"nothing on {request.vm.prose} hides the source: {other} gets packets from {dotted(hidden)}"
    if delivery is not None:
        to = translated(delivery, request.transit, 0)
        if never_a_vm(to):
            return f"{other} translates {transit} to {dotted(to)}, which no VM can have"
        return f"{other} sends packets for {transit} back into the POD"
    if found.candidates[request.vm.other].have(request.transit):
        return f"{other} translates {transit}, but not for packets from {dotted(hidden)}, as they arrive there"
    return f"{other} does not translate {transit}"
