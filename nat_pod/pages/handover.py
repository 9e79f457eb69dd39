"""`handover`: what a neighbour's own engineer has to know and to set up, on one page.

A neighbour is a customer or management.  Addresses as the far end sees them are the tracer's, on the network that
`expected.py` describes, and a sheet that promises what the rules do not deliver is not written.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from netaddr import IPNetwork

from nat_pod.errors import NatPodError
from nat_pod.names import MANAGEMENT, VROUTER
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.text import markdown_table
from nat_pod.trace.expected import expected_topology, security_rule
from nat_pod.trace.flows import flow_between
from nat_pod.trace.topology import SecurityRule
from nat_pod.trace.walk import Disposition, Packet, Tracer

_OCID = re.compile(r"ocid1\.[a-z0-9]+\.[A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Far:
    """Somebody on the other side.

    `address` is where this side calls it, None when nobody here may.  `seen_as` is the source of its own packets as
    they arrive here, None when it may call nobody here.  `calls` and `called_by` are the members here.
    """

    member: str
    address: str | None
    seen_as: str | None
    calls: tuple[str, ...]
    called_by: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """A member of the neighbour: its own address, the one the other side calls, the one the other side sees."""

    member: str
    real: str
    called_at: str
    seen_as: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """Something to try: who calls which address, and what the far end sees as the source."""

    sender: str
    receiver: str
    address: str
    seen_as: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """All of the page.

    `ocid` is of the POD's LPG for a customer, of the vRouter's subnet for management; None without the stack's outputs.
    `deployed` says whether these are of this very plan.  `peer_id` is the customer's LPG when the POD asks.
    `vrouter` is the floating IP in the POD and the gateway of its subnet there.
    """

    stack: str
    realm: str
    cidr: str
    pod: str
    destinations: tuple[str, ...]
    security: tuple[SecurityRule, ...]
    policies: tuple[tuple[str, tuple[str, ...]], ...]
    far: tuple[Far, ...]
    near: tuple[Near, ...]
    attempts: tuple[Attempt, ...]
    peer_id: str | None
    vrouter: tuple[str, str]
    vrouter_subnet: str
    ocid: str | None = None
    deployed: bool | None = None


def handover(plan: PodPlan, stack: str, realm: str) -> Sheet:
    """The sheet for a customer, or for `management`.

    Raises NatPodError for somebody who is no neighbour of this POD.
    """
    if realm != MANAGEMENT and realm not in plan.customer_cidrs:
        known = ", ".join([*plan.customer_cidrs, MANAGEMENT])
        raise NatPodError(f"{realm}: is no neighbour of POD {stack}; known are {known}")
    servers = [slot for slot in plan.slots if slot.member.startswith(f"{MANAGEMENT}/")]
    hosts = [slot for slot in plan.slots if slot not in servers]
    own = [host for host in hosts if host.member.startswith(f"{realm}/")]
    near, far = (servers, hosts) if realm == MANAGEMENT else (own, servers)
    network = IPNetwork(next(subnet.cidr for subnet in plan.subnets if subnet.key == VROUTER))
    sees = _Seen(plan)
    near_sheet = tuple(_near(sees, slot, far) for slot in near)
    far_sheet = tuple(_far(sees, slot, near) for slot in far)
    lpg = next((lpg for lpg in plan.lpgs if lpg.customer == realm), None)
    peer_id = None if lpg is None else lpg.peer_id
    return Sheet(
        stack=stack,
        realm=realm,
        cidr=plan.management_cidr if realm == MANAGEMENT else plan.customer_cidrs[realm],
        pod=plan.cidr,
        destinations=plan.neighbours[realm],
        security=_security(plan, realm),
        policies=_policies(realm, pod_asks=peer_id is not None),
        far=far_sheet,
        near=near_sheet,
        attempts=_attempts(near_sheet, far_sheet),
        peer_id=peer_id,
        vrouter=(plan.vrouter_ip, str(network[1])),
        vrouter_subnet=str(network),
    )


class _Seen:
    """Who sees whom as what, traced through the compiled rules."""

    def __init__(self, plan: PodPlan) -> None:
        self._plan = plan
        self._tracer = Tracer(expected_topology(plan))

    def may_call(self, sender: SlotPlan, receiver: SlotPlan) -> bool:
        """Whether the stack file declares the flow."""
        customer = sender.member.split("/")[0]
        return customer == MANAGEMENT or receiver.member in self._plan.may_reach[customer]

    def source(self, sender: SlotPlan, receivers: Sequence[SlotPlan]) -> str | None:
        """The source of a member's packets at the far end; it is the same at each, so the first one is asked."""
        if not receivers:
            return None
        flow = flow_between(sender, receivers[0])
        traced = self._tracer.trace(flow.sender, Packet(src=flow.source, dst=flow.destination), flow.receiver)
        if traced.disposition is not Disposition.DELIVERED:
            raise NatPodError(
                f"no sheet: the rules do not deliver {flow.sender} to {flow.receiver}: "
                f"{traced.disposition}: {traced.why}; see python -m nat_pod trace"
            )
        return traced.request.hops[-1].src


