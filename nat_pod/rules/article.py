"""The same mappings as the article would type them: one `iptables` line each, in one long chain.

For comparison with a POD built by hand, and for the benchmark: a NAT VM never loads these.  The article (section
4.2) knows `masquerade` only; for `static` the source lines are written in its manner.
"""

from __future__ import annotations

from nat_pod.config.model import MASQUERADE, PodConfig
from nat_pod.names import NAT_VM1

PRIMARY_INTERFACE = "ens3"  # the article's images; the compiled rules name no interface


def article_lines(config: PodConfig, vm: str) -> list[str]:
    """The article's lines for natVm1 or natVm2: hosts x servers of them, then the sources."""
    slots = {name: config.layout.addresses(slot) for name, slot in config.book.items()}
    side = 0 if vm == NAT_VM1 else 1
    primary_of_other = str(config.layout.pairs[0].nat_vm2[2] if vm == NAT_VM1 else config.layout.pairs[0].nat_vm1[2])
    servers = [member for member in config.members if member.customer is None]
    hosts = [member for member in config.members if member.customer is not None]
    inner, outer = (hosts, servers) if vm == NAT_VM1 else (servers, hosts)
    lines = []
    for source in inner:
        for wanted in outer:
            if vm == NAT_VM1 and not _may(config, source.customer, wanted.name):
                continue
            lines.append(_dnat(source.address, slots[wanted.name][side], slots[wanted.name][1 - side]))
    masquerade = config.source_nat == MASQUERADE
    for member in inner:
        # A server list keeps a customer's packets on NAT VM1: NAT VM2 sees none from it.
        callers = outer if vm == NAT_VM1 else [host for host in outer if _may(config, host.customer, member.name)]
        arriving = [primary_of_other] if masquerade else sorted(slots[other.name][1 - side] for other in callers)
        lines.extend(_dnat(source, slots[member.name][side], member.address) for source in arriving)
    if masquerade:
        lines.append(f"iptables -t nat -A POSTROUTING -o {PRIMARY_INTERFACE} -j MASQUERADE")
    else:
        lines.extend(_snat(member.address, slots[member.name][side]) for member in inner)
        lines.extend(_snat(slots[member.name][1 - side], slots[member.name][side]) for member in outer)
    return lines


def _may(config: PodConfig, customer: str | None, server: str) -> bool:
    allowed = next(entry.servers for entry in config.customers if entry.name == customer)
    return allowed is None or server.split("/")[1] in allowed


def _dnat(source: object, destination: object, to: object) -> str:
    return f"iptables -t nat -A PREROUTING -s {source} -d {destination} -j DNAT --to-destination {to}"


def _snat(source: object, to: object) -> str:
    return f"iptables -t nat -A POSTROUTING -s {source} -j SNAT --to-source {to}"
