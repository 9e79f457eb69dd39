"""The plan of a routed POD: aliases are routes, and each role may have a second NAT VM behind a balancer.

Who may send what is decided by routes.  A packet to a host's alias reaches its customer gateway from NAT VM2's subnet
only, and one to a server's alias reaches NAT VM2 from the gateways' only: no other table leads there, and there is no
local route, because the aliases lie outside the VCN's range.  So one gateway never hears from another.
"""

from __future__ import annotations

from collections.abc import Iterable

from netaddr import IPNetwork, cidr_merge

from nat_pod.config.addressing import halves
from nat_pod.config.delivery import Delivery
from nat_pod.config.policy import access
from nat_pod.config.room import room
from nat_pod.config.routed import RoutedConfig
from nat_pod.config.source_nat import SourceNat
from nat_pod.names import (
    HEALTH,
    HEALTH_PATH,
    HEALTH_PORT,
    INNER,
    MANAGEMENT,
    NAT_VM1,
    NAT_VM2,
    TRANSIT,
    VROUTER,
    Role,
)
from nat_pod.plan import guest
from nat_pod.plan.model import (
    BackendPlan,
    BalancerPlan,
    HealthCheckPlan,
    LpgPlan,
    NatVmPlan,
    PodPlan,
    RouteRulePlan,
    SecurityRulePlan,
    SlotPlan,
    SubnetPlan,
    VnicPlan,
    texts,
)
from nat_pod.plan.security import TCP, both_ways, path_mtu, vrouter_errors, with_neighbour
from nat_pod.rules import iptables
from nat_pod.rules.netfilter import Ruleset
from nat_pod.rules.routed import compile_routed

_LETTERS = "ab"
"""Of a side's NAT VMs: natVm1a is active at first, and natVm1b stands by."""

_CHECK = HealthCheckPlan(port=HEALTH_PORT, path=HEALTH_PATH, interval_ms=1_000, timeout_ms=1_000, retries=3)
"""The shortest interval that OCI takes: a dead VM is noticed within four seconds, and a busy one has three chances."""


def plan_routed(config: RoutedConfig) -> PodPlan:
    """Everything that follows from a routed POD's configuration, limits unchecked."""
    rules = compile_routed(config)
    return PodPlan(
        delivery=Delivery.ROUTES,
        cidr=str(config.cidr),
        vcn_cidr=str(config.vcn),
        compartment_id=config.compartment_id,
        shape=config.nat_vm.shape,
        ocpus=config.nat_vm.ocpus,
        memory_gbs=config.nat_vm.memory_gbs,
        zone=config.zone,
        protect=config.protect,
        tags=config.tags,
        image_id=config.nat_vm.image_id,
        availability_domain=config.nat_vm.availability_domain,
        source_nat=SourceNat.STATIC,  # each member keeps its own address at the far end: its alias
        management_cidrs=texts(config.management.cidrs),
        vrouter_ip=str(config.management.vrouter),
        customer_cidrs={customer.name: texts(customer.cidrs) for customer in config.customers},
        subnets=_subnets(config),
        vms=tuple(vm for role in config.roles for vm in _vms(config, role, rules[role])),
        lpgs=tuple(
            LpgPlan(
                customer=customer.name,
                peer_id=customer.peer_id,
                route_table=config.gateway(customer.name).lpgs,
                formerly=customer.formerly,
            )
            for customer in config.customers
        ),
        routes=_routes(config),
        security=_security(config),
        slots=tuple(
            SlotPlan(member=member.name, real=str(member.address), nat_vm1=alias, nat_vm2=alias)
            for member in config.members
            for alias in [config.alias(member.name)]
        ),
        neighbours=_neighbours(config),
        capacity=config.capacity,
        access=access(config.management, config.customers, config.policy),
        gateways={customer.name: config.gateway(customer.name) for customer in config.customers},
        released={name: (str(alias), str(alias)) for name, alias in config.released.items()},
        renames=config.renames,
        balancers=tuple(_balancer(config, role) for role in config.roles) if config.standby else (),
        room=room(config),
    )


def _subnets(config: RoutedConfig) -> tuple[SubnetPlan, ...]:
    return (
        *(
            SubnetPlan(key=role, side=role.side, cidr=str(config.layout.subnet(role)), route_table=role)
            for role in config.roles
        ),
        SubnetPlan(key=VROUTER, side=None, cidr=str(config.layout.vrouter), route_table=VROUTER),
    )


def _numbers(config: RoutedConfig) -> range:
    """The NAT VMs of a role, by number."""
    return range(2 if config.standby else 1)


def vm_key(role: Role, number: int) -> str:
    """The name of a role's n-th NAT VM, from 0: natVm1a, natVm1b, natVm1-2a."""
    return f"{role}{_LETTERS[number]}"


def _vms(config: RoutedConfig, role: Role, rules: Ruleset) -> tuple[NatVmPlan, ...]:
    """A role's NAT VMs, with one rule document: either goes on with what the other was doing.

    The two are in different fault domains, but the active ones of all roles in the same: they are in series, and apart
    a fault of either domain would stop both.
    """
    return tuple(_vm(config, role, rules, number) for number in _numbers(config))


