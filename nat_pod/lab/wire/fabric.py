"""The cables: a Topology as Linux network namespaces, in values and texts.  Nothing here touches the kernel.

One namespace per VCN, which is its router, and one per VM.  What makes such a router behave like OCI's:

- Each VNIC is a veth.  The router has no address at all; it answers ARP on every veth for everything (proxy ARP),
  as the virtual router does, so a packet always gets out of the VM and what happens next is routing.
- Delivery is by private IP: one /32 route for each address to the VNIC's veth, with the VNIC's MAC as permanent
  neighbour.  The guest need not have configured the address, and nobody can claim one by ARP.
- Route rules: one table for each subnet, chosen by the veth a packet came in by.  `throw <VCN CIDR>` in it hands
  packets for the VCN back to delivery unless a rule at least as specific matched.
- Inside a subnet there is no routing on OCI: packets from a VNIC to its own subnet skip the table.
- A packet that came in by an LPG meets the LPG's own table if it has one, otherwise only delivery.
- What nobody holds or routes goes to `lo`, where a counted rule drops it.  A blackhole route would do, but silently.
- Source/destination check and security rules are chains for each VNIC in FORWARD.  Every DROP has a comment that
  says which VNIC and which check, so that one can read from the counters why a packet died.
- A load balancer is a namespace of its own, see `balancer.py`.  It has a link more for each backend: a packet that
  comes by it meets no table and goes to that backend.
- Security rules are not enforced for 169.254.0.0/16 on OCI.  Here such packets stay inside the VM: its metadata
  service listens there, and the router has no route to it.

What it does not do: bandwidth, latency, DHCP and DNS on the wire, IPv6, the TTL (a VCN is one hop here, two with a
peering; on OCI it is none).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from urllib.parse import quote

from netaddr import IPNetwork

from nat_pod.lab.wire import balancer as nlb
from nat_pod.trace.topology import VM_NAT, VM_ROUTER, Balancer, Lpg, Route, SecurityRule, Topology, Vm, Vnic

MTU = 9000
IMDS_ADDRESS = "169.254.169.254"
ROUTER_MAC = "00:00:17:ff:ff:01"  # on every veth of a VCN; 00:00:17 is Oracle's, as on OCI's virtual router
LINK_ADDRESS = "169.254.0.1"  # next hop across a peering; nobody has it, only its neighbour entry exists
VOID = "lo"  # where packets without a destination go
_BALANCER_NIC = "nlb"
_TO_BACKEND = 400  # priority of the rules for what a load balancer sends on; the tables are above 2000
_FIRST_BACKEND = 2000
_WITHIN_SUBNET = 500  # priority of the rules that come before those of the tables
_FIRST_TABLE = 1000  # also its rules' priority; routing tables 253 to 255 are the kernel's

_PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp"}

_NO_IPV6 = (("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv6/conf/default/disable_ipv6", "1"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """A namespace.  `sysctls` are set before its links exist (they inherit), `link_sysctls` after.

    `rule_sysctls` are set after its rules.

    `batch` is for `ip -batch`, `rules` for iptables-restore, both inside the namespace.
    """

    name: str
    sysctls: tuple[tuple[str, str], ...]
    link_sysctls: tuple[tuple[str, str], ...] = ()
    rule_sysctls: tuple[tuple[str, str], ...] = ()
    batch: str
    rules: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Port:
    """Both ends of a VNIC: `nic` in the VM (ens3), `link` in the VCN (v7)."""

    vnic: str
    vm: str
    vcn: str
    mac: str
    nic: str
    link: str


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

    `peerings` is by LPG; `cables` has those pairs that do not stand already.
    """

    vcns: dict[str, Space]
    vms: dict[str, Space]
    balancers: dict[str, Space]
    ports: dict[str, Port]
    peerings: dict[str, Peering]
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
    return Fabric(
        vcns={name: _Router(topology, name, ports, links).space() for name in topology.vcns},
        vms={vm.name: _guest(topology, vm, ports) for vm in topology.vms.values()},
        balancers={one.name: _balancer(topology, one) for one in topology.balancers.values()},
        ports=ports,
        peerings=peerings,
        cables=_cables(topology, ports, peerings, standing),
    )


