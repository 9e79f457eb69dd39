"""PodPlan: everything that follows from a POD's configuration, as plain values.

Pure and deterministic: the same configuration gives the same plan, byte for byte, on any machine.  Nothing here
knows Pulumi, OCIDs, files or the kernel.  Things refer to one another by key (`natVm1-vnic-2`, `customer1`,
`198.18.0.3`), never by position, so that adding one never renames another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from netaddr import IPNetwork

from nat_pod.config.delivery import Delivery
from nat_pod.config.model import Capacity
from nat_pod.config.policy import Access
from nat_pod.config.protect import Protect
from nat_pod.config.renames import Renames
from nat_pod.config.room import Room
from nat_pod.config.source_nat import SourceNat
from nat_pod.config.tags import Tags
from nat_pod.names import INNER, LPGS, MANAGEMENT, MemberName, Role, Side
from nat_pod.rules.compiler import CUSTOMER
from nat_pod.rules.netfilter import AboveBound, Ruleset


@dataclass(frozen=True, kw_only=True, slots=True)
class SubnetPlan:
    """A regional subnet; `side` is None for the vRouter's.

    `key` is e.g. `natVm1-vnic-1`, in a routed POD `natVm1`, or `vrouter`.

    `route_table` is the key of its table in `PodPlan.routes`; None: the VCN's default table, which is empty.
    """

    key: str
    side: Side | None
    cidr: str
    route_table: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class VnicPlan:
    """A VNIC of a NAT VM, in the subnet with the key `subnet`.  VNIC 1 is the primary VNIC."""

    key: str
    vm: str
    subnet: str
    index: int
    primary: str
    secondaries: tuple[str, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """All its private IPs, the primary one first."""
        return (self.primary, *self.secondaries)


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundPlan:
    """The bound of a customer's flows: the chain whose ACCEPTs are what it refuses, and how many may be open."""

    customer: str
    chain: str
    most: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NatVmPlan:
    """One NAT VM with its VNICs in attach order, the rules it runs and its metadata.

    `metadata` is complete: user_data, ssh_authorized_keys, nat-pod-vm, nat-pod-rules, and nat-pod-side where that is
    not the VM's name.  `generation` is the hash of the rule document in it.  Its VNICs are in the NSG of its `role`.
    """

    key: str
    role: Role
    fault_domain: str
    vnics: tuple[VnicPlan, ...]
    rules: Ruleset
    generation: str
    metadata: dict[str, str]

    @property
    def side(self) -> Side:
        """Whom it faces."""
        return self.role.side

    @property
    def nsg(self) -> str:
        """The key of the NSG that its VNICs are in: the role's."""
        return self.role

    @property
    def bounds(self) -> list[BoundPlan]:
        """Whose flows it bounds."""
        return [
            BoundPlan(
                customer=chain.name.removeprefix(CUSTOMER),
                chain=chain.name,
                most=tuple(str(bound) for rule in chain.rules if isinstance(bound := rule.match.bound, AboveBound)),
            )
            for chain in self.rules.nat.chains
            if any(rule.match.bound is not None for rule in chain.rules)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendPlan:
    """A NAT VM behind a balancer, by its key and its address; `is_backup` gets nothing while another one is healthy."""

    vm: str
    address: str
    is_backup: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthCheckPlan:
    """How a balancer asks a NAT VM whether it is well: HTTP on `port`, 200 means yes.

    It counts as gone, or as back, after `retries` answers in a row that say so.
    """

    port: int
    path: str
    interval_ms: int
    timeout_ms: int
    retries: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BalancerPlan:
    """The private network load balancer of a role that has a standby: the next hop of every route to that role.

    `address` is its own, in the subnet with the key `subnet`.  The rest is the same in every POD:
    - `preserves_addresses`: source, destination and ports stay as they are, or nothing could be translated behind it.
    - `protocol`, `port`: one listener for all IP protocols and ports, because a next hop gets whatever is routed to it.
    - `policy`: flows are told apart by both addresses and the protocol.  All of them go to the one active NAT VM.
    - `instant_failover`: flows that exist move with the new ones; either NAT VM goes on with any flow.
    - `tcp_reset`: would end just the flows that the move keeps.
    - `prefers_active`: who took over stays active, so that a VM that comes and goes moves the flows once.
    - `fail_open`: with nobody healthy, nothing is sent to a VM that may run old rules, or none.
    """

    key: str
    role: Role
    subnet: str
    address: str
    backends: tuple[BackendPlan, ...]
    check: HealthCheckPlan
    preserves_addresses: bool = True
    protocol: str = "L3IP"
    port: int = 0
    policy: str = "THREE_TUPLE"
    instant_failover: bool = True
    tcp_reset: bool = False
    prefers_active: bool = True
    fail_open: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LpgPlan:
    """The POD's LPG for one customer.  Acceptor when `peer_id` is None, else requestor towards that OCID.

    `route_table` is the key of its table in `PodPlan.routes`.
    `formerly`: for a renamed customer, the name under which the LPG was made; a new LPG would end the peering.
    """

    customer: str
    peer_id: str | None
    route_table: str = LPGS
    formerly: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteRulePlan:
    """A route rule; exactly one of `customer` (to that customer's LPG) and `private_ip` (an address) is set."""

    destination: str
    customer: str | None = None
    private_ip: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SecurityRulePlan:
    """A stateless rule.  `peer` is a CIDR, or the side whose NSG it names when `peer_is_nsg`.

    `key` is stable and unique within its NSG or list.  Stateless, because stateful rules keep every flow in a
    connection table of the VNIC that is sized by shape, a second time beside the guest's (OCI docs, "Security
    Rules", recommends it for such VMs).
    """

    key: str
    direction: str  # INGRESS or EGRESS
    protocol: str  # "all", or "1" for ICMP
    peer: str
    peer_is_nsg: bool = False
    icmp_type: int | None = None
    icmp_code: int | None = None
    description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotPlan:
    """The pair of addresses that a member owns, and the member's real address.

    In a routed POD both are the same: the member's one alias.
    """

    member: MemberName
    real: str
    nat_vm1: str
    nat_vm2: str

    @property
    def called(self) -> str:
        """The address by which the members across the POD call this one."""
        return self.address(self.member.side.other)

    def address(self, side: Side) -> str:
        """The member's address on one side."""
        match side:
            case Side.NAT_VM1:
                return self.nat_vm1
            case Side.NAT_VM2:
                return self.nat_vm2
            case _ as never:
                assert_never(never)


@dataclass(frozen=True, kw_only=True, slots=True)
class PodPlan:
    """The whole POD.

    `cidr` is its whole range, `vcn_cidr` the part of it that is the VCN's: all of it, but in a routed POD a small one.
    `routes` is by route table: natVm1 (to the customers' LPGs), natVm2 (to the vRouter), lpgs (to NAT VM1), and in a
    routed POD vrouter (to NAT VM2); with more customer gateways also natVm1-2 and lpgs-2, and so on.
    `security` has the NSG rules of each role and the security list of the vRouter's subnet.  `gateways` has the role of
    each customer's NAT VM1.  `neighbours` is what others must add: destinations to send to the POD, by customer name
    and for `management`.  `access` says who may open what to whom.  `released` has the pairs that are kept back, by the
    name of the member that had them.  `renames` has who was called otherwise.  `room` is what a routed POD can still
    take.  `zone` is that of `names`, None without.
    """

    delivery: Delivery
    cidr: str
    vcn_cidr: str
    compartment_id: str
    zone: str | None
    protect: Protect
    tags: Tags
    shape: str
    ocpus: int | None
    memory_gbs: int | None
    image_id: str
    availability_domain: str | None
    source_nat: SourceNat
    management_cidrs: tuple[str, ...]
    vrouter_ip: str
    customer_cidrs: dict[str, tuple[str, ...]]
    subnets: tuple[SubnetPlan, ...]
    vms: tuple[NatVmPlan, ...]
    lpgs: tuple[LpgPlan, ...]
    routes: dict[str, tuple[RouteRulePlan, ...]]
    security: dict[str, tuple[SecurityRulePlan, ...]]
    slots: tuple[SlotPlan, ...]
    neighbours: dict[str, tuple[str, ...]]
    capacity: Capacity
    access: Access
    gateways: dict[str, Role]
    released: dict[MemberName, tuple[str, str]]
    renames: Renames
    balancers: tuple[BalancerPlan, ...] = ()
    room: Room | None = None

    def vm(self, key: str) -> NatVmPlan:
        """The NAT VM with this key, e.g. natVm1.  Raises KeyError when there is none."""
        return {vm.key: vm for vm in self.vms}[key]

    @property
    def roles(self) -> tuple[Role, ...]:
        """What its NAT VMs do: the customer gateways, then NAT VM2."""
        return tuple(dict.fromkeys(vm.role for vm in self.vms))

    @property
    def gateway_roles(self) -> tuple[Role, ...]:
        """The roles that face customers, one for each customer gateway."""
        return tuple(role for role in self.roles if role.side is Side.NAT_VM1)

    def role(self, member: MemberName) -> Role:
        """The role whose NAT VMs know a member by its real address.  Raises KeyError for a customer of no POD."""
        return INNER if member.is_server else self.gateways[member.realm]

    def vms_of(self, role: Role) -> tuple[NatVmPlan, ...]:
        """The NAT VMs of one role."""
        return tuple(vm for vm in self.vms if vm.role == role)

    def vms_on(self, side: Side) -> tuple[NatVmPlan, ...]:
        """The NAT VMs of one side."""
        return tuple(vm for vm in self.vms if vm.side is side)

    def balancer_of(self, role: Role) -> BalancerPlan | None:
        """The load balancer before a role's NAT VMs; None where nobody stands by."""
        return next((balancer for balancer in self.balancers if balancer.role == role), None)

    def next_hop(self, role: Role) -> str:
        """The address that a routed POD's routes to a role lead to: its balancer's, or its only NAT VM's."""
        balancer = self.balancer_of(role)
        return self.vms_of(role)[0].vnics[0].primary if balancer is None else balancer.address

    def vnics_on(self, side: Side) -> tuple[VnicPlan, ...]:
        """The VNICs of one side's NAT VMs, in attach order."""
        return tuple(vnic for vm in self.vms_on(side) for vnic in vm.vnics)

    def addresses_on(self, side: Side) -> tuple[str, ...]:
        """All private IPs of one side's NAT VMs, which are all the addresses at which that side is reached."""
        return tuple(address for vnic in self.vnics_on(side) for address in vnic.addresses)

    def primary(self, side: Side) -> str:
        """The primary address of a side, behind which masquerade hides every source."""
        return self.vnics_on(side)[0].primary

    @property
    def way_in(self) -> str | None:
        """The address at which NAT VM1 itself answers the ssh of its jump host, NAT VM2; None where none is left.

        It is the first VNIC's whose primary address is no host's: what NAT VM2 sends to a host's address is translated,
        and ends at the host.  NAT VM2 itself is reached at any of its primary addresses, because only what declared
        servers send there is translated.
        """
        return next(iter(self.ways_in), None)

    @property
    def ways_in(self) -> dict[str, str]:
        """By address: the NAT VM that answers ssh there to NAT VM2; of each customer gateway the first one."""
        hosts = {host.nat_vm1 for host in self.hosts}
        found: dict[Role, tuple[str, str]] = {}
        for vm in self.vms_on(Side.NAT_VM1):
            for vnic in vm.vnics:
                if vnic.primary not in hosts:
                    found.setdefault(vm.role, (vnic.primary, vm.key))
        return dict(found.values())

    @property
    def servers(self) -> tuple[SlotPlan, ...]:
        """The slots of management's members."""
        return tuple(slot for slot in self.slots if slot.member.is_server)

    @property
    def hosts(self) -> tuple[SlotPlan, ...]:
        """The slots of the customers' members."""
        return tuple(slot for slot in self.slots if not slot.member.is_server)

    @property
    def realms(self) -> dict[str, tuple[str, ...]]:
        """The networks of each customer and, last, of management."""
        return {**self.customer_cidrs, MANAGEMENT: self.management_cidrs}

    def slot(self, member: str) -> SlotPlan | None:
        """The slot of a member; None when it has none."""
        return next((slot for slot in self.slots if slot.member == member), None)


def texts(networks: Iterable[IPNetwork]) -> tuple[str, ...]:
    """Networks as a plan has them."""
    return tuple(map(str, networks))
