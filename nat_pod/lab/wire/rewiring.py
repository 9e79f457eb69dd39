"""From one network to another while the lab runs: what goes, what comes, and what stays as it is.

Pure: the holder does it (`Operations.apply`).  A machine that stays keeps its namespace, its interfaces, its processes
and its connection table; a VCN that stays keeps those of its VNICs and loads its rules in one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass

from nat_pod.lab.wire.fabric import Fabric, Peering, lay_cables
from nat_pod.lab.wire.netns import LabError
from nat_pod.lab.wire.router import backend_link, balancer_link
from nat_pod.lab.wire.space import BalancerLinks, Port
from nat_pod.trace.topology import VM_ROUTER, Topology


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewiring:
    """The steps, in the order of the fields.  Machines, VCNs and load balancers by name.

    gone: links to delete, as (VCN, link): their other ends go with them, of a peering one of the two.
    new_vms, new_vcns: those to make; one that was replaced is in gone_vms as well.
    batches: `ip -batch` text for each VCN, whole for a new one, otherwise what differs.
    vm_batches: the same for machines that stay and have other routes, as the vRouter may.
    balancer_batches: the same for each load balancer.
    """

    gone_vms: tuple[str, ...]
    gone: tuple[tuple[str, str], ...]
    gone_vcns: tuple[str, ...]
    gone_balancers: tuple[str, ...]
    new_vcns: tuple[str, ...]
    new_vms: tuple[str, ...]
    new_balancers: tuple[str, ...]
    batches: dict[str, str]
    vm_batches: dict[str, str]
    balancer_batches: dict[str, str]
    fabric: Fabric


def rewire(before: Topology, standing: Fabric, after: Topology) -> Rewiring:
    """What turns `standing`, the fabric of `before`, into that of `after`.

    Raises LabError where that cannot be done in place.
    """
    fabric = lay_cables(after, standing)
    # The process of one that stays takes whatever is new about it.
    balancers = {
        name
        for name, links in fabric.balancer_links.items()
        if name in standing.balancer_links and standing.balancer_links[name].number == links.number
    }
    ends: list[Port | Peering] = [*standing.ports.values(), *standing.peerings.values()]
    new_ends: list[Port | Peering] = [*fabric.ports.values(), *fabric.peerings.values()]
    kept = {(end.vcn, end.link) for end in new_ends}
    gone = {(end.vcn, end.link) for end in ends} - kept
    lost = {link for name, links in standing.balancer_links.items() if name not in balancers for link in _links(links)}
    stays = {name for name in before.vms.keys() & after.vms.keys() if _stays(name, before, after, standing, fabric)}
    replaced = (before.vms.keys() & after.vms.keys()) - stays
    for name in replaced:
        if after.vms[name].kind == VM_ROUTER:
            raise LabError(f"{name} would have other VNICs or addresses, which a running lab cannot give it")
    return Rewiring(
        gone_vms=tuple(name for name in before.vms if name not in stays),
        gone=tuple(sorted(gone - {(one.vcn, one.link) for one in standing.peerings.values() if one.lpg > one.peer})),
        gone_vcns=tuple(name for name in before.vcns if name not in after.vcns),
        new_vcns=tuple(name for name in after.vcns if name not in before.vcns),
        new_vms=tuple(name for name in after.vms if name not in stays),
        gone_balancers=tuple(name for name in before.balancers if name not in balancers),
        new_balancers=tuple(name for name in after.balancers if name not in balancers),
        batches={
            name: space.batch
            if name not in standing.vcns
            else _difference(standing.vcns[name].batch, space.batch, gone | lost, name)
            for name, space in fabric.vcns.items()
        },
        vm_batches={
            name: _difference(standing.vms[name].batch, fabric.vms[name].batch, set(), name)
            for name in stays
            if standing.vms[name].batch != fabric.vms[name].batch
        },
        balancer_batches={
            name: _difference(standing.balancers[name].batch, space.batch, set(), name)
            if name in balancers
            else space.batch
            for name, space in fabric.balancers.items()
        },
        fabric=fabric,
    )


def _links(of: BalancerLinks) -> list[tuple[str, str]]:
    """The links of a load balancer in its VCN, which go with its namespace."""
    names = [balancer_link(of.number), *(backend_link(of.number, at) for at in range(len(of.backends)))]
    return [(of.vcn, name) for name in names]


def _stays(name: str, before: Topology, after: Topology, standing: Fabric, fabric: Fabric) -> bool:
    """Whether a machine lives on: one that boots as long as its primary VNIC does, another as long as nothing changes.

    The vRouter may get other routes.
    """
    old, new = before.vms[name], after.vms[name]
    if old.kind != new.kind or standing.ports[old.vnics[0]] != fabric.ports[new.vnics[0]]:
        return False
    if new.boots:
        return old.boots
    if [standing.ports[vnic] for vnic in old.vnics] != [fabric.ports[vnic] for vnic in new.vnics]:
        return False
    return standing.vms[name] == fabric.vms[name] or (
        new.kind == VM_ROUTER
        and [before.vnics[vnic].addresses for vnic in old.vnics] == [after.vnics[vnic].addresses for vnic in new.vnics]
    )


def _difference(old: str, new: str, gone: set[tuple[str, str]], vcn: str) -> str:
    """The lines that undo what is only in `old`, then those that are only in `new`."""
    before, after = old.splitlines(), new.splitlines()
    there, wanted = set(before), set(after)
    undone = [_undo(line) for line in reversed(before) if line not in wanted and not _went(line, gone, vcn)]
    return "".join(f"{line}\n" for line in (*filter(None, undone), *(line for line in after if line not in there)))


def _went(line: str, gone: set[tuple[str, str]], vcn: str) -> bool:
    """Whether the kernel took it away with its link; rules it leaves."""
    words = line.split()
    return words[0] != "rule" and "dev" in words and (vcn, words[words.index("dev") + 1]) in gone


def _undo(line: str) -> str:
    match line.split():
        case ["rule", "add", *rest]:
            return " ".join(["rule", "del", *rest])
        case ["route", "add", "throw", destination, "table", number]:
            return f"route del throw {destination} table {number}"
        case ["route", "add", destination, *rest] if "table" in rest:
            return f"route del {destination} table {rest[rest.index('table') + 1]}"
        case ["route", "add", destination, *_]:
            return f"route del {destination}"
        case ["neigh", "replace", address, *rest]:
            return f"neigh del {address} dev {rest[rest.index('dev') + 1]}"
        case _:
            return ""  # a link that was set up goes by itself
