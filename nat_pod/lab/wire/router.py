"""A VCN as a namespace: its router, route tables, checks and security rules.  Nothing here touches the kernel.

What makes it behave like OCI's:

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
- A load balancer has a link more for each backend: a packet that comes by it meets no table and goes to that backend.
- Security rules are not enforced for 169.254.0.0/16 on OCI.  Here such packets stay inside the VM: its metadata
  service listens there, and the router has no route to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from netaddr import IPNetwork

from nat_pod.lab.wire.space import (
    LINK_ADDRESS,
    ROUTER_MAC,
    BalancerLinks,
    Port,
    Space,
    kernel,
    text,
    vcn_namespace,
)
from nat_pod.trace.topology import PROTOCOL_NUMBERS, Balancer, Route, SecurityRule, Topology, Vnic

VOID = "lo"  # where packets without a destination go
_TO_BACKEND = 400  # priority of the rules for what a load balancer sends on; the tables are above 2000
_FIRST_BACKEND = 2000
_WITHIN_SUBNET = 500  # priority of the rules that come before those of the tables
_FIRST_TABLE = 1000  # also its rules' priority; routing tables 253 to 255 are the kernel's


def balancer_link(index: int) -> str:
    """The VCN's link to the load balancer of this number, by which it also answers and asks."""
    return f"n{index}"


def backend_link(index: int, number: int) -> str:
    """The VCN's end of the link by which that load balancer sends on to its backend of this number."""
    return f"n{index}b{number}"


def read_drops(saved: str) -> list[tuple[str, int]]:
    """The (comment, packets) of every DROP rule that dropped something, from `iptables-save -c` of a VCN."""
    found = re.findall(r'^\[(\d+):\d+\] -A .*--comment "?(.*?)"? -j DROP$', saved, re.MULTILINE)
    return [(comment, int(packets)) for packets, comment in found if int(packets)]


class Router:
    """One VCN's namespace: links, delivery, route tables, checks and security rules."""

    def __init__(
        self,
        topology: Topology,
        vcn: str,
        ports: dict[str, Port],
        links: dict[str, str],
        balancers: dict[str, BalancerLinks],
    ) -> None:
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
        for balancer in topology.balancers.values():
            if topology.subnets[balancer.subnet].vcn == vcn:
                self.add_balancer(balancer, balancers[balancer.name])

    def add_balancer(self, balancer: Balancer, links: BalancerLinks) -> None:
        """A load balancer is one more VNIC, and packets for its backends come in by links of their own."""
        vnic = balancer.vnic
        reached = {backend_link(links.number, at): address for at, address in enumerate(links.backends)}
        self.backends |= {link: self.holder.get(address) for link, address in reached.items()}
        self.vnics.append(vnic)
        self.link[vnic.name] = balancer_link(links.number)
        self.incoming[vnic.name] = [self.link[vnic.name], *reached]
        self.holder[balancer.address] = vnic

    def space(self) -> Space:
        """The namespace."""
        all_links = [*self.link.values(), *self.backends, *self.lpgs.values()]
        return Space(
            name=vcn_namespace(self.vcn.name),
            sysctls=(*kernel(forward=True, rp_filter=0), ("net/ipv4/conf/all/proxy_arp", "1")),
            # By default a proxy answers ARP after a random delay of up to 0.8 s.
            link_sysctls=tuple((f"net/ipv4/neigh/{link}/proxy_delay", "0") for link in all_links),
            batch=text(["link set lo up", *self.delivery(), *self.peerings(), *self.tables()]),
            rules=text(self.rules()),
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
            words.append(f"-p {PROTOCOL_NUMBERS.get(rule.protocol, rule.protocol)}")
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
