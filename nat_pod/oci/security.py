"""NSGs and security lists: who may send what to whom, as OCI sees it."""

from __future__ import annotations

from collections.abc import Mapping

import pulumi_oci as oci

from nat_pod.oci.scope import Scope
from nat_pod.plan.model import SecurityRulePlan

Groups = Mapping[str, oci.core.NetworkSecurityGroup]


def security_groups(scope: Scope, vcn: oci.core.Vcn) -> Groups:
    """One NSG per role.  Each may name the other in its rules, so the groups are made first and the rules second."""
    groups: dict[str, oci.core.NetworkSecurityGroup] = {
        role: oci.core.NetworkSecurityGroup(
            scope.child(role),
            compartment_id=scope.plan.compartment_id,
            vcn_id=vcn.id,
            display_name=scope.child(role),
            **scope.tags,
            opts=scope.options(),
        )
        for role in scope.plan.roles
    }
    for role in scope.plan.roles:
        for rule in scope.plan.security[role]:
            _security_rule(scope, role, rule, groups)
    return groups


def _security_rule(scope: Scope, role: str, rule: SecurityRulePlan, groups: Groups) -> None:
    peer = groups[rule.peer].id if rule.peer_is_nsg else rule.peer
    peer_type = "NETWORK_SECURITY_GROUP" if rule.peer_is_nsg else "CIDR_BLOCK"
    ingress = rule.direction == "INGRESS"
    icmp = None
    if rule.icmp_type is not None:
        icmp = oci.core.NetworkSecurityGroupSecurityRuleIcmpOptionsArgs(type=rule.icmp_type, code=rule.icmp_code)
    oci.core.NetworkSecurityGroupSecurityRule(
        scope.child(f"{role}-{rule.key}"),
        network_security_group_id=groups[role].id,
        direction=rule.direction,
        protocol=rule.protocol,
        stateless=True,
        icmp_options=icmp,
        description=rule.description,
        source=peer if ingress else None,
        source_type=peer_type if ingress else None,
        destination=None if ingress else peer,
        destination_type=None if ingress else peer_type,
        opts=scope.options(),
    )


def security_list(scope: Scope, vcn: oci.core.Vcn, key: str) -> oci.core.SecurityList:
    """The security list that the plan calls `key`."""
    rules = scope.plan.security[key]
    return oci.core.SecurityList(
        scope.child(key),
        compartment_id=scope.plan.compartment_id,
        vcn_id=vcn.id,
        display_name=scope.child(key),
        ingress_security_rules=[_list_ingress(rule) for rule in rules if rule.direction == "INGRESS"],
        egress_security_rules=[_list_egress(rule) for rule in rules if rule.direction == "EGRESS"],
        **scope.tags,
        opts=scope.options(),
    )


def _list_ingress(rule: SecurityRulePlan) -> oci.core.SecurityListIngressSecurityRuleArgs:
    icmp = None
    if rule.icmp_type is not None:
        icmp = oci.core.SecurityListIngressSecurityRuleIcmpOptionsArgs(type=rule.icmp_type, code=rule.icmp_code)
    return oci.core.SecurityListIngressSecurityRuleArgs(
        source=rule.peer, protocol=rule.protocol, stateless=True, icmp_options=icmp, description=rule.description
    )


def _list_egress(rule: SecurityRulePlan) -> oci.core.SecurityListEgressSecurityRuleArgs:
    icmp = None
    if rule.icmp_type is not None:
        icmp = oci.core.SecurityListEgressSecurityRuleIcmpOptionsArgs(type=rule.icmp_type, code=rule.icmp_code)
    return oci.core.SecurityListEgressSecurityRuleArgs(
        destination=rule.peer, protocol=rule.protocol, stateless=True, icmp_options=icmp, description=rule.description
    )
