"""Who is behind a port of an address that hides many, by the connection tables of the NAT VMs.

Under `masquerade` a flow's source is translated on both NAT VMs, to the primary address of each and a port of its own:

    customer1/vm2 10.0.0.130:5000 > 198.18.0.2:80                     on NAT VM1: 198.18.0.2:1024   > 198.18.0.130:80
                                                                      on NAT VM2: 198.18.0.130:2048 > 10.0.0.100:80

The server sees 198.18.0.130:2048.  On NAT VM2, the entry whose answers go
there says that the flow came from 198.18.0.2:1024.  On NAT VM1, the entry whose answers go to that address and port
names the member.  `status` reports no single flows, so the tables have to be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nat_pod.names import MemberName
from nat_pod.plan.model import NatVmPlan, PodPlan

_FIELD = re.compile(r"\b(src|dst|sport|dport)=([0-9.]+)")
_PROTOCOL = re.compile(r"^\s*(?:ipv4\s+[0-9]+\s+)?(tcp|udp)\s")
_FIELDS = ["src", "dst", "sport", "dport"] * 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A line of `conntrack -L`: the addresses and ports of its first packet, and those of the answers."""

    protocol: str
    source: tuple[str, int]
    destination: tuple[str, int]
    answered_from: tuple[str, int]
    answered_to: tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Behind:
    """Who may be behind a port, or is.

    vms: the NAT VM that has the address, and the one that translates the members' packets before it.  candidates: all
    members that may be behind the address.  links: by entry that was found on the first VM, the member whose flow it
    is; None where the other VM's table was not given or does not have it.  foreign: entries of the first VM that do not
    come from the other.
    """

    address: str
    port: int
    vms: tuple[NatVmPlan, NatVmPlan]
    candidates: tuple[MemberName, ...]
    links: tuple[tuple[Entry, MemberName | None], ...] = ()
    foreign: tuple[Entry, ...] = ()


def read_entries(text: str) -> tuple[Entry, ...]:
    """The TCP and UDP flows in what `conntrack -L` printed, or in /proc/net/nf_conntrack; other lines are left out."""
    return tuple(_entries(text))


def _entries(text: str) -> Iterator[Entry]:
    for line in text.splitlines():
        protocol, fields = _PROTOCOL.match(line), _FIELD.findall(line)
        if protocol is None or [name for name, _ in fields] != _FIELDS:
            continue
        values = [value for _, value in fields]
        if not all(port.isdecimal() and len(port) <= 5 for port in (*values[2:4], *values[6:8])):
            continue
        ends = [(values[at], int(values[at + 2])) for at in (0, 1, 4, 5)]
        yield Entry(
            protocol=protocol[1], source=ends[0], destination=ends[1], answered_from=ends[2], answered_to=ends[3]
        )


def behind(plan: PodPlan, address: str, port: int, tables: Mapping[str, tuple[Entry, ...]]) -> Behind | None:
    """Who is behind a port of this address; None if nobody is hidden behind it.  tables: entries by NAT VM."""
    if not plan.source_nat.shares_addresses:
        return None
    holder = next((vm for vm in plan.vms if vm.vnics[0].primary == address), None)
    if holder is None:
        return None
    other = next(vm for vm in plan.vms if vm.side is not holder.side)
    # Behind NAT VM2's address are the hosts, whom NAT VM1 knows by their own.
    hidden = [slot for slot in plan.slots if slot.member.side is other.side]
    members = {slot.real: slot.member for slot in hidden}
    links: list[tuple[Entry, MemberName | None]] = []
    foreign = []
    for entry in tables.get(holder.key, ()):
        if entry.answered_to != (address, port):
            continue
        if entry.source[0] != other.vnics[0].primary:
            foreign.append(entry)
            continue
        before = [
            one
            for one in tables.get(other.key, ())
            if (one.protocol, one.answered_to, one.answered_from) == (entry.protocol, entry.source, entry.destination)
        ]
        found = {members.get(one.source[0]) for one in before}
        links.append((entry, found.pop() if len(found) == 1 else None))
    return Behind(
        address=address,
        port=port,
        vms=(holder, other),
        candidates=tuple(slot.member for slot in hidden),
        links=tuple(links),
        foreign=tuple(foreign),
    )
