"""NatPod: a PodPlan as OCI resources.  The only package of nat-pod where Outputs and OCIDs appear.

Here is in which order they are made, for each delivery, and what comes out of it.  What they are is in the module of
their subject: `network`, `security`, `nat_vms`, `balancers`, and `next_hops` for what route rules lead to.

A new LPG is created before the old one is deleted, which is Pulumi's default.  An LPG cannot be deleted while a route
rule points to it, and the rule moves only once the new LPG is there.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, NotRequired, TypedDict, assert_never, cast

import pulumi

from nat_pod.config import any_config
from nat_pod.config.delivery import Delivery
from nat_pod.errors import ConfigError, Problem
from nat_pod.names import INNER, LPGS, MANAGEMENT, NAMESPACE, NAT_VM1, NAT_VM2, VROUTER, Role
from nat_pod.oci.args import NatPodArgs, as_written
from nat_pod.oci.balancers import Balancer, make_balancers
from nat_pod.oci.dns import make_name_views
from nat_pod.oci.nat_vms import NatVms
from nat_pod.oci.network import Network, RouteRule
from nat_pod.oci.next_hops import NextHops, together
from nat_pod.oci.replacement import Replacement
from nat_pod.oci.scope import Scope
from nat_pod.oci.security import security_groups
from nat_pod.plan.model import NatVmPlan, PodPlan
from nat_pod.plan.planner import plan_pod


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

    balancer_ids: dict[str, pulumi.Output[str]] | None
    """With delivery routes: OCID of the network load balancer of each role that has standbys: natVm1, natVm2."""

    next_hops: dict[str, str] | None
    """With delivery routes: by role (natVm1, natVm2, natVm1-2 and so on), the address that the routes to it lead to."""

    name_views: dict[str, pulumi.Output[str]] | None
    """With names: OCID of the private view that each customer and `management` may attach to its VCN's resolver."""

    def __init__(self, name: str, args: NatPodArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        # Before anything is registered: a POD that is not possible is refused as a whole.
        plan = _plan(args)
        super().__init__("nat-pod:index:NatPod", name, None, opts)
        self._plan = plan
        scope = Scope(name, plan, self)
        domain = self._availability_domain()
        network = Network(scope)
        network.make_vrouter_subnet()
        self.balancer_ids = self.next_hops = None
        match plan.delivery:
            case Delivery.PRIVATE_IPS:
                vms = _by_private_ips(scope, network, domain)
            case Delivery.ROUTES:
                vms, balancers = _by_routes(scope, network, domain)
                self.balancer_ids = {role: balancer.resource.id for role, balancer in balancers.items()}
                self.next_hops = {role: plan.next_hop(role) for role in plan.roles}
            case _ as never:
                assert_never(never)

        self.name_views = make_name_views(scope) or None
        self.vcn_id = network.vcn.id
        self.nat_vm_ids = {key: vm.id for key, vm in vms.instances.items()}
        self.lpg_ids = {customer: lpg.id for customer, lpg in network.lpgs.items()}
        self.vrouter_subnet_id = network.subnets[VROUTER].id
        self.address_book = {slot.member: {NAT_VM1: slot.nat_vm1, NAT_VM2: slot.nat_vm2} for slot in plan.slots}
        self.routes_to_add = self._routes_to_add()
        self.generations = {vm.key: vm.generation for vm in plan.vms}
        self.register_outputs(self.outputs())

    def outputs(self) -> dict[str, Any]:
        """The component's outputs under the names by which a stack exports them."""
        some = {"balancerIds": self.balancer_ids, "nextHops": self.next_hops, "nameViews": self.name_views}
        return {
            "vcnId": self.vcn_id,
            "natVmIds": self.nat_vm_ids,
            "lpgIds": self.lpg_ids,
            "vrouterSubnetId": self.vrouter_subnet_id,
            "addressBook": self.address_book,
            "routesToAdd": self.routes_to_add,
            "generations": self.generations,
            **{name: value for name, value in some.items() if value is not None},
        }

    def _availability_domain(self) -> pulumi.Input[str]:
        """The one that the stack file names, if the region has it; without a name, the region's first.

        The region is asked in either case, before anything is made: otherwise a wrong name would fail at the first
        instance, halfway through `pulumi up`.  It is asked directly and not through an Output.  So when the program
        ends, Pulumi waits for the component's registration, and not for each of some ten thousand Outputs in turn.
        It is asked by its token, because `oci.identity` takes a second to import.
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

    def _routes_to_add(self) -> dict[str, Routes]:
        routes: dict[str, Routes] = {
            lpg.customer: {
                "destinations": list(self._plan.neighbours[lpg.customer]),
                "target": "the customer VCN's own LPG, "
                + ("peered with lpgId as its peer_id" if lpg.peer_id is None else "which the POD's LPG peers with"),
                "lpgId": self.lpg_ids[lpg.customer],
            }
            for lpg in self._plan.lpgs
        }
        routes[MANAGEMENT] = {
            "destinations": list(self._plan.neighbours[MANAGEMENT]),
            "target": "the vRouter's floating private IP in the management VCN",
        }
        return routes


def _by_private_ips(scope: Scope, network: Network, domain: pulumi.Input[str]) -> NatVms:
    """The article's POD: aliases are private IPs of the NAT VMs, one VM a side."""
    plan = scope.plan
    hops = NextHops(scope, network)
    network.make_nat_vm_subnets({NAT_VM2: network.route_table(NAT_VM2, hops.to_vrouter(NAT_VM2))})
    vms = NatVms(scope, network.subnets, security_groups(scope, network.vcn), domain)
    for vm in plan.vms:
        vms.make(vm, after=list(vms.instances.values()))
    # What customers send elsewhere in the POD ends at NAT VM1: `planner._not_for_customers`.
    network.make_lpgs({LPGS: network.route_table(LPGS, hops.to_nat_vms(LPGS, vms, {}))})
    network.attach(NAT_VM1, network.route_table(NAT_VM1, hops.to_customers(NAT_VM1)))
    return vms


def _by_routes(scope: Scope, network: Network, domain: pulumi.Input[str]) -> tuple[NatVms, Mapping[Role, Balancer]]:
    """A routed POD: aliases are routes to a role's balancer, or without standbys to its NAT VM."""
    network.make_nat_vm_subnets({})
    groups = security_groups(scope, network.vcn)
    balancers = make_balancers(scope, network.subnets, groups, Replacement(scope))
    vms = NatVms(scope, network.subnets, groups, domain)
    _make_standbys_first(scope.plan, vms, balancers)
    hops = NextHops(scope, network)
    gateways = scope.plan.gateway_roles
    network.make_lpgs(
        {
            gateway.lpgs: network.route_table(gateway.lpgs, hops.to_nat_vms(gateway.lpgs, vms, balancers))
            for gateway in gateways
        }
    )
    inside = {table: hops.to_nat_vms(table, vms, balancers) for table in (*scope.plan.roles, VROUTER)}
    rules: dict[str, pulumi.Input[list[RouteRule]]] = {
        **{gateway: together(inside[gateway], hops.to_customers(gateway)) for gateway in gateways},
        NAT_VM2: together(inside[INNER], hops.to_vrouter(NAT_VM2)),
        VROUTER: inside[VROUTER],
    }
    for table in rules:
        network.attach(table, network.route_table(table, rules[table]))
    return vms, balancers


def _only(vm: NatVmPlan, found: list[str]) -> str:
    """The OCID of a NAT VM's address, which its balancer sends to."""
    if not found:
        address = vm.vnics[0].primary
        raise pulumi.RunError(f"No private IP {address} on {vm.key}'s VNIC at the moment; run `pulumi up` again.")
    return found[0]


def _make_standbys_first(plan: PodPlan, vms: NatVms, balancers: Mapping[Role, Balancer]) -> None:
    """Each VM after all before it: the standby of a role, then its other VM, then the next role's.

    So a new bootstrap meets a standby first, and when it does not come up nothing else is touched.
    """
    before: list[pulumi.Resource] = []
    for role in plan.roles:
        backends = {} if role not in balancers else {one.vm: one for one in balancers[role].plan.backends}
        for vm in sorted(plan.vms_of(role), key=lambda vm: vm.key in backends and not backends[vm.key].is_backup):
            before.append(vms.make(vm, after=list(before)))
            if vm.key in backends:
                before.append(
                    balancers[role].put_behind(backends[vm.key], vms.primary_ip(vm).apply(partial(_only, vm)))
                )


def _plan(args: NatPodArgs) -> PodPlan:
    """Check what the POD is made from, and compute it.  Raises ConfigError with every problem."""
    stack = pulumi.get_stack()
    unknown = [Problem(f"{NAMESPACE}:{path}", None, _PLAIN) for path in _outputs_in(args)]
    if unknown:
        raise ConfigError(f"Pulumi.{stack}.yaml", unknown)
    return plan_pod(any_config.read(as_written(args), stack), stack)


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
