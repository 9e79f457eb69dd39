"""Limits of the platform, each with the document it comes from.

"OCI docs" are Oracle's public documentation pages, "provider" is the OCI Terraform provider that pulumi-oci wraps.
A reviewer can check a named constant; nobody can check a bare number.
"""

from __future__ import annotations

POD_SPACE = "198.18.0.0/15"
"""RFC 2544 benchmarking space, not routed on the Internet; the article's pool of unique addresses (section 1)."""

VNIC_SUBNET_PREFIX = 27
"""One /27 a VNIC (article, section 3): 32 addresses, 29 of them usable."""

RESERVED_LOW = 2
RESERVED_HIGH = 1
"""OCI keeps the first two addresses and the last one of each subnet (OCI docs, "VCNs and Subnets")."""

SLOTS_PER_PAIR: int = 2 ** (32 - VNIC_SUBNET_PREFIX) - RESERVED_LOW - RESERVED_HIGH
"""29: one primary and 28 secondary private IPs on each of the two VNICs of a pair."""

SECONDARY_IPS_PER_VNIC = 64
"""OCI docs, "Private IP Addresses" (31 when the article was written); a /27 ends at 28."""

POD_PREFIXES = range(16, 26)
"""A POD's range is a VCN's, and holds a VNIC pair and the vRouter's subnet: a /16 to a /25."""

VCN_PREFIXES = range(16, 31)
"""A VCN's CIDR is a /16 to a /30 (OCI API, CreateVcn)."""

NETWORK_PREFIXES = range(8, 33)
"""A neighbour's network: a VCN's CIDR, or one behind it.  To OCI the latter is a destination of route rules and a peer
of security rules, which may have any size; 10.0.0.0/8 is the largest private range (RFC 1918)."""

VCN_OF_ROUTED_POD_PREFIXES = range(24, 28)
"""A routed POD's VCN has a /29 for each customer gateway, NAT VM2 and the vRouter: a /27 has room for two gateways, a
/26 for 6, a /25 for 14 and a /24 for 30."""

LPGS_PER_VCN = 10
LPGS_PER_VCN_RAISED = 20
"""OCI docs, "Local VCN Peering"; 20 after a limit increase (A-Team, "ISV architecture: operations")."""

BALANCERS_PER_REGION = 3
"""Network load balancers of a region, unless Oracle raised the limit (OCI docs, "Service Limits")."""

ROUTE_RULES_PER_TABLE = 200
"""OCI docs, "VCN Route Tables"."""

NSG_RULES = 120
"""Ingress and egress together (OCI docs, "Security Rules")."""

METADATA_BYTES = 32_000
"""metadata and extendedMetadata together (OCI API, LaunchInstanceDetails)."""

METADATA_OVERHEAD_BYTES = 1_000
"""Margin for keys, quotes and what OCI adds: whether the 32,000 bytes count those is not documented."""

FREEFORM_TAGS = 10
DEFINED_TAGS = 64
"""Of a resource (OCI docs, "Tags and Tag Namespace Concepts")."""

CONSOLE_BYTES = 1 << 20
"""Bytes that a capture of a serial console holds at most: the most recent ones (OCI API, CaptureConsoleHistory: "up to
a megabyte")."""

FLOWS_PER_ADDRESS = 64_512
"""Ports 1024-65535: what one source address can have open at a time towards one server address and port."""

CONNECTIONS_PER_GB = 131_072
CONNECTIONS = 1_048_576
"""Entries of a NAT VM's connection table: per GB of memory (one for 8 kB), and at most (agent, `size_conntrack`)."""

BOUND_SHARE = 4
"""A customer may have one fourth of a NAT VM's connection table open, so two at their bound leave half of it."""

BOUND_SAMPLE = 64
"""One new flow in so many is counted (docs/decisions/connection-bound.md has the figures)."""

BOUND_SECONDS = 60
"""Seconds for which a customer's new flows are refused after a sample was above its bound.  A customer that opens flows
more slowly than samples see gets past its bound by at most BOUND_SAMPLE flows in this time."""

FLOWS_BEFORE_DROPS = 39_000
"""Where new flows begin to be lost: near the end the kernel looks for a free port only so often (bench/results.md)."""

CHAIN_MEMBER_NAME = 19
"""Longest customer name: it is part of a chain name of 28 characters, after `NATPOD-C-`."""

MEMBER_NAME = 63
"""Longest name of a host or server: a DNS label (RFC 1035).  It also stands in the comment of a rule."""

# OCI docs, "Compute Shapes".  VM.Standard2 is fixed; a flex shape gives VNICs by OCPU, two at the least.
_FIXED_SHAPES = {
    "VM.Standard2.1": 2,
    "VM.Standard2.2": 2,
    "VM.Standard2.4": 4,
    "VM.Standard2.8": 8,
    "VM.Standard2.16": 16,
    "VM.Standard2.24": 24,
}
_FLEX_SHAPES = {  # name: (most OCPUs, VNICs per OCPU)
    "VM.Standard3.Flex": (32, 1),
    "VM.Standard.E3.Flex": (64, 1),
    "VM.Standard.E4.Flex": (64, 1),
    "VM.Standard.E5.Flex": (126, 1),
    "VM.Standard.E6.Flex": (126, 1),
    "VM.Standard.A1.Flex": (76, 1),
    "VM.Standard.A2.Flex": (78, 1),
    "VM.Standard.A4.Flex": (45, 1),
    "VM.Optimized3.Flex": (18, 2),
}
MAX_VNICS = 24


def is_flex(shape: str) -> bool:
    """Whether a shape needs an OCPU count and an amount of memory."""
    return shape in _FLEX_SHAPES


def known_shapes() -> tuple[str, ...]:
    """All shapes whose VNIC limit is known, sorted."""
    return tuple(sorted([*_FIXED_SHAPES, *_FLEX_SHAPES]))


def fixed_shapes() -> tuple[str, ...]:
    """The shapes that have no OCPU count to choose, sorted."""
    return tuple(sorted(_FIXED_SHAPES))


def max_ocpus(shape: str) -> int:
    """The most OCPUs a flex shape takes."""
    return _FLEX_SHAPES[shape][0]


def connections(memory_gbs: int | None) -> int:
    """Entries of a NAT VM's connection table.  memory_gbs: None for a fixed shape, the smallest of which has 15 GB."""
    return CONNECTIONS if memory_gbs is None else min(CONNECTIONS, CONNECTIONS_PER_GB * memory_gbs)


def vnic_limit(shape: str, ocpus: int | None) -> int:
    """How many VNICs a VM of this shape can have (Linux).

    Raises KeyError for a shape that is not in `known_shapes()`.
    """
    if shape in _FIXED_SHAPES:
        return _FIXED_SHAPES[shape]
    per_ocpu = _FLEX_SHAPES[shape][1]
    return min(MAX_VNICS, max(2, per_ocpu * (ocpus or 1)))
