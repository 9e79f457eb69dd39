"""The network a plan asks for, as a Topology: the POD, and its neighbours as their owners would have to set them up.

`trace` and `diff` walk this without deploying anything.  `lab/observe.py` makes the same values from what was really
registered, and a test holds the two equal: whatever is missing in one of them is a bug in the program.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from netaddr import IPAddress, IPNetwork

from nat_pod.config.addressing import free_addresses, largest_around
from nat_pod.errors import NatPodError
from nat_pod.names import ANYWHERE, MANAGEMENT, POD, VROUTER, MemberName, Role
from nat_pod.plan.model import BalancerPlan, PodPlan, RouteRulePlan, SecurityRulePlan
from nat_pod.trace.flows import stranger_addresses
from nat_pod.trace.topology import (
    VM_HOST,
    VM_NAT,
    VM_ROUTER,
    Backend,
    Balancer,
    CheckProtocol,
    HealthCheck,
    Lpg,
    Route,
    SecurityRule,
    Subnet,
    Topology,
    Vcn,
    Vm,
    Vnic,
)
from nat_pod.trace.vcn_blocks import block_with, blocks_of, let_in, subnet_names

# A neighbour's own security list, stateful as people write them: everything out, everything in from the POD's range.
_EGRESS = SecurityRule(direction="EGRESS", protocol="all", peer=ANYWHERE)


def expected_topology(plan: PodPlan) -> Topology:
    """The POD with its customers, management and vRouter.  MACs are empty, because nobody plans them."""
    topology = Topology(vcns={}, subnets={}, lpgs={}, vnics={}, vms={})
    _pod(topology, plan)
    tables = {lpg.customer: lpg.route_table for lpg in plan.lpgs}
    for customer in plan.customer_cidrs:
        lpg, pod_lpg = f"{customer}/lpg", f"{POD}/{customer}"
        routes = tuple(Route(destination=destination, lpg=lpg) for destination in plan.neighbours[customer])
        _neighbour(topology, plan, customer, routes)
        topology.lpgs[lpg] = Lpg(name=lpg, vcn=customer, peer=pod_lpg)
        topology.lpgs[pod_lpg] = Lpg(name=pod_lpg, vcn=POD, peer=lpg, routes=_routes(plan.routes[tables[customer]]))
    _management(topology, plan)
    for slot in plan.slots:
        _host(topology, slot.member, slot.real)
    return topology


def vrouter_address(plan: PodPlan) -> str:
    """The vRouter's floating IP in the management VCN: its owner's choice, here a free address near the end of it.

    The checks of the stack file make sure that there is one.
    """
    return vrouter_addresses(plan)[0]


def vrouter_addresses(plan: PodPlan) -> tuple[str, ...]:
    """The floating one and the vRouter's own, of one subnet of the management VCN; the own one, if there is room.

    In the first of management's networks that has room for both, or beside them where none can have.
    """
    used = {slot.real for slot in plan.slots} | set(stranger_addresses(plan).values())
    blocks = [IPNetwork(block) for block in neighbour_blocks(plan, MANAGEMENT)]
    declared = [network for network in map(IPNetwork, plan.management_cidrs) if network in blocks]
    free = [tuple(islice(free_addresses(place, used), 2)) for place in (*declared, *blocks)]
    return max(free, key=len)


def neighbour_blocks(plan: PodPlan, realm: str) -> tuple[str, ...]:
    """The CIDR blocks that a neighbour's VCN has here: those of its networks, and what its members need besides."""
    return blocks_of(plan.realms[realm], (slot.real for slot in plan.slots if slot.member.realm == realm))


def with_host(topology: Topology, name: MemberName, address: str) -> Topology:
    """The topology with one more host, e.g. `customer1/10.0.0.77`, which is not in the address book."""
    if name.realm not in topology.subnets:
        raise NatPodError(f"{name}: there is no realm {name.realm}")
    copy = replace(topology, vms=dict(topology.vms), vnics=dict(topology.vnics))
    if _subnet_of(topology, name.realm, address) is None:  # in a network of which there are only parts
        vcn, block = topology.vcns[name.realm], str(largest_around(IPAddress(address)))
        subnet = replace(topology.subnets[name.realm], name=f"{name.realm}-{block}", cidr=block)
        vcns = topology.vcns | {vcn.name: replace(vcn, cidrs=(*vcn.cidrs, block))}
        copy = replace(copy, vcns=vcns, subnets=topology.subnets | {subnet.name: subnet})
    _host(copy, name, address)
    return copy


