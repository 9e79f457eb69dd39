"""A NAT VM's VNICs as OCI lists them, for `import`: which addresses it has, in which subnets.

It reads three forms of JSON, all of which an engineer has at hand:
- `curl -H 'Authorization: Bearer Oracle' http://169.254.169.254/opc/v2/vnics/` on the VM: with subnets, primary first;
- `oci compute instance list-vnics`: one private IP per VNIC, without subnets;
- `oci network private-ip list --vnic-id ...`: all private IPs of a VNIC.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from nat_pod.errors import NatPodError, excerpt
from nat_pod.handbuilt.numeric import Range, network, subnet_of

MOST_BYTES = 2_000_000
_MOST_ENTRIES = 5_000  # private IPs of one VM: 24 VNICs have 64 each


@dataclass(frozen=True, kw_only=True, slots=True)
class VnicList:
    """What the lists of one VM say.

    subnets: those of its VNICs, in order; the /27 around the address where the list has no subnet.  primary: the
    primary VNIC's address, None when no list says which it is.  addresses: all private IPs, None when no list has them.
    """

    subnets: tuple[Range, ...]
    primary: int | None
    addresses: frozenset[int] | None


def read_vnics(files: list[tuple[str, bytes]]) -> VnicList:
    """All lists of one VM together.  files: names (for messages) and contents.  Raises NatPodError."""
    subnets: list[Range] = []
    primary = None
    addresses: set[int] = set()
    all_addresses = False
    lists = [(name, _entries(name, data)) for name, data in files]
    if (count := sum(len(entries) for _, entries in lists)) > _MOST_ENTRIES:
        raise NatPodError(f"{', '.join(name for name, _ in lists)}: {count} entries are more than one VM can have")
    # Lists that have the subnets come first: from the others they are only guessed.
    lists.sort(key=lambda named: not (isinstance(named[1][0], dict) and "subnetCidrBlock" in named[1][0]))
    for name, entries in lists:
        for number, entry in enumerate(entries):
            try:
                if "privateIp" in entry:  # instance metadata
                    address = network(entry["privateIp"])[0]
                    subnet = network(entry["subnetCidrBlock"])
                    first = number == 0
                elif "private-ip" in entry:  # list-vnics
                    address = network(entry["private-ip"])[0]
                    subnet = subnet_of(address)
                    first = entry.get("is-primary") is True
                else:  # private-ip list; `is-primary` means primary on its VNIC
                    address = network(entry["ip-address"])[0]
                    subnet = subnet_of(address)
                    first = False
                    all_addresses = True
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise NatPodError(
                    f"{name}: entry {number + 1} is neither a VNIC nor a private IP: {excerpt(str(error))}"
                ) from None
            addresses.add(address)
            primary = address if first else primary
            if not any(known[0] <= address <= known[1] for known in subnets):
                subnets.append(subnet)
    return VnicList(subnets=tuple(subnets), primary=primary, addresses=frozenset(addresses) if all_addresses else None)


def _entries(name: str, data: bytes) -> list[Any]:
    if len(data) > MOST_BYTES:
        raise NatPodError(f"{name}: has more than {MOST_BYTES // 1_000_000} MB; a VM's list of VNICs has less than one")
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        loaded = None
    if isinstance(loaded, dict):
        loaded = loaded.get("data")
    if not isinstance(loaded, list) or not loaded:
        raise NatPodError(
            f"{name}: is not a list of VNICs; give the JSON of http://169.254.169.254/opc/v2/vnics/, of "
            "`oci compute instance list-vnics` or of `oci network private-ip list`"
        )
    return loaded
