"""The network as a packet meets it: VCNs, subnets, VNICs, route rules, gateways, machines.

These are plain values without OCIDs.  They are made in two independent ways: from a plan (`expected.py`, what the
engineer asked for) and from a region's state (`lab/observe.py`, what was really registered).  The tracer walks them and
the lab builds them.  So neither derives anything anew, and in both a packet dies where the deployed state kills it.

OCI semantics that live here (sources in docs/region.md, "What the simulated region does, and its sources")
- A VNIC with the source/destination check on sends only from, and receives only for, its own private IPs.
- Routing inside a VCN is implicit; a route rule wins over it only when it is at least as specific as the VCN CIDR.
- A packet that entered by an LPG follows the LPG's own route table if there is one; otherwise it reaches only addresses
  of that VCN.
- A route rule to a private IP delivers to the VNIC that has that address.
- That may be the VNIC of a load balancer, which sends each packet on, as it came, to one of its backends.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from nat_pod.config.services import LAST_PORT
from nat_pod.names import MemberName, Role, Side
from nat_pod.rules.netfilter import Goto, Rule, Ruleset

VM_HOST = "host"
VM_NAT = "nat"
VM_ROUTER = "router"
VM_BALANCER = "balancer"

PROTOCOL_NUMBERS = {"1": "icmp", "6": "tcp", "17": "udp"}
"""Of a security rule (IANA, protocol numbers)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecurityRule:
    """One NSG or security-list rule.

    `peer` is the other end: the source of an ingress rule, the destination of an egress rule.  It is a CIDR or, when
    `peer_is_nsg`, the name of an NSG; then any VNIC in that NSG matches, whatever address it uses.
    """

    direction: str  # INGRESS or EGRESS
    protocol: str  # "all", "1" (ICMP), "6" (TCP) or "17" (UDP), as OCI writes them
    peer: str
    peer_is_nsg: bool = False
    stateless: bool = False
    destination_ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """A route rule.  Exactly one of `lpg` (an LPG's name) and `private_ip` (an address in the VCN) is set."""

    destination: str
    lpg: str | None = None
    private_ip: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Subnet:
    """A subnet with the route rules and security list rules that hold for the VNICs in it."""

    name: str
    vcn: str
    cidr: str
    routes: tuple[Route, ...] = ()
    security: tuple[SecurityRule, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Lpg:
    """A local peering gateway.  `peer` is the LPG at the other end, None while the two are not PEERED.

    `routes` is the LPG's own route table, None when it has none.
    """

    name: str
    vcn: str
    peer: str | None = None
    routes: tuple[Route, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Vcn:
    """A VCN and its CIDRs.

    `zones` and `names` are what its resolver answers from attached private views: zones, and (name, address) in them.
    """

    name: str
    cidrs: tuple[str, ...]
    zones: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Vnic:
    """An attached VNIC.  `addresses` has the primary private IP first, then the secondary ones, sorted."""

    name: str
    vm: str
    subnet: str
    mac: str
    addresses: tuple[str, ...]
    skip_source_dest_check: bool
    nsgs: tuple[str, ...] = ()
    security: tuple[SecurityRule, ...] = ()  # the rules of its NSGs; those of its subnet come in addition


@dataclass(frozen=True, kw_only=True, slots=True)
class Vm:
    """A machine.  `vnics` are names, the primary VNIC first; the default route leaves by it.

    `routes` are further routes in the guest: (destination CIDR, name of the VNIC it leaves by).
    `role` is set for a NAT VM.  `member` names a neighbour's host, whether it is in the address book or not.  The
    vRouter has neither.  For a NAT VM, `rules`, `forwarding` and `strict_rp_filter` say what its guest runs.
    `metadata` is what the instance metadata service serves (user_data and so on), for machines that boot from it.
    """

    name: str
    kind: str
    vnics: tuple[str, ...]
    routes: tuple[tuple[str, str], ...] = ()
    rules: Ruleset | None = None
    forwarding: bool = False
    strict_rp_filter: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    role: Role | None = None
    member: MemberName | None = None

    @property
    def label(self) -> str:
        """Its name in a trace: nat_vm1, nat_vm2, nlb-natVm1, vrouter, the server's short name, customer1/vm1."""
        if self.member is not None:
            return self.member.label
        if self.kind == VM_BALANCER:
            return f"nlb-{self.name}"
        return self.name if self.side is None else self.name.replace(self.side, self.side.label)

    @property
    def boots(self) -> bool:
        """Whether it configures itself from its metadata; any other machine comes configured."""
        return self.kind == VM_NAT or "user_data" in self.metadata

    @property
    def side(self) -> Side | None:
        """Whom a NAT VM faces."""
        return None if self.role is None else self.role.side


class CheckProtocol(StrEnum):
    """How a load balancer asks a backend whether it is healthy."""

    HTTP = "HTTP"
    TCP = "TCP"


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthCheck:
    """How often, and what, a load balancer asks its backends.

    `retries`: how many failures in a row make a healthy backend unhealthy, or successes the reverse.
    `path` and `return_code` are those of HTTP.
    """

    protocol: CheckProtocol
    port: int
    path: str = "/"
    return_code: int = 200
    interval_millis: int = 10_000
    timeout_millis: int = 3_000
    retries: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """A backend of a load balancer: a private IP of the VCN."""

    address: str
    is_backup: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Balancer:
    """A private network load balancer in transparent mode with its listener for all ports: a next hop of route rules.

    Its VNIC is the service's own and skips the source/destination check.  The idle timeouts are in seconds.
    drops_unknown: it drops packets in the middle of a TCP flow that it has forgotten.  OCI does not document whether
    its balancers do.
    """

    name: str
    subnet: str
    address: str
    backends: tuple[Backend, ...]
    check: HealthCheck
    mac: str = ""
    nsgs: tuple[str, ...] = ()
    security: tuple[SecurityRule, ...] = ()  # the rules of its NSGs; the subnet's come on top
    is_fail_open: bool = False
    instant_failover: bool = False
    tcp_reset: bool = True
    prefers_active: bool = False
    tcp_idle: int = 360
    udp_idle: int = 120
    other_idle: int = 120
    drops_unknown: bool = False

    @property
    def vnic(self) -> Vnic:
        """The service's own VNIC."""
        return Vnic(
            name=self.name,
            vm=self.name,
            subnet=self.subnet,
            mac=self.mac,
            addresses=(self.address,),
            skip_source_dest_check=True,
            nsgs=self.nsgs,
            security=self.security,
        )

    @property
    def machine(self) -> Vm:
        """The service as a machine that a packet passes."""
        return Vm(name=self.name, kind=VM_BALANCER, vnics=(self.name,))

    def choose(self, healthy: Container[str], active: str | None = None) -> str | None:
        """The address of the backend that new flows go to; None: to nobody.

        The backups only when no other is healthy.  Who took over stays, where operationally active backends are
        preferred.  healthy: addresses.  active: the one that has new flows now.
        """
        usable = [one for one in self.backends if one.address in healthy]
        if not usable:
            if not self.is_fail_open:
                return None
            usable = list(self.backends)
        candidates = [one.address for one in usable if not one.is_backup] or [one.address for one in usable]
        if self.prefers_active and active in {one.address for one in usable}:
            return active
        return active if active in candidates else next(iter(candidates), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """Everything that a packet can meet, by name."""

    vcns: dict[str, Vcn]
    subnets: dict[str, Subnet]
    lpgs: dict[str, Lpg]
    vnics: dict[str, Vnic]
    vms: dict[str, Vm]
    balancers: dict[str, Balancer] = field(default_factory=dict)

    @property
    def networks(self) -> set[str]:
        """Every network, as a CIDR, that a VCN, a subnet, a route rule, a security rule or a guest's route names."""
        cidrs = {cidr for vcn in self.vcns.values() for cidr in vcn.cidrs}
        cidrs |= {subnet.cidr for subnet in self.subnets.values()}
        tables = [subnet.routes for subnet in self.subnets.values()]
        tables += [lpg.routes for lpg in self.lpgs.values() if lpg.routes is not None]
        cidrs |= {route.destination for routes in tables for route in routes}
        cidrs |= {cidr for vm in self.vms.values() for cidr, _ in vm.routes}
        return cidrs | self.peers

    def rules(self) -> Iterator[Rule]:
        """Every rule of every NAT VM."""
        for vm in self.vms.values():
            for table in () if vm.rules is None else vm.rules.tables:
                for chain in table.chains:
                    yield from chain.rules

    def asked_ports(self, protocol: str) -> set[int]:
        """Of each range of ports that a policy's rules name for a protocol both ends, and the ports beside them."""
        asked = [
            rule.match.destination_port
            for rule in self.rules()
            if isinstance(rule.target, Goto) and rule.match.protocol == protocol
        ]
        ends = {end for ports in asked if ports is not None for end in ports}
        return {port for end in ends for port in (end - 1, end, end + 1) if 0 < port <= LAST_PORT}

    @property
    def peers(self) -> set[str]:
        """The networks that security rules name."""
        lists = {subnet.security for subnet in self.subnets.values()}
        lists |= {vnic.security for vnic in self.vnics.values()}
        lists |= {balancer.security for balancer in self.balancers.values()}
        return {rule.peer for rules in lists for rule in rules if not rule.peer_is_nsg}

    def vcn_of(self, vnic: Vnic) -> Vcn:
        """The VCN a VNIC is in."""
        return self.vcns[self.subnets[vnic.subnet].vcn]
