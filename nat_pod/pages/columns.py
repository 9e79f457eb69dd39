"""The picture's measures in pixels: where the columns are, and how high a row of each kind is."""

from __future__ import annotations

from typing import assert_never

from nat_pod.names import MemberName, Side

WIDTH = 1280
# Left edges of the columns, and widths.  A POD's LPGs lie inside its border, a customer's outside its own.
CUSTOMERS, CUSTOMER_WIDTH = 24, 226
POD, POD_END, LPG_WIDTH = 312, 984, 38
VM1, VM2, VM_WIDTH = 410, 682, 208
VROUTER, VROUTER_WIDTH, VROUTER_HEIGHT = 934, 132, 66
MANAGEMENT, SERVERS, SERVER_WIDTH = 1016, 1092, 156
END = 1256
TOP, MARGIN = 84.0, 24.0
HEADER, HOST, MORE, BOX_GAP = 32, 22, 20, 10
VM_HEADER, VNIC, ELLIPSIS, SERVER, CAPTION = 46, 42, 20, 42, 17
APART = 4  # request and reply, from the middle

_HOST_X, _SERVER_X = CUSTOMERS + CUSTOMER_WIDTH // 2, SERVERS + SERVER_WIDTH // 2


def middle(machine: Side | MemberName) -> int:
    """The middle of the column in which a machine stands."""
    match machine:
        case Side.NAT_VM1:
            return VM1 + VM_WIDTH // 2
        case Side.NAT_VM2:
            return VM2 + VM_WIDTH // 2
        case MemberName():
            return _SERVER_X if machine.is_server else _HOST_X
        case _ as never:
            assert_never(never)
