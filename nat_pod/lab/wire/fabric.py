"""The cables: a Topology as Linux network namespaces, in values and texts.  Nothing here touches the kernel.

One namespace for each VCN, which is its router (`router.py`), one for each VM, and one for each load balancer
(`balancer.py`).

What it does not do: bandwidth, latency, DHCP on the wire, DNS but for names (`resolver.py`), IPv6, the TTL (a VCN is
one hop here, two with a peering; on OCI it is none).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

from netaddr import IPNetwork

from nat_pod.lab.wire import balancer as nlb
from nat_pod.lab.wire.router import Router, backend_link, balancer_link
from nat_pod.lab.wire.space import (
    IMDS_ADDRESS,
    LINK_ADDRESS,
    MTU,
    ROUTER_MAC,
    BalancerLinks,
    Port,
    Space,
    balancer_namespace,
    kernel,
    safe,
    text,
    vcn_namespace,
    vm_namespace,
)
from nat_pod.trace.topology import VM_ROUTER, Balancer, Lpg, Topology, Vm

_BALANCER_NIC = "nlb"


@dataclass(frozen=True, kw_only=True, slots=True)
class Peering:
    """One end of a peering: an LPG and its peer, and the link in the LPG's VCN (p2)."""

    lpg: str
    peer: str
    vcn: str
    link: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Fabric:
    """All namespaces, each by the name of what it is, and the `ip -batch` text that creates the veth pairs.

    `peerings` is by LPG, `balancer_links` by load balancer; `cables` has those pairs that do not stand already.
    """

    vcns: dict[str, Space]
    vms: dict[str, Space]
    balancers: dict[str, Space]
    ports: dict[str, Port]
    peerings: dict[str, Peering]
    balancer_links: dict[str, BalancerLinks]
    cables: str

    @property
    def spaces(self) -> list[Space]:
        """Every namespace: VCNs first."""
        return [*self.vcns.values(), *self.vms.values(), *self.balancers.values()]


def lay_cables(topology: Topology, standing: Fabric | None = None) -> Fabric:
    """The namespaces, links, addresses, routes and rules that make `topology` out of Linux.

    standing: what is there already; a VNIC or peering that is in both keeps its interfaces, so that nothing that uses
    them notices.
    """
    ports = _ports(topology, standing.ports if standing else {})
    peerings = _peerings(topology, standing.peerings if standing else {})
    links = {name: peering.link for name, peering in peerings.items()}
    balancers = _balancer_links(topology, standing.balancer_links if standing else {})
    return Fabric(
        vcns={name: Router(topology, name, ports, links, balancers).space() for name in topology.vcns},
        vms={vm.name: _guest(topology, vm, ports) for vm in topology.vms.values()},
        balancers={one.name: _balancer(topology, one, balancers[one.name]) for one in topology.balancers.values()},
        ports=ports,
        peerings=peerings,
        balancer_links=balancers,
        cables=_cables(topology, ports, peerings, balancers, standing),
    )


def dhcp_offer(topology: Topology, vm: Vm) -> dict[str, object]:
    """What DHCP offers to the primary VNIC of a VM.  OCI serves no DHCP on secondary VNICs."""
    vnic = topology.vnics[vm.vnics[0]]
    subnet = IPNetwork(topology.subnets[vnic.subnet].cidr)
    return {
        "mac": vnic.mac,
        "address": vnic.addresses[0],
        "prefix": subnet.prefixlen,
        "gateway": str(subnet[1]),
        "mtu": MTU,
    }


def imds_document(topology: Topology, vm: Vm) -> dict[str, object]:
    """What the instance metadata service of a VM serves.  As on OCI, `vnics` does not list secondary addresses."""
    vnics: list[dict[str, object]] = []
    for index, name in enumerate(vm.vnics):
        vnic = topology.vnics[name]
        subnet = IPNetwork(topology.subnets[vnic.subnet].cidr)
        vnics.append(
            {
                "vnicId": f"ocid1.vnic.oc1..{safe(name)}",
                "privateIp": vnic.addresses[0],
                "vlanTag": index + 1,
                "macAddr": vnic.mac.upper(),
                "virtualRouterIp": str(subnet[1]),
                "subnetCidrBlock": str(subnet.cidr),
            }
        )
    instance = {
        "displayName": vm.name,
        "id": f"ocid1.instance.oc1..{safe(vm.name)}",
        "shape": "lab",
        "metadata": dict(vm.metadata),
    }
    return {"instance": instance, "vnics": vnics}


