"""How long a trial waits for what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """Seconds to wait.

    reports: for all machines to report on a list, boot included.  pause: between two readings of the consoles.
    settle: for what is still on its way when all have reported.  stopped: for flows to move to the other NAT VM, longer
    than that takes.  started: for a NAT VM to be back, and well.  idle: that a flow is silent, longer than the
    balancer's 360.
    """

    reports: float = 900.0
    pause: float = 30.0
    settle: float = 10.0
    stopped: float = 60.0
    started: float = 180.0
    idle: int = 400
