"""The tracer: one packet's way through a Topology, request and reply, and where and why it dies.

It interprets the compiled rules, not the mappings from which they were compiled.  So a mistake in the compiler shows
here as a packet that goes astray.  It refuses a rule that it does not know.  It does what OCI and Linux do to a packet:

    guest.py  machine   route in the guest; for a NAT VM: reverse-path filter, conntrack, PREROUTING, routing
                        decision, INPUT or FORWARD (chains.py), POSTROUTING
    vcn.py    VNIC      source/destination check, security rules
              VCN       route rules of the subnet (or of the LPG it came in by), delivery by private IP

Each decision is a value (`decisions.py`), and `explain.py` puts it into words.  The lab sends the same flows as real
packets and compares them hop by hop.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from nat_pod.errors import UnknownRuleError
from nat_pod.trace.chains import OTHER, PROTOCOLS, RuleKey
from nat_pod.trace.decisions import AnsweredByNatVm, Decision, Delivered, Looped, NotForwarding, Refusal, RefusedError
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.explain import Hop, Step, hops, sentence, steps
from nat_pod.trace.guest import Guests, Tracked
from nat_pod.trace.spans import FlowKey, Header, Segment, Span, address_text, number
from nat_pod.trace.topology import VM_NAT, Topology, Vm
from nat_pod.trace.vcn import Vcns

ECHO_REQUEST, ECHO_REPLY = 8, 0
NOBODYS: FlowKey = ("", 0, 0, 0, 0)
"""What an ICMP error is about when no flow has such a packet."""
EPHEMERAL_PORT = 50000
_MOST_MACHINES = 16  # a delivered packet crosses four; more is a loop


@dataclass(frozen=True, kw_only=True, slots=True)
class Packet:
    """The headers that matter.  For ICMP the two ports are the echo identifier."""

    src: str
    dst: str
    protocol: str = "icmp"  # icmp, tcp, udp, or OTHER
    sport: int = EPHEMERAL_PORT
    dport: int = EPHEMERAL_PORT
    icmp_type: int | None = None
    segment: Segment = Segment.OPENS

    def key(self) -> FlowKey:
        """What conntrack knows it by."""
        return (self.protocol, number(self.src), number(self.dst), self.sport, self.dport)

    def reply(self) -> Packet:
        """The answer to this packet."""
        answered = ECHO_REPLY if self.icmp_type == ECHO_REQUEST else self.icmp_type
        return Packet(
            src=self.dst,
            dst=self.src,
            protocol=self.protocol,
            sport=self.dport,
            dport=self.sport,
            icmp_type=answered,
            segment=Segment.ANSWERS if self.segment is Segment.OPENS else self.segment,
        )


class Leg(NamedTuple):
    """One direction of a flow: every decision on the way, and the refusal of which it died (None: it arrived).

    `sent`: source and destination as the sender sent them, as numbers.  `reached`: the machine where it arrived, None
    when it died.  `alike`: intervals (first, last) of sources and destinations, and `alike_ports`, of source ports and
    destination ports; each packet of these that this sender may send meets the same decisions.  Of an answer they are
    those whose requests are alike as well.  `untranslated`: a NAT VM passed it on without a translation.
    """

    sender: Vm
    sent: tuple[int, int]
    decisions: tuple[Decision, ...]
    refusal: Refusal | None
    reached: str | None
    packet: Packet  # as it arrived, or as it died
    alike: tuple[tuple[int, int], tuple[int, int]]
    alike_ports: tuple[tuple[int, int], tuple[int, int]]
    untranslated: str | None

    @property
    def disposition(self) -> Disposition:
        """What became of it."""
        return Disposition.DELIVERED if self.refusal is None else self.refusal.disposition

    @property
    def why(self) -> str:
        """Why it died, in a sentence; "" for one that arrived."""
        return "" if self.refusal is None else sentence(self.refusal)

    @property
    def fate(self) -> str:
        """What became of it, in a sentence."""
        if self.reached is not None:
            return f"{self.reached} gets it"
        came = "" if self.untranslated is None else f"{self.untranslated} passes it on as it came; then "
        return f"{came}{self.disposition}: {self.why}"

    @property
    def hops(self) -> tuple[Hop, ...]:
        """The packet between each two machines that may change it."""
        return hops(self.sender, self.sent, self.decisions)

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every decision in words, including the one of which it died."""
        return steps(self.sent, self.decisions, self.refusal)


