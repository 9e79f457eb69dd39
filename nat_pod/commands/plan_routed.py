"""`plan` of a routed POD: its facts and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from netaddr import IPNetwork

from nat_pod import limits
from nat_pod.config import aliases
from nat_pod.config.aliases import VcnLayout, default_vcn
from nat_pod.names import MANAGEMENT, NAT_VM1, NAT_VM2, VROUTER, natural, servers_first
from nat_pod.plan.model import BalancerPlan, PodPlan, RouteRulePlan, SlotPlan
from nat_pod.text import count


def holds(prefix: int) -> int:
    """How many aliases a range of this size holds, with the VCN's own range where it is by default."""
    cidr = next(IPNetwork(limits.POD_SPACE).subnet(prefix))
    return aliases.capacity(cidr, default_vcn(cidr))


def routed_dict(plan: PodPlan) -> dict[str, object]:
    """What `plan --json` says of a routed POD beside what it says of every POD."""
    return {
        "delivery": plan.delivery,
        "vcnCidr": plan.vcn_cidr,
        "gateways": dict(plan.gateways),
        "room": None if plan.room is None else asdict(plan.room),
        "vms": {vm.key: {"address": vm.vnics[0].primary, "faultDomain": vm.fault_domain} for vm in plan.vms},
        "balancers": {
            balancer.key: {
                "address": balancer.address,
                "backends": {backend.vm: "backup" if backend.is_backup else "active" for backend in balancer.backends},
                "check": _question(balancer),
            }
            for balancer in plan.balancers
        },
    }


def routed_facts(plan: PodPlan) -> list[tuple[str, str]]:
    """The lines above the tables: a name and a sentence each."""
    capacity = plan.capacity
    inside = ", ".join(vm.vnics[0].primary for vm in plan.vms_on(NAT_VM2))
    behind = ", ".join(vm.vnics[0].primary for vm in plan.vms_on(NAT_VM1))
    rules = [(plan.vms_of(role)[0].rules.rule_count(), role.prose) for role in plan.roles]
    return [
        ("VCN", f"{plan.vcn_cidr}; every other address of {plan.cidr} is an alias"),
        (
            "aliases",
            f"{capacity.used} of {capacity.slots} used, {capacity.free} free "
            f"(one a member; a /22 holds {holds(22)}, a /21 {holds(21):,})",
        ),
        ("standby", _standby(plan)),
        ("flows", f"{limits.FLOWS_PER_ADDRESS} at a time to one server and port, for each host"),
        ("rules", ", ".join(f"{number} on {where}" for number, where in rules)),
        *_room(plan),
        ("way in", f"ssh to NAT VM2 at {inside}"),
        ("", f"ssh to NAT VM1 at {behind}, through NAT VM2"),
    ]


def _room(plan: PodPlan) -> list[tuple[str, str]]:
    """Gateways: who is where, and what still fits, with the limit that is met first."""
    assert plan.room is not None  # every routed POD's plan has it
    gateways = plan.gateway_roles
    most = VcnLayout(IPNetwork(plan.vcn_cidr)).gateways
    lines = [f"{len(gateways)} of {most} that {plan.vcn_cidr} has room for"]
    if len(gateways) > 1:
        lines += [
            f"{role}: {', '.join(name for name, of in plan.gateways.items() if of == role) or 'nobody'}"
            for role in gateways
        ]
    more = [
        f"for {count(plan.room.customers, 'more customer')}: the limit is a VCN's LPGs",
        f"for {count(plan.room.gateways, 'more gateway')}: the first limit is {plan.room.gateways_end_by}",
        f"for {count(plan.room.blocks, 'more block')} of 32 aliases: the first limit is {plan.room.blocks_end_by}",
    ]
    return [
        *(("gateways" if number == 0 else "", line) for number, line in enumerate(lines)),
        *(("room" if number == 0 else "", line) for number, line in enumerate(more)),
    ]


def _standby(plan: PodPlan) -> str:
    if not plan.balancers:
        return "none: a NAT VM that stops takes every flow with it"
    check = plan.balancers[0].check
    return (
        f"{len(plan.balancers)} network load balancers; each checks its NAT VMs every {check.interval_ms / 1000:g} s, "
        f"and after {check.retries} missing answers in a row the other VM takes over"
    )


