"""Long lists of rules as trees of chains, so that a packet meets few of them.

A chain is read from the top, so reaching the last of 700 rules takes 700 tests.  Where each rule is for its own
network, a tree takes about 20.  Eight rules for 10.0.0.10, .11, .12, .13, .80, .81, .82 and .83, with at most four
rules per chain:

    NATPOD-C-customer1       -s 10.0.0.8/29  -g NATPOD-C-10.0.0.8/29       the networks that its chains hold
                             -s 10.0.0.80/30 -g NATPOD-C-10.0.0.80/30
    NATPOD-C-10.0.0.8/29     the rules of .10 to .13, as they were
    NATPOD-C-10.0.0.80/30    the rules of .80 to .83

A chain's network may hold more addresses than its rules are for; the rules themselves say what is let through.  All
branches are entered by goto, so a packet meets one chain per level and never returns to the one above.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from netaddr import IPNetwork

from nat_pod.ipv4 import span
from nat_pod.rules.netfilter import Chain, Goto, Match, Rule

BRANCHES = 12
"""The most rules that a chain has before it becomes a tree.  docs/decisions/rules-as-trees.md has the figures."""

_DEAR_PREFIX = 24
"""iptables-nft loads three bytes for a /24, and the kernel has a fast path for one, two and four."""

# A rule with the first and the last address of its network.
_Leaf = tuple[tuple[int, int], Rule]


def grow(prefix: str, rules: Iterable[Rule], branches: int = BRANCHES) -> tuple[tuple[Rule, ...], list[Chain]]:
    """The rules of the chain itself, and the chains below it, which are named `prefix` and their network.

    rules: each matches its own network, all of them the source or all of them the destination, and no two
        networks overlap, so their order means nothing.  Up to `branches` of them stay as they are.
    """
    level = tuple(rules)
    if len(level) <= branches:
        return level, []
    side = "source" if level[0].match.source is not None else "destination"
    leaves = sorted(((span(getattr(rule.match, side)), rule) for rule in level), key=itemgetter(0))
    chains: list[Chain] = []
    while len(leaves) > branches:
        above: list[_Leaf] = []
        for network, part in _parts(leaves, branches):
            if len(part) == 1:
                above += part
                continue
            name = f"{prefix}{network}"
            chains.append(Chain(name, tuple(rule for _, rule in part)))
            match = Match(source=str(network)) if side == "source" else Match(destination=str(network))
            above.append(((network.first, network.last), Rule(match, Goto(name))))
        leaves = above
    return tuple(rule for _, rule in leaves), chains[::-1]


def chain_of(name: str, prefix: str, rules: Iterable[Rule]) -> list[Chain]:
    """One chain, as a tree where its rules are many; see `grow`."""
    top, branches = grow(prefix, rules)
    return [Chain(name, top), *branches]


def without_dear(networks: Iterable[IPNetwork]) -> list[IPNetwork]:
    """The networks, each /24 as its two halves, because a test of a /24 costs as much as six others."""
    return [
        part
        for network in networks
        for part in (network.subnet(_DEAR_PREFIX + 1) if network.prefixlen == _DEAR_PREFIX else [network])
    ]


def _parts(leaves: list[_Leaf], most: int) -> list[tuple[IPNetwork, list[_Leaf]]]:
    """The sorted leaves in parts of up to `most`, each part with the smallest network around it."""
    first, last = leaves[0][0][0], leaves[-1][0][1]
    length = 32 - (first ^ last).bit_length()
    around = IPNetwork((first, length)).cidr
    # A /24 is split, because a test of one costs most; but not for two leaves, of which each half would have one.
    if len(leaves) <= most and (length != _DEAR_PREFIX or len(leaves) <= 2):
        return [(around, leaves)]
    middle = around.first + around.size // 2
    halves = [leaf for leaf in leaves if leaf[0][0] < middle], [leaf for leaf in leaves if leaf[0][0] >= middle]
    return [part for half in halves for part in _parts(half, most)]
