"""Security rules that plans of both deliveries are made of."""

from __future__ import annotations

from collections.abc import Sequence

from nat_pod.names import ANYWHERE, PATH_MTU, VROUTER
from nat_pod.plan.model import SecurityRulePlan

ALL, ICMP, TCP = "all", "1", "6"
UNREACHABLE, FRAGMENTATION_NEEDED = 3, 4


def both_ways(key: str, peer: str, *, protocol: str = ALL, peer_is_nsg: bool = False) -> list[SecurityRulePlan]:
    """From and to a peer: stateless rules know no replies, and each direction is a rule of its own."""
    return [
        SecurityRulePlan(
            key=f"{direction.lower()}-{key}",
            direction=direction,
            protocol=protocol,
            peer=peer,
            peer_is_nsg=peer_is_nsg,
            description=f"{word} {key}",
        )
        for direction, word in (("INGRESS", "from"), ("EGRESS", "to"))
    ]


def with_neighbour(name: str, cidrs: Sequence[str]) -> list[SecurityRulePlan]:
    """From and to a neighbour's networks.

    A rule is known by its key.  The first network's is the neighbour's name, and every other one's has the network in
    it: so one more in the list, or one less, renames no other rule.
    """
    keys = (name, *(f"{name}-{cidr}" for cidr in cidrs[1:]))
    return [rule for key, cidr in zip(keys, cidrs, strict=True) for rule in both_ways(key, cidr)]


def vrouter_errors(subnet: str) -> SecurityRulePlan:
    """What the vRouter reports of a flow.

    "Fragmentation needed" and "time exceeded" come from an address of the vRouter's own: its VNIC has more than one.
    """
    return SecurityRulePlan(
        key=f"ingress-{VROUTER}",
        direction="INGRESS",
        protocol=ICMP,
        peer=subnet,
        description="errors of the vRouter",
    )


def path_mtu() -> SecurityRulePlan:
    """Routers on the way report "fragmentation needed" from their own addresses; without it large packets vanish."""
    return SecurityRulePlan(
        key=f"ingress-{PATH_MTU}",
        direction="INGRESS",
        protocol=ICMP,
        peer=ANYWHERE,
        icmp_type=UNREACHABLE,
        icmp_code=FRAGMENTATION_NEEDED,
        description="path MTU discovery",
    )
