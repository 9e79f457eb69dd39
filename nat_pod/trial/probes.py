"""What a trial's machines send, and what each is told: lists of probes, as metadata of the neighbours' VMs.

The flows are those of `lab check` between the machines that there are: declared ones, and those that must not connect.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nat_pod.config.delivery import Delivery
from nat_pod.config.services import EVERYTHING, TCP, UDP
from nat_pod.names import NAT_VM2, VROUTER, MemberName
from nat_pod.plan.bootstrap import without_comments, without_docstrings
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.trace.flows import NOT_IN_POLICY, PROTOCOLS, Flow, declared_flows, refused_flows, stranger_addresses
from nat_pod.trial.neighbours import PROGRAM, Neighbours

KEY = "nat-pod-probes"

WHOLE, NARROW = 9000, 1400
"""Bytes of the longest packet on OCI's networks (OCI docs, "Hanging Connection"), and of one after a narrow place."""

HELD = 20
"""TCP flows that a machine holds while NAT VMs stop, and as many of UDP."""

PAST_NAT_VM1 = "customer past NAT VM1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A flow that a machine is asked to try with one protocol.

    number: its own among all probes of a trial.  trial: of the trial, so that a packet of another one is not taken for
    one of this.  token: what its packets carry; a forged SYN has `sequence` instead.
    """

    number: int
    trial: int
    flow: Flow
    protocol: str

    @property
    def token(self) -> str:
        """In the payload."""
        return f"np-{self.trial}-{self.number}"

    @property
    def sequence(self) -> int:
        """The sequence number of a forged SYN, which nobody changes on the way."""
        return zlib.crc32(self.token.encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class Extra:
    """Another probe of one machine: a long packet (`big`), flows that are held (`hold`), a silent one (`idle`)."""

    number: int
    sender: str
    kind: str
    to: str
    settings: Mapping[str, int]


def chosen(plan: PodPlan, *, everyone: bool = False) -> frozenset[MemberName]:
    """The members that stand for all: of each customer a host per VNIC, and of the servers one per set of callers.

    `symmetry` would choose more: where customers overlap, hardly any two members are alike to the network, although
    their packets go the same way.  everyone: all members.
    """
    if everyone:
        return frozenset(slot.member for slot in plan.slots)
    vnic_of = {address: vnic.key for vm in plan.vms for vnic in vm.vnics for address in vnic.addresses}
    first: dict[object, MemberName] = {}
    for host in plan.hosts:
        first.setdefault((host.member.realm, vnic_of.get(host.nat_vm1)), host.member)
    for server in plan.servers:
        callers = frozenset(plan.access.callers(server.member))
        first.setdefault((callers, vnic_of.get(server.nat_vm2)), server.member)
    return frozenset(first.values())


def asked(plan: PodPlan, members: frozenset[MemberName], trial: int) -> list[Asked]:
    """Every flow between the machines that there are, with each protocol.  trial: see `Asked`."""
    strangers = stranger_addresses(plan)
    there = members | set(strangers)
    flows = [flow for flow in declared_flows(plan) if flow.sender in there and flow.receiver in there]
    flows += [flow for flow in (*refused_flows(plan), *_past_nat_vm1(plan, members)) if flow.sender in there]
    found: list[Asked] = []
    for flow in flows:
        for protocol in PROTOCOLS if flow.protocol is None else (flow.protocol,):
            found.append(Asked(number=len(found), trial=trial, flow=flow, protocol=protocol))
    return found


def _past_nat_vm1(plan: PodPlan, members: frozenset[MemberName]) -> list[Flow]:
    """A customer who calls another customer's host as management does, with a server's address.

    Only the route table of the LPGs keeps it from NAT VM2, which would translate it.
    """
    if plan.delivery is not Delivery.PRIVATE_IPS:
        return []
    found = []
    strangers = stranger_addresses(plan)
    for stranger in strangers:
        other = next((h for h in plan.hosts if h.member.realm != stranger.realm and h.member in members), None)
        if stranger.is_server or other is None or not plan.servers:
            continue
        found.append(
            Flow(
                sender=stranger,
                source=plan.servers[0].real,
                destination=other.nat_vm2,
                receiver=None,
                why=PAST_NAT_VM1,
                forged=True,
            )
        )
    return found


def long_packets(plan: PodPlan, members: frozenset[MemberName], first: int) -> list[Extra]:
    """A packet of full length, from a host of each customer and back from a server."""
    found: list[Extra] = []
    for sender, to in _pairs(plan, members):
        found.append(Extra(number=first + len(found), sender=sender, kind="big", to=to, settings={"size": WHOLE}))
    return found


def narrow_place(plan: PodPlan, members: frozenset[MemberName], first: int) -> list[Extra]:
    """The same from a host, while the vRouter lets shorter packets only through to the server."""
    hosts = [(sender, to) for sender, to in _pairs(plan, members) if not sender.is_server][:1]
    return [
        Extra(number=first + at, sender=sender, kind="big", to=to, settings={"size": WHOLE, "until": NARROW})
        for at, (sender, to) in enumerate(hosts)
    ]


def narrowed(plan: PodPlan, members: frozenset[MemberName]) -> dict[str, int]:
    """The addresses to which the vRouter lets shorter packets only through."""
    return {slot.real: NARROW for slot in plan.servers if slot.member in members}


def held(plan: PodPlan, members: frozenset[MemberName], first: int, idle_seconds: int) -> list[Extra]:
    """Flows that are held while NAT VMs stop, from a host of each customer and from a server, and a silent one."""
    pairs = _pairs(plan, members)
    found = [
        Extra(number=first + at, sender=sender, kind="hold", to=to, settings={"flows": HELD})
        for at, (sender, to) in enumerate(pairs)
    ]
    for sender, to in pairs[:1]:
        number = first + len(found)
        found.append(Extra(number=number, sender=sender, kind="idle", to=to, settings={"seconds": idle_seconds}))
    return found


def _pairs(plan: PodPlan, members: frozenset[MemberName]) -> list[tuple[MemberName, str]]:
    """A host of each customer with the address at which it calls a server, then a server that calls a host."""
    servers = [slot for slot in plan.servers if slot.member in members]
    found: list[tuple[MemberName, str]] = []
    first_host: SlotPlan | None = None
    for customer in plan.customer_cidrs:
        host = next((h for h in plan.hosts if h.member.realm == customer and h.member in members), None)
        server = next((s for s in servers if host is not None and _everything(plan, host, s)), None)
        if host is not None and server is not None:
            found.append((host.member, server.nat_vm1))
            first_host = first_host or host
    calling = next((s for s in servers if first_host is not None and _everything(plan, s, first_host)), None)
    if calling is not None and first_host is not None:
        found.append((calling.member, first_host.address(NAT_VM2)))
    return found


def _everything(plan: PodPlan, sender: SlotPlan, receiver: SlotPlan) -> bool:
    """Whether no policy keeps anything from passing: these probes choose their ports themselves."""
    return plan.access.services(sender.member, receiver.member) == EVERYTHING


# --- what a machine is told ------------------------------------------------------------------------------------------


def lists(
    neighbours: Neighbours,
    number: int,
    flows: Iterable[Asked] = (),
    extra: Iterable[Extra] = (),
    *,
    expected: Iterable[Asked] = (),
    narrow: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """By machine: the value of its metadata key KEY.

    number: of the list; each is carried out once.  expected: flows that are asked for later; a machine must know ports
    and forged SYNs before the first packet is sent, and not all see a list at the same moment.
    """
    flows, extra = list(flows), list(extra)
    forged = [one.sequence for one in (*flows, *expected) if one.flow.forged and one.protocol == TCP]
    ports = {
        protocol: sorted({one.flow.port or 0 for one in (*flows, *expected) if _is_served(one.flow, protocol)})
        for protocol in (TCP, UDP)
    }
    told = {}
    for machine in neighbours.machines:
        probes = [_probe(one) for one in flows if one.flow.sender == machine.name]
        probes += [
            {"id": one.number, "kind": one.kind, "to": one.to, "token": f"np-{one.number}", **one.settings}
            for one in extra
            if one.sender == machine.name
        ]
        router = machine.name == VROUTER
        document = {
            "name": machine.name,
            "list": number,
            "probes": probes,
            "listen": ports,
            "forged": forged,
            "vnics": _router_vnics(neighbours) if router else {},
            "narrow": dict(narrow or {}) if router else {},
        }
        told[machine.name] = _packed(json.dumps(document, separators=(",", ":")))
    return told


def _is_served(flow: Flow, protocol: str) -> bool:
    """Whether hosts listen at its port, even if a policy closes it: an open port where nobody listens looks closed."""
    return flow.protocol == protocol and (flow.receiver is not None or flow.why == NOT_IN_POLICY)


def _probe(one: Asked) -> dict[str, object]:
    probe: dict[str, object] = {"id": one.number, "to": one.flow.destination, "token": one.token}
    if one.flow.forged:
        probe |= {"kind": "forge", "protocol": one.protocol, "from": one.flow.source, "sequence": one.sequence}
    else:
        probe["kind"] = one.protocol
        if one.flow.port is not None:
            probe["port"] = one.flow.port
        if one.flow.receiver is None:
            probe["refused"] = 1
    return probe


def _router_vnics(neighbours: Neighbours) -> dict[str, object]:
    """What the vRouter's guest sets up: its further addresses, and the POD's range by its VNIC there."""
    router = neighbours.vrouter
    return {
        router.machine.address: {"addresses": [router.floating], "routes": []},
        router.own_in_pod: {"addresses": [router.floating_in_pod], "routes": [neighbours.pod_cidr]},
    }


def user_data() -> str:
    """What a neighbour's VM boots from, in base64: a cloud-config with the probe in it."""
    probe = without_comments(without_docstrings((PROGRAM / "probe.py").read_text(encoding="utf-8")))
    config = (PROGRAM / "cloud-config.yaml").read_text(encoding="utf-8")
    return _packed(config.replace("$probe", json.dumps(probe)))


def metadata(names: Sequence[str], told: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By machine: all its metadata."""
    boot = user_data()
    return {name: {"user_data": boot, KEY: told[name]} for name in names}


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
