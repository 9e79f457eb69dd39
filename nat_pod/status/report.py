"""What `nat-pod-agent status` prints on a NAT VM, a JSON object, read as a value.

The agent also writes it to the serial console, packed, at the end of a line.
"""

from __future__ import annotations

import base64
import bz2
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nat_pod.errors import excerpt, shorten

# A report comes from a machine that may be somebody else's by now, and a console shows what anybody writes to it.
_MOST_BYTES = 2 << 20  # of a packed report, unpacked; a full POD's has less than a megabyte
_MOST_TRIED = 50  # packed reports that are tried, the newest first; if all are damaged, no report is found
_MOST_VNICS = 256  # the largest bare metal shape has fewer
_MOST_NOTES = 20
_MOST_CHAINS = 5000
_MOST_LINES = 100  # of rules of others, settings, ...: the agent sends fewer
_MOST_COUNTED = 2**64  # the kernel's counters begin anew there
_SINCE = ("wanted", "applied", "error")
_CONNTRACK = ("count", "max", "insert_failed", "drop", "early_drop")
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP"}
_PACKED = re.compile(r" report ([A-Za-z0-9+/=]+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Use:
    """What passes now: flows, and the packets and bytes they have carried, both directions together."""

    flows: int = 0
    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Use) -> Use:
        return Use(self.flows + other.flows, self.packets + other.packets, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class VnicState:
    """A VNIC that OCI lists to the VM, by its primary address; `interface` is None when none has its MAC."""

    address: str
    interface: str | None
    up: bool
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class Repairs:
    """What the agent has found changed since the VM booted, and put right: how often, when last, and what then."""

    count: int = 0
    last: float | None = None
    what: str = ""


@dataclass(frozen=True, slots=True)
class Passed:
    """Packets that the VM has forwarded since it booted, and when a round of its agent last found more of them."""

    packets: int = 0
    last: float | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """What the VM answers its balancer: why it is not fit, None if it is; and who asked within the last two minutes."""

    unfit: str | None
    asked_by: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fullest:
    """The translated source that has most flows to one address, protocol and port, and how many.

    `protocol` is `TCP`, `UDP`, `ICMP` (whose port is 0), or `protocol 132` for another.
    """

    source: str
    destination: str
    protocol: str
    port: int
    flows: int

    def __str__(self) -> str:
        """`198.18.0.2 > 198.18.0.130 TCP 443`."""
        port = "" if self.protocol == "ICMP" else f" {self.port}"
        return f"{self.source} > {self.destination} {self.protocol}{port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class VmReport:
    """What one NAT VM reports.  Times are seconds since 1970, by the VM's clock.

    `agent` names the agent's program (`agent_id` in nat_pod/plan/bootstrap.py), None for one that did not do so yet.
    `made` is when the report was written, `round` when the agent last ran.  `since` has the time of the last change
    of `wanted`, `applied` and `error`.  `by_member` and `by_chain` have packets by target (`goto`, `DNAT`, `SNAT`,
    `DROP`, ...): of the rules for each member, and of each chain's other rules; in nat they are first packets of flows.
    `sent` has what passes now by the sender's address before the translation, `received` by the receiver's behind it.
    `rules` is what the kernel has of ours (nat_pod/plan/fingerprint.py), `foreign` rules of others that a
    packet may meet, `unread` what could not be looked at, `settings` the sysctl values that are not ours.
    `fragments_lost` counts packets that could not be put together.  `health` is None where no balancer asks.
    """

    vm: str | None
    agent: str | None
    made: float
    round: float
    wanted: str | None
    applied: str | None
    error: str | None
    since: dict[str, float]
    notes: tuple[str, ...]
    vnics: tuple[VnicState, ...]
    forwarding: bool
    conntrack: dict[str, int]
    by_member: dict[str, dict[str, int]]
    by_chain: dict[str, dict[str, int]]
    sent: dict[str, Use]
    received: dict[str, Use]
    stale: int
    fullest: Fullest | None
    rules: dict[str, str]
    foreign: tuple[str, ...]
    unread: tuple[str, ...]
    settings: tuple[str, ...]
    repairs: Repairs
    fragments_lost: int
    passed: Passed
    health: Health | None

    @property
    def open_flows(self) -> int:
        """Flows through the VM: each has one sender."""
        return sum(use.flows for use in self.sent.values())

    def dropped(self, chain: str) -> int:
        """Packets that a chain has dropped."""
        return self.by_chain.get(chain, {}).get("DROP", 0)


def read_report(text: str) -> VmReport:
    """The newest report in what `nat-pod-agent status` printed, or in the captured output of a serial console.

    Raises ValueError with the reason when there is none that can be read.
    """
    packed = _PACKED.findall(text)
    for one in packed[: -_MOST_TRIED - 1 : -1]:
        try:
            return _report(json.loads(bz2.BZ2Decompressor().decompress(base64.b64decode(one), _MOST_BYTES)))
        except (ValueError, OSError, RecursionError):
            continue  # damaged by what else was written to the console: take the one before
    if len(packed) > _MOST_TRIED:
        raise ValueError(f"of the {len(packed)} reports in it the newest {_MOST_TRIED} are damaged")
    start = re.search(r"^\{", text, re.MULTILINE)
    if start is None:
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing")
        raise ValueError(f"there is no report in it; it ends with: {excerpt(last[-200:])}")
    try:
        found = json.JSONDecoder().raw_decode(text, start.start())[0]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its JSON cannot be read: {excerpt(str(error))}") from None
    return _report(found)


# --- reading ---------------------------------------------------------------------------------------------------------


def _report(found: object) -> VmReport:
    """A report from its JSON.  Raises ValueError for what no agent writes."""
    try:
        return _trusting(found)
    except KeyError as error:
        raise ValueError(f"it is not the report of a NAT VM: it has no {error}") from None
    except (TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        raise ValueError(f"it is not the report of a NAT VM: {excerpt(str(error))}") from None


def _trusting(found: object) -> VmReport:
    if not isinstance(found, dict):
        raise TypeError("it is not a JSON object")
    return VmReport(
        vm=_text(found["vm"]),
        agent=_text(found.get("agent")),
        made=_seconds(found["now"]),
        round=_seconds(found["time"]),
        wanted=_text(found["wanted"]),
        applied=_text(found["applied"]),
        error=_text(found["error"]),
        since={name: _seconds(time) for name, time in found["since"].items() if name in _SINCE},
        notes=_notes(found["notes"]),
        vnics=_vnic_states(found["vnics"]),
        forwarding=found["forwarding"] is True,
        conntrack={name: _count(found["conntrack"].get(name, 0)) for name in _CONNTRACK},
        by_member=_packets(found["counted"]["members"]),
        by_chain=_packets(found["counted"]["chains"]),
        sent=_uses(found["open"]["from"]),
        received=_uses(found["open"]["to"]),
        stale=_count(found["stale"]),
        fullest=None if found["fullest"] is None else _fullest(found["fullest"]),
        rules=_rules(found["rules"]),
        foreign=_lines(found["foreign"]),
        unread=_lines(found["unread"]),
        settings=_lines(found["settings"]),
        repairs=_repairs(found["repairs"]),
        fragments_lost=_count(found["fragments"]),
        passed=_passed(found["passed"]),
        health=None if found["health"] is None else _health(found["health"]),
    )


def _passed(found: Mapping[str, object]) -> Passed:
    last = found["last"]
    return Passed(_count(found["count"]), None if last is None else _seconds(last))


def _health(found: Mapping[str, Any]) -> Health:
    if not isinstance(found["by"], list):
        raise TypeError(f"{shorten(found['by'])} is not a list of addresses")
    return Health(_text(found["unfit"]), tuple(map(_words, found["by"][:_MOST_LINES])))


def _rules(found: Mapping[str, object]) -> dict[str, str]:
    if len(found) > _MOST_CHAINS:
        raise ValueError(f"{len(found)} chains are more than a POD can have")
    return {_words(name): _words(what) for name, what in found.items()}


def _lines(found: list[object]) -> tuple[str, ...]:
    if not isinstance(found, list) or len(found) > _MOST_LINES:
        raise TypeError(f"{shorten(found)} is not a list of at most {_MOST_LINES}")
    return tuple(map(_words, found))


def _repairs(found: Mapping[str, object]) -> Repairs:
    count = _count(found["count"])
    return Repairs(count, _seconds(found["last"]), _words(found["what"])) if count else Repairs()


def _packets(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    return {name: {target: _count(packets) for target, packets in targets.items()} for name, targets in found.items()}


def _uses(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Use]:
    return {
        address: Use(_count(use["flows"]), _count(use["packets"]), _count(use["bytes"]))
        for address, use in found.items()
    }


def _notes(found: list[object]) -> tuple[str, ...]:
    if not isinstance(found, list):
        raise TypeError(f"{shorten(found)} is not a list of notes")
    notes = [_words(note) for note in found[:_MOST_NOTES]]
    return (*notes, f"and {len(found) - _MOST_NOTES} more notes") if len(found) > _MOST_NOTES else tuple(notes)


def _vnic_states(found: list[dict[str, object]]) -> tuple[VnicState, ...]:
    if len(found) > _MOST_VNICS:
        raise ValueError(f"{len(found)} VNICs are more than a VM can have")
    return tuple(
        VnicState(
            _words(vnic["address"]),
            _text(vnic["interface"]),
            vnic["up"] is True,
            None if vnic["mtu"] is None else _count(vnic["mtu"]),
        )
        for vnic in found
    )


def _fullest(found: Mapping[str, Any]) -> Fullest:
    return Fullest(
        source=_words(found["source"]),
        destination=_words(found["destination"]),
        protocol=_PROTOCOLS.get(number := _count(found["protocol"]), f"protocol {number}"),
        port=_count(found["port"]),
        flows=_count(found["flows"]),
    )


def _text(value: object) -> str | None:
    return None if value is None else _words(value)


def _words(value: object) -> str:
    """What the VM says in words, fit for a terminal: escape sequences show as such, and it has an end."""
    if not isinstance(value, str):
        raise TypeError(f"{shorten(value)} is not a text")
    return excerpt(value)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MOST_COUNTED:  # True is an int, too
        raise ValueError(f"{shorten(value)} is not a count")
    return value


def _seconds(text: object) -> float:
    return datetime.fromisoformat(_words(text)).timestamp()
