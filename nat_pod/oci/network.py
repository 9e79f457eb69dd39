"""The VCN of a POD: its subnets, its route tables, and the LPGs to the customers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import pulumi
import pulumi_oci as oci

from nat_pod.names import VROUTER
from nat_pod.oci.scope import Scope
from nat_pod.oci.security import security_list
from nat_pod.plan.model import LpgPlan

RouteRule: TypeAlias = oci.core.RouteTableRouteRuleArgs


class Network:
    """The VCN, and in it whatever the methods have made so far, by the plan's keys."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.vcn = oci.core.Vcn(
            scope.name,
            compartment_id=scope.plan.compartment_id,
            cidr_blocks=[scope.plan.vcn_cidr],
            display_name=scope.name,
            **scope.tags,
            opts=scope.options(protect=scope.guarded_network),
        )
        self.subnets: dict[str, oci.core.Subnet] = {}
        self.lpgs: dict[str, oci.core.LocalPeeringGateway] = {}
        self._empty_default_security_list()

    def _empty_default_security_list(self) -> None:
        """A subnet without its own security list uses this one, which OCI creates with ssh open to the world."""
        oci.core.DefaultSecurityList(
            self._scope.child("default"),
            manage_default_resource_id=self.vcn.default_security_list_id,
            ingress_security_rules=[],
            egress_security_rules=[],
            **self._scope.tags,
            opts=self._scope.options(),
        )

    def make_vrouter_subnet(self) -> None:
        """Make the vRouter's subnet, without a route table.

        NAT VM2's table needs an address in this subnet, so this subnet cannot wait for that table.
        """
        security = security_list(self._scope, self.vcn, VROUTER)
        cidr = next(subnet.cidr for subnet in self._scope.plan.subnets if subnet.key == VROUTER)
        self.subnets[VROUTER] = self._subnet(VROUTER, cidr, security_list_ids=[security.id])

    def make_nat_vm_subnets(self, tables: Mapping[str, oci.core.RouteTable]) -> None:
        """Make the subnets of the NAT VMs, with those of their route tables that are in `tables`."""
        for subnet in self._scope.plan.subnets:
            if subnet.side is not None:
                table = tables.get(subnet.route_table or "")
                self.subnets[subnet.key] = self._subnet(
                    subnet.key, subnet.cidr, route_table_id=None if table is None else table.id
                )

    def _subnet(
        self,
        key: str,
        cidr: str,
        route_table_id: pulumi.Input[str] | None = None,
        security_list_ids: Sequence[pulumi.Input[str]] | None = None,
    ) -> oci.core.Subnet:
        name = self._scope.child(key)
        return oci.core.Subnet(
            name,
            compartment_id=self._scope.plan.compartment_id,
            vcn_id=self.vcn.id,
            cidr_block=cidr,
            display_name=name,
            prohibit_public_ip_on_vnic=True,
            route_table_id=route_table_id,
            security_list_ids=security_list_ids,
            **self._scope.tags,
            opts=self._scope.options(),
        )

    def route_table(self, key: str, rules: pulumi.Input[list[RouteRule]]) -> oci.core.RouteTable:
        """Make the route table that the plan calls `key`."""
        name = self._scope.child(key)
        return oci.core.RouteTable(
            name,
            compartment_id=self._scope.plan.compartment_id,
            vcn_id=self.vcn.id,
            display_name=name,
            route_rules=rules,
            **self._scope.tags,
            opts=self._scope.options(),
        )

    def attach(self, key: str, table: oci.core.RouteTable) -> None:
        """Give subnets the route table that the plan calls `key`, after the subnets were made.

        Subnets made with that table would wait for ever.  NAT VM1's table leads to the LPGs, the LPGs' table leads to
        NAT VM1, and NAT VM1 is in these subnets.  In a routed POD the tables of both sides and the vRouter's lead to
        addresses in one another's subnets.
        """
        for subnet in self._scope.plan.subnets:
            if subnet.route_table == key:
                oci.core.RouteTableAttachment(
                    self._scope.child(subnet.key),
                    subnet_id=self.subnets[subnet.key].id,
                    route_table_id=table.id,
                    opts=self._scope.options(),
                )

    def make_lpgs(self, tables: Mapping[str, oci.core.RouteTable]) -> None:
        """Make each customer's LPG; what comes in by it goes by its table, which is among these by the plan's key."""
        self.lpgs = {lpg.customer: self._lpg(lpg, tables[lpg.route_table]) for lpg in self._scope.plan.lpgs}

    def _lpg(self, lpg: LpgPlan, table: oci.core.RouteTable) -> oci.core.LocalPeeringGateway:
        """The acceptor if it has no `peer_id`: only one side of a peering may name the other.

        A renamed customer keeps its LPG by an alias.  A new LPG would end the peering, and an LPG that was ever peered
        cannot be peered again.
        """
        scope = self._scope
        name = scope.child(lpg.customer)
        aliases = [] if lpg.formerly is None else [pulumi.Alias(name=scope.child(lpg.formerly))]
        return oci.core.LocalPeeringGateway(
            name,
            compartment_id=scope.plan.compartment_id,
            vcn_id=self.vcn.id,
            peer_id=lpg.peer_id,
            route_table_id=table.id,
            display_name=name,
            **scope.tags,
            opts=scope.options(aliases=aliases, protect=scope.guarded_network),
        )


def route_rule(destination: str, target: pulumi.Input[str]) -> RouteRule:
    """A rule that leads a range to an LPG or a private IP, by its OCID."""
    return RouteRule(destination=destination, destination_type="CIDR_BLOCK", network_entity_id=target)