def _near(sees: _Seen, slot: SlotPlan, far: Sequence[SlotPlan]) -> Near:
    server = slot.member.startswith(f"{MANAGEMENT}/")
    return Near(
        member=slot.member,
        real=slot.real,
        called_at=slot.nat_vm1 if server else slot.nat_vm2,
        seen_as=sees.source(slot, [other for other in far if sees.may_call(slot, other)]),
    )


def _far(sees: _Seen, slot: SlotPlan, near: Sequence[SlotPlan]) -> Far:
    server = slot.member.startswith(f"{MANAGEMENT}/")
    calls = [other for other in near if sees.may_call(slot, other)]
    called_by = [other for other in near if sees.may_call(other, slot)]
    address = slot.nat_vm1 if server else slot.nat_vm2
    return Far(
        member=slot.member,
        address=address if called_by else None,
        seen_as=sees.source(slot, calls),
        calls=tuple(other.member for other in calls),
        called_by=tuple(other.member for other in called_by),
    )


def _security(plan: PodPlan, realm: str) -> tuple[SecurityRule, ...]:
    """Stateful, as people write them, by the ranges of the route rules.

    Whatever the other side is called or seen as lies in these.  The vRouter passes on what is for neither of its
    VNICs, so the one in the management VCN meets packets of the servers too.
    """
    others = "customers' hosts" if realm == MANAGEMENT else "servers"
    peers = [(cidr, f"calls from the {others}", f"calls to the {others}") for cidr in plan.neighbours[realm]]
    if realm == MANAGEMENT:
        at = "at the vRouter's VNIC:"
        peers.append((plan.management_cidr, f"{at} servers to the POD", f"{at} the POD to servers"))
    rules = []
    for cidr, incoming, outgoing in peers:
        rules.append(SecurityRule(direction="INGRESS", protocol="all", peer=cidr, description=incoming))
        rules.append(SecurityRule(direction="EGRESS", protocol="all", peer=cidr, description=outgoing))
    path_mtu = next(rule for rule in plan.security[VROUTER] if rule.icmp_type is not None)
    return (*rules, replace(security_rule(path_mtu), stateless=False))


def _attempts(near: Sequence[Near], far: Sequence[Far]) -> tuple[Attempt, ...]:
    """One call in each direction, where there is one that is allowed."""
    mine = {member.member: member for member in near}
    out = [(mine[other.called_by[0]], other) for other in far if other.called_by]
    back = [(other, mine[other.calls[0]]) for other in far if other.calls]
    attempts = [(one.member, two.member, two.address, one.seen_as) for one, two in out[:1]]
    attempts += [(two.member, one.member, one.called_at, two.seen_as) for two, one in back[:1]]
    return tuple(
        Attempt(sender=sender, receiver=receiver, address=address, seen_as=seen_as)
        for sender, receiver, address, seen_as in attempts
        if address is not None and seen_as is not None
    )


