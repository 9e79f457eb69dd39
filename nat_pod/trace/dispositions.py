"""What becomes of a flow, as a word for programs and a line for people."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never


class Disposition(StrEnum):
    """What becomes of a flow.  `DELIVERED` only when the request reaches its end and the reply comes back."""

    DELIVERED = "delivered"
    NO_MAPPING = "no-mapping"
    NO_PRIVATE_IP = "no-private-ip"
    NO_ROUTE = "no-route"
    NOT_PEERED = "not-peered"
    SECURITY_RULE = "security-rule"
    SOURCE_DEST_CHECK = "source-dest-check"
    RP_FILTER = "rp-filter"
    NOT_FORWARDING = "not-forwarding"
    NOT_BALANCED = "not-balanced"
    ANSWERED_BY_NAT_VM = "answered-by-nat-vm"
    WRONG_MACHINE = "wrong-machine"
    LOOP = "loop"

    @property
    def meaning(self) -> str:
        """One line for people."""
        match self:
            case Disposition.DELIVERED:
                return "the request reaches its end, and the reply comes back to the sender"
            case Disposition.NO_MAPPING:
                return "a NAT VM's guard drops it: no rule translates this source and destination"
            case Disposition.NO_PRIVATE_IP:
                return "the VCN has nobody to deliver to: no VNIC has that address"
            case Disposition.NO_ROUTE:
                return "no route rule leads to that address"
            case Disposition.NOT_PEERED:
                return "the route leads to an LPG that is not peered"
            case Disposition.SECURITY_RULE:
                return "no security rule of the VNIC or its subnet lets it pass"
            case Disposition.SOURCE_DEST_CHECK:
                return "the VNIC's source/destination check is on, and the address is not its own"
            case Disposition.RP_FILTER:
                return "the kernel drops it: it would answer through another VNIC (rp_filter)"
            case Disposition.NOT_FORWARDING:
                return "it reaches a machine that is not its destination and does not forward"
            case Disposition.NOT_BALANCED:
                return "a load balancer has no healthy NAT VM for it, or is its destination"
            case Disposition.ANSWERED_BY_NAT_VM:
                return "the NAT VM itself answers, which looks like the destination but is not"
            case Disposition.WRONG_MACHINE:
                return "a machine other than the one asked for answers, or gets the reply"
            case Disposition.LOOP:
                return "it loops and never arrives"
            case _:
                assert_never(self)
