"""What the lab has to show, decided before a packet is sent, and the verdict after.

Declared flows must arrive: at the right machine, with the source address the tracer predicts, over exactly the hops the
tracer predicts, in both directions.  Refused flows must reach nobody.  Both lists come from the plan
(`flows.py`), the prediction from the deployed topology, the answers from real packets; none is made from another.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from nat_pod.lab.wire.packets import HTTP, ICMP, PORTS, UDP
from nat_pod.lab.wire.probe import Answer, Probe
from nat_pod.plan.model import PodPlan
from nat_pod.text import table
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.flows import Flow, declared_flows, refused_flows
from nat_pod.trace.topology import VM_ROUTER, Topology
from nat_pod.trace.walk import Packet, Trace, Tracer
from nat_pod.trial.flow_table import Tried, flow_tables

PROTOCOLS = (ICMP, HTTP, UDP)
_TRANSPORT = {ICMP: "icmp", HTTP: "tcp", UDP: "udp"}
_OVER = {transport: protocol for protocol, transport in _TRANSPORT.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectation:
    """One flow with one protocol: what is declared, and what the tracer makes of the deployed network."""

    flow: Flow
    protocol: str
    predicted: Trace

    @property
    def declared(self) -> bool:
        """Whether the flow must arrive; otherwise it must reach nobody."""
        return self.flow.receiver is not None

    @property
    def forged(self) -> bool:
        """Whether the sender lies about its source address."""
        return self.flow.forged

    def probe(self) -> Probe:
        """The packets to send."""
        return Probe(
            source_vm=self.flow.sender,
            source_address=self.flow.source if self.forged else None,
            destination=self.flow.destination,
            protocol=self.protocol,
            port=self.flow.port,
            forged=self.forged,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeVerdict:
    """An expectation with its answer.  `problems` is empty when everything is as it must be."""

    expectation: Expectation
    answer: Answer
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All verdicts of a run.

    down: the NAT VMs that had failed meanwhile, and how: `is off` or `hangs`.  active: by load balancer, the VM that
    acted, or `nobody`.
    """

    verdicts: tuple[ProbeVerdict, ...] = field(default=())
    down: Mapping[str, str] = field(default_factory=dict)
    active: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing was found, and something was tried in both lists."""
        kinds = {verdict.expectation.declared for verdict in self.verdicts}
        return kinds == {True, False} and not any(verdict.problems for verdict in self.verdicts)


def expectations(plan: PodPlan, deployed: Topology, idle: Container[str] = ()) -> list[Expectation]:
    """Every declared flow with each protocol, and the refused ones.

    idle: the NAT VMs to which no load balancer gives anything now.
    """
    return expect([*declared_flows(plan), *refused_flows(plan)], deployed, idle)


def expect(flows: Sequence[Flow], deployed: Topology, idle: Container[str] = ()) -> list[Expectation]:
    """Flows with each protocol, or with the only one that is meant."""
    tracer, expected = Tracer(deployed, idle), []
    for flow in flows:
        for protocol in PROTOCOLS if flow.protocol is None else (_OVER[flow.protocol],):
            packet = Packet(
                src=flow.source,
                dst=flow.destination,
                protocol=_TRANSPORT[protocol],
                dport=flow.port or PORTS.get(protocol, 0),
            )
            expected.append(
                Expectation(flow=flow, protocol=protocol, predicted=tracer.trace(flow.sender, packet, flow.receiver))
            )
    return expected


def judge(deployed: Topology, expected: Sequence[Expectation], answers: Sequence[Answer]) -> Report:
    """Hold answers to expectations, one by one."""
    labels = {vm.name: vm.label for vm in deployed.vms.values() if vm.kind != VM_ROUTER}
    return Report(
        verdicts=tuple(
            ProbeVerdict(expectation=one, answer=answer, problems=tuple(_problems(one, answer, labels)))
            for one, answer in zip(expected, answers, strict=True)
        )
    )


def _problems(expected: Expectation, answer: Answer, labels: Mapping[str, str]) -> list[str]:
    predicted = expected.predicted
    if not expected.declared:
        problems = []
        if answer.ok:
            # A ping that a NAT VM answers itself has no name: `answered_by` names hosts and listeners.
            problems.append(f"must not connect, and {answer.answered_by or 'a NAT VM itself'} answers")
        if predicted.disposition is Disposition.DELIVERED:
            problems.append("the tracer predicts that it is delivered")
        return problems
    if predicted.disposition is not Disposition.DELIVERED:
        return [f"the tracer predicts {predicted.disposition}: {predicted.why}"]
    if not answer.ok:
        return [f"no answer: {answer.detail}"]
    problems = []
    if answer.answered_by != expected.flow.receiver:
        problems.append(f"{answer.answered_by} answers, not {expected.flow.receiver}")
    if answer.seen != predicted.request.packet.src:
        problems.append(f"the far end saw {answer.seen}; the tracer predicts {predicted.request.packet.src}")
    captured, wanted = seen_hops(answer, labels), predicted_hops(predicted)
    if captured != wanted:
        problems.append(f"hops captured: {_arrows(captured)}; predicted: {_arrows(wanted)}")
    return problems


def predicted_hops(traced: Trace) -> list[tuple[str, str, str]]:
    """(machine, source, destination) for each arrival of the request, then of the reply."""
    hops = [*traced.request.hops, *(traced.reply.hops if traced.reply is not None else ())]
    return [(hop.end.label, hop.src, hop.dst) for hop in hops]


def seen_hops(answer: Answer, labels: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """The same from the captures.  The vRouter is left out: it forwards and changes nothing.

    A TCP connection is many packets over the same hops; each hop counts once.  labels: by machine, all but routers.
    """
    return [
        (labels[seen.vm], seen.src, seen.dst) for seen in answer.hops if seen.direction == "in" and seen.vm in labels
    ]


def report_text(report: Report) -> str:
    """The article's section 5 as tables: what arrives, and what is refused."""
    tried = [
        Tried(
            flow=one.expectation.flow,
            protocol=_TRANSPORT[one.expectation.protocol],
            seen=one.answer.seen,
            dies_of=str(one.expectation.predicted.disposition),
            problems=one.problems,
        )
        for one in report.verdicts
    ]
    return "\n".join(
        [
            *(f"{vm} {how}, by `lab fail`." for vm, how in report.down.items()),
            *([f"Acting: {', '.join(report.active.values())}."] if report.active else []),
            *([""] if report.down or report.active else []),
            *flow_tables(tried),
            _summary(report),
        ]
    )


