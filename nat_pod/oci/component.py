"""NatPod: a PodPlan as OCI resources.  The only place in nat-pod where Outputs and OCIDs appear.

A child's Pulumi name is its identity: the component's name and a key that stays with the thing (`natVm1-vnic-2`,
`customer1`, `198.18.0.3`).  So adding a customer creates that customer's resources and touches nothing else.
The display name is the same, because an engineer in the console sees several PODs.

Facts that decide the options below
- OCI refuses a second AttachVnic while one is under way on the same instance (409), and the provider gives up after
  two minutes: the attachments of one VM are chained, the two VMs go in parallel.
- Addresses are pinned, so a replacement collides with what it replaces: delete before replace.
- Secondary private IPs die with their VNIC, VNICs with their instance, without the provider knowing: `deleted_with`.
- The provider would *update* a private IP whose VNIC was replaced, and get 404: `replace_on_changes=["vnicId"]`.
- A new LPG is created before the old one is deleted, which is Pulumi's default.  An LPG cannot be deleted while a route
  rule points to it, and the rule moves only once the new LPG is there.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NotRequired, TypedDict, cast

import pulumi
import pulumi_oci as oci

from nat_pod.config import any_config
from nat_pod.config.delivery import refuse_routed
from nat_pod.errors import ConfigError, Problem
from nat_pod.limits import is_flex
from nat_pod.names import LPGS, MANAGEMENT, NAMESPACE, NAT_VM1, NAT_VM2, SIDES, VROUTER
from nat_pod.oci.args import NatPodArgs
from nat_pod.plan.model import LpgPlan, NatVmPlan, PodPlan, SecurityRulePlan, VnicPlan
from nat_pod.plan.planner import plan_pod

RouteRule = oci.core.RouteTableRouteRuleArgs


class Routes(TypedDict):
    """What a neighbour adds to its route tables."""

    destinations: list[str]
    """Ranges of the POD."""

    target: str
    """What they lead to."""

    lpgId: NotRequired[pulumi.Output[str]]
    """OCID of the POD's LPG for this customer; management has none."""