class Trace(NamedTuple):
    """A flow: what became of it, and both legs (`reply` is None when the request did not arrive).

    astray: for WRONG_MACHINE, a sentence that says where it went instead.
    """

    disposition: Disposition
    request: Leg
    reply: Leg | None
    astray: str = ""

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The request, and the reply if there is one."""
        return (self.request,) if self.reply is None else (self.request, self.reply)

    @property
    def why(self) -> str:
        """What became of it, in a sentence."""
        if self.disposition is Disposition.DELIVERED:
            return "both ways arrive"
        if self.disposition is Disposition.WRONG_MACHINE:
            return self.astray
        return self.request.why if self.reply is None else f"the reply: {self.reply.why}"

    def to_dict(self, *, steps: bool = False) -> dict[str, object]:
        """The form of `trace --json`, and with `steps` of `trace --steps --json`."""
        entry: dict[str, object] = {
            "disposition": str(self.disposition),
            "why": self.why,
            "request": [_hop_dict(hop) for hop in self.request.hops],
            "reply": [] if self.reply is None else [_hop_dict(hop) for hop in self.reply.hops],
        }
        if steps:
            entry["steps"] = [_step_dict(step, leg is self.reply) for leg in self.legs for step in leg.steps]
        return entry


def trace(
    topology: Topology, sender: str, packet: Packet, expected: str | None = None, down: Container[str] = ()
) -> Trace:
    """Follow `packet` from the machine `sender`, and the answer back.

    expected: the machine that should answer; if another one answers, that is WRONG_MACHINE.  None: whoever has the
    address may answer.  down: the names of machines that are down.
    Raises UnknownRuleError for a rule that the tracer does not know.
    """
    return Tracer(topology, down).trace(sender, packet, expected)


class Tracer:
    """`trace` for many flows through one topology; what depends only on the topology is looked up once.

    down: the names of machines that are down.
    """

    def __init__(self, topology: Topology, down: Container[str] = ()) -> None:
        self._vms = topology.vms
        self._vcns = Vcns(topology, down)
        self._guests = Guests(topology, self._vcns.places)

    def trace(self, sender: str, packet: Packet, expected: str | None = None) -> Trace:
        """Request and reply, in a network that no flow has passed before."""
        request = self.request(sender, packet)
        if request.reached is None:
            return Trace(request.disposition, request, None)
        if expected is not None and request.reached != expected:
            reached, wanted = self._vms[request.reached].label, self._vms[expected].label
            astray = f"{reached} has that address too and answers, not {wanted}"
            return Trace(Disposition.WRONG_MACHINE, request, None, astray)
        reply = self.answer(request)
        if reply.reached is None:
            return Trace(reply.disposition, request, reply)
        back = reply.packet
        if reply.reached != sender or (back.dst, back.src) != (packet.src, packet.dst):
            astray = f"the reply reaches {self._vms[reply.reached].label} as {back.src} > {back.dst}"
            return Trace(Disposition.WRONG_MACHINE, request, reply, astray)
        return Trace(Disposition.DELIVERED, request, reply)

    def error(self, sender: str, error: Packet, about: FlowKey) -> Leg:
        """An ICMP error of `sender`, in the network that the flow traced last has passed.

        about: the inverse of the packet that it quotes, which is a packet of the flow that goes the error's way;
        NOBODYS for an error about no flow.
        """
        return self._leg(sender, error, about)

    def answer(self, request: Leg) -> Leg:
        """What the machine that got the traced request sends back, a NAT VM too."""
        got_it = request.refusal.vm.name if isinstance(request.refusal, AnsweredByNatVm) else request.reached
        if got_it is None:
            raise ValueError(f"nobody got {request.packet}")
        return self._leg(got_it, request.packet.reply())

    def forget(self) -> None:
        """Forget all flows: no flow has passed the network yet."""
        self._vcns.forget()
        self._guests.forget()

    def tracked(self) -> Iterator[Tracked]:
        """What the NAT VMs know of the flow that was traced last."""
        return self._guests.tracked()

    def request(self, sender: str, packet: Packet) -> Leg:
        """The request alone.  A NAT VM may be the sender, too."""
        if packet.protocol == "icmp" and packet.icmp_type is None:
            packet = replace(packet, icmp_type=ECHO_REQUEST)
        if packet.protocol not in (*PROTOCOLS, OTHER) or packet.icmp_type not in (None, ECHO_REQUEST, ECHO_REPLY):
            raise UnknownRuleError(f"{packet}", f"it sends {', '.join(PROTOCOLS)}, of ICMP an echo")
        self.forget()
        return self._leg(sender, packet)

    @property
    def used(self) -> dict[str, frozenset[RuleKey]]:
        """By NAT VM, the rules that any packet has matched so far."""
        return self._guests.used

    def _leg(self, sender: str, packet: Packet, about: FlowKey | None = None) -> Leg:
        header = Header(
            Span(number(packet.src)),
            Span(number(packet.dst)),
            packet.protocol,
            Span(packet.sport),
            Span(packet.dport),
            packet.icmp_type,
            about,
            segment=packet.segment,
        )
        sent = (header.src.value, header.dst.value)
        made: list[Decision] = []
        untranslated: list[str] = []
        reached = refusal = None
        try:
            reached = self._follow(sender, header, made, untranslated)
        except RefusedError as refused:
            refusal = refused.refusal
        return Leg(
            sender=self._vms[sender],
            sent=sent,
            decisions=tuple(made),
            refusal=refusal,
            reached=reached,
            packet=Packet(
                src=address_text(header.src.value),
                dst=address_text(header.dst.value),
                protocol=packet.protocol,
                sport=packet.sport,
                dport=packet.dport,
                icmp_type=packet.icmp_type,
                segment=packet.segment,
            ),
            alike=(header.src.origin(), header.dst.origin()),
            alike_ports=(header.sport.origin(), header.dport.origin()),
            untranslated=untranslated[-1] if untranslated else None,
        )

    def _follow(self, sender: str, header: Header, made: list[Decision], untranslated: list[str]) -> str:
        """From machine to machine, to the one that has the destination.  Raises RefusedError where the packet dies."""
        routed = self._guests.route(self._vms[sender], header.dst)
        made.append(routed)
        if routed.vm.kind == VM_NAT:
            self._guests.send(routed.vm, header, made)
        out = routed.vnic
        for _ in range(_MOST_MACHINES):
            arrival, vm = self._vcns.through(out, header, made)
            if vm.kind == VM_NAT:
                out, translated = self._guests.translate(vm, arrival, header, made)
                if not translated:
                    untranslated.append(vm.name)
            elif self._guests.is_local(vm, header):
                made.append(Delivered(vm, header.dst.value))
                return vm.name
            elif not vm.forwarding:
                raise RefusedError(NotForwarding(vm, header.dst.value))
            else:
                routed = self._guests.route(vm, header.dst)
                made.append(routed)
                out = routed.vnic
        raise RefusedError(Looped(_MOST_MACHINES))


def _hop_dict(hop: Hop) -> dict[str, str]:
    entry = {"at": hop.at, "src": hop.src, "dst": hop.dst}
    if hop.rules:
        entry["rule"] = "; ".join(hop.rules)
    return entry


def _step_dict(step: Step, reply: bool) -> dict[str, object]:
    entry: dict[str, object] = {
        "leg": "reply" if reply else "request",
        "at": step.machine,
        "phase": step.phase,
        "rule": step.rule,
        "before": {"src": step.before[0], "dst": step.before[1]},
        "after": {"src": step.after[0], "dst": step.after[1]},
        "passed": step.passed,
    }
    if step.chains:
        entry["chains"] = list(step.chains)
    return entry
