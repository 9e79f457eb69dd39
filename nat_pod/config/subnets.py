"""The POD's own range and how it is divided (`cidr`, `subnets`)."""

from __future__ import annotations

from collections.abc import Mapping

from netaddr import IPNetwork

from nat_pod import limits
from nat_pod.config.addressing import Layout, Pair, default_layout, overlap
from nat_pod.config.nat_vm import NatVmConfig, vnic_rule
from nat_pod.config.reader import Reader
from nat_pod.names import NAMESPACE


def claimed_range(mapping: Mapping[str, object]) -> IPNetwork | None:
    """The POD's own range, from a configuration that may be wrong elsewhere; None when no range can be read."""
    return read_pod_cidr(Reader(""), mapping.get("cidr"))


SIZES = "must be a /16 to a /25: a /22 holds 435 slots, a /21 all 696 of a VM.Standard2.24"


def read_pod_cidr(reader: Reader, value: object, sizes: str = SIZES) -> IPNetwork | None:
    """The key `cidr`.  sizes: which sizes it can have, and what they hold."""
    cidr = reader.network("cidr", value, "198.18.0.0/22")
    if cidr is None:
        return None
    if cidr not in IPNetwork(limits.POD_SPACE):
        reader.add("cidr", str(cidr), f"must lie in {limits.POD_SPACE}, e.g. 198.18.0.0/22")
        return None
    if cidr.prefixlen not in limits.POD_PREFIXES:
        reader.add("cidr", str(cidr), sizes)
        return None
    return cidr


def read_layout(reader: Reader, value: object, cidr: IPNetwork | None, nat_vm: NatVmConfig | None) -> Layout | None:
    """The section `subnets`, or the default layout without it."""
    if value is None:
        return None if cidr is None or nat_vm is None else default_layout(cidr, nat_vm.vnic_limit)
    before = len(reader.problems)
    section = reader.section("subnets", value, required=("natVm1", "natVm2", "vrouter"))
    sides: dict[str, list[IPNetwork]] = {}
    for side in ("natVm1", "natVm2"):
        entries = section.get(side, [])
        if not isinstance(entries, list):
            reader.add(f"subnets.{side}", entries, "must be a list of /27 networks, e.g. [198.18.0.0/27]")
            entries = []
        elif side in section and not entries:
            reader.add(f"subnets.{side}", entries, "must list a /27 for the primary VNIC at least")
        sides[side] = []
        for index, entry in enumerate(entries):
            path = f"subnets.{side}[{index}]"
            if entry is None:
                reader.add(path, None, "is empty; write a /27, e.g. 198.18.0.0/27")
            network = reader.network(path, entry, "198.18.0.0/27")
            if network is None:
                continue
            if network.prefixlen != limits.VNIC_SUBNET_PREFIX:
                reader.add(path, str(network), "must be a /27: its 29 usable addresses are what one VNIC can have")
            sides[side].append(network)
    vrouter = reader.network("subnets.vrouter", section.get("vrouter"), "198.18.0.160/28")
    if vrouter is not None and not 24 <= vrouter.prefixlen <= 29:
        reader.add("subnets.vrouter", str(vrouter), "must be a /24 to a /29, e.g. 198.18.0.160/28")
    if len(reader.problems) > before or vrouter is None or cidr is None:
        return None
    if len(sides["natVm1"]) != len(sides["natVm2"]):
        reader.add(
            "subnets",
            None,
            f"natVm1 lists {len(sides['natVm1'])} and natVm2 {len(sides['natVm2'])}; subnets go in pairs",
        )
    if nat_vm is not None and len(sides["natVm1"]) > nat_vm.vnic_limit:
        reader.add("subnets.natVm1", None, vnic_rule(len(sides["natVm1"]), nat_vm))
    placed = [(f"subnets.{side}[{i}]", net) for side, nets in sides.items() for i, net in enumerate(nets)]
    placed.append(("subnets.vrouter", vrouter))
    for index, (path, network) in enumerate(placed):
        if network not in cidr:
            reader.add(path, str(network), f"is outside the POD's range {cidr}")
        for other_path, other in placed[:index]:
            if overlap(network, other):
                reader.add(path, str(network), f"overlaps {NAMESPACE}:{other_path} ({other})")
    if len(reader.problems) > before:
        return None
    pairs = tuple(
        Pair(index + 1, one, two) for index, (one, two) in enumerate(zip(sides["natVm1"], sides["natVm2"], strict=True))
    )
    return Layout(cidr=cidr, pairs=pairs, vrouter=vrouter, pinned=True)