def _ports(topology: Topology, standing: dict[str, Port]) -> dict[str, Port]:
    """Every VNIC with its interface names.  NICs are ens3, ens5, ens6, ... in attach order, as on OCI's images."""
    ports: dict[str, Port] = {}
    # VCN side names are short: an interface name has at most 15 characters, a VNIC's name any number.
    links = _fresh("v", {port.link for port in standing.values()})
    for vm in topology.vms.values():
        there = {name: standing[name] for name in vm.vnics if name in standing and standing[name].vm == vm.name}
        used = {port.nic for name, port in there.items() if port.mac == topology.vnics[name].mac}
        for index, name in enumerate(vm.vnics):
            mac, vcn = topology.vnics[name].mac, topology.vcn_of(topology.vnics[name]).name
            known = there.get(name)
            if known is not None and (known.mac, known.vcn) == (mac, vcn):
                ports[name] = known
                continue
            nic = next(n for n in (f"ens{at + 4 if at else 3}" for at in count(index)) if n not in used)
            used.add(nic)
            ports[name] = Port(vnic=name, vm=vm.name, vcn=vcn, mac=mac, nic=nic, link=next(links))
    return ports


def _peerings(topology: Topology, standing: dict[str, Peering]) -> dict[str, Peering]:
    """Both ends of every peering.  One that has lost an end, or changed it, is made anew at both."""
    peerings: dict[str, Peering] = {}
    links = _fresh("p", {peering.link for peering in standing.values()})
    for name, lpg in topology.lpgs.items():
        peer = _peer(topology, name)
        if peer is None:
            continue
        known = standing.get(name)
        same = known is not None and (known.peer, known.vcn) == (peer.name, lpg.vcn)
        same &= peer.name in standing and (standing[peer.name].peer, standing[peer.name].vcn) == (name, peer.vcn)
        link = known.link if known is not None and same else next(links)
        peerings[name] = Peering(lpg=name, peer=peer.name, vcn=lpg.vcn, link=link)
    return peerings


def _balancer_links(topology: Topology, standing: dict[str, BalancerLinks]) -> dict[str, BalancerLinks]:
    """The number of each load balancer, and its backends: those that it had, then those that are new."""
    used = {links.number for links in standing.values()}
    numbers = (number for number in count() if number not in used)
    found = {}
    for name, balancer in topology.balancers.items():
        vcn = topology.subnets[balancer.subnet].vcn
        known = standing.get(name)
        if known is None or known.vnic != (vcn, balancer.mac, balancer.address):
            known = BalancerLinks(
                number=next(numbers), vcn=vcn, mac=balancer.mac, address=balancer.address, backends=()
            )
        new = (backend.address for backend in balancer.backends if backend.address not in known.backends)
        found[name] = replace(known, backends=(*known.backends, *new))
    return found


def _fresh(letter: str, used: set[str]) -> Iterator[str]:
    return (name for name in (f"{letter}{number}" for number in count()) if name not in used)


def _peer(topology: Topology, name: str | None) -> Lpg | None:
    """The LPG at the other end, None unless both ends name each other."""
    lpg = topology.lpgs.get(name or "")
    peer = topology.lpgs.get(lpg.peer or "") if lpg else None
    return peer if lpg and peer and peer.peer == lpg.name else None


def _cables(
    topology: Topology,
    ports: dict[str, Port],
    peerings: dict[str, Peering],
    balancers: dict[str, BalancerLinks],
    standing: Fabric | None,
) -> str:
    """Every veth is created between its two namespaces at once: moving it there afterwards costs twice the time."""
    lines = []
    for port in ports.values():
        if standing and standing.ports.get(port.vnic) == port:
            continue
        lines.append(
            f"link add name {port.link} netns {vcn_namespace(port.vcn)} address {ROUTER_MAC} mtu {MTU} type veth "
            f"peer name {port.nic} netns {vm_namespace(port.vm)} address {port.mac} mtu {MTU}"
        )
    for here in peerings.values():
        there = peerings[here.peer]
        if here.lpg < there.lpg and not (standing and standing.peerings.get(here.lpg) == here):
            lines.append(
                f"link add name {here.link} netns {vcn_namespace(here.vcn)} address {ROUTER_MAC} mtu {MTU} type veth "
                f"peer name {there.link} netns {vcn_namespace(there.vcn)} address {ROUTER_MAC} mtu {MTU}"
            )
    for balancer in topology.balancers.values():
        own, links = balancer_namespace(balancer.name), balancers[balancer.name]
        known = standing.balancer_links.get(balancer.name) if standing else None
        stands = known is not None and known.number == links.number
        if not stands:
            lines.append(
                f"link add name {balancer_link(links.number)} netns {vcn_namespace(links.vcn)} address {ROUTER_MAC} "
                f"mtu {MTU} type veth peer name {_BALANCER_NIC} netns {own} address {balancer.mac} mtu {MTU}"
            )
        lines += [
            f"link add name {backend_link(links.number, at)} netns {vcn_namespace(links.vcn)} address {ROUTER_MAC} "
            f"mtu {MTU} type veth peer name {nlb.nic(at)} netns {own} mtu {MTU}"
            for at in range(len(known.backends) if known is not None and stands else 0, len(links.backends))
        ]
    return text(lines)


