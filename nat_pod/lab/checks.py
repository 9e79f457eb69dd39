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

PROTOCOLS = (ICMP, HTTP, UDP)
_TRANSPORT = {ICMP: "icmp", HTTP: "tcp", UDP: "udp"}


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
    """Flows with each protocol, or with the one that a port belongs to."""
    tracer, expected = Tracer(deployed, idle), []
    for flow in flows:
        for protocol in (HTTP,) if flow.port is not None else PROTOCOLS:
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
        problems.append(f"the far end saw {answer.seen}; predicted was {predicted.request.packet.src}")
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
    declared = _by_flow([v for v in report.verdicts if v.expectation.declared])
    refused = _by_flow([v for v in report.verdicts if not v.expectation.declared])
    parts = [
        *(f"{vm} {how}, by `lab fail`." for vm, how in report.down.items()),
        *([f"Acting: {', '.join(report.active.values())}."] if report.active else []),
        *([""] if report.down or report.active else []),
        "Declared flows, with packets",
        table(
            ["from", "to", "address used", *(p.upper() for p in PROTOCOLS), "the far end saw"],
            [
                [
                    flow.sender,
                    flow.receiver,
                    flow.destination,
                    *(_mark(verdicts, protocol, "pass") for protocol in PROTOCOLS),
                    ", ".join(sorted({v.answer.seen for v in verdicts if v.answer.seen is not None})) or "nothing",
                ]
                for flow, verdicts in declared
            ],
        ),
        "",
        "Flows that must not connect, with packets",
        table(
            ["what", "from", "source", "to", *(p.upper() for p in PROTOCOLS), "dies of"],
            [
                [
                    flow.why,
                    flow.sender,
                    flow.source,
                    flow.destination + (f" port {flow.port}" if flow.port is not None else ""),
                    *(_mark(verdicts, protocol, "refused") for protocol in PROTOCOLS),
                    verdicts[0].expectation.predicted.disposition,
                ]
                for flow, verdicts in refused
            ],
        ),
        "",
        *(
            f"FAIL {v.expectation.flow.sender} to {v.expectation.flow.destination} {v.expectation.protocol}: {problem}"
            for v in report.verdicts
            for problem in v.problems
        ),
        _summary(report, len(declared), len(refused)),
    ]
    return "\n".join(parts)


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


def _summary(report: Report, declared: int, refused: int) -> str:
    wrong = sum(1 for verdict in report.verdicts if verdict.problems)
    tried = len(report.verdicts)
    if report.passed:
        return (
            f"{declared} declared flows and {refused} refused ones, {tried} probes: all as declared, "
            "every hop as the tracer predicted"
        )
    return f"{declared} declared flows and {refused} refused ones, {tried} probes: {wrong} NOT as declared"


def _by_flow(verdicts: Sequence[ProbeVerdict]) -> list[tuple[Flow, list[ProbeVerdict]]]:
    grouped: dict[Flow, list[ProbeVerdict]] = {}
    for verdict in verdicts:
        grouped.setdefault(verdict.expectation.flow, []).append(verdict)
    return list(grouped.items())


def _mark(verdicts: Sequence[ProbeVerdict], protocol: str, good: str) -> str:
    for verdict in verdicts:
        if verdict.expectation.protocol == protocol:
            return "FAIL" if verdict.problems else good
    return "-"


def _predicted_word(expected: Expectation) -> str:
    word = str(expected.predicted.disposition)
    right = expected.declared == (expected.predicted.disposition is Disposition.DELIVERED)
    return word if right else f"{word} (WRONG)"


def _arrows(hops: Sequence[tuple[str, str, str]]) -> str:
    return ", ".join(f"{at} {src} > {dst}" for at, src, dst in hops) or "none"
