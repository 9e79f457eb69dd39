"""What becomes of a packet's source (`sourceNat`)."""

from __future__ import annotations

from enum import StrEnum


class SourceNat(StrEnum):
    """What a NAT VM makes of a packet's source (`sourceNat`)."""

    MASQUERADE = "masquerade"
    """The VM's own primary address, the same for all senders."""

    STATIC = "static"
    """The address of the sender's own slot, at which the far end can call it back."""