def _question(balancer: BalancerPlan) -> str:
    check = balancer.check
    return f"http port {check.port} {check.path}, every {check.interval_ms / 1000:g} s, {check.retries} in a row"


def routed_tables(plan: PodPlan) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, header, rows."""
    subnets = {subnet.key: subnet.cidr for subnet in plan.subnets}
    return [
        (
            "NAT VMs (source/destination check off)",
            ["VM", "subnet", "address", "fault domain", "at first"],
            [
                [vm.key, subnets[vm.vnics[0].subnet], vm.vnics[0].primary, vm.fault_domain, _at_first(plan, vm.key)]
                for vm in plan.vms
            ],
        ),
        *(
            [
                (
                    "Next hops: a network load balancer sends all of it to the one active NAT VM of its side",
                    ["balancer", "address", "active at first", "standby", "health check"],
                    [_balancer_row(balancer) for balancer in plan.balancers],
                )
            ]
            if plan.balancers
            else []
        ),
        (
            "Aliases: NAT VM1 translates hosts, NAT VM2 servers; a member has the same alias for everybody",
            ["member", "real address", "alias", "translated on"],
            [_alias_row(plan, slot) for slot in sorted(plan.slots, key=lambda slot: servers_first(slot.member))],
        ),
        (
            "Route rules of the POD",
            ["table of", "destination", "what it is", "target"],
            [
                [owner, rule.destination, *_what_and_target(plan, rule, aliases_of)]
                for key, owner, aliases_of in _tables(plan)
                for rule in plan.routes[key]
            ],
        ),
        neighbours_table(plan),
    ]


def neighbours_table(plan: PodPlan) -> tuple[str, Sequence[str], list[list[str]]]:
    """What others add to their route tables, in either delivery: management's last."""
    return (
        "Routes that the neighbours add",
        ["in the VCN of", "destination", "target"],
        [
            [name, destination, "the vRouter" if name == MANAGEMENT else "its LPG to the POD"]
            for name in sorted(plan.neighbours, key=lambda name: (name == MANAGEMENT, natural(name)))
            for destination in plan.neighbours[name]
        ],
    )


def _tables(plan: PodPlan) -> list[tuple[str, str, str]]:
    """The route tables: key, whose it is, and what it leads on to the next NAT VM."""
    gateways = plan.gateway_roles
    numbered = {role: "" if len(gateways) == 1 else f" of {role}" for role in gateways}
    return [
        *((role.lpgs, f"the LPGs{numbered[role]}", "servers' aliases") for role in gateways),
        *((str(role), f"{role.prose}'s subnet", "servers' aliases") for role in gateways),
        (str(NAT_VM2), "NAT VM2's subnet", "hosts' aliases"),
        (VROUTER, "the vRouter's subnet", "hosts' aliases"),
    ]


def _at_first(plan: PodPlan, vm: str) -> str:
    backups = {backend.vm for balancer in plan.balancers for backend in balancer.backends if backend.is_backup}
    return "standby" if vm in backups else "active"


def _balancer_row(balancer: BalancerPlan) -> list[str]:
    active = [backend.vm for backend in balancer.backends if not backend.is_backup]
    backup = [backend.vm for backend in balancer.backends if backend.is_backup]
    return [balancer.key, balancer.address, ", ".join(active), ", ".join(backup), _question(balancer)]


def _alias_row(plan: PodPlan, slot: SlotPlan) -> list[str]:
    return [slot.member, slot.real, slot.nat_vm1, plan.role(slot.member).prose]


def _what_and_target(plan: PodPlan, rule: RouteRulePlan, aliases_of: str) -> tuple[str, str]:
    """What lies at a rule's destination, and where it is sent."""
    if rule.customer is not None:
        return "the customer", f"LPG of {rule.customer}"
    if rule.private_ip == plan.vrouter_ip:
        return MANAGEMENT, f"vRouter {rule.private_ip}"
    role = next(role for role in plan.roles if rule.private_ip == plan.next_hop(role))
    hop = f"{role.prose}'s balancer" if plan.balancers else role.prose
    return aliases_of, f"{hop} {rule.private_ip}"
