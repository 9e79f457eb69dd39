"""The flows a POD declares, and those it must refuse.

A flow says who sends from where to which address, and who should answer.  The lab sends them and the tracer predicts
them; both take them from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from netaddr import IPAddress, IPNetwork

from nat_pod.config.addressing import free_addresses
from nat_pod.config.delivery import Delivery
from nat_pod.config.services import EVERYTHING, ICMP, LAST_PORT, TCP, UDP, Services
from nat_pod.names import INNER, MANAGEMENT, NAT_VM2, SIDES, SSH, STRANGER, MemberName, Role, Side
from nat_pod.plan.model import PodPlan, SlotPlan
from nat_pod.trace.vcn_blocks import blocks_of

NOT_IN_POLICY = "not in the policy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """`sender` (a member, or a stranger) sends from `source` to `destination`; `receiver`, or nobody, should answer.

    `why` says what a refused flow is an example of.  `protocol` is set when only that one is meant, and for TCP and UDP
    `port` with it; without them every protocol is.  `forged` says that `source` is not the sender's own address.
    """

    sender: MemberName
    source: str
    destination: str
    receiver: MemberName | None
    why: str = ""
    protocol: str | None = None
    port: int | None = None
    forged: bool = False

    @property
    def to(self) -> str:
        """Where it goes, as people write it: `198.18.0.2`, `198.18.0.2 port 22`."""
        return self.destination if self.port is None else f"{self.destination} port {self.port}"


PROTOCOLS = (ICMP, TCP, UDP)
"""Those that each flow is tried with, where not only one is meant."""

PORT = 80
"""The port that stands for all ports that no rule names."""

_SERVED = {TCP: PORT, UDP: 9}
"""Where hosts answer in a lab and in a trial, whatever a policy says."""


def declared_flows(plan: PodPlan) -> list[Flow]:
    """All flows that the stack file declares: hosts to the servers they may reach, servers to hosts.

    Where a policy lets only some protocols and ports pass, there is a flow for each of them; of a range of ports one
    stands for all.
    """
    senders = [*((host, plan.servers) for host in plan.hosts), *((server, plan.hosts) for server in plan.servers)]
    return [
        flow
        for sender, receivers in senders
        for reach in [plan.access.reach(sender.member)]
        for receiver in receivers
        if receiver.member in reach
        for flow in _parts(flow_between(sender, receiver), reach[receiver.member])
    ]


def _parts(flow: Flow, services: Services) -> Iterator[Flow]:
    """A flow for each part of what passes."""
    if services == EVERYTHING:
        yield flow
        return
    for protocol, port in samples(services):
        yield replace(flow, protocol=protocol, port=port)


def sample(services: Services) -> tuple[str, int | None]:
    """A packet's protocol and port that stand for what passes: a ping where one may.

    Raises ValueError where nothing passes.
    """
    for protocol, port in [(ICMP, None)] if services.icmp else samples(services):
        return protocol, port
    raise ValueError("nothing passes")


def samples(services: Services) -> list[tuple[str, int | None]]:
    """A packet's protocol and port for each part of what passes."""
    found: list[tuple[str, int | None]] = [
        (protocol, _SERVED[protocol] if _SERVED[protocol] in ports else max(ports.first, 1))
        for protocol in (TCP, UDP)
        for ports in services.of(protocol)
    ]
    return [*found, (ICMP, None)] if services.icmp else found


def flow_between(sender: SlotPlan, receiver: SlotPlan) -> Flow:
    """The flow from one member to another.  Management calls addresses of NAT VM2, customers those of NAT VM1."""
    return Flow(
        sender=sender.member,
        source=sender.real,
        destination=receiver.address(sender.member.side),
        receiver=receiver.member,
    )


def stranger_addresses(plan: PodPlan) -> dict[MemberName, str]:
    """For each neighbour's network, the address of a host that is not in the address book: {`customer1/stranger`: ...}.

    That of a further network has the network in its name: `customer1/stranger-10.1.0.0`.  A network in which every
    address is a member's has no room for a stranger, and is left out.
    """
    used = {slot.real for slot in plan.slots}
    strangers: dict[MemberName, str] = {}
    for realm, cidrs in plan.realms.items():
        blocks = blocks_of(cidrs, (slot.real for slot in plan.slots if slot.member.realm == realm))
        for network in map(IPNetwork, cidrs):
            # Of a network that is larger than a VCN's block, where there is one.
            inside = next((block for block in map(IPNetwork, blocks) if block in network), network)
            # The last one is the vRouter's, in management's network (`expected.vrouter_address`).
            address = next(free_addresses(inside, used | {str(inside[-2])}), None) if inside.size > 2 else None
            if address is not None:
                further = f"-{network.ip}" if strangers_in(strangers, realm) else ""
                strangers[MemberName(realm, f"{STRANGER}{further}")] = address
    return strangers


