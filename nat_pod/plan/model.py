"""PodPlan: everything that follows from a POD's configuration, as plain values.

Pure and deterministic: the same configuration gives the same plan, byte for byte, on any machine.  Nothing here
knows Pulumi, OCIDs, files or the kernel.  Things refer to one another by key (`natVm1-vnic-2`, `customer1`,
`198.18.0.3`), never by position, so that adding one never renames another.
"""

from __future__ import annotations

from dataclasses import dataclass

from nat_pod.config.model import Capacity, SourceNat
from nat_pod.names import SIDES
from nat_pod.rules.netfilter import Ruleset


@dataclass(frozen=True, kw_only=True, slots=True)
class SubnetPlan:
    """A regional subnet.  `key` is `natVm1-vnic-1` (the subnet of that VNIC) or `vrouter`; `side` owns it."""

    key: str
    side: str  # natVm1, natVm2 or vrouter
    cidr: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VnicPlan:
    """A VNIC of a NAT VM; it sits in the subnet with the same key.  Vnic 1 is the primary VNIC."""

    key: str
    vm: str
    index: int
    primary: str
    secondaries: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NatVmPlan:
    """One NAT VM with its VNICs in attach order, the rules it runs and its metadata.

    `metadata` is complete: user_data, ssh_authorized_keys, nat-pod-vm, nat-pod-rules.  `generation` is the hash of
    the rule document in it.
    """

    key: str
    fault_domain: str
    vnics: tuple[VnicPlan, ...]
    rules: Ruleset
    generation: str
    metadata: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class LpgPlan:
    """The POD's LPG for one customer.  Acceptor when `peer_id` is None, else requestor towards that OCID.

    `formerly`: the name under which it was made, when the customer was renamed; a new LPG would end the peering.
    """

    customer: str
    peer_id: str | None
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
    """The pair of addresses that a member owns, and the member's real address."""

    member: str  # management/mgmt or customer1/vm1
    real: str
    nat_vm1: str
    nat_vm2: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PodPlan:
    """The whole POD.

    `routes` is by side: natVm1 (to the customers' LPGs) and natVm2 (to the vRouter).  `security` has the NSG rules
    of natVm1 and natVm2 and the security list of the vRouter's subnet.  `neighbours` is what others must add:
    destinations to send to the POD, by customer name and for `management`.  `may_reach` is by customer: the servers
    (members) that its hosts may open flows to; every server may open flows to every host.  `released` has the pairs
    that are kept back, by the name of the member that had them.
    """

    cidr: str
    compartment_id: str
    shape: str
    ocpus: int | None
    memory_gbs: int | None
    image_id: str
    availability_domain: str | None
    source_nat: SourceNat
    management_cidr: str
    vrouter_ip: str
    customer_cidrs: dict[str, str]
    subnets: tuple[SubnetPlan, ...]
    vms: tuple[NatVmPlan, NatVmPlan]
    lpgs: tuple[LpgPlan, ...]
    routes: dict[str, tuple[RouteRulePlan, ...]]
    security: dict[str, tuple[SecurityRulePlan, ...]]
    slots: tuple[SlotPlan, ...]
    neighbours: dict[str, tuple[str, ...]]
    capacity: Capacity
    may_reach: dict[str, tuple[str, ...]]
    released: dict[str, tuple[str, str]]

    def vm(self, key: str) -> NatVmPlan:
        """The NAT VM called natVm1 or natVm2."""
        return self.vms[SIDES.index(key)]