def _pod(topology: Topology, plan: PodPlan) -> None:
    topology.vcns[POD] = Vcn(name=POD, cidrs=(plan.vcn_cidr,))
    lists = {key: tuple(security_rule(rule) for rule in rules) for key, rules in plan.security.items()}
    for subnet in plan.subnets:
        routes = () if subnet.route_table is None else _routes(plan.routes[subnet.route_table])
        security = lists[VROUTER] if subnet.key == VROUTER else ()
        topology.subnets[subnet.key] = Subnet(
            name=subnet.key, vcn=POD, cidr=subnet.cidr, routes=routes, security=security
        )
    for vm in plan.vms:
        for vnic in vm.vnics:
            topology.vnics[vnic.key] = Vnic(
                name=vnic.key,
                vm=vm.key,
                subnet=vnic.subnet,
                mac="",
                addresses=vnic.addresses,
                skip_source_dest_check=True,
                nsgs=(vm.nsg,),
                security=lists[vm.nsg],
            )
        topology.vms[vm.key] = Vm(
            name=vm.key,
            kind=VM_NAT,
            role=vm.role,
            vnics=tuple(vnic.key for vnic in vm.vnics),
            rules=vm.rules,
            forwarding=True,
            metadata=vm.metadata,
        )
    for balancer in plan.balancers:
        topology.balancers[balancer.key] = _balancer(balancer, lists[balancer.role])


def _balancer(plan: BalancerPlan, security: tuple[SecurityRule, ...]) -> Balancer:
    """A load balancer, in the NSG of its role: packets pass it as they pass the NAT VMs."""
    return Balancer(
        name=plan.key,
        subnet=plan.subnet,
        address=plan.address,
        nsgs=(plan.role,),
        security=security,
        backends=tuple(Backend(address=one.address, is_backup=one.is_backup) for one in plan.backends),
        check=HealthCheck(
            protocol=CheckProtocol.HTTP,
            port=plan.check.port,
            path=plan.check.path,
            interval_millis=plan.check.interval_ms,
            timeout_millis=plan.check.timeout_ms,
            retries=plan.check.retries,
        ),
        is_fail_open=plan.fail_open,
        instant_failover=plan.instant_failover,
        tcp_reset=plan.tcp_reset,
        prefers_active=plan.prefers_active,
    )


def _management(topology: Topology, plan: PodPlan) -> None:
    """The management VCN and the vRouter: primary VNIC there, second VNIC in the POD's vRouter subnet."""
    inner = vrouter_address(plan)
    routes = tuple(Route(destination=destination, private_ip=inner) for destination in plan.neighbours[MANAGEMENT])
    _neighbour(topology, plan, MANAGEMENT, routes)
    for name, subnet, address in (
        (f"{VROUTER}-vnic-1", _subnet_of(topology, MANAGEMENT, inner) or MANAGEMENT, inner),
        (f"{VROUTER}-vnic-2", VROUTER, plan.vrouter_ip),
    ):
        topology.vnics[name] = Vnic(
            name=name, vm=VROUTER, subnet=subnet, mac="", addresses=(address,), skip_source_dest_check=True
        )
    topology.vms[VROUTER] = Vm(
        name=VROUTER,
        kind=VM_ROUTER,
        vnics=(f"{VROUTER}-vnic-1", f"{VROUTER}-vnic-2"),
        routes=((plan.cidr, f"{VROUTER}-vnic-2"),),
        forwarding=True,
    )


def _neighbour(topology: Topology, plan: PodPlan, name: str, routes: tuple[Route, ...]) -> None:
    blocks = neighbour_blocks(plan, name)
    topology.vcns[name] = Vcn(name=name, cidrs=blocks)
    peers = (plan.cidr, *let_in(plan.realms[name], blocks))
    security = (_EGRESS, *(SecurityRule(direction="INGRESS", protocol="all", peer=peer) for peer in peers))
    for block, subnet in subnet_names(name, plan.realms[name], blocks).items():
        topology.subnets[subnet] = Subnet(name=subnet, vcn=name, cidr=block, routes=routes, security=security)


def _subnet_of(topology: Topology, realm: str, address: str) -> str | None:
    """The subnet of a neighbour that an address is in."""
    own = {subnet.cidr: subnet.name for subnet in topology.subnets.values() if subnet.vcn == realm}
    block = block_with(own, address)
    return None if block is None else own[block]


def _host(topology: Topology, name: MemberName, address: str) -> None:
    vnic, subnet = f"{name}-vnic-1", _subnet_of(topology, name.realm, address) or name.realm
    topology.vnics[vnic] = Vnic(
        name=vnic, vm=name, subnet=subnet, mac="", addresses=(address,), skip_source_dest_check=False
    )
    topology.vms[name] = Vm(name=name, kind=VM_HOST, member=name, vnics=(vnic,))


def _routes(rules: Iterable[RouteRulePlan]) -> tuple[Route, ...]:
    """A route table.  The order of its rules means nothing, so they are compared sorted."""
    routes = [
        Route(
            destination=rule.destination,
            lpg=None if rule.customer is None else f"{POD}/{rule.customer}",
            private_ip=rule.private_ip,
        )
        for rule in rules
    ]
    return tuple(sorted(routes, key=lambda route: route.destination))


def security_rule(rule: SecurityRulePlan) -> SecurityRule:
    """A planned security rule as the network applies it."""
    if rule.peer_is_nsg and Role.parse(rule.peer) is None:
        raise ValueError(f"{rule.key}: {rule.peer} is not an NSG of the POD")
    return SecurityRule(
        direction=rule.direction,
        protocol=rule.protocol,
        peer=rule.peer,
        peer_is_nsg=rule.peer_is_nsg,
        stateless=True,
        icmp_type=rule.icmp_type,
        icmp_code=rule.icmp_code,
        description=rule.description,
    )