def strangers_in(strangers: Iterable[MemberName], realm: str) -> list[MemberName]:
    """Those of one neighbour, one a network.  The first one's name has no network in it."""
    return [name for name in strangers if name.realm == realm]


def beside(plan: PodPlan, realm: str) -> list[str]:
    """The networks of the other customers of a customer's NAT VM1: a packet from there may be forged, or theirs."""
    if realm == MANAGEMENT:
        return []
    gateway = plan.gateways[realm]
    return [
        cidr
        for name, cidrs in plan.customer_cidrs.items()
        if name != realm and plan.gateways[name] == gateway
        for cidr in cidrs
    ]


def matrix(plan: PodPlan, admitted: Mapping[tuple[str, str], MemberName | None] | None = None) -> Iterator[Flow]:
    """Every pair of a sender and an address in the POD, with who should answer, or that nobody may.

    admitted: by sender and address, who should answer packets of the kind that is looked at; by default whoever should
    answer any.

    Senders: all members, and a stranger in each network.  Addresses: all that somebody on the sender's side could call
    in the POD; there is no other way into it.  `why` is "declared", or what the refused pair is an example of.
    """
    declared = {(flow.sender, flow.destination): flow.receiver for flow in declared_flows(plan)}
    members = {slot.member: slot for slot in plan.slots}
    closed = {(name, receiver.address(name.side)) for name in members for receiver in _closed_to(plan, name)}
    called = {side: _called(plan, side) for side in SIDES}
    servers_at = {slot.nat_vm1 for slot in plan.servers}
    hosts_at = {slot.nat_vm1: slot.member.realm for slot in plan.slots}
    for sender, source in [*((name, slot.real) for name, slot in members.items()), *stranger_addresses(plan).items()]:
        for destination in called[sender.side]:
            receiver = (declared if admitted is None else admitted).get((sender, destination))
            if receiver is not None:
                why = "declared"
            elif (sender, destination) in declared or (sender, destination) in closed:
                why = NOT_IN_POLICY
            elif sender not in members:
                why = "unlisted management host" if sender.is_server else "stranger"
            elif sender.is_server:
                why = "unmapped address"
            elif destination in servers_at:
                why = "server not in the customer's list"
            else:
                owner = hosts_at.get(destination)
                why = "unmapped address" if owner is None else "customer to customer"
                if owner == sender.realm:
                    why = "customer to itself"
            yield Flow(sender=sender, source=source, destination=destination, receiver=receiver, why=why)


def _closed_to(plan: PodPlan, sender: MemberName) -> list[SlotPlan]:
    """To whom a policy alone lets a member open nothing."""
    if not plan.access.entries:
        return []
    reach = plan.access.reach(sender)
    if sender.is_server:
        return [host for host in plan.hosts if host.member not in reach]
    return [s for s in plan.servers if s.member in plan.access.lists[sender.realm] and s.member not in reach]


def _called(plan: PodPlan, side: Side) -> tuple[str, ...]:
    """What somebody on this side could call: the NAT VM's addresses, or all aliases and what the VCN itself has."""
    match plan.delivery:
        case Delivery.PRIVATE_IPS:
            return plan.addresses_on(side)
        case Delivery.ROUTES:
            aliases = (slot.address(side) for slot in plan.slots)
            vms = (address for each in SIDES for address in plan.addresses_on(each))
            return (*aliases, *vms, *(balancer.address for balancer in plan.balancers))
        case _ as never:
            assert_never(never)


