"""What route rules lead to, by OCID: LPGs, the vRouter's floating IP, a NAT VM or a balancer.

An address that OCI does not list at the moment leaves the rules that stand as they are, with a warning: an emptied
table would cut the POD off until somebody runs `pulumi up` once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pulumi
import pulumi_oci as oci

from nat_pod.names import LPGS, VROUTER, Role
from nat_pod.oci.balancers import Balancer
from nat_pod.oci.nat_vms import NatVms
from nat_pod.oci.network import Network, RouteRule, route_rule
from nat_pod.oci.scope import Scope
from nat_pod.plan.model import NatVmPlan


def _whose(table: str) -> str:
    """Who has a table: the LPGs (of a gateway), the subnet of a role, or the vRouter's."""
    role = Role.parse(table)
    if role is not None:
        return f"{role.prose}'s subnet"
    gateway = table.removeprefix(LPGS).removeprefix("-")
    return "the vRouter's subnet" if table == VROUTER else f"the LPGs of gateway {gateway}" if gateway else "the LPGs"


def _keeps(table: str) -> str:
    """What its owner does with it, as a sentence's beginning."""
    whose = _whose(table)
    keep, it = ("keep", "they have") if table.startswith(LPGS) else ("keeps", "it has")
    return f"{whose[0].upper()}{whose[1:]} {keep} the route rules that {it}"


