"""A finding, and what several of them measure by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROUND_SECONDS = 15
"""Seconds between two rounds of the agent (cloud-init/nat-pod-agent.timer)."""

SILENT_SECONDS = 60
"""Seconds after which an agent that has not run has missed several rounds."""

JOURNAL = "on the VM: journalctl -u nat-pod-agent"
"""The next step for whatever the agent itself explains."""

_SHOWN = 3  # of a list in a finding


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, on one VM, and what to do next."""

    vm: str
    what: str
    next: str


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h`, `2 days`; never negative."""
    count = max(0, round(seconds))
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if count >= 2 * size:
            return f"{count // size} {unit}"
    return f"{count} s"


def some(things: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(things) - _SHOWN
    return "; ".join([*things[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])
