"""What the NAT VMs say they run and count, held against the plan.

Pure: who fetches the reports, from a lab, by ssh or from the serial console, is not known here.  A report is what
`nat-pod-agent status` prints, a JSON object; the agent also writes it to the console, packed, at the end of a line.

Each member is counted on the VM that knows it by its real address: hosts on NAT VM1, servers on NAT VM2.  There a rule
with the member's name leads to it (DNAT), and others test its packets (goto) or translate them (SNAT).
"""

from __future__ import annotations

import base64
import bz2
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nat_pod.errors import excerpt, shorten
from nat_pod.limits import FLOWS_PER_ADDRESS
from nat_pod.names import MemberName
from nat_pod.plan.fingerprint import fingerprint, guard_names
from nat_pod.plan.model import NatVmPlan, PodPlan, SlotPlan

ROUND_SECONDS = 15
"""Between two rounds of the agent (cloud-init/nat-pod-agent.timer)."""

SILENT_SECONDS = 60
"""An agent that has not run for so long has missed several rounds."""

OLD_SECONDS = 1000
"""The agent writes a report to the console every 900 seconds when nothing changes; an older one is not its latest."""

SHOWN_SECONDS = 90
"""OCI shows changed metadata within a minute, and the agent polls: a change is not late before."""

FULL = 0.8
"""Share of a table or of an address's ports at which there is something to do."""

MTU = 9000
"""Of every VNIC; a smaller one splits or drops what peers send."""

FRAGMENTS_LOST = 100
"""Packets that could not be put together since boot: some lose a fragment on their way, a flood does more."""

REPAIR_SECONDS = 86400
"""So long a repair is a finding, unless somebody has taken note of it on the VM."""

NOT_LOOKED_AT = (
    "rules inside chains of others",
    "IPv6 rules",
    "routes and routing policy",
    "traffic control, XDP and eBPF",
    "the program of the agent itself",
    "what was changed and put back between two rounds",
    "route rules, security rules and peerings of OCI",
    "the neighbours' networks",
)
"""What can stop or divert a packet and is in no report."""

_SHOWN = 3  # of a list in a finding

# A report comes from a machine that may be somebody else's by now, and a console shows what anybody writes to it.
_MOST_BYTES = 2 << 20  # of a packed report, unpacked; a full POD's has less than a megabyte
_MOST_TRIED = 50  # packed reports, the newest first: so many, and no more, may be damaged
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

    `made` is when the report was written, `round` when the agent last ran.  `since` has the time of the last change
    of `wanted`, `applied` and `error`.  `by_member` and `by_chain` have packets by target (`goto`, `DNAT`, `SNAT`,
    `DROP`, ...): of the rules for each member, and of each chain's other rules; in nat they are first packets of flows.
    `sent` has what passes now by the sender's address before the translation, `received` by the receiver's behind it.
    `rules` is what the kernel has of ours (nat_pod/plan/fingerprint.py), `foreign` rules of others that a
    packet may meet, `unread` what could not be looked at, `settings` the sysctl values that are not ours.
    `fragments_lost` counts packets that could not be put together.
    """

    vm: str | None
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

    @property
    def open_flows(self) -> int:
        """Flows through the VM: each has one sender."""
        return sum(use.flows for use in self.sent.values())

    def dropped(self, chain: str) -> int:
        """Packets that a chain has dropped."""
        return self.by_chain.get(chain, {}).get("DROP", 0)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, on one VM, and what to do next."""

    vm: str
    what: str
    next: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberUse:
    """What is counted for one member; each is None when the VM that counts it has not reported.

    `tried` counts what it sent towards the POD, in first packets of flows and in each packet of what was refused.
    `opened` is the flows that became of it; None under `masquerade`, where no rule tells members apart after
    forwarding.  `received` is the flows that others opened to it.
    """

    name: MemberName
    tried: int | None = None
    opened: int | None = None
    received: int | None = None
    open: Use | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The whole answer; without findings all is as the stack file says.  `reports` has None for a silent VM."""

    now: float
    planned: dict[str, str]
    vnics_planned: dict[str, int]
    reports: dict[str, VmReport | None]
    members: tuple[MemberUse, ...]
    findings: tuple[Finding, ...]


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


def compare(
    plan: PodPlan, reports: Mapping[str, VmReport | str], now: float, deployed: Mapping[str, str] | None = None
) -> Status:
    """Hold reports, by VM, against the plan; in place of a report may stand why there is none.

    now: seconds since 1970.  deployed: the generations that the stack's outputs have.
    """
    read = {vm.key: report if isinstance(report := reports[vm.key], VmReport) else None for vm in plan.vms}
    findings: list[Finding] = []
    for vm in plan.vms:
        findings += _deployment(vm, (deployed or {}).get(vm.key, vm.generation))
        report = reports[vm.key]
        if isinstance(report, str):
            findings.append(
                Finding(vm.key, f"no report: {report}", "python -m nat_pod status --help says how to get one")
            )
        else:
            findings += _agent(report, vm, now) + _generation(report, vm) + _kernel(report, vm) + _vnics(report, vm)
            findings += _use(report, vm)
    return Status(
        now=now,
        planned={vm.key: vm.generation for vm in plan.vms},
        vnics_planned={vm.key: len(vm.vnics) for vm in plan.vms},
        reports=read,
        members=tuple(_member(slot, [read[vm.key] for vm in plan.vms_on(slot.member.side)]) for slot in plan.slots),
        findings=tuple(findings),
    )


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h`, `2 days`; never negative."""
    count = max(0, round(seconds))
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if count >= 2 * size:
            return f"{count // size} {unit}"
    return f"{count} s"


