"""What a NatPod is made from, typed: the stack file's own keys, from which the component package gets its schema.

The names are the stack file's; in the SDKs that Pulumi generates they have each language's own spelling.  Every value
is plain (not an Output), and the schema says so too, because the POD's addresses, rules and metadata are computed
before anything is deployed.  These types only describe; the package `config` checks.

No `from __future__ import annotations` here and in component.py: Pulumi reads the annotations themselves.
"""

from collections.abc import Mapping
from typing import NotRequired, TypedDict


class Shape(TypedDict):
    """The shape of a VM; a stack file may write the name alone where it is not a flex shape."""

    shape: str
    """Name of the shape, e.g. VM.Standard2.24 or VM.Optimized3.Flex."""

    ocpus: NotRequired[int]
    """Number of OCPUs, for a flex shape only."""

    memoryGbs: NotRequired[int]
    """Memory in GB, for a flex shape only."""


class NatVm(TypedDict):
    """What both NAT VMs are made of."""

    shape: Shape
    """The shape; it decides how many VNICs a NAT VM can have."""

    imageId: str
    """OCID of an Oracle Linux 8/9 or Ubuntu 22.04/24.04 platform image."""

    sshPublicKey: str
    """One line of an authorized_keys file."""

    availabilityDomain: NotRequired[str]
    """Name of the availability domain; the region's first by default."""


class Management(TypedDict):
    """The management network."""

    cidr: list[str]
    """Its ranges, all that are behind the vRouter, e.g. 10.0.0.0/16; customers' ranges may lie inside.  A stack file
    may write one alone, without a list."""

    vrouter: str
    """The vRouter's floating IP in this POD: an address in the POD's subnet `vrouter`."""

    servers: dict[str, str]
    """Servers by name: their addresses."""

    serversFormerly: NotRequired[dict[str, str]]
    """Former names of renamed servers by their present ones; they keep their slots."""


class Customer(TypedDict):
    """A customer's network."""

    cidr: list[str]
    """Its ranges, its VCN's and those behind it, e.g. 10.0.0.0/24; customers may overlap each other with delivery
    routes only.  A stack file may write one alone, without a list."""

    hosts: dict[str, str]
    """Hosts by name: their addresses."""

    servers: NotRequired[list[str]]
    """Names of the management servers that its hosts may reach; all by default."""

    peerId: NotRequired[str]
    """OCID of an LPG that this POD requests the peering with; by default the customer's side requests it."""

    formerly: NotRequired[str]
    """Its name before it was renamed; keeps its LPG and its slots."""

    hostsFormerly: NotRequired[dict[str, str]]
    """Former names of renamed hosts by their present ones; they keep their slots."""

    gateway: NotRequired[str]
    """With delivery routes: own, for a customer gateway that it shares with nobody."""


class Layout(TypedDict):
    """The POD's subnets."""

    natVm1: list[str]
    """The /27 of each VNIC of NAT VM1; the n-th is a pair with the n-th of NAT VM2."""

    natVm2: list[str]
    """The /27 of each VNIC of NAT VM2."""

    vrouter: str
    """The subnet of the vRouter's floating IP, e.g. 198.18.0.160/28."""


class PolicyEntry(TypedDict):
    """What one end may open to the other: management or a server, and a customer or a host."""

    from_: str
    """Who opens: customer1, customer1/vm1, management or management/mgmt."""

    to: str
    """Who is called, in the same form as `from`."""

    allow: list[str]
    """What passes: all, icmp, tcp, udp, tcp/22, udp/5000-5010; nothing else does."""


class Names(TypedDict):
    """Names of the POD's members in OCI's private DNS."""

    zone: str
    """The zone that they are in, e.g. pod1.example.internal."""


class Tags(TypedDict):
    """Tags for every resource of the POD that can have tags."""

    freeform: NotRequired[dict[str, str]]
    """Free-form tags by key."""

    defined: NotRequired[dict[str, str]]
    """Defined tags by namespace and key: Operations.CostCenter."""


class Slot(TypedDict):
    """The addresses that a member owns: natVm1 and natVm2, or with delivery routes the one address."""

    natVm1: NotRequired[str]
    """Its address on NAT VM1: at which customers reach a server."""

    natVm2: NotRequired[str]
    """Its address on NAT VM2: at which management reaches a host."""

    address: NotRequired[str]
    """Its alias: at which customers reach a server, or management a host."""

    released: NotRequired[bool]
    """The member is gone; its slot is kept back because somebody may still send to it."""


class NatPodArgs(TypedDict):
    """What a NatPod is made from: the keys of a stack file."""

    compartmentId: str
    """OCID of the compartment that the POD is made in."""

    cidr: str
    """This POD's own range from 198.18.0.0/15, e.g. 198.18.0.0/22 (435 slots) or a /21 (696 slots)."""

    natVm: NatVm
    """What both NAT VMs are made of."""

    management: Management
    """The management network."""

    customers: dict[str, Customer]
    """The customers by name."""

    delivery: NotRequired[str]
    """privateIps (the default: an alias is a private IP of a NAT VM) or routes (it is a route; see standby)."""

    sourceNat: NotRequired[str]
    """masquerade (the default: all customers arrive at management as one address) or static (each keeps its own)."""

    lpgLimit: NotRequired[int]
    """Local peering gateways a VCN may have: 10 by default, 20 if Oracle raised your limit."""

    subnets: NotRequired[Layout]
    """Pins the layout; without it the range is laid out by nat-pod."""

    standby: NotRequired[bool]
    """With delivery routes: whether each NAT VM has a standby behind a network load balancer; it has by default."""

    vcnCidr: NotRequired[str]
    """With delivery routes: the part of cidr that is the VCN's own, a /24 to a /27; its last /26 by default."""

    balancerLimit: NotRequired[int]
    """With delivery routes: network load balancers that the region may have: 3 by default."""

    movesFrom: NotRequired[str]
    """The stack that this POD replaces, for as long as both exist; nothing deployed depends on it."""

    gateways: NotRequired[dict[str, int]]
    """With delivery routes: the gateway number of each customer that is not in the first gateway."""

    policy: NotRequired[list[PolicyEntry]]
    """What may be opened between the ends that an entry names.  Between all others everything may."""

    names: NotRequired[Names]
    """Private views of OCI DNS with names for the members, for VCNs to attach; none by default."""

    protect: NotRequired[str]
    """What the engine refuses to delete: nothing (the default), network (VCN, LPGs, balancers) or all (NAT VMs too)."""

    tags: NotRequired[Tags]
    """Tags of every resource; none by default."""

    addresses: NotRequired[dict[str, Slot]]
    """The address book by member (management/mgmt, customer1/vm1), as `python -m nat_pod allocate STACK` writes it."""


def as_written(args: NatPodArgs) -> dict[str, object]:
    """The arguments with the stack file's own keys: a key `from` cannot be a name in Python, and is `from_` here."""
    policy = args.get("policy")
    if not isinstance(policy, list):
        return {**args}
    entries = [
        {key.removesuffix("_"): value for key, value in entry.items()} if isinstance(entry, Mapping) else entry
        for entry in policy
    ]
    return {**args, "policy": entries}
