"""Which resources of a POD the engine refuses to delete (`protect`)."""

from __future__ import annotations

from enum import StrEnum


class Protect(StrEnum):
    """What gets Pulumi's `protect`: the engine then neither deletes it nor replaces it, whoever asks for that."""

    NOTHING = "nothing"
    """The default; it was so before this key existed."""

    NETWORK = "network"
    """What a neighbour's peering and routes lead to: the VCN, the LPGs, and the balancers of a POD with standbys."""

    ALL = "all"
    """The NAT VMs as well, so that no `pulumi up` replaces one without somebody's word."""

    @property
    def network(self) -> bool:
        """Whether the VCN, the LPGs and the balancers are protected."""
        return self is not Protect.NOTHING

    @property
    def nat_vms(self) -> bool:
        """Whether the NAT VMs are protected."""
        return self is Protect.ALL
