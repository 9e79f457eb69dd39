"""A POD built by hand: the nat tables of both NAT VMs -> flows, members, slots, and what does not fit the design.

Six steps, each with a module that returns what it found:

    saved_vm      whose rules are whose
    requests      which packets each rule may be for, and what its own NAT VM makes of them
    vnic_pairs    which /27 of NAT VM1 goes with which of NAT VM2
    flows         what the other NAT VM delivers
    members       who calls, who is called, and at which pair of addresses; sources: which source policy
    leftovers     rules of either table that no flow needed: shadowed, dead, unpaired

Pure; `draft.py` makes a stack file of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nat_pod.config.source_nat import SourceNat
from nat_pod.errors import NatPodError
from nat_pod.handbuilt.flows import SavedFlow, find_flows
from nat_pod.handbuilt.leftovers import judge_admitted, judge_rules
from nat_pod.handbuilt.members import Members, find_members
from nat_pod.handbuilt.numeric import Range, dotted, in_pod_space, is_single
from nat_pod.handbuilt.remarks import Remark, in_order
from nat_pod.handbuilt.requests import find_requests
from nat_pod.handbuilt.saved_table import SavedTable
from nat_pod.handbuilt.saved_vm import SavedVm, names_in_comments, read_vms
from nat_pod.handbuilt.sources import find_source_nat
from nat_pod.handbuilt.vnic_list import VnicList
from nat_pod.handbuilt.vnic_pairs import find_pairs
from nat_pod.names import MANAGEMENT, NAT_VM1, Side


@dataclass(frozen=True, kw_only=True, slots=True)
class Handbuilt:
    """A hand-built POD.

    names: what comments call a member (`customer1/vm1`, or `vm1`), by side (natVm1: hosts) and address.
    networks: those for which rules of NAT VM1 test the source, with the rules' comments.
    rules: the number of rules in the nat table of each NAT VM.
    """

    hosts: Members
    servers: Members
    flows: tuple[SavedFlow, ...]
    pairs: tuple[tuple[Range, Range], ...]
    source_nat: SourceNat
    names: Mapping[tuple[Side, int], str]
    networks: Mapping[Range, str]
    rules: Mapping[Side, int]
    remarks: tuple[Remark, ...]


def reconstruct(tables: Mapping[Side, SavedTable], vnics: Mapping[Side, VnicList]) -> Handbuilt:
    """Read a POD out of the nat tables of both NAT VMs.  vnics: the VNICs of those that have a list.

    Raises NatPodError when the tables are too tangled to be followed, are of the same VM, or are exchanged.
    """
    vms = read_vms(tables, vnics)
    requests = find_requests(vms)
    layout = find_pairs(vms, requests)
    flows = find_flows(vms, requests, layout)
    members = find_members(vms, flows.flows, layout)
    source_nat, about_sources = find_source_nat(vms, flows.flows, layout.primary, members)
    remarks = [*requests.remarks, *layout.remarks, *flows.remarks, *members.remarks, *about_sources]
    listed = frozenset(id(remark.at) for remark in remarks if remark.at is not None)
    remarks += [*judge_rules(vms, requests, flows, listed), *judge_admitted(requests, flows)]
    return Handbuilt(
        hosts=members.hosts,
        servers=members.servers,
        flows=flows.flows,
        pairs=layout.pairs,
        source_nat=source_nat,
        names=_names(vms),
        networks=_networks(vms[NAT_VM1]),
        rules={side: sum(rule.text[0] != "#" for _, rule in vm.table.rules()) for side, vm in vms.items()},
        remarks=in_order(remarks),
    )


def _names(vms: Mapping[Side, SavedVm]) -> dict[tuple[Side, int], str]:
    names = names_in_comments(vms)
    for (side, address), name in names.items():
        if side is NAT_VM1 and name.startswith(f"{MANAGEMENT}/"):
            raise NatPodError(
                f"--vm1 has {dotted(address)} as {name}: --vm1 and --vm2 are exchanged; NAT VM1 is the one that "
                "faces the customers"
            )
    return names


def _networks(vm: SavedVm) -> dict[Range, str]:
    networks: dict[Range, str] = {}
    for rule in vm.rules:
        if not is_single(rule.source) and not in_pod_space(rule.source[0]) and rule.source[1] < 2**32 - 1:
            networks.setdefault(rule.source, rule.comment)
    return networks
