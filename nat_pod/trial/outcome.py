"""What became of the flows of a trial: what was asked, held to what the machines report and the tracer predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nat_pod.config.services import TCP, UDP
from nat_pod.plan.model import PodPlan
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology, with_host
from nat_pod.trace.flows import stranger_addresses
from nat_pod.trace.topology import Route, Topology
from nat_pod.trace.walk import Packet, Trace, Tracer
from nat_pod.trial.flow_table import Tried
from nat_pod.trial.probes import Asked
from nat_pod.trial.results import MachineReport

_PORTS = {TCP: 80, UDP: 9}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One flow with one protocol.  heard_by: the machines that its packets reached, each with the source it saw.

    sent: its sender has reported on it.
    """

    asked: Asked
    tried: Tried
    heard_by: tuple[tuple[str, str], ...]
    sent: bool

    @property
    def arrived(self) -> bool:
        """Whether somebody heard it."""
        return bool(self.heard_by)


def outcomes(plan: PodPlan, asked: Sequence[Asked], reports: Mapping[str, MachineReport]) -> list[Outcome]:
    """What became of each flow.  reports: by machine, on the list that these were in."""
    tracer = Tracer(_hostile(plan))
    heard: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for machine in sorted(reports):
        for how, token, source in sorted(reports[machine].heard):
            heard.setdefault((how, token), []).append((machine, source))
    found = []
    for one in asked:
        token = str(one.sequence) if one.flow.forged and one.protocol == TCP else one.token
        by = tuple(heard.get((one.protocol, token), ()))
        packet = Packet(
            src=one.flow.source,
            dst=one.flow.destination,
            protocol=one.protocol,
            dport=one.flow.port or _PORTS.get(one.protocol, 0),
        )
        predicted = tracer.trace(one.flow.sender, packet, one.flow.receiver)
        report = reports.get(one.flow.sender)
        sent = report is not None and one.number in report.results
        problems = tuple(_problems(one, predicted, report, by))
        seen = next((source for machine, source in by if machine == one.flow.receiver), None)
        tried = Tried(
            flow=one.flow, protocol=one.protocol, seen=seen, dies_of=str(predicted.disposition), problems=problems
        )
        found.append(Outcome(asked=one, tried=tried, heard_by=by, sent=sent))
    return found


def _problems(
    one: Asked, predicted: Trace, report: MachineReport | None, heard_by: Sequence[tuple[str, str]]
) -> list[str]:
    flow = one.flow
    result = None if report is None else report.results.get(one.number)
    if result is None:
        return [f"{flow.sender} has not reported on it"]
    if flow.receiver is None:
        problems = [f"must not connect, and {machine} heard it from {source}" for machine, source in heard_by]
        if result.ok:
            problems.append(f"must not connect, and {result.name or 'a NAT VM itself'} answers")
        if flow.forged and result.detail != "sent":
            problems.append(f"it was not tried: {result.detail}")
        return problems
    if predicted.disposition is not Disposition.DELIVERED:
        return [f"the tracer predicts {predicted.disposition}: {predicted.why}"]
    problems = []
    if not result.ok:
        problems.append(f"no answer: {result.detail}")
    if result.name not in ("", flow.receiver):
        problems.append(f"{result.name} answers, not {flow.receiver}")
    sources = {source for machine, source in heard_by if machine == flow.receiver}
    problems += [f"{machine} heard it, too" for machine, _ in heard_by if machine != flow.receiver]
    if sources != {predicted.request.packet.src}:
        saw = ", ".join(sorted(sources)) or "nothing"
        problems.append(f"the far end saw {saw}; the tracer predicts {predicted.request.packet.src}")
    return problems


def _hostile(plan: PodPlan) -> Topology:
    """The planned network, with customers that lead the POD's whole range to it, and with a stranger in each network.

    Strangers' source/destination checks are off.
    """
    network = expected_topology(plan)
    for name, subnet in network.subnets.items():
        if subnet.vcn in plan.customer_cidrs:
            everything = (Route(destination=plan.cidr, lpg=f"{subnet.vcn}/lpg"),)
            network.subnets[name] = replace(subnet, routes=everything)
    for name, address in stranger_addresses(plan).items():
        network = with_host(network, name, address)
        vnic = network.vnics[network.vms[name].vnics[0]]
        network.vnics[vnic.name] = replace(vnic, skip_source_dest_check=True)
    return network
