"""The flows a POD declares, and those it must refuse.

A flow says who sends from where to which address, and who should answer.  The lab sends them and the tracer predicts
them; both take them from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from netaddr import IPAddress, IPNetwork

from nat_pod.config.addressing import free_addresses
from nat_pod.config.delivery import Delivery
from nat_pod.names import INNER, MANAGEMENT, NAT_VM2, SIDES, SSH, STRANGER, MemberName, Role, Side
from nat_pod.plan.model import PodPlan, SlotPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """`sender` (a member, or a stranger) sends from `source` to `destination`; `receiver`, or nobody, should answer.

    `why` says what a refused flow is an example of.  `port` is set when only that TCP port is meant.
    `forged` says that `source` is not the sender's own address.
    """

    sender: MemberName
    source: str
    destination: str
    receiver: MemberName | None
    why: str = ""
    port: int | None = None
    forged: bool = False


def declared_flows(plan: PodPlan) -> list[Flow]:
    """All flows that the stack file declares: hosts to the servers they may reach, servers to all hosts."""
    flows = [
        flow_between(host, server)
        for host in plan.hosts
        for server in plan.servers
        if server.member in plan.may_reach[host.member.realm]
    ]
    flows.extend(flow_between(server, host) for server in plan.servers for host in plan.hosts)
    return flows


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

    A network in which every address is a member's has no room for a stranger, and is left out.
    """
    used = {slot.real for slot in plan.slots}
    strangers = {}
    for realm, cidr in plan.realms.items():
        network = IPNetwork(cidr)
        # The last one is the vRouter's, in management's network (`expected.vrouter_address`).
        address = next(free_addresses(network, used | {str(network[-2])}), None)
        if address is not None:
            strangers[MemberName(realm, STRANGER)] = address
    return strangers


def beside(plan: PodPlan, realm: str) -> list[str]:
    """The networks of the other customers of a customer's NAT VM1: a packet from there may be forged, or theirs."""
    if realm == MANAGEMENT:
        return []
    gateway = plan.gateways[realm]
    return [cidr for name, cidr in plan.customer_cidrs.items() if name != realm and plan.gateways[name] == gateway]


def matrix(plan: PodPlan) -> Iterator[Flow]:
    """Every pair of a sender and an address in the POD, with who should answer, or that nobody may.

    Senders: all members, and a stranger in each network.  Addresses: all that somebody on the sender's side could call
    in the POD; there is no other way into it.  `why` is "declared", or what the refused pair is an example of.
    """
    declared = {(flow.sender, flow.destination): flow.receiver for flow in declared_flows(plan)}
    members = {slot.member: slot for slot in plan.slots}
    called = {side: _called(plan, side) for side in SIDES}
    servers_at = {slot.nat_vm1 for slot in plan.servers}
    hosts_at = {slot.nat_vm1: slot.member.realm for slot in plan.slots}
    for sender, source in [*((name, slot.real) for name, slot in members.items()), *stranger_addresses(plan).items()]:
        for destination in called[sender.side]:
            receiver = declared.get((sender, destination))
            if receiver is not None:
                why = "declared"
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
        why: str, sender: MemberName, source: str, destination: str, port: int | None = None, *, forged: bool = False
    ) -> None:
        flows.append(
            Flow(
                sender=sender,
                source=source,
                destination=destination,
                receiver=None,
                why=why,
                port=port,
                forged=forged,
            )
        )

    for customer in plan.customer_cidrs:
        stranger = MemberName(customer, STRANGER)
        hostile, gateway = stranger in strangers, plan.gateways[customer]
        own = [host for host in hosts if host.member.realm == customer]
        others = [host for host in hosts if host.member.realm != customer]
        if hostile:
            for server in servers[:1]:
                refuse("stranger to a server", stranger, strangers[stranger], server.nat_vm1)
            way_in = plan.vms_of(gateway)[0].vnics[0].primary
            refuse("customer to a NAT VM's ssh", stranger, strangers[stranger], way_in, SSH)
            for forged in _of_another_gateway(plan, customer) if servers else ():
                refuse("spoofed customer", stranger, forged, servers[0].nat_vm1, forged=True)
        for host in own[:1]:
            refuse("unmapped address", host.member, host.real, _unused(plan, gateway))
            for server in servers:
                if server.member not in plan.may_reach[customer]:
                    refuse("server not in the customer's list", host.member, host.real, server.nat_vm1)
        other = next((o for o in others if o.nat_vm1 not in {server.nat_vm1 for server in servers}), None)
        if other is not None:
            for host in own[:1]:
                refuse("customer to customer", host.member, host.real, other.nat_vm1)
            sources = sorted({plan.primary(NAT_VM2), *(server.nat_vm2 for server in servers[:1])}) if hostile else []
            for source in sources:
                refuse("spoofed transit source", stranger, source, other.nat_vm1, forged=True)
    unlisted = MemberName(MANAGEMENT, STRANGER)
    for host in hosts[:3] if unlisted in strangers else []:
        refuse("unlisted management host", unlisted, strangers[unlisted], host.nat_vm2)
    for server in servers[:1]:
        refuse("unmapped address", server.member, server.real, _unused(plan, INNER))
    return flows


def _of_another_gateway(plan: PodPlan, customer: str) -> list[str]:
    """The address and the alias of a host behind another gateway: who forges them is nobody at its own.

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