class NatPod(pulumi.ComponentResource):
    """A NAT POD: its VCN, subnets, gateways, security, and the two NAT VMs with their VNICs and addresses."""

    vcn_id: pulumi.Output[str]
    """OCID of the POD's VCN."""

    nat_vm_ids: dict[str, pulumi.Output[str]]
    """OCIDs of the NAT VMs: natVm1 and natVm2."""

    lpg_ids: dict[str, pulumi.Output[str]]
    """OCID of the POD's local peering gateway for each customer; the customer's own LPG is peered with it."""

    vrouter_subnet_id: pulumi.Output[str]
    """OCID of the subnet in which the vRouter's owner attaches a VNIC."""

    address_book: dict[str, dict[str, str]]
    """The two addresses of each member: member name to {natVm1, natVm2}."""

    routes_to_add: dict[str, Routes]
    """What each customer and `management` add to their route tables: destinations, and the target they point to."""

    generations: dict[str, str]
    """Generation of the rule document of each NAT VM; its agent reports the same one when it runs it."""

    def __init__(self, name: str, args: NatPodArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        # Before anything is registered: a POD that is not possible is refused as a whole.
        plan = _plan(args)
        super().__init__("nat-pod:index:NatPod", name, None, opts)
        self._name = name
        self._plan = plan
        domain = self._availability_domain()

        self._vcn = oci.core.Vcn(
            name,
            compartment_id=plan.compartment_id,
            cidr_blocks=[plan.vcn_cidr],
            display_name=name,
            opts=self._options(),
        )
        self._empty_default_security_list()
        self._subnets = {VROUTER: self._vrouter_subnet()}
        self._subnets |= self._vnic_subnets({NAT_VM2: self._route_table(NAT_VM2, self._rules_to_management())})
        self._nsgs = self._security_groups()
        self._vms: dict[str, oci.core.Instance] = {}
        self._primary_vnics: dict[str, pulumi.Output[str]] = {}
        for vm in plan.vms:
            self._vms[vm.key] = self._nat_vm(vm, domain)
        table_of_lpgs = self._route_table(LPGS, self._rules_to_nat_vm1())
        self._lpgs = {lpg.customer: self._lpg(lpg, table_of_lpgs) for lpg in plan.lpgs}
        self._attach_route_table(NAT_VM1, self._route_table(NAT_VM1, self._rules_to_customers()))

        self.vcn_id = self._vcn.id
        self.nat_vm_ids = {key: vm.id for key, vm in self._vms.items()}
        self.lpg_ids = {customer: lpg.id for customer, lpg in self._lpgs.items()}
        self.vrouter_subnet_id = self._subnets[VROUTER].id
        self.address_book = {slot.member: {NAT_VM1: slot.nat_vm1, NAT_VM2: slot.nat_vm2} for slot in plan.slots}
        self.routes_to_add = self._routes_to_add()
        self.generations = {vm.key: vm.generation for vm in plan.vms}
        self.register_outputs(self.outputs())

    def outputs(self) -> dict[str, Any]:
        """The component's outputs under the names by which a stack exports them."""
        return {
            "vcnId": self.vcn_id,
            "natVmIds": self.nat_vm_ids,
            "lpgIds": self.lpg_ids,
            "vrouterSubnetId": self.vrouter_subnet_id,
            "addressBook": self.address_book,
            "routesToAdd": self.routes_to_add,
            "generations": self.generations,
        }

    # Naming

    def _options(self, **options: Any) -> pulumi.ResourceOptions:  # noqa: ANN401 as ResourceOptions takes them
        return pulumi.ResourceOptions(parent=self, **options)

    def _child(self, key: str) -> str:
        return f"{self._name}-{key}"

    # Network

    def _empty_default_security_list(self) -> None:
        """A subnet without its own security list uses this one, which OCI creates with ssh open to the world."""
        oci.core.DefaultSecurityList(
            self._child("default"),
            manage_default_resource_id=self._vcn.default_security_list_id,
            ingress_security_rules=[],
            egress_security_rules=[],
            opts=self._options(),
        )

    def _lpg(self, lpg: LpgPlan, table: oci.core.RouteTable) -> oci.core.LocalPeeringGateway:
        """The acceptor if it has no `peer_id`: only one side of a peering may name the other.

        A renamed customer keeps its LPG by an alias.  A new LPG would end the peering, and an LPG that was ever peered
        cannot be peered again.
        """
        name = self._child(lpg.customer)
        aliases = [] if lpg.formerly is None else [pulumi.Alias(name=self._child(lpg.formerly))]
        return oci.core.LocalPeeringGateway(
            name,
            compartment_id=self._plan.compartment_id,
            vcn_id=self._vcn.id,
            peer_id=lpg.peer_id,
            route_table_id=table.id,
            display_name=name,
            opts=self._options(aliases=aliases),
        )

    def _vrouter_subnet(self) -> oci.core.Subnet:
        """It has no route table of its own: the VCN's default table is empty, and the vRouter routes in its guest.

        NAT VM2's table needs an address in this subnet, so this subnet cannot wait for that table.
        """
        name = self._child(VROUTER)
        rules = self._plan.security[VROUTER]
        security = oci.core.SecurityList(
            name,
            compartment_id=self._plan.compartment_id,
            vcn_id=self._vcn.id,
            display_name=name,
            ingress_security_rules=[_list_ingress(rule) for rule in rules if rule.direction == "INGRESS"],
            egress_security_rules=[_list_egress(rule) for rule in rules if rule.direction == "EGRESS"],
            opts=self._options(),
        )
        cidr = next(subnet.cidr for subnet in self._plan.subnets if subnet.key == VROUTER)
        return self._subnet(VROUTER, cidr, security_list_ids=[security.id])

    def _vnic_subnets(self, tables: dict[str, oci.core.RouteTable]) -> dict[str, oci.core.Subnet]:
        return {
            subnet.key: self._subnet(
                subnet.key,
                subnet.cidr,
                route_table_id=tables[subnet.route_table].id if subnet.route_table in tables else None,
            )
            for subnet in self._plan.subnets
            if subnet.side is not None
        }

    def _subnet(
        self,
        key: str,
        cidr: str,
        route_table_id: pulumi.Input[str] | None = None,
        security_list_ids: Sequence[pulumi.Input[str]] | None = None,
    ) -> oci.core.Subnet:
        name = self._child(key)
        return oci.core.Subnet(
            name,
            compartment_id=self._plan.compartment_id,
            vcn_id=self._vcn.id,
            cidr_block=cidr,
            display_name=name,
            prohibit_public_ip_on_vnic=True,
            route_table_id=route_table_id,
            security_list_ids=security_list_ids,
            opts=self._options(),
        )

    def _attach_route_table(self, key: str, table: oci.core.RouteTable) -> None:
        """Give subnets the route table that the plan calls `key`, after the subnets were made.

        Subnets made with that table would wait for ever: NAT VM1's table leads to the LPGs, the LPGs' table leads to
        NAT VM1, and NAT VM1 is in these subnets.
        """
        for subnet in self._plan.subnets:
            if subnet.route_table == key:
                oci.core.RouteTableAttachment(
                    self._child(subnet.key),
                    subnet_id=self._subnets[subnet.key].id,
                    route_table_id=table.id,
                    opts=self._options(),
                )

    def _route_table(self, key: str, rules: pulumi.Input[list[RouteRule]]) -> oci.core.RouteTable:
        name = self._child(key)
        return oci.core.RouteTable(
            name,
            compartment_id=self._plan.compartment_id,
            vcn_id=self._vcn.id,
            display_name=name,
            route_rules=rules,
            opts=self._options(),
        )

    def _rules_to_customers(self) -> list[RouteRule]:
        return [
            _route_rule(rule.destination, self._lpgs[rule.customer].id)
            for rule in self._plan.routes[NAT_VM1]
            if rule.customer is not None
        ]

    def _rules_to_nat_vm1(self) -> pulumi.Output[list[RouteRule]]:
        """What customers send elsewhere in the POD ends at NAT VM1: `planner._not_for_customers`."""
        vm = self._plan.vms_on(NAT_VM1)[0]
        primary = vm.vnics[0].primary
        found = oci.core.get_private_ips_output(
            vnic_id=self._primary_vnics[vm.key], opts=pulumi.InvokeOutputOptions(parent=self)
        )

        def lead(private_ips: Sequence[Any]) -> pulumi.Output[list[RouteRule]]:
            targets = [ip.id for ip in private_ips if ip.ip_address == primary]
            if not targets:
                return self._standing_rules(LPGS).apply(lambda rules: self._without_nat_vm1(primary, rules))
            rules = [_route_rule(rule.destination, targets[0]) for rule in self._plan.routes[LPGS]]
            return pulumi.Output.from_input(rules)

        return found.apply(lambda result: lead(result.private_ips))

    def _rules_to_management(self) -> pulumi.Output[list[RouteRule]]:
        to_vrouter = [rule.destination for rule in self._plan.routes[NAT_VM2]]
        # In the preview of a new POD the subnet's id is unknown.  Then this is too: no look-up, and no warning.
        found = oci.core.get_private_ips_output(
            subnet_id=self._subnets[VROUTER].id,
            ip_address=self._plan.vrouter_ip,
            opts=pulumi.InvokeOutputOptions(parent=self),
        )

        def lead(private_ips: Sequence[Any]) -> pulumi.Output[list[RouteRule]]:
            if not private_ips:
                return self._standing_rules(NAT_VM2).apply(lambda rules: self._without_vrouter(to_vrouter, rules))
            return pulumi.Output.from_input([_route_rule(range_, private_ips[0].id) for range_ in to_vrouter])

        return found.apply(lambda result: lead(result.private_ips))

    def _without_nat_vm1(self, primary: str, standing: list[RouteRule]) -> list[RouteRule]:
        """The LPGs' rules when OCI did not list NAT VM1's primary address: those that stand, with a warning.

        Without them customers would get past NAT VM1, so a POD where none stand is not made.
        """
        missing = f"No private IP {primary} on NAT VM1's first VNIC"
        if not standing and self._plan.routes[LPGS]:
            raise pulumi.RunError(
                f"{missing}, so there is nothing that the LPGs' route rules could lead to; run `pulumi up` again."
            )
        pulumi.log.warn(
            f"{missing} at the moment. The LPGs keep the route rules that they have; run `pulumi up` again.",
            resource=self,
        )
        return standing

    def _standing_rules(self, key: str) -> pulumi.Output[list[RouteRule]]:
        """The rules that a route table of the POD has in the region; none while there is no such table."""
        found = oci.core.get_route_tables_output(
            compartment_id=self._plan.compartment_id,
            vcn_id=self._vcn.id,
            display_name=self._child(key),
            state="AVAILABLE",
            opts=pulumi.InvokeOutputOptions(parent=self),
        )
        return found.apply(
            lambda result: [
                _route_rule(rule.destination, rule.network_entity_id)
                for table in result.route_tables[:1]
                for rule in table.route_rules
            ]
        )

    def _without_vrouter(self, destinations: list[str], standing: list[RouteRule]) -> list[RouteRule]:
        """NAT VM2's rules when nobody has the vRouter's floating address: the existing ones, with a warning.

        The address may be on its way from one vRouter to the other.  An existing rule leads to it again as soon as it
        arrives; without the rule the POD would be cut off until the next `pulumi up`.  In a new POD there is no rule:
        the vRouter's owner cannot add the address before there is a subnet, so its first `pulumi up` always ends here.
        """
        missing = f"No private IP {self._plan.vrouter_ip} in subnet {self._child(VROUTER)}"
        owner = (
            "the vRouter's owner attaches a VNIC to that subnet with its source/destination check skipped and this "
            "address as a private IP; then run `pulumi up` again."
        )
        if not standing:
            rest = f" yet, so NAT VM2 has no route to {', '.join(destinations)}: {owner}"
            pulumi.log.warn(missing + rest, resource=self)
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
        pulumi.log.warn(missing + rest, resource=self)
        return kept

    # Security

    def _security_groups(self) -> dict[str, oci.core.NetworkSecurityGroup]:
        """One NSG per side.  Each names the other in its rules, so the groups are made first and the rules second."""
        groups: dict[str, oci.core.NetworkSecurityGroup] = {
            side: oci.core.NetworkSecurityGroup(
                self._child(side),
                compartment_id=self._plan.compartment_id,
                vcn_id=self._vcn.id,
                display_name=self._child(side),
                opts=self._options(),
            )
            for side in SIDES
        }
        for side in SIDES:
            for rule in self._plan.security[side]:
                self._security_rule(side, rule, groups)
        return groups

    def _security_rule(
        self, side: str, rule: SecurityRulePlan, groups: dict[str, oci.core.NetworkSecurityGroup]
    ) -> None:
        peer = groups[rule.peer].id if rule.peer_is_nsg else rule.peer
        peer_type = "NETWORK_SECURITY_GROUP" if rule.peer_is_nsg else "CIDR_BLOCK"
        ingress = rule.direction == "INGRESS"
        icmp = None
        if rule.icmp_type is not None:
            icmp = oci.core.NetworkSecurityGroupSecurityRuleIcmpOptionsArgs(type=rule.icmp_type, code=rule.icmp_code)
        oci.core.NetworkSecurityGroupSecurityRule(
            self._child(f"{side}-{rule.key}"),
            network_security_group_id=groups[side].id,
            direction=rule.direction,
            protocol=rule.protocol,
            stateless=True,
            icmp_options=icmp,
            description=rule.description,
            source=peer if ingress else None,
            source_type=peer_type if ingress else None,
            destination=None if ingress else peer,
            destination_type=None if ingress else peer_type,
            opts=self._options(),
        )

    # NAT VMs

    def _availability_domain(self) -> pulumi.Input[str]:
        """The one that the stack file names, if the region has it; without a name, the region's first.

        The region is asked in either case, before anything is made: the first to need the name is an instance, halfway
        through `pulumi up`.  It is asked at once, and not by way of an Output.  So the component's own registration is
        under way when the program ends, and Pulumi waits for such calls; otherwise it would wait for each of some ten
        thousand Outputs, in rounds over all of them.  It is asked by its token, because `oci.identity` takes a second
        to import.
        """
        found: dict[str, Any] = pulumi.runtime.invoke(
            "oci:Identity/getAvailabilityDomains:getAvailabilityDomains",
            {"compartmentId": self._plan.compartment_id},
            # With the version that pulumi_oci itself gives; otherwise the engine would start a second provider.
            pulumi.InvokeOptions(parent=self, version=version("pulumi-oci")),
        ).value
        names = [str(domain["name"]) for domain in (found or {}).get("availabilityDomains", [])]
        wanted = self._plan.availability_domain
        if not names:  # a preview whose provider's configuration is not known yet: nobody was asked
            return pulumi.Output.from_input(cast("str", pulumi.output.UNKNOWN)) if wanted is None else wanted
        if wanted is None:
            return names[0]
        if wanted.casefold() not in (name.casefold() for name in names):  # OCI ignores case here
            rule = f"is not an availability domain of this region; your tenancy names them: {', '.join(names)}"
            problem = Problem(f"{NAMESPACE}:natVm.availabilityDomain", wanted, rule)
            raise ConfigError(f"Pulumi.{pulumi.get_stack()}.yaml", [problem])
        return wanted

    def _nat_vm(self, vm: NatVmPlan, availability_domain: pulumi.Input[str]) -> oci.core.Instance:
        """A NAT VM with all its VNICs and private IPs."""
        plan = self._plan
        name = self._child(vm.key)
        primary = vm.vnics[0]
        shape_config = None
        if is_flex(plan.shape):
            shape_config = oci.core.InstanceShapeConfigArgs(ocpus=plan.ocpus, memory_in_gbs=plan.memory_gbs)
        instance = oci.core.Instance(
            name,
            compartment_id=plan.compartment_id,
            availability_domain=availability_domain,
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
            # A new bootstrap replaces both VMs: the second is left alone until the first has been launched again.
            opts=self._options(depends_on=list(self._vms.values()), delete_before_replace=True),
        )
        self._primary_vnics[vm.key] = self._primary_vnic_id(instance, vm)
        self._private_ips(primary, self._primary_vnics[vm.key], instance)
        previous: pulumi.Resource = instance
        for vnic in vm.vnics[1:]:
            previous = self._attachment(vnic, instance, previous)
        return instance

    def _vnic_details(self, vnic: VnicPlan) -> dict[str, Any]:
        return {
            "subnet_id": self._subnets[vnic.subnet].id,
            "private_ip": vnic.primary,
            "display_name": self._child(vnic.key),
            "nsg_ids": [self._nsgs[self._plan.vm(vnic.vm).nsg].id],
            # A NAT VM sends and receives for addresses that are not its VNIC's.
            "skip_source_dest_check": True,
            # The provider's default on an instance is "true", which OCI refuses in these subnets.
            "assign_public_ip": "false",
        }

    def _attachment(
        self, vnic: VnicPlan, instance: oci.core.Instance, previous: pulumi.Resource
    ) -> oci.core.VnicAttachment:
        """Attach one more VNIC, after `previous`.

        The attachment itself has no display name, because a change of it would replace the VNIC.
        """
        attachment = oci.core.VnicAttachment(
            self._child(vnic.key),
            instance_id=instance.id,
            create_vnic_details=oci.core.VnicAttachmentCreateVnicDetailsArgs(**self._vnic_details(vnic)),
            opts=self._options(depends_on=[previous], deleted_with=instance, delete_before_replace=True),
        )
        self._private_ips(vnic, attachment.vnic_id, attachment)
        return attachment

    def _primary_vnic_id(self, instance: oci.core.Instance, vm: NatVmPlan) -> pulumi.Output[str]:
        """The provider does not report it with the instance; no other VNIC is in the primary VNIC's subnet."""
        attached = oci.core.get_vnic_attachments_output(
            compartment_id=self._plan.compartment_id,
            instance_id=instance.id,
            opts=pulumi.InvokeOutputOptions(parent=self),
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
            f"OCI lists no VNIC of {self._child(vm.key)} in this compartment, and a POD does not move: write the "
            "compartment that it is in, or make a new POD in this one (`python -m nat_pod new-pod NAME`). If it is in "
            "this one, somebody terminated its VM: run `pulumi refresh`, then `pulumi up`"
        )
        problem = Problem(f"{NAMESPACE}:compartmentId", self._plan.compartment_id, rule)
        return ConfigError(f"Pulumi.{pulumi.get_stack()}.yaml", [problem])

    def _private_ips(self, vnic: VnicPlan, vnic_id: pulumi.Input[str], owner: pulumi.Resource) -> None:
        for address in vnic.secondaries:
            oci.core.PrivateIp(
                self._child(address),
                vnic_id=vnic_id,
                ip_address=address,
                display_name=self._child(address),
                opts=self._options(deleted_with=owner, replace_on_changes=["vnicId"], delete_before_replace=True),
            )

    # Outputs

    def _routes_to_add(self) -> dict[str, Routes]:
        routes: dict[str, Routes] = {
            lpg.customer: {
                "destinations": list(self._plan.neighbours[lpg.customer]),
                "target": "the customer VCN's own LPG, "
                + ("peered with lpgId as its peer_id" if lpg.peer_id is None else "which the POD's LPG peers with"),
                "lpgId": self._lpgs[lpg.customer].id,
            }
            for lpg in self._plan.lpgs
        }
        routes[MANAGEMENT] = {
            "destinations": list(self._plan.neighbours[MANAGEMENT]),
            "target": "the vRouter's floating private IP in the management VCN",
        }
        return routes


def _plan(args: NatPodArgs) -> PodPlan:
    """Check what the POD is made from, and compute it.  Raises ConfigError with every problem."""
    stack = pulumi.get_stack()
    unknown = [Problem(f"{NAMESPACE}:{path}", None, _PLAIN) for path in _outputs_in(args)]
    if unknown:
        raise ConfigError(f"Pulumi.{stack}.yaml", unknown)
    plan = plan_pod(any_config.read(args, stack), stack)
    refuse_routed(plan.delivery, "the component")
    return plan


_PLAIN = (
    "is an output, whose value may not be known yet; a POD is computed before anything is deployed: "
    "write the value itself, or read it from configuration that is not secret"
)


def _outputs_in(value: object, path: str = "") -> Iterator[str]:
    """The places of values that are not plain."""
    if isinstance(value, pulumi.Output | pulumi.output.Unknown):
        yield path
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from _outputs_in(member, f"{path}.{key}" if path else key)
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            yield from _outputs_in(member, f"{path}[{index}]")


def _route_rule(destination: str, target: pulumi.Input[str]) -> RouteRule:
    return RouteRule(destination=destination, destination_type="CIDR_BLOCK", network_entity_id=target)


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