# --- findings --------------------------------------------------------------------------------------------------------

_JOURNAL = "on the VM: journalctl -u nat-pod-agent"


def _deployment(vm: NatVmPlan, deployed: str) -> list[Finding]:
    if deployed == vm.generation:
        return []
    what = f"generation {deployed} is deployed, and the stack file makes {vm.generation}"
    return [Finding(vm.key, what, "pulumi up")]


def _agent(report: VmReport, vm: NatVmPlan, now: float) -> list[Finding]:
    """Whether the agent runs and this is its latest word."""
    found = []
    if report.made - now > SILENT_SECONDS:
        what = f"its clock is {duration(report.made - now)} ahead of this machine's"
        found.append(Finding(vm.key, what, "on the VM: timedatectl"))
    if now - report.made > OLD_SECONDS:
        what = f"its report is {duration(now - report.made)} old; the agent writes one every 15 min"
        found.append(Finding(vm.key, what, "fetch a new one; if there is none, the VM or its agent is down"))
    if report.made - report.round > SILENT_SECONDS:
        what = f"its agent last ran {duration(report.made - report.round)} ago; it should run every {ROUND_SECONDS} s"
        found.append(Finding(vm.key, what, "on the VM: systemctl status nat-pod-agent.timer nat-pod-agent"))
    if not report.forwarding:
        found.append(Finding(vm.key, "it forwards nothing", _JOURNAL))
    return found


def _generation(report: VmReport, vm: NatVmPlan) -> list[Finding]:
    """Applied against wanted by the VM's metadata, and that against the plan; then what the agent complains about."""
    found = []
    if report.wanted not in (None, vm.generation):
        what = f"its metadata has generation {report.wanted}, and the stack file makes {vm.generation}"
        found.append(Finding(vm.key, what, "pulumi up; just after one, wait a minute"))
    if report.applied is None:
        found.append(Finding(vm.key, "it runs no rules", _JOURNAL))
    elif report.applied != (report.wanted or vm.generation):
        wanted = report.wanted or vm.generation
        known = report.since.get("wanted")
        age = None if known is None or report.wanted is None else max(0.0, report.made - known)
        lasting = "" if age is None else f", for {duration(age)}"
        late = report.error is not None or age is None or age > SHOWN_SECONDS
        what = f"it still runs generation {report.applied}, wanted {wanted}{lasting}"
        found.append(Finding(vm.key, what, _JOURNAL if late else f"wait {ROUND_SECONDS} s for its next round"))
    if report.error is not None:
        since = report.since.get("error")
        lasting = "" if since is None else f" (for {duration(report.made - since)})"
        found.append(Finding(vm.key, f"its agent complains{lasting}: {report.error}", _JOURNAL))
    return found


def _kernel(report: VmReport, vm: NatVmPlan) -> list[Finding]:
    """What the kernel has, against the plan; rules of others; what had to be put right."""
    found = []
    heals = f"the agent's next round, within {ROUND_SECONDS} s, puts it right; if it stays, {_JOURNAL}"
    changed = _changed(report, vm)
    if changed:
        found.append(Finding(vm.key, f"its rules are not as planned: {_some(changed)}", heals))
    if report.settings:
        found.append(Finding(vm.key, f"its kernel's settings are changed: {_some(report.settings)}", heals))
    if report.foreign:
        what = f"rules of others decide about its packets: {_some(report.foreign)}"
        found.append(Finding(vm.key, what, "find out whose; the agent leaves them alone, so delete what must not be"))
    if report.unread:
        found.append(Finding(vm.key, f"not everything could be looked at: {_some(report.unread)}", _JOURNAL))
    repairs = report.repairs
    if repairs.last is not None and report.made - repairs.last < REPAIR_SECONDS:
        times = "once" if repairs.count == 1 else f"{repairs.count} times"
        what = (
            f"changed by others and put right {times}, last {duration(report.made - repairs.last)} ago: {repairs.what}"
        )
        found.append(Finding(vm.key, what, "find out who; then, on the VM: sudo rm /run/nat-pod/status.json"))
    return found