def refused_flows(plan: PodPlan) -> list[Flow]:
    """Flows that must not connect, at most a handful of each kind.

    The source/destination check on a stranger's VNIC is off.  The customer owns that switch, so no protection may rest
    on it.
    """
    strangers = stranger_addresses(plan)
    servers, hosts = plan.servers, plan.hosts
    flows = []

    def refuse(
        why: str,
        sender: MemberName,
        source: str,
        destination: str,
        protocol: str | None = None,
        port: int | None = None,
        *,
        forged: bool = False,
    ) -> None:
        flows.append(
            Flow(
                sender=sender,
                source=source,
                destination=destination,
                receiver=None,
                why=why,
                protocol=protocol,
                port=port,
                forged=forged,
            )
        )

    for customer in plan.customer_cidrs:
        hostile, gateway = strangers_in(strangers, customer), plan.gateways[customer]
        own = _one_a_network(plan, customer)
        others = [host for host in hosts if host.member.realm != customer]
        for stranger in hostile:
            for server in servers[:1]:
                refuse("stranger to a server", stranger, strangers[stranger], server.nat_vm1)
            way_in = plan.vms_of(gateway)[0].vnics[0].primary
            refuse("customer to a NAT VM's ssh", stranger, strangers[stranger], way_in, TCP, SSH)
            for forged in _of_another_gateway(plan, customer) if servers else ():
                refuse("spoofed customer", stranger, forged, servers[0].nat_vm1, forged=True)
        for host in own:
            refuse("unmapped address", host.member, host.real, _unused(plan, gateway))
            for server in servers:
                if server.member not in plan.access.lists[customer]:
                    refuse("server not in the customer's list", host.member, host.real, server.nat_vm1)
        other = next((o for o in others if o.nat_vm1 not in {server.nat_vm1 for server in servers}), None)
        if other is not None:
            for host in own:
                refuse("customer to customer", host.member, host.real, other.nat_vm1)
            sources = sorted({plan.primary(NAT_VM2), *(server.nat_vm2 for server in servers[:1])})
            for stranger in hostile:
                for source in sources:
                    refuse("spoofed transit source", stranger, source, other.nat_vm1, forged=True)
    for unlisted in strangers_in(strangers, MANAGEMENT):
        for host in hosts[:3]:
            refuse("unlisted management host", unlisted, strangers[unlisted], host.nat_vm2)
    for server in _one_a_network(plan, MANAGEMENT):
        refuse("unmapped address", server.member, server.real, _unused(plan, INNER))
    for sender, receiver in _governed(plan):
        for protocol, port in _not_in_policy(plan.access.services(sender.member, receiver.member)):
            destination = receiver.address(sender.member.side)
            refuse(NOT_IN_POLICY, sender.member, sender.real, destination, protocol, port)
    return flows


def _one_a_network(plan: PodPlan, realm: str) -> list[SlotPlan]:
    """The first member in each of a neighbour's networks."""
    members = [slot for slot in plan.slots if slot.member.realm == realm]
    firsts = (next((s for s in members if IPAddress(s.real) in IPNetwork(cidr)), None) for cidr in plan.realms[realm])
    return [slot for slot in firsts if slot is not None]


def _governed(plan: PodPlan) -> Iterator[tuple[SlotPlan, SlotPlan]]:
    """For each entry of the policy the first pair that it governs, and the last one."""
    done: set[tuple[MemberName, MemberName]] = set()
    for entry in plan.access.entries:
        pairs = [
            (sender, receiver)
            for sender in plan.slots
            if entry.sender.has(sender.member)
            for receiver in plan.slots
            if entry.receiver.has(receiver.member)
            and (sender.member.is_server or receiver.member in plan.access.lists[sender.member.realm])
        ]
        for sender, receiver in (*pairs[:1], *pairs[-1:]):
            if (sender.member, receiver.member) not in done:
                done.add((sender.member, receiver.member))
                yield sender, receiver


def _not_in_policy(services: Services) -> list[tuple[str, int | None]]:
    """A packet's protocol and port for what does not pass: beside each range of ports, and of each other protocol."""
    if services == EVERYTHING:
        return []
    found: list[tuple[str, int | None]] = []
    for protocol in (TCP, UDP):
        ranges = services.of(protocol)
        beside = {_SERVED[protocol], *(edge for ports in ranges for edge in (ports.first - 1, ports.last + 1))}
        found += [
            (protocol, port)
            for port in sorted(beside)
            if 0 < port <= LAST_PORT and not services.permits(protocol, port)
        ]
    return found if services.icmp else [*found, (ICMP, None)]


def _of_another_gateway(plan: PodPlan, customer: str) -> list[str]:
    """The address and the alias of a host behind another gateway.  Forged here they are no member's of this gateway.

    An address that is also a member's of the customer is that member's, and one in the network of a customer of the
    same gateway is that customer's: only the alias is forged then.
    """
    host = next((host for host in plan.hosts if plan.role(host.member) != plan.gateways[customer]), None)
    if host is None:
        return []
    own = {other.real for other in plan.hosts if other.member.realm == customer}
    near = any(IPAddress(host.real) in IPNetwork(cidr) for cidr in beside(plan, customer))
    return [host.nat_vm1] if near or host.real in own else [host.real, host.nat_vm1]


def _unused(plan: PodPlan, role: Role) -> str:
    """An address in a role's subnets that no VM has: in the first one with room, which the neighbours route to."""
    cidrs = {subnet.key: IPNetwork(subnet.cidr) for subnet in plan.subnets}
    vnics = [vnic for vm in plan.vms_of(role) for vnic in vm.vnics]
    held = {address for vnic in vnics for address in vnic.addresses}
    for vnic in vnics:
        for address in cidrs[vnic.subnet][2:-1]:
            if str(address) not in held:
                return str(address)
    return str(cidrs[vnics[0].subnet][-1])
