"""What becomes of a packet's source (`sourceNat`)."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never


class SourceNat(StrEnum):
    """What a NAT VM makes of a packet's source (`sourceNat`)."""

    MASQUERADE = "masquerade"
    """The VM's own primary address, the same for all senders."""

    STATIC = "static"
    """The address of the sender's own slot, at which the far end can call it back."""

    @property
    def shares_addresses(self) -> bool:
        """Whether senders are seen under one address that they share, each flow with a port of its own."""
        match self:
            case SourceNat.MASQUERADE:
                return True
            case SourceNat.STATIC:
                return False
            case _ as never:
                assert_never(never)
