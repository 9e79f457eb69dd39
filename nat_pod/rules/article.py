"""The same mappings as the article would type them: one `iptables` line each, in one long chain.

They are for comparison with a POD built by hand, and for the benchmark.  A NAT VM never loads them.  The article
(section 4.2) knows `masquerade` only; for `static` the source lines are written in its manner.
"""

from __future__ import annotations

from typing import assert_never

from nat_pod.config.model import PodConfig
from nat_pod.config.source_nat import SourceNat
from nat_pod.names import NAT_VM1, MemberName, Side

PRIMARY_INTERFACE = "ens3"  # that of the article's images; the compiled rules name no interface


def article_lines(config: PodConfig, side: Side) -> list[str]:
    """The article's lines for one side's NAT VM: hosts x servers of them, then the sources."""
    here = {name: config.layout.address(slot, side) for name, slot in config.book.items()}
    there = {name: config.layout.address(slot, side.other) for name, slot in config.book.items()}
    inner, outer = (config.hosts, config.servers) if side == NAT_VM1 else (config.servers, config.hosts)
    lines = []
    for source in inner:
        for wanted in outer:
            if side == NAT_VM1 and not _may(config, source.name, wanted.name):
                continue
            lines.append(_dnat(source.address, here[wanted.name], there[wanted.name]))
    for member in inner:
        # A server list keeps a customer's packets on NAT VM1: NAT VM2 sees none from it.
        callers = outer if side == NAT_VM1 else [host for host in outer if _may(config, host.name, member.name)]
        match config.source_nat:
            case SourceNat.MASQUERADE:
                arriving = [config.primary(side.other)]
            case SourceNat.STATIC:
                arriving = sorted(there[other.name] for other in callers)
            case _ as never:
                assert_never(never)
        lines.extend(_dnat(source, here[member.name], member.address) for source in arriving)
    match config.source_nat:
        case SourceNat.MASQUERADE:
            lines.append(f"iptables -t nat -A POSTROUTING -o {PRIMARY_INTERFACE} -j MASQUERADE")
        case SourceNat.STATIC:
            lines.extend(_snat(member.address, here[member.name]) for member in inner)
            lines.extend(_snat(there[member.name], here[member.name]) for member in outer)
        case _ as never:
            assert_never(never)
    return lines


def _may(config: PodConfig, host: MemberName, server: MemberName) -> bool:
    allowed = next(entry.servers for entry in config.customers if entry.name == host.realm)
    return allowed is None or server.short in allowed


def _dnat(source: object, destination: object, to: object) -> str:
    return f"iptables -t nat -A PREROUTING -s {source} -d {destination} -j DNAT --to-destination {to}"


def _snat(source: object, to: object) -> str:
    return f"iptables -t nat -A POSTROUTING -s {source} -j SNAT --to-source {to}"
