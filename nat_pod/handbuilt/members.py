"""Step 4: who calls, who is called, and each member's slot, which is the pair of addresses most of its flows use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from nat_pod.config.addressing import reserved_by_oci
from nat_pod.errors import NatPodError
from nat_pod.handbuilt.flows import SavedFlow
from nat_pod.handbuilt.numeric import SUBNET_SIZE, Range, cidr, dotted, subnet_of
from nat_pod.handbuilt.remarks import Remark, RemarkKind
from nat_pod.handbuilt.requests import SavedRequest
from nat_pod.handbuilt.saved_vm import SavedVms
from nat_pod.handbuilt.vnic_pairs import VnicPairs
from nat_pod.limits import VNIC_SUBNET_PREFIX
from nat_pod.names import NAT_VM1, NAT_VM2, SIDES, Side
from nat_pod.text import count, some

_MOST_MEMBERS = 5_000

AddressPair = tuple[int, int]  # of one member, on NAT VM1 and NAT VM2
Members = Mapping[int, AddressPair | None]
"""Real addresses, with the slot of each; None: nat-pod has to give it one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedMembers:
    """Customers' hosts and management's servers."""

    hosts: Members
    servers: Members
    remarks: tuple[Remark, ...]

    def callers(self, vm: Side) -> Members:
        """The members that send to a NAT VM of their own accord."""
        return self.hosts if vm is NAT_VM1 else self.servers


def find_members(vms: SavedVms, flows: Sequence[SavedFlow], layout: VnicPairs) -> SavedMembers:
    """The members, from the flows whose ends they are.  Raises NatPodError for more of them than any POD has."""
    servers, about_servers = _members_called_by(NAT_VM1, vms, flows, layout)
    hosts, about_hosts = _members_called_by(NAT_VM2, vms, flows, layout)
    if len(hosts) + len(servers) > _MOST_MEMBERS:
        raise NatPodError(
            f"these rules connect {count(len(hosts), 'host')} and {count(len(servers), 'server')}, "
            f"more than {_MOST_MEMBERS} together; a POD has 696 slots at most"
        )
    remarks = [*about_servers, *about_hosts, *_unused(vms, (*hosts.values(), *servers.values()), layout)]
    if len(servers) > len(hosts):
        why = (
            f"--vm1 and --vm2 look exchanged: {count(len(hosts), 'host')} behind --vm1, "
            f"{count(len(servers), 'server')} behind --vm2; --vm1 is the NAT VM that faces the customers"
        )
        remarks.append(Remark(kind=RemarkKind.EXCHANGED, why=why))
    return SavedMembers(hosts=hosts, servers=servers, remarks=tuple(remarks))


def _members_called_by(
    side: Side, vms: SavedVms, flows: Sequence[SavedFlow], layout: VnicPairs
) -> tuple[Members, list[Remark]]:
    """The receivers of the flows that a side sends, and those of them that only call themselves."""
    reached: dict[int, dict[AddressPair, list[SavedFlow]]] = {}
    first_call: dict[int, SavedRequest] = {}
    for flow in flows:
        if flow.request.vm is side:
            reached.setdefault(flow.receiver, {}).setdefault(flow.pair, []).append(flow)
        else:
            first = first_call.setdefault(flow.request.caller, flow.request)
            if flow.request.rule.line < first.rule.line:
                first_call[flow.request.caller] = flow.request
    members: dict[int, AddressPair | None] = {}
    remarks: list[Remark] = []
    owners: dict[AddressPair, int] = {}
    for member in sorted(reached):
        members[member] = _slot(member, reached[member], vms, dict(layout.pairs), owners, remarks)
    whom, kind = ("customers", "servers") if side is NAT_VM1 else ("management", "hosts")
    for caller in sorted(set(first_call) - set(reached)):
        members[caller] = None
        call = first_call[caller]
        why = f"{dotted(caller)} calls, but {whom} cannot call it; "
        why += f"in nat-pod all {kind} can be called"
        remarks.append(Remark(kind=RemarkKind.ONE_WAY, vm=call.vm, at=call.rule, why=why))
    return members, remarks


