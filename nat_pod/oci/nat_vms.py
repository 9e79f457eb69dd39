"""The NAT VMs: their instances, VNICs and private IPs.

Facts that decide the options below
- OCI refuses a second AttachVnic while one is under way on the same instance (409), and the provider gives up after
  two minutes: the attachments of one VM are chained.  Those of two VMs may run at once;
  the instances themselves are launched one after the other (`make`, `after`).
- Addresses are pinned, so a replacement collides with what it replaces: delete before replace.
- Secondary private IPs die with their VNIC, VNICs with their instance, without the provider knowing: `deleted_with`.
- The provider would *update* a private IP whose VNIC was replaced, and get 404: `replace_on_changes=["vnicId"]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
import pulumi_oci as oci

from nat_pod.errors import ConfigError, Problem
from nat_pod.limits import is_flex
from nat_pod.names import NAMESPACE
from nat_pod.oci.scope import Scope
from nat_pod.oci.security import Groups
from nat_pod.plan.model import NatVmPlan, VnicPlan

_REBOOTING = ["sourceDetails", "shape", "shapeConfig", "faultDomain"]
"""What OCI changes in place, and stops the VM for it."""


class NatVms:
    """The NAT VMs that were made so far, by key."""

    def __init__(
        self,
        scope: Scope,
        subnets: Mapping[str, oci.core.Subnet],
        groups: Groups,
        availability_domain: pulumi.Input[str],
    ) -> None:
        self._scope = scope
        self._subnets = subnets
        self._groups = groups
        self._availability_domain = availability_domain
        self._primary_vnics: dict[str, pulumi.Output[str]] = {}
        self.instances: dict[str, oci.core.Instance] = {}

    def make(self, vm: NatVmPlan, after: Sequence[pulumi.Resource]) -> oci.core.Instance:
        """Make a NAT VM with all its VNICs and private IPs, and replace it only when `after` have been.

        A new bootstrap replaces all VMs: a VM is left alone until those before it have been launched again.
        """
        scope, plan = self._scope, self._scope.plan
        name = scope.child(vm.key)
        primary = vm.vnics[0]
        shape_config = None
        if is_flex(plan.shape):
            shape_config = oci.core.InstanceShapeConfigArgs(ocpus=plan.ocpus, memory_in_gbs=plan.memory_gbs)
        # With a standby a new VM takes the place of the old one while the other works; without, that is for the
        # engineer to choose, so that the VM is not rebooted at any time.
        replaced = _REBOOTING if plan.balancers else []
        instance = oci.core.Instance(
            name,
            compartment_id=plan.compartment_id,
            availability_domain=self._availability_domain,
            fault_domain=vm.fault_domain,
            display_name=name,
            shape=plan.shape,
            shape_config=shape_config,
            source_details=oci.core.InstanceSourceDetailsArgs(source_type="image", source_id=plan.image_id),
            create_vnic_details=oci.core.InstanceCreateVnicDetailsArgs(**self._vnic_details(primary)),
            # Plain values: an Output that a preview does not know yet would show as a replacement of the VM.
            metadata=vm.metadata,
            instance_options=oci.core.InstanceInstanceOptionsArgs(are_legacy_imds_endpoints_disabled=True),
            availability_config=oci.core.InstanceAvailabilityConfigArgs(recovery_action="RESTORE_INSTANCE"),
            # Otherwise a changed shape in the stack file would reboot a NAT VM without warning.
            update_operation_constraint="AVOID_DOWNTIME",
            **scope.tags,
            opts=scope.options(
                depends_on=list(after),
                delete_before_replace=True,
                replace_on_changes=replaced,
                protect=scope.guarded_nat_vms,
            ),
        )
        self.instances[vm.key] = instance
        self._primary_vnics[vm.key] = self._primary_vnic_id(instance, vm)
        self._private_ips(primary, self._primary_vnics[vm.key], instance)
        previous: pulumi.Resource = instance
        for vnic in vm.vnics[1:]:
            previous = self._attachment(vnic, instance, previous)
        return instance

    def primary_ip(self, vm: NatVmPlan) -> pulumi.Output[list[str]]:
        """The OCID of its primary private IP; empty while OCI does not list it."""
        found = oci.core.get_private_ips_output(vnic_id=self._primary_vnics[vm.key], opts=self._scope.asking())
        primary = vm.vnics[0].primary
        return found.apply(lambda result: [str(ip.id) for ip in result.private_ips if ip.ip_address == primary])

    def _vnic_details(self, vnic: VnicPlan) -> dict[str, Any]:
        return {
            "subnet_id": self._subnets[vnic.subnet].id,
            "private_ip": vnic.primary,
            "display_name": self._scope.child(vnic.key),
            "nsg_ids": [self._groups[self._scope.plan.vm(vnic.vm).nsg].id],
            # A NAT VM sends and receives for addresses that are not its VNIC's.
            "skip_source_dest_check": True,
            # The provider's default on an instance is "true", which OCI refuses in these subnets.
            "assign_public_ip": "false",
            **self._scope.tags,
        }

    def _attachment(
        self, vnic: VnicPlan, instance: oci.core.Instance, previous: pulumi.Resource
    ) -> oci.core.VnicAttachment:
        """Attach one more VNIC, after `previous`.

        The attachment itself has no display name, because a change of it would replace the VNIC.
        """
        attachment = oci.core.VnicAttachment(
            self._scope.child(vnic.key),
            instance_id=instance.id,
            create_vnic_details=oci.core.VnicAttachmentCreateVnicDetailsArgs(**self._vnic_details(vnic)),
            opts=self._scope.options(depends_on=[previous], deleted_with=instance, delete_before_replace=True),
        )
        self._private_ips(vnic, attachment.vnic_id, attachment)
        return attachment

    def _primary_vnic_id(self, instance: oci.core.Instance, vm: NatVmPlan) -> pulumi.Output[str]:
        """The provider does not report it with the instance; no other VNIC is in the primary VNIC's subnet."""
        attached = oci.core.get_vnic_attachments_output(
            compartment_id=self._scope.plan.compartment_id,
            instance_id=instance.id,
            opts=self._scope.asking(),
        )

        def pick(result: Any, subnet_id: str) -> str:  # noqa: ANN401 the answer's class is the provider's own
            for entry in result.vnic_attachments:
                # Detached VNICs stay in OCI's list for a while.
                if entry.subnet_id == subnet_id and entry.state == "ATTACHED":
                    return str(entry.vnic_id)
            raise pulumi.RunError(str(self._elsewhere(vm)))

        subnet_id = self._subnets[vm.vnics[0].subnet].id
        return pulumi.Output.all(attached, subnet_id).apply(lambda found: pick(found[0], found[1]))

    def _elsewhere(self, vm: NatVmPlan) -> ConfigError:
        """OCI looks for attachments in one compartment.  While a preview asks, the VM is where it was, moved or not."""
        rule = (
            f"OCI lists no VNIC of {self._scope.child(vm.key)} in this compartment, and a POD does not move: write the "
            "compartment that it is in, or make a new POD in this one (`python -m nat_pod new-pod NAME`). If it is in "
            "this one, somebody terminated its VM: run `pulumi refresh`, then `pulumi up`"
        )
        problem = Problem(f"{NAMESPACE}:compartmentId", self._scope.plan.compartment_id, rule)
        return ConfigError(f"Pulumi.{pulumi.get_stack()}.yaml", [problem])

    def _private_ips(self, vnic: VnicPlan, vnic_id: pulumi.Input[str], owner: pulumi.Resource) -> None:
        for address in vnic.secondaries:
            oci.core.PrivateIp(
                self._scope.child(address),
                vnic_id=vnic_id,
                ip_address=address,
                display_name=self._scope.child(address),
                **self._scope.tags,
                opts=self._scope.options(deleted_with=owner, replace_on_changes=["vnicId"], delete_before_replace=True),
            )
