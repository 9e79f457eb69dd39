"""Names that more than one stage says: the config namespace, realms, sides, machines.

The network engineer meets them in the stack file, in a trace and in OCI's console; code writes each one once, here.
"""

from __future__ import annotations

NAMESPACE = "nat-pod"
"""Namespace of the stack file's keys: `nat-pod:cidr`."""

MANAGEMENT = "management"
"""The realm of the servers; every other realm is a customer."""

STRANGER = "stranger"
"""Name of the host in each neighbour's network that is in no address book, e.g. customer1/stranger."""

POD = "pod"
"""The NAT VCN, among the networks of a trace."""

NAT_VM1 = "natVm1"
NAT_VM2 = "natVm2"
SIDES = (NAT_VM1, NAT_VM2)
VROUTER = "vrouter"
LPGS = "lpgs"
ROUTE_TABLES = (*SIDES, LPGS)
"""One for each side's subnets, and one that all LPGs have."""

ANYWHERE = "0.0.0.0/0"
SSH = 22