def vcn_namespace(name: str) -> str:
    """The namespace of a VCN: `vcn-customer1`."""
    return f"vcn-{_safe(name)}"


def vm_namespace(name: str) -> str:
    """The namespace of a VM: `vm-customer1.vm1` for customer1/vm1."""
    return f"vm-{_safe(name)}"


def balancer_namespace(name: str) -> str:
    """The namespace of a load balancer: `nlb-natVm2`."""
    return f"nlb-{_safe(name)}"


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
                "vnicId": f"ocid1.vnic.oc1..{_safe(name)}",
                "privateIp": vnic.addresses[0],
                "vlanTag": index + 1,
                "macAddr": vnic.mac.upper(),
                "virtualRouterIp": str(subnet[1]),
                "subnetCidrBlock": str(subnet.cidr),
            }
        )
    instance = {
        "displayName": vm.name,
        "id": f"ocid1.instance.oc1..{_safe(vm.name)}",
        "shape": "lab",
        "metadata": dict(vm.metadata),
    }
    return {"instance": instance, "vnics": vnics}


def read_drops(saved: str) -> list[tuple[str, int]]:
    """The (comment, packets) of every DROP rule that dropped something, from `iptables-save -c` of a VCN."""
    found = re.findall(r'^\[(\d+):\d+\] -A .*--comment "?(.*?)"? -j DROP$', saved, re.MULTILINE)
    return [(comment, int(packets)) for packets, comment in found if int(packets)]


def _safe(name: str) -> str:
    """A name that is a file name and one word for `ip -batch`; different names stay different."""
    return quote(name, safe="/").replace(".", "%2e").replace("/", ".")


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


def _fresh(letter: str, used: set[str]) -> Iterator[str]:
    return (name for name in (f"{letter}{number}" for number in count()) if name not in used)


def _peer(topology: Topology, name: str | None) -> Lpg | None:
    """The LPG at the other end, None unless both ends name each other."""
    lpg = topology.lpgs.get(name or "")
    peer = topology.lpgs.get(lpg.peer or "") if lpg else None
    return peer if lpg and peer and peer.peer == lpg.name else None


def _cables(topology: Topology, ports: dict[str, Port], peerings: dict[str, Peering], standing: Fabric | None) -> str:
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
    for index, balancer in enumerate(topology.balancers.values()):
        router, own = topology.subnets[balancer.subnet].vcn, balancer_namespace(balancer.name)
        lines.append(
            f"link add name {_balancer_link(index)} netns {vcn_namespace(router)} address {ROUTER_MAC} mtu {MTU} "
            f"type veth peer name {_BALANCER_NIC} netns {own} address {balancer.mac} mtu {MTU}"
        )
        lines += [
            f"link add name {_backend_link(index, number)} netns {vcn_namespace(router)} address {ROUTER_MAC} "
            f"mtu {MTU} type veth peer name {nlb.nic(number)} netns {own} mtu {MTU}"
            for number in range(len(balancer.backends))
        ]
    return _text(lines)


def _balancer_link(index: int) -> str:
    """The VCN's link to the load balancer of this number, by which it also answers and asks."""
    return f"n{index}"


def _backend_link(index: int, number: int) -> str:
    """The VCN's end of the link by which that load balancer sends on to its backend of this number."""
    return f"n{index}b{number}"


def _balancer(topology: Topology, balancer: Balancer) -> Space:
    """A load balancer's namespace: nobody is healthy until its process has asked."""
    subnet = IPNetwork(topology.subnets[balancer.subnet].cidr)
    lines = [
        "link set lo up",
        f"link set {_BALANCER_NIC} up",
        f"addr add {balancer.address}/{subnet.prefixlen} dev {_BALANCER_NIC}",
        f"route add default via {subnet[1]} dev {_BALANCER_NIC}",
    ]
    for number in range(len(balancer.backends)):
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
        sysctls=_kernel(forward=True, rp_filter=0),
        # After its rules: what they need brings these into being.
        rule_sysctls=tuple((f"net/netfilter/nf_conntrack_{key}", str(value)) for key, value in conntrack.items()),
        batch=_text(lines),
        rules=nlb.rules(balancer),
    )


