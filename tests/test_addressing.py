"""The arithmetic of a POD's range, enumerated: every prefix that is allowed with every number of VNICs.

Address plan: ranges at the beginning of 198.18.0.0/15, and the article's pinned layout (conftest.py).
"""

import itertools

import pytest
from netaddr import IPAddress, IPNetwork

from nat_pod.config.addressing import (
    Layout,
    Pair,
    Slot,
    default_layout,
    free_addresses,
    halves,
    overlap,
    reserved_by_oci,
)

PREFIXES = range(16, 26)
VNIC_LIMITS = range(2, 25)
ARTICLE = Layout(
    cidr=IPNetwork("198.18.0.0/22"),
    pairs=(
        Pair(1, IPNetwork("198.18.0.0/27"), IPNetwork("198.18.0.128/27")),
        Pair(2, IPNetwork("198.18.0.32/27"), IPNetwork("198.18.0.64/27")),
    ),
    vrouter=IPNetwork("198.18.0.160/28"),
    pinned=True,
)


def layouts(prefix: int) -> list[Layout]:
    cidr = IPNetwork(f"198.18.0.0/{prefix}")
    return [default_layout(cidr, vnics) for vnics in VNIC_LIMITS]


def interval(network: IPNetwork) -> tuple[int, int]:
    return network.first, network.last


# --- the default layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
def test_no_two_subnets_of_a_layout_overlap_and_all_lie_in_the_range(prefix):
    wrong = []
    for layout in layouts(prefix):
        subnets = [layout.vrouter, *(net for pair in layout.pairs for net in (pair.nat_vm1, pair.nat_vm2))]
        taken = sorted(interval(net) for net in subnets)
        wrong += [(layout, one, other) for one, other in itertools.pairwise(taken) if one[1] >= other[0]]
        wrong += [(layout, net) for net in taken if net[0] < layout.cidr.first or net[1] > layout.cidr.last]
    assert wrong == []


@pytest.mark.parametrize("prefix", PREFIXES)
def test_each_nat_vm_lies_in_its_own_half(prefix):
    """Otherwise one route a neighbour would not cover it for good."""
    middle = 2 ** (32 - prefix) // 2
    assert [
        pair
        for layout in layouts(prefix)
        for pair in layout.pairs
        if not pair.nat_vm1.last < layout.cidr.first + middle <= pair.nat_vm2.first
    ] == []


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_vrouters_29_is_the_last_of_the_range_and_its_27_holds_nothing_else(prefix):
    wrong = []
    for layout in layouts(prefix):
        last = layout.cidr.last
        wrong += [layout] if interval(layout.vrouter) != (last - 7, last) else []
        wrong += [pair for pair in layout.pairs if pair.nat_vm2.last >= last - 31]
    assert wrong == []


@pytest.mark.parametrize("prefix", PREFIXES)
def test_subnets_are_27s_on_their_boundaries_and_numbered_from_1(prefix):
    made = layouts(prefix)
    assert [[pair.index for pair in layout.pairs] for layout in made] == [
        list(range(1, len(layout.pairs) + 1)) for layout in made
    ]
    networks = [network for layout in made for pair in layout.pairs for network in (pair.nat_vm1, pair.nat_vm2)]
    assert networks
    assert [network for network in networks if (network.prefixlen, network.first % 32) != (27, 0)] == []


@pytest.mark.parametrize(
    ("cidr", "vnics", "pairs", "slots"),
    [
        ("198.18.0.0/25", 24, 1, 29),
        ("198.18.0.0/24", 24, 3, 87),
        ("198.18.0.0/23", 24, 7, 203),
        ("198.18.0.0/22", 24, 15, 435),  # the article counts 696
        ("198.18.0.0/22", 15, 15, 435),
        ("198.18.0.0/22", 14, 14, 406),
        ("198.18.0.0/22", 2, 2, 58),
        ("198.18.0.0/21", 24, 24, 696),
        ("198.18.0.0/21", 2, 2, 58),
        ("198.18.0.0/20", 24, 24, 696),
        ("198.18.0.0/16", 24, 24, 696),
    ],
)
def test_a_range_holds_as_many_slots_as_its_27s_and_the_shape_allow(cidr, vnics, pairs, slots):
    layout = default_layout(IPNetwork(cidr), vnics)
    assert (len(layout.pairs), layout.capacity, len(list(layout.slots()))) == (pairs, slots, slots)