class NextHops:
    """The rules of route tables, by the plan's key of a table.  Made before what they lead to, and asked after it."""

    def __init__(self, scope: Scope, network: Network) -> None:
        self._scope = scope
        self._network = network

    def to_customers(self, table: str) -> list[RouteRule]:
        """Its rules to the customers' LPGs."""
        return [
            route_rule(rule.destination, self._network.lpgs[rule.customer].id)
            for rule in self._scope.plan.routes[table]
            if rule.customer is not None
        ]

    def to_nat_vms(self, table: str, vms: NatVms, balancers: Mapping[Role, Balancer]) -> pulumi.Output[list[RouteRule]]:
        """Its rules to a role of the POD itself: to its balancer, or without one to its NAT VM."""
        plan = self._scope.plan
        hops: dict[str, tuple[str, Callable[[], pulumi.Output[list[str]]]]] = {}
        for vm in plan.vms:
            hops[vm.vnics[0].primary] = (f"{_named(vm)}'s first VNIC", partial(vms.primary_ip, vm))
        for balancer in balancers.values():
            what = f"the network load balancer {self._scope.child(balancer.plan.key)}"
            hops[balancer.plan.address] = (what, balancer.private_ip)
        rules = []
        for address, (what, private_ip) in hops.items():
            destinations = [rule.destination for rule in plan.routes[table] if rule.private_ip == address]
            if destinations:
                rules.append(self._own(table, address, what, private_ip(), destinations))
        return together(*rules)

    def to_vrouter(self, table: str) -> pulumi.Output[list[RouteRule]]:
        """Its rules to the vRouter's floating IP."""
        plan = self._scope.plan
        destinations = [rule.destination for rule in plan.routes[table] if rule.private_ip == plan.vrouter_ip]
        # In the preview of a new POD the subnet's id is unknown.  Then this is too: no look-up, and no warning.
        found = oci.core.get_private_ips_output(
            subnet_id=self._network.subnets[VROUTER].id, ip_address=plan.vrouter_ip, opts=self._scope.asking()
        )

        def lead(targets: list[str]) -> pulumi.Output[list[RouteRule]]:
            if targets:
                return pulumi.Output.from_input([route_rule(range_, targets[0]) for range_ in destinations])
            return self._standing(table).apply(lambda rules: self._without_vrouter(table, destinations, rules))

        return found.apply(lambda result: lead([str(ip.id) for ip in result.private_ips]))

    def _own(
        self, table: str, address: str, what: str, found: pulumi.Output[list[str]], destinations: list[str]
    ) -> pulumi.Output[list[RouteRule]]:
        def lead(targets: list[str]) -> pulumi.Output[list[RouteRule]]:
            if targets:
                return pulumi.Output.from_input([route_rule(range_, targets[0]) for range_ in destinations])
            missing = f"No private IP {address} on {what}"
            return self._standing(table).apply(lambda rules: self._without_own(table, missing, destinations, rules))

        return found.apply(lead)

    def _without_own(
        self, table: str, missing: str, destinations: list[str], standing: list[RouteRule]
    ) -> list[RouteRule]:
        """The rules of a table when OCI did not list the POD's own address: those that stand, with a warning.

        Without them customers would get past NAT VM1, so a POD where none stand is not made.
        """
        kept = [rule for rule in standing if rule.destination in destinations]
        if not kept:
            raise pulumi.RunError(
                f"{missing}, so the route rules of {_whose(table)} have no target; run `pulumi up` again."
            )
        pulumi.log.warn(
            f"{missing} at the moment. {_keeps(table)}; run `pulumi up` again.", resource=self._scope.component
        )
        return kept

    def _standing(self, table: str) -> pulumi.Output[list[RouteRule]]:
        """The rules that a route table of the POD has in the region; none while there is no such table."""
        found = oci.core.get_route_tables_output(
            compartment_id=self._scope.plan.compartment_id,
            vcn_id=self._network.vcn.id,
            display_name=self._scope.child(table),
            state="AVAILABLE",
            opts=self._scope.asking(),
        )
        return found.apply(
            lambda result: [
                route_rule(rule.destination, rule.network_entity_id)
                for table in result.route_tables[:1]
                for rule in table.route_rules
            ]
        )

    def _without_vrouter(self, table: str, destinations: list[str], in_table: list[RouteRule]) -> list[RouteRule]:
        """The rules to management when nobody has the vRouter's floating address: the existing ones, with a warning.

        The address may be on its way from one vRouter to the other.  An existing rule leads to it again as soon as it
        arrives; without the rule the POD would be cut off until the next `pulumi up`.  In a new POD there is no rule:
        the vRouter's owner cannot add the address before there is a subnet, so its first `pulumi up` always ends here.
        """
        plan = self._scope.plan
        elsewhere = {rule.destination for rule in plan.routes[table] if rule.private_ip != plan.vrouter_ip}
        standing = [rule for rule in in_table if rule.destination not in elsewhere]
        missing = f"No private IP {plan.vrouter_ip} in subnet {self._scope.child(VROUTER)}"
        owner = (
            "the vRouter's owner attaches a VNIC to that subnet with its source/destination check skipped and this "
            "address as a private IP; then run `pulumi up` again."
        )
        if not standing:
            rest = f" yet, so NAT VM2 has no route to {', '.join(destinations)}: {owner}"
            pulumi.log.warn(missing + rest, resource=self._scope.component)
            return []
        # Only our own, or a rule that somebody added by hand would show as a change of this program.  When none of
        # ours stands, management's CIDR was changed: then the table stays as it is.
        kept = [rule for rule in standing if rule.destination in destinations] or standing
        ways = ", ".join(f"{rule.destination} to {rule.network_entity_id}" for rule in kept)
        absent = [destination for destination in destinations if destination not in {rule.destination for rule in kept}]
        none_to = f", and there is none to {', '.join(absent)}" if absent else ""
        rest = (
            f" at the moment. NAT VM2 keeps the route that it has, {ways}{none_to}. It leads nowhere until a vRouter "
            f"has the address: after a fail-over, run `pulumi preview` again; if this warning stays, {owner}"
        )
        pulumi.log.warn(missing + rest, resource=self._scope.component)
        return kept


def together(*parts: pulumi.Input[list[RouteRule]]) -> pulumi.Output[list[RouteRule]]:
    """The rules of one table from what they lead to."""
    return pulumi.Output.all(*parts).apply(lambda lists: [rule for rules in lists for rule in rules])


def _named(vm: NatVmPlan) -> str:
    """As its engineer calls it: a role's only NAT VM is NAT VM1, one of two is natVm1a."""
    return vm.role.prose if vm.key == vm.role else vm.key
