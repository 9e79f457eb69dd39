"""RoutedConfig: the stack file of a POD with `delivery: routes`, checked once and frozen.

What a POD of the article's delivery is checked for is checked here too, by the same parsers.  The difference is the
range: the VCN has a small part of it, and the rest are aliases, one a member.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from nat_pod import limits
from nat_pod.config import aliases
from nat_pod.config.addresses import Members
from nat_pod.config.alias_book import names_in, read_aliases
from nat_pod.config.aliases import VcnLayout, default_vcn, merged
from nat_pod.config.check import check_lpgs, check_networks, check_vrouter
from nat_pod.config.delivery import Delivery, read_root
from nat_pod.config.gateways import read_gateways, written_gateways
from nat_pod.config.model import Capacity
from nat_pod.config.name_zone import read_names
from nat_pod.config.nat_vm import NatVmConfig, read_nat_vm
from nat_pod.config.neighbours import (
    CustomerConfig,
    ManagementConfig,
    Neighbours,
    read_customers,
    read_management,
    renames_of,
    written_members,
)
from nat_pod.config.policy import Entry, read_policy
from nat_pod.config.protect import Protect
from nat_pod.config.reader import Reader
from nat_pod.config.subnets import read_pod_cidr
from nat_pod.config.tags import Tags, read_tags
from nat_pod.errors import ConfigError, Problem
from nat_pod.names import INNER, NAT_VM1, SIDES, STACK_NAME, MemberName, Role


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedConfig(Neighbours):
    """A routed POD's configuration, without contradictions.

    `cidr` is the whole range, and `vcn` the part of it that is the VCN's own; all else of it are aliases.  `book` has
    the alias of every member, and of nobody else.  `released` has the aliases that are kept back because somebody may
    still send to them.  `gateways` has the number of every customer's gateway, and
    `gateway_lines` those that are written.  `moves_from` is the stack of the article's delivery that this POD takes the
    place of.
    """

    compartment_id: str
    cidr: IPNetwork
    vcn: IPNetwork
    nat_vm: NatVmConfig
    management: ManagementConfig
    customers: tuple[CustomerConfig, ...]
    standby: bool
    lpg_limit: int
    balancer_limit: int
    moves_from: str | None
    policy: tuple[Entry, ...]
    zone: str | None
    protect: Protect
    tags: Tags
    gateways: dict[str, int]
    gateway_lines: dict[str, int]
    book: dict[MemberName, IPAddress]
    released: dict[MemberName, IPAddress]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], stack: str) -> RoutedConfig:
        """Check a stack's configuration, as `PodConfig.from_mapping` does.  Raises ConfigError with every problem."""
        config, problems, unsettled = read_draft(mapping, stack)
        if problems or unsettled or config is None:
            raise ConfigError(f"Pulumi.{stack}.yaml", problems + unsettled)
        return config

    @property
    def layout(self) -> VcnLayout:
        """The subnets of the VCN."""
        return VcnLayout(self.vcn)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Who translates: a role for each customer gateway that has customers, the first in any case, and NAT VM2."""
        return (*(Role(NAT_VM1, number) for number in sorted({1, *self.gateways.values()})), INNER)

    @property
    def gateway_roles(self) -> tuple[Role, ...]:
        """The roles that face customers, one for each customer gateway."""
        return tuple(role for role in self.roles if role.side is NAT_VM1)

    def role(self, name: MemberName) -> Role:
        """The role whose NAT VMs translate a member."""
        return INNER if name.is_server else self.gateway(name.realm)

    def role_if_any(self, name: MemberName) -> Role | None:
        """The role of a member, also of a former one; None for one whose customer is gone."""
        realm = self.renames.realm(name.realm)
        return INNER if name.is_server else self.gateway(realm) if realm in self.gateways else None

    def gateway(self, customer: str) -> Role:
        """A customer's gateway."""
        return Role(NAT_VM1, self.gateways[customer])

    def customers_of(self, gateway: Role) -> tuple[CustomerConfig, ...]:
        """The customers of a gateway."""
        return tuple(customer for customer in self.customers if self.gateways[customer.name] == gateway.number)

    @property
    def server_ranges(self) -> tuple[IPNetwork, ...]:
        """The blocks in which servers have their aliases, as few networks."""
        return merged(alias for name, alias in self.book.items() if name.is_server)

    @property
    def host_ranges(self) -> tuple[IPNetwork, ...]:
        """The blocks in which hosts have their aliases, as few networks."""
        return merged(alias for name, alias in self.book.items() if not name.is_server)

    def ranges(self, role: Role) -> tuple[IPNetwork, ...]:
        """The blocks of a role, whose NAT VMs translate what is in them, as few networks."""
        return merged(alias for name, alias in self.book.items() if self.role(name) == role)

    @property
    def balancers(self) -> int:
        """How many network load balancers the POD needs: one a role, if there are standbys."""
        return len(self.roles) if self.standby else 0

    @property
    def capacity(self) -> Capacity:
        """What is left of aliases; a released one is not free.  A NAT VM has one VNIC, whatever its shape."""
        slots = aliases.capacity(self.cidr, self.vcn)
        used = len(self.book) + len(self.released)
        return Capacity(slots=slots, used=used, free=slots - used, vnics_used=1, vnics_limit=self.nat_vm.vnic_limit)

    def alias(self, name: MemberName) -> str:
        """The one address of a member: at which customers reach a server, or management a host."""
        return str(self.book[name])


