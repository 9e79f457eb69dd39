"""A status in Prometheus's text format (exposition formats, "Text-based format").

On a NAT VM the agent writes the same metrics without the labels `stack` and `vm`, which are the scraper's there, and
without what only a comparison with the stack file can know: `nat_pod_up`, `nat_pod_report_timestamp_seconds` and
`nat_pod_findings`.  A test holds the two word for word.  Units are base units:
seconds since 1970, packets, connections.
"""

from __future__ import annotations

from collections.abc import Iterator

from nat_pod.status.compare import Status
from nat_pod.status.report import VmReport

_CUSTOMER = "NATPOD-C-"
"""Where the rules of a customer stand, with what its bound refuses (as an ACCEPT: see nat_pod/rules/compiler.py)."""

_LOST = ("insert_failed", "drop", "early_drop")

_HELP = {
    "up": "Whether there is a report of the VM",
    "report_timestamp_seconds": "When the report was written",
    "findings": "What status finds about the VM",
    "last_round_timestamp_seconds": "Last round of the agent",
    "last_round_success": "Whether the last round had no complaint",
    "generation_info": "Rules wanted, and loaded",
    "generation_applied": "Whether the wanted rules are loaded",
    "generation_applied_timestamp_seconds": "When the loaded rules last changed",
    "forwarding": "Whether it forwards packets",
    "fit": "Whether its balancer is told that it is fit",
    "forwarded_packets_total": "Packets forwarded",
    "last_forwarded_timestamp_seconds": "When a round last saw more packets forwarded",
    "conntrack_entries": "Connections",
    "conntrack_entries_limit": "Connections that the table has room for",
    "conntrack_lost_total": "Connections and packets lost",
    "mapping_packets_total": "Packets that met rules of a member; in table nat only the first packets of flows",
    "dropped_packets_total": "Packets dropped",
    "customer_refused_packets_total": "Packets of new flows above the bound of a customer",
    "reassembly_failures_total": "Packets with fragments missing",
    "repairs_total": "Changes by others that the agent has undone",
}
"""Every metric by its name behind `nat_pod_`, in their order."""

METRICS = tuple(f"nat_pod_{name}" for name in _HELP)
"""The names of all metrics."""


def metrics_text(stack: str, status: Status) -> str:
    """All metrics of a POD; those of a VM that does not report are `nat_pod_up` 0 and its findings."""
    lines: list[str] = []
    found = {
        vm: [*_compared(status, vm), *([] if report is None else _reported(report))]
        for vm, report in status.reports.items()
    }
    # Some findings are about a side's two VMs together.
    found |= {str(pair.role): [_findings(status, pair.role)] for pair in status.pairs}
    for name, said in _HELP.items():
        samples = [
            f"nat_pod_{name}{_labels(stack=stack, vm=vm, **labels)} {int(value)}"
            for vm, of_vm in found.items()
            for metric, labels, value in of_vm
            if metric == name
        ]
        if samples:
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP nat_pod_{name} {said}.", f"# TYPE nat_pod_{name} {kind}", *samples]
    return "\n".join(lines) + "\n"


_Sample = tuple[str, dict[str, str], float]


def _compared(status: Status, vm: str) -> Iterator[_Sample]:
    report = status.reports[vm]
    yield "up", {}, report is not None
    if report is not None:
        yield "report_timestamp_seconds", {}, report.made
    yield _findings(status, vm)


def _findings(status: Status, whose: str) -> _Sample:
    return "findings", {}, sum(finding.vm == whose for finding in status.findings)


def _reported(report: VmReport) -> Iterator[_Sample]:
    """What the agent's own file has, too."""
    yield "last_round_timestamp_seconds", {}, report.round
    yield "last_round_success", {}, not report.error
    yield "generation_info", {"applied": report.applied or "", "wanted": report.wanted or ""}, 1
    yield "generation_applied", {}, report.applied is not None and report.wanted in (None, report.applied)
    if "applied" in report.since:
        yield "generation_applied_timestamp_seconds", {}, report.since["applied"]
    yield "forwarding", {}, report.forwarding
    if report.health is not None:
        yield "fit", {}, report.health.unfit is None
    yield "forwarded_packets_total", {}, report.passed.packets
    if report.passed.last is not None:
        yield "last_forwarded_timestamp_seconds", {}, report.passed.last
    yield "conntrack_entries", {}, report.conntrack["count"]
    yield "conntrack_entries_limit", {}, report.conntrack["max"]
    for reason in sorted(_LOST):
        yield "conntrack_lost_total", {"reason": reason}, report.conntrack[reason]
    for member, uses in sorted(report.by_member.items()):
        for target, packets in sorted(uses.items()):
            yield "mapping_packets_total", {"member": member, "target": target}, packets
    for chain, uses in sorted(report.by_chain.items()):
        if "DROP" in uses:
            yield "dropped_packets_total", {"chain": chain}, uses["DROP"]
        if chain.startswith(_CUSTOMER) and "ACCEPT" in uses:
            yield "customer_refused_packets_total", {"customer": chain.removeprefix(_CUSTOMER)}, uses["ACCEPT"]
    yield "reassembly_failures_total", {}, report.fragments_lost
    yield "repairs_total", {}, report.repairs.count


def _labels(**named: str) -> str:
    """Labels, escaped; in ASCII, since a name of somebody else's rule may hold any bytes."""

    def escaped(text: str) -> str:
        return ascii(str(text))[1:-1].replace("\\", r"\\").replace('"', r"\"")

    return "{" + ",".join(f'{name}="{escaped(text)}"' for name, text in named.items()) + "}"