def _changed(report: VmReport, vm: NatVmPlan) -> list[str]:
    """How the rules in the kernel differ from those of the plan; of another generation, the guard alone is compared."""
    planned, now = fingerprint(vm.rules), report.rules
    names = planned.keys() | now.keys() if report.applied == vm.generation else guard_names()
    changed = []
    for name in sorted(names):
        if name not in now:
            changed.append(f"{name} is without {'them' if ' NATPOD-' in name else planned[name]}")
        elif name not in planned:
            changed.append(f"{name} is not planned")
        elif now[name] != planned[name]:
            changed.append(f"{name} has {'others' if ' NATPOD-' in name else f'{now[name]}, not {planned[name]}'}")
    return changed


def _some(things: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(things) - _SHOWN
    return "; ".join([*things[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _vnics(report: VmReport, vm: NatVmPlan) -> list[Finding]:
    """Planned, listed by OCI, up."""
    found = []
    listed = {vnic.address.partition("/")[0]: vnic for vnic in report.vnics}
    for planned in vm.vnics:
        name, vnic = f"VNIC {planned.key} ({planned.primary})", listed.pop(planned.primary, None)
        if vnic is None:
            found.append(
                Finding(vm.key, f"{name} is planned, and OCI does not list it to the VM", "pulumi up --refresh")
            )
        elif vnic.interface is None:
            found.append(Finding(vm.key, f"{name} is listed by OCI, and no interface has its MAC", _JOURNAL))
        elif not vnic.up:
            next_step = f"on the VM: ip address show dev {vnic.interface}"
            found.append(Finding(vm.key, f"{name} is down, interface {vnic.interface}", next_step))
        elif vnic.mtu not in (None, MTU):
            next_step = f"on the VM: ip link set dev {vnic.interface} mtu {MTU}"
            found.append(Finding(vm.key, f"{name} has MTU {vnic.mtu}, not {MTU}, on {vnic.interface}", next_step))
    found += [
        Finding(vm.key, f"a VNIC with {address} is attached, and not planned", "pulumi up --refresh, or detach it")
        for address in listed
    ]
    return found


def _use(report: VmReport, vm: NatVmPlan) -> list[Finding]:
    """What overflows, or is about to."""
    found = []
    count, most = report.conntrack.get("count", 0), report.conntrack.get("max", 0)
    if most and count >= FULL * most:
        what = f"conntrack has {count} of {most} flows"
        found.append(Finding(vm.key, what, "see below who has them; a shape with more memory has room for more"))
    lost = {name: report.conntrack.get(name, 0) for name in ("insert_failed", "drop", "early_drop")}
    if any(lost.values()):
        words = ", ".join(f"{name} {number}" for name, number in lost.items())
        found.append(
            Finding(vm.key, f"new flows were lost since it booted: {words}", "see conntrack and fullest below")
        )
    if report.fragments_lost >= FRAGMENTS_LOST:
        what = f"{report.fragments_lost} packets came in fragments and could not be put together since it booted"
        found.append(Finding(vm.key, what, "on the VM: nstat -az 'IpReasm*'; if they grow, see who sends fragments"))
    if report.fullest is not None and report.fullest.flows >= FULL * FLOWS_PER_ADDRESS:
        what = f"{report.fullest.flows} of {FLOWS_PER_ADDRESS} ports are in use: {report.fullest}"
        found.append(Finding(vm.key, what, "sourceNat: static, which has that many for each host"))
    if report.stale:
        what = f"{report.stale} open flows are translated in a way that its rules no longer give"
        found.append(Finding(vm.key, what, "on the VM: rm /run/nat-pod/loaded.json; its next round ends them"))
    return found


def _member(slot: SlotPlan, reports: Iterable[VmReport | None]) -> MemberUse:
    """What the NAT VMs on a member's side count for it, together."""
    heard = [report for report in reports if report is not None]
    if not heard:
        return MemberUse(name=slot.member)
    counted = [report.by_member.get(slot.member, {}) for report in heard]
    opened = [own["SNAT"] for own in counted if "SNAT" in own]
    ends = [ends.get(slot.real, Use()) for report in heard for ends in (report.sent, report.received)]
    return MemberUse(
        name=slot.member,
        tried=sum(own.get("goto", 0) for own in counted),
        opened=sum(opened) if opened else None,
        received=sum(own.get("DNAT", 0) for own in counted),
        open=sum(ends, Use()),
    )


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
    )


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
