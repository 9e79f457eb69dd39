"""The network load balancers of a POD with standbys: next hops, each in front of the two NAT VMs of a role."""

from __future__ import annotations

from collections.abc import Mapping

import pulumi
import pulumi_oci as oci

from nat_pod.names import Role
from nat_pod.oci.replacement import Replacement
from nat_pod.oci.scope import Scope
from nat_pod.oci.security import Groups
from nat_pod.plan.model import BackendPlan, BalancerPlan

LISTENER = "all"
"""The name of a balancer's one listener: it takes all protocols and ports."""


class Balancer:
    """A role's balancer with its backend set and its listener, and the NAT VMs that were put behind it so far."""

    def __init__(
        self,
        scope: Scope,
        plan: BalancerPlan,
        subnet: oci.core.Subnet,
        groups: Groups,
        replacement: Replacement,
    ) -> None:
        name = scope.child(plan.key)
        self.plan = plan
        self._scope = scope
        self._replacement = replacement
        self._subnet = subnet
        self.resource = oci.networkloadbalancer.NetworkLoadBalancer(
            name,
            compartment_id=scope.plan.compartment_id,
            display_name=name,
            subnet_id=subnet.id,
            assigned_private_ipv4=plan.address,
            is_private=True,
            is_preserve_source_destination=plan.preserves_addresses,
            # The subnet's own list is empty: its VNIC gets in and out what a NAT VM of its role does.
            network_security_group_ids=[groups[plan.role].id],
            **scope.tags,
            opts=scope.options(delete_before_replace=True, protect=scope.guarded_network),
        )
        self._set = self._backend_set(name)
        self._listener = oci.networkloadbalancer.Listener(
            name,
            network_load_balancer_id=self.resource.id,
            name=LISTENER,
            default_backend_set_name=self._set.name,
            protocol=plan.protocol,
            port=plan.port,
            opts=scope.options(),
        )

    def _backend_set(self, name: str) -> oci.networkloadbalancer.BackendSet:
        check = self.plan.check
        return oci.networkloadbalancer.BackendSet(
            name,
            network_load_balancer_id=self.resource.id,
            name=self.plan.key,
            policy=self.plan.policy,
            is_preserve_source=self.plan.preserves_addresses,
            is_instant_failover_enabled=self.plan.instant_failover,
            is_instant_failover_tcp_reset_enabled=self.plan.tcp_reset,
            are_operationally_active_backends_preferred=self.plan.prefers_active,
            is_fail_open=self.plan.fail_open,
            health_checker=oci.networkloadbalancer.BackendSetHealthCheckerArgs(
                protocol="HTTP",
                port=check.port,
                url_path=check.path,
                return_code=200,
                interval_in_millis=check.interval_ms,
                timeout_in_millis=check.timeout_ms,
                retries=check.retries,
            ),
            opts=self._scope.options(),
        )

    def put_behind(self, backend: BackendPlan, private_ip: pulumi.Input[str]) -> oci.networkloadbalancer.Backend:
        """Put a NAT VM behind it, by the OCID of its address.

        The name is the VM's, so that whoever reads a health status reads natVm1b.  A replaced VM has another OCID, and
        its backend is deleted before the VM is: there a replacement waits for the other VM.
        A balancer takes one change at a time, so backends wait for its listener, and for one another by their VMs.
        """
        name = self._scope.child(backend.vm)
        made = oci.networkloadbalancer.Backend(
            name,
            network_load_balancer_id=self.resource.id,
            backend_set_name=self._set.name,
            name=backend.vm,
            target_id=private_ip,
            port=self.plan.port,
            is_backup=backend.is_backup,
            opts=self._scope.options(
                depends_on=[self._listener], delete_before_replace=True, hooks=self._replacement.hooks
            ),
        )
        self._replacement.watch(name, made)
        return made

    def private_ip(self) -> pulumi.Output[list[str]]:
        """The OCID of its own address, which the provider does not report; empty while OCI does not list it."""
        found = oci.core.get_private_ips_output(
            subnet_id=self._subnet.id,
            ip_address=self.plan.address,
            opts=self._scope.asking(depends_on=[self.resource]),
        )
        return found.apply(lambda result: [str(ip.id) for ip in result.private_ips])


def make_balancers(
    scope: Scope, subnets: Mapping[str, oci.core.Subnet], groups: Groups, replacement: Replacement
) -> dict[Role, Balancer]:
    """The balancers of the plan, by role; none without standbys."""
    return {
        plan.role: Balancer(scope, plan, subnets[plan.subnet], groups, replacement) for plan in scope.plan.balancers
    }