def _guest(topology: Topology, vm: Vm, ports: dict[str, Port]) -> Space:
    """A VM's namespace.  Hosts and the vRouter come configured; a NAT VM's boot must do everything itself."""
    lines = ["link set lo up"]
    if vm.kind == VM_NAT:
        lines.append(f"addr add {IMDS_ADDRESS}/32 dev lo")
        # As Oracle Linux comes up: strict reverse-path filter, no forwarding.  A guest that forgets either shows it.
        return Space(name=vm_namespace(vm.name), sysctls=_kernel(forward=False, rp_filter=1), batch=_text(lines))
    routes = []
    for name in vm.vnics:
        vnic, nic = topology.vnics[name], ports[name].nic
        subnet = IPNetwork(topology.subnets[vnic.subnet].cidr)
        lines.append(f"link set {nic} up")
        lines.append(f"addr add {vnic.addresses[0]}/{subnet.prefixlen} dev {nic}")
        lines.extend(f"addr add {address}/32 dev {nic}" for address in vnic.addresses[1:])
        destinations = ["default"] if name == vm.vnics[0] else []
        destinations += [cidr for cidr, leaves_by in vm.routes if leaves_by == name]
        routes += [f"route add {destination} via {subnet[1]} dev {nic}" for destination in destinations]
    return Space(
        name=vm_namespace(vm.name),
        sysctls=_kernel(forward=vm.kind == VM_ROUTER or vm.forwarding, rp_filter=0),
        batch=_text([*lines, *routes]),
    )


def _kernel(*, forward: bool, rp_filter: int) -> tuple[tuple[str, str], ...]:
    """Settings of a namespace.  All are written: a new namespace inherits those of the machine the lab runs on."""
    settings = [("net/ipv4/ip_forward", str(int(forward)))]
    for scope in ("all", "default"):
        settings.append((f"net/ipv4/conf/{scope}/rp_filter", str(rp_filter)))
        # OCI's fabric tells nobody of a better way, and a redirect would teach a VM a route it does not have.
        settings.append((f"net/ipv4/conf/{scope}/send_redirects", "0"))
        settings.append((f"net/ipv4/conf/{scope}/accept_redirects", "0"))
    return (*settings, *_NO_IPV6)


