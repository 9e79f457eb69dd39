"""The plan of a routed POD: aliases are routes, and each side may have a second NAT VM behind a balancer.

Who may send what is decided by routes.  A packet to a host's alias reaches NAT VM1 from NAT VM2's subnet only, and one
to a server's alias reaches NAT VM2 from NAT VM1's only: no other table leads there, and there is no local route,
because the aliases lie outside the VCN's range.
"""

from __future__ import annotations

from collections.abc import Iterable

from netaddr import IPNetwork, cidr_merge

from nat_pod.config.addressing import halves
from nat_pod.config.delivery import Delivery
from nat_pod.config.model import SourceNat
from nat_pod.config.neighbours import may_reach
from nat_pod.config.routed import RoutedConfig
from nat_pod.names import (
    HEALTH_PATH,
    HEALTH_PORT,
    LPGS,
    MANAGEMENT,
    NAT_VM1,
    NAT_VM2,
    SIDES,
    VROUTER,
    Side,
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
)
from nat_pod.plan.security import TCP, both_ways, path_mtu, vrouter_errors
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
        image_id=config.nat_vm.image_id,
        availability_domain=config.nat_vm.availability_domain,
        source_nat=SourceNat.STATIC,  # each member keeps its own address at the far end: its alias
        management_cidr=str(config.management.cidr),
        vrouter_ip=str(config.management.vrouter),
        customer_cidrs={customer.name: str(customer.cidr) for customer in config.customers},
        subnets=_subnets(config),
        vms=tuple(vm for side in SIDES for vm in _vms(config, side, rules[side])),
        lpgs=tuple(
            LpgPlan(customer=customer.name, peer_id=customer.peer_id, formerly=customer.formerly)
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
        may_reach=may_reach(config.management, config.customers),
        released={name: (str(alias), str(alias)) for name, alias in config.released.items()},
        renames=config.renames,
        balancers=tuple(_balancer(config, side) for side in SIDES) if config.standby else (),
    )


def _subnets(config: RoutedConfig) -> tuple[SubnetPlan, ...]:
    return (
        *(SubnetPlan(key=side, side=side, cidr=str(config.layout.subnet(side)), route_table=side) for side in SIDES),
        SubnetPlan(key=VROUTER, side=None, cidr=str(config.layout.vrouter), route_table=VROUTER),
    )


def _numbers(config: RoutedConfig) -> range:
    """The NAT VMs of a side, by number."""
    return range(2 if config.standby else 1)


def vm_key(side: Side, number: int) -> str:
    """The name of a side's n-th NAT VM, from 0: natVm1a, natVm1b."""
    return f"{side}{_LETTERS[number]}"


def _vms(config: RoutedConfig, side: Side, rules: Ruleset) -> tuple[NatVmPlan, ...]:
    """A side's NAT VMs, with one rule document: either goes on with what the other was doing.

    The two are in different fault domains, but the active ones of both sides in the same: they are in series, and apart
    a fault of either domain would stop both.
    """
    return tuple(_vm(config, side, rules, number) for number in _numbers(config))


def _vm(config: RoutedConfig, side: Side, rules: Ruleset, number: int) -> NatVmPlan:
    key = vm_key(side, number)
    metadata, generation = guest.metadata(
        key,
        side,
        config.nat_vm.ssh_public_key,
        iptables.hooks(rules),
        iptables.render(rules),
        HEALTH_PORT if config.standby else None,  # without a standby there is no balancer that asks
    )
    vnic = VnicPlan(
        key=f"{key}-vnic-1",
        vm=key,
        subnet=side,
        index=1,
        primary=config.layout.vm(side, number),
        secondaries=(),
    )
    return NatVmPlan(
        key=key,
        side=side,
        fault_domain=f"FAULT-DOMAIN-{number + 1}",
        vnics=(vnic,),
        rules=rules,
        generation=generation,
        metadata=metadata,
    )


def _balancer(config: RoutedConfig, side: Side) -> BalancerPlan:
    return BalancerPlan(
        key=side,
        side=side,
        subnet=side,
        address=config.layout.balancer(side),
        backends=tuple(
            BackendPlan(vm=vm_key(side, number), address=config.layout.vm(side, number), is_backup=number > 0)
            for number in _numbers(config)
        ),
        check=_CHECK,
    )


def _next_hop(config: RoutedConfig, side: Side) -> str:
    """Where a route to a side leads: to its balancer, or to its only NAT VM."""
    return config.layout.balancer(side) if config.standby else config.layout.vm(side, 0)


def _routes(config: RoutedConfig) -> dict[str, tuple[RouteRulePlan, ...]]:
    """The four tables; see the module's docstring for why each has these rules and no other."""
    to_nat_vm1, to_nat_vm2 = _next_hop(config, NAT_VM1), _next_hop(config, NAT_VM2)
    return {
        NAT_VM1: (
            *_via(to_nat_vm2, config.server_ranges),
            *(RouteRulePlan(destination=str(customer.cidr), customer=customer.name) for customer in config.customers),
        ),
        NAT_VM2: (
            *_via(to_nat_vm1, config.host_ranges),
            *_via(str(config.management.vrouter), [config.management.cidr]),
        ),
        LPGS: _via(to_nat_vm1, config.server_ranges),
        VROUTER: _via(to_nat_vm2, config.host_ranges),
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
    subnets = {side: str(config.layout.subnet(side)) for side in SIDES}
    management = str(config.management.cidr)
    lower, upper = halves(config.cidr)
    servers = _ranges("servers", _covering(lower, config.server_ranges))
    hosts = _ranges("hosts", _covering(upper, config.host_ranges))
    untranslated = {NAT_VM1: hosts, NAT_VM2: servers}
    own = {
        side: [
            *both_ways("health", subnets[side], protocol=TCP),
            *(rule for rule in untranslated[side] if rule.direction == "EGRESS"),
        ]
        if config.standby
        else []
        for side in SIDES
    }
    customers = [rule for customer in config.customers for rule in both_ways(customer.name, str(customer.cidr))]
    return {
        NAT_VM1: (*customers, *servers, *both_ways("transit", subnets[NAT_VM2]), *own[NAT_VM1]),
        NAT_VM2: (
            *both_ways(MANAGEMENT, management),
            *hosts,
            *both_ways("transit", subnets[NAT_VM1]),
            *own[NAT_VM2],
            vrouter_errors(str(config.layout.vrouter)),
        ),
        # Nothing from management's range comes out of the VCN to the vRouter: only a customer with the same addresses
        # could send it.
        VROUTER: (*hosts, *both_ways(NAT_VM2, subnets[NAT_VM2]), path_mtu()),
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