def prediction_text(expected: Sequence[Expectation]) -> str:
    """What the tracer makes of the deployed network, where no packet can be sent."""
    rows = [
        [one.flow.sender, one.flow.destination, one.protocol, _predicted_word(one), one.predicted.why]
        for one in expected
    ]
    return "\n".join(["PREDICTED (no packet was sent)", table(["from", "to", "protocol", "prediction", "why"], rows)])


def prediction_holds(expected: Sequence[Expectation]) -> bool:
    """Whether the tracer predicts delivery for exactly the declared flows."""
    return all(one.declared == (one.predicted.disposition is Disposition.DELIVERED) for one in expected)


def report_dict(report: Report) -> dict[str, object]:
    """The form of `lab check --json`."""
    return {
        "passed": report.passed,
        "down": dict(report.down),
        "active": dict(report.active),
        "flows": [
            {
                "from": v.expectation.flow.sender,
                "source": v.expectation.flow.source,
                "to": v.expectation.flow.destination,
                "receiver": v.expectation.flow.receiver,
                "protocol": v.expectation.protocol,
                **({} if v.expectation.flow.port is None else {"port": v.expectation.flow.port}),
                "declared": v.expectation.declared,
                "why": v.expectation.flow.why or None,
                "predicted": str(v.expectation.predicted.disposition),
                "answeredBy": v.answer.answered_by,
                "seen": v.answer.seen,
                "problems": list(v.problems),
            }
            for v in report.verdicts
        ],
    }


def _summary(report: Report) -> str:
    wrong = sum(1 for verdict in report.verdicts if verdict.problems)
    tried = len(report.verdicts)
    flows = {verdict.expectation.flow: verdict.expectation.declared for verdict in report.verdicts}
    declared = sum(flows.values())
    counted = f"{declared} declared flows and {len(flows) - declared} refused ones, {tried} probes"
    if report.passed:
        return f"{counted}: all as declared, every hop as the tracer predicted"
    return f"{counted}: {wrong} NOT as declared"


def _predicted_word(expected: Expectation) -> str:
    word = str(expected.predicted.disposition)
    right = expected.declared == (expected.predicted.disposition is Disposition.DELIVERED)
    return word if right else f"{word} (WRONG)"


def _arrows(hops: Sequence[tuple[str, str, str]]) -> str:
    return ", ".join(f"{at} {src} > {dst}" for at, src, dst in hops) or "none"
