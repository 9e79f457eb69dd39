"""Names that more than one stage says: the config namespace, realms, sides, members.

The network engineer meets them in the stack file, in a trace and in OCI's console; code writes each one once, here.

A NAT VM's name has three forms, and one rule when which:

- `NAT VM1` in sentences: messages, documents, docstrings;
- `natVm1` where it is a key that people type or see: the stack file, JSON, names of resources and of stack outputs;
- `nat_vm1` as the label of a machine in a trace, and as a Python identifier.
"""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

NAMESPACE = "nat-pod"
"""Namespace of the stack file's keys: `nat-pod:cidr`."""

MANAGEMENT = "management"
"""The realm of the servers; every other realm is a customer."""

STRANGER = "stranger"
"""Name of the host in each neighbour's network that is in no address book, e.g. customer1/stranger."""

POD = "pod"
"""The NAT VCN, among the networks of a trace."""


class Side(StrEnum):
    """The two sides of a POD: NAT VM1 faces the customers, NAT VM2 management.

    A side is a role: it has subnets, an NSG, a route table and rules, and the NAT VMs that play it.
    """

    NAT_VM1 = "natVm1"
    NAT_VM2 = "natVm2"

    @property
    def prose(self) -> str:
        """Its NAT VM in a sentence: `NAT VM1`."""
        match self:
            case Side.NAT_VM1:
                return "NAT VM1"
            case Side.NAT_VM2:
                return "NAT VM2"
            case _ as never:
                assert_never(never)

    @property
    def label(self) -> str:
        """Its NAT VM in a trace: `nat_vm1`."""
        return self.name.lower()

    @property
    def other(self) -> Side:
        """The side across the POD."""
        match self:
            case Side.NAT_VM1:
                return Side.NAT_VM2
            case Side.NAT_VM2:
                return Side.NAT_VM1
            case _ as never:
                assert_never(never)


NAT_VM1 = Side.NAT_VM1
NAT_VM2 = Side.NAT_VM2
SIDES = tuple(Side)

VROUTER = "vrouter"
LPGS = "lpgs"
ROUTE_TABLES = (*SIDES, LPGS)
"""One for each side's subnets, and one that all LPGs have."""

ANYWHERE = "0.0.0.0/0"
SSH = 22