def _slot(
    member: int,
    reached: Mapping[AddressPair, list[SavedFlow]],
    vms: SavedVms,
    partner: Mapping[Range, Range],
    owners: dict[AddressPair, int],
    remarks: list[Remark],
) -> AddressPair | None:
    """The slot of one member, None when none of its pairs can be one.

    owners: by slot, so far; the member is added.  remarks: gets one for each other pair.
    """
    slot = None
    for pair in sorted(reached, key=lambda pair: (-len(reached[pair]), reached[pair][0].request.rule.line)):
        request = reached[pair][0].request
        refused = _why_no_slot(pair, partner)
        if refused is None and slot is not None:
            taken = f"and at {dotted(slot[0])} / {dotted(slot[1])} too; a member has one slot"
            refused = RemarkKind.ASYMMETRIC, f", {taken}"
        if refused is None and owners.setdefault(pair, member) != member:
            taken = f"as {dotted(owners[pair])} is for others; a slot is one member's for everybody"
            refused = RemarkKind.ASYMMETRIC, f", {taken}"
        if refused is None:
            slot = pair
            remarks += _without_vnic(member, pair, request, vms)
        else:
            kind, rest = refused
            why = f"{dotted(member)} is reached at {dotted(pair[0])} / {dotted(pair[1])}{rest}"
            remarks.append(Remark(kind=kind, vm=request.vm, at=request.rule, why=why))
    return slot


def _why_no_slot(pair: AddressPair, partner: Mapping[Range, Range]) -> tuple[RemarkKind, str] | None:
    """What in a pair of addresses does not fit the layout.  partner: by subnet of NAT VM1, its subnet on NAT VM2."""
    one, two = pair
    reserved = _reserved(one) or _reserved(two)
    expected = partner.get(subnet_of(one))
    if reserved:
        return RemarkKind.RESERVED, f"; {reserved}"
    if expected is None or expected != subnet_of(two):
        where = "no /27 of NAT VM2" if expected is None else cidr(expected)
        return RemarkKind.ASYMMETRIC, f"; {cidr(subnet_of(one))} of NAT VM1 goes with {where}"
    if one % SUBNET_SIZE != two % SUBNET_SIZE:
        right = dotted(expected[0] + one % SUBNET_SIZE)
        return RemarkKind.ASYMMETRIC, f"; a slot has the same offset in both /27s: {dotted(one)} goes with {right}"
    return None


def _reserved(address: int) -> str | None:
    return reserved_by_oci(IPAddress(address), IPNetwork((subnet_of(address)[0], VNIC_SUBNET_PREFIX)))


def _without_vnic(member: int, pair: AddressPair, request: SavedRequest, vms: SavedVms) -> Iterator[Remark]:
    for side, address in zip(SIDES, pair, strict=True):
        listed = vms[side].vnics
        if listed is None:
            continue
        missing = None
        if not any(first <= address <= last for first, last in listed.subnets):
            missing = f"no VNIC of {side.prose} is in its subnet"
        elif listed.addresses is not None and address not in listed.addresses:
            missing = f"no VNIC of {side.prose} has it as a private IP"
        if missing:
            why = f"{dotted(member)} is mapped to {dotted(address)}, but {missing}"
            yield Remark(kind=RemarkKind.NO_VNIC, vm=request.vm, at=request.rule, why=why)


def _unused(vms: SavedVms, slots: Sequence[AddressPair | None], layout: VnicPairs) -> Iterator[Remark]:
    for number, side in enumerate(SIDES):
        listed = vms[side].vnics
        used = {slot[number] for slot in slots if slot is not None} | {layout.primary[side]}
        addresses = frozenset() if listed is None or listed.addresses is None else listed.addresses
        unused = [dotted(address) for address in sorted(addresses - used)]
        if unused:
            yield Remark(kind=RemarkKind.UNUSED, vm=side, why=f"no mapping needs the private IPs {some(unused, 3)}")