def _vm(config: RoutedConfig, role: Role, rules: Ruleset, number: int) -> NatVmPlan:
    key = vm_key(role, number)
    metadata, generation = guest.metadata(
        key,
        role,
        config.nat_vm.ssh_public_key,
        iptables.hooks(rules),
        iptables.render(rules),
        HEALTH_PORT if config.standby else None,  # without a standby there is no balancer that asks
    )
    vnic = VnicPlan(
        key=f"{key}-vnic-1",
        vm=key,
        subnet=role,
        index=1,
        primary=config.layout.vm(role, number),
        secondaries=(),
    )
    return NatVmPlan(
        key=key,
        role=role,
        fault_domain=f"FAULT-DOMAIN-{number + 1}",
        vnics=(vnic,),
        rules=rules,
        generation=generation,
        metadata=metadata,
    )


def _balancer(config: RoutedConfig, role: Role) -> BalancerPlan:
    return BalancerPlan(
        key=role,
        role=role,
        subnet=role,
        address=config.layout.balancer(role),
        backends=tuple(
            BackendPlan(vm=vm_key(role, number), address=config.layout.vm(role, number), is_backup=number > 0)
            for number in _numbers(config)
        ),
        check=_CHECK,
    )


def _next_hop(config: RoutedConfig, role: Role) -> str:
    """Where a route to a role leads: to its balancer, or to its only NAT VM."""
    return config.layout.balancer(role) if config.standby else config.layout.vm(role, 0)


def _routes(config: RoutedConfig) -> dict[str, tuple[RouteRulePlan, ...]]:
    """The tables; see the module's docstring for why each has these rules and no other."""
    hops = {role: _next_hop(config, role) for role in config.roles}
    tables = {
        gateway: (
            *_via(hops[INNER], config.server_ranges),
            *(
                RouteRulePlan(destination=str(cidr), customer=customer.name)
                for customer in config.customers_of(gateway)
                for cidr in customer.cidrs
            ),
        )
        for gateway in config.gateway_roles
    }
    return {
        **tables,
        NAT_VM2: (
            *(rule for gateway in tables for rule in _via(hops[gateway], config.ranges(gateway))),
            *_via(str(config.management.vrouter), config.management.cidrs),
        ),
        **{gateway.lpgs: _via(hops[gateway], config.server_ranges) for gateway in tables},
        VROUTER: _via(hops[INNER], config.host_ranges),
    }


def _via(private_ip: str, destinations: Iterable[IPNetwork]) -> tuple[RouteRulePlan, ...]:
    return tuple(RouteRulePlan(destination=str(network), private_ip=private_ip) for network in destinations)


def _security(config: RoutedConfig) -> dict[str, tuple[SecurityRulePlan, ...]]:
    """Who may send what to whom, as OCI sees it: the second fence behind the routes.

    All protocols between the declared networks: which of their flows pass is the NAT rules' business.  Between the NAT
    VMs a packet has the alias of a server at one end and that of a host at the other, whoever opened the flow.  So the
    servers' half of the range is open at NAT VM1 and the hosts' at NAT VM2; halves and not blocks, or the number of
    rules would grow with the hosts.  The NAT VMs' own subnets are open to each other for ssh and for ICMP errors, and
    each to itself for the balancer's question.

    A balancer is in its side's NSG, and a packet leaves it as it came: with an alias that its NAT VM has yet to
    translate as the destination.
    """
    subnets = {role: str(config.layout.subnet(role)) for role in config.roles}
    lower, upper = halves(config.cidr)
    servers = _ranges("servers", _covering(lower, config.server_ranges))
    hosts = _ranges("hosts", _covering(upper, config.host_ranges))
    untranslated = {NAT_VM1: hosts, NAT_VM2: servers}
    own = {
        role: [
            *both_ways(HEALTH, subnets[role], protocol=TCP),
            *(rule for rule in untranslated[role.side] if rule.direction == "EGRESS"),
        ]
        if config.standby
        else []
        for role in config.roles
    }
    gateways = config.gateway_roles
    customers = {
        gateway: [rule for one in config.customers_of(gateway) for rule in with_neighbour(one.name, texts(one.cidrs))]
        for gateway in gateways
    }
    return {
        **{
            gateway: (*customers[gateway], *servers, *both_ways(TRANSIT, subnets[INNER]), *own[gateway])
            for gateway in gateways
        },
        NAT_VM2: (
            *with_neighbour(MANAGEMENT, texts(config.management.cidrs)),
            *hosts,
            *(rule for gateway in gateways for rule in both_ways(gateway.transit, subnets[gateway])),
            *own[INNER],
            vrouter_errors(str(config.layout.vrouter)),
        ),
        # Nothing from management's range comes out of the VCN to the vRouter: only a customer with the same addresses
        # could send it.
        VROUTER: (*hosts, *both_ways(NAT_VM2, subnets[INNER]), path_mtu()),
    }


def _ranges(what: str, networks: Iterable[str]) -> list[SecurityRulePlan]:
    return [rule for network in networks for rule in both_ways(f"{what}-{network}", network)]


def _neighbours(config: RoutedConfig) -> dict[str, tuple[str, ...]]:
    """What each neighbour must send to the POD.

    Customers send the lower half of the range, where the servers' blocks are, and management the upper one with the
    hosts' blocks and the VCN itself, by which it reaches NAT VM2 by ssh.  So nobody has to be told when a block is
    begun.  What lies in the other half is named apart.
    """
    lower, upper = halves(config.cidr)
    to_management = [*config.host_ranges, config.vcn]
    return {
        **{customer.name: _covering(lower, config.server_ranges) for customer in config.customers},
        MANAGEMENT: _covering(upper, to_management),
    }


def _covering(half: IPNetwork, networks: Iterable[IPNetwork]) -> tuple[str, ...]:
    """A half of the range, and what of these networks is not in it."""
    return tuple(str(network) for network in cidr_merge([half, *networks]))