class _Router:
    """One VCN's namespace: links, delivery, route tables, checks and security rules."""

    def __init__(self, topology: Topology, vcn: str, ports: dict[str, Port], links: dict[str, str]) -> None:
        self.topology = topology
        self.vcn = topology.vcns[vcn]
        self.vnics = [topology.vnics[name] for name, port in ports.items() if port.vcn == vcn]
        self.link = {vnic.name: ports[vnic.name].link for vnic in self.vnics}
        self.subnets = [subnet for subnet in topology.subnets.values() if subnet.vcn == vcn]
        self.lpgs = {name: links[name] for name, lpg in topology.lpgs.items() if lpg.vcn == vcn and name in links}
        self.holder = {address: vnic for vnic in self.vnics for address in vnic.addresses}
        # Links by which a VNIC's packets come in: a load balancer's also those to its backends.
        self.incoming = {vnic.name: [self.link[vnic.name]] for vnic in self.vnics}
        # Such a link, and the backend's VNIC at the end of the way; None when it is gone.
        self.backends: dict[str, Vnic | None] = {}
        for index, balancer in enumerate(topology.balancers.values()):
            if topology.subnets[balancer.subnet].vcn == vcn:
                self.add_balancer(index, balancer)

    def add_balancer(self, index: int, balancer: Balancer) -> None:
        """A load balancer is one more VNIC, and packets for its backends come in by links of their own."""
        vnic = balancer.vnic
        reached = {_backend_link(index, number): one.address for number, one in enumerate(balancer.backends)}
        self.backends |= {link: self.holder.get(address) for link, address in reached.items()}
        self.vnics.append(vnic)
        self.link[vnic.name] = _balancer_link(index)
        self.incoming[vnic.name] = [self.link[vnic.name], *reached]
        self.holder[balancer.address] = vnic

    def space(self) -> Space:
        """The namespace."""
        all_links = [*self.link.values(), *self.backends, *self.lpgs.values()]
        return Space(
            name=vcn_namespace(self.vcn.name),
            sysctls=(*_kernel(forward=True, rp_filter=0), ("net/ipv4/conf/all/proxy_arp", "1")),
            # By default a proxy answers ARP after a random delay of up to 0.8 s.
            link_sysctls=tuple((f"net/ipv4/neigh/{link}/proxy_delay", "0") for link in all_links),
            batch=_text(["link set lo up", *self.delivery(), *self.peerings(), *self.tables()]),
            rules=_text(self.rules()),
        )

    # --- routing -----------------------------------------------------------------------------------------------

    def delivery(self) -> Iterator[str]:
        """By private IP to the VNIC that holds it.  All addresses of a VNIC share the neighbour entry of its first."""
        for vnic in self.vnics:
            link, first = self.link[vnic.name], vnic.addresses[0]
            yield f"link set {link} up"
            yield f"neigh replace {first} lladdr {vnic.mac} dev {link} nud permanent"
            for address in vnic.addresses:
                yield f"route add {address}/32 {self.towards(vnic)}"
        yield f"route add default dev {VOID}"

    def peerings(self) -> Iterator[str]:
        """The links to the VCNs behind the LPGs."""
        for link in self.lpgs.values():
            yield f"link set {link} up"
            yield f"neigh replace {LINK_ADDRESS} lladdr {ROUTER_MAC} dev {link} nud permanent"

    def tables(self) -> Iterator[str]:
        """A table for each subnet and each LPG that has its own, chosen by the link a packet came in by."""
        for number, (link, backend) in enumerate(self.backends.items(), _FIRST_BACKEND):
            yield f"link set {link} up"
            yield f"rule add iif {link} lookup {number} priority {_TO_BACKEND}"
            yield f"route add default {self.towards(backend) if backend else f'dev {VOID}'} table {number}"
        table = _FIRST_TABLE
        for subnet in self.subnets:
            links = [self.link[vnic.name] for vnic in self.vnics if vnic.subnet == subnet.name]
            for link in links:
                # Without it the router would not even answer ARP for .1 to a VNIC that such a rule leads back to.
                yield f"rule add iif {link} to {subnet.cidr} lookup main priority {_WITHIN_SUBNET}"
            yield from self.table(table, subnet.routes, links)
            table += 1
        for name, link in self.lpgs.items():
            routes = self.topology.lpgs[name].routes
            if routes is not None:
                yield from self.table(table, routes, [link])
                table += 1

    def table(self, number: int, routes: tuple[Route, ...], links: list[str]) -> Iterator[str]:
        """One route table.  No match in it: on to the main table, which delivers or drops."""
        for link in links:
            yield f"rule add iif {link} lookup {number} priority {number}"
        ruled = set()
        for route in routes:
            destination = str(IPNetwork(route.destination).cidr)
            ruled.add(destination)
            yield f"route add {destination} {self.next_hop(route)} table {number}"
        for cidr in self.vcn.cidrs:
            local = str(IPNetwork(cidr).cidr)
            if local not in ruled:  # an equal route rule beats implicit local routing
                yield f"route add throw {local} table {number}"

    def next_hop(self, route: Route) -> str:
        """Where a route rule sends to; nowhere when its target is gone or not peered."""
        if route.lpg is not None:
            link = self.lpgs.get(route.lpg)
            return f"via {LINK_ADDRESS} dev {link} onlink" if link else f"dev {VOID}"
        vnic = self.holder.get(route.private_ip or "")
        return self.towards(vnic) if vnic else f"dev {VOID}"

    def towards(self, vnic: Vnic) -> str:
        """The next hop that delivers to a VNIC, whatever the destination address is."""
        return f"via {vnic.addresses[0]} dev {self.link[vnic.name]} onlink"

    # --- checks and security rules -----------------------------------------------------------------------------

    def rules(self) -> Iterator[str]:
        """The filter table.  The router itself takes and sends nothing, like OCI's."""
        yield "*filter"
        yield ":INPUT DROP [0:0]"
        yield ":FORWARD DROP [0:0]"
        yield ":OUTPUT DROP [0:0]"
        for link in self.link.values():
            for chain in ("leave", "egress", "arrive", "ingress"):
                yield f":{link}-{chain} - [0:0]"
        for vnic in self.vnics:
            link = self.link[vnic.name]
            for incoming in self.incoming[vnic.name]:
                yield f"-A FORWARD -i {incoming} -j {link}-leave"
                yield f"-A FORWARD -i {incoming} -o {VOID} {_drop(f'{vnic.name}: no route, or nobody at its end')}"
            yield f"-A FORWARD -o {link} -j {link}-arrive"
        for name, link in self.lpgs.items():
            yield f"-A FORWARD -i {link} -o {VOID} {_drop(f'{name}: nobody in this VCN has the address')}"
        yield "-A FORWARD -j ACCEPT"
        for vnic in self.vnics:
            yield from self.check(vnic, "-s", "leave", "egress", "source check, not an address of this VNIC")
            yield from self.check(vnic, "-d", "arrive", "ingress", "destination check, not an address of this VNIC")
            yield from self.secure(vnic)
        yield "COMMIT"

    def check(self, vnic: Vnic, own: str, chain: str, then: str, words: str) -> Iterator[str]:
        """The source/destination check in one direction, then the security rules.

        By goto: their RETURN leads back to FORWARD, not to the DROP at the end of this chain.
        """
        link = self.link[vnic.name]
        if vnic.skip_source_dest_check:
            yield f"-A {link}-{chain} -g {link}-{then}"
            return
        for address in vnic.addresses:
            yield f"-A {link}-{chain} {own} {address}/32 -g {link}-{then}"
        yield f"-A {link}-{chain} {_drop(f'{vnic.name}: {words}')}"

    def secure(self, vnic: Vnic) -> Iterator[str]:
        """The union of the NSGs' and the subnet's rules; what none of them lets pass is dropped."""
        rules = (*vnic.security, *self.topology.subnets[vnic.subnet].security)
        chains: dict[str, list[str]] = {"egress": [], "ingress": []}
        # Stateless rules first: they win where both match, and then nothing is tracked for the answer.
        for rule in sorted(rules, key=lambda rule: not rule.stateless):
            forth, back = ("egress", "ingress") if rule.direction == "EGRESS" else ("ingress", "egress")
            chains[forth] += self.matches(rule, answer=False)
            if not rule.stateless:
                chains[back] += self.matches(rule, answer=True)
        if any(not rule.stateless for rule in rules):
            for lines in chains.values():
                lines.append("-p icmp -m conntrack --ctstate RELATED")
        for chain, lines in chains.items():
            name = f"{self.link[vnic.name]}-{chain}"
            yield from (f"-A {name} {line} -j RETURN" for line in lines)
            yield f"-A {name} {_drop(f'{vnic.name}: {chain}, no security rule lets it pass')}"

    def matches(self, rule: SecurityRule, *, answer: bool) -> Iterator[str]:
        """A rule's conditions, or those of the answers to what a stateful rule let pass.

        An NSG as peer means its VNICs, not their addresses: the packet came from, or goes to, their link.
        """
        outward = (rule.direction == "EGRESS") != answer
        peers = [f"{'-d' if outward else '-s'} {rule.peer}"]
        if rule.peer_is_nsg:
            members = [vnic.name for vnic in self.vnics if rule.peer in vnic.nsgs]
            links = [link for name in members for link in ([self.link[name]] if outward else self.incoming[name])]
            peers = [f"{'-o' if outward else '-i'} {link}" for link in links]
        words = []
        if rule.protocol != "all":
            words.append(f"-p {_PROTOCOLS.get(rule.protocol, rule.protocol)}")
        if rule.destination_ports is not None:
            low, high = rule.destination_ports
            words.append(f"{'--sport' if answer else '--dport'} {low}:{high}")
        if rule.icmp_type is not None and not answer:
            code = "" if rule.icmp_code is None else f"/{rule.icmp_code}"
            words.append(f"--icmp-type {rule.icmp_type}{code}")
        if answer:
            words.append("-m conntrack --ctstate ESTABLISHED")
        for peer in peers:
            yield " ".join([peer, *words])


def _drop(comment: str) -> str:
    """A DROP that says why; a comment holds at most 255 characters and no quotes."""
    words = re.sub(r'["\\\s]', " ", comment)[:255]
    return f'-m comment --comment "{words}" -j DROP'


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
