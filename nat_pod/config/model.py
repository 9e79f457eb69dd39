"""PodConfig: the stack file, checked once and frozen.

All problems are reported at once, each with its path, value, rule and next command.  The result is a narrower type that
later code need not check again.  The provider checks no CIDR, no containment and no limit at plan time, so whatever is
not refused here fails halfway through `pulumi up`.

Each section of the file has a module with its type and its parser: `nat_vm`, `neighbours`, `subnets`, `addresses`.
What holds across sections is in `check`, the arithmetic in `addressing`, and the limits in `limits.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from netaddr import IPNetwork

from nat_pod import limits
from nat_pod.config.addresses import Members, other_range, read_book
from nat_pod.config.addressing import Layout, Pair, Slot
from nat_pod.config.check import check_lpgs, check_networks, check_vrouter
from nat_pod.config.delivery import Delivery, read_root
from nat_pod.config.name_zone import read_names
from nat_pod.config.nat_vm import NatVmConfig, read_nat_vm
from nat_pod.config.neighbours import (
    CustomerConfig,
    ManagementConfig,
    Neighbours,
    read_customers,
    read_management,
    renames_of,
    written_members,
)
from nat_pod.config.policy import Entry, read_policy
from nat_pod.config.protect import Protect
from nat_pod.config.reader import Reader
from nat_pod.config.source_nat import SourceNat
from nat_pod.config.subnets import read_layout, read_pod_cidr
from nat_pod.config.tags import Tags, read_tags
from nat_pod.errors import ConfigError, Problem
from nat_pod.names import MemberName, Side


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """Slots in all, slots in use or kept as released, slots still free; VNICs in use per VM and the shape's limit."""

    slots: int
    used: int
    free: int
    vnics_used: int
    vnics_limit: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PodConfig(Neighbours):
    """A POD's configuration, without contradictions.

    `book` has the slot of every member, and of nobody else.  `released` has the slots that are kept back because
    somebody may still send to them.
    """

    compartment_id: str
    cidr: IPNetwork
    nat_vm: NatVmConfig
    management: ManagementConfig
    customers: tuple[CustomerConfig, ...]
    source_nat: SourceNat
    lpg_limit: int
    layout: Layout
    policy: tuple[Entry, ...]
    zone: str | None
    protect: Protect
    tags: Tags
    book: dict[MemberName, Slot]
    released: dict[MemberName, Slot]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], stack: str) -> PodConfig:
        """Check a stack's configuration.

        mapping: config keys without the `nat-pod:` prefix to plain values (strings, ints, dicts, lists), as YAML or
        JSON gives them.  stack: the stack's name, for messages.
        Raises ConfigError with every problem.
        """
        config, problems, unsettled = read_draft(mapping, stack)
        if problems or unsettled or config is None:
            raise ConfigError(f"Pulumi.{stack}.yaml", problems + unsettled)
        return config

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The VNIC pairs in use: made as slots need them, the first (the primary VNICs') at once."""
        used = {slot.pair for slot in self.book.values()} | {1}
        return tuple(pair for pair in self.layout.pairs if pair.index in used)

    def primary(self, side: Side) -> str:
        """The primary address of a side, that of its first VNIC, behind which masquerade hides every source."""
        return self.layout.pairs[0].primary(side)

    @property
    def capacity(self) -> Capacity:
        """What is left of slots and VNICs; a released slot is not free."""
        used = len(set(self.book.values()) | set(self.released.values()))
        return Capacity(
            slots=self.layout.capacity,
            used=used,
            free=self.layout.capacity - used,
            vnics_used=len(self.pairs),
            vnics_limit=self.nat_vm.vnic_limit,
        )


def read_draft(
    mapping: Mapping[str, object], stack: str, earlier: Callable[[], Mapping[str, object] | None] = lambda: None
) -> tuple[PodConfig | None, list[Problem], list[Problem]]:
    """Read a configuration whose address book may lag behind its members.

    earlier: looks up the same file on the base branch, which tells renamed members from new ones.
    Returns the config (None when there are problems), the problems, and what `allocate` would settle: members without a
    slot and slots without a member.
    """
    reader = Reader(stack)
    root = read_root(reader, mapping, Delivery.PRIVATE_IPS)
    compartment_id = reader.ocid("compartmentId", root.get("compartmentId"), ("compartment", "tenancy"))
    cidr = read_pod_cidr(reader, root.get("cidr"))
    nat_vm = read_nat_vm(reader, root.get("natVm"))
    management = read_management(reader, root.get("management"))
    written = written_members(root)
    customers = read_customers(reader, root.get("customers"), written)
    policy = read_policy(reader, root.get("policy"), written, customers or ())
    source_nat = reader.choice("sourceNat", root.get("sourceNat", SourceNat.MASQUERADE), SourceNat)
    lpg_limit = reader.integer("lpgLimit", root.get("lpgLimit", limits.LPGS_PER_VCN), 1, limits.LPGS_PER_VCN_RAISED)
    zone = read_names(reader, root.get("names"))
    protect = reader.choice("protect", root.get("protect", Protect.NOTHING), Protect)
    tags = read_tags(reader, root.get("tags"))
    pinned = root.get("subnets")
    layout = read_layout(reader, None if pinned == {} else pinned, cidr, nat_vm)  # {} is Pulumi.yaml's "not pinned"
    check_networks(reader, cidr, management, customers)
    former = None if layout is None else other_range(root.get("addresses"), layout)
    if former is not None:  # one mistake, and nothing else that lies in the range can be right
        reader.add("cidr", str(cidr), _moved(former))
    elif layout is not None and management is not None:
        check_vrouter(reader, management.vrouter, layout.vrouter)
    if lpg_limit is not None:
        check_lpgs(reader, root.get("customers"), lpg_limit)
    book: dict[MemberName, Slot] = {}
    released: dict[MemberName, Slot] = {}
    if layout is not None and former is None:
        changes = Members.read(root, renames_of(management, customers or ()), earlier)
        book, released = read_book(reader, root.get("addresses"), layout, changes, nat_vm)
    if (
        reader.problems
        or compartment_id is None
        or cidr is None
        or nat_vm is None
        or management is None
        or customers is None
        or source_nat is None
        or lpg_limit is None
        or layout is None
        or protect is None
        or tags is None
    ):
        return None, reader.problems, reader.unsettled
    config = PodConfig(
        compartment_id=compartment_id,
        cidr=cidr,
        nat_vm=nat_vm,
        management=management,
        customers=customers,
        source_nat=source_nat,
        lpg_limit=lpg_limit,
        layout=layout,
        policy=policy,
        zone=zone,
        protect=protect,
        tags=tags,
        book=book,
        released=released,
    )
    return config, [], reader.unsettled


def _moved(former: IPNetwork) -> str:
    return (
        f"the address book is that of {former}. In another range NAT VM2's subnets and the vRouter's lie elsewhere, "
        f"and every address would change: a POD that stands keeps its range. Put {former} back; more members go into "
        "a second POD (python -m nat_pod new-pod NAME), or this one grows with its subnets pinned "
        '(docs/operate.md, "Grow"). In a POD that is still to be made, delete nat-pod:addresses, and give '
        "nat-pod:management.vrouter an address of this range"
    )