def test_the_layout_of_a_22_is_the_one_that_the_documents_show():
    layout = default_layout(IPNetwork("198.18.4.0/22"), 24)
    assert [(str(pair.nat_vm1), str(pair.nat_vm2)) for pair in (*layout.pairs[:2], layout.pairs[-1])] == [
        ("198.18.4.0/27", "198.18.6.0/27"),
        ("198.18.4.32/27", "198.18.6.32/27"),
        ("198.18.5.192/27", "198.18.7.192/27"),
    ]
    assert (str(layout.vrouter), layout.pinned) == ("198.18.7.248/29", False)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_more_vnics_add_pairs_behind_the_others_and_move_none(prefix):
    smaller_first = layouts(prefix)
    for smaller, larger in itertools.pairwise(smaller_first):
        assert larger.pairs[: len(smaller.pairs)] == smaller.pairs
        assert larger.vrouter == smaller.vrouter


def test_the_64_pods_of_a_21_and_the_128_of_a_22_share_no_subnet():
    for prefix, count in ((21, 64), (22, 128)):
        ranges = list(IPNetwork("198.18.0.0/15").subnet(prefix))
        assert len(ranges) == count
        subnets = [pair.nat_vm1.first for cidr in ranges for pair in default_layout(cidr, 24).pairs]
        assert len(set(subnets)) == len(subnets)


# --- slots -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [default_layout(IPNetwork("198.18.0.0/21"), 24), ARTICLE], ids=["default", "pinned"])
def test_a_slots_addresses_lead_back_to_the_slot(layout):
    for slot in layout.slots():
        one, two = layout.addresses(slot)
        assert layout.find(IPAddress(one), IPAddress(two)) == slot


@pytest.mark.parametrize("layout", [default_layout(IPNetwork("198.18.0.0/21"), 24), ARTICLE], ids=["default", "pinned"])
def test_no_address_belongs_to_two_slots_and_none_is_reserved(layout):
    pairs = [layout.addresses(slot) for slot in layout.slots()]
    flat = [address for pair in pairs for address in pair]
    assert len(set(flat)) == len(flat) == 2 * layout.capacity
    assert {int(address.rsplit(".", 1)[1]) % 32 for address in flat} == set(range(2, 31))


def test_slots_are_handed_out_pair_by_pair_and_the_first_primary_addresses_last():
    slots = list(ARTICLE.slots())
    assert slots[:-1] == sorted(slots[:-1])
    assert [ARTICLE.addresses(slot) for slot in (slots[0], slots[27], slots[28], slots[56], slots[57])] == [
        ("198.18.0.3", "198.18.0.131"),
        ("198.18.0.30", "198.18.0.158"),
        ("198.18.0.34", "198.18.0.66"),
        ("198.18.0.62", "198.18.0.94"),
        ("198.18.0.2", "198.18.0.130"),
    ]


def test_every_other_pair_of_addresses_of_the_articles_subnets_is_no_slot():
    """All 64 x 64 pairs: 58 are slots, and the rest say why not."""
    ones = [IPAddress(a) for net in ("198.18.0.0/27", "198.18.0.32/27") for a in IPNetwork(net)]
    twos = [IPAddress(a) for net in ("198.18.0.128/27", "198.18.0.64/27") for a in IPNetwork(net)]
    found = {(str(one), str(two)): ARTICLE.find(one, two) for one in ones for two in twos}
    slots = {pair: slot for pair, slot in found.items() if isinstance(slot, Slot)}
    assert slots == {ARTICLE.addresses(slot): slot for slot in ARTICLE.slots()}
    assert len(slots) == 58
    reasons = [why for why in found.values() if isinstance(why, str)]
    assert len(reasons) == 64 * 64 - 58
    assert all("which OCI reserves" in why or "same offset" in why for why in reasons)