def read_draft(
    mapping: Mapping[str, object], stack: str, earlier: Callable[[], Mapping[str, object] | None] = lambda: None
) -> tuple[RoutedConfig | None, list[Problem], list[Problem]]:
    """Read a configuration whose address book may lag behind its members; see `model.read_draft`."""
    reader = Reader(stack)
    root = read_root(reader, mapping, Delivery.ROUTES)
    compartment_id = reader.ocid("compartmentId", root.get("compartmentId"), ("compartment", "tenancy"))
    cidr = read_pod_cidr(reader, root.get("cidr"), _SIZES)
    vcn = None if cidr is None else _read_vcn(reader, root.get("vcnCidr"), cidr)
    nat_vm = read_nat_vm(reader, root.get("natVm"))
    management = read_management(reader, root.get("management"))
    written = written_members(root)
    customers = read_customers(reader, root.get("customers"), written, gateways=True)
    policy = read_policy(reader, root.get("policy"), written, customers or ())
    standby = reader.boolean("standby", root.get("standby", True))
    lpg_limit = reader.integer("lpgLimit", root.get("lpgLimit", limits.LPGS_PER_VCN), 1, limits.LPGS_PER_VCN_RAISED)
    balancer_limit = reader.integer("balancerLimit", root.get("balancerLimit", limits.BALANCERS_PER_REGION), 0, 1000)
    moves_from = reader.text("movesFrom", root.get("movesFrom") or None, _MOVES_FROM_RULE, STACK_NAME)
    zone = read_names(reader, root.get("names"))
    protect = reader.choice("protect", root.get("protect", Protect.NOTHING), Protect)
    tags = read_tags(reader, root.get("tags"))
    check_networks(reader, cidr, management, customers, gateways=True)
    if vcn is not None and management is not None:
        check_vrouter(reader, management.vrouter, VcnLayout(vcn).vrouter)
    if lpg_limit is not None:
        check_lpgs(reader, root.get("customers"), lpg_limit)
    book: dict[MemberName, IPAddress] = {}
    released: dict[MemberName, IPAddress] = {}
    gateways: dict[str, int] = {}
    if cidr is not None and vcn is not None:
        renames = renames_of(management, customers or ())
        changes = Members.read(root, renames, earlier)
        listed = {renames.realm(name.realm) for name in names_in(root.get("addresses"))}
        most = VcnLayout(vcn).gateways
        gateways = read_gateways(reader, root.get("gateways"), customers or (), listed, most)
        book, released = read_aliases(reader, root.get("addresses"), cidr, vcn, changes, gateways)
    if (
        reader.problems
        or compartment_id is None
        or cidr is None
        or vcn is None
        or nat_vm is None
        or management is None
        or customers is None
        or standby is None
        or lpg_limit is None
        or balancer_limit is None
        or protect is None
        or tags is None
    ):
        return None, reader.problems, reader.unsettled
    config = RoutedConfig(
        compartment_id=compartment_id,
        cidr=cidr,
        vcn=vcn,
        nat_vm=nat_vm,
        management=management,
        customers=customers,
        standby=standby,
        lpg_limit=lpg_limit,
        balancer_limit=balancer_limit,
        moves_from=moves_from,
        policy=policy,
        zone=zone,
        protect=protect,
        tags=tags,
        gateways=gateways,
        gateway_lines=written_gateways(root.get("gateways")),
        book=book,
        released=released,
    )
    if config.balancers > balancer_limit:
        reader.add("balancerLimit", str(balancer_limit), _too_few_balancers(config.balancers))
        return None, reader.problems, reader.unsettled
    return config, [], reader.unsettled


_MOVES_FROM_RULE = "must be the name of the stack that this POD takes the place of, e.g. prod for Pulumi.prod.yaml"
_SIZES = "must be a /16 to a /25: a /22 holds 960 aliases, a /21 1,984"


def _read_vcn(reader: Reader, value: object, cidr: IPNetwork) -> IPNetwork | None:
    """The key `vcnCidr`; without it the last /26 of the POD's range.  "" is Pulumi.yaml's "not pinned"."""
    default = default_vcn(cidr)
    if value is None or value == "":
        return default
    vcn = reader.network("vcnCidr", value, str(default))
    if vcn is None:
        return None
    if vcn not in cidr:
        reader.add("vcnCidr", str(vcn), f"is outside the POD's range {cidr}, e.g. {default}")
        return None
    if vcn.prefixlen not in limits.VCN_OF_ROUTED_POD_PREFIXES:
        reader.add(
            "vcnCidr",
            str(vcn),
            f"must be a /24 to a /27 with a /29 for each gateway, NAT VM2 and the vRouter, e.g. {default}",
        )
        return None
    if vcn == cidr:
        reader.add("vcnCidr", str(vcn), "is the whole range of the POD, and leaves no alias")
        return None
    return vcn


def _too_few_balancers(needed: int) -> str:
    whom = "one for each side" if needed == len(SIDES) else "one for each gateway and one for NAT VM2"
    return f"the standby takes {needed} network load balancers, {whom}; {MORE_BALANCERS}"


MORE_BALANCERS = (
    "ask Oracle to raise the region's limit of them (OCI Console: Limits, Quotas and Usage, service Network Load "
    "Balancer) and write the new one here, or write standby: false"
)
"""What to do about a region that has too few."""