def _policies(realm: str, *, pod_asks: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The neighbour's own IAM statements, by the case they are for.  docs/deploy.md has both sides'."""
    if realm == MANAGEMENT:
        return (
            (
                "for the vRouter's VNIC in the POD's subnet",
                (
                    "Allow group vrouter-owners to use subnets in compartment pods",
                    "Allow group vrouter-owners to manage vnics in compartment pods",
                    "Allow group vrouter-owners to manage private-ips in compartment pods",
                ),
            ),
        )
    asks, its_compartment, other = f"{realm}-network", realm, "pods"
    if pod_asks:
        asks, its_compartment, other = "nat-pod-deployers", "pods", realm
    same = (
        f"Allow group {asks} to manage local-peering-from in compartment {its_compartment}",
        f"Allow group {asks} to manage local-peering-to in compartment {other}",
        f"Allow group {asks} to inspect vcns in compartment {other}",
        f"Allow group {asks} to inspect local-peering-gateways in compartment {other}",
    )
    if pod_asks:
        own: tuple[str, ...] = (
            "Define tenancy isv as ocid1.tenancy.oc1..isv",
            f"Define group {asks} as ocid1.group.oc1..{asks}",
            f"Admit group {asks} of tenancy isv to manage local-peering-to in compartment {realm}",
            f"Admit group {asks} of tenancy isv to associate local-peering-gateways in tenancy isv "
            f"with local-peering-gateways in compartment {realm}",
        )
    else:
        own = (
            "Define tenancy isv as ocid1.tenancy.oc1..isv",
            f"Allow group {asks} to manage local-peering-from in compartment {realm}",
            f"Endorse group {asks} to manage local-peering-to in tenancy isv",
            f"Endorse group {asks} to associate local-peering-gateways in compartment {realm} "
            "with local-peering-gateways in tenancy isv",
        )
    return (("in one tenancy with the POD", same), ("in a tenancy of your own, your side of it", own))


# --- the stack's outputs ---------------------------------------------------------------------------------------------


def with_outputs(sheet: Sheet, plan: PodPlan, outputs: Path) -> Sheet:
    """The sheet with the OCIDs of the deployed POD.

    outputs: a file with what `pulumi stack output --json` prints.  Raises NatPodError for any other.
    """
    what = "it is what `pulumi stack output --json` prints"
    try:
        loaded = json.loads(outputs.read_text(encoding="utf-8"))
    except OSError as error:
        raise NatPodError(f"--outputs {outputs}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise NatPodError(f"--outputs {outputs}: is not JSON: {str(error).splitlines()[0]}; {what}") from None
    place = ("vrouterSubnetId",) if sheet.realm == MANAGEMENT else ("lpgIds", sheet.realm)
    value = loaded
    for key in place:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, str) or not _OCID.fullmatch(value):
        raise NatPodError(
            f"--outputs {outputs}: has no OCID {'.'.join(place)}; {what}, and the POD is of another state without it"
        )
    generations = {vm.key: vm.generation for vm in plan.vms}
    return replace(sheet, ocid=value, deployed=loaded.get("generations") == generations)


# --- forms -----------------------------------------------------------------------------------------------------------


def sheet_dict(sheet: Sheet) -> dict[str, object]:
    """The form of `handover --json`."""
    return {
        "stack": sheet.stack,
        "neighbour": sheet.realm,
        "cidr": sheet.cidr,
        "pod": sheet.pod,
        "deployed": sheet.deployed,
        **_connection(sheet),
        "policies": [{"for": case, "statements": list(statements)} for case, statements in sheet.policies],
        "routes": [{"destination": destination, "target": _target(sheet)} for destination in sheet.destinations],
        "security": [
            {
                "direction": rule.direction,
                "peer": rule.peer,
                "protocol": rule.protocol,
                "icmpType": rule.icmp_type,
                "icmpCode": rule.icmp_code,
                "stateless": rule.stateless,
                "for": rule.description,
            }
            for rule in sheet.security
        ],
        "far": {
            far.member: {
                "address": far.address,
                "seenAs": far.seen_as,
                "calls": list(far.calls),
                "calledBy": list(far.called_by),
            }
            for far in sheet.far
        },
        "near": {
            near.member: {"real": near.real, "calledAt": near.called_at, "seenAs": near.seen_as} for near in sheet.near
        },
        "try": [
            {"on": attempt.sender, "address": attempt.address, "answers": attempt.receiver, "seenAs": attempt.seen_as}
            for attempt in sheet.attempts
        ],
    }


def _connection(sheet: Sheet) -> dict[str, object]:
    if sheet.realm == MANAGEMENT:
        address, gateway = sheet.vrouter
        subnet = {"cidr": sheet.vrouter_subnet, "id": sheet.ocid}
        return {"vrouter": {"address": address, "gateway": gateway, "subnet": subnet}}
    requestor = "neighbour" if sheet.peer_id is None else "pod"
    return {"peering": {"lpgId": sheet.ocid, "requestor": requestor, "peerId": sheet.peer_id}}


def _target(sheet: Sheet) -> str:
    if sheet.realm == MANAGEMENT:
        return "the vRouter's floating private IP in the management VCN"
    return "your LPG to the POD"


def sheet_markdown(sheet: Sheet) -> str:
    """The page itself."""
    management = sheet.realm == MANAGEMENT
    ours, others, theirs = ("hosts", "customers' hosts", "the customers know")
    if not management:
        ours, others, theirs = ("servers", "management's servers", "management knows")
    members = "servers" if management else "hosts"
    parts = [
        f"# {sheet.realm}: the way through POD `{sheet.stack}`",
        _wrap(
            f"Your VCN, {sheet.cidr}, and {others} talk through the POD's VCN, {sheet.pod}. The networks at both ends "
            "may overlap: each side knows the other by addresses of the POD, those below, and by no others."
        ),
    ]
    if sheet.deployed is False:
        parts.append(
            _wrap("**Not deployed yet**: what runs is another state of the stack file. `pulumi up` comes first.")
        )
    parts.append(f"## 1. {'The vRouter' if management else 'The peering'}")
    parts.append(_vrouter(sheet) if management else _peering(sheet))
    for case, statements in sheet.policies:
        block = "\n".join(["```", *statements, "```"])
        parts += [_wrap(f"IAM, {case}; groups, compartments and tenancies by your names:"), block]
    parts += [
        "## 2. Route rules",
        _wrap(f"In the route table of every subnet with one of the {members} of section 5:"),
        markdown_table(["destination", "target"], [[cidr, _target(sheet)] for cidr in sheet.destinations]),
        "## 3. Security rules",
        _wrap(
            f"In a security list of these subnets, or an NSG of these {members}. Stateful; narrow the protocols to "
            "those in use."
        ),
        markdown_table(
            ["direction", "source or destination", "protocol", "for"],
            [[rule.direction.lower(), rule.peer, _protocol(rule), rule.description] for rule in sheet.security],
        ),
        f"## 4. {others[0].upper()}{others[1:]}, as you know them",
        markdown_table(*_far_table(sheet)),
        f"## 5. Your {members}, as {theirs} them",
        markdown_table(*_near_table(sheet)),
    ]
    if sheet.attempts:
        parts += ["## 6. Try it", *(_attempt(attempt) for attempt in sheet.attempts)]
    parts.append(f"## {7 if sheet.attempts else 6}. What does not work, by design")
    parts.append("\n".join(_wrap(f"- {line}") for line in _refusals(sheet, members, ours)))
    return "\n\n".join(parts)


def _wrap(text: str) -> str:
    """For a terminal of 80 columns; Markdown joins the lines."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, 79, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _short(member: str) -> str:
    return member.split("/")[1]


def _protocol(rule: SecurityRule) -> str:
    return "all" if rule.icmp_type is None else f"ICMP type {rule.icmp_type} code {rule.icmp_code}"


def _peering(sheet: Sheet) -> str:
    shown = _ocid(sheet, "lpgIds")
    if sheet.peer_id is not None:
        first = f"The POD asks, of your LPG `{sheet.peer_id}`; your side accepts by policy. The POD's LPG: {shown}."
    else:
        first = (
            "Make a local peering gateway (LPG) in your VCN, and establish the peering from it: you are the "
            f"requestor. The POD's LPG: {shown}."
        )
    return _wrap(f"{first} Both LPGs show *Peered* when it stands.")


def _vrouter(sheet: Sheet) -> str:
    address, gateway = sheet.vrouter
    return "\n".join(
        _wrap(f"- {line}")
        for line in (
            f"Attach a VNIC of each vRouter to the POD's subnet {sheet.vrouter_subnet}, with its source/destination "
            f"check skipped. Its OCID: {_ocid(sheet, 'vrouterSubnetId')}.",
            f"Give the active one the private IP {address} there; the POD routes {sheet.cidr} to it.",
            f"In its guest, route {sheet.pod} by that VNIC, gateway {gateway}, and forward.",
        )
    )


def _ocid(sheet: Sheet, output: str) -> str:
    return f"`{sheet.ocid}`" if sheet.ocid else f"see `pulumi stack output {output} --stack {sheet.stack}`"


def _far_table(sheet: Sheet) -> tuple[Sequence[str], list[list[str]]]:
    if sheet.realm != MANAGEMENT:
        return ["server", "you call it at", "you see it as"], [
            [_short(far.member), far.address or "not for you", far.seen_as or "-"] for far in sheet.far
        ]
    everybody = len(sheet.near)
    return ["host", "you call it at", "you see it as", "it may call"], [
        [
            far.member,
            far.address or "-",
            far.seen_as or "-",
            "all servers" if len(far.calls) == everybody else ", ".join(map(_short, far.calls)) or "no server",
        ]
        for far in sheet.far
    ]


def _near_table(sheet: Sheet) -> tuple[Sequence[str], list[list[str]]]:
    header = ["host", "its address", "management calls it at", "management sees it as"]
    if sheet.realm == MANAGEMENT:
        header = ["server", "its address", "customers call it at", "customers see it as"]
    return header, [[_short(near.member), near.real, near.called_at, near.seen_as or "-"] for near in sheet.near]


def _attempt(attempt: Attempt) -> str:
    commands = [f"ping -c 3 {attempt.address}", f"curl -m 5 http://{attempt.address}/"]
    notes = [f"{attempt.receiver} sees {attempt.seen_as}", "the same, if it has a web server"]
    width = max(len(command) for command in commands)
    lines = [f"    {command:{width}}  # {note}" for command, note in zip(commands, notes, strict=True)]
    return "\n".join([f"On {attempt.sender}:", "", *lines])


def _refusals(sheet: Sheet, members: str, others: str) -> list[str]:
    lines = [
        f"To and from {members} that are not in section 5: they have no address here. The POD's owner adds them.",
        f"To addresses of {sheet.pod} that are not in section 4.",
        f"To real addresses of the {others}: where the networks overlap, a machine of your own may answer there.",
    ]
    if sheet.realm != MANAGEMENT:
        closed = [_short(far.member) for far in sheet.far if far.address is None]
        lines += [f"From your hosts to {', '.join(closed)}: not in your list of servers."] if closed else []
        lines.append("Between you and other customers, by whatever address.")
    lines.append("The POD drops all this without an answer: ping and curl time out.")
    return lines