def _balancer(topology: Topology, balancer: Balancer, links: BalancerLinks) -> Space:
    """A load balancer's namespace: nobody is healthy until its process has asked."""
    subnet = IPNetwork(topology.subnets[balancer.subnet].cidr)
    lines = [
        "link set lo up",
        f"link set {_BALANCER_NIC} up",
        f"addr add {balancer.address}/{subnet.prefixlen} dev {_BALANCER_NIC}",
        f"route add default via {subnet[1]} dev {_BALANCER_NIC}",
    ]
    for number in range(len(links.backends)):
        nic = nlb.nic(number)
        lines += [
            f"link set {nic} up",
            f"neigh replace {LINK_ADDRESS} lladdr {ROUTER_MAC} dev {nic} nud permanent",
            f"route add default via {LINK_ADDRESS} dev {nic} onlink table {nlb.TABLE + number}",
        ]
    conntrack = {
        # One half of a flow passes here: answers and windows of the other half are never seen.
        "tcp_be_liberal": 1,
        "tcp_loose": 1,
        "tcp_timeout_established": balancer.tcp_idle,
        "tcp_timeout_unacknowledged": balancer.tcp_idle,
        "udp_timeout": balancer.udp_idle,
        "udp_timeout_stream": balancer.udp_idle,
        "icmp_timeout": balancer.other_idle,
        "generic_timeout": balancer.other_idle,
    }
    return Space(
        name=balancer_namespace(balancer.name),
        sysctls=kernel(forward=True, rp_filter=0),
        # After its rules: what they need brings these into being.
        rule_sysctls=tuple((f"net/netfilter/nf_conntrack_{key}", str(value)) for key, value in conntrack.items()),
        batch=text(lines),
        rules=nlb.rules(balancer),
    )


def _guest(topology: Topology, vm: Vm, ports: dict[str, Port]) -> Space:
    """A VM's namespace.  Where there is user_data, its boot must do everything itself."""
    lines = ["link set lo up"]
    if vm.boots:
        lines.append(f"addr add {IMDS_ADDRESS}/32 dev lo")
        # As Oracle Linux comes up: strict reverse-path filter, no forwarding.  A guest that forgets either shows it.
        return Space(name=vm_namespace(vm.name), sysctls=kernel(forward=False, rp_filter=1), batch=text(lines))
    routes = []
    for name in vm.vnics:
        vnic, nic = topology.vnics[name], ports[name].nic
        subnet = IPNetwork(topology.subnets[vnic.subnet].cidr)
        lines.append(f"link set {nic} up")
        lines.append(f"addr add {vnic.addresses[0]}/{subnet.prefixlen} dev {nic}")
        lines.extend(f"addr add {address}/32 dev {nic}" for address in vnic.addresses[1:])
        # All namespaces of a machine share one table of neighbours that were asked for, 1024 by default; those of a lab
        # of a thousand hosts would fill it, and packets of whoever comes last would die.
        lines.append(f"neigh replace {subnet[1]} lladdr {ROUTER_MAC} dev {nic} nud permanent")
        destinations = ["default"] if name == vm.vnics[0] else []
        destinations += [cidr for cidr, leaves_by in vm.routes if leaves_by == name]
        routes += [f"route add {destination} via {subnet[1]} dev {nic}" for destination in destinations]
    return Space(
        name=vm_namespace(vm.name),
        sysctls=kernel(forward=vm.kind == VM_ROUTER or vm.forwarding, rp_filter=0),
        batch=text([*lines, *routes]),
    )
