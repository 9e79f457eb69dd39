"""plan_pod: PodConfig -> PodPlan.  Pure: it calls the arithmetic and the compiler, and combines their results."""

from __future__ import annotations

from typing import assert_never

from netaddr import cidr_merge

from nat_pod import limits
from nat_pod.config.addressing import halves
from nat_pod.config.any_config import AnyConfig
from nat_pod.config.delivery import Delivery
from nat_pod.config.model import PodConfig
from nat_pod.config.policy import access
from nat_pod.config.routed import RoutedConfig
from nat_pod.errors import ConfigError, Problem
from nat_pod.names import (
    GATEWAY,
    LPGS,
    MANAGEMENT,
    NAMESPACE,
    NAT_VM1,
    NAT_VM2,
    SIDES,
    TRANSIT,
    VROUTER,
    Role,
    Side,
)
from nat_pod.plan import guest
from nat_pod.plan.model import (
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
from nat_pod.plan.routed import plan_routed
from nat_pod.plan.security import both_ways, path_mtu, vrouter_errors, with_neighbour
from nat_pod.rules import iptables
from nat_pod.rules.compiler import compile_rules
from nat_pod.rules.netfilter import Ruleset


def plan_pod(config: AnyConfig, stack: str) -> PodPlan:
    """Everything that follows from a configuration, whichever the delivery.

    stack: the stack's name, for messages.  Raises ConfigError when the plan breaks a limit of the platform that only
    the whole plan can show: the bytes of instance metadata, the rules of an NSG or of a route table.
    """
    match config:
        case PodConfig():
            plan = _plan_private_ips(config)
        case RoutedConfig():
            plan = plan_routed(config)
        case _ as never:
            assert_never(never)
    problems = _limit_problems(plan)
    if problems:
        raise ConfigError(f"Pulumi.{stack}.yaml", problems)
    return plan


def _plan_private_ips(config: PodConfig) -> PodPlan:
    rules = compile_rules(config)
    vnics = {side: _vnics(config, side) for side in SIDES}
    lpgs = tuple(
        LpgPlan(customer=customer.name, peer_id=customer.peer_id, formerly=customer.formerly)
        for customer in config.customers
    )
    routes = {
        NAT_VM1: tuple(
            RouteRulePlan(destination=str(cidr), customer=customer.name)
            for customer in config.customers
            for cidr in customer.cidrs
        ),
        NAT_VM2: tuple(
            RouteRulePlan(destination=str(cidr), private_ip=str(config.management.vrouter))
            for cidr in config.management.cidrs
        ),
        LPGS: tuple(
            RouteRulePlan(destination=destination, private_ip=config.primary(NAT_VM1))
            for destination in _not_for_customers(config)
        ),
    }
    return PodPlan(
        delivery=Delivery.PRIVATE_IPS,
        cidr=str(config.cidr),
        vcn_cidr=str(config.cidr),
        compartment_id=config.compartment_id,
        shape=config.nat_vm.shape,
        ocpus=config.nat_vm.ocpus,
        memory_gbs=config.nat_vm.memory_gbs,
        zone=config.zone,
        protect=config.protect,
        tags=config.tags,
        image_id=config.nat_vm.image_id,
        availability_domain=config.nat_vm.availability_domain,
        source_nat=config.source_nat,
        management_cidrs=texts(config.management.cidrs),
        vrouter_ip=str(config.management.vrouter),
        customer_cidrs={customer.name: texts(customer.cidrs) for customer in config.customers},
        subnets=_subnets(config),
        vms=(
            _vm(config, NAT_VM1, "FAULT-DOMAIN-1", vnics[NAT_VM1], rules[NAT_VM1]),
            _vm(config, NAT_VM2, "FAULT-DOMAIN-2", vnics[NAT_VM2], rules[NAT_VM2]),
        ),
        lpgs=lpgs,
        routes=routes,
        security=_security(config),
        slots=_slots(config),
        neighbours=_neighbours(config),
        capacity=config.capacity,
        access=access(config.management, config.customers, config.policy),
        gateways={customer.name: GATEWAY for customer in config.customers},
        released={name: config.layout.addresses(slot) for name, slot in config.released.items()},
        renames=config.renames,
    )


def _vnics(config: PodConfig, side: Side) -> tuple[VnicPlan, ...]:
    vnics = []
    for pair in config.pairs:
        primary = pair.primary(side)
        used = sorted({slot for slot in config.book.values() if slot.pair == pair.index})
        addresses = [config.layout.address(slot, side) for slot in used]
        vnics.append(
            VnicPlan(
                key=vnic_key(side, pair.index),
                vm=side,
                subnet=vnic_key(side, pair.index),
                index=pair.index,
                primary=primary,
                secondaries=tuple(address for address in addresses if address != primary),
            )
        )
    return tuple(vnics)


def vnic_key(side: Side, index: int) -> str:
    """The name of a VNIC and of its subnet, e.g. natVm1-vnic-2."""
    return f"{side}-vnic-{index}"


def _subnets(config: PodConfig) -> tuple[SubnetPlan, ...]:
    return (
        *(
            SubnetPlan(key=vnic_key(side, pair.index), side=side, cidr=str(pair.subnet(side)), route_table=side)
            for side in SIDES
            for pair in config.pairs
        ),
        SubnetPlan(key=VROUTER, side=None, cidr=str(config.layout.vrouter), route_table=None),
    )


def _vm(config: PodConfig, side: Side, fault_domain: str, vnics: tuple[VnicPlan, ...], rules: Ruleset) -> NatVmPlan:
    metadata, generation = guest.metadata(
        side, side, config.nat_vm.ssh_public_key, iptables.hooks(rules), iptables.render(rules)
    )
    return NatVmPlan(
        key=side,
        role=Role(side),
        fault_domain=fault_domain,
        vnics=vnics,
        rules=rules,
        generation=generation,
        metadata=metadata,
    )


def _security(config: PodConfig) -> dict[str, tuple[SecurityRulePlan, ...]]:
    """Who may send what to whom, as OCI sees it.

    All protocols between the declared networks: which of their flows pass is the NAT rules' business.  NAT VM1 takes
    transit only from VNICs in NAT VM2's NSG, not from NAT VM2's *addresses*.  Otherwise a customer that forges one of
    those as its source would be taken for management, and reach another customer.  ICMP errors are no exception: one
    about another customer's flow, with NAT VM2's address as its source, would pass for NAT VM2's.
    """
    management = with_neighbour(MANAGEMENT, texts(config.management.cidrs))
    vm1 = [rule for one in config.customers for rule in with_neighbour(one.name, texts(one.cidrs))]
    transit = {
        side: both_ways(TRANSIT, other, peer_is_nsg=True) for side, other in ((NAT_VM1, NAT_VM2), (NAT_VM2, NAT_VM1))
    }
    return {
        NAT_VM1: (*vm1, *transit[NAT_VM1]),
        NAT_VM2: (*management, *transit[NAT_VM2], vrouter_errors(str(config.layout.vrouter))),
        # The vRouter's own VNIC: what it routes between management and NAT VM2.
        VROUTER: (
            *management,
            *(
                rule
                for subnet in _subnets(config)
                if subnet.side == NAT_VM2
                for rule in both_ways(subnet.key, subnet.cidr)
            ),
            path_mtu(),
        ),
    }


def _slots(config: PodConfig) -> tuple[SlotPlan, ...]:
    slots = []
    for member in config.members:
        nat_vm1, nat_vm2 = config.layout.addresses(config.book[member.name])
        slots.append(SlotPlan(member=member.name, real=str(member.address), nat_vm1=nat_vm1, nat_vm2=nat_vm2))
    return tuple(slots)


def _neighbours(config: PodConfig) -> dict[str, tuple[str, ...]]:
    """What each neighbour must send to the POD.

    In the default layout each side is one half of the range, so the route never changes as VNIC pairs are added.  In a
    pinned layout only those /27s are routed to which somebody sends.  For customers these are NAT VM1's /27s with a
    server's slot, for management NAT VM2's with a host's slot.  On both sides the primary VNIC's is added: under
    masquerade, packets come from its address.
    """
    layout = config.layout
    if layout.pinned:
        servers = {config.book[server.name].pair for server in config.servers} | {1}
        hosts = {config.book[host.name].pair for host in config.hosts} | {1}
        to_vm1 = tuple(str(pair.nat_vm1) for pair in layout.pairs if pair.index in servers)
        to_vm2 = tuple(str(pair.nat_vm2) for pair in layout.pairs if pair.index in hosts)
    else:
        lower, upper = halves(layout.cidr)
        to_vm1, to_vm2 = (str(lower),), (str(upper),)
    return {**{customer.name: to_vm1 for customer in config.customers}, MANAGEMENT: to_vm2}


def _not_for_customers(config: PodConfig) -> list[str]:
    """Where a packet that comes in by an LPG must not go: NAT VM2's subnets and the vRouter's.

    A customer may route any address of the POD to its LPG.  If one of its hosts has a server's address (the article's
    10.0.0.100 is both), its packets look like management's at NAT VM2, which would send them to another customer.  So
    the LPGs' own route table leads there through NAT VM1, which has no mapping for them and drops them.
    """
    layout = config.layout
    if not layout.pinned:
        return [str(halves(layout.cidr)[1])]
    return [str(network) for network in cidr_merge([*(pair.nat_vm2 for pair in layout.pairs), layout.vrouter])]


def _limit_problems(plan: PodPlan) -> list[Problem]:
    problems = []
    for vm in plan.vms:
        over = guest.budget_problem(vm.metadata)
        if over:
            problems.append(Problem(f"{NAMESPACE}:customers", None, f"metadata of {vm.key}: {over}"))
    for role in plan.roles:
        if len(plan.security[role]) > limits.NSG_RULES:
            count = len(plan.security[role])
            problems.append(
                Problem(f"{NAMESPACE}:customers", None, f"{role} needs {count} NSG rules; OCI has {limits.NSG_RULES}")
            )
    for table, routes in plan.routes.items():
        count = len(routes)
        if count > limits.ROUTE_RULES_PER_TABLE:
            rule = f"{table} needs {count} route rules; a table has {limits.ROUTE_RULES_PER_TABLE}"
            problems.append(Problem(f"{NAMESPACE}:customers", None, rule))
    return problems