@pytest.mark.parametrize(
    ("one", "two", "why"),
    [
        ("198.18.0.3", "198.18.0.132", "goes with 198.18.0.131, not with 198.18.0.132"),
        ("198.18.0.3", "198.18.0.67", "goes with 198.18.0.131, not with 198.18.0.67"),
        ("198.18.0.131", "198.18.0.3", "198.18.0.131 is in no subnet of NAT VM1 (198.18.0.0/27, 198.18.0.32/27)"),
        ("198.18.0.3", "198.18.0.3", "198.18.0.3 is in no subnet of NAT VM2 (198.18.0.128/27, 198.18.0.64/27)"),
        ("198.18.0.0", "198.18.0.128", "198.18.0.0 is the first address of 198.18.0.0/27"),
        ("198.18.0.33", "198.18.0.65", "198.18.0.33 is the second address of 198.18.0.32/27"),
        ("198.18.0.3", "198.18.0.159", "198.18.0.159 is the last address of 198.18.0.128/27"),
    ],
)
def test_a_pair_that_is_no_slot_says_why(one, two, why):
    assert why in str(ARTICLE.find(IPAddress(one), IPAddress(two)))


def test_a_long_list_of_subnets_is_cut():
    layout = default_layout(IPNetwork("198.18.0.0/22"), 24)
    assert str(layout.find(IPAddress("198.18.2.2"), IPAddress("198.18.2.2"))) == (
        "natVm1 198.18.2.2 is in no subnet of NAT VM1 (198.18.0.0/27, 198.18.0.32/27, 198.18.0.64/27 and 12 more)"
    )


# --- reserved addresses, overlap, halves -----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", range(16, 31))
def test_oci_keeps_the_first_two_addresses_and_the_last_of_any_subnet(prefix):
    subnet = IPNetwork(f"198.18.0.0/{prefix}")
    size = 2 ** (32 - prefix)
    edges = {*range(min(8, size)), *range(max(0, size - 8), size)}
    kept = {offset for offset in edges if reserved_by_oci(IPAddress(subnet.first + offset), subnet)}
    assert kept == {0, 1, size - 1}


@pytest.mark.parametrize(
    ("address", "subnet", "why"),
    [
        ("198.18.0.160", "198.18.0.160/29", "the first"),
        ("198.18.0.161", "198.18.0.160/29", "the second"),
        ("198.18.0.162", "198.18.0.160/29", None),
        ("198.18.0.166", "198.18.0.160/29", None),
        ("198.18.0.167", "198.18.0.160/29", "the last"),  # the article's vRouter address, in the article's subnet
        ("198.18.0.167", "198.18.0.160/28", None),
    ],
)
def test_a_reserved_address_says_which_one_it_is(address, subnet, why):
    expected = why and (
        f"{address} is {why} address of {subnet}, which OCI reserves (it keeps the first two and the last)"
    )
    assert reserved_by_oci(IPAddress(address), IPNetwork(subnet)) == expected


@pytest.mark.parametrize(
    ("network", "taken", "free"),
    [
        ("10.0.0.0/29", set(), "6 5 4 3 2"),
        ("10.0.0.0/29", {"10.0.0.6", "10.0.0.3"}, "5 4 2"),
        ("10.0.0.0/30", set(), "2"),
        ("10.0.0.0/30", {"10.0.0.2"}, ""),
        ("10.0.0.0/31", set(), ""),
        ("10.0.0.0/32", set(), ""),
    ],
)
def test_free_addresses_are_those_that_nobody_has_from_the_far_end(network, taken, free):
    assert list(free_addresses(IPNetwork(network), taken)) == [f"10.0.0.{number}" for number in free.split()]


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("10.0.0.0/24", "10.0.0.0/24", True),
        ("10.0.0.0/24", "10.0.0.128/25", True),
        ("10.0.0.0/8", "10.255.255.255/32", True),
        ("10.0.0.0/24", "10.0.1.0/24", False),
        ("10.0.0.0/25", "10.0.0.128/25", False),
        ("0.0.0.0/0", "198.18.0.0/22", True),
    ],
)
def test_overlap_is_the_same_from_both_sides(one, other, shared):
    assert overlap(IPNetwork(one), IPNetwork(other)) is shared
    assert overlap(IPNetwork(other), IPNetwork(one)) is shared


def test_the_halves_of_a_range_are_what_the_neighbours_route():
    assert [str(half) for half in halves(IPNetwork("198.18.4.0/22"))] == ["198.18.4.0/23", "198.18.6.0/23"]
