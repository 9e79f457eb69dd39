"""What a picture shows of a large POD, and how high its boxes are.

What the flow touches is always shown.  Of the rest, as much is shown as stays readable.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from nat_pod.names import MANAGEMENT, Side, natural
from nat_pod.pages import columns
from nat_pod.pages.journey import Journey
from nat_pod.pages.svg import mono, width
from nat_pod.plan.model import PodPlan, SlotPlan

_MOST_HOSTS, _MOST_SERVERS, _MOST_VNICS, _MOST_NETWORKS = 14, 8, 4, 4


def _more(cidrs: list[str]) -> str:
    return f"and {len(cidrs) - _MOST_NETWORKS + 1} more"


@dataclass(frozen=True, slots=True)
class Realm:
    """A neighbour in the picture: some of its members, and how many more there are."""

    members: tuple[SlotPlan, ...]
    more: int


class Layout:
    """What is shown of a POD, and how high each box is.

    `touched`: the two members of the flow.  `held`: by address of a NAT VM, the key of its VNIC.  `busy`: the VNICs by
    which the flow arrives.  `vnics`: indexes, the same on both VMs, so that a pair is side by side.
    """

    def __init__(self, plan: PodPlan, flow: Journey | None) -> None:
        self.plan = plan
        self.touched = set() if flow is None else {flow.sender.member, flow.receiver.member}
        self.held = {address: vnic.key for vm in plan.vms for vnic in vm.vnics for address in vnic.addresses}
        stretches = () if flow is None else flow.stretches
        ends = (stretch.dst for stretch in stretches if isinstance(stretch.end, Side))
        self.busy = {self.held[address] for address in ends if address in self.held}
        self.servers = self._realm(MANAGEMENT, _MOST_SERVERS)
        few = len(plan.slots) - self.servers.more - len(self.servers.members) <= _MOST_HOSTS
        self.customers = {name: self._realm(name, _MOST_HOSTS if few else 0) for name in plan.customer_cidrs}
        self.vnics = self._vnics()

    def _realm(self, realm: str, most: int) -> Realm:
        owned = (slot for slot in self.plan.slots if slot.member.realm == realm)
        members = sorted(owned, key=lambda slot: natural(slot.member))
        kept = {slot.member for slot in (members if len(members) <= most else members[: max(0, most - 1)])}
        shown = tuple(slot for slot in members if slot.member in kept | self.touched)
        return Realm(shown, len(members) - len(shown))

    def _vnics(self) -> list[int]:
        """The indexes of the VNICs that are shown, the same on both VMs, so that a pair is side by side."""
        vnics = self.plan.vms_on(Side.NAT_VM1)[0].vnics
        if len(vnics) <= _MOST_VNICS:
            return [vnic.index for vnic in vnics]
        busy = {vnic.index for vm in self.plan.vms for vnic in vm.vnics if vnic.key in self.busy}
        return sorted({vnics[0].index, vnics[1].index, vnics[-1].index} | busy)

    def customer_height(self, customer: str) -> float:
        """The height of a customer's box."""
        realm = self.customers[customer]
        return self.header(customer) + columns.HOST * len(realm.members) + (columns.MORE if realm.more else 0) + 4

    def header(self, customer: str) -> float:
        """The height of the head of a customer's box: a long name has its own line, above the CIDRs."""
        first, *more = self.networks(customer)
        beside = columns.CUSTOMER_WIDTH - 30 - mono(first) - 8
        return columns.HEADER + columns.CAPTION * (len(more) + (width(customer, 13, True) > beside))

    def networks(self, realm: str) -> list[str]:
        """A neighbour's networks, a line each, and of many how many more there are."""
        cidrs = [*self.plan.realms[realm]]
        return cidrs if len(cidrs) <= _MOST_NETWORKS else [*cidrs[: _MOST_NETWORKS - 1], _more(cidrs)]

    def vm_height(self) -> float:
        """The height of each NAT VM's box."""
        gaps = sum(1 for one, two in pairwise(self.vnics) if two > one + 1)
        return columns.VM_HEADER + columns.VNIC * len(self.vnics) + columns.ELLIPSIS * gaps + 4

    def height(self) -> float:
        """The height of the networks, including captions."""
        customers = sum(self.customer_height(name) + columns.BOX_GAP for name in self.customers) + 2 * columns.CAPTION
        vms = 48 + self.vm_height() + 3 * columns.CAPTION
        servers = (
            60
            + columns.CAPTION * (len(self.networks(MANAGEMENT)) - 1)
            + columns.SERVER * len(self.servers.members)
            + (columns.MORE if self.servers.more else 0)
            + 4 * columns.CAPTION
        )
        return max(customers, vms, servers, 230)
