"""What `import` says about a hand-built POD besides the stack file: what does not fit, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from nat_pod.handbuilt.saved_table import SavedRule, Unread
from nat_pod.names import SIDES, Side


class RemarkKind(StrEnum):
    """Why something is listed."""

    UNREAD = "unread"  # a line that import does not understand
    PARTIAL = "partial"  # translates one protocol or port only
    WIDE = "wide"  # admits, or maps, more than single addresses
    FORBIDDEN = "forbidden"  # a target that is never a VM in a VCN
    UNKNOWN_NETWORK = "unknown-network"
    DIRECT = "direct"  # does not go through both NAT VMs
    DUPLICATE = "duplicate"
    SHADOWED = "shadowed"  # an earlier rule takes all its packets
    DEAD = "dead"  # translated by one NAT VM, and then by nobody
    UNPAIRED = "unpaired"  # a mapping on one NAT VM that the other never uses
    ONE_WAY = "one-way"
    ASYMMETRIC = "asymmetric"
    RESERVED = "reserved"
    SOURCE = "source"  # the source is not what either policy makes of it
    NO_VNIC = "no-vnic"
    LAYOUT = "layout"
    GAINED = "gained"  # a flow that the stack file adds
    REFUSED = "refused"  # what `check` will say about the stack file
    EXCHANGED = "exchanged"  # --vm1 is NAT VM2, and the other way round
    UNUSED = "unused"  # private IPs that no mapping needs
    UNMET = "unmet"
    OTHERS = "others"


NOTES = (  # worth mentioning, but nothing to do
    RemarkKind.UNUSED, RemarkKind.UNMET, RemarkKind.OTHERS,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Remark:
    """Something to say.  vm, at: the rule or line that it is about; None when it is about several."""

    kind: RemarkKind
    why: str
    vm: Side | None = None
    at: SavedRule | Unread | None = None

    @property
    def line(self) -> int | None:
        """The line's number in the file."""
        return None if self.at is None else self.at.line

    @property
    def rule(self) -> str:
        """The rule as it is written there; "" if it is about none."""
        return "" if self.at is None else self.at.text


def in_order(remarks: Iterable[Remark]) -> tuple[Remark, ...]:
    """The remarks in the order of the files, with one of each kind per line."""
    first: dict[object, Remark] = {}
    for number, remark in enumerate(remarks):
        about = number if remark.at is None else (remark.kind, remark.vm, remark.line)
        first.setdefault(about, remark)
    place: dict[Side | None, int] = {vm: number for number, vm in enumerate((*SIDES, None))}
    return tuple(sorted(first.values(), key=lambda remark: (place[remark.vm], remark.line or 0)))
