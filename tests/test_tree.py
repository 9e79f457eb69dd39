"""Long lists as trees: enumerated over many lists, every address of the surroundings tried.

Address plan: the lists are for addresses in 10.0.0.0/22; each rule's note is the network it is for.
"""

import random

import pytest
from netaddr import IPAddress, IPNetwork

from nat_pod.rules.netfilter import CHAIN_NAME_LIMIT, Accept, Goto, Match, Rule
from nat_pod.rules.tree import grow, without_dear

FIRST, LAST = int(IPAddress("9.255.255.0")), int(IPAddress("10.0.4.255"))


def rule(network: str, side: str) -> Rule:
    return Rule(Match(**{side: network}), Accept(), note=network)


def hosts(count: int, seed: int) -> list[str]:
    return [f"{IPAddress('10.0.0.0') + at}/32" for at in random.Random(seed).sample(range(1024), count)]


LISTS = {
    "none": [],
    "one": ["10.0.0.7/32"],
    "all of a /26": [f"10.0.0.{at}/32" for at in range(64)],
    "the ends of every /24, two in each": [f"10.0.{at}.{end}/32" for at in range(4) for end in (1, 254)],
    "far apart": [f"{at}.0.0.1/32" for at in range(10, 200, 9)],
    "subnets of every size": [f"10.0.0.{2**at}/{32 - at}" for at in range(8)] + ["10.0.1.0/24", "10.0.2.0/23"],
} | {f"{count} anywhere": hosts(count, count) for count in (4, 5, 9, 33, 130, 700)}


@pytest.mark.parametrize("networks", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize(("branches", "side"), [(2, "source"), (12, "destination")])
def test_every_address_meets_its_own_rule_and_no_other_address_meets_any(networks, branches, side):
    top, chains = grow("NATPOD-T-", [rule(network, side) for network in networks], branches)
    by_name = {chain.name: chain.rules for chain in chains}
    assert len(by_name) == len(chains)
    spans = {
        text: IPNetwork(text) for text in {getattr(r.match, side) for rules in (top, *by_name.values()) for r in rules}
    }
    spans = {text: (network.first, network.last) for text, network in spans.items()}
    owner = {address: network for network in networks for address in range(spans[network][0], spans[network][1] + 1)}
    for address in {*range(FIRST, LAST + 1, 3), *owner, *(address + 1 for address in owner)}:
        rules, met = top, None
        while rules:
            below = ()
            for candidate in rules:
                first, last = spans[getattr(candidate.match, side)]
                if first <= address <= last:
                    if isinstance(candidate.target, Goto):
                        below = by_name[candidate.target.chain]
                    else:
                        met = candidate.note
                    break
            rules = below
        assert met == owner.get(address)


@pytest.mark.parametrize("networks", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("branches", [2, 4, 12])
def test_no_chain_is_long_and_each_has_a_name_that_iptables_takes(networks, branches):
    top, chains = grow("NATPOD-T-", [rule(network, "source") for network in networks], branches)
    assert all(1 <= len(rules) <= branches for rules in (top, *(chain.rules for chain in chains)) if networks)
    assert all(len(chain.name) <= CHAIN_NAME_LIMIT for chain in chains)
    kept = [r for rules in (top, *(chain.rules for chain in chains)) for r in rules if not isinstance(r.target, Goto)]
    assert sorted(r.note for r in kept) == sorted(networks)


def test_a_short_list_stays_as_it_is_and_a_long_one_does_not_depend_on_its_order():
    rules = [rule(network, "source") for network in hosts(12, 1)]
    assert grow("NATPOD-T-", rules) == (tuple(rules), [])
    longer = [rule(network, "source") for network in hosts(60, 1)]
    assert grow("NATPOD-T-", longer) == grow("NATPOD-T-", longer[::-1])
    assert grow("NATPOD-T-", longer)[1] != []


def test_the_example_of_the_module():
    rules = [rule(f"10.0.0.{at}/32", "source") for at in (10, 11, 12, 13, 80, 81, 82, 83)]
    top, chains = grow("NATPOD-C-", rules, 4)
    assert top == (
        Rule(Match(source="10.0.0.8/29"), Goto("NATPOD-C-10.0.0.8/29")),
        Rule(Match(source="10.0.0.80/30"), Goto("NATPOD-C-10.0.0.80/30")),
    )
    assert {chain.name: chain.rules for chain in chains} == {
        "NATPOD-C-10.0.0.8/29": tuple(rules[:4]),
        "NATPOD-C-10.0.0.80/30": tuple(rules[4:]),
    }


def test_branches_avoid_a_24_because_the_kernel_is_slow_at_it():
    """Eight hosts around the middle of each of four /24: a /24 would hold each group, its halves do as well."""
    networks = [f"10.0.{at}.{host}/32" for at in range(4) for host in range(124, 132)]
    top, chains = grow("NATPOD-T-", [rule(network, "source") for network in networks], 8)
    branches = [r.match.source for rules in (top, *(chain.rules for chain in chains)) for r in rules]
    assert len(chains) == 8
    assert not [network for network in branches if network.endswith("/24")]
    assert [str(part) for part in without_dear([IPNetwork("10.0.0.0/24"), IPNetwork("10.0.2.0/23")])] == [
        "10.0.0.0/25", "10.0.0.128/25", "10.0.2.0/23",
    ]  # fmt: skip
